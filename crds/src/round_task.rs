//! RoundTask: this hospital's part in one round. Owns the Jobs.

use consilium_federation::digest::Digest;
use consilium_federation::ids::StudyKey;
use consilium_federation::round::SiteReason;
use consilium_federation::task::TaskKind;
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{schema, values};

/// This hospital's part in one round. Made by the agent.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "consilium.health",
    version = "v1alpha1",
    kind = "RoundTask",
    shortname = "rtask",
    category = "consilium",
    namespaced,
    status = "RoundTaskStatus",
    derive = "PartialEq",
    cel,
    validation = Rule::new("self.spec == oldSelf.spec")
        .message("spec of a task cannot be changed; delete the task to stop it")
        .field_path(".spec"),
    printcolumn(name = "Study", type_ = "string", json_path = ".spec.study"),
    printcolumn(name = "Round", type_ = "integer", json_path = ".spec.round"),
    printcolumn(name = "Kind", type_ = "string", json_path = ".spec.kind"),
    printcolumn(name = "Try", type_ = "integer", json_path = ".status.try"),
    printcolumn(name = "Succeeded", type_ = "string", json_path = ".status.conditions[?(@.type==\"Succeeded\")].status"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.reason"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct RoundTaskSpec {
    /// The study.
    pub study: StudyKey,
    /// Its UID.
    #[schemars(length(min = 1, max = 63), regex(pattern = values::UID_PATTERN))]
    #[serde(rename = "studyUID")]
    pub study_uid: String,
    /// Digest of its spec, as approved.
    pub spec_digest: Digest,
    /// UID of the TrainingRound at the hub.
    #[schemars(length(min = 1, max = 63), regex(pattern = values::UID_PATTERN))]
    #[serde(rename = "roundUID")]
    pub round_uid: String,
    /// Its number.
    #[schemars(range(min = 1, max = 10_000))]
    pub round: u32,
    /// Train or Evaluate.
    pub kind: TaskKind,
    /// The model to start from, or to evaluate.
    pub model: Digest,
    /// The study's image.
    #[schemars(length(max = 500))]
    pub image: String,
    /// GPUs asked for.
    #[schemars(range(min = 0, max = 64))]
    pub gpus: u32,
    /// When the hub stops waiting.
    #[schemars(with = "String", length(max = 40), extend("format" = "date-time", "pattern" = values::TIME_PATTERN))]
    pub deadline: Timestamp,
}

/// Where a task is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RoundTaskStatus {
    /// Generation that the conditions speak of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// The run of the Job, from 1; the fencing token: only the newest try may deliver.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub r#try: Option<u32>,
    /// Name of its Job.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63))]
    pub job_name: Option<String>,
    /// Where it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<SiteReason>,
    /// The trainer's own estimate: steps done and in all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 40))]
    pub progress: Option<String>,
    /// When the update was durable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>", length(max = 40), extend("format" = "date-time", "pattern" = values::TIME_PATTERN))]
    pub delivered_time: Option<Timestamp>,
    /// Digest of the encoded update.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub update_digest: Option<Digest>,
    /// The last act that cannot be taken back, written before it happens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub irreversible: Option<Irreversible>,
    /// Approved, Delivered, Succeeded.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::conditions")]
    pub conditions: Vec<Condition>,
}

/// An act that cannot be taken back.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Irreversible {
    /// Attempt in which it happens.
    pub attempt: u32,
    /// Step of the attempt.
    #[schemars(length(max = 20))]
    pub step: String,
    /// Head of the hospital's ledger at that moment.
    pub ledger_head: Digest,
}
