//! What a hospital's cases show: counts and figures with intervals, folded from the case records of one window.
//!
//! Patients, not scans, are what figures are over: several scans of one patient count as the fewer independent ones that
//! they are worth ([`crate::stats::clustered`]); a measured quantity is averaged within each patient first.

use std::collections::{BTreeMap, BTreeSet};

use consilium_federation::ladder::Stage;
use consilium_federation::{Digest, SiteName};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::cases::{CaseRecord, Outcome, Pseudonym};
use crate::stats::{self, Interval};
use crate::values::{Metric, Name};

/// From when to when: a case belongs to it by the moment that its series was complete, `from <= moment < to`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Window {
    /// The first moment in it.
    pub from: Timestamp,
    /// The first moment after it.
    pub to: Timestamp,
}

/// What the evidence is about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subject {
    /// The hospital.
    pub hospital: SiteName,
    /// Digest of the model.
    pub model: Digest,
    /// Digest of the pipeline, see [`crate::pipeline::Pipeline`].
    pub pipeline: Digest,
}

/// What one window of a hospital's cases shows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Evidence {
    /// Of what.
    pub subject: Subject,
    /// When.
    pub window: Window,
    /// By the lowest stage that the model stood on in the cases: the entry of Shadow has all, that of Triage those on
    /// Triage and above. None for PrimaryReader, above which there is nothing to climb to.
    pub since: BTreeMap<Stage, Summary>,
}

/// Counts and figures over some cases.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Summary {
    /// Cases with a result.
    pub cases: u32,
    /// Cases in scope without a usable answer.
    pub failed: u32,
    /// Cases that the plan's scope does not admit.
    pub out_of_scope: u32,
    /// Days (UTC) with at least one case with a result.
    pub days: u32,
    /// Results by what truth and model say, for those with usable truth.
    pub confusion: Confusion,
    /// Patients with the finding, by usable truth.
    pub positives: u32,
    /// Share of the results with usable truth, the lesser of those where the model found something and where it did not.
    pub coverage: f64,
    /// Share of the reads of results that were signed before the result was visible; none without reads.
    pub blind: Option<f64>,
    /// Seconds to the result that 95 % of the results do not exceed (nearest rank); none without results.
    pub p95_seconds: Option<f64>,
    /// Figures by metric; one that no case speaks for is not there.
    pub figures: BTreeMap<Metric, Figure>,
    /// By dimension and group.
    pub groups: BTreeMap<Name, BTreeMap<Name, Group>>,
}

/// Truth against finding, in results.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Confusion {
    /// There and found.
    pub true_positive: u32,
    /// There and missed.
    pub false_negative: u32,
    /// Not there and found.
    pub false_positive: u32,
    /// Not there and left alone.
    pub true_negative: u32,
}

/// A figure and how sure it is.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Figure {
    /// The figure.
    pub estimate: f64,
    /// Of a share: as many independent trials would say as much. Of a mean: patients.
    pub effective: f64,
    /// Where it lies with 95 % confidence.
    pub interval: Interval,
}

/// One group of a dimension.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Group {
    /// Cases with a result.
    pub cases: u32,
    /// Its figures.
    pub figures: BTreeMap<Metric, Figure>,
}

impl Summary {
    /// Share of the cases in scope that failed; `None` without such cases.
    pub fn failures(&self) -> Option<f64> {
        let all = u64::from(self.cases) + u64::from(self.failed);
        (all > 0).then(|| f64::from(self.failed) / all as f64)
    }
}

impl Evidence {
    /// Folds the hospital's case records, by study.
    ///
    /// `counts` are the pipelines whose cases count: the subject's own, and earlier ones from which it differs only by
    /// changes that the plan lets pass ([`crate::pipeline::Pipeline::keeps_evidence_of`]). The order of the records does
    /// not matter, and each study is there once.
    pub fn fold(
        subject: Subject,
        window: Window,
        counts: &BTreeSet<Digest>,
        records: &BTreeMap<Pseudonym, CaseRecord>,
    ) -> Self {
        let inside =
            |r: &&CaseRecord| window.from <= r.complete_at && r.complete_at < window.to && counts.contains(&r.pipeline);
        let cases: Vec<&CaseRecord> = records.values().filter(inside).collect();
        let below_top = Stage::ALL.into_iter().filter(|stage| *stage < Stage::PrimaryReader);
        let since = below_top
            .map(|stage| {
                let those: Vec<&CaseRecord> = cases.iter().copied().filter(|r| r.stage >= stage).collect();
                (stage, summary(&those))
            })
            .collect();
        Self { subject, window, since }
    }

    /// The digest that stands under approvals and verdicts: SHA-256 over a context line, a salt and canonical JSON. The
    /// salt is 32 random bytes that the hospital keeps with the evidence: without it a hub could try small tables until
    /// one has the digest.
    pub fn commitment(&self, salt: &[u8; 32]) -> Digest {
        let json = consilium_federation::digest::canonical_json(self);
        Digest::of_parts([&b"consilium/evidence/v1\n"[..], hex::encode(salt).as_bytes(), b"\n", &json])
    }
}

fn count<'a>(cases: impl IntoIterator<Item = &'a CaseRecord>, holds: impl Fn(&CaseRecord) -> bool) -> u32 {
    let n = cases.into_iter().filter(|case| holds(case)).count();
    u32::try_from(n).unwrap_or(u32::MAX)
}

fn summary(cases: &[&CaseRecord]) -> Summary {
    let all = || cases.iter().copied();
    let results: Vec<&CaseRecord> = all().filter(|r| r.result().is_some()).collect();
    let with = || results.iter().copied();
    let pair = |truth: bool, found: bool| {
        count(with(), |r| r.usable_truth() == Some(truth) && r.result().is_some_and(|(f, _)| f == found))
    };
    let positive: BTreeSet<Pseudonym> = with().filter(|r| r.usable_truth() == Some(true)).map(|r| r.patient).collect();
    let days: BTreeSet<i64> = with().map(CaseRecord::day).collect();
    let reads = count(with(), |r| r.read_at.is_some());
    Summary {
        cases: count(with(), |_| true),
        failed: count(all(), |r| r.outcome == Outcome::Failed),
        out_of_scope: count(all(), |r| r.outcome == Outcome::OutOfScope),
        days: u32::try_from(days.len()).unwrap_or(u32::MAX),
        confusion: Confusion {
            true_positive: pair(true, true),
            false_negative: pair(true, false),
            false_positive: pair(false, true),
            true_negative: pair(false, false),
        },
        positives: u32::try_from(positive.len()).unwrap_or(u32::MAX),
        coverage: coverage(&results),
        blind: (reads > 0).then(|| f64::from(count(with(), CaseRecord::blinded)) / f64::from(reads)),
        p95_seconds: p95(with().filter_map(CaseRecord::result).map(|(_, seconds)| seconds).collect()),
        figures: figures(&results),
        groups: groups(&results),
    }
}

fn coverage(results: &[&CaseRecord]) -> f64 {
    let side = |found: bool| {
        let of = |r: &CaseRecord| r.result().is_some_and(|(f, _)| f == found);
        let n = count(results.iter().copied(), of);
        (n > 0).then(|| {
            let known = count(results.iter().copied(), |r| of(r) && r.usable_truth().is_some());
            f64::from(known) / f64::from(n)
        })
    };
    match (side(true), side(false)) {
        (Some(found), Some(not)) => found.min(not),
        (Some(one), None) | (None, Some(one)) => one,
        (None, None) => 0.0,
    }
}

fn p95(mut seconds: Vec<f64>) -> Option<f64> {
    seconds.sort_by(f64::total_cmp);
    let rank = (seconds.len() * 95).div_ceil(100);
    rank.checked_sub(1).and_then(|n| seconds.get(n)).copied()
}

/// A share over those cases where `trial` says something: hit or miss.
fn share(results: &[&CaseRecord], trial: impl Fn(&CaseRecord) -> Option<bool>) -> Option<Figure> {
    let mut patients: BTreeMap<Pseudonym, (u32, u32)> = BTreeMap::new();
    for case in results {
        if let Some(hit) = trial(case) {
            let entry = patients.entry(case.patient).or_default();
            *entry = (entry.0.saturating_add(u32::from(hit)), entry.1.saturating_add(1));
        }
    }
    let seen = stats::clustered(patients.into_values().collect::<Vec<_>>().iter().copied())?;
    let interval = stats::share(seen.estimate, seen.effective);
    Some(Figure { estimate: seen.estimate, effective: seen.effective, interval })
}

/// The mean over patients of a measured quantity, in cases with usable truth.
fn mean(results: &[&CaseRecord], name: &Name) -> Option<Figure> {
    let mut patients: BTreeMap<Pseudonym, (f64, f64)> = BTreeMap::new();
    for case in results.iter().filter(|case| case.usable_truth().is_some()) {
        if let Some(value) = case.metrics.get(name) {
            let entry = patients.entry(case.patient).or_default();
            *entry = (entry.0 + value, entry.1 + 1.0);
        }
    }
    let values: Vec<f64> = patients.into_values().map(|(sum, n)| sum / n).collect();
    let (estimate, interval) = stats::mean(&values)?;
    Some(Figure { estimate, effective: values.len() as f64, interval })
}

fn figures(results: &[&CaseRecord]) -> BTreeMap<Metric, Figure> {
    let found = |r: &CaseRecord| r.result().is_some_and(|(finding, _)| finding);
    let of = |truth: bool, r: &CaseRecord| r.usable_truth() == Some(truth);
    let shares = [
        (Metric::Sensitivity, share(results, |r| of(true, r).then(|| found(r)))),
        (Metric::Specificity, share(results, |r| of(false, r).then(|| !found(r)))),
        (Metric::Ppv, share(results, |r| r.usable_truth().filter(|_| found(r)))),
        (Metric::Agreement, share(results, |r| r.readers_word().map(|word| word == found(r)))),
    ];
    let names: BTreeSet<&Name> = results.iter().flat_map(|r| r.metrics.keys()).collect();
    let means = names.into_iter().map(|name| (Metric::Mean(name.clone()), mean(results, name)));
    shares.into_iter().chain(means).filter_map(|(metric, figure)| Some((metric, figure?))).collect()
}

fn groups(results: &[&CaseRecord]) -> BTreeMap<Name, BTreeMap<Name, Group>> {
    let mut tables: BTreeMap<Name, BTreeMap<Name, Vec<&CaseRecord>>> = BTreeMap::new();
    for case in results {
        for (dimension, group) in &case.groups {
            tables.entry(dimension.clone()).or_default().entry(group.clone()).or_default().push(case);
        }
    }
    let group =
        |cases: Vec<&CaseRecord>| Group { cases: count(cases.iter().copied(), |_| true), figures: figures(&cases) };
    let table = |groups: BTreeMap<Name, Vec<&CaseRecord>>| groups.into_iter().map(|(n, c)| (n, group(c))).collect();
    tables.into_iter().map(|(dimension, groups)| (dimension, table(groups))).collect()
}

#[cfg(test)]
#[path = "evidence_tests.rs"]
mod tests;
