//! What GitOps tools make of the operator's statuses: the health checks of `examples/gitops`, run as Argo CD (Lua 5.1) and
//! Flux (CEL) run them, over statuses that the operator decides. A check that never settles hangs a pipeline for weeks, and
//! nobody sees it before.

use std::path::Path;
use std::sync::Arc;

use cel::{Context, Program, Value as Cel};
use consilium_crds::study::FederatedStudySpec;
use consilium_crds::{FederatedStudy, FederatedStudyStatus};
use consilium_federation::report::RolloutReason;
use mlua::{Lua, LuaSerdeExt as _};
use serde_json::{Value, json};

use super::tests::world;
use crate::controllers::study::accept::SiteFacts;
use crate::controllers::study::decide::{self as study_decide, Facts, Initial};
use crate::controllers::testing::{SITES, at, name, study};

fn yaml(path: &str) -> Vec<Value> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/gitops").join(path);
    let text = std::fs::read_to_string(path).unwrap();
    let parse = |document| serde::Deserialize::deserialize(document).unwrap();
    serde_yaml_ng::Deserializer::from_str(&text).map(parse).collect()
}

/// As Argo CD shows the object: the script has the object as `obj` and answers a status and a message.
fn argo(object: &Value) -> (String, String) {
    let kind = object["kind"].as_str().unwrap();
    let map = yaml("argocd/health.yaml").remove(0);
    let script =
        map["data"][format!("resource.customizations.health.consilium.health_{kind}")].as_str().unwrap().to_owned();
    let lua = Lua::new();
    lua.globals().set("obj", lua.to_value(object).unwrap()).unwrap();
    let health: Value = lua.from_value(lua.load(script).eval().unwrap()).unwrap();
    let text = |field: &str| health[field].as_str().unwrap().to_owned();
    (text("status"), text("message"))
}

/// As Flux judges it: one expression after the other over the object's fields; what cannot be evaluated is unknown, and is
/// asked again.
fn flux(object: &Value) -> &'static str {
    let kustomization = yaml("flux/hub.yaml").into_iter().find(|object| object["kind"] == "Kustomization").unwrap();
    let checks = kustomization["spec"]["healthCheckExprs"].as_array().unwrap().clone();
    let check = checks.iter().find(|check| check["kind"] == object["kind"]).unwrap();
    let mut context = Context::default();
    for (field, value) in object.as_object().unwrap() {
        context.add_variable(field.as_str(), value).unwrap();
    }
    for (field, answer) in [("inProgress", "InProgress"), ("failed", "Failed"), ("current", "Current")] {
        let program = Program::compile(check[field].as_str().unwrap()).unwrap();
        match program.execute(&context) {
            Ok(Cel::Bool(true)) => return answer,
            Ok(Cel::Bool(false)) => {}
            Ok(other) => panic!("{field} of {}: {other:?}", object["kind"]),
            Err(_) => return "Unknown",
        }
    }
    "InProgress"
}

#[track_caller]
fn expect(object: &impl serde::Serialize, health: &str, judged: &str) -> String {
    let object = serde_json::to_value(object).unwrap();
    let (found, message) = argo(&object);
    assert_eq!((found.as_str(), flux(&object)), (health, judged), "{message}; {}", object["status"]);
    message
}

#[test]
fn a_promotion_settles_whatever_hospitals_answer() {
    use RolloutReason::{DeniedByPolicy, RollingOut, Serving, VerificationFailed};
    let fresh = world();
    expect(&fresh.promotion, "Progressing", "Unknown");
    for (alder, birch, health, judged, says) in [
        (RollingOut, RollingOut, "Progressing", "Current", "0 of 2 hospitals"),
        (Serving, RollingOut, "Progressing", "Current", "1 of 2 hospitals"),
        (Serving, Serving, "Healthy", "Current", "2 of 2 hospitals"),
        // A hospital that says no has answered; it was Progressing for ever.
        (Serving, DeniedByPolicy, "Healthy", "Current", "not allowed by birch"),
        (DeniedByPolicy, DeniedByPolicy, "Healthy", "Current", "not allowed by alder, birch"),
        (RollingOut, DeniedByPolicy, "Progressing", "Current", "not allowed by birch"),
        // So was a model that no hospital can verify.
        (Serving, VerificationFailed, "Degraded", "Failed", "could not be verified in birch"),
    ] {
        let mut world = world();
        world.says("alder", alder);
        world.says("birch", birch);
        world.decide();
        let message = expect(&world.promotion, health, judged);
        assert!(message.contains(says), "{message}");
        // Edited, and not looked at yet: what was before says nothing.
        world.promotion.metadata.generation = Some(2);
        expect(&world.promotion, "Progressing", "InProgress");
    }
    let mut broken = world();
    broken.release = None;
    broken.decide();
    assert!(expect(&broken.promotion, "Degraded", "Failed").contains("spec.release.name"));
}

fn judged(edit: fn(&mut FederatedStudySpec), initial: Initial) -> (FederatedStudy, FederatedStudyStatus) {
    let mut study = study();
    edit(&mut study.spec);
    let facts = Facts {
        study: Arc::new(study.clone()),
        sites: SITES.map(|n| (name(n), SiteFacts { accepted: true, namespaces: vec!["research".into()] })).into(),
        rosters: Arc::from([]),
        rounds: vec![],
        leftovers: false,
        unread: false,
        releases: vec![],
        spec_stored: true,
        initial,
    };
    (study, study_decide::decide(&facts, at(0)).status)
}

#[test]
fn a_study_is_healthy_once_it_is_accepted_and_degraded_when_people_must_act() {
    expect(&study(), "Progressing", "Unknown");
    let made = || Initial::Made { delivered: None, tries: vec![], stale: vec![] };
    let (mut object, status) = judged(|_| {}, Initial::Past { ended: vec![] });
    object.status = Some(status);
    // Without a model yet nothing can begin; this one has begun.
    object.status.as_mut().unwrap().conditions.retain(|c| c.type_ != "Reconciling");
    let (mut preparing, status) = judged(|_| {}, made());
    preparing.status = Some(status);
    expect(&preparing, "Progressing", "InProgress");
    let (mut wrong, status) = judged(|spec| spec.sites[0].name = name("elder"), made());
    wrong.status = Some(status);
    assert!(expect(&wrong, "Degraded", "Failed").contains("elder"));
    // What the API server refuses of the first model's Job waits for people too.
    let mut refused = preparing.clone();
    let mut status = preparing.status.clone().unwrap();
    let words = "the API server refuses making Job j: exceeded quota";
    assert!(study_decide::not_admitted(&preparing, &mut status, words, at(1)).is_some());
    refused.status = Some(status.clone());
    assert_eq!(expect(&refused, "Degraded", "Failed"), words);
    // Told once, and the same text is the same status: each write of it would bring the next turn.
    let mut again = preparing.status.clone().unwrap();
    assert!(study_decide::not_admitted(&refused, &mut again, words, at(9)).is_none());
    assert_eq!(again.conditions, status.conditions);
}

/// The checks are in a ConfigMap and a Kustomization that people paste: both must name the kinds that Git holds.
#[test]
fn both_tools_have_a_check_for_what_git_holds() {
    let kinds = yaml("flux/hub.yaml").into_iter().find(|o| o["kind"] == "Kustomization").unwrap();
    let kinds: Vec<Value> =
        kinds["spec"]["healthCheckExprs"].as_array().unwrap().iter().map(|check| check["kind"].clone()).collect();
    assert_eq!(kinds, [json!("FederatedStudy"), json!("ModelPromotion")]);
    let argo = yaml("argocd/health.yaml").remove(0);
    let keys: Vec<&String> = argo["data"].as_object().unwrap().keys().collect();
    for kind in ["FederatedStudy", "ModelPromotion"] {
        assert!(keys.iter().any(|key| key.ends_with(&format!("_{kind}"))), "{kind}");
    }
}
