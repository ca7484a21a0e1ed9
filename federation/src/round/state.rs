//! What a round remembers. Lives in `TrainingRound.status`: digests and steps, never weights.

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::gate::{CaseSums, Vote};
use crate::ids::SiteName;
use crate::strategy::MAX_MOMENTS;
use crate::task::ScoreFile;

/// Where the round is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
pub enum RoundStep {
    /// Hospitals are offered the round and train.
    Training,
    /// An attempt is open; see `protocolStep`.
    Aggregating,
    /// The new model is scored in each hospital.
    Evaluating,
    /// Over, with a new model.
    Succeeded,
    /// Over, without.
    Failed,
}

/// Where an attempt of the aggregation protocol is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
pub enum ProtocolStep {
    /// Members publish their keys for this attempt.
    Advertise,
    /// Members send each other shares of their secrets.
    Share,
    /// Members send their encoded (and masked) updates.
    Upload,
    /// Survivors sign who survived.
    Agree,
    /// Survivors release the shares that take the masks off.
    Unmask,
    /// The hub sums.
    Sum,
}

/// Where one hospital is with its part, as the hospital itself says, or as the hub saw.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
pub enum SiteReason {
    /// The assignment holds it; no word yet.
    Offered,
    /// The hospital approves each round and has not approved this one.
    AwaitingApproval,
    /// The hospital's roster does not hold all participants yet.
    AwaitingRoster,
    /// The hospital's policy says no. No failure, and no justification is owed.
    DeniedByPolicy,
    /// The study was edited or made anew since the hospital opted in.
    SpecChanged,
    /// Waits for capacity.
    Queued,
    /// No hardware that the study asks for.
    IncompatibleGPU,
    /// The task pod cannot be kept from the network, so no task starts.
    NetworkPolicyNotEnforced,
    /// Fetches, trains or predicts.
    Training,
    /// Ran out of memory on its last try.
    OutOfMemory,
    /// Bad data or config (exit 42): not tried again.
    InvalidData,
    /// All tries failed.
    Failed,
    /// The update is on the hospital's disk.
    Ready,
    /// The encoded update is at the hub, complete.
    Submitted,
    /// The hub or the agent refused the update.
    Rejected,
    /// Was not ready when the attempt opened, or did not survive it.
    Missed,
    /// Has voted.
    Evaluated,
}

impl SiteReason {
    /// All of them.
    pub const ALL: [Self; 17] = [
        Self::Offered,
        Self::AwaitingApproval,
        Self::AwaitingRoster,
        Self::DeniedByPolicy,
        Self::SpecChanged,
        Self::Queued,
        Self::IncompatibleGPU,
        Self::NetworkPolicyNotEnforced,
        Self::Training,
        Self::OutOfMemory,
        Self::InvalidData,
        Self::Failed,
        Self::Ready,
        Self::Submitted,
        Self::Rejected,
        Self::Missed,
        Self::Evaluated,
    ];

    /// A word of the hospital's people or policy, which they may take back at any moment; nothing went wrong.
    pub const fn is_a_word(self) -> bool {
        matches!(
            self,
            Self::AwaitingApproval
                | Self::AwaitingRoster
                | Self::DeniedByPolicy
                | Self::SpecChanged
                | Self::NetworkPolicyNotEnforced
        )
    }

    /// The hospital will not come by itself; someone would have to act there.
    pub const fn is_out(self) -> bool {
        matches!(
            self,
            Self::AwaitingApproval
                | Self::AwaitingRoster
                | Self::DeniedByPolicy
                | Self::SpecChanged
                | Self::IncompatibleGPU
                | Self::NetworkPolicyNotEnforced
                | Self::InvalidData
                | Self::Failed
                | Self::Rejected
        )
    }
}

/// Why a round ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
pub enum Outcome {
    /// A new model stands.
    Completed,
    /// Too few hospitals were ready at the deadline.
    QuorumLost,
    /// No attempt came through.
    AggregationFailed,
    /// The sum was made under masks and cannot be used. The hospitals give no second one on this model.
    SumUnusable,
    /// The study was deleted or suspended.
    Cancelled,
}

impl Outcome {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::Completed, Self::QuorumLost, Self::AggregationFailed, Self::SumUnusable, Self::Cancelled];
}

/// One hospital in the round; at most 256 bytes as JSON.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(inline)]
pub struct SiteState {
    /// Who.
    pub site: SiteName,
    /// Where it is.
    pub reason: SiteReason,
    /// Only when something is wrong; cut to 100 bytes as JSON.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 100))]
    pub message: Option<String>,
    /// Has said in this round that it trains, or waits to.
    #[serde(default, skip_serializing_if = "is_false")]
    pub began: bool,
    /// Takes part in the open (or last) attempt.
    #[serde(default, skip_serializing_if = "is_false")]
    pub member: bool,
    /// Has done the attempt's current step.
    #[serde(default, skip_serializing_if = "is_false")]
    pub done: bool,
    /// The step in which it fell out of the open (or last) attempt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dropped: Option<ProtocolStep>,
    /// Its upload is in the sum of the open (or last) attempt.
    #[serde(default, skip_serializing_if = "is_false")]
    pub survived: bool,
    /// Its update is in the new model.
    #[serde(default, skip_serializing_if = "is_false")]
    pub contributed: bool,
    /// Its vote on the new model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vote: Option<Vote>,
    /// Evaluation cases, if the hospital publishes its numbers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cases: Option<u32>,
    /// Mean Dice for each class, four decimals, if the hospital publishes its numbers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8), inner(length(max = 8)), extend("x-kubernetes-list-type" = "atomic"))]
    pub dice: Vec<String>,
}

fn is_false(value: &bool) -> bool {
    !value
}

fn is_zero(value: &u32) -> bool {
    *value == 0
}

/// What the gate said.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(inline)]
pub struct GateRecord {
    /// A release may be cut.
    pub passed: bool,
    /// Global mean Dice, four decimals.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 8))]
    pub global: Option<String>,
    /// Why it stayed shut.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 200))]
    pub message: Option<String>,
}

/// Everything a round remembers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(inline)]
pub struct RoundState {
    /// Where it is.
    pub step: RoundStep,
    /// When it began.
    #[schemars(with = "String", length(max = 40), extend("format" = "date-time", "pattern" = crate::ids::TIME_PATTERN))]
    pub started_at: Timestamp,
    /// When the current step began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>", length(max = 40), extend("format" = "date-time", "pattern" = crate::ids::TIME_PATTERN))]
    pub step_since: Option<Timestamp>,
    /// When hospitals last fell out of an attempt: what they had said before does not make them ready again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>", length(max = 40), extend("format" = "date-time", "pattern" = crate::ids::TIME_PATTERN))]
    pub missed_at: Option<Timestamp>,
    /// When the current step ends at the latest.
    #[schemars(with = "String", length(max = 40), extend("format" = "date-time", "pattern" = crate::ids::TIME_PATTERN))]
    pub deadline: Timestamp,
    /// When stragglers are no longer waited for; set when the quorum is first ready.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>", length(max = 40), extend("format" = "date-time", "pattern" = crate::ids::TIME_PATTERN))]
    pub grace_until: Option<Timestamp>,
    /// Number of the open (or last) attempt, from 1; 0 before the first.
    pub attempt: u32,
    /// Where the open attempt is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol_step: Option<ProtocolStep>,
    /// How many hospitals opened the attempt: fixes its threshold.
    #[serde(default)]
    pub attempt_size: u32,
    /// Digest of the roster whose keys hold in the open (or last) attempt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub roster: Option<Digest>,
    /// The attempt that made the new model; later ones sum the evaluation.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub model_attempt: u32,
    /// How many updates are in the new model.
    #[serde(default)]
    pub contributors: u32,
    /// Digest of the new model. It stands once it is there: what comes after it in the round, the evaluation and the
    /// gate, decides about a release alone, and hospitals give no second sum on its base.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<Digest>,
    /// What the server's rule remembers with the new model: digests of its moments, each laid out as the model is.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = MAX_MOMENTS), extend("x-kubernetes-list-type" = "atomic"))]
    pub moments: Vec<Digest>,
    /// What the gate said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gate: Option<GateRecord>,
    /// The masked sum over all evaluation cases.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total: Option<TotalSums>,
    /// Sums over evaluation cases so far, without masks (hospitals whose policy shares them).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 200), extend("x-kubernetes-list-type" = "atomic"))]
    pub evaluation: Vec<SiteSums>,
    /// Why it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<Outcome>,
    /// What a person should know about the end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 300))]
    pub message: Option<String>,
    /// The participants, sorted by name.
    #[schemars(length(max = 200), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["site"]))]
    pub sites: Vec<SiteState>,
}

/// The global figure as one sum, of which no hospital's part can be told.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(inline)]
pub struct TotalSums {
    /// Number of cases, in the buckets that hospitals round to.
    pub cases: u32,
    /// Sum of the cases' mean Dice, six decimals.
    #[schemars(length(max = 20))]
    pub dice: String,
}

impl TotalSums {
    pub(super) fn new(sums: CaseSums) -> Self {
        Self { cases: sums.cases, dice: format!("{:.6}", sums.dice) }
    }

    pub(super) fn sums(&self) -> CaseSums {
        CaseSums { cases: self.cases, dice: self.dice.parse().unwrap_or(0.0) }
    }
}

/// One hospital's contribution to the global figure, as decimals.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(inline)]
pub struct SiteSums {
    /// Who.
    pub site: SiteName,
    /// Number of cases.
    pub cases: u32,
    /// Sum of the cases' mean Dice, six decimals.
    #[schemars(length(max = 20))]
    pub dice: String,
}

impl SiteSums {
    pub(super) fn new(site: &SiteName, sums: CaseSums) -> Self {
        Self { site: site.clone(), cases: sums.cases, dice: format!("{:.6}", sums.dice) }
    }

    pub(super) fn sums(&self) -> CaseSums {
        CaseSums { cases: self.cases, dice: self.dice.parse().unwrap_or(0.0) }
    }
}

/// What a hospital says of its part.
#[derive(Clone, Debug, PartialEq)]
pub struct SiteFact {
    /// Where it is.
    pub reason: SiteReason,
    /// Only when something is wrong.
    pub message: Option<String>,
}

/// Dice of the classes as decimals for a status, by label from 1; `-` stands for one that no case has. The score must
/// have passed its check, by which the labels are few.
pub fn published_decimals(score: &ScoreFile) -> Vec<String> {
    let highest = score.classes.last().map_or(0, |class| class.label);
    let dice =
        // What a hospital sends may be -0.0, which no pattern of a fraction takes.
        |label| score.classes.iter().find(|class| class.label == label).map(|class| format!("{:.4}", class.dice + 0.0));
    (1..=highest).map(|label| dice(label).unwrap_or_else(|| "-".into())).collect()
}

impl RoundState {
    /// A round that begins now.
    pub fn new(sites: impl IntoIterator<Item = SiteName>, now: Timestamp, training_deadline: Timestamp) -> Self {
        let mut sites: Vec<SiteName> = sites.into_iter().collect();
        sites.sort();
        sites.dedup();
        let blank = |site| SiteState {
            site,
            reason: SiteReason::Offered,
            message: None,
            began: false,
            member: false,
            done: false,
            dropped: None,
            survived: false,
            contributed: false,
            vote: None,
            cases: None,
            dice: Vec::new(),
        };
        Self {
            step: RoundStep::Training,
            started_at: now,
            step_since: Some(now),
            missed_at: None,
            deadline: training_deadline,
            grace_until: None,
            attempt: 0,
            protocol_step: None,
            attempt_size: 0,
            roster: None,
            model_attempt: 0,
            contributors: 0,
            model: None,
            moments: Vec::new(),
            gate: None,
            total: None,
            evaluation: Vec::new(),
            outcome: None,
            message: None,
            sites: sites.into_iter().map(blank).collect(),
        }
    }

    /// The entry of one hospital.
    pub fn site(&self, name: &SiteName) -> Option<&SiteState> {
        self.sites.iter().find(|s| s.site == *name)
    }

    /// The round is over.
    pub fn is_over(&self) -> bool {
        matches!(self.step, RoundStep::Succeeded | RoundStep::Failed)
    }

    /// Names of the hospitals whose updates are in the new model.
    pub fn contributor_names(&self) -> Vec<SiteName> {
        self.sites.iter().filter(|s| s.contributed).map(|s| s.site.clone()).collect()
    }

    /// Names of the hospitals that did every step before `step` of the open attempt, or may still do them: who is
    /// named to the others at `step`.
    ///
    /// For `Share` these are U1 of Bonawitz et al. (who advertised), for `Upload` U2 (who dealt shares), for `Agree` U3
    /// (whose uploads are in the sum).
    pub fn in_attempt(&self, step: ProtocolStep) -> Vec<SiteName> {
        let reached = |s: &&SiteState| match s.dropped {
            Some(dropped) => dropped >= step,
            None => s.member || s.survived,
        };
        self.sites.iter().filter(reached).map(|s| s.site.clone()).collect()
    }
}
