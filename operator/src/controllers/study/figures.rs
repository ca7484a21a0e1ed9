//! What an SRE is shown of a study. Pure.

use consilium_crds::FederatedStudyStatus;
use consilium_crds::conditions::{READY, STALLED, status_of};
use consilium_federation::round::RoundState;

use super::decide::{self, Facts};
use crate::metrics::studies::{Figures, Newest};

/// The figures of a study, by the status that it is about to have.
pub fn of(facts: &Facts, status: &FederatedStudyStatus) -> Figures {
    let newest = facts.rounds.last();
    let is = |condition| status_of(&status.conditions, condition) == Some("True");
    Figures {
        round: status.current_round.unwrap_or(0),
        of: facts.study.spec.rounds.max,
        succeeded: status.rounds_succeeded.unwrap_or(0),
        ready: is(READY),
        stalled: is(STALLED),
        newest: newest.and_then(|round| {
            let state = decide::state(round)?;
            Some(Newest {
                step: state.step,
                since: state.step_since.unwrap_or(state.started_at),
                deadline: (!state.is_over()).then_some(state.deadline),
                contributors: state.contributors,
                waited_for: round.spec.waited_for.len() as u32,
                sites: state.sites.iter().map(|site| site.reason).collect(),
            })
        }),
        dice: facts.rounds.iter().rev().find_map(|round| scored(decide::state(round)?)),
    }
}

/// The figure over all hospitals, which is of their sum and no single one's.
fn scored(state: &RoundState) -> Option<f64> {
    state.gate.as_ref()?.global.as_ref()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use consilium_federation::round::GateRecord;

    use super::*;
    use crate::controllers::study::tests::{facts, past};
    use crate::controllers::testing::{SITES, at, completed, name, round};

    /// The figure of the last model that was scored stays in view while the next round trains.
    #[test]
    fn the_newest_score_is_shown_beside_the_newest_round() {
        let mut scored = completed(b"m");
        scored.gate = Some(GateRecord { passed: true, global: Some("0.8123".into()), message: None });
        let training = RoundState::new(SITES.map(name), at(0), at(60));
        let facts = facts(vec![round(1, Some(scored)), round(2, Some(training))], past());
        let status = FederatedStudyStatus { current_round: Some(2), rounds_succeeded: Some(1), ..Default::default() };
        let figures = of(&facts, &status);
        let newest = figures.newest.unwrap();
        assert_eq!((figures.round, figures.succeeded, figures.dice), (2, 1, Some(0.8123)));
        assert_eq!((newest.since, newest.deadline, newest.sites.len()), (at(0), Some(at(60)), 4));
    }
}
