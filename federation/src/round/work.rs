//! What is to be done in a state: derived from it, so that a hub killed in between finds it again.

use jiff::Timestamp;

use super::state::{ProtocolStep, RoundState, RoundStep};
use crate::ids::SiteName;
use crate::task::TaskKind;

/// What the hub itself has to do in a state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HubWork {
    /// Sum the uploads of these hospitals.
    Sum {
        /// Of this attempt.
        attempt: u32,
        /// Train: the sum makes the new model. Evaluate: it is the figure for the gate.
        kind: TaskKind,
        /// Whose uploads.
        contributors: Vec<SiteName>,
    },
}

/// The hub's work in this state, if any. Idempotent, keyed by the attempt.
pub fn hub_work(state: &RoundState) -> Option<HubWork> {
    let kind = if state.step == RoundStep::Evaluating { TaskKind::Evaluate } else { TaskKind::Train };
    let contributors = || state.in_attempt(ProtocolStep::Agree);
    let summing = state.protocol_step == Some(ProtocolStep::Sum);
    summing.then(|| HubWork::Sum { attempt: state.attempt, kind, contributors: contributors() })
}

/// What one hospital is asked for in a state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SiteWork {
    /// Train and keep the update.
    Train,
    /// Do this step of the open attempt over updates.
    Attempt(u32, ProtocolStep),
    /// Score the new model.
    Evaluate,
    /// Do this step of the open attempt over the evaluation.
    EvaluationAttempt(u32, ProtocolStep),
    /// Nothing for now, but the round goes on: keep what there is.
    Wait,
    /// The round is over: stop and clean up.
    Stop,
}

/// This hospital's work in this state; `None` when it takes no part.
pub fn site_work(state: &RoundState, site: &SiteName) -> Option<SiteWork> {
    let entry = state.site(site)?;
    // One whose people or policy said no in this step is still asked: it may be back before the others are done, and a
    // hospital that is asked for nothing forgets the secrets of the attempt.
    let away = |step| entry.dropped == Some(step) && entry.reason.is_a_word();
    let asked = |step| step != ProtocolStep::Sum && (entry.member || away(step));
    Some(match (state.step, state.protocol_step) {
        (RoundStep::Training, _) => SiteWork::Train,
        (RoundStep::Aggregating, Some(step)) if asked(step) => SiteWork::Attempt(state.attempt, step),
        (RoundStep::Aggregating, _) => SiteWork::Wait,
        (RoundStep::Evaluating, Some(step)) if asked(step) => SiteWork::EvaluationAttempt(state.attempt, step),
        (RoundStep::Evaluating, _) => SiteWork::Evaluate,
        (RoundStep::Succeeded | RoundStep::Failed, _) => SiteWork::Stop,
    })
}

/// When something happens by itself, if nothing else does.
pub fn wake_at(state: &RoundState) -> Option<Timestamp> {
    if state.is_over() {
        return None;
    }
    // In an open attempt only its own steps count.
    let grace = state.grace_until.filter(|_| state.protocol_step.is_none());
    Some(grace.map_or(state.deadline, |g| g.min(state.deadline)))
}
