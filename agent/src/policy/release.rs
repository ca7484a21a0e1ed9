//! The release ladder: may this model be in use here, on whatever stage?
//!
//! Decided by the hospital alone, from approvals signed by keys in its own policy. On which stage it then stands is said
//! at every turn, see `stands`: what a promotion asks beyond that is no reason to refuse it.
//! Whether it trains does not matter here: `spec.suspend` stops trainings and models
//! apart, and `participation: Disabled` both.

use consilium_clinical::plan::ClinicalPlan;
use consilium_crds::model_deployment::Approved;
use consilium_crds::site_policy::SitePolicySpec;
use consilium_crds::{ModelDeploymentSpec, ModelReleaseSpec};
use consilium_federation::SiteName;
use consilium_federation::assignment::{DeployWork, ItemState};
use consilium_federation::report::RolloutReason;

use super::standing;
use super::stands::{self, Hospital, Place};

/// Everything that a decision on a model depends on.
#[derive(Clone, Copy, Debug)]
pub struct ReleaseInputs<'a> {
    /// What the hub asks for.
    pub work: &'a DeployWork,
    /// Whether it still does.
    pub state: ItemState,
    /// The release, fetched by its digest.
    pub release: &'a ModelReleaseSpec,
    /// The clinical plan, fetched by its digest; none where the promotion names none, or one that cannot be read.
    pub plan: Option<&'a ClinicalPlan>,
    /// This hospital's name.
    pub site: &'a SiteName,
    /// What the hospital allows, and when it is.
    pub hospital: Hospital<'a>,
    /// The model is in use here already.
    pub in_use: bool,
}

/// The hospital's word on a model.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::large_enum_variant, reason = "a handful of them exist at a time")]
pub enum ReleaseDecision {
    /// It may be in use, on this word.
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
    let ReleaseInputs { work, release, plan, site, hospital, .. } = *inputs;
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
    let policy = room(inputs.in_use, hospital.policy)?;
    let evidence = release.evidence_digest();
    let approvals = stands::counted(&work.approvals, &stands::subject(site, work.model), evidence, &policy.releases);
    let (hospital_name, line) = (Some(site.clone()), Some(release.study.clone()));
    let approved = Approved {
        stage: work.stage,
        evidence_digest: evidence,
        hospital: hospital_name,
        line,
        approvals,
        plan: plan.map(|plan| serde_json::to_value(plan).unwrap_or_default()),
        output: release.output.clone(),
        stage_approvals: stands::concerning(&work.stage_approvals, site, work.model, plan.map(ClinicalPlan::digest)),
    };
    let model = ModelDeploymentSpec {
        release: work.release.clone(),
        release_digest: work.release_digest,
        model: work.model,
        stage: work.stage,
        promotion_uid: String::new(),
        approved: Some(approved.clone()),
    };
    match stands::place(&model, &hospital, inputs.in_use) {
        Place::Refused(why) => Err(denied(why)),
        // One that a hazard withdraws has its object, which says so, and no pod.
        Place::Unsaid | Place::Stands(_) | Place::Withdrawn(_) => Ok(approved),
    }
}

/// The rungs that need no release: a hub that keeps it back does not keep a model in service by that.
pub fn of_policy(in_use: bool, policy: Option<&SitePolicySpec>) -> Option<ReleaseDecision> {
    room(in_use, policy).err().map(|(reason, message)| ReleaseDecision::Refused { reason, message })
}

fn room(in_use: bool, policy: Option<&SitePolicySpec>) -> Result<&SitePolicySpec, (RolloutReason, String)> {
    let denied = |message: String| (RolloutReason::DeniedByPolicy, message);
    let policy = policy.ok_or_else(|| {
        denied("there is no SitePolicy \"default\" in the agent's namespace that this agent can read (if there is one, its condition Ready says why), so no model is served; create one".into())
    })?;
    standing::model_room(policy, in_use).map_err(denied)?;
    stands::ceiling(policy).map_err(denied)?;
    Ok(policy)
}

#[cfg(test)]
#[path = "release_tests.rs"]
pub(crate) mod tests;
