//! Intervals, two-sided at 95 %, for shares and means. Each is held to figures of scipy and statsmodels
//! (`testdata/figures.json`).

use serde::{Deserialize, Serialize};
use statrs::distribution::{Beta, ContinuousCDF as _, StudentsT};

/// The part of the distribution that is left out on each side.
const TAIL: f64 = 0.025;
/// The 97.5 % point of the standard normal distribution.
const Z: f64 = 1.959_963_984_540_054;

/// Below so many trials, or with fewer than [`SMALL_COUNT`] of one outcome, a share has the exact interval.
pub const SMALL_TRIALS: f64 = 40.0;
/// See [`SMALL_TRIALS`].
pub const SMALL_COUNT: f64 = 5.0;

/// Two ends between which a figure lies with 95 % confidence.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Interval {
    /// The lower end.
    pub lower: f64,
    /// The upper end.
    pub upper: f64,
}

impl Interval {
    /// Everything a share can be: what is known without a case.
    pub const UNKNOWN_SHARE: Self = Self { lower: 0.0, upper: 1.0 };
}

/// There is something to make an interval of: nothing else, no NaN among it, passes for knowledge.
fn known(p: f64, n: f64) -> bool {
    n > 0.0 && n.is_finite() && (0.0..=1.0).contains(&p)
}

/// Wilson's score interval (E. B. Wilson, J. Am. Stat. Assoc. 22, 1927) of a share `p` seen in `n` trials. `n` need not
/// be whole: an effective number serves as well.
pub fn wilson(p: f64, n: f64) -> Interval {
    if !known(p, n) {
        return Interval::UNKNOWN_SHARE;
    }
    let z2 = Z * Z;
    let centre = (p + z2 / (2.0 * n)) / (1.0 + z2 / n);
    let half = Z / (1.0 + z2 / n) * (p * (1.0 - p) / n + z2 / (4.0 * n * n)).sqrt();
    // At the ends the formula gives 0 and 1 but for rounding.
    let lower = if p == 0.0 { 0.0 } else { (centre - half).max(0.0) };
    let upper = if p == 1.0 { 1.0 } else { (centre + half).min(1.0) };
    Interval { lower, upper }
}

/// The exact interval (C. J. Clopper, E. S. Pearson, Biometrika 26, 1934) of a share `p` seen in `n` trials; with an
/// effective `n` that is not whole, that of E. L. Korn and B. I. Graubard (Survey Methodology 24, 1998).
pub fn clopper_pearson(p: f64, n: f64) -> Interval {
    if !known(p, n) {
        return Interval::UNKNOWN_SHARE;
    }
    let (hits, misses) = (p * n, n - p * n);
    let quantile = |a: f64, b: f64, at: f64, unknown: f64| {
        Beta::new(a, b).ok().and_then(|beta| beta.try_inverse_cdf(at).ok()).filter(|q| q.is_finite()).unwrap_or(unknown)
    };
    let lower = if p == 0.0 { 0.0 } else { quantile(hits, misses + 1.0, TAIL, 0.0) };
    let upper = if p == 1.0 { 1.0 } else { quantile(hits + 1.0, misses, 1.0 - TAIL, 1.0) };
    Interval { lower, upper }
}

/// The interval of a share: exact where numbers are small (fewer than 40 trials, or fewer than 5 hits or misses), where
/// Wilson's can promise too much; Wilson's otherwise.
pub fn share(p: f64, n: f64) -> Interval {
    let small = n < SMALL_TRIALS || p * n < SMALL_COUNT || n - p * n < SMALL_COUNT;
    if small { clopper_pearson(p, n) } else { wilson(p, n) }
}

/// Student's interval of a mean over `values`, one for each patient. `None` of fewer than two, or where a value is not
/// finite.
pub fn mean(values: &[f64]) -> Option<(f64, Interval)> {
    let n = values.len() as f64;
    if n < 2.0 || !values.iter().all(|v| v.is_finite()) {
        return None;
    }
    let mean = values.iter().sum::<f64>() / n;
    let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (n - 1.0);
    let t = StudentsT::new(0.0, 1.0, n - 1.0).ok()?.try_inverse_cdf(1.0 - TAIL).ok()?;
    let half = t * (variance / n).sqrt();
    (mean.is_finite() && half.is_finite()).then_some((mean, Interval { lower: mean - half, upper: mean + half }))
}

/// A share over trials that belong to patients: several scans of one patient say less than as many of different ones.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Clustered {
    /// Hits over trials.
    pub estimate: f64,
    /// As many independent trials would say as much: trials divided by the design effect, never more than the trials,
    /// and never more than the patients where all trials came out alike and no effect can be seen.
    pub effective: f64,
}

/// The share and its effective number of trials from (hits, trials) of each patient, by the linearised variance of a
/// ratio over clusters without small-sample correction, so that one trial a patient gives the plain number (Korn and
/// Graubard 1998). `None` without trials.
pub fn clustered(patients: impl Iterator<Item = (u32, u32)> + Clone) -> Option<Clustered> {
    let (mut hits, mut trials, mut count) = (0.0, 0.0, 0.0);
    for (h, m) in patients.clone().filter(|&(_, m)| m > 0) {
        hits += f64::from(h.min(m));
        trials += f64::from(m);
        count += 1.0;
    }
    if trials == 0.0 {
        return None;
    }
    let p = hits / trials;
    let spread: f64 = patients.map(|(h, m)| (f64::from(h.min(m)) - p * f64::from(m)).powi(2)).sum();
    let effective = if hits == 0.0 || hits == trials { count } else { trials * (trials * p * (1.0 - p) / spread) };
    // No spread between patients at all, each with the same mix: then a scan counts as one.
    let effective = if effective.is_finite() { effective.min(trials) } else { trials };
    Some(Clustered { estimate: p, effective })
}

/// How many trials more would bring the interval's end to the bound if the share stayed as it is: `None` where none
/// would, or more than a million. For people: a guess, not a rule.
pub fn trials_lacking(p: f64, n: f64, holds: impl Fn(Interval) -> bool) -> Option<u32> {
    const MOST: u32 = 1_000_000;
    if !holds(share(p, n + f64::from(MOST))) {
        return None;
    }
    let (mut short, mut enough) = (0, MOST);
    while enough - short > 1 {
        let middle = short + (enough - short) / 2;
        if holds(share(p, n + f64::from(middle))) { enough = middle } else { short = middle }
    }
    Some(enough)
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn figures() -> Value {
        serde_json::from_str(include_str!("../testdata/figures.json")).unwrap()
    }

    fn numbers(value: &Value) -> Vec<f64> {
        value.as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect()
    }

    fn near(seen: Interval, expected: &Value, what: &str) {
        let expected = numbers(expected);
        let off = (seen.lower - expected[0]).abs().max((seen.upper - expected[1]).abs());
        assert!(off < 1e-9, "{what}: {seen:?} is not {expected:?}");
    }

    /// A wrong interval lets a model climb on luck, or keeps a good one down.
    #[test]
    fn intervals_are_those_of_statsmodels_and_scipy() {
        let figures = figures();
        for row in figures["proportions"].as_array().unwrap() {
            let (x, n) = (row["x"].as_f64().unwrap(), row["n"].as_f64().unwrap());
            near(wilson(x / n, n), &row["wilson"], &format!("Wilson {x} of {n}"));
            near(clopper_pearson(x / n, n), &row["exact"], &format!("exact {x} of {n}"));
            let small = n < 40.0 || x < 5.0 || n - x < 5.0;
            near(share(x / n, n), &row[if small { "exact" } else { "wilson" }], &format!("{x} of {n}"));
        }
        for row in figures["means"].as_array().unwrap() {
            let (estimate, interval) = mean(&numbers(&row["values"])).unwrap();
            assert!((estimate - row["mean"].as_f64().unwrap()).abs() < 1e-12);
            near(interval, &row["interval"], "mean");
        }
    }

    /// Ten scans of one patient must not pass for ten patients.
    #[test]
    fn effective_trials_are_those_of_a_cluster_robust_variance() {
        for row in figures()["clusters"].as_array().unwrap() {
            let patients: Vec<(u32, u32)> = row["patients"]
                .as_array()
                .unwrap()
                .iter()
                .map(|p| (p[0].as_u64().unwrap() as u32, p[1].as_u64().unwrap() as u32))
                .collect();
            let seen = clustered(patients.iter().copied()).unwrap();
            assert!((seen.estimate - row["estimate"].as_f64().unwrap()).abs() < 1e-12);
            assert!((seen.effective - row["effective"].as_f64().unwrap()).abs() < 1e-6, "{seen:?} {row}");
        }
        let one = clustered([(10, 10)].into_iter()).unwrap();
        assert_eq!(one, Clustered { estimate: 1.0, effective: 1.0 });
        assert_eq!(clustered([(1, 2), (2, 4)].into_iter()).unwrap().effective, 6.0);
        assert_eq!(clustered([(0, 0)].into_iter()), None);
    }

    /// What `explain` says of further cases is a number that then suffices, and one fewer does not.
    #[test]
    fn what_is_lacking_suffices_and_no_less() {
        let floor = |floor: f64| move |i: Interval| i.lower >= floor;
        let more = trials_lacking(0.95, 54.0, floor(0.9)).unwrap();
        assert_eq!(more, 85, "139 in all");
        assert!(share(0.95, 139.0).lower >= 0.9 && share(0.95, 138.0).lower < 0.9);
        assert_eq!(trials_lacking(0.89, 54.0, floor(0.9)), None, "no number of cases makes .89 of it .9");
    }

    /// Nothing that is known of no case, and nothing absurd, ends a program or passes for knowledge.
    #[test]
    fn without_cases_nothing_is_known() {
        for (p, n) in [(0.5, 0.0), (f64::NAN, 10.0), (1.5, 10.0), (0.5, -1.0), (0.5, f64::NAN)] {
            assert_eq!(share(p, n), Interval::UNKNOWN_SHARE, "{p} {n}");
        }
        assert_eq!(mean(&[0.9]), None);
        assert_eq!(mean(&[0.9, f64::NAN]), None);
        assert_eq!(mean(&[f64::MAX, f64::MAX]), None);
    }
}
