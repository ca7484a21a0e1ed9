//! TrainingRound: one round, who takes part, and how far it is.

use consilium_federation::digest::Digest;
use consilium_federation::ids::SiteName;
use consilium_federation::round::{RoundState, SiteReason};
use consilium_federation::strategy::MAX_MOMENTS;
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{schema, values};

/// Annotation by which people end a round: its value is the reason, for the status.
pub const CANCEL: &str = "consilium.health/cancel";

/// One round of a study. Made by the operator; the spec is a snapshot and never changes.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "consilium.health",
    version = "v1alpha1",
    kind = "TrainingRound",
    shortname = "tround",
    category = "consilium",
    namespaced,
    status = "TrainingRoundStatus",
    derive = "PartialEq",
    cel,
    validation = Rule::new("self.spec == oldSelf.spec")
        .message("spec is a snapshot and cannot be changed; edit the study, the next round takes it")
        .field_path(".spec"),
    printcolumn(name = "Study", type_ = "string", json_path = ".spec.study"),
    printcolumn(name = "Round", type_ = "integer", json_path = ".spec.number"),
    printcolumn(name = "Step", type_ = "string", json_path = ".status.round.step"),
    printcolumn(name = "Attempt", type_ = "integer", json_path = ".status.round.attempt"),
    printcolumn(name = "Open", type_ = "string", json_path = ".status.round.protocolStep"),
    printcolumn(name = "Contributors", type_ = "string", json_path = ".status.contributors"),
    printcolumn(name = "Quorum", type_ = "integer", json_path = ".spec.quorum"),
    printcolumn(name = "Dice", type_ = "string", json_path = ".status.round.gate.global"),
    printcolumn(name = "Succeeded", type_ = "string", json_path = ".status.conditions[?(@.type==\"Succeeded\")].status"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type==\"Succeeded\")].reason"),
    // Not a date: kubectl shows one as an age, and a time to come as <invalid>.
    printcolumn(name = "Deadline", type_ = "string", json_path = ".status.round.deadline", priority = 1),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct TrainingRoundSpec {
    /// Name of the FederatedStudy in the same namespace.
    #[schemars(length(min = 1, max = 63), regex(pattern = values::NAMESPACE_PATTERN))]
    pub study: String,
    /// Its UID.
    #[schemars(length(min = 1, max = 63), regex(pattern = values::UID_PATTERN))]
    #[serde(rename = "studyUID")]
    pub study_uid: String,
    /// Digest of the study's spec; the spec itself lies in the store under it.
    pub spec_digest: Digest,
    /// From 1.
    #[schemars(range(min = 1, max = 10_000))]
    pub number: u32,
    /// Digest of the model to start from.
    pub base_model: Digest,
    /// What the server's rule remembers with that model: digests of its moments. Without them they begin at 0.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = MAX_MOMENTS), extend("x-kubernetes-list-type" = "atomic"))]
    pub moments: Vec<Digest>,
    /// Digest of the model's tensor schema.
    pub tensor_schema: Digest,
    /// Hospitals asked to take part.
    #[schemars(length(min = 1, max = 200), extend("x-kubernetes-list-type" = "set"))]
    pub participants: Vec<SiteName>,
    /// Hospitals that were left out too often and are waited for until the deadline.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 200), extend("x-kubernetes-list-type" = "set"))]
    pub waited_for: Vec<SiteName>,
    /// How many must be ready.
    #[schemars(range(min = 3, max = 200))]
    pub quorum: u32,
    /// When training must be over.
    #[schemars(with = "String", length(max = 40), extend("format" = "date-time", "pattern" = values::TIME_PATTERN))]
    pub deadline: Timestamp,
}

/// How far a round is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TrainingRoundStatus {
    /// Generation that the conditions speak of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// The state of the round machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub round: Option<RoundState>,
    /// Hospitals whose updates are in the sum.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 200), extend("x-kubernetes-list-type" = "set"))]
    pub contributors: Vec<SiteName>,
    /// Ready, QuorumReached, Aggregated, Evaluated, Succeeded.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::conditions")]
    pub conditions: Vec<Condition>,
}

/// How many of a round's hospitals are ready or further, as `4/5`.
pub fn sites_through(state: &RoundState) -> String {
    let through = |r: SiteReason| matches!(r, SiteReason::Ready | SiteReason::Submitted | SiteReason::Evaluated);
    let count = state.sites.iter().filter(|s| s.contributed || through(s.reason)).count();
    format!("{count}/{}", state.sites.len())
}
