//! What became of a try: pure, from its Job and its pods.

use consilium_federation::task::{EXIT_INVALID, Failure};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{ContainerState, ContainerStateTerminated, ContainerStatus, Pod};
use kube::ResourceExt;

use super::job::{DELIVER, EVALUATOR, FETCH, MODE_LABEL, Mode, TRAINER, TRY_LABEL};
use crate::courier::{EXIT_DELIVERED, EXIT_NO_RESULT};

/// A pod that is still there this long after it was to end is on a node that does not answer.
const LOST_AFTER: SignedDuration = SignedDuration::from_secs(180);
/// Longest message that is kept.
const MESSAGE: usize = 600;

/// One try as it is seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrySeen {
    /// Its number.
    pub number: u32,
    /// What it does.
    pub mode: Mode,
    /// Name of its Job.
    pub job: String,
    /// Where it is.
    pub state: TryState,
    /// The trainer's container has ended, or the try has none: no result will come that is not there yet.
    pub trainer_ended: bool,
    /// Its Job has come to an end or is being removed: no new pod will come of it.
    pub over: bool,
}

/// Where a try is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TryState {
    /// Its Job is being removed.
    Stopping,
    /// No container of the study runs yet; why, if something is in the way.
    Waiting(Option<String>),
    /// The pod works.
    Running,
    /// It is over.
    Ended(End),
}

/// How a try ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// Exit 42: bad data or config, in the trainer's words.
    Invalid(String),
    /// Out of memory.
    OutOfMemory(String),
    /// Its pod handed the result over.
    Complete,
    /// The result is on the volume but was not delivered.
    Undelivered,
    /// Nothing failed, and there is no whole result on the volume.
    NoResult,
    /// The deadline passed.
    Deadline,
    /// The pod or its node is gone.
    Lost(String),
    /// Anything else.
    Failed(String),
}

/// Reads one try.
pub fn observe(job: &Job, pods: &[&Pod], now: Timestamp) -> TrySeen {
    let label = |name: &str| job.labels().get(name).map(String::as_str).unwrap_or_default();
    let mode = if label(MODE_LABEL) == Mode::Deliver.as_str() { Mode::Deliver } else { Mode::Full };
    let pod = pods.iter().max_by_key(|p| p.creation_timestamp()).copied();
    let removed = job.metadata.deletion_timestamp.is_some();
    // A Job that is being removed waits for its pod; one on a node that does not answer is not waited for.
    let stopping = removed && !pod.is_some_and(|p| is_lost(p, now));
    let state = if stopping { TryState::Stopping } else { state(job, pod, mode, now) };
    let trainer_over = pod.is_some_and(|p| ended(p, TRAINER).is_some() && ended_well_or_alone(p));
    TrySeen {
        number: label(TRY_LABEL).parse().unwrap_or(0),
        mode,
        job: job.name_any(),
        trainer_ended: mode == Mode::Deliver || trainer_over || matches!(state, TryState::Ended(_)),
        over: removed || job_verdict(job).is_some(),
        state,
    }
}

/// With an evaluator behind it, a trainer that did well is not the end: the evaluator's is.
fn ended_well_or_alone(pod: &Pod) -> bool {
    let has_evaluator = pod.spec.iter().flat_map(|s| &s.containers).any(|c| c.name == EVALUATOR);
    let trainer_failed = ended(pod, TRAINER).is_some_and(|end| end.exit_code != 0);
    trainer_failed || !has_evaluator || ended(pod, EVALUATOR).is_some()
}

fn state(job: &Job, pod: Option<&Pod>, mode: Mode, now: Timestamp) -> TryState {
    let verdict = job_verdict(job);
    if matches!(verdict, Some((true, _))) {
        return TryState::Ended(End::Complete);
    }
    let Some(pod) = pod else {
        return match verdict {
            Some((false, "DeadlineExceeded")) => TryState::Ended(End::Deadline),
            Some(_) => TryState::Ended(End::Lost("its pod is gone".into())),
            None => TryState::Waiting(suspended(job).then(|| "the Job is suspended, as by a queue".into())),
        };
    };
    for name in [TRAINER, EVALUATOR] {
        if let Some(end) = ended(pod, name).filter(|end| end.exit_code == EXIT_INVALID) {
            return TryState::Ended(End::Invalid(words(end)));
        }
    }
    let phase = pod.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or("Pending");
    let over = matches!(phase, "Succeeded" | "Failed");
    match verdict {
        Some((false, "DeadlineExceeded")) => TryState::Ended(End::Deadline),
        Some(_) => TryState::Ended(end_of(pod, mode)),
        None if is_lost(pod, now) => TryState::Ended(End::Lost(lost_message(pod))),
        // The Job decides whether a disrupted pod is replaced within the try.
        None if over || phase == "Pending" => TryState::Waiting(obstacle(pod)),
        None => TryState::Running,
    }
}

/// Whether the Job is complete (true) or failed (false), and the reason.
fn job_verdict(job: &Job) -> Option<(bool, &str)> {
    let conditions = job.status.as_ref()?.conditions.as_ref()?;
    let of = |type_: &str| conditions.iter().find(|c| c.type_ == type_ && c.status == "True");
    match (of("Complete"), of("Failed")) {
        (Some(c), _) => Some((true, c.reason.as_deref().unwrap_or_default())),
        (None, Some(c)) => Some((false, c.reason.as_deref().unwrap_or_default())),
        (None, None) => None,
    }
}

/// Whether a Job has come to an end: no pod will come of it.
pub fn is_over(job: &Job) -> bool {
    job_verdict(job).is_some()
}

fn suspended(job: &Job) -> bool {
    job.spec.as_ref().and_then(|s| s.suspend).unwrap_or(false)
}

fn end_of(pod: &Pod, mode: Mode) -> End {
    let ended_with = |name: &str, code: u8| ended(pod, name).is_some_and(|end| end.exit_code == i32::from(code));
    if ended_with(FETCH, EXIT_DELIVERED) {
        return End::Complete;
    }
    if let Some(message) = out_of_memory(pod) {
        return End::OutOfMemory(message);
    }
    let did_well = |name: &str| ended(pod, name).is_none_or(|end| end.exit_code == 0);
    if mode == Mode::Deliver || (ended(pod, TRAINER).is_some() && did_well(TRAINER) && did_well(EVALUATOR)) {
        return if ended_with(DELIVER, EXIT_NO_RESULT) { End::NoResult } else { End::Undelivered };
    }
    let (statuses, status) = (statuses(pod), pod.status.as_ref());
    let failed = |status: &ContainerStatus| terminated(status).is_some_and(|t| t.exit_code != 0);
    if let Some(message) = status.filter(|s| s.reason.as_deref() == Some("Evicted")).and_then(|s| s.message.as_deref())
    {
        return End::Failed(format!("the pod was evicted: {}", cut(message)));
    }
    let blamed = [TRAINER, EVALUATOR].iter().find_map(|name| statuses.iter().find(|s| s.name == *name && failed(s)));
    let blamed = blamed.or_else(|| statuses.iter().find(|s| failed(s)));
    let reason = status.and_then(|s| s.message.as_deref().or(s.reason.as_deref()));
    match blamed.and_then(|s| terminated(s).map(|end| (s, end))) {
        Some((status, end)) => {
            End::Failed(format!("container {} ended with {}: {}", status.name, end.exit_code, words(end)))
        }
        None => End::Lost(reason.unwrap_or("its pod ended before its containers").to_owned()),
    }
}

/// The kernel's word on the pod's memory, or the container's own on a GPU's: that one exits as from any other error.
fn out_of_memory(pod: &Pod) -> Option<String> {
    let killed = |s: &&ContainerStatus| terminated(s).is_some_and(|t| t.reason.as_deref() == Some("OOMKilled"));
    if let Some(status) = statuses(pod).into_iter().find(killed) {
        return Some(format!(
            "container {} ran out of memory; raise SitePolicy spec.resources.memory or lower the study's batch size",
            status.name
        ));
    }
    [TRAINER, EVALUATOR].into_iter().find_map(|name| {
        let end = ended(pod, name).filter(|end| end.exit_code != 0 && says_out_of_memory(end))?;
        Some(format!(
            "container {name} ran out of memory ({}); lower the study's batch size, or have it ask for GPUs with more (minGPUMemory)",
            words(end)
        ))
    })
}

/// In the wordings of CUDA, of PyTorch's CPU allocator and of a `failure.json`.
fn says_out_of_memory(end: &ContainerStateTerminated) -> bool {
    let text = end.message.as_deref().unwrap_or_default().to_ascii_lowercase();
    ["out of memory", "outofmemory", "can't allocate memory"].iter().any(|wording| text.contains(wording))
}

fn statuses(pod: &Pod) -> Vec<&ContainerStatus> {
    let status = pod.status.as_ref();
    let init = status.and_then(|s| s.init_container_statuses.as_deref()).unwrap_or_default();
    let main = status.and_then(|s| s.container_statuses.as_deref()).unwrap_or_default();
    init.iter().chain(main).collect()
}

fn terminated(status: &ContainerStatus) -> Option<&ContainerStateTerminated> {
    status.state.as_ref()?.terminated.as_ref()
}

fn ended<'a>(pod: &'a Pod, name: &str) -> Option<&'a ContainerStateTerminated> {
    statuses(pod).into_iter().find(|s| s.name == name).and_then(terminated)
}

/// The pod was to end long ago: its node does not answer.
pub fn is_lost(pod: &Pod, now: Timestamp) -> bool {
    pod.metadata.deletion_timestamp.as_ref().is_some_and(|at| now.duration_since(at.0) > LOST_AFTER)
}

fn lost_message(pod: &Pod) -> String {
    let node = pod.spec.as_ref().and_then(|s| s.node_name.as_deref()).unwrap_or("unknown");
    format!("node {node} does not answer")
}

/// Why a pod does not start, if something is in the way.
pub(crate) fn obstacle(pod: &Pod) -> Option<String> {
    let status = pod.status.as_ref()?;
    let waiting = statuses(pod).into_iter().find_map(|s| {
        let ContainerState { waiting: Some(waiting), .. } = s.state.as_ref()? else { return None };
        let reason = waiting.reason.as_deref()?;
        let usual = matches!(reason, "PodInitializing" | "ContainerCreating");
        (!usual).then(|| format!("container {}: {reason}: {}", s.name, waiting.message.as_deref().unwrap_or_default()))
    });
    let unscheduled = || {
        let conditions = status.conditions.as_deref().unwrap_or_default();
        let condition = conditions.iter().find(|c| c.type_ == "PodScheduled" && c.status == "False")?;
        condition.message.clone()
    };
    waiting.or_else(unscheduled).map(|text| cut(&text))
}

/// The container's own words: a `failure.json`, or what follows the last `error: ` of its log, or the log's end.
pub(crate) fn words(end: &ContainerStateTerminated) -> String {
    let text = end.message.as_deref().unwrap_or_default().trim();
    if let Ok(failure) = serde_json::from_str::<Failure>(text) {
        return cut(&failure.message);
    }
    let lines: Vec<&str> = text.lines().collect();
    let at = lines.iter().rposition(|line| line.starts_with("error: "));
    let said = match at {
        Some(at) => lines[at..].join("\n").trim_start_matches("error: ").to_owned(),
        None => lines.last().copied().unwrap_or_default().to_owned(),
    };
    match said.is_empty() {
        true => cut(end.reason.as_deref().unwrap_or("no message")),
        false => cut(&said),
    }
}

fn cut(text: &str) -> String {
    text.chars().take(MESSAGE).collect()
}

#[cfg(test)]
#[path = "observe_tests.rs"]
mod tests;
