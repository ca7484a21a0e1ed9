//! The release ladder: may this model stand at this stage here?
//!
//! Decided by the hospital alone, from approvals signed by keys in its own policy.
//! Whether it trains does not matter here: `spec.suspend` stops trainings and models
//! apart, and `participation: Disabled` both.

use consilium_crds::ModelReleaseSpec;
use consilium_crds::model_deployment::Approved;
use consilium_crds::site_policy::{ReleasePolicy, SitePolicySpec};
use consilium_federation::approval;
use consilium_federation::assignment::{DeployWork, ItemState};
use consilium_federation::report::RolloutReason;
use jiff::Timestamp;

use super::standing;

/// Everything that a decision on a model depends on.
#[derive(Clone, Copy, Debug)]
pub struct ReleaseInputs<'a> {
    /// What the hub asks for.
    pub work: &'a DeployWork,
    /// Whether it still does.
    pub state: ItemState,
    /// The release, fetched by its digest.
    pub release: &'a ModelReleaseSpec,
    /// What the hospital allows; `None` while there is no SitePolicy.
    pub policy: Option<&'a SitePolicySpec>,
    /// The model is in use here already.
    pub in_use: bool,
    /// The time: approvals expire.
    pub now: Timestamp,
}

/// The hospital's word on a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReleaseDecision {
    /// It may be served at the stage, on this word.
    Allowed(Approved),
    /// The hub withdrew it: stop serving.
    Withdrawn,
    /// A rung says no: stop serving, or do not start.
    Refused {
        /// What the hub is told.
        reason: RolloutReason,
        /// What this hospital's people are told; stays here.
        message: String,
    },
}

/// Climbs the ladder; the first rung that says no decides.
pub fn release(inputs: &ReleaseInputs<'_>) -> ReleaseDecision {
    if inputs.state == ItemState::Cancelled {
        return ReleaseDecision::Withdrawn;
    }
    match climb(inputs) {
        Ok(approved) => ReleaseDecision::Allowed(approved),
        Err((reason, message)) => ReleaseDecision::Refused { reason, message },
    }
}

fn climb(inputs: &ReleaseInputs<'_>) -> Result<Approved, (RolloutReason, String)> {
    let ReleaseInputs { work, release, now, .. } = *inputs;
    let unverified = |message: String| (RolloutReason::VerificationFailed, message);
    let denied = |message: String| (RolloutReason::DeniedByPolicy, message);
    let found = release.digest();
    if found != work.release_digest {
        let message = format!(
            "release {:?} as this agent reads it has the digest {found}, the promotion names {}; update the agent or ask the hub for the release again",
            work.release, work.release_digest
        );
        return Err(unverified(message));
    }
    if release.model != work.model {
        let message =
            format!("release {:?} is of model {}, the promotion names {}", work.release, release.model, work.model);
        return Err(unverified(message));
    }
    let policy = stage(work, inputs.in_use, inputs.policy)?;
    let (stage, evidence) = (work.stage, release.evidence_digest());
    approval::decide(work.model, evidence, stage, &work.approvals, &policy.keys, &policy.require, now)
        .map(|enough| Approved { stage, evidence_digest: evidence, approvals: enough.approvals })
        .map_err(|refusal| denied(refusal.to_string()))
}

/// The rungs that need no release: a hub that keeps it back does not keep a model in service by that.
pub fn of_stage(work: &DeployWork, in_use: bool, policy: Option<&SitePolicySpec>) -> Option<ReleaseDecision> {
    stage(work, in_use, policy).err().map(|(reason, message)| ReleaseDecision::Refused { reason, message })
}

fn stage<'a>(
    work: &DeployWork,
    in_use: bool,
    policy: Option<&'a SitePolicySpec>,
) -> Result<&'a ReleasePolicy, (RolloutReason, String)> {
    let denied = |message: String| (RolloutReason::DeniedByPolicy, message);
    let policy = policy.ok_or_else(|| {
        denied("there is no SitePolicy \"default\" in the agent's namespace that this agent can read (if there is one, its condition Ready says why), so no model is served; create one".into())
    })?;
    standing::model_room(policy, in_use).map_err(denied)?;
    standing::stage(policy, work.stage).map_err(denied)?;
    Ok(&policy.releases)
}

#[cfg(test)]
#[path = "release_tests.rs"]
pub(crate) mod tests;
