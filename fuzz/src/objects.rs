//! What people write: studies in files, and objects as an API server hands them out.

use consilium_crds::{
    ClinicalPlan, FederatedStudy, Kind, ModelDeployment, ModelHazard, ModelPromotion, ModelRelease, RoundTask,
    SitePolicy, TrainingRound, TrustSite, Watched, WrittenSpec,
};
use serde_json::Value;

/// As `kubectl consilium digest` reads a file: what is taken has one digest, however often it is read.
pub(crate) fn study_yaml(data: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(data) else { return false };
    let Ok(value) = crate::yaml::as_sent(text) else { return false };
    let spec = WrittenSpec::of(value["spec"].clone());
    let again: Value = serde_json::from_slice(&spec.bytes()).unwrap_or_default();
    assert_eq!(WrittenSpec::of(again).digest(), spec.digest(), "what is stored under a digest has another");
    let _ = spec.read();
    true
}

fn watched<K: Kind>(data: &[u8]) -> bool {
    serde_json::from_slice::<Watched<K>>(data).is_ok_and(|object| object.0.is_ok())
}

/// Each kind as operator and agent list it: what cannot be read is left out alone.
pub(crate) fn object_json(data: &[u8]) -> bool {
    let read = [
        watched::<FederatedStudy>(data),
        watched::<TrustSite>(data),
        watched::<TrainingRound>(data),
        watched::<ModelRelease>(data),
        watched::<ModelPromotion>(data),
        watched::<ClinicalPlan>(data),
        watched::<SitePolicy>(data),
        watched::<RoundTask>(data),
        watched::<ModelDeployment>(data),
        watched::<ModelHazard>(data),
    ];
    read.contains(&true)
}
