//! Why an object is not understood, in words for whoever wrote it.

use serde_json::Value;

/// An object, or a part of one, that this version does not understand in full, and so does not act on at all.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    /// A field that a later version has: honouring the others alone would be another object than was written.
    #[error("{field} is not known to this version, {version}, and cannot be honoured: update it, or take the field out", version = env!("CARGO_PKG_VERSION"))]
    Unknown {
        /// Its path.
        field: String,
    },
    /// Nested so deep that it is not kept.
    #[error(
        "{field} is nested more than {most} levels deep: put what it says in fewer levels, or into a file in the image"
    )]
    Depth {
        /// The field.
        field: String,
        /// The bound.
        most: usize,
    },
    /// A value that does not parse.
    #[error("{why}; correct it, or update this version, {version}, if a later one takes it", version = env!("CARGO_PKG_VERSION"))]
    Invalid {
        /// What the parser said.
        why: String,
    },
}

/// The path of the first place where `said` is not what was `written`.
pub(crate) fn difference(written: &Value, said: &Value, path: &str) -> Option<String> {
    match (written, said) {
        (Value::Object(written), Value::Object(said)) => {
            let missing = said.keys().find(|key| !written.contains_key(*key)).map(|key| format!("{path}.{key}"));
            let inner = |(key, value): (&String, &Value)| {
                let path = format!("{path}.{key}");
                match said.get(key) {
                    Some(said) => difference(value, said, &path),
                    None => Some(path),
                }
            };
            written.iter().find_map(inner).or(missing)
        }
        (Value::Array(written), Value::Array(said)) if written.len() == said.len() => {
            let both = written.iter().zip(said).enumerate();
            both.into_iter().find_map(|(n, (written, said))| difference(written, said, &format!("{path}[{n}]")))
        }
        (written, said) => (written != said).then(|| path.to_owned()),
    }
}

/// The path of the first field that is `written` with a value and not `said`; what is said in another spelling, or is
/// empty, counts as said.
pub(crate) fn unknown(written: &Value, said: &Value, path: &str) -> Option<String> {
    match (written, said) {
        (Value::Object(written), Value::Object(said)) => written.iter().find_map(|(key, value)| {
            let path = format!("{path}.{key}");
            match said.get(key) {
                Some(said) => unknown(value, said, &path),
                None => (!is_empty(value)).then_some(path),
            }
        }),
        (Value::Array(written), Value::Array(said)) => {
            let both = written.iter().zip(said).enumerate();
            both.into_iter().find_map(|(n, (written, said))| unknown(written, said, &format!("{path}[{n}]")))
        }
        _ => None,
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        Value::Number(_) | Value::String(_) | Value::Bool(true) => false,
    }
}
