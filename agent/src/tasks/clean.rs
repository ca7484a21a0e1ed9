//! The folders of tasks that are gone: Jobs remove them from the work claim. Models, checkpoints and segmentations of
//! patients lie there, and not every task comes to the delivery that clears them.
//!
//! Which folders there are is kept on the agent's volume, so neither a restart nor a RoundTask that somebody deleted by
//! hand leaves one behind. Each claim has a Job of its own, so a claim that is gone holds up no other; folders that could
//! not be removed are tried again apart from the others, in ever smaller groups; and a Job that its queue does not let in
//! is made anew without the queue.

use std::collections::{BTreeMap, BTreeSet};

use consilium_federation::Digest;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::batch::v1::{Job, JobSpec};
use k8s_openapi::api::core::v1::{Container, PodSpec, PodTemplateSpec};
use kube::ResourceExt as _;
use kube::api::ObjectMeta;
use serde::{Deserialize, Serialize};

use super::job::{TASK_LABEL, folders};
use super::pod::{self, labels, mount};
use crate::state::{State, StateError};

/// What stands for a task's name on the Jobs, and how their names begin.
pub const CLEAN: &str = "consilium-clean";
const QUEUE: &str = "kueue.x-k8s.io/queue-name";
const KEY: &str = "tasks/folders/";
/// Where the claim is mounted.
const CLAIM: &str = "/work";
/// Tasks that one Job cleans up after, at most; half as many with each try that failed.
const AT_ONCE: usize = 50;
/// Restarts of its container, with growing pauses, until the Job is made anew.
const RESTARTS: i32 = 6;
/// So long a queue is waited for.
const QUEUED: SignedDuration = SignedDuration::from_mins(10);
/// Between two tries of a folder that could not be removed: this, doubled with each, up to an hour.
const PAUSE: SignedDuration = SignedDuration::from_mins(1);
const LONGEST_PAUSE: SignedDuration = SignedDuration::from_hours(1);
/// A folder that is there so long after its task is told of, where the hospital names no time.
pub const OVERDUE: SignedDuration = SignedDuration::from_hours(24);

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

/// What has become of a folder so far.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct History {
    /// Since when nobody needs it.
    pub since: Option<Timestamp>,
    /// Tries to remove it that failed.
    pub tries: u32,
    /// When the last one did.
    pub last: Option<Timestamp>,
    /// Its queue let no Job in.
    pub without_queue: bool,
}

impl History {
    /// After a try that failed.
    fn failed(&self, now: Timestamp) -> Self {
        Self { tries: self.tries.saturating_add(1), last: Some(now), ..self.clone() }
    }

    fn is_due(&self, now: Timestamp) -> bool {
        let pause = PAUSE.checked_mul(1 << self.tries.min(6)).unwrap_or(LONGEST_PAUSE).min(LONGEST_PAUSE);
        self.last.is_none_or(|last| now.duration_since(last) >= pause)
    }
}

/// The folders that are known.
pub type Known = BTreeMap<Folder, History>;

/// Reads them.
pub fn known(state: &State) -> Result<Known, StateError> {
    let of = |(name, bytes): (String, Vec<u8>)| {
        let (task_uid, claim) = name.strip_prefix(KEY)?.split_once('/')?;
        // What an older agent has written is empty.
        let history = serde_json::from_slice(&bytes).unwrap_or_default();
        Some((Folder { task_uid: task_uid.to_owned(), claim: claim.to_owned() }, history))
    };
    Ok(state.blobs(KEY)?.into_iter().filter_map(of).collect())
}

/// Writes a folder down, before anything can lie in it, and what became of it.
pub fn remember(state: &State, folder: &Folder, history: &History) -> Result<(), StateError> {
    let bytes = serde_json::to_vec(history).map_err(StateError::damaged(folder.key()))?;
    state.put_blob(&folder.key(), &bytes)
}

/// Forgets a folder that is gone.
pub fn forget(state: &State, folder: &Folder) -> Result<(), StateError> {
    state.delete_blob(&folder.key())
}

/// A Job as it is seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CleanSeen {
    /// Its name.
    pub name: String,
    /// What it removes, all on one claim.
    pub folders: Vec<Folder>,
    /// Whether it has ended, and well.
    pub end: Option<bool>,
    /// It is being removed.
    pub deleting: bool,
    /// It is in a queue that has not let it in, since when.
    pub queued: Option<Timestamp>,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Act {
    /// Make the Job for these, all of one claim.
    Start {
        /// Which.
        folders: Vec<Folder>,
        /// Past the queue.
        without_queue: bool,
    },
    /// Forget these, which are gone, and remove the Job.
    Finish {
        /// The Job.
        job: String,
        /// Which.
        folders: Vec<Folder>,
    },
    /// Remove the Job, which came to nothing, and note that; another one follows.
    Again {
        /// The Job.
        job: String,
        /// What its folders have been through.
        noted: Vec<(Folder, History)>,
    },
}

/// Decides. `in_use`: UIDs of tasks that exist or whose pods may still write.
pub fn decide(known: &Known, in_use: impl Fn(&str) -> bool, jobs: &[CleanSeen], now: Timestamp) -> Vec<Act> {
    let mut acts: Vec<Act> = jobs.iter().filter_map(|job| of_job(known, job, now)).collect();
    let busy: BTreeSet<&str> = jobs.iter().flat_map(|job| &job.folders).map(|folder| folder.claim.as_str()).collect();
    let mut due: BTreeMap<&str, Vec<(&Folder, &History)>> = BTreeMap::new();
    for (folder, history) in known {
        if !busy.contains(folder.claim.as_str()) && !in_use(&folder.task_uid) && history.is_due(now) {
            due.entry(&folder.claim).or_default().push((folder, history));
        }
    }
    acts.extend(due.into_values().filter_map(|of_claim| start(&of_claim)));
    acts
}

/// Those that failed least, and none beside one that failed more often.
fn start(due: &[(&Folder, &History)]) -> Option<Act> {
    let tries = due.iter().map(|(_, history)| history.tries).min()?;
    let room = (AT_ONCE >> tries.min(6)).max(1);
    let batch: Vec<_> = due.iter().filter(|(_, history)| history.tries == tries).take(room).collect();
    Some(Act::Start {
        without_queue: batch.iter().any(|(_, history)| history.without_queue),
        folders: batch.iter().map(|(folder, _)| (*folder).clone()).collect(),
    })
}

fn of_job(known: &Known, job: &CleanSeen, now: Timestamp) -> Option<Act> {
    let noted = |after: &dyn Fn(&History) -> History| {
        let one = |folder: &Folder| Some((folder.clone(), after(known.get(folder)?)));
        Act::Again { job: job.name.clone(), noted: job.folders.iter().filter_map(one).collect() }
    };
    // A moment ago: the watch still shows the Job that is being removed.
    let just =
        |folder: &Folder| known.get(folder).and_then(|h| h.last).is_some_and(|last| now.duration_since(last) < PAUSE);
    match job.end {
        _ if job.deleting => None,
        Some(false) if job.folders.iter().any(just) => None,
        Some(true) => Some(Act::Finish { job: job.name.clone(), folders: job.folders.clone() }),
        Some(false) => Some(noted(&|history| history.failed(now))),
        None if job.queued.is_some_and(|since| now.duration_since(since) >= QUEUED) => {
            Some(noted(&|history| History { without_queue: true, ..history.clone() }))
        }
        None => None,
    }
}

/// Folders that nobody has needed for longer than this, in words; none if there is none.
pub fn overdue(known: &Known, bound: SignedDuration, now: Timestamp) -> Option<(usize, String)> {
    let late =
        |(_, history): &(&Folder, &History)| history.since.is_some_and(|since| now.duration_since(since) >= bound);
    let late: Vec<_> = known.iter().filter(late).collect();
    let (folder, history) = late.iter().max_by_key(|(_, history)| history.tries)?;
    let claims: BTreeSet<&str> = late.iter().map(|(folder, _)| folder.claim.as_str()).collect();
    let words = format!(
        "the folders of {} tasks, on the claims {}, are still there {bound:#} after nobody needs them; that of task {} was tried {} times",
        late.len(),
        claims.into_iter().take(5).collect::<Vec<_>>().join(", "),
        folder.task_uid,
        history.tries,
    );
    Some((late.len(), words))
}

/// Finds the Jobs among those of the task namespace.
pub fn see<J: AsRef<Job>>(jobs: &[J]) -> Vec<CleanSeen> {
    jobs.iter().map(AsRef::as_ref).filter(|job| is_clean(job)).map(see_one).collect()
}

/// Whether a Job removes folders.
pub fn is_clean(job: &Job) -> bool {
    job.labels().get(TASK_LABEL).is_some_and(|label| label == CLEAN)
}

fn see_one(job: &Job) -> CleanSeen {
    let pod = job.spec.as_ref().and_then(|s| s.template.spec.as_ref());
    let volumes = pod.and_then(|p| p.volumes.as_ref());
    let claim = volumes.and_then(|v| v.first()?.persistent_volume_claim.as_ref()).map(|c| c.claim_name.clone());
    let args = pod.and_then(|p| p.containers.first()?.args.as_ref()).into_iter().flatten();
    let task = |uid: &String| Folder { task_uid: uid.clone(), claim: claim.clone().unwrap_or_default() };
    let conditions = job.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default();
    let holds = |type_: &str| conditions.iter().any(|c| c.type_ == type_ && c.status == "True");
    let suspended = job.spec.as_ref().and_then(|s| s.suspend).unwrap_or(false);
    CleanSeen {
        name: job.name_any(),
        // Behind the options, a task's own folder and its others take turns.
        folders: args.skip(OPTIONS).step_by(folders("").len()).map(task).collect(),
        end: (holds("Complete") || holds("Failed")).then(|| holds("Complete")),
        deleting: job.metadata.deletion_timestamp.is_some(),
        queued: job.creation_timestamp().map(|at| at.0).filter(|_| suspended && job.labels().contains_key(QUEUE)),
    }
}

/// Longest that one Job may take: its claim may be gone, or its image.
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
    let of_claim: String = Digest::of(claim.as_bytes()).hex().chars().take(8).collect();
    let mut job = Job {
        metadata: ObjectMeta {
            name: Some(format!("{CLEAN}-{of_claim}")),
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
        job.labels_mut().insert(QUEUE.into(), queue.to_owned());
    }
    job
}

#[cfg(test)]
#[path = "clean_tests.rs"]
mod tests;
