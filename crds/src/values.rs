//! Values that the API keeps as text, parsed: decimals, durations, quantities.

use jiff::SignedDuration;

/// A value that does not parse. The schema's patterns catch these first; this is the second line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field} is {value:?}: {rule}")]
pub struct ValueError {
    /// Path of the field.
    pub field: &'static str,
    /// What it holds.
    pub value: String,
    /// What it should hold.
    pub rule: &'static str,
}

pub use consilium_federation::ids::TIME_PATTERN;

/// Pattern of a decimal above 0.
pub const POSITIVE_DECIMAL_PATTERN: &str = "^([1-9][0-9]{0,8}(\\.[0-9]{1,9})?|0\\.0{0,8}[1-9][0-9]{0,8})$";
/// Pattern of a number from 0 to 1.
pub const FRACTION_PATTERN: &str = "^(0(\\.[0-9]{1,9})?|1(\\.0{1,9})?)$";
/// Pattern of a number from 0 to less than 1.
pub const BELOW_ONE_PATTERN: &str = "^0(\\.[0-9]{1,9})?$";
/// Pattern of a class's Dice; `-` stands for a class that no case has.
pub const CLASS_DICE_PATTERN: &str = "^(-|0(\\.[0-9]{1,9})?|1(\\.0{1,9})?)$";
/// Pattern of a duration of hours, minutes and seconds; parts that would be 0 are left out, so that no duration is 0.
pub const DURATION_PATTERN: &str = "^([1-9][0-9]{0,4}h)?([1-9][0-9]{0,4}m)?([1-9][0-9]{0,4}s)?$";
/// Pattern of a public key: base64 of 32 bytes.
pub const PUBLIC_KEY_PATTERN: &str = "^[A-Za-z0-9+/]{42}[AEIMQUYcgkosw048]=$";
/// Pattern of an object's name, also with dots (DNS-1123 subdomain).
pub const NAME_PATTERN: &str = "^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$";
/// Pattern of a namespace's name (DNS-1123 label).
pub const NAMESPACE_PATTERN: &str = "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$";
/// Pattern of a label's value: what Kubernetes refuses as one would fail again at each try to make a Job with it.
pub const LABEL_VALUE_PATTERN: &str = "^[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$";
/// Pattern of a UID, as far as messages between hub and hospital check it.
pub const UID_PATTERN: &str = "^[-0-9A-Za-z]+$";
/// Pattern of the beginning of an image's name.
pub const IMAGE_PREFIX_PATTERN: &str = "^[a-z0-9][a-z0-9._:/-]*$";
/// Pattern of a CPU quantity above 0, down to a thousandth.
pub const CPU_PATTERN: &str = "^([1-9][0-9]{0,5}(m|\\.[0-9]{1,3})?|0\\.([1-9][0-9]{0,2}|0[1-9][0-9]?|00[1-9]))$";
/// Pattern of a memory quantity.
pub const MEMORY_PATTERN: &str = "^[1-9][0-9]{0,8}(Mi|Gi|Ti)$";

/// Whether a text is what a label's value may be, with at most 63 characters ([`LABEL_VALUE_PATTERN`]).
pub fn is_label_value(text: &str) -> bool {
    let ends = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    let inner = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    text.len() <= 63 && ends(text.chars().next()) && ends(text.chars().last()) && text.chars().all(inner)
}

/// Parses a decimal.
pub fn decimal(field: &'static str, text: &str) -> Result<f64, ValueError> {
    let bad = || ValueError { field, value: text.into(), rule: "write a decimal number, for example \"0.82\"" };
    let value: f64 = text.parse().map_err(|_| bad())?;
    if value.is_finite() && value >= 0.0 { Ok(value) } else { Err(bad()) }
}

/// Parses a duration such as `12h`, `1h30m` or `90s`; it must not be empty or zero.
pub fn duration(field: &'static str, text: &str) -> Result<SignedDuration, ValueError> {
    let bad =
        || ValueError { field, value: text.into(), rule: "write hours, minutes and seconds, for example \"1h30m\"" };
    let mut seconds = 0i64;
    let mut digits = String::new();
    for c in text.chars() {
        let unit = match c {
            '0'..='9' => {
                digits.push(c);
                continue;
            }
            'h' => 3600,
            'm' => 60,
            's' => 1,
            _ => return Err(bad()),
        };
        let count: i64 = digits.parse().map_err(|_| bad())?;
        digits.clear();
        seconds = count.checked_mul(unit).and_then(|s| seconds.checked_add(s)).ok_or_else(bad)?;
    }
    if digits.is_empty() && seconds > 0 { Ok(SignedDuration::from_secs(seconds)) } else { Err(bad()) }
}

/// Parses a memory quantity (`Mi`, `Gi`, `Ti`) into MiB.
pub fn mebibytes(field: &'static str, text: &str) -> Result<u64, ValueError> {
    let bad =
        || ValueError { field, value: text.into(), rule: "write a number and Mi, Gi or Ti, for example \"32Gi\"" };
    let split = text.len().checked_sub(2).filter(|&i| text.is_char_boundary(i)).ok_or_else(bad)?;
    let (number, unit) = text.split_at(split);
    let scale = match unit {
        "Mi" => 1,
        "Gi" => 1 << 10,
        "Ti" => 1 << 20,
        _ => return Err(bad()),
    };
    number.parse::<u64>().ok().and_then(|n| n.checked_mul(scale)).ok_or_else(bad)
}

/// Parses a compute capability `major.minor` into a comparable pair.
pub fn compute_capability(field: &'static str, text: &str) -> Result<(u32, u32), ValueError> {
    let bad = || ValueError { field, value: text.into(), rule: "write major.minor, for example \"7.0\"" };
    let (major, minor) = text.split_once('.').ok_or_else(bad)?;
    Ok((major.parse().map_err(|_| bad())?, minor.parse().map_err(|_| bad())?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        for (text, seconds) in [("12h", 43_200), ("1h30m", 5_400), ("90s", 90)] {
            assert_eq!(duration("f", text).unwrap().as_secs(), seconds);
        }
        for bad in ["", "0s", "12", "h", "1d", "-1h", "99999999999999999999h"] {
            assert!(duration("f", bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn quantities_and_capabilities() {
        assert_eq!(mebibytes("f", "32Gi"), Ok(32_768));
        assert!(mebibytes("f", "é").is_err() && mebibytes("f", "32GB").is_err());
        assert!(compute_capability("f", "7.0").unwrap() < compute_capability("f", "7.5").unwrap());
        assert!(decimal("f", "nan").is_err() && decimal("f", "-1").is_err());
    }
}
