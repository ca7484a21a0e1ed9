//! From watched objects to the plain values that decisions are made of. Pure.

use std::collections::BTreeMap;

use consilium_crds::RoundTask;
use consilium_federation::assignment::RoundWork;
use consilium_federation::digest::Digest;
use consilium_federation::task::TaskKind;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Pod;
use kube::{Resource, ResourceExt as _};

use super::decide::TaskSeen;
use super::job::{Mode, TRY_LABEL, try_name};
use super::observe::{TrySeen, TryState, is_lost, observe};
use super::status::remembered_end;

/// How long a Job that was made may take to appear in the watch.
pub const WATCH_LAG: SignedDuration = SignedDuration::from_secs(30);

/// A try that was started in this process.
#[derive(Clone, Copy, Debug)]
pub struct Started {
    /// Its number.
    pub number: u32,
    /// What it does.
    pub mode: Mode,
    /// When.
    pub at: Timestamp,
}

/// The task for one part in a round.
pub fn task_of<'a, T: AsRef<RoundTask>>(tasks: &'a [T], round_uid: &str, kind: TaskKind) -> Option<&'a RoundTask> {
    let mine = |task: &&RoundTask| task.spec.round_uid == round_uid && task.spec.kind == kind;
    tasks.iter().map(AsRef::as_ref).find(mine)
}

/// The tasks of a round that are not of this kind: what the hub asked for before.
pub fn tasks_left<'a, T: AsRef<RoundTask>>(
    tasks: &'a [T],
    round_uid: &'a str,
    kind: TaskKind,
) -> impl Iterator<Item = &'a RoundTask> {
    let tasks = tasks.iter().map(AsRef::as_ref);
    tasks.filter(move |task| task.spec.round_uid == round_uid && task.spec.kind != kind)
}

/// The name of a new task: `<study>-r<round>-<train|eval>`, and more when a study of the same name has it already.
pub fn task_name<T: AsRef<RoundTask>>(work: &RoundWork, round_uid: &str, tasks: &[T]) -> String {
    let kind = if work.kind == TaskKind::Evaluate { "eval" } else { "train" };
    let name = format!("{}-r{}-{kind}", work.study.name, work.round);
    let taken = tasks.iter().map(AsRef::as_ref).any(|t| t.name_any() == name && t.spec.round_uid != round_uid);
    match taken {
        true => format!("{}-{}", &name[..name.len().min(56)], &Digest::of(round_uid.as_bytes()).hex()[..6]),
        false => name,
    }
}

/// A task with its tries. A try that was just started counts as waiting until the watch shows its Job.
pub fn see<J: AsRef<Job>, P: AsRef<Pod>>(
    task: &RoundTask,
    jobs: &[J],
    pods: &[P],
    started: Option<Started>,
    now: Timestamp,
) -> TaskSeen {
    let uid = task.uid().unwrap_or_default();
    let mut tries: Vec<TrySeen> = jobs
        .iter()
        .map(AsRef::as_ref)
        .filter(|job| owned(*job, &uid))
        .map(|job| {
            let job_uid = job.uid().unwrap_or_default();
            let pods: Vec<&Pod> = pods.iter().map(AsRef::as_ref).filter(|pod| owned(*pod, &job_uid)).collect();
            observe(job, &pods, now)
        })
        .collect();
    if let Some(started) = started.filter(|s| now.duration_since(s.at) < WATCH_LAG)
        && !tries.iter().any(|t| t.number >= started.number)
    {
        tries.push(TrySeen {
            number: started.number,
            mode: started.mode,
            job: try_name(&task.name_any(), started.number),
            state: TryState::Waiting(None),
            trainer_ended: started.mode == Mode::Deliver,
            over: false,
        });
    }
    tries.extend(abandoned(&uid, &task.name_any(), &tries, pods, now));
    tries.sort_by_key(|t| t.number);
    TaskSeen {
        deleting: task.metadata.deletion_timestamp.is_some(),
        last_try: task.status.as_ref().and_then(|s| s.r#try).unwrap_or(0),
        tries,
        ended: remembered_end(task.status.as_ref()),
    }
}

/// Pods whose Job is gone and that still hold the task's folder, as after `kubectl delete job`: the next try waits.
fn abandoned<P: AsRef<Pod>>(uid: &str, name: &str, tries: &[TrySeen], pods: &[P], now: Timestamp) -> Vec<TrySeen> {
    let number = |pod: &Pod| pod.labels().get(TRY_LABEL).and_then(|number| number.parse().ok()).unwrap_or(0);
    let left = pods.iter().map(AsRef::as_ref).filter(|pod| holds(pod, uid, now));
    left.filter(|pod| !tries.iter().any(|t| t.number == number(pod)))
        .map(|pod| TrySeen {
            number: number(pod),
            mode: Mode::Full,
            job: try_name(name, number(pod)),
            state: TryState::Stopping,
            trainer_ended: false,
            over: true,
        })
        .collect()
}

/// Whether a pod may still write to a task's folder.
pub fn holds(pod: &Pod, task_uid: &str, now: Timestamp) -> bool {
    let over =
        pod.status.as_ref().and_then(|s| s.phase.as_deref()).is_some_and(|p| matches!(p, "Succeeded" | "Failed"));
    let spec = pod.spec.as_ref();
    let containers = spec.into_iter().flat_map(|s| s.containers.iter().chain(s.init_containers.iter().flatten()));
    let mut mounts = containers.flat_map(|c| c.volume_mounts.iter().flatten());
    !over && !is_lost(pod, now) && mounts.any(|mount| mount.sub_path.as_deref() == Some(task_uid))
}

fn owned(object: &impl Resource, owner: &str) -> bool {
    object.meta().owner_references.iter().flatten().any(|reference| reference.uid == owner)
}

/// Tries that were started in this process, by UID of their task.
pub type StartedTries = BTreeMap<String, Started>;

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use consilium_federation::round::SiteReason;
    use serde_json::json;

    use super::*;

    const NOW: &str = "2026-06-01T12:00:00Z";

    fn task(name: &str, round_uid: &str) -> Arc<RoundTask> {
        let task = json!({
            "apiVersion": "consilium.health/v1alpha1", "kind": "RoundTask",
            "metadata": {"name": name, "uid": "task-uid"},
            "spec": {
                "study": "research/hippocampus", "studyUID": "s", "specDigest": Digest::of(b"spec"),
                "roundUID": round_uid, "round": 3, "kind": "Train", "model": Digest::of(b"model"),
                "image": "i", "gpus": 0, "deadline": NOW,
            },
            "status": {"try": 1, "reason": "Training"},
        });
        Arc::new(serde_json::from_value(task).unwrap())
    }

    fn work() -> RoundWork {
        RoundWork {
            study: "research/hippocampus".parse().unwrap(),
            study_uid: "s".into(),
            spec_digest: Digest::of(b"spec"),
            round: 3,
            kind: TaskKind::Train,
            model: Digest::of(b"model"),
            schema: Digest::of(b"schema"),
            roster_size: 4,
            attempt: 0,
            step: None,
            roster: None,
            inputs: None,
            deadline: NOW.parse().unwrap(),
        }
    }

    fn job(number: u32, owner: &str) -> Arc<Job> {
        let job = json!({"metadata": {
            "name": format!("t-{number}"), "labels": {"consilium.health/try": number.to_string()},
            "ownerReferences": [{"apiVersion": "v1", "kind": "RoundTask", "name": "t", "uid": owner}],
        }});
        Arc::new(serde_json::from_value(job).unwrap())
    }

    /// A study that was deleted and made anew must not be stuck behind the tasks of the old one.
    #[test]
    fn names_are_those_of_the_contract_unless_taken() {
        let none: [Arc<RoundTask>; 0] = [];
        assert_eq!(task_name(&work(), "r", &none), "hippocampus-r3-train");
        assert_eq!(task_name(&work(), "r", &[task("hippocampus-r3-train", "r")]), "hippocampus-r3-train");
        let other = task_name(&work(), "r", &[task("hippocampus-r3-train", "old")]);
        assert!(other.starts_with("hippocampus-r3-train-") && other.len() <= 63, "{other}");
    }

    /// Somebody removes a Job by hand: the next try must not begin while the pod still writes to the folder.
    #[test]
    fn a_pod_whose_job_is_gone_is_waited_for() {
        let now: Timestamp = NOW.parse().unwrap();
        let pod = |phase: &str, folder: &str| {
            let mounts = json!([{"name": "work", "mountPath": "/consilium", "subPath": folder}]);
            let pod = json!({
                "metadata": {"name": "p", "labels": {"consilium.health/try": "2"}},
                "spec": {"containers": [{"name": "trainer", "volumeMounts": mounts}]}, "status": {"phase": phase},
            });
            Arc::new(serde_json::from_value::<Pod>(pod).unwrap())
        };
        let states = |pod| {
            let seen = see(&task("t", "r"), &[job(1, "task-uid")], &[pod], None, now);
            seen.tries.into_iter().map(|t| (t.number, t.state == TryState::Stopping)).collect::<Vec<_>>()
        };
        assert_eq!(states(pod("Running", "task-uid")), [(1, false), (2, true)]);
        assert_eq!(states(pod("Failed", "task-uid")), [(1, false)]);
        assert_eq!(states(pod("Running", "other")), [(1, false)]);
    }

    /// Watches lag behind each other: a Job that was just made must not be taken for one that was removed.
    #[test]
    fn a_try_that_was_just_started_is_waited_for() {
        let now: Timestamp = NOW.parse().unwrap();
        let pods: [Arc<Pod>; 0] = [];
        let started = Started { number: 2, mode: Mode::Full, at: now };
        let seen = see(&task("t", "r"), &[job(1, "task-uid"), job(7, "other")], &pods, Some(started), now);
        let numbers: Vec<_> = seen.tries.iter().map(|t| t.number).collect();
        assert_eq!((numbers, seen.last_try, seen.ended), (vec![1, 2], 1, None::<(SiteReason, String)>));
        let later = now + SignedDuration::from_secs(60);
        assert_eq!(see(&task("t", "r"), &[job(1, "task-uid")], &pods, Some(started), later).tries.len(), 1);
    }
}
