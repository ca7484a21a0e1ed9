//! The protocol as a whole: what comes out is the plain weighted mean within the stated bound, whoever vanishes, is
//! killed or is asked twice; or the attempt is burned and nothing was revealed.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests panic as tests do")]
mod common;
use common::{Moment, Outcome, Plan, Trouble, World, plain_mean};
use consilium_secagg::hub::HubError;
use consilium_secagg::ring;
use consilium_secagg::thresholds::ThresholdError;
use consilium_secagg::weight::{WEIGHT_ONE, Weight};
use proptest::prelude::*;

/// Checks a sum bit by bit against the encoded updates and, decoded, against floating point.
fn check_sum(world: &World, survivors: &[usize], sum: &[u32]) {
    assert_eq!(sum, world.plain_sum(survivors));
    let round = &world.attempt.round;
    let (ring, layout) = (round.ring().unwrap(), round.layout().unwrap());
    let weights = ring.decode_weights(sum[0], survivors.len()).unwrap();
    let exact: u32 = survivors.iter().map(|i| world.sites[*i].weight.units()).sum();
    assert_eq!(weights.units(), exact);
    let statistics = ring::decode_statistics(&ring, &round.statistics, &sum[..layout.head()]).unwrap();
    assert_eq!(statistics[0], survivors.iter().map(|i| world.sites[*i].statistics[0]).sum::<f64>());
    let mut mean = vec![0f32; round.body as usize];
    ring.decode_mean(&sum[layout.head()..], weights, &mut mean).unwrap();
    let bound = ring.mean_error_bound(survivors.len(), u64::from(weights.units()));
    for (got, expected) in mean.iter().zip(plain_mean(world, survivors)) {
        let rounding = f64::from(f32::EPSILON) * expected.abs();
        assert!((f64::from(*got) - expected).abs() <= bound + rounding, "{got} instead of {expected}, bound {bound}");
    }
}

/// A hospital that vanishes at any step costs nobody a second training, as long as t are left.
#[test]
fn a_drop_out_at_any_step_is_survived_or_burns_the_attempt() {
    for n in [3, 4, 5, 8] {
        let t = 2 * n / 3 + 1;
        for when in [
            Moment::BeforeAdvert,
            Moment::BeforeShares,
            Moment::BeforeUpload,
            Moment::BeforeAgree,
            Moment::BeforeUnmask,
            Moment::Never,
        ] {
            let mut world = World::new(n, 50, 7);
            match world.run(&Plan::losing(n, 1, when)) {
                Outcome::Summed { survivors, sum } => {
                    check_sum(&world, &survivors, &sum);
                    assert_eq!(survivors.contains(&1), when >= Moment::BeforeAgree, "{when:?} of {n}");
                }
                Outcome::Burned { error, .. } => {
                    assert!(n - 1 < t.max(3), "{n} lost one {when:?}: {error}");
                    let few = matches!(error, HubError::TooFew { .. })
                        || matches!(&error, HubError::Session(e) if e.to_string().contains("at least 3"));
                    assert!(few, "{error}");
                }
            }
        }
    }
}

/// A hospital killed between upload and survivors comes back with its stored state and is in the sum.
#[test]
fn a_restarted_hospital_is_still_counted() {
    let mut world = World::new(4, 50, 3);
    let mut plan = Plan::smooth(4);
    plan.trouble = [Trouble::KilledAfterStore, Trouble::KilledBeforeStore, Trouble::Repeated, Trouble::Nothing]
        .map(|t| [t; 7])
        .into();
    let Outcome::Summed { survivors, sum } = world.run(&plan) else { panic!("all four were there") };
    assert_eq!(survivors, [0, 1, 2, 3]);
    check_sum(&world, &survivors, &sum);
}

/// A restarted hub that lost its memory but kept the journal carries on where it was.
#[test]
fn the_hub_survives_a_restart_at_every_step() {
    for until in [Moment::BeforeShares, Moment::BeforeUpload, Moment::BeforeAgree, Moment::BeforeUnmask] {
        let mut world = World::new(4, 20, 11);
        let mut hub = world.hub();
        world.advance(&mut hub, until);
        let back: consilium_secagg::hub::Hub = serde_json::from_str(&serde_json::to_string(&hub).unwrap()).unwrap();
        assert_eq!(back, hub, "{until:?}");
    }
}

/// The hub may not hold all uploads of a chunk at once: adding them as they are read gives the same sum.
#[test]
fn chunks_can_be_added_as_they_are_read() {
    let mut world = World::new(5, 300, 6);
    let mut hub = world.hub();
    world.advance(&mut hub, Moment::Never);
    let (survivors, sum) = world.sum(&hub);
    let unmasking = hub.unmasking().unwrap();
    let mut chunk = unmasking.begin_chunk(1, vec![7; 3]).unwrap();
    assert_eq!(chunk.missing().count(), 5);
    for pair in survivors.chunks(2) {
        let uploads: Vec<&[u8]> = pair.iter().map(|i| world.sites[*i].uploads[1].as_slice()).collect();
        chunk = chunk.verify_and_add(&uploads).unwrap();
    }
    let head = world.attempt.round.layout().unwrap().head();
    assert_eq!(chunk.finish(common::ONE).unwrap(), sum[head..]);
    let uploads: Vec<&[u8]> = world.sites.iter().map(|s| s.uploads[1].as_slice()).collect();
    let checked = unmasking.begin_chunk(1, Vec::new()).unwrap().add_verified(&uploads).unwrap();
    assert_eq!(checked.finish(common::ONE).unwrap(), sum[head..]);
    let short = unmasking.begin_chunk(1, Vec::new()).unwrap().finish(common::ONE);
    assert_eq!(short, Err(HubError::Uploads { got: 0, expected: 5 }));
}

/// Chunks that are not the signed ones never reach a sum.
#[test]
fn a_changed_chunk_is_refused_by_name() {
    let mut world = World::new(3, 20, 5);
    let mut hub = world.hub();
    world.advance(&mut hub, Moment::Never);
    let unmasking = hub.unmasking().unwrap();
    world.sites[2].uploads[1][7] ^= 1;
    let uploads: Vec<&[u8]> = world.sites.iter().map(|s| s.uploads[1].as_slice()).collect();
    let error = unmasking.sum_chunk(1, &uploads, common::ONE, &mut Vec::new()).unwrap_err();
    assert_eq!(error, HubError::ChunkDigest { site: common::site_id(2), chunk: 1 });
}

#[test]
fn two_hospitals_never_open() {
    let mut world = World::new(3, 5, 1);
    let Outcome::Burned { error, step } = world.run(&Plan::losing(3, 0, Moment::BeforeAdvert)) else { panic!() };
    assert_eq!(step, "Advertise");
    let few = consilium_secagg::session::SessionError::Threshold(ThresholdError::TooFew { n: 2, required: 3 });
    assert_eq!(error, HubError::Session(few));
}

fn cases() -> u32 {
    if std::env::var_os("CONSILIUM_LONG").is_some() { 10_000 } else { 500 }
}

fn moment() -> impl Strategy<Value = Moment> {
    prop_oneof![
        1 => Just(Moment::BeforeAdvert),
        1 => Just(Moment::BeforeShares),
        1 => Just(Moment::BeforeUpload),
        1 => Just(Moment::BeforeAgree),
        1 => Just(Moment::BeforeUnmask),
        20 => Just(Moment::Never),
    ]
}

fn trouble() -> impl Strategy<Value = Trouble> {
    prop_oneof![
        6 => Just(Trouble::Nothing),
        1 => Just(Trouble::KilledBeforeStore),
        1 => Just(Trouble::KilledAfterStore),
        1 => Just(Trouble::Repeated),
    ]
}

#[derive(Debug, Clone)]
struct Scenario {
    n: usize,
    d: usize,
    seed: u64,
    clip: f64,
    colluders: u16,
    weights: Vec<u32>,
    plan: Plan,
}

impl Scenario {
    fn world(&self) -> World {
        let mut world = World::new(self.n, self.d, self.seed);
        let round = &mut world.attempt.round;
        round.clip = self.clip;
        // As many colluders as the federation can withstand.
        round.colluders = self.colluders;
        while round.check().is_err() {
            round.colluders -= 1;
        }
        for (site, units) in world.sites.iter_mut().zip(&self.weights) {
            site.weight = Weight::from_units(*units).unwrap();
        }
        world
    }
}

prop_compose! {
    // Small federations are the common ones and the ones at the edge of every threshold.
    fn scenario()(n in prop_oneof![8 => 3usize..=6, 3 => 7usize..=10, 1 => 11usize..=20])(
        n in Just(n),
        d in 0usize..300,
        seed in any::<u64>(),
        clip in 10.0f64..1e4,
        colluders in 0u16..3,
        weights in prop::collection::vec(1..=WEIGHT_ONE, n),
        vanish in prop::collection::vec(moment(), n),
        trouble in prop::collection::vec([(); 7].map(|()| trouble()), n),
    ) -> Scenario {
        Scenario { n, d, seed, clip, colluders, weights, plan: Plan { vanish, trouble } }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn the_sum_is_right_or_nothing_is_revealed(scenario in scenario()) {
        let (mut world, plan) = (scenario.world(), &scenario.plan);
        match world.run(plan) {
            Outcome::Summed { survivors, sum } => {
                let expected: Vec<_> =
                    (0..scenario.n).filter(|i| plan.vanish[*i] >= Moment::BeforeAgree).collect();
                prop_assert_eq!(&survivors, &expected);
                check_sum(&world, &survivors, &sum);
            }
            Outcome::Burned { step, .. } => {
                let opened = plan.vanish.iter().filter(|m| **m > Moment::BeforeAdvert).count();
                let t = 2 * opened / 3 + 1;
                let floor = t.max(3).max(usize::from(world.attempt.round.colluders) + 2);
                let left = plan.vanish.iter().filter(|m| **m == Moment::Never).count();
                let tolerated = 2 * t > opened + usize::from(world.attempt.round.colluders);
                prop_assert!(left < floor || !tolerated, "burned in {} without need", step);
                let released = world.sites.iter().filter(|s| s.client.as_ref().is_some_and(|c| c.released())).count();
                prop_assert!(released < t, "fewer than t hospitals may have released anything");
            }
        }
    }
}
