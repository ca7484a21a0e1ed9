//! FederatedStudy: what is trained, by whom, with which guarantees.

mod meaning;
mod written;

use consilium_federation::digest::Digest;
use consilium_federation::ids::SiteName;
use consilium_federation::output::OutputSpec;
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{schema, values};
pub use meaning::{SumFacts, training_deadline};
pub use written::{CONFIG_DEPTH, WrittenSpec};

/// Example count that weighs in full; hospitals with more count as this many.
///
/// All hospitals must use one cap, and none may derive it from another's numbers. The ring's step in the mean is
/// `n·C / (2^31·Σα)` with `α = examples / cap`, so a larger cap costs small hospitals precision: with four hospitals of
/// 50 scans it is 1·10⁻⁵ of the clip norm at a cap of 2^20, close to an update's coordinates, and 6·10⁻⁷ at 2^16.
pub const EXAMPLES_CAP: u64 = consilium_federation::gate::COUNT_CAP as u64;
/// Elements of a hospital's evaluation: its mean Dice.
pub const EVALUATION_ELEMENTS: u64 = 1;
/// Bound on the norm of an evaluation: Dice is at most 1.
pub const EVALUATION_CLIP: f64 = 1.0;

/// A federated study.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "consilium.health",
    version = "v1alpha1",
    kind = "FederatedStudy",
    plural = "federatedstudies",
    shortname = "fstudy",
    category = "consilium",
    namespaced,
    status = "FederatedStudyStatus",
    derive = "PartialEq",
    cel,
    validation = Rule::new("self.metadata.name.matches('^[a-z0-9]([-a-z0-9]{0,47}[a-z0-9])?$')")
        .message(Message::Expression("'metadata.name is \"' + self.metadata.name + '\": use at most 49 lower-case letters, digits and \"-\", no dots, since rounds and releases are named after it'".into())),
    validation = Rule::new("self.spec.rounds.quorum <= self.spec.sites.size()")
        .message(Message::Expression("'spec.rounds.quorum is %d and must be at most the number of spec.sites, which is %d: lower the quorum or name more sites'.format([self.spec.rounds.quorum, self.spec.sites.size()])".into()))
        .field_path(".spec.rounds.quorum"),
    validation = Rule::new("self.spec.aggregation.secure.minContributors <= self.spec.rounds.quorum")
        .message(Message::Expression("'spec.aggregation.secure.minContributors is %d and must be at most spec.rounds.quorum, which is %d, else a quorum could never be summed: lower the one or raise the other'.format([self.spec.aggregation.secure.minContributors, self.spec.rounds.quorum])".into()))
        .field_path(".spec.aggregation.secure.minContributors"),
    validation = Rule::new("self.spec.aggregation.secure.minContributors >= self.spec.aggregation.secure.colluders + 2")
        .message(Message::Expression("'spec.aggregation.secure.minContributors is %d and must be at least colluders + 2, which is %d, else the hospitals that collude could subtract their own updates: raise the one or lower the other'.format([self.spec.aggregation.secure.minContributors, self.spec.aggregation.secure.colluders + 2])".into()))
        .field_path(".spec.aggregation.secure.minContributors"),
    validation = Rule::new("has(self.spec.initialModel.seed) != has(self.spec.initialModel.digest)")
        .message(Message::Expression("'spec.initialModel has ' + (has(self.spec.initialModel.seed) ? 'both' : 'neither') + ' of seed and digest: write seed to make a new model, or digest to start from one in the store'".into()))
        .field_path(".spec.initialModel"),
    validation = Rule::new("!has(self.spec.aggregation.strategy) || self.spec.aggregation.strategy.kind != 'FedAvg' || !(has(self.spec.aggregation.strategy.rate) || has(self.spec.aggregation.strategy.momentum) || has(self.spec.aggregation.strategy.secondMomentum) || has(self.spec.aggregation.strategy.floor))")
        .message("spec.aggregation.strategy.kind is FedAvg, which has no rate, momentum, secondMomentum or floor: take them away, or write kind FedAvgM, FedAdam or FedYogi")
        .field_path(".spec.aggregation.strategy"),
    validation = Rule::new("!has(self.spec.aggregation.strategy) || self.spec.aggregation.strategy.kind != 'FedAvgM' || !(has(self.spec.aggregation.strategy.secondMomentum) || has(self.spec.aggregation.strategy.floor))")
        .message("spec.aggregation.strategy.kind is FedAvgM, which has rate and momentum, and no secondMomentum or floor: take them away, or write kind FedAdam or FedYogi")
        .field_path(".spec.aggregation.strategy"),
    validation = Rule::new("self.spec.initialModel == oldSelf.spec.initialModel")
        .message(Message::Expression("has(self.spec.initialModel.seed) && has(oldSelf.spec.initialModel.seed) ? 'spec.initialModel.seed is %d and was %d: it cannot be changed; make a new study to start from another model'.format([self.spec.initialModel.seed, oldSelf.spec.initialModel.seed]) : has(self.spec.initialModel.digest) && has(oldSelf.spec.initialModel.digest) ? 'spec.initialModel.digest is %s and was %s: it cannot be changed; make a new study to start from another model'.format([self.spec.initialModel.digest, oldSelf.spec.initialModel.digest]) : 'spec.initialModel has seed where it had digest, or digest where it had seed: it cannot be changed; make a new study to start from another model'".into()))
        .field_path(".spec.initialModel"),
    validation = Rule::new("self.spec.rounds.max >= oldSelf.spec.rounds.max")
        .message(Message::Expression("'spec.rounds.max is %d and was %d: it can only grow; make a new study to plan fewer rounds'.format([self.spec.rounds.max, oldSelf.spec.rounds.max])".into()))
        .field_path(".spec.rounds.max"),
    printcolumn(name = "Round", type_ = "integer", json_path = ".status.currentRound"),
    printcolumn(name = "Max", type_ = "integer", json_path = ".spec.rounds.max"),
    printcolumn(name = "Succeeded rounds", type_ = "integer", json_path = ".status.roundsSucceeded", priority = 1),
    printcolumn(name = "Sites", type_ = "string", json_path = ".status.sites"),
    printcolumn(name = "Quorum", type_ = "integer", json_path = ".spec.rounds.quorum"),
    printcolumn(name = "Deadline", type_ = "string", json_path = ".status.deadline"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].reason"),
    printcolumn(name = "Succeeded", type_ = "string", json_path = ".status.conditions[?(@.type==\"Succeeded\")].status"),
    printcolumn(name = "Release", type_ = "string", json_path = ".status.latestRelease"),
    printcolumn(name = "Message", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].message", priority = 1),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct FederatedStudySpec {
    /// The hospitals asked to take part, by the names of their TrustSites.
    #[schemars(length(min = 1, max = 200), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub sites: Vec<StudySite>,
    /// What trains.
    pub trainer: Trainer,
    /// Where the first model comes from.
    pub initial_model: InitialModel,
    /// How updates are combined.
    pub aggregation: Aggregation,
    /// How many rounds, and how long each may take.
    pub rounds: Rounds,
    /// When a model may become a release. Without it, models are not evaluated and none is released.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gate: Option<GateSpec>,
    /// What the model answers. Without it, evaluator and inference server read the number of classes and the shape from
    /// `trainer.config`, which only the config of `consilium-trainer` has; a study with another trainer and a gate needs it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output: Option<OutputSpec>,
    /// While true, no round begins, nor the first model; a round under way goes on (`kubectl consilium cancel` ends it).
    /// No part of what hospitals opt in to: changing it needs no new approval.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub suspend: Option<bool>,
}

/// One hospital of a study.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct StudySite {
    /// Name of its TrustSite.
    pub name: SiteName,
    /// No round is summed without it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub required: bool,
}

/// What trains.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Trainer {
    /// Image by digest: `registry.example/name@sha256:<64 hex>`. Tags are refused, they can be moved.
    #[schemars(length(max = 500), regex(pattern = "^[a-z0-9]([a-z0-9._:/-]*[a-z0-9])?@sha256:[0-9a-f]{64}$"))]
    pub image: String,
    /// GPUs asked for in each hospital.
    #[schemars(range(min = 0, max = 64))]
    pub gpus: u32,
    /// Least memory of each GPU, for example `32Gi`.
    #[serde(default, rename = "minGPUMemory", skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16), regex(pattern = values::MEMORY_PATTERN))]
    pub min_gpu_memory: Option<String>,
    /// Least CUDA compute capability, for example `7.0`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 8), regex(pattern = "^[0-9]{1,2}\\.[0-9]$"))]
    pub min_compute_capability: Option<String>,
    /// Handed to the trainer as it is.
    #[serde(default, skip_serializing_if = "serde_json::Map::is_empty")]
    #[schemars(schema_with = "schema::free_object")]
    pub config: serde_json::Map<String, serde_json::Value>,
}

/// Where the first model comes from; exactly one of the two.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct InitialModel {
    /// Make one, with this seed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 4_294_967_295u64))]
    pub seed: Option<i64>,
    /// Start from a model that is in the hub's store.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<Digest>,
}

/// How updates are combined.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Aggregation {
    /// How the mean update moves the model.
    #[serde(default)]
    pub strategy: Strategy,
    /// How hospitals count in the mean.
    #[serde(default)]
    pub weighting: Weighting,
    /// What keeps single updates unreadable.
    pub secure: Secure,
    /// Bound on the L2 norm of an update, a decimal; longer updates are shortened to it in the hospital.
    #[schemars(length(max = 20), regex(pattern = values::POSITIVE_DECIMAL_PATTERN))]
    pub clip_norm: String,
}

/// How the mean update moves the model.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Strategy {
    /// FedAvg: new model = base + weighted mean of the updates (McMahan et al., 2017). FedAvgM: by a running sum of the
    /// means, v ← momentum·v + mean, model + rate·v (Hsu et al., 2019). FedAdam, FedYogi: by a running mean m of them,
    /// each parameter at its own pace, model + rate·m/(√v + floor) (Reddi et al., 2021).
    pub kind: StrategyKind,
    /// Not of FedAvg: the length of a step. Default 1 for FedAvgM, 0.01 for FedAdam and FedYogi.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 20), regex(pattern = values::POSITIVE_DECIMAL_PATTERN))]
    pub rate: Option<String>,
    /// Not of FedAvg: how much of earlier rounds' means stays, below 1. Default 0.9.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 11), regex(pattern = values::BELOW_ONE_PATTERN))]
    pub momentum: Option<String>,
    /// FedAdam and FedYogi: how much of the means' earlier squares stays, below 1. Default 0.99.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 11), regex(pattern = values::BELOW_ONE_PATTERN))]
    pub second_momentum: Option<String>,
    /// FedAdam and FedYogi: keeps parameters that hardly move from being blown up. Default 0.001.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 20), regex(pattern = values::POSITIVE_DECIMAL_PATTERN))]
    pub floor: Option<String>,
}

/// Names of strategies; holds only what works.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
pub enum StrategyKind {
    /// Weighted mean.
    #[default]
    FedAvg,
    /// With momentum.
    FedAvgM,
    /// Adaptive.
    FedAdam,
    /// Adaptive, with a second moment that falls more slowly.
    FedYogi,
}

/// How hospitals count in the mean.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
pub enum Weighting {
    /// By the number of training examples, rounded by the hospital.
    #[default]
    Examples,
    /// All alike.
    Equal,
}

/// What keeps single updates unreadable.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Secure {
    /// `SecAgg` (the default): updates are masked so that the hub reads nothing but their sum. `None`: encoded but not
    /// masked, so the hub can read single updates; only for one trust boundary, and only where each hospital's policy
    /// allows it.
    #[serde(default)]
    pub protocol: ProtocolKind,
    /// Least number of updates in a sum.
    #[schemars(range(min = 3, max = 200))]
    pub min_contributors: u32,
    /// Hospitals that may work together with the hub and still not read another one's update. Default 1.
    #[serde(default = "default_colluders")]
    #[schemars(range(min = 0, max = 66))]
    pub colluders: u32,
}

const fn default_colluders() -> u32 {
    1
}

/// Names of protocols; holds only what works.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
pub enum ProtocolKind {
    /// Double-masked sums that a malicious hub cannot read (Bonawitz et al., CCS 2017).
    #[default]
    SecAgg,
    /// No masks.
    None,
}

/// How many rounds, and how long each may take.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Rounds {
    /// Rounds to run.
    #[schemars(range(min = 1, max = 10_000))]
    pub max: u32,
    /// Hospitals that must be ready before updates are summed.
    #[schemars(range(min = 3, max = 200))]
    pub quorum: u32,
    /// Longest time for training, and again for evaluation, for example `12h`.
    #[schemars(length(min = 2, max = 18), regex(pattern = values::DURATION_PATTERN))]
    pub deadline: String,
    /// Longest time for one step of an attempt, uploads included. Default `30m`.
    #[serde(default = "default_step_limit")]
    #[schemars(length(min = 2, max = 18), regex(pattern = values::DURATION_PATTERN))]
    pub step_limit: String,
    /// Finished rounds kept as objects; older ones are archived in the store. Default 10.
    #[serde(default = "default_history")]
    #[schemars(range(min = 1, max = 100))]
    pub history_limit: u32,
    /// What happens to slow hospitals.
    #[serde(default)]
    pub straggler: Straggler,
    /// After this many rounds in a row without a new model the study waits for people: none begins until `spec.suspend`
    /// was true and is false again. Rounds that somebody cancelled do not count. Without it the study goes on to
    /// `rounds.max`. No part of what hospitals opt in to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100))]
    pub backoff_limit: Option<u32>,
}

fn default_step_limit() -> String {
    "30m".into()
}

const fn default_history() -> u32 {
    10
}

/// What happens to slow hospitals.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Straggler {
    /// How long the others are waited for once the quorum is ready. Default `10m`.
    #[serde(default = "default_grace")]
    #[schemars(length(min = 2, max = 18), regex(pattern = values::DURATION_PATTERN))]
    pub grace: String,
    /// A hospital left out this many times in a row is waited for until the deadline. Default 2.
    #[serde(default = "default_missed")]
    #[schemars(range(min = 1, max = 100))]
    pub max_missed: u32,
}

fn default_grace() -> String {
    "10m".into()
}

const fn default_missed() -> u32 {
    2
}

impl Default for Straggler {
    fn default() -> Self {
        Self { grace: default_grace(), max_missed: default_missed() }
    }
}

/// When a model may become a release.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct GateSpec {
    /// The metric; Dice is the mean over foreground classes and cases.
    pub metric: Metric,
    /// Least value over all cases of all hospitals, from "0" to "1".
    #[schemars(length(max = 12), regex(pattern = values::FRACTION_PATTERN))]
    pub min: String,
    /// Least value in each hospital, from "0" to "1".
    #[schemars(length(max = 12), regex(pattern = values::FRACTION_PATTERN))]
    pub per_site_min: String,
    /// A hospital with fewer evaluation cases abstains.
    #[schemars(range(min = 1, max = 100_000))]
    pub min_cases: u32,
}

/// Names of metrics; holds only what works.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
#[serde(rename_all = "lowercase")]
pub enum Metric {
    /// Mean Dice.
    Dice,
}

/// How far a study is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct FederatedStudyStatus {
    /// Generation that the conditions speak of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Digest of the spec as canonical JSON: what a hospital opts in to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spec_digest: Option<Digest>,
    /// The round under way, or the last one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub current_round: Option<u32>,
    /// Of that round: how many of its hospitals are ready or further, as `4/5`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 7))]
    pub sites: Option<String>,
    /// Of that round: until when its step may take; none once it is over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>", length(max = 40), extend("format" = "date-time", "pattern" = values::TIME_PATTERN))]
    pub deadline: Option<Timestamp>,
    /// Rounds that ended with a new model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rounds_succeeded: Option<u32>,
    /// Digest of the newest model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<Digest>,
    /// Name of the newest ModelRelease.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub latest_release: Option<String>,
    /// Rounds in a row in which a hospital was too slow; hospitals with none are not listed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 200), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub missed: Vec<MissedRounds>,
    /// The last round when the study was suspended: failures up to it no longer count for `rounds.backoffLimit`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub forgiven_through: Option<u32>,
    /// Accepted, Ready, Succeeded, Suspended, NoDropoutTolerance.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::conditions")]
    pub conditions: Vec<Condition>,
}

/// How often a hospital was too slow.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct MissedRounds {
    /// Who.
    pub name: SiteName,
    /// Rounds in a row.
    pub rounds: u32,
}
