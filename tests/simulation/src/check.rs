//! What must hold in every schedule.

use std::collections::{BTreeMap, BTreeSet};

use consilium_crds::TrainingRound;
use consilium_federation::round::{Outcome, RoundState, RoundStep};
use consilium_federation::task::TaskKind;
use consilium_federation::{Digest, SiteName};
use jiff::{SignedDuration, Timestamp};

use crate::Told;
use crate::schedule::HOSPITALS;
use crate::study::{PARAMETERS, examples, place, site};

/// Something does not hold, or the simulator itself cannot go on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{rule}: {what}")]
pub struct Violation {
    /// Which rule.
    pub rule: &'static str,
    /// What was seen.
    pub what: String,
}

/// One that broke.
pub fn broken(rule: &'static str, what: impl Into<String>) -> Violation {
    Violation { rule, what: what.into() }
}

/// Least number of hospitals in a sum here: quorum and `minContributors` of the study, and of each policy.
const LEAST: usize = 3;

/// What is remembered of rounds.
#[derive(Default)]
pub struct Seen {
    over: BTreeMap<String, (Outcome, Option<Digest>)>,
    models: BTreeMap<String, Digest>,
    summed: BTreeSet<(String, Digest)>,
    states: BTreeMap<String, Digest>,
    trace: Vec<u8>,
}

/// A model to be compared with the one that it came from.
pub struct Sum {
    /// The round.
    pub round: TrainingRound,
    /// What it made.
    pub model: Digest,
    contributors: BTreeSet<SiteName>,
}

fn state(round: &TrainingRound) -> Option<&RoundState> {
    round.status.as_ref()?.round.as_ref()
}

impl Seen {
    /// Looks at a round; the sum to look at, if it is a new one.
    ///
    /// # Errors
    /// When what was over is not any more, or a model is another one.
    pub fn look(&mut self, round: &TrainingRound) -> Result<Option<Sum>, Violation> {
        let Some(state) = state(round) else { return Ok(None) };
        let uid = round.metadata.uid.clone().unwrap_or_default();
        let now = Digest::of_json(state);
        if self.states.insert(uid.clone(), now) != Some(now) {
            let so_far = std::mem::take(&mut self.trace);
            self.trace = Digest::of(&[so_far, now.as_bytes().to_vec()].concat()).as_bytes().to_vec();
        }
        if let Some(outcome) = state.outcome {
            let known = *self.over.entry(uid.clone()).or_insert((outcome, state.model));
            if known != (outcome, state.model) {
                return Err(broken("terminal states absorb", format!("{uid}: {known:?}, then {outcome:?}")));
            }
        } else if self.over.contains_key(&uid) {
            return Err(broken("terminal states absorb", format!("{uid} was over and goes on")));
        }
        let Some(model) = state.model else { return Ok(None) };
        if *self.models.entry(uid.clone()).or_insert(model) != model {
            return Err(broken("one model of one round", format!("{uid} has a second model {model}")));
        }
        if !self.summed.insert((uid, model)) {
            return Ok(None);
        }
        let contributors = state.sites.iter().filter(|s| s.contributed).map(|s| s.site.clone()).collect();
        Ok(Some(Sum { round: round.clone(), model, contributors }))
    }
}

impl Seen {
    /// What came of the schedule.
    pub fn told(&self) -> Told {
        let failed = self.over.values().filter(|(_, model)| model.is_none()).count();
        Told { sums: self.summed.len(), failed, trace: Digest::of(&self.trace) }
    }
}

impl Sum {
    /// Compares the new model with the old: every contributor once, by its weight, and nobody else.
    ///
    /// # Errors
    /// When anything else is in it.
    pub fn check(&self, base: &[f32], new: &[f32]) -> Result<(), Violation> {
        let number = self.round.spec.number;
        let inside: Vec<usize> = (0..HOSPITALS).filter(|i| self.contributors.contains(&site(*i))).collect();
        if inside.len() < LEAST || inside.len() != self.contributors.len() {
            return Err(broken("a sum has its least number of hospitals", format!("round {number}: {inside:?}")));
        }
        let all: u64 = inside.iter().map(|i| examples(*i)).sum();
        let mut expected = vec![0f64; PARAMETERS];
        for i in &inside {
            expected[place(*i, number)] = examples(*i) as f64 / all as f64;
        }
        for (at, expected) in expected.iter().enumerate() {
            let found = f64::from(new[at]) - f64::from(base[at]);
            if (found - expected).abs() > 2e-4 {
                let (of, r) = (at % HOSPITALS, at / HOSPITALS + 1);
                let what = format!(
                    "round {number} of {inside:?}: the update of {} for round {r} counts {found:.5} where {expected:.5} is right",
                    site(of)
                );
                return Err(broken("the sum is right", what));
            }
        }
        Ok(())
    }
}

/// No round trains beyond its deadline, once the hub has had time to look after that.
///
/// # Errors
/// When one does.
pub fn in_time(round: &TrainingRound, turned: Option<Timestamp>) -> Result<(), Violation> {
    let (Some(state), Some(turned)) = (state(round), turned) else { return Ok(()) };
    // A hub that has just begun gives hospitals two minutes to be heard.
    let late = turned.duration_since(state.deadline) > SignedDuration::from_mins(3);
    if state.step == RoundStep::Training && state.protocol_step.is_none() && late {
        return Err(broken("rounds end in time", format!("round {} trains at {turned}: {state:?}", round.spec.number)));
    }
    Ok(())
}

/// Nobody trains twice for one part.
///
/// # Errors
/// When somebody did.
pub fn trainings(of: usize, trained: &BTreeMap<(String, TaskKind), u32>) -> Result<(), Violation> {
    match trained.iter().find(|(_, times)| **times > 1) {
        Some(((round, kind), times)) => {
            Err(broken("nobody trains twice", format!("{} trained {times} times for {kind:?} of {round}", site(of))))
        }
        None => Ok(()),
    }
}
