//! Objects drawn from a schema, at its edges: the shortest and the longest texts, the least and the largest numbers, empty and
//! full lists, configs as deep as may be. Used by path, in the tests of the types and beside a real API server.

use std::collections::HashMap;

use proptest::prelude::*;
use proptest::strategy::ValueTree as _;
use proptest::string::string_regex;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use serde_json::{Map, Value, json};

/// Draws values that a schema takes.
pub struct Draw {
    runner: TestRunner,
    patterns: HashMap<String, BoxedStrategy<String>>,
    depth: usize,
}

impl Draw {
    /// Always the same ones; `depth` is how deep a free config may be.
    pub fn new(depth: usize) -> Self {
        let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &[7; 32]);
        Self { runner: TestRunner::new_with_rng(Config::default(), rng), patterns: HashMap::new(), depth }
    }

    fn take<T: std::fmt::Debug>(&mut self, strategy: &impl Strategy<Value = T>) -> T {
        strategy.new_tree(&mut self.runner).unwrap().current()
    }

    /// True once in so many times.
    pub fn one_in(&mut self, n: u32) -> bool {
        self.take(&(0..n)) == 0
    }

    /// A value of this shape.
    pub fn value(&mut self, shape: &Value) -> Value {
        if let Some(options) = shape["enum"].as_array() {
            return self.take(&prop::sample::select(options.clone()));
        }
        match shape["type"].as_str() {
            Some("string") => Value::String(self.text(shape)),
            Some("integer") => self.number(shape),
            Some("boolean") => Value::Bool(self.one_in(2)),
            Some("array") => self.list(shape),
            Some("object") if shape["properties"].is_object() => self.object(shape),
            Some("object") => self.free(),
            other => panic!("a field of type {other:?}: {shape}"),
        }
    }

    fn number(&mut self, shape: &Value) -> Value {
        let bound = |name: &str, else_: i64| shape[name].as_f64().map_or(else_, |bound| bound as i64);
        let edge = if shape["format"] == "int32" { i64::from(i32::MAX) } else { i64::MAX };
        let (least, most) = (bound("minimum", -edge), bound("maximum", edge));
        let middle = least..=most;
        self.take(&prop_oneof![Just(least), Just(most), middle]).into()
    }

    fn text(&mut self, shape: &Value) -> String {
        let bound = |name: &str, else_: usize| shape[name].as_u64().map_or(else_, |n| n as usize);
        let (least, most) = (bound("minLength", 0), bound("maxLength", 300));
        let fits = |text: &str| (least..=most).contains(&text.chars().count());
        if let Some("date-time") = shape["format"].as_str() {
            return self.time(shape);
        }
        let Some(pattern) = shape["pattern"].as_str() else {
            let length = self.take(&prop_oneof![Just(least), Just(most), least..=most]);
            let letter = prop::sample::select(vec!['a', 'Z', '0', ' ', '"', '\\', '\n', '\u{0}', 'é', '€', '😀']);
            return self.take(&prop::collection::vec(letter, length)).into_iter().collect();
        };
        let strategy = self.patterns.entry(pattern.to_owned()).or_insert_with(|| {
            // The strategy matches a whole text.
            let inner = pattern.trim_start_matches('^').trim_end_matches('$');
            string_regex(inner).unwrap_or_else(|error| panic!("{pattern}: {error}")).boxed()
        });
        let strategy = strategy.clone();
        let mut drawn: Vec<String> = Vec::new();
        for tries in 0..300 {
            if drawn.len() == 3 || tries > 6 && !drawn.is_empty() {
                break;
            }
            drawn.extend(Some(self.take(&strategy)).filter(|text| fits(text)));
        }
        // The shortest, some other or the longest.
        drawn.sort_by_key(String::len);
        let at = self.take(&(0..drawn.len().max(1)));
        drawn.get(at).cloned().unwrap_or_else(|| panic!("nothing of {least} to {most} characters matches {pattern}"))
    }

    /// Times that both the format and the pattern take.
    fn time(&mut self, shape: &Value) -> String {
        assert!(shape["pattern"].is_string(), "a time without a pattern: {shape}");
        let edges = [
            "0999-12-31T00:01:00Z",
            "1000-01-01T00:00:00+23:59",
            "1970-01-01T00:00:00.000000000-00:00",
            "2024-02-29T23:59:59.999999999Z",
            "2026-11-30T12:00:00+05:30",
            "2999-12-31T23:59:59-23:59",
            "2999-12-31T23:59:59.1Z",
            "3000-01-01T23:58:59Z",
        ];
        self.take(&prop::sample::select(edges.map(str::to_owned).to_vec()))
    }

    fn list(&mut self, shape: &Value) -> Value {
        let bound = |name: &str, else_: usize| shape[name].as_u64().map_or(else_, |n| n as usize);
        let (least, most) = (bound("minItems", 0), bound("maxItems", 3).min(200));
        // The longest lists are drawn seldom: they are the same again.
        let length = if self.one_in(100) { most } else { self.take(&(least..=most.min(least + 3))) };
        let items: Vec<Value> = (0..length).map(|_| self.value(&shape["items"])).collect();
        let keys = shape["x-kubernetes-list-map-keys"].as_array().cloned().unwrap_or_default();
        let mut kept: Vec<Value> = Vec::new();
        for item in items {
            let same = |other: &Value| match shape["x-kubernetes-list-type"].as_str() {
                Some("set") => *other == item,
                Some("map") => keys.iter().all(|key| other[key.as_str().unwrap()] == item[key.as_str().unwrap()]),
                _ => false,
            };
            if !kept.iter().any(same) {
                kept.push(item);
            }
        }
        Value::Array(kept)
    }

    fn object(&mut self, shape: &Value) -> Value {
        let required = shape["required"].as_array().cloned().unwrap_or_default();
        let mut map = Map::new();
        for (name, field) in shape["properties"].as_object().unwrap() {
            if required.iter().any(|r| r == name) || self.one_in(2) {
                map.insert(name.clone(), self.value(field));
            } else if let Some(default) = field.get("default") {
                // The API server fills it in.
                map.insert(name.clone(), default.clone());
            }
        }
        Value::Object(map)
    }

    /// A config, as deep as a study's may be.
    fn free(&mut self) -> Value {
        let deep = (0..self.depth - 1).fold(json!(1.5), |inner, _| json!({"a": inner}));
        let some = json!({"x": null, "y": [1, -1, 0.1, 1e300], "é": "\u{0}", "": {}, "big": u64::MAX});
        self.take(&prop::sample::select(vec![json!({}), some, json!({"b": deep})]))
    }
}

/// An object of a kind, named `name`, from the schema of its definition; half of them with a status, if it has one.
pub fn object(draw: &mut Draw, kind: &str, name: &str, shape: &Value) -> Value {
    let mut object = json!({"apiVersion": "consilium.health/v1alpha1", "kind": kind, "metadata": {"name": name}});
    object["spec"] = draw.value(&shape["properties"]["spec"]);
    let status = &shape["properties"]["status"];
    if status.is_object() && draw.one_in(2) {
        object["status"] = draw.value(status);
    }
    object
}
