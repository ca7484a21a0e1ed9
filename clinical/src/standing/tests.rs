//! Where models stand, case by case: each is a patient who would be seen by a model that nobody trusts, or not seen by
//! one that they do.

use super::world::{World, day, figure, good, name};
use super::*;
use crate::evidence::Figure;
use crate::hazards::{Hazard, Origin};
use crate::rules::Outcome;
use crate::testing::{at, hazard, sign};
use crate::values::Metric;

type Change = fn(&mut World);

fn stands(expected: Option<Stage>, what: &str, change: Change) {
    let mut world = World::new();
    change(&mut world);
    let standing = world.stand();
    assert_eq!(standing.effective, expected, "{what}: {}", explain("model", &standing));
    assert_eq!(standing.because.is_empty(), standing.effective >= Some(world.asked), "{what}");
}

#[test]
fn where_all_is_well_it_stands_on_what_is_asked() {
    for stage in Stage::ALL {
        let mut world = World::new();
        world.asked = stage;
        let standing = world.stand();
        assert_eq!((standing.effective, standing.because), (Some(stage), vec![]));
    }
}

#[test]
fn the_hospital_s_policy_is_a_ceiling() {
    use Stage::{SafetyNet, Shadow};
    stands(None, "no policy", |w| w.policy = false);
    stands(None, "no maxStage", |w| w.max_stage = None);
    stands(Some(SafetyNet), "maxStage", |w| w.max_stage = Some(SafetyNet));
    stands(Some(Shadow), "no entry for SafetyNet: nothing above it either", |w| {
        w.require.retain(|r| r.stage != SafetyNet);
    });
    stands(Some(SafetyNet), "the hospital asks more than the plan", |w| {
        let mut rule = w.plan.as_ref().unwrap().rules[0].clone();
        (rule.stage, rule.cases) = (Stage::Prioritisation, 2000);
        w.rules = vec![rule];
    });
    stands(Some(SafetyNet), "a third signature for Prioritisation", |w| w.require[2].approvals = 3);
}

#[test]
fn signatures_raise_and_expire() {
    use Stage::{Prioritisation, SafetyNet, Shadow};
    stands(None, "none", |w| w.approvals.clear());
    stands(Some(Prioritisation), "one for a stage counts for those below", |w| {
        w.approvals.clear();
        w.approve(Prioritisation, 10);
    });
    stands(Some(Shadow), "the first kind, whatever it was signed for", |w| {
        w.approvals.clear();
        w.approve_as_before(Stage::PrimaryReader, 10);
    });
    stands(Some(SafetyNet), "the higher ones have expired", |w| {
        w.approvals.clear();
        w.approve(Prioritisation, 0);
        w.approve(SafetyNet, 10);
    });
    stands(Some(Shadow), "all have expired: on to Shadow", |w| w.now = day(60));
    stands(None, "all have expired, and the hospital wants it gone", |w| {
        w.now = day(60);
        w.on_expiry = OnExpiry::Withdraw;
    });
    stands(None, "one person twice", |w| {
        let mary = w.approval(1, Stage::PrimaryReader, 10);
        w.approvals = vec![mary.clone(), mary];
    });
    stands(Some(Shadow), "a role of the plan is missing", |w| {
        w.keys[0].role = "radiographer".into();
        w.approvals.clear();
        w.approve(Prioritisation, 10);
    });
    stands(None, "over evidence that the hospital cannot show", |w| w.own_evidence.clear());
}

#[test]
fn without_a_plan_that_holds_nothing_stands_above_shadow() {
    let shadow = Some(Stage::Shadow);
    stands(shadow, "no plan", |w| {
        w.approve_as_before(Stage::Shadow, 10);
        w.plan = None;
    });
    stands(shadow, "of another line", |w| {
        w.approve_as_before(Stage::Shadow, 10);
        w.line = "research/spleen".parse().unwrap();
    });
    stands(shadow, "ended", |w| {
        w.plan.as_mut().unwrap().expires = day(0);
        w.approvals.clear();
        w.approve(Stage::PrimaryReader, 10);
    });
    stands(Some(Stage::Triage), "no rule for SecondReader", |w| {
        w.plan.as_mut().unwrap().rules.truncate(3);
        w.approvals.clear();
        w.approve(Stage::PrimaryReader, 10);
        w.verdicts = [("birch", 11), ("cedar", 12)]
            .into_iter()
            .flat_map(|(site, key)| [Stage::Prioritisation, Stage::Triage].map(|stage| w.verdict(site, key, stage)))
            .collect();
    });
}

#[test]
fn evidence_of_the_rung_below_carries_a_rung() {
    use Stage::{SafetyNet, Shadow, Triage};
    stands(Some(Shadow), "a lost volume", |w| w.evidence = None);
    stands(Some(Shadow), "another pipeline's", |w| {
        w.evidence.as_mut().unwrap().subject.pipeline = Digest::of(b"another");
    });
    stands(Some(Shadow), "too old", |w| w.evidence.as_mut().unwrap().window.to = day(-90));
    stands(Some(SafetyNet), "it has never been a safety net: no rung is skipped", |w| {
        *w.summary(Stage::Prioritisation) = Summary::default();
    });
    stands(Some(Triage), "too few days on Triage", |w| w.summary(Stage::SecondReader).days = 59);
    stands(Some(Shadow), "sensitivity not shown", |w| {
        w.summary(SafetyNet).figures.insert(Metric::Sensitivity, figure(0.96, 0.07));
    });
    stands(Some(Shadow), "sensitivity not measured", |w| {
        w.summary(SafetyNet).figures.remove(&Metric::Sensitivity);
    });
    stands(Some(SafetyNet), "failures", |w| w.summary(Stage::Prioritisation).failed = 50);
    stands(Some(SafetyNet), "slow", |w| w.summary(Stage::Prioritisation).p95_seconds = Some(121.0));
    stands(Some(SafetyNet), "no blinded reads", |w| w.summary(Stage::Prioritisation).blind = None);
    stands(Some(SafetyNet), "truth of one side", |w| w.summary(Stage::Prioritisation).coverage = 0.0);
    stands(Some(SafetyNet), "nothing known of women", |w| {
        w.summary(Stage::Prioritisation).groups.get_mut(&name("sex")).unwrap().remove(&name("F"));
    });
    stands(Some(SafetyNet), "it fails in a group that the plan does not name", |w| {
        let mut group = w.summary(Stage::Prioritisation).groups[&name("sex")][&name("F")].clone();
        group.figures.insert(Metric::Specificity, figure(0.5, 0.1));
        w.summary(Stage::Prioritisation).groups.get_mut(&name("sex")).unwrap().insert(name("X"), group);
    });
}

#[test]
fn other_hospitals_and_the_sum_hold_back() {
    use Stage::SafetyNet;
    stands(Some(SafetyNet), "birch is not heard", |w| w.verdicts.retain(|v| v.verdict.hospital.as_str() != "birch"));
    stands(Some(SafetyNet), "it fails in cedar", |w| {
        let failing = |v: &mut SignedVerdict| {
            v.verdict.metrics[2] = Outcome::Fail;
            v.signature = sign(12, &v.verdict.signed_bytes());
        };
        w.verdicts.iter_mut().filter(|v| v.verdict.hospital.as_str() == "cedar").for_each(failing);
    });
    stands(Some(SafetyNet), "the hub made cedar's verdict up", |w| {
        let forged = |v: &mut SignedVerdict| v.signature = sign(99, &v.verdict.signed_bytes());
        w.verdicts.iter_mut().filter(|v| v.verdict.hospital.as_str() == "cedar").for_each(forged);
    });
    stands(Some(SafetyNet), "they have expired", |w| {
        w.evidence.as_mut().unwrap().window.to = day(70);
        w.approvals.clear();
        w.approve(Stage::PrimaryReader, 200);
        w.now = day(80);
    });
    stands(Some(SafetyNet), "no sum", |w| w.global = None);
    stands(Some(SafetyNet), "an old sum", |w| w.global.as_mut().unwrap().until = day(0));
    stands(Some(SafetyNet), "the sum does not show it", |w| {
        w.global.as_mut().unwrap().figures.insert(Metric::Sensitivity, figure(0.93, 0.02));
    });
}

/// What a hospital showed to fail does not pass because its word grew old.
#[test]
fn a_failure_elsewhere_does_not_expire() {
    let mut world = World::new();
    for verdict in world.verdicts.iter_mut().filter(|v| v.verdict.hospital.as_str() == "cedar") {
        verdict.verdict.metrics[2] = Outcome::Fail;
        verdict.verdict.expiry = day(-1);
        verdict.signature = sign(12, &verdict.verdict.signed_bytes());
    }
    let missing = world.stand().missing;
    let fails = |lack: &Lack| matches!(lack, Lack::SiteFails(_, site) if site.as_str() == "cedar");
    assert!(missing.iter().any(fails), "{missing:?}");
}

fn with_hazard(w: &mut World, origin: Origin, change: fn(Hazard) -> Hazard, lowers: Fall) {
    w.hazards.take(origin, &name("h1"), change(hazard(lowers))).unwrap();
}

#[test]
fn hazards_drift_and_leases_lower() {
    use Stage::{SecondReader, Shadow};
    let same: fn(Hazard) -> Hazard = |h| h;
    let calm = |w: &mut World| {
        w.plan.as_mut().unwrap().on_hazard = Fall::Watch;
        *w = resigned(w.clone());
    };
    for origin in [Origin::Hub, Origin::Hospital] {
        for (fall, expected) in [
            (Fall::Watch, Some(Stage::PrimaryReader)),
            (Fall::OneDown, Some(SecondReader)),
            (Fall::Shadow, Some(Shadow)),
            (Fall::Withdraw, None),
        ] {
            let mut world = World::new();
            calm(&mut world);
            with_hazard(&mut world, origin, same, fall);
            assert_eq!(world.stage(), expected, "{origin:?} {fall:?}");
        }
    }
    stands(Some(Shadow), "the plan lowers further than the hazard says", |w| {
        with_hazard(w, Origin::Hub, |h| h, Fall::Watch);
    });
    stands(Some(Stage::PrimaryReader), "a hazard of another hospital", |w| {
        with_hazard(w, Origin::Hub, |h| Hazard { hospital: Some("birch".parse().unwrap()), ..h }, Fall::Withdraw);
    });
    stands(Some(SecondReader), "drift", |w| {
        w.drift.as_mut().unwrap().insert(name("spacing"), Drift::Seen);
    });
    stands(Some(SecondReader), "drift not measured is no better and no worse", |w| w.drift = None);
    stands(Some(SecondReader), "drift of too few cases", |w| {
        w.drift.as_mut().unwrap().insert(name("scanner"), Drift::Unknown);
    });
    stands(Some(Shadow), "no lease", |w| w.lease = None);
    stands(Some(Shadow), "the lease has ended", |w| w.lease = Some(w.now));
}

/// A world whose signatures are over its changed plan.
fn resigned(mut w: World) -> World {
    w.approvals.clear();
    w.approve(Stage::PrimaryReader, 60);
    let keys = |site: &str| if site == "birch" { 11 } else { 12 };
    w.verdicts = w
        .verdicts
        .iter()
        .map(|v| w.verdict(v.verdict.hospital.as_str(), keys(v.verdict.hospital.as_str()), v.verdict.stage))
        .collect();
    w
}

/// A lease that is signed for longer than this would outlive what it rests on.
#[test]
fn until_is_the_first_moment_at_which_it_falls_by_itself() {
    let mut world = World::new();
    assert_eq!(world.stand().until, Some(day(60)), "the approvals");
    world.lease = Some(day(20));
    assert_eq!(world.stand().until, Some(day(20)), "the lease");
    world.evidence.as_mut().unwrap().window.to = day(-85);
    assert_eq!(world.stand().until, Some(day(5)), "the evidence");
    world.asked = Stage::Shadow;
    assert_eq!(world.stand().until, None, "in Shadow nothing of this matters");
    world.on_expiry = OnExpiry::Withdraw;
    assert_eq!(world.stand().until, Some(day(60)));
}

/// What people are told is what they must bring, in numbers.
#[test]
fn explain_says_in_numbers_what_the_next_rung_lacks() {
    let mut world = World::new();
    world.asked = Stage::Prioritisation;
    world.approvals.clear();
    world.approve(Stage::SafetyNet, 30);
    let officer = world.approval(2, Stage::Prioritisation, 30);
    world.approvals.push(officer);
    let summary = world.summary(Stage::Prioritisation);
    (summary.positives, summary.days, summary.failed) = (34, 29, 60);
    summary.figures.insert(Metric::Sensitivity, Figure { effective: 34.0, ..figure(0.95, 0.1) });
    world.global = None;
    let text = explain("hippocampus", &world.stand());
    assert_eq!(text, include_str!("../../testdata/explain.txt"), "{text}");
}

#[test]
fn a_hospital_s_own_verdict_is_of_its_own_cases() {
    let plan = super::world::full_plan();
    let rule = plan.rule(Stage::Prioritisation).unwrap();
    let (whole, metrics) = own_verdict(rule, &good());
    assert_eq!(whole, Outcome::Pass);
    assert_eq!(metrics, [Outcome::Pass, Outcome::Pass, Outcome::Pass, Outcome::Pass, Outcome::Insufficient]);
    let few = Summary { cases: 10, ..good() };
    assert_eq!(own_verdict(rule, &few).0, Outcome::Insufficient);
    let mut bad = good();
    bad.groups
        .get_mut(&name("sex"))
        .unwrap()
        .get_mut(&name("M"))
        .unwrap()
        .figures
        .insert(Metric::Specificity, figure(0.4, 0.1));
    assert_eq!(own_verdict(rule, &bad).0, Outcome::Fail);
    assert_eq!(own_verdict(rule, &Summary::default()).0, Outcome::Insufficient);
}

#[test]
fn one_model_of_a_line_acts_whatever_promotions_there_are() {
    let promoted = |model: &[u8], made: i64, asked: Stage, effective: Option<Stage>| {
        let mut world = World::new();
        (world.asked, world.max_stage) = (asked, effective);
        Promoted { model: Digest::of(model), made: at(made), standing: world.stand() }
    };
    let old = || promoted(b"old", 1, Stage::Triage, Some(Stage::Triage));
    let new = |asked| promoted(b"new", 2, asked, Some(Stage::PrimaryReader));
    let stage = |line: &LineStanding, model: &[u8]| line.models[&Digest::of(model)].effective;

    let line = arbitrate([new(Stage::Shadow), old()]);
    assert_eq!((line.stage(), line.acting), (Some(Stage::Triage), Some(Digest::of(b"old"))));
    assert_eq!(stage(&line, b"new"), Some(Stage::Shadow), "the candidate looks on");

    let line = arbitrate([new(Stage::Triage), old()]);
    assert_eq!((line.stage(), stage(&line, b"new")), (Some(Stage::Triage), Some(Stage::Shadow)), "who was first stays");
    assert_eq!(line.models[&Digest::of(b"new")].because, [Lack::LineTaken]);

    let twice = arbitrate([old(), promoted(b"old", 3, Stage::Shadow, Some(Stage::Triage))]);
    assert_eq!((twice.models.len(), twice.stage()), (1, Some(Stage::Shadow)), "two promotions of one model: the lower");
    assert_eq!(arbitrate([]).stage(), None);
}
