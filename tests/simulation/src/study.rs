//! The study, its hospitals' policies, and updates that say whose they are.

use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use consilium_crds::roster::key_text;
use consilium_crds::site_policy::SitePolicySpec;
use consilium_crds::{FederatedStudy, FederatedStudySpec, SitePolicy};
use consilium_federation::model::{ModelManifest, Tensor, TensorSchema};
use consilium_federation::{Digest, SiteName};
use consilium_secagg::identity::SiteKey;
use serde_json::json;

use crate::schedule::{HOSPITALS, NAMES, Setting};

/// Rounds that an update has a place for.
pub const PLACES: usize = 12;
/// Parameters of the model: one for each hospital and round.
pub const PARAMETERS: usize = HOSPITALS * PLACES;
/// The study's UID.
pub const STUDY_UID: &str = "5f0c7f6e-0000-4000-8000-000000000001";
/// Where it lives.
pub const NAMESPACE: &str = "research";
const FEDERATION: &str = "north";
const IMAGE: &str = "registry.example/trainer@sha256:0000000000000000000000000000000000000000000000000000000000000001";

/// A hospital's name.
pub fn site(index: usize) -> SiteName {
    static SITES: OnceLock<Vec<SiteName>> = OnceLock::new();
    // Safety: the names are those of the list above.
    #[allow(clippy::expect_used)]
    SITES.get_or_init(|| NAMES.iter().map(|name| name.parse().expect("a name")).collect())[index].clone()
}

/// Governance's key.
pub fn governor() -> SiteKey {
    SiteKey::from_seed(&[9; 32])
}

/// The first model: its payload and its manifest.
pub fn first_model() -> (Bytes, ModelManifest) {
    let payload = Bytes::from(vec![0u8; PARAMETERS * 4]);
    let schema = TensorSchema(vec![Tensor { name: "w".into(), shape: vec![PARAMETERS as u64] }]);
    // Safety: one chunk for less than a chunk of parameters.
    #[allow(clippy::expect_used)]
    let manifest = ModelManifest::new(schema, vec![Digest::of(&payload)]).expect("a manifest");
    (payload, manifest)
}

/// The study as its researchers wrote it.
pub fn study(setting: Setting) -> FederatedStudy {
    let mut spec = json!({
        "sites": NAMES.map(|name| json!({"name": name})),
        "trainer": {"image": IMAGE, "gpus": 0},
        "initialModel": {"digest": first_model().1.digest()},
        "output": {"kind": "Segmentation", "classes": ["front"], "shape": [8, 8, 8]},
        "aggregation": {"weighting": "Examples", "secure": {"minContributors": 3}, "clipNorm": "10"},
        "rounds": {"max": setting.rounds, "quorum": 3, "deadline": "12h", "stepLimit": "5m",
            "straggler": {"grace": "1m", "maxMissed": 2}},
    });
    if setting.gate {
        spec["gate"] = json!({"metric": "dice", "min": "0.5", "perSiteMin": "0.4", "minCases": 5});
    }
    // Safety: as in the tests of the kinds.
    #[allow(clippy::expect_used)]
    let spec: FederatedStudySpec = serde_json::from_value(spec).expect("a study");
    let mut study = FederatedStudy::new("sim", spec);
    study.metadata.namespace = Some(NAMESPACE.into());
    study.metadata.uid = Some(STUDY_UID.into());
    study.metadata.generation = Some(1);
    study
}

/// What a hospital allows: this study, or nothing.
pub fn policy(study: &FederatedStudy, allowed: bool) -> Arc<SitePolicy> {
    let policy = json!({
        "participation": if allowed { "Enabled" } else { "Disabled" },
        "hardware": [], "maxGPUs": 0, "registries": ["registry.example/"], "imageDigests": [],
        "resources": {"cpu": "1", "memory": "1Gi", "workClaim": "work"},
        "governance": {"federation": FEDERATION, "required": 1,
            "keys": [{"id": "chair", "publicKey": key_text(&governor().public())}]},
        "studies": [{"study": format!("{NAMESPACE}/sim"), "uid": STUDY_UID, "specDigest": study.spec.digest(),
            "approval": "Automatic",
            "dataset": {"trainClaim": "train", "evaluateClaim": "eval", "labelsClaim": "labels"},
            "publishMetrics": true, "weightBucket": 1}],
        "aggregation": {"minContributors": 3, "survivorDifference": "Allow"},
    });
    // Safety: as in the tests of the kinds.
    #[allow(clippy::expect_used)]
    let spec: SitePolicySpec = serde_json::from_value(policy).expect("a policy");
    Arc::new(SitePolicy::new("default", spec))
}

/// Scans of a hospital: no two have as many, so that a sum tells whose weights are in it.
pub fn examples(index: usize) -> u64 {
    [100, 230, 370, 410][index]
}

/// Where a hospital's update of a round differs from nothing.
pub fn place(index: usize, round: u32) -> usize {
    index + HOSPITALS * (round as usize - 1)
}

/// `update.safetensors` of a hospital in a round: one at its place, nothing elsewhere.
pub fn update(index: usize, round: u32) -> Vec<u8> {
    let header = json!({"w": {"dtype": "F32", "shape": [PARAMETERS], "data_offsets": [0, PARAMETERS * 4]}}).to_string();
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(header.as_bytes());
    let begin = file.len();
    file.resize(begin + PARAMETERS * 4, 0);
    let at = begin + 4 * place(index, round);
    file[at..at + 4].copy_from_slice(&1f32.to_le_bytes());
    file
}

/// Name of the federation in its rosters.
pub const fn federation() -> &'static str {
    FEDERATION
}
