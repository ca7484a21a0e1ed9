//! The folders of tasks that are gone: a Job removes them from the work claim. Models, checkpoints and segmentations of
//! patients lie there, and not every task comes to the delivery that clears them.
//!
//! Which folders there are is kept on the agent's volume, so neither a restart nor a RoundTask that somebody deleted by
//! hand leaves one behind. One Job works at a time.

use std::collections::BTreeSet;

use k8s_openapi::api::batch::v1::{Job, JobSpec};
use k8s_openapi::api::core::v1::{Container, PodSpec, PodTemplateSpec};
use kube::ResourceExt as _;
use kube::api::ObjectMeta;

use super::job::{TASK_LABEL, folders};
use super::pod::{self, labels, mount};
use crate::state::{State, StateError};

/// Name of the Job, and what stands for a task's name on it.
pub const CLEAN: &str = "consilium-clean";
const KEY: &str = "tasks/folders/";
/// Where the claim is mounted.
const CLAIM: &str = "/work";
/// Tasks that one Job cleans up after, at most.
const AT_ONCE: usize = 50;
/// Restarts of its container, with growing pauses, until the Job is made anew.
const RESTARTS: i32 = 6;

/// A task that has, or had, folders on a claim.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Folder {
    /// UID of the RoundTask.
    pub task_uid: String,
    /// The work claim of that time.
    pub claim: String,
}

impl Folder {
    fn key(&self) -> String {
        format!("{KEY}{}/{}", self.task_uid, self.claim)
    }
}

/// The folders that are known.
pub fn known(state: &State) -> Result<BTreeSet<Folder>, StateError> {
    let of = |(name, _): (String, Vec<u8>)| {
        let (task_uid, claim) = name.strip_prefix(KEY)?.split_once('/')?;
        Some(Folder { task_uid: task_uid.to_owned(), claim: claim.to_owned() })
    };
    Ok(state.blobs(KEY)?.into_iter().filter_map(of).collect())
}

/// Writes a folder down, before anything can lie in it.
pub fn remember(state: &State, folder: &Folder) -> Result<(), StateError> {
    state.put_blob(&folder.key(), b"")
}

/// Forgets a folder that is gone.
pub fn forget(state: &State, folder: &Folder) -> Result<(), StateError> {
    state.delete_blob(&folder.key())
}

/// The Job as it is seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CleanSeen {
    /// What it removes.
    pub folders: Vec<Folder>,
    /// Whether it has ended, and well.
    pub end: Option<bool>,
    /// It is being removed.
    pub deleting: bool,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Act {
    /// Make the Job for these, all of one claim.
    Start(Vec<Folder>),
    /// Forget these, which are gone, and remove the Job.
    Finish(Vec<Folder>),
    /// Remove the Job, which failed; another one follows.
    Again,
}

/// Decides. `in_use`: UIDs of tasks that exist or whose pods may still write.
pub fn decide(known: &BTreeSet<Folder>, in_use: impl Fn(&str) -> bool, job: Option<&CleanSeen>) -> Option<Act> {
    if let Some(job) = job {
        return match job.end {
            _ if job.deleting => None,
            None => None,
            Some(true) => Some(Act::Finish(job.folders.clone())),
            Some(false) => Some(Act::Again),
        };
    }
    let mut due = known.iter().filter(|folder| !in_use(&folder.task_uid)).peekable();
    let claim = &due.peek()?.claim;
    Some(Act::Start(due.filter(|folder| folder.claim == *claim).take(AT_ONCE).cloned().collect()))
}

/// Finds the Job among those of the task namespace.
pub fn see<J: AsRef<Job>>(jobs: &[J]) -> Option<CleanSeen> {
    let job = jobs.iter().map(AsRef::as_ref).find(|job| job.name_any() == CLEAN)?;
    let pod = job.spec.as_ref().and_then(|s| s.template.spec.as_ref());
    let volumes = pod.and_then(|p| p.volumes.as_ref());
    let claim = volumes.and_then(|v| v.first()?.persistent_volume_claim.as_ref()).map(|c| c.claim_name.clone());
    let args = pod.and_then(|p| p.containers.first()?.args.as_ref()).into_iter().flatten();
    let task = |uid: &String| Folder { task_uid: uid.clone(), claim: claim.clone().unwrap_or_default() };
    let conditions = job.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default();
    let holds = |type_: &str| conditions.iter().any(|c| c.type_ == type_ && c.status == "True");
    Some(CleanSeen {
        // Behind the options, a task's own folder and its others take turns.
        folders: args.skip(OPTIONS).step_by(folders("").len()).map(task).collect(),
        end: (holds("Complete") || holds("Failed")).then(|| holds("Complete")),
        deleting: job.metadata.deletion_timestamp.is_some(),
    })
}

/// Longest that one Job may take: its claim may be gone, or its image, and others wait behind it.
const SECONDS: i64 = 3600;

/// Arguments before the folders.
const OPTIONS: usize = 3;

/// The Job. It mounts the whole claim, so it runs the platform's image, with no credential, and no network.
pub fn build(namespace: &str, image: &str, queue: Option<&str>, due: &[Folder]) -> Job {
    let options: [&str; OPTIONS] = ["clean", "--claim", CLAIM];
    let mut args = options.map(String::from).to_vec();
    args.extend(due.iter().flat_map(|folder| folders(&folder.task_uid)));
    let claim = due.first().map(|folder| folder.claim.as_str()).unwrap_or_default();
    let container = Container {
        volume_mounts: Some(vec![mount("work", CLAIM, false)]),
        ..pod::courier_alone("clean", image, args)
    };
    let labels = labels(&[
        ("app.kubernetes.io/name", "consilium-task"),
        ("app.kubernetes.io/managed-by", "consilium-agent"),
        (TASK_LABEL, CLEAN),
    ]);
    let mut job = Job {
        metadata: ObjectMeta {
            name: Some(CLEAN.into()),
            namespace: Some(namespace.into()),
            labels: Some(labels.clone()),
            ..ObjectMeta::default()
        },
        spec: Some(JobSpec {
            backoff_limit: Some(RESTARTS),
            active_deadline_seconds: Some(SECONDS),
            template: PodTemplateSpec {
                metadata: Some(ObjectMeta { labels: Some(labels), ..ObjectMeta::default() }),
                spec: Some(PodSpec {
                    restart_policy: Some("OnFailure".into()),
                    containers: vec![container],
                    volumes: Some(vec![pod::claim("work", claim, false)]),
                    ..pod::restricted_pod()
                }),
            },
            ..JobSpec::default()
        }),
        status: None,
    };
    if let Some(queue) = queue {
        job.labels_mut().insert("kueue.x-k8s.io/queue-name".into(), queue.to_owned());
    }
    job
}

#[cfg(test)]
#[path = "clean_tests.rs"]
mod tests;
