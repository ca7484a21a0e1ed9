//! Names of sites and studies, parsed once at the edge.

use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A name breaks the rule for names.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} {value:?} is not valid: {rule}")]
pub struct NameError {
    /// Which name.
    pub what: &'static str,
    /// What was given, cut to 100 characters.
    pub value: String,
    /// The rule that it breaks.
    pub rule: &'static str,
}

/// Pattern of a time in the API. The format `date-time` alone takes times that nothing here could hold: the last day of
/// the year 9999, and spellings that are not RFC 3339. Times are written again in UTC (an approval, in the status of its
/// promotion), so that the two years at the ends are there for what an offset makes of the ones within.
pub const TIME_PATTERN: &str = concat!(
    "^([12][0-9]{3}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\\.[0-9]{1,9})?(Z|[-+]([01][0-9]|2[0-3]):[0-5][0-9])",
    "|(0999|3000)-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\\.[0-9]{1,9})?Z)$",
);

const LABEL_RULE: &str =
    "use 1 to 63 lower-case letters, digits and '-', with a letter or digit at both ends (RFC 1123 label)";

fn check_label(what: &'static str, text: &str) -> Result<(), NameError> {
    let ok = (1..=63).contains(&text.len())
        && text.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-'))
        && !text.starts_with('-')
        && !text.ends_with('-');
    if ok { Ok(()) } else { Err(NameError { what, value: text.chars().take(100).collect(), rule: LABEL_RULE }) }
}

/// The name of a hospital: that of its TrustSite and of its certificate. An RFC 1123 label.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SiteName(String);

impl SiteName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for SiteName {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        check_label("site name", text)?;
        Ok(Self(text.to_owned()))
    }
}

impl TryFrom<String> for SiteName {
    type Error = NameError;
    fn try_from(text: String) -> Result<Self, NameError> {
        text.parse()
    }
}

impl From<SiteName> for String {
    fn from(name: SiteName) -> Self {
        name.0
    }
}

impl fmt::Display for SiteName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for SiteName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl JsonSchema for SiteName {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "SiteName".into()
    }
    fn inline_schema() -> bool {
        true
    }
    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "type": "string", "minLength": 1, "maxLength": 63, "pattern": "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"
        })
    }
}

/// A study by namespace and name, written `namespace/name`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct StudyKey {
    /// The hub namespace of the FederatedStudy.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl StudyKey {
    /// From two parts that the API server has already checked.
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

impl FromStr for StudyKey {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        let (namespace, name) = text.split_once('/').ok_or_else(|| NameError {
            what: "study",
            value: text.chars().take(100).collect(),
            rule: "write namespace/name, as in research/hippocampus",
        })?;
        check_label("study namespace", namespace)?;
        check_label("study name", name)?;
        Ok(Self::new(namespace, name))
    }
}

impl TryFrom<String> for StudyKey {
    type Error = NameError;
    fn try_from(text: String) -> Result<Self, NameError> {
        text.parse()
    }
}

impl From<StudyKey> for String {
    fn from(key: StudyKey) -> Self {
        key.to_string()
    }
}

impl fmt::Display for StudyKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl fmt::Debug for StudyKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl JsonSchema for StudyKey {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "StudyKey".into()
    }
    fn inline_schema() -> bool {
        true
    }
    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "type": "string", "maxLength": 127,
            "pattern": "^[a-z0-9]([-a-z0-9]*[a-z0-9])?/[a-z0-9]([-a-z0-9]*[a-z0-9])?$"
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_parsed_and_refused_with_the_rule() {
        assert_eq!("alder".parse::<SiteName>().unwrap().as_str(), "alder");
        for bad in ["", "Alder", "-a", "a-", "a_b", &"x".repeat(64)] {
            let error = bad.parse::<SiteName>().unwrap_err().to_string();
            assert!(error.contains("RFC 1123"), "{error}");
        }
        assert_eq!("research/hippocampus".parse::<StudyKey>().unwrap().to_string(), "research/hippocampus");
        assert!("hippocampus".parse::<StudyKey>().is_err());
    }
}
