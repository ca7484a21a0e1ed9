//! Plans are read whole or refused in words, and have one digest.

use serde_json::json;

use super::*;
use crate::testing::{EXAMPLE, example};
use crate::values::Metric;

/// Golden: approvals made today are over this digest. Another value means that signatures of today no longer hold.
#[test]
fn the_digest_of_a_plan_is_for_ever() {
    assert_eq!(
        example().digest().to_string(),
        "sha256:f4b1aba03275d1ff13140ece69b28417beb15b7f1a95cd152f788106c5633f0f"
    );
    let spelled: Value = serde_json::from_str(&EXAMPLE.replace("\"0.9\"", "\"0.900\"")).unwrap();
    assert_ne!(EXAMPLE, EXAMPLE.replace("\"0.9\"", "\"0.900\""));
    assert_eq!(ClinicalPlan::read(&spelled).unwrap().digest(), example().digest());
}

/// A plan that is half understood would be judged by rules that nobody signed.
#[test]
fn what_is_not_understood_is_refused_with_the_field_and_the_way_out() {
    let refused = |pointer: &str, value: Value, expected: &[&str]| {
        let mut tree: Value = serde_json::from_str(EXAMPLE).unwrap();
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        let parent = tree.pointer_mut(parent).unwrap();
        match parent {
            Value::Array(items) => items[key.parse::<usize>().unwrap()] = value,
            other => other[key] = value,
        }
        let error = ClinicalPlan::read(&tree).unwrap_err().to_string();
        for part in expected {
            assert!(error.contains(part), "{error} lacks {part:?}");
        }
    };
    refused("/rules/0/metrics/0/floor", json!("1.2.3"), &["rules[0].metrics[0].floor", "1.2.3", "for example"]);
    refused("/rules/0/metrics/0/metric", json!("sensitivty"), &["rules[0].metrics[0].metric", "mean:dice"]);
    refused("/rules/0/metrics/0/ceiling", json!("1"), &["rules[0].metrics[0]", "not both"]);
    refused("/rules/0/stage", json!("Shadow"), &["rules[0].stage", "leave this rule out"]);
    refused("/rules/0/stage", json!("Triage"), &["rules[0].stage", "must be for SafetyNet"]);
    refused("/rules/0/cases", json!(0), &["rules[0].cases", "is 0", "from 1 to"]);
    refused("/rules/0/coverge", json!("0.9"), &["rules[0]", "coverge"]);
    refused("/rules/1/coverage", json!("0.5"), &["rules[1].coverage", "less for Prioritisation"]);
    refused("/rules/1/metrics/0/floor", json!("0.8"), &["rules[1].metrics", "sensitivity", "less for Prioritisation"]);
    refused("/rules/1/maxFailures", json!("0.5"), &["rules[1].maxFailures", "at least as much"]);
    refused("/rules/1/sites", Value::Null, &["rules[1].sites", "WorstSite"]);
    refused("/rules/1/subgroups", json!([]), &["rules[1].subgroups", "WorstSubgroup"]);
    refused("/scope/minAge", json!(99), &["scope.minAge", "no patient"]);
    refused("/drift/rates/0/noticed", json!("0.02"), &["drift.rates[0]", "different"]);
    refused("/drift/features/0", json!("failures"), &["drift", "twice"]);
    refused("/onHazard", json!("Explode"), &["onHazard", "Watch"]);
    refused("/expires", json!("soon"), &["expires"]);
    refused("/line", json!("hippocampus"), &["line", "namespace/name"]);
}

/// A hospital may ask more of its own cases, but cannot judge others by rules that they do not share.
#[test]
fn a_hospital_s_own_rules_speak_of_itself() {
    let plan = example();
    assert_eq!(rules::check_own(&plan.rules[..1], "releases.rules"), Ok(()));
    let error = rules::check_own(&plan.rules, "releases.rules").unwrap_err();
    assert!(error.to_string().starts_with("releases.rules[1].metrics["), "{error}");
    let twice = [plan.rules[0].clone(), plan.rules[0].clone()];
    assert!(rules::check_own(&twice, "releases.rules").is_err());
}

/// A scan that does not say how old the patient is must not pass as old enough.
#[test]
fn what_a_scan_does_not_say_of_itself_is_out_of_scope() {
    let scope = example().scope;
    let good = ScanFeatures {
        modality: Some("MR".into()),
        body_part: Some("BRAIN".into()),
        age: Some(70),
        spacing_mm: Some(1.0),
    };
    assert_eq!(scope.admits(&good), Ok(()));
    for (bad, what) in [
        (ScanFeatures { modality: Some("CT".into()), ..good.clone() }, "modality is CT"),
        (ScanFeatures { modality: None, ..good.clone() }, "modality is not known"),
        (ScanFeatures { body_part: Some("KNEE".into()), ..good.clone() }, "body part is KNEE"),
        (ScanFeatures { age: Some(12), ..good.clone() }, "at least 18"),
        (ScanFeatures { age: None, ..good.clone() }, "age is not known"),
        (ScanFeatures { spacing_mm: Some(f64::NAN), ..good.clone() }, "spacing"),
        (ScanFeatures { spacing_mm: Some(3.0), ..good.clone() }, "at most 1.5 mm"),
    ] {
        let error = scope.admits(&bad).unwrap_err().to_string();
        assert!(error.contains(what), "{error}");
    }
}

#[test]
fn rungs_follow_each_other_and_no_fall_raises() {
    assert_eq!((below(Stage::Shadow), above(None)), (None, Some(Stage::Shadow)));
    assert_eq!((below(Stage::Triage), above(Some(Stage::PrimaryReader))), (Some(Stage::Prioritisation), None));
    let falls = [Fall::Watch, Fall::OneDown, Fall::Shadow, Fall::Withdraw];
    for stage in Stage::ALL.map(Some).into_iter().chain([None]) {
        assert!(falls.windows(2).all(|f| f[0].from(stage) >= f[1].from(stage)), "{stage:?}");
        assert!(falls[0].from(stage) == stage);
    }
    assert_eq!(example().rule(Stage::SafetyNet).unwrap().metrics[0].metric, Metric::Sensitivity);
}
