//! What a study's model answers: the typed `spec.output`, which the evaluator and the inference server read in place of
//! a trainer's own configuration.
//!
//! It travels study → round → `task.json` → release as it was written. Whatever is left out is not known; scans are then
//! brought to `RAS`, and taken in the spacing that they have.

use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::task::MAX_CLASSES;

/// What a model answers, and for which volumes it was trained.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct OutputSpec {
    /// What an answer is.
    pub kind: OutputKind,
    /// Names of the classes. Segmentation: the structures, in the order of their labels from 1; 0 is the background and
    /// has no name. Classification: in the order of the answer's numbers.
    #[schemars(length(min = 1, max = MAX_CLASSES), extend("x-kubernetes-list-type" = "set"))]
    pub classes: Vec<ClassName>,
    /// Voxels along x, y and z of the volume that the model is given, after spacing and orientation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(inner(range(min = 1, max = 1024)), extend("x-kubernetes-list-type" = "atomic"))]
    pub shape: Option<[u32; 3]>,
    /// Millimetres from voxel to voxel along x, y and z, after orientation. A scan of another spacing is refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("x-kubernetes-list-type" = "atomic"))]
    pub spacing: Option<[Millimetres; 3]>,
    /// Where x, y and z lead, `RAS` where nothing stands here. A scan is brought to it, and its mask back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub orientation: Option<Orientation>,
}

impl OutputSpec {
    /// Values that a voxel of a mask may have, the background among them; of a classification, its classes.
    pub fn values(&self) -> usize {
        match self.kind {
            OutputKind::Segmentation => self.classes.len() + 1,
            OutputKind::Classification => self.classes.len(),
        }
    }

    /// Millimetres from voxel to voxel, as numbers.
    pub fn spacing_mm(&self) -> Option<[f64; 3]> {
        self.spacing.as_ref().map(|all| [all[0].value(), all[1].value(), all[2].value()])
    }

    /// Refuses what the parts alone do not show.
    ///
    /// # Errors
    /// In words that name the field, the value and the rule.
    pub fn check(&self) -> Result<(), String> {
        let n = self.classes.len();
        if n == 0 || n > MAX_CLASSES {
            return Err(format!("output.classes has {n} names: write from 1 to {MAX_CLASSES}"));
        }
        if let Some(name) = self.classes.iter().enumerate().find(|(i, c)| self.classes[..*i].contains(c)) {
            return Err(format!("output.classes names {:?} twice: each class needs a name of its own", name.1.0));
        }
        match self.shape.filter(|shape| shape.iter().any(|side| !(1..=1024).contains(side))) {
            Some(shape) => Err(format!("output.shape is {shape:?}: each side must be from 1 to 1024")),
            None => Ok(()),
        }
    }
}

/// What an answer is; holds only what works.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
pub enum OutputKind {
    /// A label for each voxel of the scan.
    Segmentation,
    /// One number for each class.
    Classification,
}

/// A text that is none of the values that are allowed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{value:?} is not {rule}")]
pub struct OutputError {
    /// What was given, cut to 100 characters.
    pub value: String,
    /// What it should be.
    pub rule: &'static str,
}

fn refuse(text: &str, rule: &'static str) -> OutputError {
    OutputError { value: text.chars().take(100).collect(), rule }
}

/// A newtype over text with a pattern, parsed wherever it comes in.
macro_rules! text {
    ($name:ident, $max:literal, $pattern:expr) => {
        impl $name {
            /// The text as it was written.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = OutputError;
            fn try_from(text: String) -> Result<Self, OutputError> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(value: $name) -> Self {
                value.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl JsonSchema for $name {
            fn schema_name() -> std::borrow::Cow<'static, str> {
                stringify!($name).into()
            }
            fn inline_schema() -> bool {
                true
            }
            fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
                schemars::json_schema!({"type": "string", "maxLength": $max, "pattern": $pattern})
            }
        }
    };
}

/// The name of a class: letters, digits, `-`, `_`, `.` and spaces within.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ClassName(String);

text!(ClassName, 63, "^[A-Za-z0-9]([-A-Za-z0-9_. ]{0,61}[A-Za-z0-9])?$");

impl FromStr for ClassName {
    type Err = OutputError;

    fn from_str(text: &str) -> Result<Self, OutputError> {
        let end = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
        let within = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | ' ');
        let good =
            text.len() <= 63 && end(text.chars().next()) && end(text.chars().next_back()) && text.chars().all(within);
        let rule = "the name of a class: up to 63 letters, digits, \"-\", \"_\", \".\" and spaces, a letter or digit at both ends";
        if good { Ok(Self(text.to_owned())) } else { Err(refuse(text, rule)) }
    }
}

/// A length in millimetres above 0, below 1000, with up to four decimals. Kept as text, as the API keeps decimals: two
/// spellings of one number would be two digests.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Millimetres(String);

text!(
    Millimetres,
    8,
    "^([1-9][0-9]{0,2}(\\.[0-9]{1,4})?|0\\.([1-9][0-9]{0,3}|0[1-9][0-9]{0,2}|00[1-9][0-9]?|000[1-9]))$"
);

impl Millimetres {
    /// The number.
    pub fn value(&self) -> f64 {
        // Parsing let digits and one point through, and nothing else.
        self.0.parse().unwrap_or(f64::NAN)
    }
}

impl FromStr for Millimetres {
    type Err = OutputError;

    fn from_str(text: &str) -> Result<Self, OutputError> {
        let (whole, rest) = text.split_once('.').map_or((text, None), |(whole, rest)| (whole, Some(rest)));
        let digits = |t: &str| !t.is_empty() && t.bytes().all(|b| b.is_ascii_digit());
        let plain = digits(whole) && whole.len() <= 3 && (whole == "0" || !whole.starts_with('0'));
        let good = plain && rest.is_none_or(|rest| digits(rest) && rest.len() <= 4);
        let value = Self(text.to_owned());
        let rule = "a length in millimetres above 0 and below 1000 with up to four decimals, for example \"0.5\"";
        if good && value.value() > 0.0 { Ok(value) } else { Err(refuse(text, rule)) }
    }
}

/// Where the axes x, y and z of a volume lead: three letters, one of each pair L/R, A/P and S/I, as nibabel's
/// `aff2axcodes` writes them. `RAS`: x grows to the patient's right, y to the front, z to the head.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Orientation(String);

text!(Orientation, 3, "^([LR]([AP][SI]|[SI][AP])|[AP]([LR][SI]|[SI][LR])|[SI]([LR][AP]|[AP][LR]))$");

impl FromStr for Orientation {
    type Err = OutputError;

    fn from_str(text: &str) -> Result<Self, OutputError> {
        let pair = |c: u8| match c {
            b'L' | b'R' => Some(0),
            b'A' | b'P' => Some(1),
            b'S' | b'I' => Some(2),
            _ => None,
        };
        let pairs: Vec<u8> = text.bytes().filter_map(pair).collect();
        let each = (0..3).all(|axis| pairs.contains(&axis));
        let rule = "three letters, one of each pair L/R, A/P and S/I, for example \"RAS\"";
        if text.len() == 3 && each { Ok(Self(text.to_owned())) } else { Err(refuse(text, rule)) }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn parse(value: serde_json::Value) -> Result<OutputSpec, serde_json::Error> {
        serde_json::from_value(value)
    }

    /// What a researcher writes is kept letter by letter: another spelling would be another digest.
    #[test]
    fn what_is_written_is_what_is_kept() {
        let written = json!({"kind": "Segmentation", "classes": ["anterior", "posterior part"], "shape": [40, 56, 40],
            "spacing": ["1.0", "1", "0.50"], "orientation": "LPS"});
        let output = parse(written.clone()).unwrap();
        assert_eq!(serde_json::to_value(&output).unwrap(), written);
        assert_eq!((output.values(), output.spacing_mm()), (3, Some([1.0, 1.0, 0.5])));
        assert_eq!(output.check(), Ok(()));
        let least = json!({"kind": "Classification", "classes": ["a"]});
        assert_eq!(serde_json::to_value(parse(least.clone()).unwrap()).unwrap(), least);
    }

    /// A name, length or orientation that nothing could act on must be refused where it is written.
    #[test]
    fn wrong_values_are_refused_in_words_that_name_them() {
        for (field, wrong, rule) in [
            ("orientation", json!("RAR"), "one of each pair"),
            ("orientation", json!("ras"), "one of each pair"),
            ("orientation", json!("RASS"), "one of each pair"),
            ("classes", json!(["a", "-b"]), "a letter or digit at both ends"),
            ("spacing", json!(["1", "1", "0.0"]), "above 0"),
            ("spacing", json!(["1", "1", "1000"]), "below 1000"),
            ("spacing", json!(["1", "1", "1e0"]), "millimetres"),
            ("spacing", json!(["1", "1", ".5"]), "millimetres"),
            ("shape", json!([1, 2]), "3"),
        ] {
            let mut value = json!({"kind": "Segmentation", "classes": ["a"]});
            value[field] = wrong;
            let message = parse(value.clone()).unwrap_err().to_string();
            assert!(message.contains(rule), "{value}: {message}");
        }
        let twice = parse(json!({"kind": "Segmentation", "classes": ["a", "a"]})).unwrap();
        assert!(twice.check().unwrap_err().contains("\"a\" twice"));
        let flat = parse(json!({"kind": "Segmentation", "classes": ["a"], "shape": [40, 0, 40]})).unwrap();
        assert!(flat.check().unwrap_err().contains("[40, 0, 40]"));
    }

    /// All 48 orientations that there are, and no other three letters.
    #[test]
    fn there_are_forty_eight_orientations() {
        let letters = ["L", "R", "A", "P", "S", "I"];
        let all = (0..216).map(|n| [n / 36, n / 6 % 6, n % 6].map(|letter| letters[letter]).concat());
        assert_eq!(all.filter(|text| text.parse::<Orientation>().is_ok()).count(), 48);
    }
}
