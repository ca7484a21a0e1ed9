//! SitePolicy: what the hospital allows. Written by the hospital alone.

use consilium_federation::approval::{Requirement, TrustedKey};
use consilium_federation::digest::Digest;
use consilium_federation::ids::StudyKey;
use consilium_federation::ladder::Stage;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::schema;
use crate::values;

/// What this hospital allows. There is one, called `default`, in the agent's namespace.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "consilium.health",
    version = "v1alpha1",
    kind = "SitePolicy",
    plural = "sitepolicies",
    shortname = "spolicy",
    category = "consilium",
    namespaced,
    status = "SitePolicyStatus",
    derive = "PartialEq",
    cel,
    validation = Rule::new("self.metadata.name == 'default'")
        .message(Message::Expression("'metadata.name is \"' + self.metadata.name + '\" and must be \"default\": a hospital has one policy'".into())),
    validation = Rule::new("self.spec.studies.all(s, s.approval != 'PerRound' || has(s.approvedThroughRound))")
        .message("spec.studies: a study with approval PerRound has no approvedThroughRound: write the last round to approve, 0 for none yet")
        .field_path(".spec.studies"),
    validation = Rule::new("self.spec.studies.all(s, !has(s.approvedThroughRound) || oldSelf.spec.studies.all(o, o.study != s.study || o.uid != s.uid || !has(o.approvedThroughRound) || s.approvedThroughRound >= o.approvedThroughRound))")
        .message("spec.studies: an approvedThroughRound is lower than it was and can only grow; write approval: Denied to withdraw")
        .field_path(".spec.studies"),
    printcolumn(name = "Participation", type_ = "string", json_path = ".spec.participation"),
    printcolumn(name = "Connected", type_ = "string", json_path = ".status.conditions[?(@.type==\"Connected\")].status"),
    printcolumn(name = "Enforced", type_ = "string", json_path = ".status.conditions[?(@.type==\"Enforced\")].status"),
    printcolumn(name = "MaxStage", type_ = "string", json_path = ".spec.releases.maxStage"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct SitePolicySpec {
    /// Enabled: takes part. Drain: finishes what runs, starts nothing. Disabled: stops at once.
    pub participation: Participation,
    /// The accelerators that tasks may use. Studies that ask for more are answered `IncompatibleGPU`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["product"]))]
    pub hardware: Vec<Hardware>,
    /// Most GPUs that one task may use.
    #[serde(rename = "maxGPUs")]
    #[schemars(range(min = 0, max = 64))]
    pub max_gpus: u32,
    /// Image prefixes that may run, for example `registry.hospital.example/research/`. Empty: none.
    #[schemars(length(max = 32), inner(length(min = 1, max = 253)), extend("x-kubernetes-list-type" = "set"))]
    pub registries: Vec<String>,
    /// If not empty, only images with these digests may run.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 100), extend("x-kubernetes-list-type" = "set"))]
    pub image_digests: Vec<Digest>,
    /// Kueue local queue for task Jobs; without it they start as soon as the scheduler finds room.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub queue_name: Option<String>,
    /// Limits of a task's containers.
    pub resources: TaskResources,
    /// The studies that this hospital has looked at. A study that is not here is denied.
    #[serde(default)]
    #[schemars(length(max = 200), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["study"]))]
    pub studies: Vec<StudyOptIn>,
    /// Floors of the aggregation.
    pub aggregation: AggregationPolicy,
    /// Which models may be served here, on whose word.
    #[serde(default)]
    pub releases: ReleasePolicy,
}

/// Whether this hospital takes part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
pub enum Participation {
    /// Takes part.
    Enabled,
    /// Finishes what runs, starts nothing.
    Drain,
    /// Stops at once.
    Disabled,
}

/// One kind of accelerator, in the words of GPU feature discovery.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Hardware {
    /// `nvidia.com/gpu.product`, for example `Tesla-V100-SXM3-32GB`.
    #[schemars(length(min = 1, max = 63))]
    pub product: String,
    /// CUDA compute capability, for example `7.0`.
    #[schemars(length(max = 8), regex(pattern = "^[0-9]{1,2}\\.[0-9]$"))]
    pub compute_capability: String,
    /// Memory of one GPU, for example `32Gi`.
    #[schemars(length(max = 16), regex(pattern = values::MEMORY_PATTERN))]
    pub memory: String,
    /// GPUs in one node.
    #[schemars(range(min = 1, max = 64))]
    pub count: u32,
}

/// Limits of a task's containers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TaskResources {
    /// CPU of the trainer, a Kubernetes quantity such as `8` or `500m`.
    #[schemars(length(max = 16), regex(pattern = "^[0-9]{1,6}(m|\\.[0-9]{1,3})?$"))]
    pub cpu: String,
    /// Memory of the trainer, for example `64Gi`.
    #[schemars(length(max = 16), regex(pattern = values::MEMORY_PATTERN))]
    pub memory: String,
    /// Claim in the task namespace for checkpoints and results.
    #[schemars(length(min = 1, max = 253))]
    pub work_claim: String,
}

/// This hospital's word on one study.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct StudyOptIn {
    /// `namespace/name` at the hub.
    pub study: StudyKey,
    /// UID of the study: a recreated study is another one.
    #[schemars(length(min = 1, max = 63))]
    pub uid: String,
    /// Digest of the spec that was approved: an edited study must be approved again.
    pub spec_digest: Digest,
    /// Automatic: every round. PerRound: up to approvedThroughRound. Denied: none.
    pub approval: StudyApproval,
    /// Last approved round, with PerRound.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 10_000))]
    pub approved_through_round: Option<u32>,
    /// The scans for this study.
    pub dataset: Dataset,
    /// Publish the numbers of the evaluation beside the vote.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub publish_metrics: bool,
    /// Example counts are rounded to multiples of this before they weigh. Default 1.
    #[serde(default = "one")]
    #[schemars(range(min = 1, max = 100_000))]
    pub weight_bucket: u32,
}

const fn one() -> u32 {
    1
}

/// How a study is approved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
pub enum StudyApproval {
    /// Every round.
    Automatic,
    /// Up to `approvedThroughRound`.
    PerRound,
    /// None.
    Denied,
}

/// Claims in the task namespace; training and evaluation scans are disjoint by patient.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Dataset {
    /// Training scans and labels.
    #[schemars(length(min = 1, max = 253))]
    pub train_claim: String,
    /// Evaluation scans without labels: all that the study's image sees of them.
    #[schemars(length(min = 1, max = 253))]
    pub evaluate_claim: String,
    /// Labels of the evaluation scans, mounted into the platform's evaluator alone.
    #[schemars(length(min = 1, max = 253))]
    pub labels_claim: String,
}

/// Floors of the aggregation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AggregationPolicy {
    /// Least number of updates in a sum that holds this hospital's.
    #[schemars(range(min = 3, max = 200))]
    pub min_contributors: u32,
    /// Take part in studies with `protocol: None`, where the hub can read this hospital's update.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub allow_plaintext_updates: bool,
}

/// Which models may be served here.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ReleasePolicy {
    /// Public keys whose approvals count here. The hub's key never does.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 50), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["id"]))]
    pub keys: Vec<TrustedKey>,
    /// What each stage needs. A stage without an entry is denied.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 6), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["stage"]))]
    pub require: Vec<Requirement>,
    /// The highest stage at which a model may stand here. Without it, none is served.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_stage: Option<Stage>,
}

/// What the agent sees.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SitePolicyStatus {
    /// Generation that the conditions speak of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// What became of each study that the hub offers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 200), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["study"]))]
    pub studies: Vec<OfferedStudy>,
    /// Connected, Enforced, Ready.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::conditions")]
    pub conditions: Vec<Condition>,
}

/// A study as the hub offers it, for an administrator to opt in to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct OfferedStudy {
    /// `namespace/name` at the hub.
    pub study: StudyKey,
    /// UID to opt in to.
    #[schemars(length(max = 63))]
    pub uid: String,
    /// Spec digest to opt in to.
    pub spec_digest: Digest,
    /// Newest round offered.
    pub round: u32,
    /// The decision's reason, as in RoundTask.
    #[schemars(length(max = 40))]
    pub reason: String,
}
