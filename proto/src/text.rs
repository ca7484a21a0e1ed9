//! Values that travel as text.

use consilium_federation::Digest;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// Rosters that one message may name.
const MAX_DIGESTS: usize = 16;

/// A message from the other side does not make sense. Nothing of it is used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("field {field} is {value:?}: {rule}")]
pub struct WireError {
    /// Path of the field.
    pub field: &'static str,
    /// What it holds, cut to 100 characters.
    pub value: String,
    /// Why that is wrong.
    pub rule: String,
}

impl WireError {
    pub(crate) fn new(field: &'static str, value: impl ToString, rule: impl ToString) -> Self {
        Self { field, value: value.to_string().chars().take(100).collect(), rule: rule.to_string() }
    }

    pub(crate) fn missing(field: &'static str) -> Self {
        Self::new(field, "", "it is required")
    }
}

impl From<WireError> for tonic::Status {
    fn from(error: WireError) -> Self {
        tonic::Status::invalid_argument(error.to_string())
    }
}

/// The API's spelling of an enum value (its serde name).
pub(crate) fn spell<T: Serialize>(value: T) -> String {
    match serde_json::to_value(value) {
        Ok(Value::String(text)) => text,
        _ => String::new(),
    }
}

/// Parses the API's spelling.
pub(crate) fn read<T: DeserializeOwned>(field: &'static str, text: &str) -> Result<T, WireError> {
    serde_json::from_value(Value::String(text.to_owned())).map_err(|error| WireError::new(field, text, error))
}

/// Parses digests; no list of them is long.
pub(crate) fn digests(field: &'static str, texts: &[String]) -> Result<Vec<Digest>, WireError> {
    if texts.len() > MAX_DIGESTS {
        return Err(WireError::new(field, texts.len(), format!("at most {MAX_DIGESTS} digests")));
    }
    texts.iter().map(|text| read(field, text)).collect()
}

pub(crate) fn optional(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_owned())
}

/// UIDs name files here, and are shown to people who copy them into a policy.
pub(crate) fn uid(field: &'static str, text: String) -> Result<String, WireError> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'-';
    if text.is_empty() || text.len() > 63 || !text.bytes().all(plain) {
        return Err(WireError::new(field, text, "expected a Kubernetes UID"));
    }
    Ok(text)
}
