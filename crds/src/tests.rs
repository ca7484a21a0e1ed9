//! The rules and the shape of the API, in process. The same table is put to a real API server by `tests/apiserver`.

use std::collections::BTreeSet;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::core::cel::Validator;
use serde_json::Value;

use crate::schema;

#[path = "../testdata/table.rs"]
mod table;
use table::Table;

fn definitions() -> Vec<(String, CustomResourceDefinition, Value)> {
    let shape = |crd: &CustomResourceDefinition| {
        serde_json::to_value(crd).unwrap()["spec"]["versions"][0]["schema"]["openAPIV3Schema"].clone()
    };
    schema::all().into_iter().map(|crd| (crd.spec.names.kind.clone(), crd.clone(), shape(&crd))).collect()
}

fn shape_of(kind: &str) -> Value {
    definitions().into_iter().find(|(name, ..)| name == kind).unwrap_or_else(|| panic!("no kind {kind}")).2
}

/// Messages of the rules that refuse `new`, created or (with `old`) updated: (rule, field and message).
fn refusals(shape: &Value, new: &Value, old: Option<&Value>) -> Vec<(String, String)> {
    let errors = Validator::new().validate(shape, new, old).err().map(|e| e.into_vec()).unwrap_or_default();
    errors.into_iter().map(|e| (e.rule, format!("{}: {}", e.field_path, e.message))).collect()
}

fn every_rule() -> BTreeSet<(String, String)> {
    fn walk(kind: &str, shape: &Value, found: &mut BTreeSet<(String, String)>) {
        match shape {
            Value::Object(map) => {
                for rule in map.get("x-kubernetes-validations").and_then(Value::as_array).into_iter().flatten() {
                    found.insert((kind.to_owned(), rule["rule"].as_str().unwrap().to_owned()));
                }
                map.values().for_each(|v| walk(kind, v, found));
            }
            Value::Array(list) => list.iter().for_each(|v| walk(kind, v, found)),
            _ => {}
        }
    }
    let mut found = BTreeSet::new();
    definitions().iter().for_each(|(kind, _, shape)| walk(kind, shape, &mut found));
    found
}

/// A rule nobody tried is a rule that may refuse every study, or none.
#[test]
fn every_rule_has_a_passing_and_a_failing_case() {
    let cases: BTreeSet<_> = Table::read().rules.into_iter().map(|c| (c.kind, c.rule)).collect();
    assert_eq!(cases, every_rule());
}

/// A person whose object is refused reads the field, the value, the rule and the way out.
#[test]
fn rules_pass_what_is_right_and_refuse_what_is_wrong_in_words_to_act_on() {
    let table = Table::read();
    for case in &table.rules {
        let shape = shape_of(&case.kind);
        let before = case.looks_back().then(|| table.object(&case.kind, &Value::Object(Default::default())));
        let passing = refusals(&shape, &table.object(&case.kind, &case.pass), before.as_ref());
        assert!(passing.is_empty(), "{} `{}` refuses its passing case: {passing:?}", case.kind, case.rule);
        let failing = refusals(&shape, &table.object(&case.kind, &case.fail), before.as_ref());
        let (_, text) = failing
            .iter()
            .find(|(rule, _)| *rule == case.rule)
            .unwrap_or_else(|| panic!("{} `{}` lets its failing case through: {failing:?}", case.kind, case.rule));
        for part in &case.message {
            assert!(text.contains(part.as_str()), "{} `{}` does not say {part:?}: {text}", case.kind, case.rule);
        }
    }
}

/// The objects of the table are what the Rust types write: a field that the types do not know, or that is written
/// another way, would be refused or lost on the way through a controller.
#[test]
fn the_full_objects_survive_the_rust_types() {
    fn same<T: serde::de::DeserializeOwned + serde::Serialize>(object: &Value) {
        let typed: T = serde_json::from_value(object.clone()).unwrap();
        assert_eq!(serde_json::to_value(typed).unwrap()["spec"], object["spec"]);
    }
    let objects = Table::read().objects;
    same::<crate::TrustSite>(&objects["TrustSite"]);
    same::<crate::FederatedStudy>(&objects["FederatedStudy"]);
    same::<crate::TrainingRound>(&objects["TrainingRound"]);
    same::<crate::ModelRelease>(&objects["ModelRelease"]);
    same::<crate::ModelPromotion>(&objects["ModelPromotion"]);
    same::<crate::ClinicalPlan>(&objects["ClinicalPlan"]);
    same::<crate::SitePolicy>(&objects["SitePolicy"]);
    same::<crate::RoundTask>(&objects["RoundTask"]);
    same::<crate::ModelDeployment>(&objects["ModelDeployment"]);
    same::<crate::ModelHazard>(&objects["ModelHazard"]);
    assert_eq!(objects.len(), 10);
}

/// A field that is in no full object is tried by nobody; the API server test makes wrong what is there.
#[test]
fn the_full_objects_hold_every_field_of_their_specs() {
    fn missing(shape: &Value, object: &Value, path: &str, found: &mut Vec<String>) {
        for (name, field) in shape["properties"].as_object().into_iter().flatten() {
            let path = format!("{path}.{name}");
            match object.get(name) {
                // Exactly one of the two may be set.
                None if path == ".initialModel.digest" || path == ".of.model" => {}
                None => found.push(path),
                Some(value) => missing(field, value, &path, found),
            }
        }
        if let Some(items) = shape.get("items") {
            let list = object.as_array().map(Vec::as_slice).unwrap_or_default();
            list.iter().take(1).for_each(|item| missing(items, item, &format!("{path}[]"), found));
            if list.is_empty() {
                found.push(format!("{path}[]"));
            }
        }
    }
    let table = Table::read();
    for (kind, _, shape) in definitions() {
        let mut found = Vec::new();
        missing(&shape["properties"]["spec"], &table.objects[&kind]["spec"], "", &mut found);
        assert!(found.is_empty(), "{kind}: {found:?}");
    }
}

/// An unbounded list lets one object fill etcd, and makes the API server refuse CEL rules over it; a list without a
/// type is overwritten whole by whoever applies last; `nullable` and unknown formats are refused or ignored.
#[test]
fn every_list_string_number_and_free_object_is_bounded_and_every_list_has_a_type() {
    fn walk(shape: &Value, path: &str, faults: &mut Vec<String>) {
        let Some(map) = shape.as_object() else { return };
        let mut fault = |what: &str| faults.push(format!("{path}: {what}"));
        if map.contains_key("nullable") {
            fault("nullable");
        }
        match map.get("type").and_then(Value::as_str) {
            Some("string") => {
                let bounded = map.contains_key("maxLength")
                    || map.contains_key("enum")
                    || map.get("format").is_some_and(|f| f == "date-time");
                if !bounded {
                    fault("string without maxLength or enum");
                }
            }
            Some("array") => {
                if !map.contains_key("maxItems") {
                    fault("list without maxItems");
                }
                if !map.contains_key("x-kubernetes-list-type") {
                    fault("list without a list type");
                }
            }
            Some("object") if !map.contains_key("properties") && !map.contains_key("maxProperties") => {
                fault("free object without maxProperties");
            }
            Some("integer" | "number") => {
                let format = map.get("format").and_then(Value::as_str).unwrap_or("int64");
                // The server's own number, copied.
                let counted = map.contains_key("minimum") || path.ends_with(".observedGeneration");
                if !counted || !["int32", "int64"].contains(&format) {
                    fault("number without minimum or with an unknown format");
                }
            }
            _ => {}
        }
        for (name, field) in map.get("properties").and_then(Value::as_object).into_iter().flatten() {
            walk(field, &format!("{path}.{name}"), faults);
        }
        if let Some(items) = map.get("items") {
            walk(items, &format!("{path}[]"), faults);
        }
    }
    let mut faults = Vec::new();
    for (kind, _, shape) in definitions() {
        for part in ["spec", "status"] {
            walk(&shape["properties"][part], &format!("{kind}.{part}"), &mut faults);
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

/// Names that people type and that RBAC, charts and guides refer to.
#[test]
fn names_scopes_and_categories() {
    let names: Vec<String> = definitions()
        .iter()
        .map(|(kind, crd, _)| {
            let names = &crd.spec.names;
            let short = names.short_names.clone().unwrap_or_default().join(",");
            let category = names.categories.clone().unwrap_or_default().join(",");
            format!("{kind} {} {short} {} {category}", crd.metadata.name.clone().unwrap(), crd.spec.scope)
        })
        .collect();
    assert_eq!(
        names,
        [
            "TrustSite trustsites.consilium.health tsite Cluster consilium",
            "FederatedStudy federatedstudies.consilium.health fstudy Namespaced consilium",
            "TrainingRound trainingrounds.consilium.health tround Namespaced consilium",
            "ModelRelease modelreleases.consilium.health mrelease Namespaced consilium",
            "ModelPromotion modelpromotions.consilium.health mpromo Namespaced consilium",
            "ClinicalPlan clinicalplans.consilium.health cplan Namespaced consilium",
            "SitePolicy sitepolicies.consilium.health spolicy Namespaced consilium",
            "RoundTask roundtasks.consilium.health rtask Namespaced consilium",
            "ModelDeployment modeldeployments.consilium.health mdeploy Namespaced consilium",
            "ModelHazard modelhazards.consilium.health mhaz Namespaced consilium",
        ]
    );
}

/// The committed YAML is the golden file of columns, schemas and rules: a change of the API is seen in review.
#[test]
fn the_committed_yaml_is_what_the_types_say() {
    for (_, crd, _) in definitions() {
        let path = format!("{}/generated/{}.yaml", env!("CARGO_MANIFEST_DIR"), crd.spec.names.plural);
        let committed = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(schema::yaml(&crd).unwrap() == committed, "{path} is not current: run `cargo xtask generate`");
    }
}

/// `kubectl get` answers "is it working?" for every kind.
#[test]
fn every_kind_has_columns_for_its_state_and_its_age() {
    for (kind, crd, shape) in definitions() {
        let columns = crd.spec.versions[0].additional_printer_columns.clone().unwrap_or_default();
        assert!(columns.iter().any(|c| c.name == "Age"), "{kind}");
        // The state of a hazard is what people wrote.
        let state = if kind == "ModelHazard" { ".spec.closed" } else { ".status" };
        assert!(columns.iter().any(|c| c.json_path.starts_with(state)), "{kind}");
        for column in columns.iter().filter(|c| !c.json_path.starts_with(".metadata") && !c.json_path.contains("[?(")) {
            let mut field = &shape;
            for name in column.json_path.split('.').skip(1) {
                field = &field["properties"][name];
            }
            assert!(
                field.is_object(),
                "{kind}: column {} shows {}, which does not exist",
                column.name,
                column.json_path
            );
        }
    }
}

/// Whoever starts from an example starts from one that is accepted.
#[test]
fn every_example_is_valid() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples");
    let mut open = vec![root];
    let mut seen = BTreeSet::new();
    while let Some(path) = open.pop() {
        if path.is_dir() {
            open.extend(std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
            continue;
        }
        if path.extension().is_none_or(|end| end != "yaml") {
            continue;
        }
        let text = std::fs::read_to_string(&path).unwrap();
        for document in serde_yaml_ng::Deserializer::from_str(&text) {
            let object = <Value as serde::Deserialize>::deserialize(document).unwrap();
            if !object["apiVersion"].as_str().unwrap_or_default().starts_with(crate::GROUP) {
                continue;
            }
            let kind = object["kind"].as_str().unwrap();
            let refused = refusals(&shape_of(kind), &object, None);
            assert!(refused.is_empty(), "{}: {refused:?}", path.display());
            let spec = object["spec"].clone();
            let parsed = match kind {
                "TrustSite" => serde_json::from_value::<crate::TrustSiteSpec>(spec).map(drop),
                "FederatedStudy" => serde_json::from_value::<crate::FederatedStudySpec>(spec).map(drop),
                "ModelPromotion" => serde_json::from_value::<crate::ModelPromotionSpec>(spec).map(drop),
                "ClinicalPlan" => {
                    let plan = serde_json::from_value::<crate::ClinicalPlanSpec>(spec);
                    plan.map(|plan| drop(plan.plan().unwrap_or_else(|e| panic!("{}: {e}", path.display()))))
                }
                "SitePolicy" => serde_json::from_value::<crate::SitePolicySpec>(spec).map(drop),
                other => panic!("{}: nobody writes a {other} by hand", path.display()),
            };
            parsed.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            seen.insert(kind.to_owned());
        }
    }
    assert_eq!(seen.len(), 5, "{seen:?}");
}

/// Two sums that differ by one hospital tell how much it weighs: without a word from it, that must not be its exact
/// number of examples.
#[test]
fn example_counts_are_rounded_unless_the_hospital_says_otherwise() {
    let claim = "claim";
    let opt_in: crate::site_policy::StudyOptIn = serde_json::from_value(serde_json::json!({
        "study": "research/hippocampus", "uid": "u", "specDigest": format!("sha256:{}", "b".repeat(64)),
        "approval": "Automatic", "dataset": {"trainClaim": claim, "evaluateClaim": claim, "labelsClaim": claim}
    }))
    .unwrap();
    assert_eq!(opt_in.weight_bucket, 10);
}

/// Hospitals have approved these digests: another one is a study that was edited, and every hospital leaves it.
#[test]
fn digests_of_today_stay_for_ever() {
    let all: Vec<Value> = serde_yaml_ng::from_str(include_str!("../testdata/digests.yaml")).unwrap();
    assert!(all.len() >= 10);
    for entry in all {
        let spec: crate::FederatedStudySpec = serde_json::from_value(entry["spec"].clone()).unwrap();
        assert_eq!(spec.digest().to_string(), entry["digest"].as_str().unwrap(), "{}", entry["name"]);
    }
}
