//! What one rule lacks: evidence held against numbers.

use std::collections::BTreeMap;

use consilium_federation::SiteName;
use jiff::Timestamp;

use super::lack::{Counted, Lack, MetricLack};
use crate::evidence::{Figure, Summary};
use crate::rules::{MetricRule, Of, Outcome, StageRule};
use crate::values::{Metric, Name};
use crate::verdict::Heard;

/// Figures over all hospitals, from a masked sum. Made at the hub: a bound of [`Of::Global`] on them is one more that
/// must hold, so a hub that lies about them gains what the same rule without that bound would give, and no more.
#[derive(Clone, Debug, PartialEq)]
pub struct GlobalFigures {
    /// Of the subject's model and plan.
    pub figures: BTreeMap<Metric, Figure>,
    /// When they stop counting.
    pub until: Timestamp,
}

/// What the rule's bounds are held against.
pub(super) struct Seen<'a> {
    /// Cases on the stage below or higher, in this hospital.
    pub(super) here: &'a Summary,
    /// What other hospitals say.
    pub(super) others: &'a BTreeMap<SiteName, Heard>,
    /// What the sum says.
    pub(super) global: Option<&'a GlobalFigures>,
    /// When.
    pub(super) now: Timestamp,
}

/// All that the rule lacks.
pub(super) fn lacks(rule: &StageRule, seen: &Seen<'_>) -> Vec<Lack> {
    let mut lacks = own_counts(rule, seen.here);
    for (n, metric) in rule.metrics.iter().enumerate() {
        match metric.of {
            Of::Site => lacks.extend(own_figure(metric, seen.here)),
            Of::WorstSite => {
                lacks.extend(own_figure(metric, seen.here));
                lacks.extend(elsewhere(rule, metric, n, seen));
            }
            Of::WorstSubgroup => lacks.extend(in_groups(rule, metric, seen.here)),
            Of::Global => {
                let figures = seen.global.filter(|global| global.until > seen.now).map(|global| &global.figures);
                lacks.extend(figure(metric, figures.and_then(|f| f.get(&metric.metric)), None));
            }
        }
    }
    lacks
}

/// The verdict of this hospital on a rule, as it may leave: on the whole, and on each metric in the rule's order. What
/// others show is not its to judge: a bound of [`Of::Global`] is `Insufficient` here, and does not count to the whole.
pub fn own_verdict(rule: &StageRule, here: &Summary) -> (Outcome, Vec<Outcome>) {
    let of = |metric: &MetricRule| match metric.of {
        Of::Site | Of::WorstSite => worst(own_figure(metric, here)),
        Of::WorstSubgroup => worst(in_groups(rule, metric, here)),
        Of::Global => Outcome::Insufficient,
    };
    let metrics: Vec<Outcome> = rule.metrics.iter().map(of).collect();
    let own = rule.metrics.iter().zip(&metrics).filter(|(metric, _)| metric.of != Of::Global).map(|(_, o)| *o);
    let counts = if own_counts(rule, here).is_empty() { Outcome::Pass } else { Outcome::Insufficient };
    (own.fold(counts, Ord::min), metrics)
}

fn worst(lacks: impl IntoIterator<Item = Lack>) -> Outcome {
    let of = |lack: Lack| if let Lack::Metric(lack) = lack { lack.outcome } else { Outcome::Insufficient };
    lacks.into_iter().map(of).min().unwrap_or(Outcome::Pass)
}

fn own_counts(rule: &StageRule, here: &Summary) -> Vec<Lack> {
    let counts = [
        (Counted::Cases, here.cases, rule.cases),
        (Counted::Positives, here.positives, rule.positives),
        (Counted::Days, here.days, rule.days),
    ];
    let count = |(what, have, need): (Counted, u32, u32)| (have < need).then_some(Lack::Count { what, have, need });
    let mut lacks: Vec<Lack> = counts.into_iter().filter_map(count).collect();
    // Each is written so that what is no number does not pass.
    let at_least = |what, have: Option<f64>, need: Option<_>| {
        let need: crate::values::Share = need?;
        let holds = have.is_some_and(|have| have >= need.value());
        (!holds).then_some(Lack::Share { what, have, bound: "at least", need })
    };
    lacks.extend(at_least("truth known", (here.cases > 0).then_some(here.coverage), rule.coverage));
    lacks.extend(at_least("reads before the result was visible", here.blind, rule.blind));
    if let Some(need) = rule.max_failures {
        let have = here.failures();
        if !have.is_some_and(|have| have <= need.value()) {
            lacks.push(Lack::Share { what: "failures", have, bound: "at most", need });
        }
    }
    if let Some(most) = rule.max_p95_seconds {
        let have = here.p95_seconds;
        if !have.is_some_and(|have| have <= most.value()) {
            lacks.push(Lack::Seconds { have, most });
        }
    }
    lacks
}

fn own_figure(metric: &MetricRule, here: &Summary) -> Option<Lack> {
    figure(metric, here.figures.get(&metric.metric), None)
}

fn figure(metric: &MetricRule, seen: Option<&Figure>, group: Option<(Name, Name)>) -> Option<Lack> {
    let outcome = seen.map_or(Outcome::Insufficient, |figure| metric.judge(figure.interval));
    if outcome == Outcome::Pass {
        return None;
    }
    Some(Lack::Metric(Box::new(MetricLack { rule: metric.clone(), group, outcome, seen: seen.copied() })))
}

/// A group that the rule names must pass; another of the same dimensions must only not fail.
fn in_groups(rule: &StageRule, metric: &MetricRule, here: &Summary) -> Vec<Lack> {
    let mut lacks = Vec::new();
    for named in &rule.subgroups {
        let table = here.groups.get(&named.dimension);
        let of = |group: &Name| {
            let seen = table.and_then(|t| t.get(group)).and_then(|g| g.figures.get(&metric.metric));
            figure(metric, seen, Some((named.dimension.clone(), group.clone())))
        };
        lacks.extend(named.groups.iter().filter_map(of));
        let others = table.into_iter().flat_map(|t| t.keys()).filter(|group| !named.groups.contains(group));
        let fails = |lack: &Lack| matches!(lack, Lack::Metric(lack) if lack.outcome == Outcome::Fail);
        lacks.extend(others.filter_map(of).filter(fails));
    }
    lacks
}

/// What other hospitals show of the rule's n-th metric, in which it may nowhere fail.
fn elsewhere(rule: &StageRule, metric: &MetricRule, n: usize, seen: &Seen<'_>) -> Vec<Lack> {
    let Some(sites) = &rule.sites else { return Vec::new() };
    let mut lacks = Vec::new();
    let own = u32::from(own_figure(metric, seen.here).is_none());
    let mut pass = own;
    for (site, heard) in seen.others.iter().filter(|(_, heard)| heard.metrics.len() == rule.metrics.len()) {
        match heard.metrics.get(n) {
            // What was shown to hold is shown for a time; what was shown to fail, until that hospital says otherwise.
            Some(Outcome::Pass) => pass = pass.saturating_add(u32::from(heard.expiry > seen.now)),
            Some(Outcome::Fail) => lacks.push(Lack::SiteFails(metric.words(), site.clone())),
            Some(Outcome::Insufficient) | None => {}
        }
    }
    if pass < sites.pass {
        lacks.push(Lack::Sites { words: metric.words(), have: pass, need: sites.pass });
    }
    lacks
}

/// Hospitals that the rule must hear and does not.
pub(super) fn silent<'a>(
    rule: &'a StageRule,
    own: &'a SiteName,
    others: &'a BTreeMap<SiteName, Heard>,
    now: Timestamp,
) -> impl Iterator<Item = Lack> + 'a {
    let heard = rule.sites.iter().flat_map(|sites| &sites.heard);
    let counts = move |site: &SiteName| {
        others.get(site).is_some_and(|h| h.expiry > now && h.metrics.len() == rule.metrics.len())
    };
    heard.filter(move |site| *site != own && !counts(site)).map(|site| Lack::SiteSilent(site.clone()))
}
