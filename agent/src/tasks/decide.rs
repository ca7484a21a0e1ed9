//! What to do about one part in one round: pure, over plain values.

use consilium_federation::assignment::ItemState;
use consilium_federation::round::SiteReason;
use consilium_federation::task::TaskKind;
use jiff::Timestamp;

use super::job::Mode;
use super::observe::{End, TrySeen, TryState};
use crate::policy::Decision;

/// Full tries that a task gets before it is given up.
pub const MAX_TRIES: usize = 3;
/// Deliver-only tries likewise.
const MAX_DELIVERIES: usize = 3;

/// Everything that the decision on one part depends on.
#[derive(Clone, Debug)]
pub struct Inputs<'a> {
    /// Train or Evaluate.
    pub kind: TaskKind,
    /// What the hub says of the item.
    pub item: ItemState,
    /// When the hub stops waiting.
    pub deadline: Timestamp,
    /// The hospital's word, as of now.
    pub decision: &'a Decision,
    /// The network has not been probed yet since the start: nothing starts and nothing is stopped for it.
    pub unprobed: bool,
    /// Its RoundTask, if it exists.
    pub task: Option<&'a TaskSeen>,
    /// The result is on the agent's volume.
    pub has_result: bool,
    /// Why the task port refused the result for good.
    pub rejected: Option<&'a str>,
    /// The time.
    pub now: Timestamp,
}

/// A RoundTask and its tries.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TaskSeen {
    /// It is being removed.
    pub deleting: bool,
    /// The newest try that its status knows; Jobs may have been removed since.
    pub last_try: u32,
    /// The tries that are seen, by number.
    pub tries: Vec<TrySeen>,
    /// The final reason and message in its status, if it has ended before.
    pub ended: Option<(SiteReason, String)>,
}

/// What to do, and what to say.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// In this order.
    pub acts: Vec<Act>,
    /// Where the part is; `None`: it is forgotten, which tells the hub that a cancellation is done.
    pub verdict: Option<Verdict>,
}

/// Where a part is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// For the hub and the status.
    pub reason: SiteReason,
    /// For this hospital's people alone; it may name files.
    pub message: Option<String>,
}

/// One thing to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Act {
    /// Make the RoundTask.
    CreateTask,
    /// Make the Job of a try.
    StartTry {
        /// Its number.
        number: u32,
        /// What it does.
        mode: Mode,
    },
    /// Remove a Job that still runs.
    StopTry {
        /// Its name.
        job: String,
    },
    /// Remove the RoundTask; its Jobs, pods and Secrets go with it.
    DeleteTask,
    /// Drop what is stored for it.
    Forget,
}

/// Decides.
pub fn decide(inputs: &Inputs<'_>) -> Plan {
    let overdue = inputs.now >= inputs.deadline;
    if inputs.item == ItemState::Cancelled || (inputs.item == ItemState::Orphaned && overdue) {
        return forget(inputs.task);
    }
    match inputs.decision {
        Decision::Refused { .. } if held_for_probe(inputs) => hold(inputs),
        // A roster that is replaced costs no training: the update waits for it, and nothing new starts.
        Decision::Refused { reason: SiteReason::AwaitingRoster, message } => {
            plan(vec![], SiteReason::AwaitingRoster, Some(message.clone()))
        }
        Decision::Refused { reason, message } => plan(stop_all(inputs.task), *reason, Some(message.clone())),
        _ if inputs.has_result => plan(vec![], done(inputs.kind), None),
        Decision::SpecNeeded => hold(inputs),
        Decision::Allowed => allowed(inputs, overdue),
    }
}

/// Removes everything. Forgetting comes last: the hub takes silence as its acknowledgement.
fn forget(task: Option<&TaskSeen>) -> Plan {
    match task {
        Some(task) if !task.deleting => Plan { acts: vec![Act::DeleteTask, Act::Forget], verdict: None },
        _ => Plan { acts: vec![Act::Forget], verdict: None },
    }
}

fn done(kind: TaskKind) -> SiteReason {
    if kind == TaskKind::Evaluate { SiteReason::Evaluated } else { SiteReason::Ready }
}

/// A task that ran before the agent restarted goes on until the probe has spoken.
fn held_for_probe(inputs: &Inputs<'_>) -> bool {
    let network = Some(SiteReason::NetworkPolicyNotEnforced) == refusal(inputs.decision);
    inputs.unprobed && network
}

fn refusal(decision: &Decision) -> Option<SiteReason> {
    match decision {
        Decision::Refused { reason, .. } => Some(*reason),
        _ => None,
    }
}

/// Says where the part is without starting or stopping anything.
fn hold(inputs: &Inputs<'_>) -> Plan {
    if inputs.has_result {
        return plan(vec![], done(inputs.kind), None);
    }
    if let Some((reason, message)) = inputs.task.and_then(|t| t.ended.clone()) {
        return plan(vec![], reason, Some(message));
    }
    let running = inputs.task.and_then(newest).is_some_and(|t| t.state == TryState::Running);
    let reason = if running { SiteReason::Training } else { SiteReason::Offered };
    plan(vec![], reason, None)
}

fn allowed(inputs: &Inputs<'_>, overdue: bool) -> Plan {
    if let Some(why) = inputs.rejected {
        return plan(stop_all(inputs.task), SiteReason::Rejected, Some(why.to_owned()));
    }
    if let Some((reason, message)) = inputs.task.and_then(|t| t.ended.clone()) {
        return plan(stop_all(inputs.task), reason, Some(message));
    }
    if overdue {
        return plan(stop_all(inputs.task), SiteReason::Failed, Some(too_late(inputs.task)));
    }
    match inputs.task {
        None => plan(vec![Act::CreateTask], SiteReason::Queued, None),
        Some(task) if task.deleting => plan(vec![], SiteReason::Queued, None),
        Some(task) => next(task),
    }
}

fn too_late(task: Option<&TaskSeen>) -> String {
    let last = task.and_then(newest).map(|t| &t.state);
    let why = match last {
        None => "no try had started".to_owned(),
        Some(TryState::Waiting(Some(obstacle))) => format!("the last try waited: {obstacle}"),
        Some(TryState::Waiting(None) | TryState::Stopping) => "the last try had not started".to_owned(),
        Some(TryState::Running) => "the last try still ran".to_owned(),
        Some(TryState::Ended(end)) => text(end),
    };
    format!("the round's deadline passed; {why}")
}

fn next(task: &TaskSeen) -> Plan {
    let start = |mode| Act::StartTry { number: newest_number(task) + 1, mode };
    let Some(last) = newest(task) else {
        return plan(vec![start(Mode::Full)], SiteReason::Queued, None);
    };
    match &last.state {
        TryState::Stopping => plan(vec![], SiteReason::Queued, None),
        // A Job that was removed leaves a gap: the status knows a newer try than the one that is seen.
        TryState::Ended(_) if task.last_try > last.number => plan(vec![start(Mode::Full)], SiteReason::Queued, None),
        TryState::Waiting(obstacle) => plan(vec![], SiteReason::Queued, obstacle.clone()),
        TryState::Running => plan(vec![], SiteReason::Training, None),
        TryState::Ended(End::Invalid(message)) => plan(vec![], SiteReason::InvalidData, Some(message.clone())),
        TryState::Ended(End::Deadline) => plan(vec![], SiteReason::Failed, Some(text(&End::Deadline))),
        TryState::Ended(End::Undelivered) if ended(task, Mode::Deliver) < MAX_DELIVERIES => plan(
            vec![start(Mode::Deliver)],
            SiteReason::Training,
            Some("the result is there, its delivery is tried again".into()),
        ),
        TryState::Ended(end) if ended(task, Mode::Full) < MAX_TRIES => {
            let oom = matches!(end, End::OutOfMemory(_));
            let reason = if oom { SiteReason::OutOfMemory } else { SiteReason::Queued };
            plan(vec![start(Mode::Full)], reason, Some(format!("tried again: {}", text(end))))
        }
        TryState::Ended(end) => {
            plan(vec![], SiteReason::Failed, Some(format!("all {MAX_TRIES} tries failed; the last: {}", text(end))))
        }
    }
}

fn text(end: &End) -> String {
    match end {
        End::Invalid(message) | End::OutOfMemory(message) | End::Lost(message) | End::Failed(message) => {
            message.clone()
        }
        End::Undelivered => "the result could not be delivered".to_owned(),
        End::Complete => "its result was delivered, but the agent's volume no longer holds it".to_owned(),
        End::Deadline => "the round's deadline passed".to_owned(),
    }
}

fn newest(task: &TaskSeen) -> Option<&TrySeen> {
    task.tries.iter().max_by_key(|t| t.number)
}

fn newest_number(task: &TaskSeen) -> u32 {
    newest(task).map_or(0, |t| t.number).max(task.last_try)
}

/// Tries of this mode that have come to an end by themselves; one that the policy stopped left no Job.
fn ended(task: &TaskSeen, mode: Mode) -> usize {
    task.tries.iter().filter(|t| t.mode == mode && matches!(t.state, TryState::Ended(_))).count()
}

fn stop_all(task: Option<&TaskSeen>) -> Vec<Act> {
    let running =
        task.iter().flat_map(|t| &t.tries).filter(|t| matches!(t.state, TryState::Waiting(_) | TryState::Running));
    running.map(|t| Act::StopTry { job: t.job.clone() }).collect()
}

fn plan(acts: Vec<Act>, reason: SiteReason, message: Option<String>) -> Plan {
    Plan { acts, verdict: Some(Verdict { reason, message }) }
}

#[cfg(test)]
#[path = "decide_tests.rs"]
mod tests;
