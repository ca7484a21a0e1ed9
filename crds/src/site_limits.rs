//! What a hospital stops, and how much of anything may run there: parts of the SitePolicy.

use jiff::SignedDuration;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::site_policy::SitePolicySpec;
use crate::values;

/// What is stopped although the hospital takes part.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Suspend {
    /// Trainings and evaluations are stopped at once, and none starts. Models that are in use stay.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub tasks: bool,
    /// Models are taken out of use at once, and none is put into use. Trainings go on.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub models: bool,
}

/// By what the hub's word on this hospital's ledger is checked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Audit {
    /// The hub's Ed25519 public key, base64 of 32 bytes, from its administrators by a path that you trust. Signatures over
    /// the ledger's end by another key are not kept, and condition Countersigned says so.
    #[schemars(length(max = 44), regex(pattern = values::PUBLIC_KEY_PATTERN))]
    pub hub_key: String,
}

/// How long anything is kept that nobody needs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Retention {
    /// So long after a round is refused, or its time is over, its RoundTask, its folders on the work claim (checkpoints,
    /// predictions), its unmasked update and its score are gone, whatever the hub says: `24h`, at least `1h`. What is not
    /// gone in time is told by condition Erased.
    #[schemars(length(min = 2, max = 18), regex(pattern = values::DURATION_PATTERN))]
    pub erased_within: String,
}

/// Upper bounds on what runs here.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Limits {
    /// Longest time from a task's making to its end, whatever deadline the hub names: `48h`. Default 168h, a week.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 2, max = 18), regex(pattern = values::DURATION_PATTERN))]
    pub task_duration: Option<String>,
    /// How long a model answers without a word from the agent, at least 1m: so long it goes on when the agent is dead.
    /// Default 15m.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 2, max = 18), regex(pattern = values::DURATION_PATTERN))]
    pub model_lease: Option<String>,
    /// Trainings of one round of one study, and evaluations of one, whatever UIDs and models the hub names. Default 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 10))]
    pub tasks_per_round: Option<u32>,
    /// Tasks that may begin within 24 hours. Without it, as many as are approved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1000))]
    pub tasks_per_day: Option<u32>,
    /// Tasks that may be under way at a time. Without it, as many as are approved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100))]
    pub concurrent_tasks: Option<u32>,
    /// Rounds, of all studies, of which a task may begin within 24 hours. Without it, as many as are approved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1000))]
    pub rounds_per_day: Option<u32>,
    /// Evaluations that may be under way at a time. Without it, as many as are approved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100))]
    pub concurrent_evaluations: Option<u32>,
    /// GPU hours that tasks may have held within 30 days; from then on none begins, and what runs goes on. Without it, as
    /// many as are approved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub gpu_hours: Option<u32>,
}

/// A task's longest time where the hospital names none.
pub const TASK_DURATION: SignedDuration = SignedDuration::from_hours(7 * 24);
/// The shortest time within which everything can be erased.
const SHORTEST: SignedDuration = SignedDuration::from_hours(1);
/// A model's lease where the hospital names none.
pub const MODEL_LEASE: SignedDuration = SignedDuration::from_mins(15);

impl SitePolicySpec {
    /// Longest time from a task's making to its end. One that cannot be read is not longer than the default.
    pub fn task_duration(&self) -> SignedDuration {
        let said = self.limits.as_ref().and_then(|limits| limits.task_duration.as_deref());
        said.and_then(|text| values::duration("spec.limits.taskDuration", text).ok()).unwrap_or(TASK_DURATION)
    }

    /// How long a model answers without a word from the agent. One that cannot be read is not longer than the default.
    pub fn model_lease(&self) -> SignedDuration {
        let said = self.limits.as_ref().and_then(|limits| limits.model_lease.as_deref());
        said.and_then(|text| values::duration("spec.limits.modelLease", text).ok()).unwrap_or(MODEL_LEASE)
    }

    /// How long anything is kept that nobody needs; none where the hospital does not say.
    pub fn erased_within(&self) -> Option<SignedDuration> {
        let said = self.retention.as_ref()?.erased_within.as_str();
        // One that cannot be read is no licence to keep it.
        Some(values::duration("spec.retention.erasedWithin", said).unwrap_or(SHORTEST).max(SHORTEST))
    }

    /// What is stopped although the hospital takes part.
    pub fn suspended(&self) -> Suspend {
        self.suspend.unwrap_or_default()
    }
}
