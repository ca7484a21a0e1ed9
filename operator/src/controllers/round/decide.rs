//! What a TrainingRound's status says of the state that its driver came to. Pure.

use consilium_crds::conditions::{Conditions, READY, STALLED, SUCCEEDED};
use consilium_crds::{TrainingRound, TrainingRoundStatus};
use consilium_federation::round::{Outcome, ProtocolStep, RoundPolicy, RoundState, RoundStep, needed};
use jiff::{SignedDuration, Timestamp};

use crate::controllers::write::Note;

/// The status for a state; `trouble` is what keeps the sum from ending.
pub fn status(
    round: &TrainingRound,
    state: RoundState,
    trouble: Option<&str>,
    policy: &RoundPolicy,
    now: Timestamp,
) -> TrainingRoundStatus {
    let known = round.status.as_ref().map_or(&[][..], |s| &s.conditions);
    let mut conditions = Conditions::from_status(known, round.metadata.generation, now);
    describe(&mut conditions, &state, trouble, policy);
    match overdue(&state, trouble, now) {
        Some((reason, why)) => conditions.set(READY, false, reason, &why).set(STALLED, true, reason, &why),
        None => conditions.set(READY, true, "Reconciling", "the round is driven by the operator").clear(STALLED),
    };
    TrainingRoundStatus {
        observed_generation: round.metadata.generation,
        contributors: state.contributor_names(),
        round: Some(state),
        conditions: conditions.into_list(),
    }
}

/// What a person should know of a step that no deadline may end: the masks can come off once and for all.
fn overdue(state: &RoundState, trouble: Option<&str>, now: Timestamp) -> Option<(&'static str, String)> {
    let attempt = state.attempt;
    match state.protocol_step.filter(|_| now >= state.deadline)? {
        ProtocolStep::Unmask => Some((
            "UnmaskOverdue",
            format!(
                "attempt {attempt} waits for shares that take its masks off, and its time is over; it can only be finished, \
                 by the hospitals that have not answered"
            ),
        )),
        ProtocolStep::Sum => {
            let why = trouble.unwrap_or("it is still under way");
            Some((
                "SumOverdue",
                format!("the sum of attempt {attempt} has not ended in its time: {why}; nothing is lost"),
            ))
        }
        _ => None,
    }
}

fn describe(conditions: &mut Conditions, state: &RoundState, trouble: Option<&str>, policy: &RoundPolicy) {
    let text = state.message.clone().unwrap_or_default();
    if state.attempt > 0 {
        let size = state.attempt_size;
        let needs = needed(state, policy);
        let message = format!("attempt {} was opened by {size} hospitals and needs {needs} of them", state.attempt);
        conditions.set("QuorumReached", true, "AttemptOpened", message);
    } else if !state.is_over() {
        let missing = format!("{} hospitals must be ready to open an attempt", policy.quorum);
        conditions.unknown("QuorumReached", "Training", missing);
    } else {
        conditions.set("QuorumReached", false, reason(state.outcome), &text);
    }
    match (state.model, state.is_over()) {
        (Some(_), _) => {
            let message = format!("the updates of {} hospitals are in the new model", state.contributors);
            conditions.set("Aggregated", true, "Summed", message)
        }
        (None, true) => conditions.set("Aggregated", false, reason(state.outcome), &text),
        (None, false) => match trouble {
            Some(why) => conditions.unknown("Aggregated", "Retrying", why),
            None => conditions.unknown("Aggregated", "Pending", "no attempt has been summed yet"),
        },
    };
    if policy.gate.is_some() {
        evaluated(conditions, state);
    }
    match state.outcome {
        Some(Outcome::Completed) => conditions.set(SUCCEEDED, true, "Completed", "a new model stands"),
        Some(outcome) => conditions.set(SUCCEEDED, false, reason(Some(outcome)), &text),
        None => conditions.unknown(SUCCEEDED, "Running", format!("step {:?}", state.step)),
    };
}

fn evaluated(conditions: &mut Conditions, state: &RoundState) {
    match &state.gate {
        Some(gate) if gate.passed => conditions.set("Evaluated", true, "GatePassed", "a release may be cut"),
        Some(gate) => conditions.set("Evaluated", true, "GateShut", gate.message.as_deref().unwrap_or("")),
        None if state.is_over() => conditions.set("Evaluated", false, reason(state.outcome), "there was no new model"),
        None => conditions.unknown("Evaluated", "Pending", "the new model has not been scored yet"),
    };
}

const fn reason(outcome: Option<Outcome>) -> &'static str {
    match outcome {
        Some(Outcome::Completed) => "Completed",
        Some(Outcome::QuorumLost) => "QuorumLost",
        Some(Outcome::AggregationFailed) => "AggregationFailed",
        Some(Outcome::SumUnusable) => "SumUnusable",
        Some(Outcome::Cancelled) => "Cancelled",
        None => "Running",
    }
}

/// The status of a round whose study's spec cannot be had: the state stays as it is.
pub fn stalled(round: &TrainingRound, why: &str, now: Timestamp) -> TrainingRoundStatus {
    let mut status = round.status.clone().unwrap_or_default();
    let mut conditions = Conditions::from_status(&status.conditions, round.metadata.generation, now);
    let message = format!("the spec {} of the study cannot be used: {why}", round.spec.spec_digest);
    conditions.set(READY, false, "SpecUnreadable", &message).set(STALLED, true, "SpecUnreadable", &message);
    status.observed_generation = round.metadata.generation;
    status.conditions = conditions.into_list();
    status
}

/// What is said of a round that someone else made.
pub const NOT_OURS: &str = "TrainingRounds are made by the operator alone, and this one was not: no hospital is offered it; \
                            delete it, and make a FederatedStudy instead";

/// The status of a round that the operator did not make.
pub fn not_ours(round: &TrainingRound, now: Timestamp) -> TrainingRoundStatus {
    let mut status = round.status.clone().unwrap_or_default();
    let mut conditions = Conditions::from_status(&status.conditions, round.metadata.generation, now);
    conditions.set(READY, false, "NotMadeByOperator", NOT_OURS).set(STALLED, true, "NotMadeByOperator", NOT_OURS);
    status.observed_generation = round.metadata.generation;
    status.conditions = conditions.into_list();
    status
}

/// A stage of the round that has ended, and how long it took.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ended {
    /// Which.
    pub step: RoundStep,
    /// For how long.
    pub took: SignedDuration,
}

/// What people should hear of the way from one state to the next, and the stage that ended.
pub fn transition(before: Option<&RoundState>, after: &RoundState, now: Timestamp) -> (Vec<Note>, Option<Ended>) {
    let mut notes = Vec::new();
    let Some(before) = before else {
        notes.push(Note::normal("Offered", format!("the round is offered to {} hospitals", after.sites.len())));
        return (notes, None);
    };
    if after.attempt > before.attempt {
        let names: Vec<_> = after.sites.iter().filter(|s| s.member).map(|s| s.site.as_str()).collect();
        let message = format!("attempt {} opened by {}", after.attempt, names.join(", "));
        notes.push(Note::normal("AttemptOpened", message));
    }
    for site in after.sites.iter().filter(|s| s.dropped.is_some()) {
        let known =
            before.site(&site.site).is_some_and(|b| b.dropped == site.dropped && before.attempt == after.attempt);
        if let (false, Some(step)) = (known, site.dropped) {
            let message = format!("{} fell out of attempt {} at step {step:?}", site.site, after.attempt);
            notes.push(Note::warning("DroppedOut", message));
        }
    }
    if before.step == RoundStep::Aggregating && after.step == RoundStep::Training {
        let message = format!("attempt {} did not come through; hospitals keep their updates", before.attempt);
        notes.push(Note::warning("AttemptBurned", message));
    }
    if before.model.is_none() && after.model.is_some() {
        notes.push(Note::normal("Aggregated", format!("summed the updates of {} hospitals", after.contributors)));
    }
    if let (None, Some(gate)) = (&before.gate, &after.gate) {
        notes.push(match &gate.message {
            Some(why) => Note::normal("GateShut", why.clone()),
            None => Note::normal("GatePassed", "the model may become a release"),
        });
    }
    match after.outcome.filter(|_| before.outcome.is_none()) {
        Some(Outcome::Completed) => notes.push(Note::normal("Completed", "a new model stands")),
        Some(outcome) => {
            let text = after.message.clone().unwrap_or_default();
            notes.push(Note::warning(reason(Some(outcome)), text));
        }
        None => {}
    }
    let ended = (before.step != after.step).then(|| {
        let began = before.step_since.unwrap_or(before.started_at);
        Ended { step: before.step, took: now.duration_since(began).max(SignedDuration::ZERO) }
    });
    (notes, ended)
}
