//! A document as kubectl, Argo CD and Flux send it to the API server, or the line where they would send another.
//!
//! They read YAML 1.1 as go-yaml v2 does, and JSON numbers as Go does; libraries for YAML 1.2 read some words and numbers
//! otherwise. The digest of a study hangs on every one of them. So what both read alike is taken, and the rest is
//! refused with its line: it is always better written plainly.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use saphyr_parser::{Event, Parser, ScalarStyle, Span, Tag};
use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

/// Most levels of a document.
const DEPTH: usize = 64;
/// Most values of a document, its aliases spelt out.
const VALUES: usize = 100_000;

/// Reads one document. Its `spec` is what the API server gets; the rest is read as well as can be.
///
/// # Errors
/// In words that begin with the line, or for JSON name the field.
pub fn as_sent(text: &str) -> Result<Value, String> {
    if let Ok(mut value) = serde_json::from_str::<Value>(text) {
        // kubectl refuses a field that is there twice, other ways take one of the two.
        serde_json::from_str::<Once>(text).map_err(|error| error.to_string())?;
        if let Some(spec) = value.get_mut("spec") {
            send(spec, "spec")?;
        }
        return Ok(value);
    }
    let mut reader = Reader { parser: Parser::new_from_str(text), anchors: BTreeMap::new(), left: VALUES };
    reader.skip(|event| matches!(event, Event::StreamStart | Event::DocumentStart(_)), 2)?;
    let value = reader.node(0, Place::Top)?;
    reader.skip(|event| matches!(event, Event::DocumentEnd), 1)?;
    match reader.next()? {
        (Event::StreamEnd, _) => {}
        (_, span) => return Err(at(&span, "a second document begins here: write each object into a file of its own")),
    }
    second_opinion(text, &value)?;
    Ok(value)
}

/// JSON in which no object has a field twice.
struct Once;

impl<'de> Deserialize<'de> for Once {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Self)
    }
}

impl<'de> Visitor<'de> for Once {
    type Value = Self;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self, A::Error> {
        let mut seen = BTreeSet::new();
        while let Some(key) = map.next_key::<String>()? {
            if seen.contains(&key) {
                return Err(A::Error::custom(format!("{key} stands there twice; take one of the two out")));
            }
            map.next_value::<Self>()?;
            seen.insert(key);
        }
        Ok(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Self, A::Error> {
        while items.next_element::<Self>()?.is_some() {}
        Ok(self)
    }

    fn visit_unit<E>(self) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_str<E>(self, _: &str) -> Result<Self, E> {
        Ok(self)
    }
}

/// Another reader, of the family of go-yaml's, must find the same: what the two do not read alike is read by nobody.
fn second_opinion(text: &str, value: &Value) -> Result<(), String> {
    let mut other: Value = serde_yaml_ng::from_str(text).map_err(|e| e.to_string())?;
    let spec = other.get_mut("spec").map(Value::take).unwrap_or_default();
    let mut spec = spec;
    send(&mut spec, "spec")?;
    match spec == value.get("spec").cloned().unwrap_or_default() {
        true => Ok(()),
        false => Err("spec is written so that YAML readers do not agree on it: write it plainly, for example as \
                      `kubectl get -o yaml` prints it"
            .into()),
    }
}

/// Values as they reach the API server: a number with nothing behind the point is a whole one.
fn send(value: &mut Value, path: &str) -> Result<(), String> {
    match value {
        Value::Null => Err(format!("{path}: {NULL}")),
        Value::Number(number) => {
            if number.as_i64().is_none() {
                *value = double(number.as_f64().unwrap_or(f64::NAN)).map_err(|why| format!("{path}: {why}"))?;
            }
            Ok(())
        }
        Value::Array(items) => {
            items.iter_mut().enumerate().try_for_each(|(n, item)| send(item, &format!("{path}[{n}]")))
        }
        Value::Object(fields) => fields.iter_mut().try_for_each(|(key, value)| send(value, &format!("{path}.{key}"))),
        Value::Bool(_) | Value::String(_) => Ok(()),
    }
}

const NULL: &str = "null is kept by some ways to the API server and taken out by others: leave the field out";

fn double(number: f64) -> Result<Value, String> {
    let far = 9_223_372_036_854_775_808.0; // 2^63
    if !number.is_finite() {
        Err("JSON has no such number, so it cannot be sent: write it as text, in quotes".into())
    } else if number.fract() == 0.0 && number.abs() < far {
        Ok(Value::from(number as i64))
    } else if number.fract() == 0.0 && number.abs() < 1e21 {
        Err("a whole number beyond 2^63 is rounded on its way to the hub: write it as text, in quotes".into())
    } else {
        Ok(Value::from(number))
    }
}

/// Where in the document something stands.
#[derive(Clone, Copy, PartialEq)]
enum Place {
    Top,
    Spec,
    Elsewhere,
}

struct Reader<'a> {
    parser: Parser<'a, saphyr_parser::StrInput<'a>>,
    /// What was anchored, and whether it stands in the spec.
    anchors: BTreeMap<usize, (Value, bool)>,
    left: usize,
}

fn at(span: &Span, what: &str) -> String {
    format!("line {}: {what}", span.start.line())
}

impl<'a> Reader<'a> {
    fn next(&mut self) -> Result<(Event<'a>, Span), String> {
        match self.parser.next_event() {
            Some(Ok(found)) => Ok(found),
            Some(Err(error)) => Err(format!("line {}: {}", error.marker().line(), error.info())),
            None => Err("the document ends too early".into()),
        }
    }

    fn skip(&mut self, expected: impl Fn(&Event<'_>) -> bool, times: usize) -> Result<(), String> {
        for _ in 0..times {
            let (event, span) = self.next()?;
            if !expected(&event) {
                return Err(at(&span, "there is no object here"));
            }
        }
        Ok(())
    }

    fn node(&mut self, depth: usize, place: Place) -> Result<Value, String> {
        let (event, span) = self.next()?;
        self.value(event, &span, depth, place)
    }

    fn value(&mut self, event: Event<'a>, span: &Span, depth: usize, place: Place) -> Result<Value, String> {
        if depth > DEPTH {
            return Err(at(span, &format!("nested more than {DEPTH} levels deep")));
        }
        self.spend(1, span)?;
        let strict = place == Place::Spec;
        let (value, anchor) = match event {
            Event::Scalar(text, style, anchor, tag) => (scalar(&text, style, tag.as_deref(), span, strict)?, anchor),
            Event::SequenceStart(anchor, tag) => {
                plain_tag(tag.as_deref(), "seq", span, strict)?;
                (self.list(depth, place)?, anchor)
            }
            Event::MappingStart(anchor, tag) => {
                plain_tag(tag.as_deref(), "map", span, strict)?;
                (self.map(depth, place)?, anchor)
            }
            Event::Alias(anchor) => return self.alias(anchor, span, strict),
            _ => return Err(at(span, "there is no value here")),
        };
        if anchor > 0 {
            self.anchors.insert(anchor, (value.clone(), strict));
        }
        Ok(value)
    }

    fn alias(&mut self, anchor: usize, span: &Span, strict: bool) -> Result<Value, String> {
        let (value, inside) = self.anchors.get(&anchor).cloned().ok_or_else(|| at(span, "the alias names nothing"))?;
        if strict && !inside {
            return Err(at(span, "the alias names something outside of spec: write it out"));
        }
        self.spend(count(&value), span)?;
        Ok(value)
    }

    fn spend(&mut self, values: usize, span: &Span) -> Result<(), String> {
        self.left = self.left.checked_sub(values).ok_or_else(|| at(span, &format!("more than {VALUES} values")))?;
        Ok(())
    }

    fn list(&mut self, depth: usize, place: Place) -> Result<Value, String> {
        let mut list = Vec::new();
        loop {
            match self.next()? {
                (Event::SequenceEnd, _) => return Ok(Value::Array(list)),
                (event, span) => list.push(self.value(event, &span, depth + 1, place)?),
            }
        }
    }

    fn map(&mut self, depth: usize, place: Place) -> Result<Value, String> {
        let mut map = Map::new();
        loop {
            let (event, span) = self.next()?;
            if event == Event::MappingEnd {
                return Ok(Value::Object(map));
            }
            let key = self.key(event, &span, depth, place)?;
            let inner = match place {
                Place::Top if key == "spec" => Place::Spec,
                Place::Top => Place::Elsewhere,
                within => within,
            };
            let value = self.node(depth + 1, inner)?;
            if map.insert(key.clone(), value).is_some() {
                return Err(at(&span, &format!("{key:?} stands here for the second time: keep one")));
            }
        }
    }

    fn key(&mut self, event: Event<'a>, span: &Span, depth: usize, place: Place) -> Result<String, String> {
        let strict = place != Place::Elsewhere;
        if strict && matches!(&event, Event::Scalar(text, ScalarStyle::Plain, ..) if text == "<<") {
            return Err(at(span, "the merge key << is no longer YAML: write out what it stands for"));
        }
        let words = match &event {
            Event::Scalar(text, ..) => text.to_string(),
            _ => String::new(),
        };
        match self.value(event, span, depth + 1, if strict { Place::Spec } else { place })? {
            Value::String(key) => Ok(key),
            _ if !strict => Ok(words),
            _ => Err(at(span, &format!("the key {words} is not a text: write \"{words}\""))),
        }
    }
}

fn count(value: &Value) -> usize {
    match value {
        Value::Array(items) => 1 + items.iter().map(count).sum::<usize>(),
        Value::Object(fields) => 1 + fields.values().map(count).sum::<usize>(),
        _ => 1,
    }
}

fn plain_tag(tag: Option<&Tag>, own: &str, span: &Span, strict: bool) -> Result<(), String> {
    match tag {
        Some(tag) if strict && !(tag.is_yaml_core_schema() && tag.suffix == own) => {
            Err(at(span, &format!("the tag {tag}: write the value that it stands for, without a tag")))
        }
        _ => Ok(()),
    }
}

fn scalar(text: &str, style: ScalarStyle, tag: Option<&Tag>, span: &Span, strict: bool) -> Result<Value, String> {
    plain_tag(tag, "str", span, strict)?;
    if style != ScalarStyle::Plain || tag.is_some() {
        return Ok(Value::from(text));
    }
    match plain(text) {
        Ok(Value::Null) if strict => Err(at(span, NULL)),
        Ok(value) => Ok(value),
        Err(why) if strict => Err(at(span, &why)),
        Err(_) => Ok(Value::from(text)),
    }
}

/// What a word without quotes is, to go-yaml and to YAML 1.2 alike.
fn plain(text: &str) -> Result<Value, String> {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Ok(Value::Null),
        "true" | "True" | "TRUE" => return Ok(Value::Bool(true)),
        "false" | "False" | "FALSE" => return Ok(Value::Bool(false)),
        _ => {}
    }
    if matches!(text.to_lowercase().as_str(), "y" | "n" | "yes" | "no" | "on" | "off") {
        return Err(format!(
            "{text} without quotes is a truth value to kubectl, Argo CD and Flux, and a text to others: write \"{text}\", or \
             true or false"
        ));
    }
    if matches!(text.trim_start_matches(['+', '-']).to_lowercase().as_str(), ".inf" | ".nan") {
        return Err(format!("{text}: JSON has no such number, so it cannot be sent: write it as text, in quotes"));
    }
    let bare = text.replace('_', "");
    let unsigned = bare.strip_prefix(['+', '-']).unwrap_or(&bare);
    if !is_number(unsigned) {
        return Ok(Value::from(text));
    }
    let (lead, rest) = unsigned.split_at(1);
    let odd = lead == "0" && rest.starts_with(|c: char| c.is_ascii_alphanumeric()) && !rest.starts_with(['e', 'E']);
    if bare != text || odd {
        return Err(format!(
            "{text} without quotes is not the same number, or a text, to every reader of YAML: write the number in plain \
             decimal digits, or \"{text}\""
        ));
    }
    if let Ok(whole) = text.parse::<i64>() {
        return Ok(Value::from(whole));
    }
    double(text.parse().unwrap_or(f64::NAN)).map_err(|why| format!("{text}: {why}"))
}

/// Whether go-yaml takes this, without sign and underscores, for a number.
fn is_number(text: &str) -> bool {
    let all = |digits: &str, radix: u32| !digits.is_empty() && digits.chars().all(|c| c.is_digit(radix));
    let based =
        |radix: u32, marks: [&str; 2]| marks.iter().any(|m| text.strip_prefix(*m).is_some_and(|d| all(d, radix)));
    based(16, ["0x", "0X"]) || based(8, ["0o", "0O"]) || based(2, ["0b", "0B"]) || is_float(text)
}

/// `^(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?$`
fn is_float(text: &str) -> bool {
    let digits = |t: &str| !t.is_empty() && t.bytes().all(|b| b.is_ascii_digit());
    let (mantissa, exponent) = text.split_once(['e', 'E']).map_or((text, None), |(m, e)| (m, Some(e)));
    let mantissa = match mantissa.split_once('.') {
        Some(("", rest)) => digits(rest),
        Some((whole, rest)) => digits(whole) && (rest.is_empty() || digits(rest)),
        None => digits(mantissa),
    };
    mantissa && exponent.is_none_or(|e| digits(e.strip_prefix(['+', '-']).unwrap_or(e)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn spec(value: &str) -> Result<Value, String> {
        let text = format!("kind: FederatedStudy\nmetadata:\n  creationTimestamp: null\nspec:\n  x: {value}\n");
        as_sent(&text).map(|object| object["spec"]["x"].clone())
    }

    /// What a word is to kubectl (go-yaml v2, then Go's JSON, then the API server), or that it is refused with its line.
    /// A value that is read otherwise here gives a digest that the hub never has: the hospital's opt-in never matches.
    #[test]
    fn every_value_is_the_hubs_or_refused_with_its_line() {
        for (written, hub) in [
            ("1.0", json!(1)),
            ("-0", json!(0)),
            ("-0.0", json!(0)),
            ("1e3", json!(1000)),
            ("+5", json!(5)),
            (".5", json!(0.5)),
            ("0.00001", json!(1e-5)),
            ("1e-7", json!(1e-7)),
            ("1e300", json!(1e300)),
            ("9223372036854775807", json!(i64::MAX)),
            ("-9223372036854775808", json!(i64::MIN)),
            ("1e15", json!(1_000_000_000_000_000i64)),
            ("true", json!(true)),
            ("TRUE", json!(true)),
            ("'yes'", json!("yes")),
            ("\"010\"", json!("010")),
            ("!!str 010", json!("010")),
            ("2026-11-30", json!("2026-11-30")),
            ("2026-11-30T10:00:00Z", json!("2026-11-30T10:00:00Z")),
            ("0123abc", json!("0123abc")),
            ("0b12", json!("0b12")),
            ("1.2.3", json!("1.2.3")),
            ("190:20:30", json!("190:20:30")),
            ("a_b", json!("a_b")),
            ("[&a {k: 1.50}, *a]", json!([{"k": 1.5}, {"k": 1.5}])),
            ("\"\\u00e9 \\U0001F600\"", json!("é 😀")),
        ] {
            assert_eq!(spec(written), Ok(hub), "{written}");
        }
        for (written, words) in [
            ("010", "write the number in plain decimal"),
            ("089", "write the number in plain decimal"),
            ("1_000", "write the number in plain decimal"),
            ("0x1F", "plain decimal"),
            ("0o17", "plain decimal"),
            ("0b11", "plain decimal"),
            ("9223372036854775808", "rounded on its way"),
            ("18446744073709551615", "rounded on its way"),
            ("-9223372036854775809", "rounded on its way"),
            ("1e20", "rounded on its way"),
            ("1e999", "no such number"),
            (".inf", "no such number"),
            ("-.Inf", "no such number"),
            (".NaN", "no such number"),
            ("null", "leave the field out"),
            ("~", "leave the field out"),
            ("", "leave the field out"),
            ("yes", "truth value"),
            ("[x, y]", "truth value"),
            ("!!binary aGVsbG8=", "without a tag"),
            ("!!int 1", "without a tag"),
            ("!mine {a: 1}", "without a tag"),
            ("{base: &b {lr: 1}, x: {<<: *b}}", "merge key"),
            ("{a: 1, a: 2}", "second time"),
            ("{1: a}", "not a text"),
            ("{on: a}", "truth value"),
        ] {
            let refused = spec(written).unwrap_err();
            assert!(refused.starts_with("line 5: ") && refused.contains(words), "{written}: {refused}");
        }
    }

    /// Objects come as JSON too, and with what the API server added.
    #[test]
    fn json_is_read_as_it_is_sent() {
        let read = |text: &str| as_sent(text).map(|object| object["spec"].clone());
        assert_eq!(
            read(r#"{"spec": {"a": 1.0, "b": "\/ \ud83d\ude00"}, "status": null}"#),
            Ok(json!({"a": 1, "b": "/ 😀"}))
        );
        assert!(read(r#"{"spec": {"a": [null]}}"#).unwrap_err().contains("spec.a[0]"));
        assert!(read(r#"{"spec": {"a": 9223372036854775808}}"#).unwrap_err().contains("2^63"));
        let twice = read("{\"spec\": {\"a\":\n [{\"x\": 1, \"x\": 1}]}}").unwrap_err();
        assert!(twice.contains("x stands there twice") && twice.contains("line 2"), "{twice}");
    }

    /// A file of two documents, a bomb of aliases and a tower of lists end in words.
    #[test]
    fn what_is_not_one_object_is_refused() {
        assert!(as_sent("spec: {}\n---\nspec: {}\n").unwrap_err().starts_with("line 2: "));
        assert!(as_sent("").is_err());
        let ten = |of: char| vec![format!("*{of}"); 10].join(",");
        let mut bomb = "a: &a [1,1,1,1,1,1,1,1,1,1]\n".to_owned();
        for (before, name) in ('a'..='l').zip('b'..='m') {
            bomb += &format!("{name}: &{name} [{}]\n", ten(before));
        }
        assert!(as_sent(&bomb).unwrap_err().contains("values"));
        let tower = format!("spec: {}", "[".repeat(5_000));
        assert!(as_sent(&tower).is_err());
    }

    proptest! {
        /// Nothing that a file can hold ends the program, and what is taken has one meaning.
        #[test]
        fn any_text_is_read_or_refused(text in "[-+.:,#&*!|>'\"%@`{}\\[\\] \n0-9a-fxoyn_~]{0,60}") {
            if let Ok(value) = as_sent(&format!("spec:\n  x: {text}")) {
                let mut again = value["spec"].clone();
                prop_assert!(send(&mut again, "spec").is_ok());
                prop_assert_eq!(&again, &value["spec"]);
            }
        }
    }
}
