//! Schema pieces that are written by hand, and the post-processing of the generated ones.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;
use schemars::{Schema, SchemaGenerator, json_schema};
use serde_json::Value;

use crate::values;

/// A list of conditions with the bounds of `meta/v1`, which the derived schema would lose.
pub fn conditions(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "maxItems": 16,
        "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": ["type"],
        "description": "The state of the object, one entry for each aspect.",
        "items": {
            "type": "object",
            "required": ["lastTransitionTime", "message", "reason", "status", "type"],
            "properties": {
                "type": {"type": "string", "maxLength": 316,
                    "pattern": "^([a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*/)?(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])$"},
                "status": {"type": "string", "enum": ["True", "False", "Unknown"]},
                "reason": {"type": "string", "minLength": 1, "maxLength": 1024, "pattern": "^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$"},
                "message": {"type": "string", "maxLength": 32768},
                "lastTransitionTime": {"type": "string", "format": "date-time", "maxLength": 40, "pattern": values::TIME_PATTERN},
                "observedGeneration": {"type": "integer", "format": "int64", "minimum": 0}
            }
        }
    })
}

/// A free JSON object, kept as it is. The server bounds the whole object by what a request may hold.
pub fn free_object(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "object", "x-kubernetes-preserve-unknown-fields": true, "maxProperties": 64})
}

/// All ten definitions, post-processed, in the order of the documentation.
pub fn all() -> Vec<CustomResourceDefinition> {
    vec![
        polish(crate::TrustSite::crd()),
        polish(crate::FederatedStudy::crd()),
        polish(crate::TrainingRound::crd()),
        polish(crate::ModelRelease::crd()),
        polish(crate::ModelPromotion::crd()),
        polish(crate::ClinicalPlan::crd()),
        polish(crate::SitePolicy::crd()),
        polish(crate::RoundTask::crd()),
        polish(crate::ModelDeployment::crd()),
        polish(crate::ModelHazard::crd()),
    ]
}

/// Removes what the derive adds and the API conventions do not want: `nullable` on optional
/// fields, and number formats that the API server does not know; their bounds are written out.
fn polish(crd: CustomResourceDefinition) -> CustomResourceDefinition {
    // Safety: a definition is plain data; both directions of the conversion are serde's own.
    #[allow(clippy::expect_used)]
    let mut tree = serde_json::to_value(&crd).expect("a definition becomes JSON");
    scrub(&mut tree);
    // Safety: as above.
    #[allow(clippy::expect_used)]
    serde_json::from_value(tree).expect("the polished definition is still one")
}

fn scrub(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.remove("nullable");
            // Of a type that takes no other fields. The API server prunes those, and says so nowhere.
            if map.get("additionalProperties") == Some(&Value::Bool(false)) {
                map.remove("additionalProperties");
            }
            // What the schema takes, the type takes: a number that the type cannot hold would make the object unreadable.
            let most = match map.get("format").and_then(Value::as_str) {
                Some("uint8") => Some(u64::from(u8::MAX)),
                Some("uint16") => Some(u64::from(u16::MAX)),
                Some("uint32") => Some(u64::from(u32::MAX)),
                _ => None,
            };
            if let Some(most) = most {
                map.entry("maximum").or_insert(most.into());
            }
            let unknown = map.get("format").and_then(Value::as_str).is_some_and(|f| f.starts_with("uint"));
            if unknown {
                map.remove("format");
            }
            map.values_mut().for_each(scrub);
        }
        Value::Array(items) => items.iter_mut().for_each(scrub),
        _ => {}
    }
}

/// The YAML file of one definition.
pub fn yaml(crd: &CustomResourceDefinition) -> Result<String, serde_yaml_ng::Error> {
    serde_yaml_ng::to_string(crd).map(|text| format!("# Written by `cargo xtask generate`. Do not edit.\n{text}"))
}
