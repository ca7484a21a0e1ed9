//! Objects drawn from every schema: what the schema takes, the types take. Without that, an object that the API server
//! admits is one that operator or agent cannot read.

#[path = "../../tests/support/drawn.rs"]
mod drawn;

use drawn::{Draw, object};
use serde_json::{Value, json};

use crate::watched::{Kind, Watched};
use crate::{FederatedStudy, schema};

/// Objects of each kind.
const OBJECTS: usize = 2_000;

fn shape_of<K: Kind>() -> Value {
    let crd = schema::all().into_iter().find(|crd| crd.spec.names.kind == K::kind(&())).unwrap();
    serde_json::to_value(crd).unwrap()["spec"]["versions"][0]["schema"]["openAPIV3Schema"].clone()
}

fn draw<K: Kind>(check: impl Fn(&Value, &K)) {
    let (shape, mut draw) = (shape_of::<K>(), Draw::new(crate::study::CONFIG_DEPTH));
    for _ in 0..OBJECTS {
        let mut object = object(&mut draw, &K::kind(&()), "a", &shape);
        object["metadata"]["uid"] = json!("u");
        let Watched(read) = serde_json::from_str::<Watched<K>>(&object.to_string()).unwrap();
        let read = read.unwrap_or_else(|unread| panic!("{}: {}\n{object}", K::kind(&()), unread.why));
        check(&object["spec"], &read);
    }
}

#[test]
fn what_the_schema_of_a_study_takes_the_type_takes_and_both_sides_have_one_digest() {
    draw::<FederatedStudy>(|spec, read| {
        assert_eq!(crate::WrittenSpec::of(spec.clone()).digest(), read.spec.digest(), "{spec}");
    });
}

#[test]
fn what_the_schema_of_a_hospital_takes_the_type_takes() {
    draw::<crate::TrustSite>(|_, _| {});
}

#[test]
fn what_the_schema_of_a_round_takes_the_type_takes() {
    draw::<crate::TrainingRound>(|_, _| {});
}

#[test]
fn what_the_schema_of_a_release_takes_the_type_takes() {
    draw::<crate::ModelRelease>(|_, _| {});
}

#[test]
fn what_the_schema_of_a_promotion_takes_the_type_takes() {
    draw::<crate::ModelPromotion>(|_, _| {});
}

#[test]
fn what_the_schema_of_a_plan_takes_the_type_takes() {
    draw::<crate::ClinicalPlan>(|_, _| {});
}

#[test]
fn what_the_schema_of_a_policy_takes_the_type_takes() {
    draw::<crate::SitePolicy>(|_, _| {});
}

#[test]
fn what_the_schema_of_a_task_takes_the_type_takes() {
    draw::<crate::RoundTask>(|_, _| {});
}

#[test]
fn what_the_schema_of_a_hazard_takes_the_type_takes() {
    // One that cannot be read is read as something else, so that it is not passed over.
    draw::<crate::ModelHazard>(|spec, read| assert_eq!(spec["hazard"], json!(read.spec.hazard)));
}

#[test]
fn what_the_schema_of_a_deployment_takes_the_type_takes() {
    draw::<crate::ModelDeployment>(|_, _| {});
}
