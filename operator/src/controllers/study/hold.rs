//! When a study waits for people although it has rounds left. Pure.

use std::sync::Arc;

use consilium_crds::{FederatedStudy, TrainingRound};
use consilium_federation::round::Outcome;
use kube::ResourceExt;

use super::decide::state;

/// Why no round begins: too many failed one after the other since somebody last looked.
pub fn exhausted(study: &FederatedStudy, rounds: &[Arc<TrainingRound>]) -> Option<String> {
    let limit = study.spec.rounds.backoff_limit?;
    let forgiven = study.status.as_ref().and_then(|s| s.forgiven_through).unwrap_or(0);
    let counted = rounds.iter().rev().filter(|round| round.spec.number > forgiven);
    let outcomes = counted.filter_map(|round| Some((round, state(round)?.outcome?)));
    let failed: Vec<_> = outcomes
        .filter(|(_, outcome)| *outcome != Outcome::Cancelled)
        .take_while(|(_, outcome)| *outcome != Outcome::Completed)
        .collect();
    let (last, _) = failed.first().filter(|_| failed.len() >= limit as usize)?;
    let why = state(last).and_then(|state| state.message.as_deref()).unwrap_or("see its conditions");
    Some(format!(
        "{} rounds in a row ended without a new model and spec.rounds.backoffLimit is {limit}; the last, {}: {why}. \
         See to the cause, then set spec.suspend to true and back to false to go on",
        failed.len(),
        last.name_any()
    ))
}
