//! Series of studies: of those that there are, up to a bound, and of none that is gone. They are written anew at every
//! scrape, so that what no longer holds (a reason that no hospital has any more) is gone with it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use consilium_federation::StudyKey;
use consilium_federation::round::{RoundStep, SiteReason};
use jiff::Timestamp;
use prometheus::{GaugeVec, IntGaugeVec};

use super::Builder;

/// Studies that have series; of any beyond it only the number is told.
const MOST: usize = 1000;

/// Where a study is.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Figures {
    /// The round under way, or the last one; 0 before the first.
    pub round: u32,
    /// Rounds that are planned.
    pub of: u32,
    /// Rounds that gave a new model.
    pub succeeded: u32,
    /// It is accepted and under way, or done.
    pub ready: bool,
    /// Somebody has to act.
    pub stalled: bool,
    /// The newest round, once it has begun.
    pub newest: Option<Newest>,
    /// Mean Dice of the newest model that was scored, over all hospitals.
    pub dice: Option<f64>,
}

/// Where its newest round is.
#[derive(Clone, Debug, PartialEq)]
pub struct Newest {
    /// Its step.
    pub step: RoundStep,
    /// Since when.
    pub since: Timestamp,
    /// When the step ends at the latest; none once the round is over.
    pub deadline: Option<Timestamp>,
    /// Updates in its model.
    pub contributors: u32,
    /// Hospitals that it waits for until the deadline.
    pub waited_for: u32,
    /// Its hospitals, by what they or the hub said last.
    pub sites: Vec<SiteReason>,
}

/// Of all studies.
#[derive(Clone)]
pub(super) struct Studies {
    known: Arc<Mutex<BTreeMap<StudyKey, Figures>>>,
    round: IntGaugeVec,
    of: IntGaugeVec,
    succeeded: IntGaugeVec,
    ready: IntGaugeVec,
    stalled: IntGaugeVec,
    step: IntGaugeVec,
    since: GaugeVec,
    deadline: GaugeVec,
    contributors: IntGaugeVec,
    waited_for: IntGaugeVec,
    sites: IntGaugeVec,
    dice: GaugeVec,
    all: prometheus::IntGauge,
}

impl Studies {
    pub(super) fn new(b: &mut Builder) -> Self {
        Self {
            known: Arc::default(),
            all: b.add("gauge", prometheus::IntGauge::new("consilium_studies", "Studies that there are.")),
            round: b.int_gauge("consilium_study_round", &["study"], "The round under way, or the last one."),
            of: b.int_gauge("consilium_study_rounds", &["study"], "Rounds that the study plans."),
            succeeded: b.int_gauge("consilium_study_rounds_succeeded", &["study"], "Rounds that gave a new model."),
            ready: b.int_gauge(
                "consilium_study_ready",
                &["study"],
                "1 while the study is accepted and under way, or done.",
            ),
            stalled: b.int_gauge(
                "consilium_study_stalled",
                &["study"],
                "1 while somebody has to act before it goes on.",
            ),
            step: b.int_gauge(
                "consilium_study_step",
                &["study"],
                "Step of the newest round: 1 training, 2 aggregating, 3 evaluating, 4 succeeded, 5 failed.",
            ),
            since: b.gauge(
                "consilium_study_step_since_timestamp_seconds",
                &["study"],
                "When that step began, Unix time.",
            ),
            deadline: b.gauge(
                "consilium_study_step_deadline_timestamp_seconds",
                &["study"],
                "When that step ends at the latest, Unix time; none once the round is over.",
            ),
            contributors: b.int_gauge(
                "consilium_study_contributors",
                &["study"],
                "Updates in the newest round's model.",
            ),
            waited_for: b.int_gauge(
                "consilium_study_waited_for",
                &["study"],
                "Hospitals that the newest round waits for until its deadline, because they were left out too often.",
            ),
            sites: b.int_gauge(
                "consilium_study_sites",
                &["study", "reason"],
                "Hospitals of the newest round, by where they are with it; refusals are among the reasons.",
            ),
            dice: b.gauge(
                "consilium_study_dice",
                &["study"],
                "Mean Dice of the newest scored model over all hospitals' cases.",
            ),
        }
    }

    /// Notes a study, if it still is one when nobody can forget it meanwhile.
    pub(super) fn put(&self, key: StudyKey, figures: Figures, is: impl FnOnce() -> bool) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if is() {
            known.insert(key, figures);
        }
    }

    pub(super) fn forget(&self, key: &StudyKey) {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).remove(key);
    }

    /// Writes the series.
    pub(super) fn write(&self) {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        self.all.set(known.len() as i64);
        let counts =
            [&self.round, &self.of, &self.succeeded, &self.ready, &self.stalled, &self.step, &self.contributors];
        counts.into_iter().chain([&self.waited_for, &self.sites]).for_each(IntGaugeVec::reset);
        [&self.since, &self.deadline, &self.dice].into_iter().for_each(GaugeVec::reset);
        known.iter().take(MOST).for_each(|(key, figures)| self.one(&key.to_string(), figures));
    }

    fn one(&self, study: &str, figures: &Figures) {
        let label = &[study];
        self.round.with_label_values(label).set(figures.round.into());
        self.of.with_label_values(label).set(figures.of.into());
        self.succeeded.with_label_values(label).set(figures.succeeded.into());
        self.ready.with_label_values(label).set(figures.ready.into());
        self.stalled.with_label_values(label).set(figures.stalled.into());
        if let Some(dice) = figures.dice {
            self.dice.with_label_values(label).set(dice);
        }
        let Some(newest) = &figures.newest else { return };
        let seconds = |at: Timestamp| at.as_millisecond() as f64 / 1e3;
        self.step.with_label_values(label).set(number(newest.step));
        self.since.with_label_values(label).set(seconds(newest.since));
        if let Some(deadline) = newest.deadline {
            self.deadline.with_label_values(label).set(seconds(deadline));
        }
        self.contributors.with_label_values(label).set(newest.contributors.into());
        self.waited_for.with_label_values(label).set(newest.waited_for.into());
        for reason in &newest.sites {
            self.sites.with_label_values(&[study, &format!("{reason:?}")]).inc();
        }
    }
}

/// The number that stands for a step; dashboards have its name.
const fn number(step: RoundStep) -> i64 {
    match step {
        RoundStep::Training => 1,
        RoundStep::Aggregating => 2,
        RoundStep::Evaluating => 3,
        RoundStep::Succeeded => 4,
        RoundStep::Failed => 5,
    }
}

#[cfg(test)]
mod tests {
    use crate::metrics::Metrics;

    use super::*;

    fn figures(sites: &[SiteReason]) -> Figures {
        let newest = Newest {
            step: RoundStep::Training,
            since: Timestamp::from_second(100).unwrap(),
            deadline: Some(Timestamp::from_second(400).unwrap()),
            contributors: 0,
            waited_for: 1,
            sites: sites.to_vec(),
        };
        Figures {
            round: 3,
            of: 50,
            succeeded: 2,
            ready: true,
            newest: Some(newest),
            dice: Some(0.81),
            ..Figures::default()
        }
    }

    fn key(name: &str) -> StudyKey {
        StudyKey::new("research", name)
    }

    /// An SRE sees where a study is, and a hospital that has trained is no longer counted among those that refuse.
    #[test]
    fn a_study_shows_where_it_is_now_and_nothing_of_before() {
        let metrics = Metrics::new();
        metrics.study(key("a"), figures(&[SiteReason::DeniedByPolicy, SiteReason::Training]), || true);
        let text = metrics.text();
        for line in [
            "consilium_study_round{study=\"research/a\"} 3",
            "consilium_study_rounds{study=\"research/a\"} 50",
            "consilium_study_step{study=\"research/a\"} 1",
            "consilium_study_step_since_timestamp_seconds{study=\"research/a\"} 100",
            "consilium_study_sites{reason=\"DeniedByPolicy\",study=\"research/a\"} 1",
            "consilium_study_dice{study=\"research/a\"} 0.81",
            "consilium_studies 1",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
        let mut over = figures(&[SiteReason::Ready, SiteReason::Ready]);
        over.newest.as_mut().unwrap().deadline = None;
        metrics.study(key("a"), over, || true);
        let text = metrics.text();
        assert!(
            text.contains("reason=\"Ready\",study=\"research/a\"} 2") && !text.contains("DeniedByPolicy"),
            "{text}"
        );
        assert!(!text.contains("deadline_timestamp_seconds{study"), "{text}");
    }

    /// A deleted study that stayed in Prometheus would be alerted on for ever; so would one whose last look came late.
    #[test]
    fn the_series_of_a_study_go_with_it() {
        let metrics = Metrics::new();
        metrics.study(key("a"), figures(&[]), || true);
        metrics.forget_study(&key("a"));
        metrics.study(key("a"), figures(&[]), || false);
        let text = metrics.text();
        assert!(!text.contains("research/a") && text.contains("consilium_studies 0"), "{text}");
    }

    /// A loop that makes studies must not make series without end.
    #[test]
    fn beyond_a_bound_studies_are_only_counted() {
        let metrics = Metrics::new();
        for n in 0..MOST + 5 {
            metrics.study(key(&format!("s{n}")), figures(&[]), || true);
        }
        let text = metrics.text();
        assert!(text.contains(&format!("consilium_studies {}", MOST + 5)));
        assert_eq!(text.matches("consilium_study_round{").count(), MOST);
    }
}
