//! Cases become figures: each test has a model that would climb, or not, on a wrong one.

use proptest::prelude::*;

use super::*;
use crate::cases::{Source, Truth};
use crate::testing::{at, case, cases, pseudonym, subject};

fn fold(records: impl IntoIterator<Item = CaseRecord>) -> Evidence {
    let records = records.into_iter().enumerate().map(|(n, r)| (pseudonym(1000 + n as u32), r)).collect();
    let window = Window { from: at(0), to: at(100 * 86_400) };
    Evidence::fold(subject(), window, &BTreeSet::from([Digest::of(b"pipeline")]), &records)
}

fn shadow(records: impl IntoIterator<Item = CaseRecord>) -> Summary {
    fold(records).since.remove(&Stage::Shadow).unwrap()
}

/// 45 of 50 positives, 30 of 40 negatives, each patient once: the textbook table.
#[test]
fn the_confusion_table_and_its_shares() {
    let positives = (0..50).map(|n| case(n, i64::from(n % 20), Some(true), n < 45));
    let negatives = (50..90).map(|n| case(n, i64::from(n % 20), Some(false), n >= 80));
    let seen = shadow(positives.chain(negatives));
    let confusion = Confusion { true_positive: 45, false_negative: 5, false_positive: 10, true_negative: 30 };
    assert_eq!((seen.confusion, seen.cases, seen.positives, seen.days), (confusion, 90, 50, 20));
    for (metric, p, n) in
        [(Metric::Sensitivity, 0.9, 50.0), (Metric::Specificity, 0.75, 40.0), (Metric::Ppv, 45.0 / 55.0, 55.0)]
    {
        let figure = seen.figures[&metric];
        assert_eq!(figure.interval, stats::share(figure.estimate, figure.effective), "{metric}");
        assert!((figure.estimate - p).abs() < 1e-12 && (figure.effective - n).abs() < 1e-9, "{metric} {figure:?}");
    }
    assert_eq!((seen.coverage, seen.p95_seconds, seen.blind), (1.0, Some(30.0), None));
    assert!(!seen.figures.contains_key(&Metric::Agreement), "no reader has said a word");
}

/// One patient scanned fifty times is one patient, and must not lift a model over a floor for fifty.
#[test]
fn scans_of_one_patient_do_not_count_as_patients() {
    let seen = shadow((0..50).map(|n| case(7, n, Some(true), true)));
    assert_eq!((seen.cases, seen.positives), (50, 1));
    let figure = seen.figures[&Metric::Sensitivity];
    assert_eq!((figure.estimate, figure.effective), (1.0, 1.0));
    assert!(figure.interval.lower < 0.03, "{figure:?}");
}

/// If only what the model found is ever checked, it has missed nothing that anybody knows of.
#[test]
fn truth_of_positives_alone_is_no_coverage() {
    let checked = (0..40).map(|n| case(n, 1, Some(true), true));
    let unchecked = (40..100).map(|n| case(n, 1, None, false));
    let seen = shadow(checked.chain(unchecked));
    assert_eq!(seen.figures[&Metric::Sensitivity].estimate, 1.0);
    assert_eq!(seen.coverage, 0.0);
}

/// What a reader says who saw the result is agreement; the model's own echo must not become its performance.
#[test]
fn unblinded_reads_are_agreement_and_not_performance() {
    let read = |n: u32, shown: Option<i64>| {
        let mut record = case(n, 1, None, true);
        record.read_at = Some(at(90_000));
        record.shown_at = shown.map(at);
        record.truths = vec![Truth { source: Source::CodedReport, present: true }];
        record
    };
    let seen = shadow((0..30).map(|n| read(n, Some(89_000))).chain((30..40).map(|n| read(n, None))));
    assert_eq!(seen.figures[&Metric::Agreement].effective, 40.0);
    assert_eq!(seen.figures[&Metric::Sensitivity].effective, 10.0);
    assert_eq!((seen.blind, seen.coverage), (Some(0.25), 0.25));
}

/// A mean is over patients, with Student's interval.
#[test]
fn a_measured_quantity_is_averaged_within_each_patient_first() {
    let dice: Name = "dice".parse().unwrap();
    let measured = |n: u32, value: f64| {
        let mut record = case(n, 1, Some(true), true);
        record.metrics.insert(dice.clone(), value);
        record
    };
    let seen = shadow([measured(1, 0.8), measured(1, 1.0), measured(2, 0.7), measured(3, 0.5)]);
    let figure = seen.figures[&Metric::Mean(dice.clone())];
    assert_eq!(figure.effective, 3.0);
    assert!((figure.estimate - 0.7).abs() < 1e-12);
    let mut without = measured(4, 0.1);
    without.truths.clear();
    assert!(!shadow([without]).figures.contains_key(&Metric::Mean(dice)), "measured against nothing usable");
}

/// Cases of another pipeline, another window or a lower stage are evidence of something else.
#[test]
fn only_cases_of_the_pipeline_the_window_and_the_stage_count() {
    let mut other = case(1, 1, Some(true), true);
    other.pipeline = Digest::of(b"another");
    let late = case(2, 100, Some(true), true);
    let mut high = case(3, 2, Some(true), true);
    high.stage = Stage::Triage;
    let mut failed = case(4, 3, None, true);
    failed.outcome = Outcome::Failed;
    let mut outside = case(5, 3, None, true);
    outside.outcome = Outcome::OutOfScope;
    let seen = fold([other, late, high, failed, outside, case(6, 4, Some(true), true)]);
    let of = |stage| seen.since[&stage].cases;
    assert_eq!((of(Stage::Shadow), of(Stage::SafetyNet), of(Stage::Triage), of(Stage::SecondReader)), (2, 1, 1, 0));
    let all = &seen.since[&Stage::Shadow];
    assert_eq!((all.failed, all.out_of_scope, all.days), (1, 1, 2));
    assert_eq!(all.failures(), Some(1.0 / 3.0));
    assert_eq!(seen.since[&Stage::SecondReader], Summary::default());
}

/// A group's figures are its own.
#[test]
fn groups_have_their_own_figures() {
    let of = |n: u32, sex: &str, found: bool| {
        let mut record = case(n, 1, Some(true), found);
        record.groups.insert("sex".parse().unwrap(), sex.parse().unwrap());
        record
    };
    let seen = shadow((0..10).map(|n| of(n, "F", true)).chain((10..20).map(|n| of(n, "M", n < 15))));
    let sex = &seen.groups[&"sex".parse().unwrap()];
    let sensitivity = |group: &str| sex[&group.parse().unwrap()].figures[&Metric::Sensitivity].estimate;
    assert_eq!((sensitivity("F"), sensitivity("M")), (1.0, 0.5));
}

/// Golden: the digest under approvals and verdicts, and that it says nothing without the salt.
#[test]
fn evidence_is_committed_to_with_a_salt() {
    // Without figures: how a library rounds the last digit of one is no part of the format.
    let evidence = fold([]);
    assert_eq!(
        evidence.commitment(&[7; 32]).to_string(),
        "sha256:589268f5b73000e0f657eb9dea7d65c00eeaee1e3a4a2a992f680a9caf99b6d8"
    );
    assert_ne!(evidence.commitment(&[7; 32]), evidence.commitment(&[8; 32]));
    let evidence = fold([case(1, 1, Some(true), true)]);
    let again: Evidence = serde_json::from_value(serde_json::to_value(&evidence).unwrap()).unwrap();
    assert_eq!(again, evidence);
}

fn any_case() -> impl Strategy<Value = CaseRecord> {
    (0..12u32, 0..40i64, prop::option::of(any::<bool>()), any::<bool>(), 0..5usize, 0..8u32).prop_map(
        |(patient, day, truth, found, stage, odd)| {
            let mut record = case(patient, day, truth, found);
            record.stage = Stage::ALL[stage];
            match odd {
                0 => record.outcome = Outcome::Failed,
                1 => record.outcome = Outcome::OutOfScope,
                2 => record.read_at = Some(at(50 * 86_400)),
                _ => {}
            }
            record
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), failure_persistence: None, ..ProptestConfig::default() })]

    /// Counts add up, shares are shares, and a higher stage never has more than a lower one.
    #[test]
    fn a_summary_is_consistent(records in prop::collection::vec(any_case(), 0..60)) {
        let n = records.len() as u32;
        let evidence = fold(records);
        let all = &evidence.since[&Stage::Shadow];
        prop_assert_eq!(all.cases + all.failed + all.out_of_scope, n);
        for pair in evidence.since.values().collect::<Vec<_>>().windows(2) {
            prop_assert!(pair[0].cases >= pair[1].cases && pair[0].days >= pair[1].days);
            prop_assert!(pair[0].positives >= pair[1].positives && pair[0].failed >= pair[1].failed);
        }
        for summary in evidence.since.values() {
            let c = summary.confusion;
            prop_assert!(c.true_positive + c.false_negative + c.false_positive + c.true_negative <= summary.cases);
            prop_assert!(summary.positives <= c.true_positive + c.false_negative);
            prop_assert!((0.0..=1.0).contains(&summary.coverage) && summary.days <= summary.cases);
            for figure in summary.figures.values() {
                let Interval { lower, upper } = figure.interval;
                prop_assert!(0.0 <= lower && lower <= figure.estimate + 1e-9 && figure.estimate <= upper + 1e-9);
                prop_assert!(upper <= 1.0 && figure.effective <= f64::from(summary.cases) + 1e-9);
            }
        }
    }
}
