//! Canonical JSON: one spelling for each document, so that a digest speaks of what was meant and not of how it was
//! written. Frozen: what is approved and signed today must have the same bytes in ten years, with other libraries.
//!
//! Keys are sorted by their UTF-8 bytes, there is no white space, and texts are escaped as RFC 8785 does. Numbers: a
//! whole number from −2⁶³ to 2⁶⁴−1 in its digits; any other in the fewest digits that give the same IEEE 754 double,
//! as `0.001`, `1234.5` or `2.0` from 10⁻⁵ on and below 10¹⁶, as `1e-6` or `1.5e+20` beyond. RFC 8785 would have whole
//! numbers beyond 2⁵³ rounded and the two bounds at 10⁻⁶ and 10²¹; digests of today would change with them.

use std::fmt::Write as _;

use serde_json::{Number, Value};

/// The canonical text of a document.
pub fn canonical(value: &Value) -> String {
    let mut text = String::new();
    write(&mut text, value);
    text
}

fn write(text: &mut String, value: &Value) {
    match value {
        Value::Null => text.push_str("null"),
        Value::Bool(true) => text.push_str("true"),
        Value::Bool(false) => text.push_str("false"),
        Value::Number(number) => text.push_str(&write_number(number)),
        Value::String(string) => write_string(text, string),
        Value::Array(items) => {
            text.push('[');
            for (n, item) in items.iter().enumerate() {
                text.push_str(if n > 0 { "," } else { "" });
                write(text, item);
            }
            text.push(']');
        }
        Value::Object(fields) => {
            // Sorted here: the order of `serde_json`'s own map hangs on a feature that any dependency can turn on.
            let mut keys: Vec<&String> = fields.keys().collect();
            keys.sort_unstable();
            text.push('{');
            for (n, key) in keys.into_iter().enumerate() {
                text.push_str(if n > 0 { "," } else { "" });
                write_string(text, key);
                text.push(':');
                write(text, &fields[key]);
            }
            text.push('}');
        }
    }
}

/// RFC 8785, 3.2.2.2.
fn write_string(text: &mut String, string: &str) {
    text.push('"');
    for c in string.chars() {
        match c {
            '"' => text.push_str("\\\""),
            '\\' => text.push_str("\\\\"),
            '\u{8}' => text.push_str("\\b"),
            '\u{c}' => text.push_str("\\f"),
            '\n' => text.push_str("\\n"),
            '\r' => text.push_str("\\r"),
            '\t' => text.push_str("\\t"),
            c if c < ' ' => {
                // Writing to a text cannot fail.
                let _ = write!(text, "\\u{:04x}", u32::from(c));
            }
            c => text.push(c),
        }
    }
    text.push('"');
}

fn write_number(number: &Number) -> String {
    if let Some(whole) = number.as_u64() {
        return whole.to_string();
    }
    if let Some(whole) = number.as_i64() {
        return whole.to_string();
    }
    // A number of JSON is finite, and not arbitrary in its digits unless a feature is on that nothing of ours wants.
    number.as_f64().map_or_else(|| number.to_string(), write_double)
}

/// The fewest digits that give the double again, in scientific form. Where two spellings are as short and as near, as
/// with 730925710125906.25, the one that ends in an even digit: libraries differ in this.
fn shortest(value: f64) -> String {
    let scientific = format!("{value:e}");
    let (mantissa, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let n = mantissa.chars().filter(char::is_ascii_digit).count();
    // Every digit that the double has.
    let exact = format!("{:.800e}", value.abs());
    let digits: String = exact.split('e').next().unwrap_or_default().chars().filter(char::is_ascii_digit).collect();
    let (head, tail) = digits.split_at(n.min(digits.len()));
    let tie = tail.strip_prefix('5').is_some_and(|rest| rest.chars().all(|digit| digit == '0'));
    let (true, Ok(head)) = (tie, head.parse::<u64>()) else { return scientific };
    let even = (head + head % 2).to_string();
    let sign = if value < 0.0 { "-" } else { "" };
    let (first, rest) = even.split_at(1);
    let other = format!("{sign}{first}{}{rest}e{exponent}", if rest.is_empty() { "" } else { "." });
    // A carry into another digit is no shorter spelling of the same.
    if even.len() == n && other.parse() == Ok(value) { other } else { scientific }
}

fn write_double(value: f64) -> String {
    let scientific = shortest(value);
    let (mantissa, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    let (sign, mantissa) = mantissa.strip_prefix('-').map_or(("", mantissa), |rest| ("-", rest));
    let digits: String = mantissa.chars().filter(char::is_ascii_digit).collect();
    let n = digits.len() as i32;
    let zeros = |count: i32| "0".repeat(usize::try_from(count).unwrap_or(0));
    match exponent {
        -5..0 => format!("{sign}0.{}{digits}", zeros(-exponent - 1)),
        0..16 if n <= exponent + 1 => format!("{sign}{digits}{}.0", zeros(exponent + 1 - n)),
        0..16 => {
            let (whole, rest) = digits.split_at(exponent as usize + 1);
            format!("{sign}{whole}.{rest}")
        }
        _ => {
            let mark = if exponent > 0 { "+" } else { "" };
            format!("{sign}{mantissa}e{mark}{exponent}")
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    /// Golden: a digest that a hospital has in its Git repository hangs on each of these.
    #[test]
    fn numbers_have_one_spelling_for_ever() {
        for (written, canonical_form) in [
            ("0", "0"),
            ("-0", "-0.0"),
            ("9223372036854775808", "9223372036854775808"),
            ("18446744073709551615", "18446744073709551615"),
            ("18446744073709551616", "1.8446744073709552e+19"),
            ("-9223372036854775808", "-9223372036854775808"),
            ("-9223372036854775809", "-9.223372036854776e+18"),
            ("9007199254740993", "9007199254740993"),
            ("1.0", "1.0"),
            ("0.1", "0.1"),
            ("1e-1", "0.1"),
            ("0.00001", "0.00001"),
            ("730925710125906.25", "730925710125906.2"),
            ("-730925710125906.75", "-730925710125906.8"),
            ("1e-5", "0.00001"),
            ("0.0000123", "0.0000123"),
            ("0.000001", "1e-6"),
            ("1.5e-7", "1.5e-7"),
            ("1e15", "1000000000000000.0"),
            ("1e16", "1e+16"),
            ("123456789012345680000", "1.2345678901234568e+20"),
            ("1e300", "1e+300"),
            ("-2.5e-300", "-2.5e-300"),
            ("5e-324", "5e-324"),
            ("1.7976931348623157e308", "1.7976931348623157e+308"),
            ("333333333.33333329", "333333333.3333333"),
            ("1234.5", "1234.5"),
        ] {
            let whole = written.parse::<i64>().map(Value::from).or_else(|_| written.parse::<u64>().map(Value::from));
            let value =
                whole.ok().filter(|_| written != "-0").unwrap_or_else(|| json!(written.parse::<f64>().unwrap()));
            assert_eq!(canonical(&value), canonical_form, "{written}");
        }
    }

    /// RFC 8785, 3.2.2.2 and 3.2.3, as far as both agree.
    #[test]
    fn texts_and_keys_are_those_of_the_rfc() {
        let value: Value = serde_json::from_str(
            r#"{"string": "\u20ac$\u000F\u000aA'\u0042\u0022\u005c\\\"\/", "literals": [null, true, false], "b": {"z": 1, "é": 2, "a": []}}"#,
        )
        .unwrap();
        let expected = "{\"b\":{\"a\":[],\"z\":1,\"é\":2},\"literals\":[null,true,false],\"string\":\"€$\\u000f\\nA'B\\\"\\\\\\\\\\\"/\"}";
        assert_eq!(canonical(&value), expected);
        assert_eq!(canonical(&json!("\u{7f}\u{2028}\u{8}\u{c}\r\t\u{1}")), "\"\u{7f}\u{2028}\\b\\f\\r\\t\\u0001\"");
    }

    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<u64>().prop_map(Value::from),
            any::<u64>().prop_map(|bits| json!(f64::from_bits(bits))),
            (-400.0..400.0f64).prop_map(|x| json!(x)),
            any::<String>().prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 32, 6, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
                prop::collection::btree_map(any::<String>(), inner, 0..6)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        /// Two programs that read one text one unit apart would have two digests of one study: what is written canonically
        /// is read as the same number. (A JSON reader that takes short cuts fails with 17 digits.)
        #[test]
        fn what_is_written_is_read_again(bits in any::<u64>(), plain in -1e6..1e6f64) {
            for value in [f64::from_bits(bits), plain].into_iter().filter(|value| value.is_finite()) {
                let text = canonical(&json!(value));
                let read: Value = serde_json::from_str(&text).unwrap();
                prop_assert_eq!(canonical(&read), text);
            }
        }

        /// Digests from before there was a writer of our own stay what they were.
        #[test]
        fn it_writes_what_was_written_before(value in any_json()) {
            prop_assert_eq!(canonical(&value), value.to_string());
        }
    }
}
