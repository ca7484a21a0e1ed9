//! A study's spec as its user wrote it, and the digest that hospitals approve.
//!
//! The digest is SHA-256 over the canonical JSON of a *normal form*: what is written stays as it is, also fields that
//! this version does not know; only the fields that could be left out in the first version of the API are filled in,
//! and its empty values taken out, by two tables that are frozen. A field that comes later is optional and absent by
//! default, and so changes no digest of a spec that does not use it. Two versions of the program therefore agree on
//! the digest of every spec; the older one refuses a spec that it does not understand in full (ADR 12).

use consilium_federation::Digest;
use consilium_federation::canonical::canonical;
use serde_json::{Map, Value, json};

use super::FederatedStudySpec;
use crate::unreadable::{Unreadable, difference};

/// Most levels of objects and lists in `spec.trainer.config`, itself the first.
pub const CONFIG_DEPTH: usize = 32;

/// A spec in its normal form.
#[derive(Clone, Debug, PartialEq)]
pub struct WrittenSpec(Value);

impl WrittenSpec {
    /// From the spec as the API server serves it, or as a file holds it.
    pub fn of(mut spec: Value) -> Self {
        normalise(&mut spec);
        Self(spec)
    }

    /// The normal form.
    pub const fn value(&self) -> &Value {
        &self.0
    }

    /// Its canonical JSON: the bytes that the hub stores, and hospitals fetch by digest.
    pub fn bytes(&self) -> Vec<u8> {
        canonical(&self.0).into_bytes()
    }

    /// What hospitals opt in to.
    pub fn digest(&self) -> Digest {
        Digest::of(&self.bytes())
    }

    /// What this version understands of it: everything, or nothing.
    ///
    /// # Errors
    /// A field that this version does not know, a value that it cannot read, or a config that is nested too deep.
    pub fn read(&self) -> Result<FederatedStudySpec, Unreadable> {
        let config = &self.0["trainer"]["config"];
        if depth(config) > CONFIG_DEPTH {
            return Err(Unreadable::Depth { field: "spec.trainer.config".into(), most: CONFIG_DEPTH });
        }
        let spec: FederatedStudySpec = serde::Deserialize::deserialize(&self.0)
            .map_err(|e: serde_json::Error| Unreadable::Invalid { why: format!("spec: {e}") })?;
        // Safety: the type holds no map with keys that are not texts.
        #[allow(clippy::expect_used)]
        let said = serde_json::to_value(&spec).expect("a spec becomes JSON");
        match difference(&self.0, &said, "spec") {
            None => Ok(spec),
            Some(field) => Err(Unreadable::Unknown { field }),
        }
    }
}

/// The first version's defaults: parent, field, value. Frozen: a change would change what hospitals have approved.
fn defaults() -> [(&'static str, &'static str, Value); 9] {
    [
        ("/aggregation", "strategy", json!({"kind": "FedAvg"})),
        ("/aggregation", "weighting", json!("Examples")),
        ("/aggregation/secure", "protocol", json!("SecAgg")),
        ("/aggregation/secure", "colluders", json!(1)),
        ("/rounds", "stepLimit", json!("30m")),
        ("/rounds", "historyLimit", json!(10)),
        ("/rounds", "straggler", json!({})),
        ("/rounds/straggler", "grace", json!("10m")),
        ("/rounds/straggler", "maxMissed", json!(2)),
    ]
}

/// Fields of the first version that say nothing when they are null. Frozen.
const NULLS: [(&str, &str); 5] = [
    ("/trainer", "minGPUMemory"),
    ("/trainer", "minComputeCapability"),
    ("/initialModel", "seed"),
    ("/initialModel", "digest"),
    ("", "gate"),
];

/// Fields that only say when the hub works on a study, parent and field. They bind no hospital, and must be changed in a
/// minute without two hundred approvals: no digest knows them, and no hospital gets them.
const OPERATION: [(&str, &str); 2] = [("", "suspend"), ("/rounds", "backoffLimit")];

fn normalise(spec: &mut Value) {
    for (parent, field) in OPERATION {
        if let Some(Value::Object(parent)) = spec.pointer_mut(parent) {
            parent.remove(field);
        }
    }
    for (parent, field, value) in defaults() {
        if let Some(Value::Object(parent)) = spec.pointer_mut(parent) {
            parent.entry(field).or_insert(value);
        }
    }
    for (parent, field) in NULLS {
        remove(spec.pointer_mut(parent), field, &Value::Null);
    }
    remove(spec.pointer_mut("/trainer"), "config", &Value::Object(Map::new()));
    for site in spec.get_mut("sites").and_then(Value::as_array_mut).into_iter().flatten() {
        remove(Some(site), "required", &Value::Bool(false));
    }
}

fn remove(parent: Option<&mut Value>, field: &str, value: &Value) {
    if let Some(Value::Object(parent)) = parent
        && parent.get(field) == Some(value)
    {
        parent.remove(field);
    }
}

/// Levels of objects and lists.
fn depth(value: &Value) -> usize {
    match value {
        Value::Array(items) => 1 + items.iter().map(depth).max().unwrap_or(0),
        Value::Object(fields) => 1 + fields.values().map(depth).max().unwrap_or(0),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde::Deserialize;

    use super::*;

    #[derive(Deserialize)]
    struct Golden {
        name: String,
        digest: Digest,
        spec: Value,
    }

    fn golden() -> Vec<Golden> {
        serde_yaml_ng::from_str(include_str!("../../testdata/digests.yaml")).unwrap()
    }

    fn spec() -> Value {
        golden().remove(0).spec
    }

    /// Hospitals have approved these digests: another one is a study that was edited, and every hospital leaves it.
    #[test]
    fn digests_of_today_stay_for_ever() {
        let all = golden();
        assert!(all.len() >= 10);
        for Golden { name, digest, spec } in all {
            let written = WrittenSpec::of(spec);
            assert_eq!(written.digest(), digest, "{name}");
            // Hub and hospital work from the parsed spec: it must say the same.
            assert_eq!(written.read().unwrap().digest(), digest, "{name}");
        }
    }

    /// The hub is newer than this hospital: both have one digest of the study, and the hospital says which field it
    /// does not know and what to do, where it once ran the study without honouring the field.
    #[test]
    fn a_field_of_a_later_version_is_kept_in_the_digest_and_refused_by_name() {
        let plain = WrittenSpec::of(spec());
        for (at, field, value) in [
            ("", "privacy", json!({"epsilon": "3"})),
            ("/rounds/straggler", "patience", json!("1h")),
            ("/sites/1", "weight", json!(2)),
            ("", "output", json!({"kind": "Telepathy", "classes": ["a"]})),
        ] {
            let mut later = spec();
            if at == "/rounds/straggler" {
                later["rounds"]["straggler"] = json!({});
            }
            later.pointer_mut(at).unwrap()[field] = value;
            let written = WrittenSpec::of(later);
            assert_ne!(written.digest(), plain.digest(), "{field}");
            // What the hub stores is what a hospital parses, whatever it holds.
            let fetched: Value = serde_json::from_slice(&written.bytes()).unwrap();
            assert_eq!(WrittenSpec::of(fetched), written);
            let words = written.read().unwrap_err().to_string();
            let named = words.contains(&format!(".{field}")) || words.contains("Telepathy");
            assert!(named && words.contains("update"), "{words}");
        }
        let mut deep = spec();
        deep["sites"][1]["weight"] = json!(2);
        let words = WrittenSpec::of(deep).read().unwrap_err().to_string();
        assert!(words.contains("spec.sites[1].weight"), "{words}");
    }

    /// A study that must stop now cannot wait until two hundred hospitals have opted in to stopping.
    #[test]
    fn when_the_hub_works_is_no_part_of_what_hospitals_opt_in_to() {
        let plain = WrittenSpec::of(spec());
        for value in [json!(true), json!(false), json!(null)] {
            let mut held = spec();
            held["suspend"] = value;
            held["rounds"]["backoffLimit"] = json!(3);
            assert_eq!(WrittenSpec::of(held.clone()), plain);
            if !held["suspend"].is_null() {
                let parsed: FederatedStudySpec = serde_json::from_value(held).unwrap();
                assert_eq!((parsed.digest(), parsed.rounds.backoff_limit), (plain.digest(), Some(3)));
            }
        }
    }

    /// One level more than the bound is refused in words; a thousand more must not end the program.
    #[test]
    fn a_config_that_is_nested_too_deep_is_refused_by_its_field() {
        let nested = |levels: usize| {
            let mut config = json!(1);
            for _ in 0..levels {
                config = json!({"a": config});
            }
            let mut spec = spec();
            spec["trainer"]["config"] = config;
            WrittenSpec::of(spec).read()
        };
        assert!(nested(CONFIG_DEPTH).is_ok());
        let words = nested(CONFIG_DEPTH + 1).unwrap_err().to_string();
        assert!(words.contains("spec.trainer.config") && words.contains("32"), "{words}");
    }

    /// Leaves of a spec of the first version: each is left out, written as its default, or written otherwise.
    fn any_spec() -> impl Strategy<Value = Value> {
        let choice = || prop::collection::vec(0..4u8, 12);
        (choice(), 0..5u32).prop_map(|(chosen, n)| {
            let mut spec = spec();
            let places = [
                ("/aggregation", "strategy", json!({"kind": "FedAvg"}), json!({"kind": "FedAvg"})),
                ("/aggregation", "weighting", json!("Examples"), json!("Equal")),
                ("/aggregation/secure", "protocol", json!("SecAgg"), json!("None")),
                ("/aggregation/secure", "colluders", json!(1), json!(0)),
                ("/rounds", "straggler", json!({}), json!({"grace": "1m"})),
                ("/rounds", "stepLimit", json!("30m"), json!("5m")),
                ("/rounds", "historyLimit", json!(10), json!(3)),
                ("/trainer", "config", json!({}), json!({"a": [1.5, null], "required": false})),
                ("/trainer", "minGPUMemory", json!(null), json!("1Gi")),
                ("/sites/0", "required", json!(false), json!(true)),
                ("", "gate", json!(null), json!({"metric": "dice", "min": "0", "perSiteMin": "0", "minCases": 1})),
                ("/initialModel", "digest", json!(null), json!(null)),
            ];
            for ((parent, field, default, other), choice) in places.into_iter().zip(chosen) {
                match choice {
                    0 => {}
                    1 => spec.pointer_mut(parent).unwrap()[field] = default,
                    _ => spec.pointer_mut(parent).unwrap()[field] = other,
                }
            }
            if n > 2
                && let Some(straggler) = spec["rounds"].get_mut("straggler")
            {
                straggler["maxMissed"] = json!(n);
            }
            spec
        })
    }

    proptest! {
        /// The frozen tables are the first version's type: without this, a spec that leaves out another set of fields
        /// has one digest at the hub and another in the hospital.
        #[test]
        fn the_normal_form_is_what_the_first_version_wrote(spec in any_spec()) {
            let written = WrittenSpec::of(spec.clone());
            let typed: FederatedStudySpec = serde_json::from_value(spec).unwrap();
            prop_assert_eq!(&serde_json::to_value(&typed).unwrap(), written.value());
            prop_assert_eq!(typed.digest(), written.digest());
        }
    }
}
