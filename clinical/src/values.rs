//! Small values of plans and cases, each parsed once at the edge and carried as text in JSON, so that no digest hangs on
//! how a library writes a fraction.

use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A value breaks its rule.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{value:?} is not valid: {rule}")]
pub struct ValueError {
    /// What was given, cut to 100 characters.
    pub value: String,
    /// The rule, and so the way out.
    pub rule: &'static str,
}

fn refuse(text: &str, rule: &'static str) -> ValueError {
    ValueError { value: text.chars().take(100).collect(), rule }
}

/// Carries a type as its text in JSON and in the schema.
macro_rules! as_text {
    ($name:ident, $max:literal, $pattern:literal) => {
        impl TryFrom<String> for $name {
            type Error = ValueError;
            fn try_from(text: String) -> Result<Self, ValueError> {
                text.parse()
            }
        }
        impl From<$name> for String {
            fn from(value: $name) -> Self {
                value.to_string()
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
                schemars::json_schema!({"type": "string", "minLength": 1, "maxLength": $max, "pattern": $pattern})
            }
        }
    };
}

/// A number of a rule with up to six decimals, from 0 to 999,999,999: a floor, a ceiling, a limit. Exact: millionths.
/// Written in the fewest digits, so that `0.90` and `0.9` are one value with one digest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Decimal(u64);

as_text!(Decimal, 16, "^(0|[1-9][0-9]{0,8})(\\.[0-9]{1,6})?$");

impl Decimal {
    const MILLION: u64 = 1_000_000;

    /// The nearest double: a quotient of two exact ones is rounded once, as parsing the text would.
    pub fn value(self) -> f64 {
        self.0 as f64 / Self::MILLION as f64
    }
}

impl FromStr for Decimal {
    type Err = ValueError;
    fn from_str(text: &str) -> Result<Self, ValueError> {
        let rule = "write a number from 0 to 999999999 with up to six decimals, as text, for example \"0.85\"";
        let (whole, rest) = text.split_once('.').map_or((text, None), |(whole, rest)| (whole, Some(rest)));
        let digits = |t: &str, most: usize| (1..=most).contains(&t.len()) && t.bytes().all(|b| b.is_ascii_digit());
        let good = digits(whole, 9) && (whole == "0" || !whole.starts_with('0'));
        if !good || !rest.is_none_or(|rest| digits(rest, 6)) {
            return Err(refuse(text, rule));
        }
        let number = |t: &str| t.parse::<u64>().map_err(|_| refuse(text, rule));
        Ok(Self(number(whole)? * Self::MILLION + number(&format!("{:0<6}", rest.unwrap_or("0")))?))
    }
}

impl fmt::Display for Decimal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (whole, rest) = (self.0 / Self::MILLION, self.0 % Self::MILLION);
        let decimals = format!("{rest:06}");
        match decimals.trim_end_matches('0') {
            "" => write!(f, "{whole}"),
            some => write!(f, "{whole}.{some}"),
        }
    }
}

/// A share from 0 to 1 with up to six decimals, as text: `"0.95"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Share(Decimal);

as_text!(Share, 8, "^(0(\\.[0-9]{1,6})?|1(\\.0{1,6})?)$");

impl Share {
    /// The nearest double.
    pub fn value(self) -> f64 {
        self.0.value()
    }
}

impl FromStr for Share {
    type Err = ValueError;
    fn from_str(text: &str) -> Result<Self, ValueError> {
        let rule = "write a share from 0 to 1 with up to six decimals, as text, for example \"0.95\"";
        let number: Decimal = text.parse().map_err(|_| refuse(text, rule))?;
        if number.0 <= Decimal::MILLION { Ok(Self(number)) } else { Err(refuse(text, rule)) }
    }
}

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// A name in a plan: of a finding, a subgroup's dimension or group, a measured quantity, a role, a hazard.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(String);

as_text!(Name, 63, "^[A-Za-z0-9]([-A-Za-z0-9_.+]*[A-Za-z0-9+])?$");

impl Name {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// What stands where a name could not be read.
    pub fn unreadable() -> Self {
        Self("unreadable".into())
    }
}

impl FromStr for Name {
    type Err = ValueError;
    fn from_str(text: &str) -> Result<Self, ValueError> {
        let edge = |b: Option<u8>, plus: bool| b.is_some_and(|b| b.is_ascii_alphanumeric() || (plus && b == b'+'));
        let inner = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b'+');
        let good = text.len() <= 63
            && text.bytes().all(inner)
            && edge(text.bytes().next(), false)
            && edge(text.bytes().last(), true);
        let rule = "use 1 to 63 letters, digits, '-', '_', '.' and '+', beginning with a letter or digit";
        if good { Ok(Self(text.to_owned())) } else { Err(refuse(text, rule)) }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a rule puts a bound on.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Metric {
    /// Of the positives, the share that the model found.
    Sensitivity,
    /// Of the negatives, the share that the model left alone.
    Specificity,
    /// Of what the model found, the share that was there (positive predictive value).
    Ppv,
    /// Of the results that a reader has read, seen or unseen, the share that reader and model call alike. Not a measure
    /// of performance: a reader who saw the result is led by it.
    Agreement,
    /// The mean over patients of a measured quantity, for example `mean:dice`.
    Mean(Name),
}

as_text!(Metric, 68, "^(sensitivity|specificity|ppv|agreement|mean:[A-Za-z0-9]([-A-Za-z0-9_.+]*[A-Za-z0-9+])?)$");

impl FromStr for Metric {
    type Err = ValueError;
    fn from_str(text: &str) -> Result<Self, ValueError> {
        let rule = "write sensitivity, specificity, ppv, agreement, or mean: and the name of a measured quantity, for example \"mean:dice\"";
        match text {
            "sensitivity" => Ok(Self::Sensitivity),
            "specificity" => Ok(Self::Specificity),
            "ppv" => Ok(Self::Ppv),
            "agreement" => Ok(Self::Agreement),
            _ => match text.strip_prefix("mean:").map(Name::from_str) {
                Some(Ok(name)) => Ok(Self::Mean(name)),
                _ => Err(refuse(text, rule)),
            },
        }
    }
}

impl fmt::Display for Metric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sensitivity => f.write_str("sensitivity"),
            Self::Specificity => f.write_str("specificity"),
            Self::Ppv => f.write_str("ppv"),
            Self::Agreement => f.write_str("agreement"),
            Self::Mean(name) => write!(f, "mean:{name}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Two spellings of one number must not give two digests of one plan, and what a clinician wrote is what is compared.
    #[test]
    fn a_number_is_exact_and_has_one_spelling() {
        for (written, shown, value) in [("0.90", "0.9", 0.9), ("1.0", "1", 1.0), ("12.000001", "12.000001", 12.000001)]
        {
            let parsed: Decimal = written.parse().unwrap();
            assert_eq!((parsed.to_string().as_str(), parsed.value()), (shown, value));
        }
        for bad in ["", "-1", "+1", ".5", "1.", "01", "1e3", "0.1234567", "1000000000", "NaN", "٣"] {
            assert!(bad.parse::<Decimal>().is_err(), "{bad}");
        }
        assert_eq!("1.000".parse::<Share>().unwrap().to_string(), "1");
        let error = "1.000001".parse::<Share>().unwrap_err().to_string();
        assert!(error.contains("1.000001") && error.contains("from 0 to 1"), "{error}");
    }

    #[test]
    fn names_and_metrics_round_trip_and_are_refused_with_the_rule() {
        for text in ["sensitivity", "specificity", "ppv", "agreement", "mean:dice", "mean:volume-error"] {
            assert_eq!(text.parse::<Metric>().unwrap().to_string(), text);
        }
        for bad in ["sensitivty", "mean:", "mean:-x", "Sensitivity"] {
            let error = bad.parse::<Metric>().unwrap_err().to_string();
            assert!(error.contains("mean:dice"), "{error}");
        }
        assert!("80+".parse::<Name>().is_ok());
        for bad in ["", "a b", "-a", "a-", "é", &"x".repeat(64)] {
            assert!(bad.parse::<Name>().is_err(), "{bad}");
        }
    }

    proptest! {
        /// The value that a rule compares is the one that its text says.
        #[test]
        fn a_number_is_what_its_text_says(micro in 0..999_999_999_000_000u64) {
            let text = Decimal(micro).to_string();
            prop_assert_eq!(text.parse::<Decimal>().unwrap(), Decimal(micro));
            prop_assert_eq!(text.parse::<f64>().unwrap(), Decimal(micro).value());
        }
    }
}
