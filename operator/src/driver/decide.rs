//! How a round goes on from what is known. Pure: the round machine of `federation` with facts folded in.

use std::time::Duration;

use consilium_crds::TrainingRoundSpec;
use consilium_federation::SiteName;
use consilium_federation::report::{Report, RoundReport};
use consilium_federation::round::{
    Event, Outcome, ProtocolStep, RoundPolicy, RoundState, SiteFact, SiteReason, Summed, step, wake_at,
};
use consilium_federation::task::TaskKind;
use jiff::Timestamp;

/// Everything that was read for one turn.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// What each hospital last said of this round.
    pub reports: Vec<(SiteName, RoundReport)>,
    /// Hospitals whose message or upload for the open step is durable.
    pub done: Vec<SiteName>,
    /// Why the open attempt cannot go on at the hub, if it cannot.
    pub broken: Option<String>,
    /// How the sum of an attempt ended.
    pub sum: Option<SumOutcome>,
    /// Why the round is to end now, if it is.
    pub cancelled: Option<String>,
}

/// How the sum of an attempt ended.
#[derive(Clone, Debug, PartialEq)]
pub struct SumOutcome {
    /// Which attempt.
    pub attempt: u32,
    /// What it gave, or why it gave nothing.
    pub result: Result<Summed, String>,
}

/// The parts of a hospital's report that speak of this round.
pub fn of_round<'a>(report: &'a Report, uid: &'a str) -> impl Iterator<Item = &'a RoundReport> {
    report.rounds.iter().filter(move |r| r.uid == uid)
}

/// Whether what a hospital last said counts in this state: one that fell out of an attempt is back when it has spoken
/// since and is connected, not by what it said before.
pub fn counts(state: &RoundState, site: &SiteName, heard: Timestamp, connected: bool) -> bool {
    let missed = state.site(site).is_some_and(|s| s.reason == SiteReason::Missed);
    !missed || connected && state.missed_at.is_none_or(|at| heard > at)
}

/// A round that begins now.
pub fn begin(spec: &TrainingRoundSpec, now: Timestamp) -> RoundState {
    RoundState::new(spec.participants.iter().cloned(), now, spec.deadline)
}

/// The open step, and the members whose part in it is worth looking for.
pub fn awaited(state: &RoundState) -> Option<(ProtocolStep, Vec<SiteName>)> {
    let step = state.protocol_step.filter(|&step| step != ProtocolStep::Sum)?;
    let waiting = state.sites.iter().filter(|s| s.member && !s.done).map(|s| s.site.clone());
    Some((step, waiting.collect()))
}

/// The last attempt whose uploads nobody needs any more, though the round goes on: it came to nothing. 0 when there is none.
pub fn spent(state: &RoundState) -> u32 {
    if state.protocol_step.is_some() { state.attempt.saturating_sub(1) } else { state.attempt }
}

/// The state after everything that is known. The same facts twice give the same state.
pub fn advance(state: RoundState, facts: &Facts, now: Timestamp, policy: &RoundPolicy) -> RoundState {
    let attempt = state.attempt;
    let mut events = Vec::new();
    if let Some(step) = state.protocol_step {
        let done = |site: &SiteName| Event::StepDone { site: site.clone(), attempt, step };
        events.extend(facts.done.iter().map(done));
    }
    events.extend(facts.reports.iter().flat_map(|(site, report)| said(site, report)));
    events.extend(facts.broken.iter().map(|why| Event::AttemptFailed { attempt, message: why.clone() }));
    events.extend(facts.sum.iter().map(|sum| match &sum.result {
        Ok(result) => Event::Aggregated { attempt: sum.attempt, sum: result.clone() },
        Err(message) => Event::AggregationFailed { attempt: sum.attempt, message: message.clone() },
    }));
    // After the sum: one that stands cannot be had again.
    events.extend(facts.cancelled.iter().map(|_| Event::Cancel));
    events.push(Event::Tick);
    // Rejected means: says nothing new about where the round is.
    let mut state = events.into_iter().fold(state, |state, event| step(&state, event, now, policy).unwrap_or(state));
    if state.outcome == Some(Outcome::Cancelled) && state.message.is_none() {
        state.message = facts.cancelled.clone();
    }
    state
}

fn said(site: &SiteName, report: &RoundReport) -> Vec<Event> {
    let fact = SiteFact { reason: report.reason, message: report.message.clone() };
    let mut events = vec![Event::Site { site: site.clone(), kind: report.kind, fact }];
    if let Some(evaluation) = report.evaluation.as_ref().filter(|_| report.kind == TaskKind::Evaluate) {
        events.push(Event::Voted {
            site: site.clone(),
            vote: evaluation.vote,
            sums: evaluation.sums,
            published: evaluation.published.clone(),
        });
    }
    events
}

/// Whether a hospital that fell out of an attempt may come back.
pub fn awaits_return(state: &RoundState) -> bool {
    state.protocol_step.is_none() && state.sites.iter().any(|s| s.reason == SiteReason::Missed)
}

/// How long until something happens by itself; `None` when only an event can move the round.
pub fn wake_in(state: &RoundState, now: Timestamp) -> Option<Duration> {
    let first = wake_at(state)?;
    // A grace that is over while a slow hospital is waited for leaves the deadline as the next point.
    let next = [first, state.deadline].into_iter().find(|&at| at > now)?;
    Duration::try_from(next.duration_since(now)).ok()
}
