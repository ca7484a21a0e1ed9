use base64::Engine as _;
use consilium_federation::Digest;
use consilium_federation::approval::{Approval, signed_bytes};
use consilium_federation::ladder::Stage;
use consilium_federation::stage_approval::{StageApproval, Terms};
use ed25519_dalek::{Signer as _, SigningKey};
use serde_json::{Value, json};

use super::super::hazards_tests::none as no_hazards;
use super::super::tests::{IMAGE, policy, spec};
use super::*;

const B64: base64::engine::GeneralPurpose = base64::engine::general_purpose::STANDARD;
/// When that ends.
pub(crate) const EXPIRY: &str = "2027-01-01T00:00:00Z";

fn release_spec() -> ModelReleaseSpec {
    serde_json::from_value(json!({
        "study": "research/hippocampus", "studyUID": "uid-1", "round": 5, "model": Digest::of(b"model"),
        "specDigest": spec().digest(), "baseModel": Digest::of(b"base"), "trainerImage": IMAGE, "config": {},
        "contributors": ["alder"], "dice": "0.8700", "evidence": [],
        "attestation": {"keyID": "hub", "signature": ""}
    }))
    .unwrap()
}

fn key() -> SigningKey {
    SigningKey::from_bytes(&[3; 32])
}

fn deploy(stage: Stage) -> DeployWork {
    let expiry = EXPIRY.parse().unwrap();
    let bytes = signed_bytes(Digest::of(b"model"), stage, release_spec().evidence_digest(), expiry);
    let signature = B64.encode(key().sign(&bytes).to_bytes());
    DeployWork {
        release: "hippocampus-r5".into(),
        release_digest: release_spec().digest(),
        model: Digest::of(b"model"),
        stage,
        approvals: vec![Approval { key_id: "mary".into(), role: "officer".into(), expiry, signature }],
        plan: None,
        stage_approvals: Vec::new(),
    }
}

/// Mary's word of the second kind, for SafetyNet.
pub(crate) fn staged(plan: Digest, pipeline: Digest, hospital: &str) -> StageApproval {
    let (model, evidence) = (Digest::of(b"model"), release_spec().evidence_digest());
    let (hospital, expiry) = (hospital.to_owned().try_into().unwrap(), EXPIRY.parse().unwrap());
    let terms = Terms { model, pipeline, plan, stage: Stage::SafetyNet, hospital, evidence, expiry };
    let signature = B64.encode(key().sign(&terms.signed_bytes()).to_bytes());
    StageApproval { key_id: "mary".into(), role: "officer".into(), terms, signature }
}

/// What the hospital asks of models: mary's word, up to a stage.
pub(crate) fn releases(max_stage: Option<&str>) -> Value {
    let require = |stage| json!({"stage": stage, "approvals": 1, "roles": ["officer"]});
    let mut releases = json!({
        "keys": [{"id": "mary", "role": "officer", "publicKey": B64.encode(key().verifying_key().as_bytes())}],
        "require": [require("Shadow"), require("SafetyNet")],
    });
    if let Some(stage) = max_stage {
        releases["maxStage"] = json!(stage);
    }
    releases
}

/// The word on which the model may be in use, asked at a stage; it ends at `EXPIRY`.
pub(crate) fn approved(stage: Stage) -> Approved {
    let (evidence_digest, approvals) = (release_spec().evidence_digest(), deploy(stage).approvals);
    let (hospital, line) = (Some("alder".parse().unwrap()), Some("research/hippocampus".parse().unwrap()));
    Approved { stage, evidence_digest, hospital, line, approvals, plan: None, output: None, stage_approvals: vec![] }
}

fn ask(work: &DeployWork, max_stage: Option<&str>, state: ItemState, now: &str) -> ReleaseDecision {
    asked(work, max_stage, state, now, false)
}

fn asked(work: &DeployWork, max_stage: Option<&str>, state: ItemState, now: &str, in_use: bool) -> ReleaseDecision {
    // Whether it trains does not matter for a model.
    let policy = policy(&[("/releases", releases(max_stage)), ("/suspend", json!({"tasks": true}))]);
    let release_spec = release_spec();
    let hospital =
        Hospital { policy: Some(&policy), hazards: Some(no_hazards()), image: None, now: now.parse().unwrap() };
    let site = "alder".parse().unwrap();
    release(&ReleaseInputs { work, state, release: &release_spec, plan: None, site: &site, hospital, in_use })
}

fn reason(decision: ReleaseDecision) -> (RolloutReason, String) {
    match decision {
        ReleaseDecision::Refused { reason, message } => (reason, message),
        other => panic!("{other:?}"),
    }
}

/// A model answers on scans of patients only at a stage that this hospital allows, on the word of people it names.
#[test]
fn each_rung_of_the_release_ladder() {
    let (now, shadow) = ("2026-06-01T00:00:00Z", deploy(Stage::Shadow));
    let allowed = ReleaseDecision::Allowed(approved(Stage::Shadow));
    assert_eq!(ask(&shadow, Some("Shadow"), ItemState::Active, now), allowed);
    // The hub being away, or forgetful, takes no model out of use.
    assert_eq!(ask(&shadow, Some("Shadow"), ItemState::Orphaned, now), allowed);
    assert_eq!(ask(&shadow, Some("Shadow"), ItemState::Cancelled, now), ReleaseDecision::Withdrawn);
    // What a promotion asks beyond the hospital's ceiling, or beyond what is signed, is no reason to refuse: the model is
    // in use, on the stage that the hospital finds.
    for (work, max) in [
        (deploy(Stage::SafetyNet), "Shadow"),
        (deploy(Stage::Triage), "Triage"),
        (DeployWork { stage: Stage::PrimaryReader, ..shadow.clone() }, "SafetyNet"),
    ] {
        let asked = Approved { stage: work.stage, approvals: work.approvals.clone(), ..approved(Stage::Shadow) };
        assert_eq!(ask(&work, Some(max), ItemState::Active, now), ReleaseDecision::Allowed(asked));
    }
    // Approvals that have ended keep a model that is here on Shadow. They bring none into use: what people let lapse and was
    // taken away would start again.
    assert_eq!(asked(&shadow, Some("Shadow"), ItemState::Active, EXPIRY, true), allowed);
    let (reason_of, words) = reason(ask(&shadow, Some("Shadow"), ItemState::Active, EXPIRY));
    assert!(reason_of == RolloutReason::DeniedByPolicy && words.contains("expired"), "{words}");
    let model = |model| DeployWork { model, ..shadow.clone() };
    let release_digest = |release_digest| DeployWork { release_digest, ..shadow.clone() };
    let unsigned = DeployWork { approvals: vec![], ..shadow.clone() };
    let (denied, unverified) = (RolloutReason::DeniedByPolicy, RolloutReason::VerificationFailed);
    let rows = [
        (ask(&shadow, None, ItemState::Active, now), denied, "maxStage"),
        (ask(&unsigned, Some("Shadow"), ItemState::Active, now), denied, "1 more valid signature (0 of 1)"),
        (ask(&model(Digest::of(b"x")), Some("Shadow"), ItemState::Active, now), unverified, "of model"),
        (ask(&release_digest(Digest::of(b"x")), Some("Shadow"), ItemState::Active, now), unverified, "digest"),
    ];
    for (decision, expected, word) in rows {
        let (found, message) = reason(decision);
        assert_eq!(found, expected, "{message}");
        assert!(message.contains(word), "{word:?} is not in {message:?}");
    }
}
