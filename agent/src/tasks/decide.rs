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
/// Why a task ends that has come to no other end.
const TIME_OVER: &str = "its time is over: the round's deadline, or spec.limits.taskDuration of the SitePolicy";
/// Deliver-only tries likewise.
const MAX_DELIVERIES: usize = 3;

/// Everything that the decision on one part depends on.
#[derive(Clone, Debug)]
pub struct Inputs<'a> {
    /// Train or Evaluate.
    pub kind: TaskKind,
    /// What the hub says of the item.
    pub item: ItemState,
    /// When its time is over: the hub stops waiting, or the hospital lets no task live longer.
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
    /// The tries of this round's tasks of another kind, which the hub no longer asks for.
    pub others: &'a [TrySeen],
    /// Why the hospital's API server has just refused what was to be made; it is not asked again yet.
    pub refused: Option<&'a str>,
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

impl Plan {
    /// The hospital's API server refuses what was to be made: that is a word of the hospital, as its policy is.
    pub fn refused(mut self, why: &str) -> Self {
        self.acts.retain(|act| !act.makes());
        self.verdict = Some(Verdict { reason: SiteReason::DeniedByPolicy, message: Some(why.to_owned()) });
        self
    }

    /// Whether an object is made.
    pub fn makes(&self) -> bool {
        self.acts.iter().any(Act::makes)
    }
}

impl Act {
    fn makes(&self) -> bool {
        matches!(self, Act::CreateTask | Act::StartTry { .. })
    }
}

/// Decides. Whatever becomes of this part, the round's tasks of another kind are stopped: their results come too late,
/// and they hold what this one waits for.
pub fn decide(inputs: &Inputs<'_>) -> Plan {
    let mut plan = of_this_kind(inputs);
    plan.acts.splice(0..0, stop_all(inputs.others));
    match inputs.refused {
        Some(why) if plan.makes() => plan.refused(why),
        _ => plan,
    }
}

fn of_this_kind(inputs: &Inputs<'_>) -> Plan {
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
        Decision::Refused { reason, message } => plan(stop(inputs.task), *reason, Some(message.clone())),
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
        return plan(stop(inputs.task), SiteReason::Rejected, Some(why.to_owned()));
    }
    if let Some((reason, message)) = inputs.task.and_then(|t| t.ended.clone()) {
        return plan(stop(inputs.task), reason, Some(message));
    }
    if overdue {
        return plan(stop(inputs.task), SiteReason::Failed, Some(too_late(inputs)));
    }
    match inputs.task {
        None => plan(vec![Act::CreateTask], SiteReason::Queued, None),
        Some(task) if task.deleting => plan(vec![], SiteReason::Queued, None),
        Some(task) => next(task),
    }
}

fn too_late(inputs: &Inputs<'_>) -> String {
    let last = inputs.task.and_then(newest).map(|t| &t.state);
    let why = match last {
        None if inputs.refused.is_some() => inputs.refused.unwrap_or_default().to_owned(),
        None => "no try had started".to_owned(),
        Some(TryState::Waiting(Some(obstacle))) => format!("the last try waited: {obstacle}"),
        Some(TryState::Waiting(None) | TryState::Stopping) => "the last try had not started".to_owned(),
        Some(TryState::Running) => "the last try still ran".to_owned(),
        Some(TryState::Ended(end)) => text(end),
    };
    format!("{TIME_OVER}; {why}")
}

fn next(task: &TaskSeen) -> Plan {
    let Some(last) = newest(task) else {
        return if task.last_try == 0 { begin(task) } else { look(task) };
    };
    match &last.state {
        TryState::Stopping => plan(vec![], SiteReason::Queued, None),
        // A Job that was removed leaves a gap: the status knows a newer try than the one that is seen.
        TryState::Ended(_) if task.last_try > last.number => look(task),
        TryState::Waiting(obstacle) => plan(vec![], SiteReason::Queued, obstacle.clone()),
        TryState::Running => plan(vec![], SiteReason::Training, None),
        TryState::Ended(End::Invalid(message)) => plan(vec![], SiteReason::InvalidData, Some(message.clone())),
        TryState::Ended(End::Deadline) => plan(vec![], SiteReason::Failed, Some(text(&End::Deadline))),
        TryState::Ended(end) => match (last.mode, end) {
            (Mode::Full, End::Undelivered | End::Lost(_)) => deliver(task, end),
            (Mode::Full, _) | (Mode::Deliver, End::NoResult | End::Complete) => again(task, end),
            (Mode::Deliver, _) => deliver(task, end),
        },
    }
}

fn begin(task: &TaskSeen) -> Plan {
    plan(start(task, Mode::Full), SiteReason::Queued, None)
}

/// A try of which nothing is seen any more may have finished: its result is looked for before it is made again.
fn look(task: &TaskSeen) -> Plan {
    let why = "what the last try left is looked for".to_owned();
    plan(start(task, Mode::Deliver), SiteReason::Queued, Some(why))
}

/// A result that is there is delivered and never made again; one that may be there is looked for.
fn deliver(task: &TaskSeen, end: &End) -> Plan {
    let since = newest_of(task, Mode::Full).map_or(0, |t| t.number);
    let failed = |t: &&TrySeen| t.mode == Mode::Deliver && t.number > since && matches!(t.state, TryState::Ended(_));
    if task.tries.iter().filter(failed).count() >= MAX_DELIVERIES {
        let why =
            format!("the result is on the work claim, and {MAX_DELIVERIES} pods failed to deliver it; the last: ");
        return plan(vec![], SiteReason::Failed, Some(why + &text(end)));
    }
    let (reason, why) = match end {
        End::Lost(what) => (SiteReason::Queued, format!("{what}; what the try left is looked for")),
        _ => (SiteReason::Training, "the result is there, its delivery is tried again".to_owned()),
    };
    plan(start(task, Mode::Deliver), reason, Some(why))
}

/// There is no result: it is made, from the checkpoint.
fn again(task: &TaskSeen, end: &End) -> Plan {
    // What a look for a result found says less than why there was none.
    let cause = match newest_of(task, Mode::Full).map(|t| &t.state) {
        Some(TryState::Ended(cause)) if *end == End::NoResult => cause,
        _ => end,
    };
    if ended(task, Mode::Full) >= MAX_TRIES {
        let why = format!("all {MAX_TRIES} tries failed; the last: {}", text(cause));
        return plan(vec![], SiteReason::Failed, Some(why));
    }
    let oom = matches!(end, End::OutOfMemory(_));
    let reason = if oom { SiteReason::OutOfMemory } else { SiteReason::Queued };
    plan(start(task, Mode::Full), reason, Some(format!("tried again: {}", text(cause))))
}

/// Starts the next try. What is left of an earlier one, as on a node that does not answer, must not come back beside it.
fn start(task: &TaskSeen, mode: Mode) -> Vec<Act> {
    let mut acts = stop_all(&task.tries);
    acts.push(Act::StartTry { number: newest_number(task) + 1, mode });
    acts
}

fn text(end: &End) -> String {
    match end {
        End::Invalid(message) | End::OutOfMemory(message) | End::Lost(message) | End::Failed(message) => {
            message.clone()
        }
        End::Undelivered => "the result could not be delivered; see the log of the container deliver".to_owned(),
        End::NoResult => "it ended well without a complete out/MANIFEST".to_owned(),
        End::Complete => "its result was delivered, but the agent's volume no longer holds it".to_owned(),
        End::Deadline => TIME_OVER.to_owned(),
    }
}

fn newest(task: &TaskSeen) -> Option<&TrySeen> {
    task.tries.iter().max_by_key(|t| t.number)
}

fn newest_of(task: &TaskSeen, mode: Mode) -> Option<&TrySeen> {
    task.tries.iter().filter(|t| t.mode == mode).max_by_key(|t| t.number)
}

fn newest_number(task: &TaskSeen) -> u32 {
    newest(task).map_or(0, |t| t.number).max(task.last_try)
}

/// Tries of this mode that have come to an end by themselves; one that was stopped left no Job.
fn ended(task: &TaskSeen, mode: Mode) -> usize {
    task.tries.iter().filter(|t| t.mode == mode && matches!(t.state, TryState::Ended(_))).count()
}

fn stop(task: Option<&TaskSeen>) -> Vec<Act> {
    stop_all(task.map(|t| t.tries.as_slice()).unwrap_or_default())
}

/// Stops what runs, and what would run again by itself: the Job of a lost pod makes a new one.
fn stop_all(tries: &[TrySeen]) -> Vec<Act> {
    let runs = |t: &&TrySeen| match t.state {
        TryState::Waiting(_) | TryState::Running => true,
        TryState::Ended(End::Lost(_)) => !t.over,
        TryState::Stopping | TryState::Ended(_) => false,
    };
    tries.iter().filter(runs).map(|t| Act::StopTry { job: t.job.clone() }).collect()
}

fn plan(acts: Vec<Act>, reason: SiteReason, message: Option<String>) -> Plan {
    Plan { acts, verdict: Some(Verdict { reason, message }) }
}

#[cfg(test)]
#[path = "decide_tests.rs"]
mod tests;
