use super::*;

fn object<T: DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

fn running() -> Found {
    Found {
        shut: false,
        deployments: vec![object(json!({"metadata": {"name": "model"}, "spec": {
            "replicas": 1, "selector": {}, "template": {},
        }}))],
        jobs: vec![
            object(json!({"metadata": {"name": "task"}, "spec": {"template": {}}})),
            object(json!({"metadata": {"name": "queued"}, "spec": {"suspend": true, "template": {}}})),
            object(json!({"metadata": {"name": "over"}, "spec": {"template": {}},
                "status": {"conditions": [{"type": "Complete", "status": "True"}]}})),
        ],
        pods: vec![
            object(json!({"metadata": {"name": "pod"}, "status": {"phase": "Running"}})),
            object(json!({"metadata": {"name": "ended"}, "status": {"phase": "Succeeded"}})),
        ],
        workloads: vec![],
    }
}

fn workload(name: &str, job_uid: &str, more: Value) -> (ApiResource, DynamicObject) {
    let gvk = kube::api::GroupVersionKind::gvk("kueue.x-k8s.io", "v1beta1", "Workload");
    let owners = json!([{"apiVersion": "batch/v1", "kind": "Job", "name": "j", "uid": job_uid}]);
    let mut all = json!({"apiVersion": "kueue.x-k8s.io/v1beta1", "kind": "Workload",
        "metadata": {"name": name, "ownerReferences": owners}, "spec": {"queueName": "research"}});
    json_merge(&mut all, &more);
    (ApiResource::from_gvk(&gvk), object(all))
}

/// As the API server would do it.
fn applied(found: &mut Found, steps: &[Step]) {
    let merge = |object: Value, patch: &Value| {
        let mut object = object;
        json_merge(&mut object, patch);
        object
    };
    for step in steps {
        match step {
            Step::Shut => found.shut = true,
            Step::Open => found.shut = false,
            Step::Deployment { name, patch } => {
                let one = found.deployments.iter_mut().find(|d| d.name_any() == *name).unwrap();
                *one = object(merge(serde_json::to_value(&*one).unwrap(), patch));
            }
            Step::Job { name, patch } => {
                let one = found.jobs.iter_mut().find(|j| j.name_any() == *name).unwrap();
                *one = object(merge(serde_json::to_value(&*one).unwrap(), patch));
            }
            Step::Workload { name, patch, .. } => {
                let (_, one) = found.workloads.iter_mut().find(|(_, w)| w.name_any() == *name).unwrap();
                *one = object(merge(serde_json::to_value(&*one).unwrap(), patch));
            }
            Step::Pod { name } => found.pods.retain(|pod| pod.name_any() != *name),
        }
    }
}

/// RFC 7386.
fn json_merge(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else { return target.clone_from(patch) };
    for (key, value) in patch {
        match value {
            Value::Null => drop(target.as_object_mut().unwrap().remove(key)),
            _ => {
                let map = target.as_object_mut().unwrap();
                json_merge(map.entry(key.clone()).or_insert_with(|| json!({})), value);
            }
        }
    }
}

/// At night somebody types it twice. Everything that runs stops, what did not run is not touched, and the second time
/// must not forget how it was.
#[test]
fn stopping_twice_and_starting_leaves_it_as_it_was() {
    let mut found = running();
    found.shut = true;
    let steps = stopping(&found, false);
    let told: Vec<String> = steps.iter().map(words).collect();
    assert_eq!(told, ["Deployment model: 0 replicas", "Job task: suspended", "Pod pod: deleted"]);
    applied(&mut found, &steps);
    assert_eq!(stopping(&found, false), [], "the second time there is nothing left");
    let steps = starting(&found);
    assert_eq!(steps.last(), Some(&Step::Open), "a start that fails half-way leaves it stopped");
    applied(&mut found, &steps);
    let before = running();
    assert_eq!((found.shut, found.jobs[1..].to_vec()), (false, before.jobs[1..].to_vec()));
    assert_eq!(found.deployments[0].spec, before.deployments[0].spec);
    assert!(!found.deployments[0].annotations().contains_key(REPLICAS));
    assert_eq!(found.jobs[0].spec.as_ref().unwrap().suspend, Some(false));
    assert_eq!(starting(&found), []);
}

/// A queue with room resumes a suspended Job within a second, for that is what queues do: what was stopped would have
/// waited for the quota to go and then run, and `start` would have overruled the queue.
#[test]
fn a_queue_is_told_too_and_decides_again_afterwards() {
    let job = json!({"metadata": {"name": "task", "uid": "u"}, "spec": {"template": {}}});
    let before = || Found {
        shut: true,
        jobs: vec![object(job.clone())],
        workloads: vec![
            workload("job-task", "u", json!({})),
            workload("held", "other", json!({"spec": {"active": false}})),
            workload("over", "past", json!({"status": {"conditions": [{"type": "Finished", "status": "True"}]}})),
        ],
        ..Found::default()
    };
    let mut found = before();
    let steps = stopping(&found, false);
    assert_eq!(steps.iter().map(words).collect::<Vec<_>>(), ["Workload job-task: held", "Job task: suspended"]);
    applied(&mut found, &steps);
    assert_eq!(stopping(&found, false), [], "the second time there is nothing left");
    let steps = starting(&found);
    let told: Vec<String> = steps.iter().map(words).collect();
    assert_eq!(told[..2], ["Job task: left to its queue", "Workload job-task: let go"]);
    applied(&mut found, &steps);
    assert_eq!(found.workloads[1..], before().workloads[1..], "what others held stays held");
    assert_eq!(found.workloads[0].1.data["spec"]["active"], true);
    assert_eq!(found.jobs[0].spec.as_ref().unwrap().suspend, Some(true), "until the queue resumes it");
    assert_eq!(starting(&found), []);
}

/// The Job controller counts a pod that somebody else takes as a failure of its Job, and three of them end the task:
/// what was stopped would not come back. It has a few seconds for it; and what hangs is taken all the same.
#[test]
fn a_jobs_pod_is_left_to_its_controller_for_a_while() {
    let owner = json!([{"apiVersion": "batch/v1", "kind": "Job", "name": "task", "uid": "u"}]);
    let pod = |more: Value| {
        let mut pod =
            json!({"metadata": {"name": "p", "ownerReferences": owner.clone()}, "status": {"phase": "Running"}});
        json_merge(&mut pod, &json!({"metadata": more}));
        Found { shut: true, pods: vec![object(pod)], ..Found::default() }
    };
    let taken = [Step::Pod { name: "p".into() }];
    let going = json!({"deletionTimestamp": "2026-06-01T12:00:00Z", "deletionGracePeriodSeconds": 60});
    assert_eq!(stopping(&pod(json!({})), false), []);
    assert_eq!(stopping(&pod(json!({})), true), taken);
    assert_eq!(stopping(&pod(going), false), taken, "a minute's grace is not what stop means");
    let soon = json!({"deletionTimestamp": "2026-06-01T12:00:00Z", "deletionGracePeriodSeconds": 5});
    assert_eq!(stopping(&pod(soon), true), []);
}
