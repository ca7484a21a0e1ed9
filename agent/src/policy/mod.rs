//! The veto ladder: may this hospital take part, now, in what the hub asks for?
//!
//! Pure: from (assignment, policy, spec) to a decision with a reason. The rungs
//! stand in the order of DESIGN §6, and each holds with a hostile hub: a decision
//! uses nothing from the hub that the hospital has not approved by digest. It is
//! evaluated whenever an input changes, and again at three barriers.

mod amount;
mod hazards;
mod release;
mod rungs;
mod secure;
mod standing;
mod stands;

use consilium_crds::FederatedStudySpec;
use consilium_crds::site_policy::{SitePolicySpec, StudyOptIn};
use consilium_federation::StudyKey;
use consilium_federation::assignment::RoundWork;
use consilium_federation::round::SiteReason;

use crate::Enforcement;

pub use amount::{Spent, amount};
pub use hazards::{Hazards, SeenHazards};
pub use release::{ReleaseDecision, ReleaseInputs, of_policy, release};
pub use secure::{RosterSeen, SecureFacts, difference_rule, floors, governance};
pub use standing::{Room, ends, models, speaks, task_must_stop, tasks};
pub use stands::{Hospital, Outlook, Place, Told, because, outlook, pipeline_of, places, withdrawn};

/// Where the ladder is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
pub enum Barrier {
    /// Before a task is made.
    CreateTask,
    /// For a task that exists: before its pod gets the base model, before another try.
    Fetch,
    /// For an update that exists, up to the first byte that leaves: the point of no return. What only concerns training
    /// is not asked again.
    Upload,
    /// Before a task is made that all rungs allow: whether it is one too many.
    Amount,
    /// What the hospital's API server said to an object of the task: its admission policies, quotas and rights. Not the
    /// ladder's to judge, and no agent can pass by it.
    Admission,
}

/// Everything that a decision depends on.
#[derive(Clone, Copy, Debug)]
pub struct LadderInputs<'a> {
    /// What the hub asks for.
    pub work: &'a RoundWork,
    /// What the hospital allows; `None` while there is no SitePolicy.
    pub policy: Option<&'a SitePolicySpec>,
    /// The study's spec, fetched by its digest; `None` while it is not at hand.
    pub spec: Option<&'a FederatedStudySpec>,
    /// Whether task pods are kept from the network.
    pub enforcement: &'a Enforcement,
    /// What the hospital knows about masked sums; only asked of studies that mask.
    pub secure: &'a SecureFacts,
    /// Where the ladder is asked.
    pub barrier: Barrier,
}

/// The hospital's word.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Every rung passes.
    Allowed,
    /// The rungs that need no spec pass; fetch it by `work.spec_digest` and ask again.
    SpecNeeded,
    /// A rung says no.
    Refused {
        /// What the hub is told.
        reason: SiteReason,
        /// What this hospital's people are told; stays here.
        message: String,
    },
}

impl Decision {
    pub(crate) fn refused(reason: SiteReason, message: impl Into<String>) -> Self {
        Self::Refused { reason, message: message.into() }
    }

    /// The reason as it stands in the API; `Allowed` or `SpecNeeded` otherwise.
    pub fn reason_name(&self) -> &'static str {
        match self {
            Decision::Allowed => "Allowed",
            Decision::SpecNeeded => "SpecNeeded",
            Decision::Refused { reason, .. } => reason_name(*reason),
        }
    }

    /// The message of a refusal.
    pub fn message(&self) -> Option<&str> {
        match self {
            Decision::Refused { message, .. } => Some(message),
            _ => None,
        }
    }
}

/// The reason's name as it stands in the API.
pub const fn reason_name(reason: SiteReason) -> &'static str {
    match reason {
        SiteReason::Offered => "Offered",
        SiteReason::AwaitingApproval => "AwaitingApproval",
        SiteReason::AwaitingRoster => "AwaitingRoster",
        SiteReason::DeniedByPolicy => "DeniedByPolicy",
        SiteReason::SpecChanged => "SpecChanged",
        SiteReason::Queued => "Queued",
        SiteReason::IncompatibleGPU => "IncompatibleGPU",
        SiteReason::NetworkPolicyNotEnforced => "NetworkPolicyNotEnforced",
        SiteReason::Training => "Training",
        SiteReason::OutOfMemory => "OutOfMemory",
        SiteReason::InvalidData => "InvalidData",
        SiteReason::Failed => "Failed",
        SiteReason::Ready => "Ready",
        SiteReason::Submitted => "Submitted",
        SiteReason::Rejected => "Rejected",
        SiteReason::Missed => "Missed",
        SiteReason::Evaluated => "Evaluated",
    }
}

/// The hospital's word on a study, if it has looked at it.
pub fn opt_in<'a>(policy: &'a SitePolicySpec, study: &StudyKey) -> Option<&'a StudyOptIn> {
    policy.studies.iter().find(|s| s.study == *study)
}

/// Climbs the ladder; the first rung that says no decides.
pub fn ladder(inputs: &LadderInputs<'_>) -> Decision {
    climb(inputs).err().unwrap_or(Decision::Allowed)
}

fn climb(inputs: &LadderInputs<'_>) -> Result<(), Decision> {
    let LadderInputs { work, barrier, .. } = *inputs;
    let policy = inputs.policy.ok_or_else(|| {
        Decision::refused(
            SiteReason::DeniedByPolicy,
            "there is no SitePolicy \"default\" in the agent's namespace that this agent can read (if there is one, its condition Ready says why), so nothing is allowed; create one to take part",
        )
    })?;
    rungs::opted_in(&rungs::Asked::of(work), policy)?;
    rungs::participation(policy, barrier)?;
    let spec = inputs.spec.ok_or(Decision::SpecNeeded)?;
    rungs::spec_is_the_approved_one(work, spec)?;
    rungs::work_fits_spec(work, spec)?;
    rungs::image(&spec.trainer.image, policy)?;
    if barrier != Barrier::Upload {
        rungs::hardware(&spec.trainer, policy)?;
    }
    rungs::aggregation(&spec.aggregation.secure, policy)?;
    if spec.is_masked() {
        secure::masked(work, &spec.aggregation.secure, policy, inputs.secure)?;
    }
    rungs::network(inputs.enforcement, barrier)?;
    // The last rung: waiting for a roster stops nothing, so nothing that must stop may hide behind it.
    if spec.is_masked() { secure::roster(work, policy, inputs.secure) } else { Ok(()) }
}

#[cfg(test)]
pub(crate) use hazards::tests as hazards_tests;
#[cfg(test)]
pub(crate) use release::tests as release_tests;
#[cfg(test)]
pub(crate) mod tests;
