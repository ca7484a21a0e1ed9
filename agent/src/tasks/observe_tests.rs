use serde_json::{Value, json};

use super::*;

const NOW: &str = "2026-06-01T12:00:00Z";

fn job(mode: &str, condition: Option<(&str, &str)>) -> Job {
    let conditions: Vec<Value> =
        condition.iter().map(|(type_, reason)| json!({"type": type_, "status": "True", "reason": reason})).collect();
    serde_json::from_value(json!({
        "metadata": {"name": "study-r1-train-2", "labels": {TRY_LABEL: "2", MODE_LABEL: mode}},
        "spec": {"template": {}},
        "status": {"conditions": conditions},
    }))
    .unwrap()
}

fn exit(code: i32, reason: &str, message: &str) -> Value {
    json!({"terminated": {"exitCode": code, "reason": reason, "message": message}})
}

fn pod(phase: &str, containers: &[(&str, Value)]) -> Pod {
    let statuses: Vec<Value> = containers
        .iter()
        .map(|(name, state)| {
            json!({"name": name, "state": state, "image": "i", "imageID": "i", "ready": false, "restartCount": 0})
        })
        .collect();
    let specs: Vec<Value> = containers.iter().map(|(name, _)| json!({"name": name})).collect();
    serde_json::from_value(json!({
        "metadata": {"name": "p"},
        "spec": {"nodeName": "dgx-1", "containers": specs},
        "status": {"phase": phase, "containerStatuses": statuses},
    }))
    .unwrap()
}

fn see(job: &Job, pod: Option<&Pod>) -> TrySeen {
    let pods: Vec<&Pod> = pod.into_iter().collect();
    observe(job, &pods, NOW.parse().unwrap())
}

fn running() -> Value {
    json!({"running": {}})
}

/// The trainer's own sentence must reach the administrator, and at once: not after `deliver` has noticed.
#[test]
fn exit_42_is_invalid_with_the_trainers_words() {
    let log = "{\"event\":\"start\"}\nerror: scan.nii.gz: truncated: 3 of 10 bytes";
    let pod = pod("Running", &[("trainer", exit(42, "Error", log)), ("deliver", running())]);
    let seen = see(&job("full", None), Some(&pod));
    assert_eq!(seen.state, TryState::Ended(End::Invalid("scan.nii.gz: truncated: 3 of 10 bytes".into())));
    assert_eq!((seen.number, seen.mode, seen.trainer_ended), (2, Mode::Full, true));
}

#[test]
fn a_failure_file_as_message_is_understood() {
    let pod = pod("Failed", &[("trainer", exit(42, "Error", r#"{"reason":"InvalidData","message":"no scans"}"#))]);
    assert_eq!(see(&job("full", None), Some(&pod)).state, TryState::Ended(End::Invalid("no scans".into())));
}

#[test]
fn ends_are_told_apart() {
    let failed = Some(("Failed", "BackoffLimitExceeded"));
    let trained = |deliver| pod("Failed", &[("trainer", exit(0, "Completed", "")), ("deliver", deliver)]);
    let cases = [
        (failed, Some(trained(exit(1, "Error", "x"))), End::Undelivered),
        (
            failed,
            Some(pod(
                "Failed",
                &[("trainer", exit(1, "Error", "error: disk full")), ("deliver", exit(1, "Error", ""))],
            )),
            End::Failed("container trainer ended with 1: disk full".into()),
        ),
        (failed, None, End::Lost("its pod is gone".into())),
        (Some(("Failed", "DeadlineExceeded")), None, End::Deadline),
        (Some(("Failed", "DeadlineExceeded")), Some(trained(running())), End::Deadline),
    ];
    for (condition, pod, expected) in cases {
        assert_eq!(see(&job("full", condition), pod.as_ref()).state, TryState::Ended(expected));
    }
    let killed = pod("Failed", &[("trainer", exit(137, "OOMKilled", "")), ("deliver", exit(1, "Error", ""))]);
    let state = see(&job("full", failed), Some(&killed)).state;
    assert!(matches!(&state, TryState::Ended(End::OutOfMemory(m)) if m.contains("spec.resources.memory")), "{state:?}");
}

/// Only a deliver-only pod that found no whole result allows a second training; any other end says nothing of it.
#[test]
fn a_pod_that_could_not_deliver_is_told_from_one_that_had_nothing_to() {
    let failed = Some(("Failed", "BackoffLimitExceeded"));
    let state = |mode, containers: &[(&str, Value)]| {
        let seen = see(&job(mode, failed), Some(&pod("Failed", containers)));
        assert!(seen.trainer_ended && seen.over);
        seen.state
    };
    let nothing = i32::from(EXIT_NO_RESULT);
    assert_eq!(state("deliver", &[("deliver", exit(nothing, "Error", ""))]), TryState::Ended(End::NoResult));
    assert_eq!(state("deliver", &[("deliver", exit(1, "Error", ""))]), TryState::Ended(End::Undelivered));
    assert_eq!(state("deliver", &[]), TryState::Ended(End::Undelivered));
    let trained = |deliver| [("trainer", exit(0, "Completed", "")), ("deliver", exit(deliver, "Error", ""))];
    assert_eq!(state("full", &trained(nothing)), TryState::Ended(End::NoResult));
    // A pod that replaced a drained one found the result whole, and its trainer never started.
    let found = exit(i32::from(EXIT_DELIVERED), "Error", "");
    assert_eq!(state("full", &[("fetch", found)]), TryState::Ended(End::Complete));
}

/// A Job that is being removed has a pod that still writes: the next try waits for it, unless its node is gone.
#[test]
fn a_removed_job_is_waited_for_but_not_on_a_dead_node() {
    let mut removed = job("full", None);
    removed.metadata.deletion_timestamp = serde_json::from_value(json!("2026-06-01T11:50:00Z")).unwrap();
    let ending = |at: &str| {
        let mut pod = pod("Running", &[("trainer", running())]);
        pod.metadata.deletion_timestamp = serde_json::from_value(json!(at)).unwrap();
        let seen = see(&removed, Some(&pod));
        assert!(seen.over);
        seen.state
    };
    assert_eq!(ending("2026-06-01T11:59:00Z"), TryState::Stopping);
    assert!(matches!(ending("2026-06-01T11:51:00Z"), TryState::Ended(End::Lost(_))));
}

/// A GPU that runs out of memory makes a trainer exit as from any error; `Failed` would send people to look for a bug.
#[test]
fn out_of_memory_on_a_gpu_is_told_from_its_words() {
    let failed = Some(("Failed", "BackoffLimitExceeded"));
    for log in [
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB",
        "error: libtorch: DefaultCPUAllocator: can't allocate memory",
        r#"{"reason":"OutOfMemory","message":"libtorch: x"}"#,
    ] {
        let pod = pod("Failed", &[("trainer", exit(1, "Error", log)), ("deliver", exit(3, "Error", ""))]);
        let state = see(&job("full", failed), Some(&pod)).state;
        assert!(matches!(&state, TryState::Ended(End::OutOfMemory(m)) if m.contains("batch size")), "{log}: {state:?}");
    }
}

/// A study's image that fills the node's disk is evicted by its own limit; the reason must be told.
#[test]
fn an_eviction_by_a_limit_is_a_failure_in_the_kubelets_words() {
    let mut evicted = pod("Failed", &[("trainer", exit(137, "Error", "")), ("deliver", exit(137, "Error", ""))]);
    let status = evicted.status.get_or_insert_default();
    (status.reason, status.message) = (Some("Evicted".into()), Some("Usage of EmptyDir volume \"tmp\"".into()));
    let state = see(&job("full", Some(("Failed", "BackoffLimitExceeded"))), Some(&evicted)).state;
    assert!(matches!(&state, TryState::Ended(End::Failed(m)) if m.contains("EmptyDir")), "{state:?}");
}

/// The next try must not begin while the pod of this one still holds the volume.
#[test]
fn a_trainer_that_ended_is_told_to_deliver_before_the_try_is_over() {
    let waiting = pod("Running", &[("trainer", exit(1, "Error", "")), ("deliver", running())]);
    let seen = see(&job("full", None), Some(&waiting));
    assert_eq!((seen.state, seen.trainer_ended), (TryState::Running, true));
    let working = pod("Running", &[("trainer", running()), ("deliver", running())]);
    assert!(!see(&job("full", None), Some(&working)).trainer_ended);
    let scoring = [("trainer", exit(0, "Completed", "")), ("evaluator", running()), ("deliver", running())];
    assert!(!see(&job("full", None), Some(&pod("Running", &scoring))).trainer_ended, "the evaluator still works");
    let scored =
        [("trainer", exit(0, "Completed", "")), ("evaluator", exit(0, "Completed", "")), ("deliver", running())];
    assert!(see(&job("full", None), Some(&pod("Running", &scored))).trainer_ended);
}

#[test]
fn what_is_in_the_way_is_named() {
    let waiting = |reason: &str| json!({"waiting": {"reason": reason, "message": "not found"}});
    let stuck = pod("Pending", &[("trainer", waiting("ImagePullBackOff"))]);
    let TryState::Waiting(Some(text)) = see(&job("full", None), Some(&stuck)).state else { panic!("not waiting") };
    assert_eq!(text, "container trainer: ImagePullBackOff: not found");
    let usual = pod("Pending", &[("trainer", waiting("PodInitializing"))]);
    assert_eq!(see(&job("full", None), Some(&usual)).state, TryState::Waiting(None));
    let mut full = pod("Pending", &[]);
    full.status.get_or_insert_default().conditions = serde_json::from_value(
        json!([{"type": "PodScheduled", "status": "False", "message": "0/1 nodes: insufficient nvidia.com/gpu"}]),
    )
    .unwrap();
    assert!(matches!(see(&job("full", None), Some(&full)).state, TryState::Waiting(Some(t)) if t.contains("gpu")));
    let mut held = job("full", None);
    held.spec.get_or_insert_default().suspend = Some(true);
    assert!(matches!(see(&held, None).state, TryState::Waiting(Some(_))));
}

/// A node that does not answer keeps its pod in Terminating for ever; the round cannot wait for it.
#[test]
fn a_pod_on_a_dead_node_is_lost_after_a_while() {
    let ending = |at: &str| {
        let mut pod = pod("Running", &[("trainer", running())]);
        pod.metadata.deletion_timestamp = serde_json::from_value(json!(at)).unwrap();
        see(&job("full", None), Some(&pod)).state
    };
    assert_eq!(ending("2026-06-01T11:59:00Z"), TryState::Running);
    assert_eq!(ending("2026-06-01T11:56:00Z"), TryState::Ended(End::Lost("node dgx-1 does not answer".into())));
}
