//! Cases for tests.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as B64;
use consilium_federation::Digest;
use consilium_federation::approval::TrustedKey;
use consilium_federation::ladder::Stage;
use ed25519_dalek::{Signer as _, SigningKey, VerifyingKey};
use jiff::Timestamp;

use crate::cases::{CaseRecord, Outcome, Pseudonym, Source, Truth};
use crate::evidence::Subject;
use crate::hazards::{Hazard, HazardOf, Risk};
use crate::plan::{ClinicalPlan, Fall};

/// How many cases a property is shown on.
pub(crate) fn cases() -> u32 {
    if std::env::var_os("CONSILIUM_LONG").is_some() { 10_000 } else { 256 }
}

pub(crate) fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

pub(crate) fn pseudonym(n: u32) -> Pseudonym {
    Pseudonym::from_bytes(*Digest::of(&n.to_be_bytes()).as_bytes())
}

pub(crate) fn subject() -> Subject {
    Subject { hospital: "alder".parse().unwrap(), model: Digest::of(b"model"), pipeline: Digest::of(b"pipeline") }
}

/// A case of a patient on a day, blinded, where the model says `found` and follow-up says `truth`.
pub(crate) fn case(patient: u32, day: i64, truth: Option<bool>, found: bool) -> CaseRecord {
    CaseRecord {
        patient: pseudonym(patient),
        pipeline: Digest::of(b"pipeline"),
        stage: Stage::Shadow,
        complete_at: at(day * 86_400 + 1000),
        outcome: Outcome::Result { finding: found, at: at(day * 86_400 + 1030) },
        read_at: None,
        shown_at: None,
        truths: truth.map(|present| Truth { source: Source::FollowUp, present }).into_iter().collect(),
        metrics: BTreeMap::new(),
        groups: BTreeMap::new(),
    }
}

/// The example that the tests share. Its numbers are examples, and none is a recommendation.
pub(crate) const EXAMPLE: &str = include_str!("../testdata/example-plan.json");

pub(crate) fn example() -> ClinicalPlan {
    ClinicalPlan::read(&serde_json::from_str(EXAMPLE).unwrap()).unwrap()
}

fn key(n: u8) -> SigningKey {
    SigningKey::from_bytes(&[n; 32])
}

/// A signature by the n-th key, base64.
pub(crate) fn sign(n: u8, bytes: &[u8]) -> String {
    B64.encode(key(n).sign(bytes).to_bytes())
}

/// The n-th key as a hospital's policy has it.
pub(crate) fn trusted(n: u8, id: &str, role: &str) -> TrustedKey {
    TrustedKey { id: id.into(), role: role.into(), public_key: B64.encode(key(n).verifying_key().as_bytes()) }
}

/// The n-th key as a roster has it.
pub(crate) fn roster_key(n: u8) -> VerifyingKey {
    key(n).verifying_key()
}

/// An open hazard of the model that the tests are about.
pub(crate) fn hazard(lowers: Fall) -> Hazard {
    Hazard {
        of: HazardOf::Model(subject().model),
        hospital: None,
        hazard: "a scan of another plane is read".into(),
        causes: vec!["the series rule matches too much".into()],
        effect: "a finding is missed".into(),
        harm: "late treatment".into(),
        initial: Risk { severity: 4, likelihood: 2 },
        controls: vec![],
        residual: None,
        owner: "clinical-safety-officer".parse().unwrap(),
        lowers,
        opened: at(5000),
        closed: None,
    }
}
