//! What the hub sees is noise: masked chunks pass the tests that random bytes pass, plaintext fails them, and an
//! inversion attack that reads an image out of a plain update reads nothing out of a masked one.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests panic as tests do")]
mod common;
use common::{Moment, TestRng, World};
use consilium_secagg::ids::Party;
use consilium_secagg::keys;
use consilium_secagg::mask::{MaskSet, Sign};
use consilium_secagg::shares::SeedKind;
use consilium_secagg::sum;
use consilium_secagg::unmask::pair_sign;
use consilium_secagg::wire::Message;
use rand_core::Rng;

const BODY: usize = 1_500_000;
const VICTIM: usize = 1;

/// Pearson's chi-square over equally likely bins, as its distance from the mean in standard deviations.
fn chi_square(counts: &[u64]) -> f64 {
    let expected = counts.iter().sum::<u64>() as f64 / counts.len() as f64;
    let chi: f64 = counts.iter().map(|c| (*c as f64 - expected).powi(2) / expected).sum();
    let freedom = counts.len() as f64 - 1.0;
    (chi - freedom) / (2.0 * freedom).sqrt()
}

/// Bytes, pairs of bytes that follow each other, and pairs at the distance of an element (the serial tests).
fn scores(bytes: &[u8]) -> [f64; 3] {
    let mut single = vec![0u64; 256];
    bytes.iter().for_each(|b| single[usize::from(*b)] += 1);
    let serial = |distance: usize| {
        let mut pairs = vec![0u64; 1 << 16];
        let each = bytes.chunks_exact(2 * distance);
        each.for_each(|c| pairs[usize::from(c[0]) << 8 | usize::from(c[distance])] += 1);
        chi_square(&pairs)
    };
    [chi_square(&single), serial(1), serial(4)]
}

/// Five standard deviations: a false alarm in a million for a fixed seed that is drawn once.
fn is_noise(bytes: &[u8]) -> bool {
    scores(bytes).iter().all(|z| z.abs() < 5.0)
}

fn finished() -> (World, consilium_secagg::hub::Hub) {
    let mut world = World::new(3, BODY, 77);
    let mut hub = world.hub();
    world.advance(&mut hub, Moment::Never);
    (world, hub)
}

fn body(world: &World, i: usize) -> Vec<u8> {
    world.sites[i].uploads[1..].concat()
}

#[test]
fn masked_chunks_pass_and_plain_ones_fail() {
    let (world, _) = finished();
    let mut random = vec![0; BODY * 4];
    TestRng::new(1).fill_bytes(&mut random);
    assert!(is_noise(&random), "the control itself: {:?}", scores(&random));
    for i in 0..3 {
        assert!(is_noise(&body(&world, i)), "site {i}: {:?}", scores(&body(&world, i)));
        let plain = sum::to_bytes(&world.encoded(i)[1..].concat());
        assert!(scores(&plain)[0] > 1000.0, "the test must see what is not noise: {:?}", scores(&plain));
    }
    // Equal updates at equal places leave no trace in the difference of two hospitals either.
    let difference: Vec<u32> = sum::from_bytes(&body(&world, 0))
        .iter()
        .zip(sum::from_bytes(&body(&world, 1)))
        .map(|(a, b)| a.wrapping_sub(b))
        .collect();
    assert!(is_noise(&sum::to_bytes(&difference)));
}

/// After the release the hub knows every survivor's own seed; the pair masks must still hide each upload. And a hub
/// that colludes with all but one of a hospital's peers still misses one mask.
#[test]
fn one_mask_left_is_enough() {
    let (world, hub) = finished();
    let session = hub.session().unwrap();
    let transcript = hub.transcript().unwrap();
    let (victim, sid) = (Party(VICTIM as u8), session.sid());
    let head = world.attempt.round.layout().unwrap().head() as u64;
    let (party, kind, seed) = &transcript.seeds.seeds[VICTIM];
    assert_eq!((*party, *kind), (victim, SeedKind::Own));
    let mut without_own = sum::from_bytes(&body(&world, VICTIM));
    let mut masks = MaskSet::new();
    masks.push(Sign::Minus, &keys::self_mask_key(seed, &sid, victim));
    masks.apply(head, &mut without_own).unwrap();
    assert!(is_noise(&sum::to_bytes(&without_own)), "own mask off: {:?}", scores(&sum::to_bytes(&without_own)));
    // Its peer 0 colludes as well: the mask with peer 2 remains. With peer 2 gone too, the update lies bare, so it was
    // that one mask that hid it. The peers' seeds stand in the state that they stored before they masked.
    let mut again = World::new(3, BODY, 77);
    again.advance(&mut again.hub(), Moment::BeforeUpload);
    let advertised = session.advert(victim).unwrap().mask_key;
    let mut bare = without_own;
    for peer in [0usize, 2] {
        assert!(is_noise(&sum::to_bytes(&bare)), "before {peer}: {:?}", scores(&sum::to_bytes(&bare)));
        let state = serde_json::to_value(again.sites[peer].client.as_ref().unwrap()).unwrap();
        let seed = serde_json::from_value(state["phase"]["Shared"]["seeds"]["mask_seed"].clone()).unwrap();
        let scalar = keys::mask_scalar(&seed, &again.attempt.digest());
        let peer = Party(peer as u8);
        let key = keys::pair_mask_key(&scalar, &advertised, &sid, peer, victim).unwrap();
        let mut masks = MaskSet::new();
        masks.push(pair_sign(victim, peer).opposite(), &key);
        masks.apply(head, &mut bare).unwrap();
    }
    assert_eq!(bare, world.encoded(VICTIM)[1..].concat());
}

/// Correlation of two vectors.
fn correlation(x: &[f64], y: &[f64]) -> f64 {
    let mean = |v: &[f64]| v.iter().sum::<f64>() / v.len() as f64;
    let (mx, my) = (mean(x), mean(y));
    let product =
        |a: &[f64], ma: f64, b: &[f64], mb: f64| -> f64 { a.iter().zip(b).map(|(a, b)| (a - ma) * (b - mb)).sum() };
    product(x, mx, y, my) / (product(x, mx, x, mx) * product(y, my, y, my)).sqrt()
}

/// A batch of one through a dense first layer: the gradient of the weights of unit k divided by that of its bias is
/// the image, exactly. The attacker takes the best unit.
fn invert(update: &[f64], pixels: usize, image: &[f64]) -> f64 {
    let units = update.len() / (pixels + 1);
    let reading = |k: usize| -> Vec<f64> {
        let row = &update[k * (pixels + 1)..][..pixels + 1];
        row[..pixels].iter().map(|w| w / row[pixels]).collect()
    };
    (0..units).map(|k| correlation(&reading(k), image).abs()).fold(0.0, f64::max)
}

#[test]
fn gradient_inversion_reads_the_image_from_plaintext_and_nothing_from_what_the_hub_sees() {
    const SIDE: usize = 32;
    const UNITS: usize = 16;
    let pixels = SIDE * SIDE;
    let at = |i: usize| ((i % SIDE) as f64 - 15.5, (i / SIDE) as f64 - 15.5);
    let image: Vec<f64> = (0..pixels)
        .map(|i| {
            let (x, y) = at(i);
            let organ = if (x / 11.0).powi(2) + (y / 7.0).powi(2) < 1.0 { 0.8 } else { 0.1 };
            organ + if (x - 4.0).powi(2) + (y + 2.0).powi(2) < 6.0 { 0.6 } else { 0.0 }
        })
        .collect();
    let delta: Vec<f64> = (0..UNITS).map(|k| 0.01 * ((k * 7 % 11) as f64 - 4.5)).collect();
    let row = |k: usize| image.iter().map(|x| delta[k] * x).chain([delta[k]]).collect::<Vec<_>>();
    let update: Vec<f32> = (0..UNITS).flat_map(row).map(|g| g as f32).collect();
    let mut world = World::new(3, update.len(), 55);
    world.sites[VICTIM].update.clone_from(&update);
    let mut hub = world.hub();
    world.advance(&mut hub, Moment::Never);
    let ring = world.attempt.round.ring().unwrap();
    let read = |elements: &[u32]| -> f64 {
        let mut out = vec![0.0; elements.len()];
        ring.decode_sum(elements, &mut out).unwrap();
        invert(&out, pixels, &image)
    };
    let plain = read(&world.encoded(VICTIM)[1]);
    let masked = read(&sum::from_bytes(&body(&world, VICTIM)));
    let mut random = vec![0; update.len() * 4];
    TestRng::new(9).fill_bytes(&mut random);
    let control = read(&sum::from_bytes(&random));
    assert!(plain > 0.999, "the attack must work on plaintext, else it shows nothing: {plain}");
    assert!(masked < 0.15 && control < 0.15, "masked {masked}, random bytes {control}");
}
