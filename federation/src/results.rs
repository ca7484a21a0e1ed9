//! What a trainer writes about its training, read as Python writes it.
//!
//! `json.dumps` writes `NaN`, `Infinity` and `-Infinity`, which are no JSON. A loss that is no number is a thing to look
//! at; it is no reason to throw away the update beside it.

use serde::Deserialize;
use serde_json::Value;

/// What of `out/metrics.json` is used: the rest never leaves the hospital.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reported {
    /// Number of training examples.
    pub examples: u64,
    /// Metrics that are no number, by the name nearest to them.
    pub dropped: Vec<String>,
}

/// Reads `out/metrics.json`. Only the number of examples has to be there and sound; whatever else is in it, however
/// deep, is passed over.
///
/// # Errors
/// What is wrong, and what to write.
pub fn metrics(bytes: &[u8]) -> Result<Reported, String> {
    #[derive(Deserialize)]
    struct Examples {
        examples: Option<Value>,
    }
    let (json, dropped) = without_non_numbers(bytes);
    let Examples { examples } = serde_json::from_slice(&json)
        .map_err(|e| format!("metrics.json: {e}; write an object such as {{\"examples\": 52, \"metrics\": {{}}}}"))?;
    let wrong = |found: &str| {
        format!("metrics.json: examples is {found}: it must be the whole number of scans that were trained on")
    };
    let Some(examples) = examples else { return Err(wrong("missing, null or no number")) };
    // Python's division makes 52.0 of it.
    let whole = |n: f64| (n >= 0.0 && n.fract() == 0.0 && n < 2_f64.powi(53)).then_some(n as u64);
    let number = examples.as_u64().or_else(|| examples.as_f64().and_then(whole));
    let number = number.ok_or_else(|| wrong(&examples.to_string().chars().take(40).collect::<String>()))?;
    Ok(Reported { examples: number, dropped })
}

/// Replaces what writers of many languages write of a number that is none (`NaN`, `-nan`, `inf`, `+Infinity`) by `null`;
/// also the keys before them. A byte-order mark goes.
fn without_non_numbers(bytes: &[u8]) -> (Vec<u8>, Vec<String>) {
    // The longer first, where one begins with the other.
    const WORDS: [&[u8]; 3] = [b"infinity", b"inf", b"nan"];
    fn word_at(bytes: &[u8]) -> Option<usize> {
        let sign = usize::from(matches!(bytes.first(), Some(b'+' | b'-')));
        let word =
            |word: &&[u8]| bytes.get(sign..sign + word.len()).is_some_and(|part| part.eq_ignore_ascii_case(word));
        WORDS.iter().find(|known| word(known)).map(|word| sign + word.len())
    }
    const MOST: usize = 20;
    let (mut json, mut dropped) = (Vec::with_capacity(bytes.len()), Vec::new());
    let (mut rest, mut last): (&[u8], &[u8]) = (bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes), b"");
    let mut key: &[u8] = b"";
    while let Some(&byte) = rest.first() {
        let word = word_at(rest);
        let taken = match (byte, word) {
            (b'"', _) => string(rest),
            (_, Some(length)) => length,
            _ => 1,
        };
        let (part, after) = rest.split_at(taken);
        match (byte, word) {
            (b'"', _) => last = part,
            (b':', _) => key = last,
            _ => {}
        }
        if word.is_some() {
            json.extend_from_slice(b"null");
            let name = String::from_utf8_lossy(key).trim_matches('"').chars().take(60).collect::<String>();
            if dropped.len() < MOST && !dropped.contains(&name) {
                dropped.push(name);
            }
        } else {
            json.extend_from_slice(part);
        }
        rest = after;
    }
    (json, dropped)
}

/// Bytes of the string that begins here, with its quotes; all that is left where it does not end.
fn string(bytes: &[u8]) -> usize {
    let mut escaped = false;
    let end = bytes.iter().skip(1).position(|byte| {
        let ends = *byte == b'"' && !escaped;
        escaped = *byte == b'\\' && !escaped;
        ends
    });
    end.map_or(bytes.len(), |at| at + 2)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// One loss that is no number cost a hospital its round.
    #[test]
    fn a_metric_that_is_no_number_is_dropped_and_named() {
        let text = br#"{"metrics": {"loss": NaN, "best": [1, -Infinity, Infinity], "say \\\"NaN": "NaN: \"Infinity"}, "examples": 52}"#;
        assert_eq!(metrics(text), Ok(Reported { examples: 52, dropped: vec!["loss".into(), "best".into()] }));
        // As C, Java and Windows write them.
        let text = b"\xef\xbb\xbf{\"metrics\": {\"a\": -nan, \"b\": [inf, -Inf], \"c\": +NaN, \"d\": \"info\"}, \"examples\": 5}";
        assert_eq!(metrics(text), Ok(Reported { examples: 5, dropped: vec!["a".into(), "b".into(), "c".into()] }));
        let deep = format!("{{\"examples\": 7.0, \"metrics\": {}1{}}}", "[".repeat(10_000), "]".repeat(10_000));
        assert_eq!(metrics(deep.as_bytes()), Ok(Reported { examples: 7, dropped: vec![] }));
        assert_eq!(metrics(br#"{"examples": 3}"#), Ok(Reported { examples: 3, dropped: vec![] }));
    }

    #[test]
    fn examples_that_are_none_are_named() {
        for (text, part) in [
            (r#"{"metrics": {}}"#, "examples is missing"),
            (r#"{"examples": NaN}"#, "examples is missing, null"),
            (r#"{"examples": 1.5}"#, "examples is 1.5"),
            (r#"{"examples": -3}"#, "examples is -3"),
            (r#"{"examples": "52"}"#, "examples is \"52\""),
            ("[]", "metrics.json"),
            ("{\"examples\": 5", "metrics.json"),
            ("", "metrics.json"),
        ] {
            let message = metrics(text.as_bytes()).unwrap_err();
            assert!(message.contains(part), "{message:?} lacks {part:?}");
        }
    }

    proptest! {
        /// JSON is read as itself, whatever its strings say; and anything gets an answer.
        #[test]
        fn only_bare_words_are_touched(key in "(NaN|Infinity|[\"a:,]){0,4}", bytes in prop::collection::vec(any::<u8>(), 0..60)) {
            let value = serde_json::json!({ "examples": 4, "metrics": { key.clone(): key } });
            let (json, dropped) = without_non_numbers(value.to_string().as_bytes());
            prop_assert_eq!(json, value.to_string().into_bytes());
            prop_assert!(dropped.is_empty());
            let _ = metrics(&bytes);
        }
    }
}
