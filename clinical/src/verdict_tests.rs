//! Verdicts: a hub can keep one back, and can do nothing else with it.

use super::*;
use crate::testing::{at, roster_key, sign, subject};

fn verdict(hospital: &str, outcome: Outcome, window_end: i64) -> Verdict {
    Verdict {
        hospital: hospital.parse().unwrap(),
        model: subject().model,
        pipeline: Digest::of(b"pipeline there"),
        plan: Digest::of(b"plan"),
        stage: Stage::Prioritisation,
        outcome,
        metrics: vec![Outcome::Pass, outcome],
        evidence: Digest::of(b"evidence"),
        window_end: at(window_end),
        expiry: at(window_end + 1000),
    }
}

fn signed(key: u8, verdict: Verdict) -> SignedVerdict {
    SignedVerdict { signature: sign(key, &verdict.signed_bytes()), verdict }
}

fn roster() -> RosterKeys {
    [("birch", 2), ("cedar", 3)].map(|(site, key)| (site.parse().unwrap(), roster_key(key))).into()
}

/// Golden: other hospitals verify these bytes, in whatever version they run.
#[test]
fn the_signed_bytes_are_for_ever() {
    let text = String::from_utf8(verdict("birch", Outcome::Insufficient, 1000).signed_bytes()).unwrap();
    let expected = "consilium/verdict/v1\n\
        birch\n\
        sha256:9372c470eeadd5ecd9c3c74c2b3cb633f8e2f2fad799250a0f70d652b6b825e4\n\
        sha256:699b26f23854d3a27afbbb6d38cbbcdef2da094e84ff2dadac41ea84bc685327\n\
        sha256:64879f7d6b960a01909762d911a32d4582c20010c5641ee90278b644a9e3b525\n\
        Prioritisation\n\
        Insufficient\n\
        Pass,Insufficient\n\
        sha256:ee8250fb76e094b34b471f13a73dbbe51d1ae142e9df59d7c0d31ec20f0a0a8e\n\
        1970-01-01T00:16:40Z\n\
        1970-01-01T00:33:20Z\n";
    assert_eq!(text, expected);
    // By another implementation, `cryptography` in Python, with the private key 02…02.
    assert_eq!(
        sign(2, text.as_bytes()),
        "11q//yeqluBmLXe7MCH8TsU3F/AOr34yow0vu6oAZZk7BntB9MkqJSL1UAj7LJRGbTKQyyGkSNEv+L55FrSPBA=="
    );
}

#[test]
fn a_verdict_that_its_hospital_did_not_sign_is_refused() {
    let good = signed(2, verdict("birch", Outcome::Pass, 1000));
    assert_eq!(good.verify(&roster()), Ok(&good.verdict));
    let json = serde_json::to_value(&good).unwrap();
    assert_eq!(serde_json::from_value::<SignedVerdict>(json).unwrap(), good);

    let by_the_hub = signed(9, verdict("birch", Outcome::Pass, 1000));
    assert!(matches!(by_the_hub.verify(&roster()), Err(VerdictError::Forged { .. })));
    let mut edited = signed(2, verdict("birch", Outcome::Fail, 1000));
    edited.verdict.metrics[1] = Outcome::Pass;
    assert!(edited.verify(&roster()).unwrap_err().to_string().contains("ask that hospital"));
    let unknown = signed(9, verdict("willow", Outcome::Pass, 1000));
    assert_eq!(unknown.verify(&roster()), Err(VerdictError::NotInRoster("willow".parse().unwrap())));
}

/// An old Pass must not outweigh a newer Fail, and a hospital that says both is not believed the better one.
#[test]
fn the_latest_verdict_of_each_hospital_counts_and_of_two_the_worse() {
    let of = |verdicts: &[SignedVerdict]| {
        let heard = of_others(verdicts, &roster(), &subject(), Digest::of(b"plan"), Stage::Prioritisation);
        heard.into_iter().map(|(site, heard)| (site.to_string(), heard.metrics[1])).collect::<Vec<_>>()
    };
    let (pass, fail) =
        (signed(2, verdict("birch", Outcome::Pass, 1000)), signed(2, verdict("birch", Outcome::Fail, 2000)));
    let birch = |outcome| vec![("birch".to_owned(), outcome)];
    assert_eq!(of(&[pass.clone(), fail.clone()]), birch(Outcome::Fail));
    assert_eq!(of(&[fail.clone(), pass.clone()]), birch(Outcome::Fail));
    let also = signed(2, verdict("birch", Outcome::Fail, 1000));
    assert_eq!(of(&[pass.clone(), also.clone()]), birch(Outcome::Fail));
    assert_eq!(of(&[also, pass.clone()]), birch(Outcome::Fail));
    assert_eq!(of(&[signed(9, verdict("birch", Outcome::Fail, 3000)), pass]), birch(Outcome::Pass), "a forged one");
    let mut other = verdict("cedar", Outcome::Pass, 1000);
    other.plan = Digest::of(b"another plan");
    let own = verdict("alder", Outcome::Pass, 1000);
    assert_eq!(of(&[signed(3, other), signed(1, own)]), []);
}
