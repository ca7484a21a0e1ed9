//! Drift: does the hospital still see what it saw when the model was approved?
//!
//! Two measures. The *population stability index* compares the distribution of a feature between the approved window and
//! a later one; the *cumulative sum* watches a rate case by case.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use statrs::distribution::{ChiSquared, ContinuousCDF as _};

use crate::plan::{DriftRule, RateRule};
use crate::values::Name;

/// Drift of one feature or rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Drift {
    /// None that is seen.
    Steady,
    /// Too few cases, or no reference, to say.
    Unknown,
    /// It is seen.
    Seen,
}

/// Counts of a feature by bin, in one window.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Histogram(pub Vec<u32>);

impl Histogram {
    fn cases(&self) -> f64 {
        self.0.iter().map(|&n| f64::from(n)).sum()
    }
}

/// The population stability index Σ (aᵢ − eᵢ) ln(aᵢ / eᵢ) of shares a (current) and e (reference) over the bins
/// (N. Siddiqi, Credit Risk Scorecards, 2006; it is the symmetric Kullback–Leibler divergence of H. Jeffreys, 1946). Each
/// bin has half a case added, so that an empty one is no infinity. `None` where the bins do not match or are fewer than 2.
pub fn stability_index(reference: &Histogram, current: &Histogram) -> Option<f64> {
    let bins = reference.0.len();
    if bins < 2 || bins != current.0.len() {
        return None;
    }
    let half = bins as f64 / 2.0;
    let share = |n: u32, all: f64| (f64::from(n) + 0.5) / (all + half);
    let (all_e, all_a) = (reference.cases(), current.cases());
    let term = |(&e, &a): (&u32, &u32)| {
        let (e, a) = (share(e, all_e), share(a, all_a));
        (a - e) * (a / e).ln()
    };
    Some(reference.0.iter().zip(&current.0).map(term).sum())
}

/// What the index of two windows of one and the same distribution exceeds once in a hundred times: the 99 % point of χ²
/// with bins − 1 degrees of freedom, times 1/n + 1/m (B. Yurdakul, J. Naranjo, J. Risk Model Validation 14, 2020). With
/// ten bins and fifty cases each that is .87: a fixed limit of .3 would be crossed by chance alone more often than not.
pub fn chance(reference: &Histogram, current: &Histogram) -> Option<f64> {
    let (n, m) = (reference.cases(), current.cases());
    let freedom = reference.0.len().checked_sub(1).filter(|f| *f > 0)?;
    let quantile = ChiSquared::new(freedom as f64).ok()?.try_inverse_cdf(0.99).ok()?;
    (n > 0.0 && m > 0.0).then(|| quantile * (1.0 / n + 1.0 / m))
}

/// Drift of a feature: in each of the latest windows (newest last) the index is above the plan's limit and above what
/// chance alone would give. Unknown where one of them, or the reference, has too few cases.
pub fn of_feature(rule: &DriftRule, reference: &Histogram, windows: &[Histogram]) -> Drift {
    let wanted = rule.windows as usize;
    let enough = |h: &Histogram| h.cases() >= f64::from(rule.cases);
    let Some(latest) = windows.len().checked_sub(wanted.max(1)).and_then(|from| windows.get(from..)) else {
        return Drift::Unknown;
    };
    if !enough(reference) {
        return Drift::Unknown;
    }
    // One window that is steady breaks the row, whatever the others lack.
    let mut unknown = false;
    for window in latest {
        match (stability_index(reference, window), chance(reference, window)) {
            _ if !enough(window) => unknown = true,
            (Some(index), Some(chance)) if index > rule.limit.value().max(chance) => {}
            (Some(_), Some(_)) => return Drift::Steady,
            _ => unknown = true,
        }
    }
    if unknown { Drift::Unknown } else { Drift::Seen }
}

/// A cumulative sum of log likelihood ratios that a rate is `noticed` and not `expected`, never below 0: of a case with
/// the event ln(p₁/p₀) is added, of one without ln((1−p₁)/(1−p₀)) (E. S. Page, Biometrika 41, 1954; S. H. Steiner et al.,
/// Biostatistics 1, 2000). It stays on the far side of its limit once it has crossed it, until people start a new one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CumulativeSum {
    /// The sum.
    pub sum: f64,
    /// Cases so far.
    pub cases: u32,
    /// It has crossed the limit.
    pub crossed: bool,
}

impl CumulativeSum {
    /// The sum after one more case.
    #[must_use]
    pub fn after(self, rule: &RateRule, event: bool) -> Self {
        let (p0, p1) = (rule.expected.value(), rule.noticed.value());
        let weight = if event { (p1 / p0).ln() } else { ((1.0 - p1) / (1.0 - p0)).ln() };
        let sum = (self.sum + weight).max(0.0);
        // Written so that a sum that is no number has crossed.
        let below = sum < rule.limit.value();
        Self { sum, cases: self.cases.saturating_add(1), crossed: self.crossed || !below }
    }

    /// What it says: nothing yet below `cases`, unless it has crossed.
    pub fn drift(self, cases: u32) -> Drift {
        match self.crossed {
            true => Drift::Seen,
            false if self.cases < cases => Drift::Unknown,
            false => Drift::Steady,
        }
    }
}

/// What the plan watches, and what is seen of each; a name that is not in `seen` was not measured.
pub fn watched<'a>(
    rule: &'a DriftRule,
    seen: &'a BTreeMap<Name, Drift>,
) -> impl Iterator<Item = (&'a Name, Option<Drift>)> {
    let names = rule.features.iter().chain(rule.rates.iter().map(|rate| &rate.name));
    names.map(|name| (name, seen.get(name).copied()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;
    use crate::plan::Fall;
    use crate::testing::cases;

    fn rule(limit: &str, cases: u32, windows: u32) -> DriftRule {
        let features = vec!["spacing".parse().unwrap()];
        DriftRule { features, limit: limit.parse().unwrap(), cases, windows, rates: vec![], then: Fall::OneDown }
    }

    fn figures() -> Value {
        serde_json::from_str(include_str!("../testdata/figures.json")).unwrap()
    }

    fn histogram(value: &Value) -> Histogram {
        Histogram(serde_json::from_value(value.clone()).unwrap())
    }

    #[test]
    fn the_index_and_its_chance_are_those_of_scipy() {
        for row in figures()["indices"].as_array().unwrap() {
            let (reference, current) = (histogram(&row["reference"]), histogram(&row["current"]));
            let near = |seen: Option<f64>, field: &str| (seen.unwrap() - row[field].as_f64().unwrap()).abs() < 1e-9;
            assert!(near(stability_index(&reference, &current), "psi"), "{row}");
            assert!(near(chance(&reference, &current), "noise"), "{row}");
        }
    }

    #[test]
    fn the_cumulative_sum_is_that_of_scipy_s_likelihoods() {
        for row in figures()["cusums"].as_array().unwrap() {
            let share = |field: &str| row[field].to_string().parse().unwrap();
            let limit = "2".parse().unwrap();
            let rate =
                RateRule { name: "failures".parse().unwrap(), expected: share("p0"), noticed: share("p1"), limit };
            let mut sum = CumulativeSum::default();
            let mut crossed = false;
            for (event, expected) in row["events"].as_array().unwrap().iter().zip(row["path"].as_array().unwrap()) {
                sum = sum.after(&rate, event.as_u64() == Some(1));
                let expected = expected.as_f64().unwrap();
                assert!((sum.sum - expected).abs() < 1e-9, "{sum:?} is not {expected}");
                crossed |= expected >= 2.0;
                assert_eq!(sum.crossed, crossed);
            }
            assert_eq!(sum.drift(10) == Drift::Seen, crossed);
        }
        assert_eq!(CumulativeSum::default().drift(1), Drift::Unknown);
    }

    /// One odd week is no drift, and neither is a window so small that any sample looks odd.
    #[test]
    fn drift_needs_windows_in_a_row_cases_and_more_than_chance() {
        let reference = Histogram(vec![100, 100, 100, 100]);
        let (same, moved) = (Histogram(vec![50, 50, 50, 50]), Histogram(vec![10, 20, 50, 120]));
        let few = Histogram(vec![1, 2, 5, 12]);
        let see = |windows: &[&Histogram]| {
            of_feature(&rule("0.3", 50, 2), &reference, &windows.iter().copied().cloned().collect::<Vec<_>>())
        };
        assert_eq!(see(&[&moved, &moved]), Drift::Seen);
        assert_eq!(see(&[&same, &moved, &moved]), Drift::Seen);
        assert_eq!(see(&[&moved, &same]), Drift::Steady);
        assert_eq!(see(&[&moved]), Drift::Unknown);
        assert_eq!(see(&[&moved, &few]), Drift::Unknown);
        assert_eq!(see(&[&same, &few]), Drift::Steady);
        assert_eq!(of_feature(&rule("0.3", 50, 1), &few, std::slice::from_ref(&moved)), Drift::Unknown);
        assert_eq!(of_feature(&rule("0.3", 10, 1), &few, &[Histogram(vec![1, 2, 3])]), Drift::Unknown);
        // Above the limit, and still within what chance gives.
        let (a, b) = (Histogram(vec![12, 8, 5, 5, 6, 4, 3, 7]), Histogram(vec![5, 9, 8, 4, 3, 8, 9, 4]));
        let index = stability_index(&a, &b).unwrap();
        assert!(index > 0.3 && index < chance(&a, &b).unwrap(), "{index}");
        assert_eq!(of_feature(&rule("0.3", 50, 1), &a, &[b]), Drift::Steady);
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: cases(), failure_persistence: None, ..ProptestConfig::default() })]

        /// No counts end a program, hide behind an infinity, or look less odd than no change at all.
        #[test]
        fn the_index_is_finite_symmetric_and_never_below_zero(
            pairs in prop::collection::vec((any::<u32>(), any::<u32>()), 2..12),
        ) {
            let (a, b) = (Histogram(pairs.iter().map(|p| p.0).collect()), Histogram(pairs.iter().map(|p| p.1).collect()));
            let there = stability_index(&a, &b).unwrap();
            let back = stability_index(&b, &a).unwrap();
            prop_assert!(there.is_finite() && there >= 0.0 && (there - back).abs() <= 1e-9 * there.max(1.0));
            prop_assert_eq!(stability_index(&a, &a), Some(0.0));
        }
    }
}
