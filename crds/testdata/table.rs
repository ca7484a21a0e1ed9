//! Reads `cases.yaml`. Shared, by path, between the in-process tests and those against a real API server.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

/// The whole table.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Table {
    /// One complete, valid object of each kind.
    pub objects: BTreeMap<String, Value>,
    /// For each CEL rule, what passes and what fails.
    pub rules: Vec<RuleCase>,
}

/// One CEL rule with a change that passes and one that fails.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RuleCase {
    /// Kind of the object.
    pub kind: String,
    /// The rule as it stands in the definition.
    pub rule: String,
    /// Merge patch over the object that passes.
    pub pass: Value,
    /// Merge patch over the object that fails.
    pub fail: Value,
    /// What the message must hold: the field, the value where there is one, the rule or the way out.
    pub message: Vec<String>,
}

impl Table {
    /// The table in `cases.yaml`.
    pub fn read() -> Self {
        serde_yaml_ng::from_str(include_str!("cases.yaml")).expect("cases.yaml is a table")
    }

    /// The valid object of a kind with a patch over it.
    pub fn object(&self, kind: &str, patch: &Value) -> Value {
        let mut object = self.objects.get(kind).unwrap_or_else(|| panic!("cases.yaml has no object of {kind}")).clone();
        merge(&mut object, patch);
        object
    }
}

impl RuleCase {
    /// The rule compares with the object as it was, so it is tried as an update.
    pub fn looks_back(&self) -> bool {
        self.rule.contains("oldSelf")
    }
}

/// JSON merge patch (RFC 7386).
pub fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(changes) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = Value::Object(serde_json::Map::new());
    }
    let Value::Object(fields) = target else { return };
    for (key, change) in changes {
        if change.is_null() {
            fields.remove(key);
        } else {
            merge(fields.entry(key.clone()).or_insert(Value::Null), change);
        }
    }
}
