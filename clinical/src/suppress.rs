//! Numbers that leave a hospital by its own choice, with small ones hidden, as the NHS publishes Hospital Episode
//! Statistics below national level since 2018: 1 to 7 is not shown, everything else is rounded to 5, 0 stays 0.
//!
//! **Primary**: a count from 1 to 7 is hidden. **Secondary**: where one cell of a table is hidden, it could be had from
//! the total; so the next smallest cell that is not 0 is hidden with it. **Figures** are shown, to a whole percent or
//! three digits, only where none of the counts that make them is hidden: 97 % of 100 says that 3 were missed.
//!
//! What is shown is of one window in one granularity. Two windows that overlap may be subtracted from each other: a
//! hospital that publishes does so for windows that do not.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::evidence::{Confusion, Group, Summary};
use crate::values::{Metric, Name};

/// Counts from 1 to here are hidden.
pub const SMALL: u32 = 7;
/// Counts that are shown are rounded to this.
pub const ROUND: u32 = 5;

/// A count as it is shown: rounded, or hidden.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
pub enum Shown {
    /// To the nearest 5.
    About(u32),
    /// Not shown.
    Hidden,
}

impl std::fmt::Display for Shown {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::About(n) => n.fmt(f),
            Self::Hidden => f.write_str("*"),
        }
    }
}

fn small(count: u32) -> bool {
    (1..=SMALL).contains(&count)
}

/// One count by itself.
pub fn shown(count: u32) -> Shown {
    if small(count) { Shown::Hidden } else { Shown::About(count.saturating_add(ROUND / 2) / ROUND * ROUND) }
}

/// The cells of a table whose total may be known: as many are hidden as keep each hidden one from being computed.
pub fn table(cells: &[u32]) -> Vec<Shown> {
    let mut out: Vec<Shown> = cells.iter().map(|&count| shown(count)).collect();
    if out.iter().filter(|cell| **cell == Shown::Hidden).count() == 1 {
        let candidates = cells.iter().enumerate().filter(|&(_, &count)| count > SMALL);
        if let Some((n, _)) = candidates.min_by_key(|&(n, &count)| (count, n)) {
            out[n] = Shown::Hidden;
        }
    }
    out
}

/// A summary as it may leave.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Published {
    /// Cases with a result.
    pub cases: Shown,
    /// Failed, and out of scope.
    pub failed: Shown,
    /// See [`Summary::out_of_scope`].
    pub out_of_scope: Shown,
    /// Days with a case.
    pub days: Shown,
    /// True positive, false negative, false positive, true negative, and results without usable truth.
    pub truth: [Shown; 5],
    /// Figures that rest on no small count: estimate, lower and upper end.
    pub figures: BTreeMap<Metric, [f64; 3]>,
    /// Cases by dimension and group. No figures: a group's are of few.
    pub groups: BTreeMap<Name, BTreeMap<Name, Shown>>,
}

/// What of a summary may leave.
pub fn publish(summary: &Summary) -> Published {
    let Confusion { true_positive, false_negative, false_positive, true_negative } = summary.confusion;
    let known = [true_positive, false_negative, false_positive, true_negative];
    let without = known.iter().fold(summary.cases, |left, n| left.saturating_sub(*n));
    let truth = table(&[known[0], known[1], known[2], known[3], without]);
    let outcomes = table(&[summary.cases, summary.failed, summary.out_of_scope]);
    let dimension = |groups: &BTreeMap<Name, Group>| {
        // Cases that have no group of this dimension are a cell too.
        let mut cells: Vec<u32> = groups.values().map(|group| group.cases).collect();
        cells.push(cells.iter().fold(summary.cases, |left, n| left.saturating_sub(*n)));
        groups.keys().cloned().zip(table(&cells)).collect()
    };
    Published {
        cases: outcomes[0],
        failed: outcomes[1],
        out_of_scope: outcomes[2],
        days: shown(summary.days),
        truth: [truth[0], truth[1], truth[2], truth[3], truth[4]],
        figures: figures(summary, &truth),
        groups: summary.groups.iter().map(|(name, groups)| (name.clone(), dimension(groups))).collect(),
    }
}

fn figures(summary: &Summary, truth: &[Shown]) -> BTreeMap<Metric, [f64; 3]> {
    // Exact shares of exact counts give the counts away; a whole percent of a rounded count does not.
    let all = |cells: [usize; 2]| cells.iter().all(|n| truth.get(*n).is_some_and(|cell| *cell != Shown::Hidden));
    let allowed = |metric: &Metric| match metric {
        Metric::Sensitivity => all([0, 1]),
        Metric::Specificity => all([2, 3]),
        Metric::Ppv => all([0, 2]),
        // Its counts are not in the table.
        Metric::Agreement => false,
        Metric::Mean(_) => true,
    };
    let round = |metric: &Metric, value: f64| {
        let unit = if matches!(metric, Metric::Mean(_)) { 1000.0 } else { 100.0 };
        (value * unit).round() / unit
    };
    let enough = summary.figures.iter().filter(|(metric, f)| f.effective > f64::from(SMALL) && allowed(metric));
    enough
        .map(|(m, f)| (m.clone(), [f.estimate, f.interval.lower, f.interval.upper].map(|value| round(m, value))))
        .collect()
}

#[cfg(test)]
#[path = "suppress_tests.rs"]
mod tests;
