use serde_json::{Value, json};

use super::*;
use crate::deployments::objects::{self, tests::with_plan};

fn model() -> ModelDeployment {
    let spec = with_plan(|plan| plan.spec.clone());
    let mut model = ModelDeployment::new("hippocampus-r5", spec);
    model.metadata.uid = Some("uid".into());
    model
}

fn wanted() -> Deployment {
    with_plan(objects::deployment)
}

/// As the API server has it, with one pod available or none.
fn running(mut deployment: Deployment, available: i32) -> Arc<Deployment> {
    deployment.metadata.generation = Some(3);
    deployment.status =
        Some(serde_json::from_value(json!({"observedGeneration": 3, "availableReplicas": available})).unwrap());
    Arc::new(deployment)
}

/// The pod of a Deployment with its server in these states.
fn pod(deployment: &Deployment, state: &Value, last: &Value) -> Arc<Pod> {
    let template = deployment.spec.as_ref().unwrap().template.metadata.clone().unwrap();
    let status = json!({"name": SERVER, "state": state, "lastState": last, "image": "i", "imageID": "i",
        "ready": false, "restartCount": 3});
    let status = json!({"phase": "Running", "containerStatuses": [status]});
    let metadata = kube::api::ObjectMeta { name: Some("pod".into()), ..template };
    Arc::new(Pod { metadata, spec: None, status: Some(serde_json::from_value(status).unwrap()) })
}

fn ended(code: i32) -> Value {
    let log = "{\"level\":\"INFO\"}\nerror: release.json: missing field `network`; nothing is served";
    json!({"terminated": {"exitCode": code, "reason": "Error", "message": log}})
}

fn back_off() -> Value {
    json!({"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 5m0s restarting failed container"}})
}

fn look(deployment: Arc<Deployment>, pods: &[Arc<Pod>]) -> Seen {
    see(&model(), &wanted(), &[deployment], pods)
}

const WORDS: &str = "release.json: missing field `network`; nothing is served";

/// A model of another trainer's image, which the server cannot build, would crash-loop unseen.
#[test]
fn a_server_that_ended_with_42_is_seen_with_its_words() {
    for (state, last) in [(ended(42), json!({})), (back_off(), ended(42))] {
        let seen = look(running(wanted(), 0), &[pod(&wanted(), &state, &last)]);
        assert_eq!(seen.pod, PodSeen::Refused(WORDS.into()), "{state}");
        assert!(seen.built && !seen.stopped);
    }
}

/// A crash that may pass must not take a model out of use for good, nor one that the next start got over.
#[test]
fn other_ends_and_starts_after_one_are_no_refusal() {
    let seen = look(running(wanted(), 0), &[pod(&wanted(), &back_off(), &ended(137))]);
    assert!(matches!(&seen.pod, PodSeen::Starting(Some(why)) if why.contains("CrashLoopBackOff")), "{seen:?}");
    let again = pod(&wanted(), &json!({"running": {}}), &ended(42));
    assert_eq!(look(running(wanted(), 0), std::slice::from_ref(&again)).pod, PodSeen::Starting(None));
    assert_eq!(look(running(wanted(), 1), &[again]).pod, PodSeen::Ready);
}

/// The pods go when it is stopped: an agent that then starts anew must not begin the loop again.
#[test]
fn what_was_refused_is_remembered_by_the_deployment() {
    let seen = look(running(objects::stopped(wanted(), WORDS), 0), &[]);
    assert_eq!(seen.pod, PodSeen::Refused(WORDS.into()));
    assert!(seen.built && seen.stopped);
}

/// An administrator who took a model down in a hurry is not overruled, and whoever wonders later reads why it is down.
#[test]
fn one_that_was_scaled_to_zero_by_hand_stays_so() {
    let mut down = wanted();
    down.spec.as_mut().unwrap().replicas = Some(0);
    let seen = look(running(down, 0), &[]);
    assert!(matches!(&seen.pod, PodSeen::Starting(Some(why)) if why.contains("by hand")), "{seen:?}");
    assert!(seen.built && !seen.stopped);
}

/// After an upgrade a server may know the network: neither the old words nor the old pods may keep it from trying.
#[test]
fn another_template_is_tried_anew() {
    let old = with_plan(|plan| objects::deployment(&objects::ServePlan { inference_image: "older", ..plan.clone() }));
    let seen = look(running(objects::stopped(old.clone(), WORDS), 0), &[pod(&old, &ended(42), &json!({}))]);
    assert_eq!(seen.pod, PodSeen::Starting(None));
    assert!(!seen.built && !seen.stopped);
    // One of the same name that was removed and made anew, as to have it tried again, has pods of its own.
    let mut anew = model();
    anew.metadata.uid = Some("another".into());
    let wanted = with_plan(|plan| objects::deployment(&objects::ServePlan { uid: "another", ..plan.clone() }));
    let pods = [pod(&self::wanted(), &ended(42), &json!({}))];
    assert_eq!(see(&anew, &wanted, &[running(wanted.clone(), 0)], &pods).pod, PodSeen::Starting(None));
}

/// A hospital that gives its models a GPU, or an object that someone changed, would otherwise stay as it was.
#[test]
fn a_deployment_that_differs_is_built_again() {
    let gpu = with_plan(|plan| objects::deployment(&objects::ServePlan { gpus: 1, ..plan.clone() }));
    assert!(!look(running(gpu, 1), &[]).built);
    let mut changed = wanted();
    let containers = &mut changed.spec.as_mut().unwrap().template.spec.as_mut().unwrap().containers;
    containers[0].image = Some("registry.example/another".into());
    assert!(!look(running(changed, 1), &[]).built);
    assert!(look(running(wanted(), 1), &[]).built);
}
