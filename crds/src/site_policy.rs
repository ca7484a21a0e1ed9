//! SitePolicy: what the hospital allows. Written by the hospital alone.

use consilium_clinical::rules::StageRule;
pub use consilium_clinical::standing::OnExpiry;
use consilium_federation::approval::{Requirement, TrustedKey};
use consilium_federation::digest::Digest;
use consilium_federation::ids::StudyKey;
use consilium_federation::ladder::Stage;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::schema;
pub use crate::site_limits::{Audit, Limits, MODEL_LEASE, Retention, Suspend, TASK_DURATION};
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
        .message(Message::Expression("self.spec.studies.filter(s, s.approval == 'PerRound' && !has(s.approvedThroughRound)).map(s, 'spec.studies: %s has approval PerRound and no approvedThroughRound: write the last round to approve, 0 for none yet'.format([s.study]))[0]".into()))
        .field_path(".spec.studies"),
    validation = Rule::new("self.spec.studies.all(s, !has(s.approvedThroughRound) || oldSelf.spec.studies.all(o, o.study != s.study || o.uid != s.uid || !has(o.approvedThroughRound) || s.approvedThroughRound >= o.approvedThroughRound))")
        .message(Message::Expression("self.spec.studies.filter(s, has(s.approvedThroughRound) && oldSelf.spec.studies.exists(o, o.study == s.study && o.uid == s.uid && has(o.approvedThroughRound) && s.approvedThroughRound < o.approvedThroughRound)).map(s, 'spec.studies: approvedThroughRound of %s is %d and was %d: it can only grow; write approval: Denied to withdraw'.format([s.study, s.approvedThroughRound, oldSelf.spec.studies.filter(o, o.study == s.study)[0].approvedThroughRound]))[0]".into()))
        .field_path(".spec.studies"),
    validation = Rule::new("!has(self.spec.governance) || self.spec.governance.required <= self.spec.governance.keys.size()")
        .message(Message::Expression("'spec.governance.required is %d and must be at most the number of spec.governance.keys, which is %d: pin more keys or require fewer'.format([self.spec.governance.required, self.spec.governance.keys.size()])".into()))
        .field_path(".spec.governance.required"),
    validation = Rule::new("!has(self.spec.limits) || !has(self.spec.limits.modelLease) || duration(self.spec.limits.modelLease) >= duration('1m')")
        .message(Message::Expression("'spec.limits.modelLease is \"' + self.spec.limits.modelLease + '\" and must be at least 1m: the agent renews it ten times within, and a node shows a pod its new lease only after a while'".into()))
        .field_path(".spec.limits.modelLease"),
    validation = Rule::new("!has(self.spec.retention) || duration(self.spec.retention.erasedWithin) >= duration('1h')")
        .message(Message::Expression("'spec.retention.erasedWithin is \"' + self.spec.retention.erasedWithin + '\" and must be at least 1h: pods have to end and a Job has to run within half of it'".into()))
        .field_path(".spec.retention.erasedWithin"),
    printcolumn(name = "Participation", type_ = "string", json_path = ".spec.participation"),
    printcolumn(name = "Connected", type_ = "string", json_path = ".status.conditions[?(@.type==\"Connected\")].status"),
    printcolumn(name = "Enforced", type_ = "string", json_path = ".status.conditions[?(@.type==\"Enforced\")].status"),
    printcolumn(name = "Roster", type_ = "string", json_path = ".status.conditions[?(@.type==\"RosterAccepted\")].status"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].reason"),
    printcolumn(name = "Message", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].message", priority = 1),
    printcolumn(name = "MaxStage", type_ = "string", json_path = ".spec.releases.maxStage"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct SitePolicySpec {
    /// Enabled: takes part. Drain: finishes what runs, takes nothing new. Disabled: trainings, evaluations and models stop
    /// at once, and nothing leaves but that this hospital is there and says no.
    pub participation: Participation,
    /// Stops one kind of what runs here and leaves the other alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub suspend: Option<Suspend>,
    /// Upper bounds on what runs here, whatever a study or the hub says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<Limits>,
    /// How long anything is kept that nobody needs. Without it, as long as the hub names the round.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retention: Option<Retention>,
    /// By what the hub's word on this hospital's ledger is checked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub audit: Option<Audit>,
    /// The accelerators that tasks may use. Studies that ask for more are answered `IncompatibleGPU`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["product"]))]
    pub hardware: Vec<Hardware>,
    /// Most GPUs that one task may use.
    #[serde(rename = "maxGPUs")]
    #[schemars(range(min = 0, max = 64))]
    pub max_gpus: u32,
    /// Image prefixes that may run, for example `registry.hospital.example/research/`. Empty: none.
    #[schemars(length(max = 32), inner(length(min = 1, max = 253), regex(pattern = values::IMAGE_PREFIX_PATTERN)), extend("x-kubernetes-list-type" = "set"))]
    pub registries: Vec<String>,
    /// If not empty, only images with these digests may run.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 100), extend("x-kubernetes-list-type" = "set"))]
    pub image_digests: Vec<Digest>,
    /// Kueue local queue for task Jobs; without it they start as soon as the scheduler finds room.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63), regex(pattern = values::NAME_PATTERN))]
    pub queue_name: Option<String>,
    /// Limits of a task's containers.
    pub resources: TaskResources,
    /// The studies that this hospital has looked at. A study that is not here is denied.
    #[serde(default)]
    #[schemars(length(max = 200), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["study"]))]
    pub studies: Vec<StudyOptIn>,
    /// Whose signatures make a roster of hospital keys hold here. Without it, only studies with `protocol: None` can
    /// run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub governance: Option<GovernancePolicy>,
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
    /// Finishes what runs, takes nothing new.
    Drain,
    /// Stops trainings, evaluations and models at once.
    Disabled,
}

/// One kind of accelerator, in the words of GPU feature discovery.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Hardware {
    /// `nvidia.com/gpu.product`, for example `Tesla-V100-SXM3-32GB`.
    #[schemars(length(min = 1, max = 63), regex(pattern = values::LABEL_VALUE_PATTERN))]
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
    #[schemars(length(max = 16), regex(pattern = values::CPU_PATTERN))]
    pub cpu: String,
    /// Memory of the trainer, for example `64Gi`.
    #[schemars(length(max = 16), regex(pattern = values::MEMORY_PATTERN))]
    pub memory: String,
    /// Claim in the task namespace for checkpoints and results.
    #[schemars(length(min = 1, max = 253), regex(pattern = values::NAME_PATTERN))]
    pub work_claim: String,
}

/// This hospital's word on one study.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct StudyOptIn {
    /// `namespace/name` at the hub.
    pub study: StudyKey,
    /// UID of the study: a recreated study is another one.
    #[schemars(length(min = 1, max = 63), regex(pattern = values::UID_PATTERN))]
    pub uid: String,
    /// Digest of the spec that was approved: an edited study must be approved again.
    pub spec_digest: Digest,
    /// Digests that were approved before and still hold for the rounds that began with them, so that approving an edited
    /// study does not stop the one that runs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 4), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["specDigest"]))]
    pub earlier: Vec<EarlierSpec>,
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
    /// Example counts are rounded to multiples of this before they weigh: two sums that differ by this hospital alone
    /// tell its count no more exactly. Default 10.
    #[serde(default = "ten")]
    #[schemars(range(min = 1, max = 100_000))]
    pub weight_bucket: u32,
    /// No masked sum is given for rounds up to this one. After the agent's volume was restored or lost (condition
    /// StateRolledBack): the last round that this hospital may have taken part in; none is given for any round until
    /// this is set higher than it was then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 10_000))]
    pub resume_after_round: Option<u32>,
}

/// A spec that was approved before.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct EarlierSpec {
    /// Its digest.
    pub spec_digest: Digest,
    /// The last round that may run it.
    #[schemars(range(min = 1, max = 10_000))]
    pub through_round: u32,
}

const fn one() -> u32 {
    1
}

const fn ten() -> u32 {
    10
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
    #[schemars(length(min = 1, max = 253), regex(pattern = values::NAME_PATTERN))]
    pub train_claim: String,
    /// Evaluation scans without labels: all that the study's image sees of them.
    #[schemars(length(min = 1, max = 253), regex(pattern = values::NAME_PATTERN))]
    pub evaluate_claim: String,
    /// Labels of the evaluation scans, mounted into the platform's evaluator alone.
    #[schemars(length(min = 1, max = 253), regex(pattern = values::NAME_PATTERN))]
    pub labels_claim: String,
}

/// Whose signatures make a roster hold. Compared out of band when the hospital enrols; never taken from the hub.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct GovernancePolicy {
    /// Name of the federation; a roster for another one does not count.
    #[schemars(length(min = 1, max = 63), regex(pattern = values::LABEL_VALUE_PATTERN))]
    pub federation: String,
    /// How many of the keys must sign a roster.
    #[schemars(range(min = 1, max = 20))]
    pub required: u32,
    /// The governance members' keys.
    #[schemars(length(min = 1, max = 20), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["id"]))]
    pub keys: Vec<GovernanceKey>,
}

/// One governance member's key.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct GovernanceKey {
    /// Its name here.
    #[schemars(length(min = 1, max = 63))]
    pub id: String,
    /// Ed25519 public key, base64 of 32 bytes, as `kubectl consilium keygen` writes it.
    #[schemars(length(max = 44), regex(pattern = values::PUBLIC_KEY_PATTERN))]
    pub public_key: String,
}

/// Floors of the aggregation: they hold whatever the hub says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AggregationPolicy {
    /// Least number of updates in a sum that holds this hospital's.
    #[schemars(range(min = 3, max = 200))]
    pub min_contributors: u32,
    /// Hospitals that may collude with the hub and must still not be able to read this hospital's update. Default 1.
    #[serde(default = "one")]
    #[schemars(range(min = 0, max = 66))]
    pub colluders: u32,
    /// Whether two sums may differ by a single hospital. Without it: Refuse where the attempt could spare two
    /// hospitals (7 or more), Allow in smaller ones, where one drop-out would otherwise end the study.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub survivor_difference: Option<SurvivorDifference>,
    /// Take part in studies with `protocol: None`, where the hub can read this hospital's update.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub allow_plaintext_updates: bool,
}

/// Whether the hospitals in a sum may be those of an earlier sum but for one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
pub enum SurvivorDifference {
    /// No: the difference of the two sums says something of that one.
    Refuse,
    /// Yes.
    Allow,
}

/// Which models may be served here, and on what.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ReleasePolicy {
    /// Public keys whose approvals count here. The hub's key never does.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 50), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["id"]))]
    pub keys: Vec<TrustedKey>,
    /// What each stage needs. A stage without an entry is denied, and with it all above.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 6), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["stage"]))]
    pub require: Vec<Requirement>,
    /// The highest stage at which a model may stand here. Without it, none is served.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_stage: Option<Stage>,
    /// What becomes of a model whose approvals have expired. Shadow: it goes on where nobody sees its answers, and keeps
    /// the evidence by which it would be approved again. Withdraw: it is no longer served. Without it: Shadow.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_expiry: Option<OnExpiry>,
    /// What this hospital's own evidence must show before a model stands on a stage, beside what the clinical plan asks:
    /// both must hold, so the stricter does. Metrics are `of: Site` or `of: WorstSubgroup`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 5), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["stage"]))]
    pub rules: Vec<StageRule>,
    /// What works between scans and model, one for each model line. Nothing of a line without one stands above Shadow.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 50), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["line"]))]
    pub workers: Vec<Worker>,
    /// GPUs of each served model. 0: it runs on the CPU. 1: it waits for a free one on a node with the label
    /// `consilium.health/inference-gpu`, and tolerates the taint `nvidia.com/gpu:NoSchedule`. Default 0.
    #[serde(default)]
    #[schemars(range(min = 0, max = 1))]
    pub gpus: u32,
}

/// What works between scans and the model of a line, and clinicians.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Worker {
    /// The model line: the study, `namespace/name` at the hub.
    pub line: StudyKey,
    /// Digest of its image: part of the pipeline that is approved, and that evidence is of.
    pub image: Digest,
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
    /// This hospital's public signing key (Ed25519, base64), made on the agent's volume: what the governance puts into
    /// the roster. Compare it with the agent's log before it is signed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 44))]
    pub signing_key: Option<String>,
    /// The rosters that hold here, oldest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 2), extend("x-kubernetes-list-type" = "atomic"))]
    pub rosters: Vec<AcceptedRoster>,
    /// What of the amounts in spec.limits is used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub used: Option<UsedAmounts>,
    /// Where the agent's ledger stood: a volume that never had this head was restored from a backup.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ledger: Option<LedgerHead>,
    /// Connected, Enforced, RosterAccepted, StateRolledBack, VolumeUsable, Ready.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::conditions")]
    pub conditions: Vec<Condition>,
}

/// What of the amounts in spec.limits is used, as the agent has written it down on its volume.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct UsedAmounts {
    /// Tasks that began within 24 hours.
    pub tasks_within_day: u32,
    /// Rounds of which a task began within 24 hours.
    pub rounds_within_day: u32,
    /// Whole GPU hours that tasks held within 30 days.
    pub gpu_hours: u64,
}

/// A roster that governance signed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct AcceptedRoster {
    /// Its version.
    pub version: u64,
    /// Its digest, without signatures.
    pub digest: Digest,
    /// Hospitals on it.
    pub sites: u32,
}

/// The end of the agent's ledger at some moment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct LedgerHead {
    /// Entries so far.
    pub entries: u64,
    /// Hash of the last one.
    pub head: Digest,
    /// The hub's Ed25519 signature over this very end, hexadecimal, once it has acknowledged it: proof for others of
    /// what it was shown, and when. Checked if spec.audit names the hub's key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 128))]
    pub countersignature: Option<String>,
}

/// A study as the hub offers it, for an administrator to opt in to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct OfferedStudy {
    /// `namespace/name` at the hub.
    pub study: StudyKey,
    /// UID to opt in to.
    #[schemars(length(min = 1, max = 63), regex(pattern = values::UID_PATTERN))]
    pub uid: String,
    /// Spec digest to opt in to.
    pub spec_digest: Digest,
    /// Newest round offered.
    pub round: u32,
    /// The decision's reason, as in RoundTask.
    #[schemars(length(max = 40))]
    pub reason: String,
    /// Why it is refused, and what would allow it. For this hospital's people; the hub is not told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 500))]
    pub message: Option<String>,
}
