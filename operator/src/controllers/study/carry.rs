//! What a study carries from round to round: successes, and how often each hospital was too slow. Pure.
//!
//! It stands as an annotation on each TrainingRound, as it was before that round. So the sums are exact whatever is
//! killed when, and old rounds can leave the API without being counted twice or not at all.

use std::collections::BTreeMap;

use consilium_crds::study::MissedRounds;
use consilium_crds::{FederatedStudyStatus, TrainingRound};
use consilium_federation::SiteName;
use consilium_federation::round::RoundState;
use kube::ResourceExt;
use serde::{Deserialize, Serialize};

/// Annotation on a TrainingRound.
pub const ANNOTATION: &str = "consilium.health/carry";

/// What came before a round.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Carry {
    /// Rounds that ended with a new model.
    #[serde(default)]
    pub succeeded: u32,
    /// Rounds in a row in which a hospital was too slow; none: not listed.
    #[serde(default)]
    pub missed: BTreeMap<SiteName, u32>,
}

impl Carry {
    /// As a round has it. An annotation that someone damaged costs figures, not rounds.
    pub fn before(round: &TrainingRound) -> Self {
        round.annotations().get(ANNOTATION).and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default()
    }

    /// As the study's status has it, when no round is left to ask.
    pub fn from_status(status: &FederatedStudyStatus) -> Self {
        let missed = status.missed.iter().map(|m| (m.name.clone(), m.rounds)).collect();
        Self { succeeded: status.rounds_succeeded.unwrap_or(0), missed }
    }

    /// For the annotation.
    pub fn to_text(&self) -> String {
        String::from_utf8(consilium_federation::digest::canonical_json(self)).unwrap_or_default()
    }

    /// After a round. One without a model that stands changes nothing; the evaluation of one that has it counts no more.
    pub fn after(mut self, state: Option<&RoundState>) -> Self {
        let Some(state) = state.filter(|s| s.model.is_some()) else { return self };
        self.succeeded += 1;
        for site in &state.sites {
            if site.contributed {
                self.missed.remove(&site.site);
            } else if site.began && !site.reason.is_out() {
                // It took the round up, and is neither in the sum nor kept out by anyone's decision: it was slow. One
                // that was never heard is not slow but gone, and to wait for it would cost every round its deadline.
                *self.missed.entry(site.site.clone()).or_insert(0) += 1;
            }
        }
        self
    }

    /// The hospitals that the next round waits for.
    pub fn waited_for(&self, max_missed: u32, participants: &[SiteName]) -> Vec<SiteName> {
        participants.iter().filter(|p| self.missed.get(p).is_some_and(|&n| n >= max_missed)).cloned().collect()
    }

    /// For the study's status.
    pub fn missed_list(&self) -> Vec<MissedRounds> {
        self.missed.iter().map(|(name, &rounds)| MissedRounds { name: name.clone(), rounds }).collect()
    }
}

#[cfg(test)]
mod tests {
    use consilium_federation::Digest;
    use consilium_federation::round::{Outcome, RoundStep, SiteReason};

    use super::*;
    use crate::controllers::testing::{at, name};

    fn over(contributed: &[&str], denied: &[&str]) -> RoundState {
        let mut state = RoundState::new(["alder", "birch", "cedar"].map(name), at(0), at(60));
        state.step = RoundStep::Succeeded;
        state.outcome = Some(Outcome::Completed);
        state.model = Some(Digest::of(b"m"));
        for site in &mut state.sites {
            site.contributed = contributed.contains(&site.site.as_str());
            site.began = true;
            if denied.contains(&site.site.as_str()) {
                site.reason = SiteReason::DeniedByPolicy;
            }
        }
        state
    }

    /// A hospital that says no is not slow: waiting for it would only cost the others time.
    #[test]
    fn slow_hospitals_are_counted_in_a_row_and_refusing_ones_are_not() {
        let people = ["alder", "birch", "cedar"].map(name);
        let carry = Carry::default().after(Some(&over(&["alder"], &["cedar"])));
        assert_eq!((carry.succeeded, carry.missed.get(&name("birch"))), (1, Some(&1)));
        assert!(!carry.missed.contains_key(&name("cedar")));
        assert!(carry.waited_for(2, &people).is_empty());
        let carry = carry.after(Some(&over(&["alder"], &[])));
        assert_eq!(carry.waited_for(2, &people), [name("birch")]);
        let carry = carry.after(Some(&over(&["alder", "birch", "cedar"], &[])));
        assert_eq!((carry.succeeded, carry.missed.is_empty()), (3, true));
    }

    /// Every round would last its full deadline for a hospital that closed down.
    #[test]
    fn a_hospital_that_never_took_the_round_up_is_not_waited_for() {
        let mut state = over(&["alder", "cedar"], &[]);
        state.sites[1].began = false;
        assert!(Carry::default().after(Some(&state)).missed.is_empty());
    }

    #[test]
    fn a_round_that_came_to_nothing_changes_nothing_and_the_annotation_round_trips() {
        let carry = Carry { succeeded: 4, missed: BTreeMap::from([(name("birch"), 1)]) };
        let mut lost = over(&[], &[]);
        (lost.step, lost.outcome, lost.model) = (RoundStep::Failed, Some(Outcome::QuorumLost), None);
        assert_eq!(carry.clone().after(Some(&lost)), carry);
        assert_eq!(carry.clone().after(None), carry);
        let mut round = TrainingRound::new("r", crate::controllers::testing::round_spec());
        assert_eq!(Carry::before(&round), Carry::default());
        round.annotations_mut().insert(ANNOTATION.into(), carry.to_text());
        assert_eq!(Carry::before(&round), carry);
    }
}
