//! The gate: may this round's model become a release?
//!
//! Each hospital votes on its own floor, so that a model that is good on average
//! and useless in one hospital does not pass. The global figure is a mean over
//! all evaluation cases; a single failing vote stops the release.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::task::ScoreFile;

/// One hospital's verdict on its own evaluation cases.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
pub enum Vote {
    /// The floor holds on at least `min_cases` cases.
    Pass,
    /// It does not.
    Fail,
    /// Too few cases to say.
    Abstain,
}

/// What a release needs.
#[derive(Clone, Debug, PartialEq)]
pub struct Gate {
    /// Least global mean Dice, 0 to 1.
    pub min: f64,
    /// Least mean Dice in each hospital, 0 to 1.
    pub per_site_min: f64,
    /// Fewer cases than this in a hospital: it abstains.
    pub min_cases: u32,
    /// How many hospitals must pass.
    pub quorum: u32,
}

/// Sums over cases that one hospital adds to the global figure.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct CaseSums {
    /// Number of cases.
    pub cases: u32,
    /// Sum over the cases of the mean Dice over classes.
    pub dice: f64,
}

/// Cases, or training examples, that count in full; a hospital that has more counts as this many, so that what one says
/// of itself has a bound on its weight: with n other hospitals of k cases each, at most `CAP / (CAP + n·k)` of a mean.
pub const COUNT_CAP: u32 = 1 << 16;

impl CaseSums {
    /// As many cases as count, with the same mean.
    pub fn capped(self) -> Self {
        if self.cases <= COUNT_CAP {
            return self;
        }
        Self { cases: COUNT_CAP, dice: self.dice * f64::from(COUNT_CAP) / f64::from(self.cases) }
    }
}

/// The hospital's vote on its own score.
pub fn vote(score: &ScoreFile, gate_per_site_min: f64, min_cases: u32) -> Vote {
    match score.mean_dice() {
        Some(_) if score.cases < min_cases => Vote::Abstain,
        Some(dice) if dice >= gate_per_site_min => Vote::Pass,
        Some(_) => Vote::Fail,
        None => Vote::Abstain,
    }
}

/// Why the gate stayed shut, or what it saw.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    /// A release may be cut.
    Passed {
        /// Global mean Dice.
        global: f64,
    },
    /// It may not.
    Shut(Shut),
}

/// The first reason that keeps the gate shut.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Shut {
    /// Some hospital's floor does not hold.
    #[error("{0} hospitals vote Fail on their own floor")]
    SiteFailed(u32),
    /// Not enough passes.
    #[error("{passes} hospitals pass, {quorum} are needed (the others abstain or did not evaluate)")]
    TooFewVotes {
        /// Votes Pass.
        passes: u32,
        /// Needed.
        quorum: u32,
    },
    /// No sums came.
    #[error("no hospital shared its sums, so there is no global figure")]
    NoFigure,
    /// The global mean is too low.
    #[error("global mean Dice {global:.4} is below gate.min {min}")]
    BelowMinimum {
        /// Seen.
        global: f64,
        /// Needed.
        min: f64,
    },
}

/// The mean over all cases of all hospitals; `None` without cases.
pub fn global(sums: &[CaseSums]) -> Option<f64> {
    // Each number is a hospital's word, and their sum must not depend on its modesty.
    let cases: u64 = sums.iter().map(|s| u64::from(s.cases)).sum();
    (cases > 0).then(|| sums.iter().map(|s| s.dice).sum::<f64>() / cases as f64)
}

/// Decides from the votes and the summed cases of all hospitals.
pub fn decide(gate: &Gate, votes: &[Vote], sums: &[CaseSums]) -> Verdict {
    let count = |wanted| votes.iter().filter(|&&v| v == wanted).count() as u32;
    let (passes, fails) = (count(Vote::Pass), count(Vote::Fail));
    match global(sums) {
        _ if fails > 0 => Verdict::Shut(Shut::SiteFailed(fails)),
        _ if passes < gate.quorum => Verdict::Shut(Shut::TooFewVotes { passes, quorum: gate.quorum }),
        None => Verdict::Shut(Shut::NoFigure),
        Some(global) if global >= gate.min => Verdict::Passed { global },
        Some(global) => Verdict::Shut(Shut::BelowMinimum { global, min: gate.min }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task::ClassScore;

    const GATE: Gate = Gate { min: 0.8, per_site_min: 0.7, min_cases: 5, quorum: 2 };

    fn score(cases: u32, dice: f64) -> ScoreFile {
        ScoreFile { cases, classes: vec![ClassScore { label: 1, dice, hd95_mm: None, assd_mm: None }] }
    }

    #[test]
    fn a_hospital_votes_on_its_own_floor_and_abstains_when_it_has_few_cases() {
        for (cases, dice, expected) in
            [(5, 0.7, Vote::Pass), (5, 0.69, Vote::Fail), (4, 0.9, Vote::Abstain), (0, 0.0, Vote::Abstain)]
        {
            assert_eq!(vote(&score(cases, dice), GATE.per_site_min, GATE.min_cases), expected, "{cases} {dice}");
        }
    }

    #[test]
    fn one_failing_hospital_stops_a_model_that_is_good_on_average() {
        let sums = [CaseSums { cases: 100, dice: 95.0 }];
        let votes = [Vote::Pass, Vote::Pass, Vote::Pass, Vote::Fail];
        assert_eq!(decide(&GATE, &votes, &sums), Verdict::Shut(Shut::SiteFailed(1)));
    }

    #[test]
    fn the_figure_is_a_mean_over_cases_not_over_hospitals() {
        let sums = [CaseSums { cases: 90, dice: 81.0 }, CaseSums { cases: 10, dice: 1.0 }];
        let verdict = decide(&GATE, &[Vote::Pass, Vote::Pass], &sums);
        assert_eq!(verdict, Verdict::Passed { global: 0.82 });
        assert!(matches!(decide(&GATE, &[Vote::Pass], &sums), Verdict::Shut(Shut::TooFewVotes { .. })));
        assert_eq!(decide(&GATE, &[Vote::Pass, Vote::Pass], &[]), Verdict::Shut(Shut::NoFigure));
    }

    /// A hospital that claims a hundred million cases must not be the figure alone.
    #[test]
    fn what_a_hospital_says_of_its_cases_has_a_bound_on_its_weight() {
        let honest = CaseSums { cases: 10, dice: 8.5 };
        assert_eq!(honest.capped(), honest);
        let capped = CaseSums { cases: 100_000_000, dice: 50_000_000.0 }.capped();
        assert_eq!((capped.cases, capped.dice), (COUNT_CAP, f64::from(COUNT_CAP) / 2.0));
    }

    /// One hospital's report must not end the hub, whatever number stands in it.
    #[test]
    fn more_cases_than_a_u32_counts_are_summed() {
        let sums = [CaseSums { cases: u32::MAX, dice: 1.0 }, CaseSums { cases: u32::MAX, dice: 1.0 }];
        assert!(global(&sums).unwrap() < 1e-9);
        assert!(matches!(decide(&GATE, &[Vote::Pass, Vote::Pass], &sums), Verdict::Shut(Shut::BelowMinimum { .. })));
    }
}
