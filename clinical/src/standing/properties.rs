//! What holds of every standing, whatever is missing, forged, expired or absurd.

use proptest::prelude::*;
use proptest::strategy::ValueTree as _;

use super::world::{World, day, figure, good, name};
use super::*;
use crate::hazards::{Closed, Control, Hazard, Origin, Risk};
use crate::rules::Outcome;
use crate::testing::{at, cases, hazard, sign};
use crate::values::Metric;

/// A world with anything broken in it, and what is genuine of its signatures.
#[derive(Clone)]
struct Drawn {
    world: World,
    /// Of each approval: its key, if the signature is good and its terms fit.
    genuine: Vec<Option<u8>>,
}

impl std::fmt::Debug for Drawn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&explain("model", &self.world.stand()))
    }
}

fn stage() -> impl Strategy<Value = Stage> {
    (0..6usize).prop_map(|n| Stage::ALL[n])
}

/// Mostly the highest, so that something else decides.
fn high() -> impl Strategy<Value = Stage> {
    prop_oneof![2 => Just(Stage::PrimaryReader), 1 => stage()]
}

/// Key, stage, days left, and what is wrong with it (above 5: nothing).
type DrawnApproval = (u8, Stage, i64, u8);

fn approval(world: &World, (key, stage, days, wrong): DrawnApproval) -> (crate::approval::StageApproval, bool) {
    let mut approval = world.approval(key, stage, days);
    match wrong {
        0 => approval.terms.stage = Stage::PrimaryReader,
        1 => approval.terms.hospital = crate::approval::Hospitals::One("birch".parse().unwrap()),
        2 => approval.terms.evidence = Digest::of(b"made up"),
        3 => approval.terms.model = Digest::of(b"another"),
        4 => approval.signature = sign(77, &approval.terms.signed_bytes()),
        5 => approval.terms.pipeline = Digest::of(b"another"),
        _ => {}
    }
    // Signed as edited where that is not what is wrong: the terms must be looked at too.
    if matches!(wrong, 1 | 2 | 3 | 5) {
        approval.signature = sign(key, &approval.terms.signed_bytes());
    }
    let good = wrong > 5 || (wrong == 0 && stage == Stage::PrimaryReader);
    (approval, good)
}

/// A summary with some things worse than good, by bits.
fn summary(bits: u16) -> Summary {
    let mut s = good();
    let is = |n: u16| bits & (1 << n) != 0;
    s.cases = if is(0) { 400 } else { s.cases };
    s.positives = if is(1) { 110 } else { s.positives };
    s.days = if is(2) { 40 } else { s.days };
    s.failed = if is(3) { 100 } else { s.failed };
    s.coverage = if is(4) { 0.5 } else { s.coverage };
    s.blind = s.blind.filter(|_| !is(5));
    if is(6) {
        s.figures.insert(Metric::Sensitivity, figure(0.94, 0.05));
    }
    if is(7) {
        s.groups.clear();
    }
    if is(8) {
        s = Summary::default();
    }
    s
}

/// Mostly good, or little would ever be above Shadow.
fn worse() -> impl Strategy<Value = u16> {
    prop_oneof![14 => Just(0u16), 2 => (0..9u16).prop_map(|n| 1 << n), 1 => any::<u16>()]
}

prop_compose! {
    fn drawn()(
        (asked, max_stage, policy) in (high(), prop::option::weighted(0.98, high()), prop::bool::weighted(0.98)),
        approvals in prop::collection::vec((1..3u8, stage(), -3..70i64, prop_oneof![1 => 0..6u8, 2 => Just(9u8)]), 0..5),
        top in prop::bool::weighted(0.8),
        first in prop::bool::weighted(0.3),
        sums in prop::collection::vec(worse(), 5),
        window_end in prop::option::weighted(0.98, prop_oneof![9 => -40..0i64, 1 => -200..0i64]),
        verdicts in prop_oneof![Just(vec![]), prop::collection::vec((any::<bool>(), stage(), 0..9u8, -5..90i64), 0..4)],
        keep in prop::bool::weighted(0.95),
        global in prop::option::weighted(0.97, (-2..90i64, prop::bool::weighted(0.97))),
        hazards in prop_oneof![3 => Just(vec![]), 1 => prop::collection::vec((any::<bool>(), 0..4usize, any::<bool>()), 0..3)],
        drift in prop::option::weighted(0.98, prop::collection::vec(prop_oneof![30 => Just(0u8), 1 => 0..4u8], 3)),
        lease in prop::option::weighted(0.98, prop_oneof![1 => -2..3i64, 9 => 1..90i64]),
        withdraw in any::<bool>(),
        now in prop_oneof![6 => Just(0i64), 1 => 0..80i64],
    ) -> Drawn {
        let mut world = World::new();
        (world.asked, world.max_stage, world.policy) = (asked, max_stage, policy);
        let base = if top { world.approvals.clone() } else { vec![] };
        let mut genuine: Vec<Option<u8>> = base.iter().zip([1, 2]).map(|(_, key)| Some(key)).collect();
        let (more, right): (Vec<_>, Vec<bool>) = approvals.iter().map(|a| approval(&world, *a)).unzip();
        genuine.extend(right.iter().zip(&approvals).map(|(right, a)| right.then_some(a.0)));
        world.approvals = base.into_iter().chain(more).collect();
        if first {
            world.approve_as_before(Stage::PrimaryReader, 30);
        }
        match window_end {
            None => world.evidence = None,
            Some(end) => {
                world.evidence.as_mut().unwrap().window.to = day(end);
                for (stage, bits) in Stage::ALL.into_iter().skip(1).zip(sums) {
                    *world.summary(stage) = summary(bits);
                }
            }
        }
        if !keep {
            world.verdicts.clear();
        }
        for (birch, stage, kind, days) in verdicts.into_iter().filter(|v| v.1 > Stage::SafetyNet) {
            let (site, key) = if birch { ("birch", 11) } else { ("cedar", 12) };
            let mut verdict = world.verdict(site, key, stage);
            verdict.verdict.expiry = day(days);
            verdict.verdict.window_end = day(days - 83);
            if kind < 4 {
                verdict.verdict.metrics[2] = [Outcome::Fail, Outcome::Insufficient, Outcome::Pass, Outcome::Fail][usize::from(kind)];
            }
            verdict.signature = sign(if kind == 8 { 78 } else { key }, &verdict.verdict.signed_bytes());
            world.verdicts.push(verdict);
        }
        world.global = global.map(|(days, good_one)| {
            let mut figures = good().figures;
            if !good_one {
                figures.clear();
            }
            GlobalFigures { figures, until: day(days) }
        });
        for (n, (hub, fall, closed)) in hazards.into_iter().enumerate() {
            let fall = [Fall::Watch, Fall::OneDown, Fall::Shadow, Fall::Withdraw][fall];
            let origin = if hub { Origin::Hub } else { Origin::Hospital };
            let hazard = if closed { ended(hazard(fall)) } else { hazard(fall) };
            world.hazards.take(origin, &name(&format!("h{n}")), hazard).unwrap();
        }
        world.drift = drift.map(|seen| {
            let of = |n: u8| [Drift::Steady, Drift::Unknown, Drift::Seen, Drift::Steady][usize::from(n)];
            ["spacing", "scanner", "failures"].into_iter().zip(seen).map(|(feature, n)| (name(feature), of(n))).collect()
        });
        world.lease = lease.map(day);
        world.on_expiry = if withdraw { OnExpiry::Withdraw } else { OnExpiry::Shadow };
        world.now = day(now);
        Drawn { world, genuine }
    }
}

fn ended(mut hazard: Hazard) -> Hazard {
    hazard.controls = vec![Control { control: "a rule".into(), proof: Some("a test".into()) }];
    hazard.residual = Some(Risk { severity: 1, likelihood: 1 });
    hazard.closed = Some(Closed { at: at(6000), by: name("officer"), why: "it is gone".into() });
    hazard
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), failure_persistence: None, ..ProptestConfig::default() })]

    /// Above Shadow only with policy, plan, lease, people's good signatures for that stage, and evidence on each rung.
    #[test]
    fn it_never_stands_above_any_input(drawn in drawn()) {
        let Drawn { world, genuine } = &drawn;
        let standing = world.stand();
        let effective = standing.effective;
        prop_assert!(effective <= Some(world.asked) && effective <= world.max_stage);
        prop_assert!(effective.is_none() || world.policy);
        prop_assert_eq!(standing.because.is_empty(), effective >= Some(world.asked));
        prop_assert_eq!(standing.missing.is_empty(), standing.next.is_none());
        let Some(stage) = effective.filter(|stage| *stage > Stage::Shadow) else { return Ok(()) };
        prop_assert!(world.lease > Some(world.now));
        let signed = |key: u8| {
            let good = world.approvals.iter().zip(genuine).filter(|(_, genuine)| **genuine == Some(key));
            good.into_iter().any(|(a, _)| a.terms.stage >= stage && a.terms.expiry > world.now)
        };
        prop_assert!(signed(1) && signed(2), "two people");
        let evidence = world.evidence.as_ref().unwrap();
        for rung in Stage::ALL.into_iter().filter(|rung| *rung > Stage::Shadow && *rung <= stage) {
            let rule = world.plan.as_ref().unwrap().rule(rung).unwrap();
            let here = &evidence.since[&below(rung).unwrap()];
            prop_assert!(here.cases >= rule.cases && here.positives >= rule.positives && here.days >= rule.days);
        }
        let falls = world.hazards.all().filter(|(_, _, h)| h.closed.is_none()).count();
        prop_assert!(falls == 0, "the plan lowers to Shadow on any open hazard");
    }

    /// Time, a hazard, drift, less evidence, a lost volume, a lost lease, fewer signatures, a verdict kept back.
    #[test]
    fn nothing_that_is_taken_away_raises(
        drawn in drawn(), days in 0..200i64, bits in 1..512u16, rung in 1..6usize, which in any::<prop::sample::Index>(),
    ) {
        let before = drawn.world.stage();
        let lowered = |what: &str, change: &dyn Fn(&mut World)| {
            let mut world = drawn.world.clone();
            change(&mut world);
            let after = world.stage();
            prop_assert!(after <= before, "{what}: {before:?} became {after:?}");
            Ok(())
        };
        lowered("time", &|w| w.now += jiff::SignedDuration::from_hours(24 * days))?;
        lowered("a hazard", &|w| w.hazards.take(Origin::Hub, &name("more"), hazard(Fall::OneDown)).unwrap())?;
        lowered("drift", &|w| { w.drift.iter_mut().for_each(|d| { d.insert(name("spacing"), Drift::Seen); }) })?;
        lowered("drift not measured", &|w| w.drift = None)?;
        lowered("a lost volume", &|w| w.evidence = None)?;
        lowered("a restored volume, without its own evidence", &|w| { w.evidence = None; w.own_evidence.clear() })?;
        lowered("no lease", &|w| w.lease = None)?;
        lowered("no policy", &|w| w.policy = false)?;
        lowered("no plan", &|w| w.plan = None)?;
        lowered("no sum", &|w| w.global = None)?;
        lowered("no own evidence", &|w| w.own_evidence.clear())?;
        lowered("fewer signatures", &|w| {
            if !w.approvals.is_empty() { w.approvals.remove(which.index(w.approvals.len())); }
        })?;
        lowered("less evidence", &|w| {
            let Some(evidence) = &mut w.evidence else { return };
            let here = evidence.since.get_mut(&Stage::ALL[rung - 1]).unwrap();
            *here = both(here, &summary(bits));
        })?;
        lowered("the verdicts of one hospital kept back", &|w| {
            w.verdicts.retain(|v| v.verdict.hospital.as_str() != "cedar");
        })?;
    }

    /// A hub may ask anything, forget its hazards, make up figures, verdicts and approvals, repeat and reorder: it gets
    /// at most what the hospital's rules, evidence and people's own signatures give.
    #[test]
    fn a_hub_that_lies_gets_at_most_what_the_hospital_allows(
        drawn in drawn(), asked in stage(), until in 0..500i64, turn in 0..8usize, silent in any::<bool>(),
    ) {
        let mut drawn = drawn;
        // What is not there is what there is to be made up.
        drawn.world.verdicts.retain(|v| !silent || v.verdict.hospital.as_str() != "birch");
        let bound = {
            let mut world = drawn.world.clone();
            world.asked = Stage::PrimaryReader;
            world.global = Some(GlobalFigures { figures: perfect(), until: day(10_000) });
            world.hazards = HazardLog::new(
                world.hazards.all().filter(|(o, ..)| **o == Origin::Hospital).map(|(o, n, h)| ((*o, n.clone()), h.clone())),
            );
            world.stage()
        };
        let mut lying = drawn.world.clone();
        lying.asked = asked;
        lying.global = Some(GlobalFigures { figures: perfect(), until: day(until) });
        lying.hazards = HazardLog::new(
            lying.hazards.all().filter(|(o, ..)| **o == Origin::Hospital).map(|(o, n, h)| ((*o, n.clone()), h.clone())),
        );
        for n in 0..lying.approvals.len() {
            let mut forged = lying.approvals[n].clone();
            forged.terms.stage = Stage::PrimaryReader;
            forged.terms.expiry = day(5000);
            lying.approvals.extend([forged, lying.approvals[n].clone()]);
        }
        for stage in Stage::ALL.into_iter().skip(2) {
            lying.verdicts.extend([lying.verdict("birch", 99, stage), lying.verdict("willow", 99, stage)]);
        }
        let (n, m) = (lying.approvals.len(), lying.verdicts.len());
        lying.approvals.rotate_left(turn.min(n));
        lying.verdicts.rotate_left(turn.min(m));
        let got = lying.stage();
        prop_assert!(got <= bound, "{got:?} is above {bound:?}");
    }

    /// A guard that signs a lease until then signs none too long, and none needlessly short.
    #[test]
    fn until_then_nothing_changes_and_then_it_falls(drawn in drawn(), part in 0..1000i64) {
        let standing = drawn.world.stand();
        let when = |at: Timestamp| World { now: at, ..drawn.world.clone() }.stage();
        let now = drawn.world.now;
        let Some(until) = standing.until else {
            prop_assert_eq!(when(day(100_000)), standing.effective);
            return Ok(());
        };
        let span = until.as_second() - now.as_second();
        prop_assert!(until > now);
        for at_second in [now.as_second() + span * part / 1000, until.as_second() - 1] {
            prop_assert_eq!(when(at(at_second)), standing.effective);
        }
        prop_assert!(when(until) < standing.effective);
    }

    /// One model of a line above Shadow, none above where it would stand alone, and no hazard of one raises another.
    #[test]
    fn one_model_of_a_line_acts(
        all in prop::collection::vec((drawn(), 0..3u8, 0..3i64), 1..5), hit in any::<prop::sample::Index>(),
    ) {
        let promoted = |(drawn, model, made): &(Drawn, u8, i64)| {
            Promoted { model: Digest::of(&[*model]), made: at(*made), standing: drawn.world.stand() }
        };
        let line = arbitrate(all.iter().map(promoted));
        prop_assert!(line.models.values().filter(|s| s.effective > Some(Stage::Shadow)).count() <= 1);
        for one in all.iter().map(promoted) {
            prop_assert!(line.models[&one.model].effective <= one.standing.effective);
        }
        let mut turned: Vec<_> = all.clone();
        turned.reverse();
        prop_assert_eq!(arbitrate(turned.iter().map(promoted)).stage(), line.stage());
        let mut worse = all.clone();
        let n = hit.index(worse.len());
        worse[n].0.world.hazards.take(Origin::Hub, &name("more"), hazard(Fall::Shadow)).unwrap();
        let after = arbitrate(worse.iter().map(promoted));
        for (model, standing) in &after.models {
            prop_assert!(standing.effective <= line.models[model].effective);
        }
    }
}

/// The worse of two summaries in each part.
fn both(one: &Summary, other: &Summary) -> Summary {
    let figures = one.figures.iter().filter_map(|(metric, figure)| {
        let other = other.figures.get(metric)?;
        Some((metric.clone(), if other.interval.lower < figure.interval.lower { *other } else { *figure }))
    });
    Summary {
        cases: one.cases.min(other.cases),
        positives: one.positives.min(other.positives),
        days: one.days.min(other.days),
        failed: one.failed.max(other.failed),
        coverage: one.coverage.min(other.coverage),
        blind: one.blind.filter(|_| other.blind.is_some()),
        p95_seconds: one.p95_seconds.filter(|_| other.p95_seconds.is_some()),
        figures: figures.collect(),
        groups: if other.groups.is_empty() { BTreeMap::new() } else { one.groups.clone() },
        ..one.clone()
    }
}

fn perfect() -> BTreeMap<Metric, crate::evidence::Figure> {
    let one = figure(1.0, 0.0);
    [(Metric::Sensitivity, one), (Metric::Specificity, one), (Metric::Mean(name("dice")), one)].into()
}

/// The properties would hold of nothing as well: the worlds that are drawn stand on every stage, and on none.
#[test]
fn the_worlds_that_are_drawn_reach_every_stage() {
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let mut seen: BTreeMap<Option<Stage>, u32> = BTreeMap::new();
    for _ in 0..400 {
        let drawn = drawn().new_tree(&mut runner).unwrap().current();
        *seen.entry(drawn.world.stage()).or_default() += 1;
    }
    let stages = Stage::ALL.map(Some).into_iter().chain([None]);
    assert!(stages.into_iter().all(|stage| seen.get(&stage).is_some_and(|n| *n >= 4)), "{seen:?}");
}
