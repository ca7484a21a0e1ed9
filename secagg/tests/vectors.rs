//! The published transcripts (`vectors/*.json`): what another implementation must reproduce byte by byte. If this
//! test fails, the protocol changed for everyone who speaks it; that calls for a new version tag, not new vectors.
//!
//! `CONSILIUM_UPDATE_VECTORS=1 cargo test -p consilium-secagg --test vectors` writes them anew.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests panic as tests do")]
mod common;
use common::{Moment, Plan, World, sign_roster};
use consilium_secagg::mask::{MaskSet, Sign};
use consilium_secagg::ring::RingParams;
use consilium_secagg::roster::{Roster, RosterEntry, SignedRoster};
use consilium_secagg::secret::Secret;
use consilium_secagg::sum;
use consilium_secagg::wire::Message;
use serde_json::{Value, json};
use std::path::PathBuf;

const BODY: usize = 37;

fn hex_of(message: &impl Message) -> String {
    hex::encode(message.to_bytes())
}

fn hex_elements(elements: &[u32]) -> String {
    hex::encode(sum::to_bytes(elements))
}

/// One attempt in which site 1 vanishes at `when`, with all secrets.
fn case(n: usize, when: Moment) -> Value {
    let mut world = World::new(n, BODY, 4 + n as u64);
    assert_eq!(sign_roster(&world.governors[..2], &world.governance, 1, &world.sites), world.roster);
    let plan = Plan::losing(n, 1, when);
    for i in (0..n).filter(|i| plan.vanish[*i] > Moment::BeforeAdvert) {
        world.open(i).unwrap();
    }
    let sites: Vec<Value> = (0..n).map(|i| site(&world, i)).collect();
    let mut hub = world.hub();
    let outcome = match world.steps(&mut hub, &plan, Moment::Never) {
        Ok(()) => summed(&world, &hub),
        Err(error) => json!({"burned": hub.phase(), "reason": error.to_string()}),
    };
    let messages = world.messages(&hub);
    json!({
        "vanishes": if when == Moment::Never { Value::Null } else { json!({"site": 1, "moment": format!("{when:?}")}) },
        "governance": world.governance,
        "roster": hex_of(&signed_roster(&world)),
        "attempt": hex_of(&world.attempt),
        "attempt_digest": world.attempt.digest(),
        "sites": sites,
        "messages": messages,
        "outcome": outcome,
    })
}

fn signed_roster(world: &World) -> SignedRoster {
    let entries = world.sites.iter().map(|s| RosterEntry { site: s.id.clone(), key: s.key.public() }).collect();
    let mut signed = SignedRoster::new(Roster { federation: "federation".into(), version: 1, entries });
    world.governors[..2].iter().for_each(|g| signed.sign(g));
    signed
}

fn site(world: &World, i: usize) -> Value {
    let site = &world.sites[i];
    let state = site.client.as_ref().map(|c| serde_json::to_value(c).unwrap());
    json!({
        "site": site.id,
        "identity_key": site.key.public(),
        "secrets": state.map_or(Value::Null, |s| s["phase"]["Advertised"]["seeds"].clone()),
        "weight": site.weight.units(),
        "statistics": site.statistics,
        "update": site.update,
        "encoded": world.encoded(i).iter().map(|c| hex_elements(c)).collect::<Vec<_>>(),
    })
}

fn summed(world: &World, hub: &consilium_secagg::hub::Hub) -> Value {
    let (survivors, sum) = world.sum(hub);
    let (round, head) = (&world.attempt.round, world.attempt.round.layout().unwrap().head());
    let ring = round.ring().unwrap();
    let weights = ring.decode_weights(sum[0], survivors.len()).unwrap();
    let mut mean = vec![0f32; BODY];
    ring.decode_mean(&sum[head..], weights, &mut mean).unwrap();
    json!({
        "sum": [hex_elements(&sum[..head]), hex_elements(&sum[head..])],
        "survivors": survivors,
        "weight_sum": weights.units(),
        "mean": mean,
        "statistics": consilium_secagg::ring::decode_statistics(&ring, &round.statistics, &sum[..head]).unwrap(),
        "error_bound": ring.mean_error_bound(survivors.len(), u64::from(weights.units())),
        "seeds": hex_of(&hub.transcript().unwrap().seeds),
    })
}

/// The stream cipher alone, where chunks of a real upload lie.
fn masks() -> Value {
    let at = |key: u8, offset: u64| {
        let mut set = MaskSet::new();
        set.push(Sign::Plus, &Secret::new([key; 32]));
        let mut elements = [0u32; 8];
        set.apply(offset, &mut elements).unwrap();
        json!({"key": hex::encode([key; 32]), "offset": offset, "elements": elements})
    };
    json!([at(0, 0), at(1, 16), at(2, 16 + (1 << 20)), at(3, (1 << 32) - 4), at(4, (1 << 34) - 4)])
}

/// Rounding: to nearest, ties to even; clamped.
fn encodings() -> Value {
    let at = |n: usize, clip: f64, units: u32, update: &[f32]| {
        let ring = RingParams::new(n, clip).unwrap();
        let mut out = vec![0; update.len()];
        let weight = consilium_secagg::weight::Weight::from_units(units).unwrap();
        let clamped = ring.encode(weight, update, &mut out).unwrap();
        json!({"n": n, "clip": clip, "weight": units, "update": update, "elements": out, "clamped": clamped})
    };
    json!([
        at(1, f64::from(i32::MAX), 1 << 20, &[0.5, 1.5, -0.5, -2.5, 3.0]),
        at(3, 10.0, 1 << 20, &[10.0, -10.0, 0.1, -0.0, 1e-30, 12.0]),
        at(200, 1.0, 12_345, &[1.0, -1.0, 0.333_333_34, 5e-5]),
        at(255, 7.25, 1, &[7.25, -7.25, 1.0]),
    ])
}

fn check(name: &str, value: &Value) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("vectors").join(name);
    let text = serde_json::to_string_pretty(value).unwrap() + "\n";
    if std::env::var_os("CONSILIUM_UPDATE_VECTORS").is_some() {
        std::fs::write(&path, &text).unwrap();
    }
    let committed = std::fs::read_to_string(&path).unwrap();
    assert!(committed == text, "{} is not what this code produces", path.display());
}

#[test]
fn transcripts_are_the_published_ones() {
    let moments = [
        Moment::Never,
        Moment::BeforeAdvert,
        Moment::BeforeShares,
        Moment::BeforeUpload,
        Moment::BeforeAgree,
        Moment::BeforeUnmask,
    ];
    for n in [3, 5, 8] {
        let cases: Vec<Value> = moments.iter().map(|when| case(n, *when)).collect();
        check(&format!("n{n}.json"), &json!({"format": "consilium/secagg/v1", "n": n, "cases": cases}));
    }
    check("primitives.json", &json!({"format": "consilium/secagg/v1", "masks": masks(), "encodings": encodings()}));
}

/// Another implementation must show that it burns where it has to, and that it sums where it can: with one lost of three,
/// and with one lost of five.
#[test]
fn the_vectors_hold_both_outcomes() {
    for (n, burns) in [(3, true), (5, false)] {
        let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("vectors/n{n}.json"));
        let vectors: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        let lost = |case: &&Value| case["vanishes"]["moment"] == "BeforeUpload";
        let outcome = &vectors["cases"].as_array().unwrap().iter().find(lost).unwrap()["outcome"];
        assert_eq!((outcome.get("burned").is_some(), outcome.get("sum").is_some()), (burns, !burns), "{n}");
    }
}
