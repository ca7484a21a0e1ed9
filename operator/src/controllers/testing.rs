//! Objects for tests.

use consilium_crds::{
    ClinicalPlan, FederatedStudy, FederatedStudySpec, ModelRelease, TrainingRound, TrainingRoundSpec,
    TrainingRoundStatus,
};
use consilium_federation::gate::Vote;
use consilium_federation::round::{GateRecord, Outcome, RoundState, RoundStep};
use consilium_federation::{Digest, SiteName};
use ed25519_dalek::SigningKey;
use jiff::Timestamp;
use serde_json::json;

/// Four hospitals, as in the documentation.
pub const SITES: [&str; 4] = ["alder", "birch", "cedar", "damson"];

/// A hospital's name.
pub fn name(text: &str) -> SiteName {
    text.parse().unwrap()
}

/// Seconds after the tests' epoch.
pub fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + seconds).unwrap()
}

/// A study of four hospitals, three of which are the quorum, with a gate.
pub fn study_spec() -> FederatedStudySpec {
    let sites: Vec<_> = SITES.iter().map(|s| json!({"name": s})).collect();
    let image = format!("registry.example/trainer@sha256:{}", "a".repeat(64));
    serde_json::from_value(json!({
        "sites": sites,
        "trainer": {"image": image, "gpus": 1, "config": {"network": {"width": 8}}},
        "initialModel": {"seed": 7},
        "aggregation": {"secure": {"protocol": "None", "minContributors": 3}, "clipNorm": "10"},
        "rounds": {"max": 2, "quorum": 3, "deadline": "1h", "stepLimit": "10m", "historyLimit": 1,
            "straggler": {"grace": "1m", "maxMissed": 2}},
        "gate": {"metric": "dice", "min": "0.8", "perSiteMin": "0.7", "minCases": 2},
    }))
    .unwrap()
}

/// The study with that spec.
pub fn study() -> FederatedStudy {
    let mut study = FederatedStudy::new("hippocampus", study_spec());
    study.metadata.namespace = Some("research".into());
    study.metadata.uid = Some("study-uid".into());
    study.metadata.generation = Some(1);
    study
}

/// The spec of its first round.
pub fn round_spec() -> TrainingRoundSpec {
    TrainingRoundSpec {
        study: "hippocampus".into(),
        study_uid: "study-uid".into(),
        spec_digest: study_spec().digest(),
        number: 1,
        base_model: Digest::of(b"base"),
        moments: Vec::new(),
        tensor_schema: Digest::of(b"schema"),
        participants: SITES.map(name).to_vec(),
        waited_for: vec![],
        quorum: 3,
        deadline: at(3600),
    }
}

/// A round of it.
pub fn round(number: u32, state: Option<RoundState>) -> TrainingRound {
    let mut round = TrainingRound::new(&format!("hippocampus-{number}"), TrainingRoundSpec { number, ..round_spec() });
    round.metadata.namespace = Some("research".into());
    round.metadata.uid = Some(format!("round-{number}"));
    round.metadata.generation = Some(1);
    round.status = state.map(|state| TrainingRoundStatus { round: Some(state), ..TrainingRoundStatus::default() });
    round
}

/// The state of a round that ended well, with a gate that passed.
pub fn completed(model: &[u8]) -> RoundState {
    let mut state = RoundState::new(SITES.map(name), at(0), at(3600));
    state.step = RoundStep::Succeeded;
    state.outcome = Some(Outcome::Completed);
    state.attempt = 1;
    state.contributors = 4;
    state.model = Some(Digest::of(model));
    state.gate = Some(GateRecord { passed: true, global: Some("0.9000".into()), message: None });
    for site in &mut state.sites {
        site.contributed = true;
        site.vote = Some(Vote::Pass);
    }
    state
}

/// A clinical plan for the models of the study, with one rule; its numbers are examples.
pub fn plan(name: &str) -> ClinicalPlan {
    let spec = serde_json::from_value(json!({
        "line": "research/hippocampus", "finding": {"name": "atrophy", "scheme": "SCT", "code": "0"},
        "scope": {"modalities": ["MR"]}, "onHazard": "Shadow", "expires": "2030-01-01T00:00:00Z",
        "rules": [{"stage": "SafetyNet", "cases": 3, "positives": 1, "days": 1, "validDays": 30,
            "metrics": [{"metric": "sensitivity", "of": "Site", "floor": "0.5"}]}],
    }));
    let mut plan = ClinicalPlan::new(name, spec.unwrap());
    plan.metadata.namespace = Some("research".into());
    plan.metadata.generation = Some(1);
    plan
}

/// An attested release.
pub fn release(name: &str, key: &SigningKey) -> ModelRelease {
    let spec = super::release::cut::cut(&round(1, Some(completed(b"new"))), &study_spec(), key).unwrap();
    let mut release = ModelRelease::new(name, spec);
    release.metadata.namespace = Some("research".into());
    release.metadata.uid = Some("release-uid".into());
    release
}
