//! What to do about one model that the hub offers: pure, over plain values.

use consilium_crds::ModelDeploymentStatus;
use consilium_crds::conditions::{Conditions, READY};
use consilium_federation::digest::Digest;
use consilium_federation::ladder::Stage;
use consilium_federation::report::{DeployReport, RolloutReason};
use jiff::Timestamp;

use crate::policy::ReleaseDecision;

/// What the release is verified by.
const VERIFIED: &str = "SignatureVerified";
/// The hospital's word.
const APPROVED: &str = "Approved";
/// The pod answers.
const ROLLED_OUT: &str = "RolledOut";

/// Everything that the decision on one model depends on.
#[derive(Clone, Debug)]
pub(super) struct Inputs<'a> {
    /// The hospital's word, or `None` while the release is not at hand.
    pub(super) decision: Option<&'a ReleaseDecision>,
    /// The stage asked for.
    pub(super) stage: Stage,
    /// Its ModelDeployment, if it exists.
    pub(super) seen: Option<Seen>,
}

/// A ModelDeployment and its Deployment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Seen {
    /// It is being removed.
    pub(super) deleting: bool,
    /// The stage that it stands at.
    pub(super) stage: Stage,
    /// Its Deployment exists as it should.
    pub(super) built: bool,
    /// Its pod answers.
    pub(super) ready: bool,
}

/// One thing to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Act {
    /// Make the ModelDeployment.
    Create,
    /// Make or complete what it owns.
    Build,
    /// Move it to another stage.
    SetStage(Stage),
    /// Remove it and what it owns.
    Delete,
}

/// What to do and what to say; no reason: it is forgotten, which tells the hub that it is done.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Plan {
    pub(super) acts: Vec<Act>,
    pub(super) reason: Option<RolloutReason>,
    /// For this hospital's people.
    pub(super) message: Option<String>,
}

/// Decides.
pub(super) fn decide(inputs: &Inputs<'_>) -> Plan {
    let delete = || inputs.seen.filter(|s| !s.deleting).map(|_| Act::Delete).into_iter().collect::<Vec<_>>();
    let plan = |acts, reason| Plan { acts, reason: Some(reason), message: None };
    match (inputs.decision, inputs.seen) {
        (Some(ReleaseDecision::Withdrawn), _) => Plan { acts: delete(), reason: None, message: None },
        (Some(ReleaseDecision::Refused { reason, message }), _) => {
            Plan { acts: delete(), reason: Some(*reason), message: Some(message.clone()) }
        }
        // What runs goes on while the hub cannot be asked: it was allowed by what is known.
        (None, Some(seen)) if seen.ready => plan(vec![], RolloutReason::Serving),
        (None, Some(_)) => plan(vec![], RolloutReason::RollingOut),
        (None, None) => plan(vec![], RolloutReason::Offered),
        (Some(ReleaseDecision::Allowed), None) => plan(vec![Act::Create], RolloutReason::RollingOut),
        (Some(ReleaseDecision::Allowed), Some(seen)) if seen.deleting => plan(vec![], RolloutReason::RollingOut),
        (Some(ReleaseDecision::Allowed), Some(seen)) => {
            let stage = (seen.stage != inputs.stage).then_some(Act::SetStage(inputs.stage));
            let build = (!seen.built).then_some(Act::Build);
            let reason = if seen.ready { RolloutReason::Serving } else { RolloutReason::RollingOut };
            plan(stage.into_iter().chain(build).collect(), reason)
        }
    }
}

/// The fact for the hub. No refusal owes a justification: the message stays in the hospital.
pub(super) fn report(uid: &str, model: Digest, reason: RolloutReason) -> DeployReport {
    let serving = (reason == RolloutReason::Serving).then_some(model);
    DeployReport { uid: uid.to_owned(), reason, serving, message: None }
}

/// The ModelDeployment's status.
pub(super) fn status(
    old: Option<&ModelDeploymentStatus>,
    generation: Option<i64>,
    plan: &Plan,
    model: Digest,
    now: Timestamp,
) -> ModelDeploymentStatus {
    let conditions = old.map(|s| s.conditions.as_slice()).unwrap_or_default();
    let mut conditions = Conditions::from_status(conditions, generation, now);
    let message = plan.message.as_deref().unwrap_or_default();
    let serving = plan.reason == Some(RolloutReason::Serving);
    match plan.reason {
        Some(RolloutReason::DeniedByPolicy) => {
            conditions.set(VERIFIED, true, "Verified", "").set(APPROVED, false, "DeniedByPolicy", message)
        }
        Some(RolloutReason::VerificationFailed) => conditions.set(VERIFIED, false, "VerificationFailed", message).set(
            APPROVED,
            false,
            "VerificationFailed",
            message,
        ),
        Some(RolloutReason::Serving | RolloutReason::RollingOut) => {
            conditions.set(VERIFIED, true, "Verified", "").set(APPROVED, true, "Approved", "")
        }
        _ => &mut conditions,
    };
    let (reason, text) = if serving { ("Serving", "") } else { ("RollingOut", "the pod does not answer yet") };
    conditions.set(ROLLED_OUT, serving, reason, text).set(READY, serving, reason, text);
    ModelDeploymentStatus {
        observed_generation: generation,
        serving_digest: serving.then_some(model),
        conditions: conditions.into_list(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALLOWED: ReleaseDecision = ReleaseDecision::Allowed;
    const UP: Seen = Seen { deleting: false, stage: Stage::Shadow, built: true, ready: true };

    fn plan(decision: Option<&ReleaseDecision>, seen: Option<Seen>, stage: Stage) -> Plan {
        decide(&Inputs { decision, stage, seen })
    }

    #[track_caller]
    fn expect(plan: &Plan, acts: &[Act], reason: impl Into<Option<RolloutReason>>) {
        assert_eq!(plan.acts, acts);
        assert_eq!(plan.reason, reason.into());
    }

    #[test]
    fn an_allowed_model_is_rolled_out_and_then_serves() {
        expect(&plan(Some(&ALLOWED), None, Stage::Shadow), &[Act::Create], RolloutReason::RollingOut);
        let bare = Seen { built: false, ready: false, ..UP };
        expect(&plan(Some(&ALLOWED), Some(bare), Stage::Shadow), &[Act::Build], RolloutReason::RollingOut);
        expect(&plan(Some(&ALLOWED), Some(UP), Stage::Shadow), &[], RolloutReason::Serving);
    }

    /// A model must not go on at a stage that it lost, nor at one that it was never given.
    #[test]
    fn a_refused_model_is_taken_down_at_once() {
        for reason in [RolloutReason::DeniedByPolicy, RolloutReason::VerificationFailed] {
            let refused = ReleaseDecision::Refused { reason, message: "maxStage".into() };
            let down = plan(Some(&refused), Some(UP), Stage::Shadow);
            expect(&down, &[Act::Delete], reason);
            assert_eq!(down.message.as_deref(), Some("maxStage"));
            expect(&plan(Some(&refused), None, Stage::Shadow), &[], reason);
            assert_eq!(report("u", Digest::of(b"m"), reason).message, None);
        }
    }

    #[test]
    fn a_withdrawn_model_is_removed_and_then_forgotten() {
        let withdrawn = ReleaseDecision::Withdrawn;
        expect(&plan(Some(&withdrawn), Some(UP), Stage::Shadow), &[Act::Delete], None);
        expect(&plan(Some(&withdrawn), None, Stage::Shadow), &[], None);
    }

    #[test]
    fn another_stage_changes_the_object_and_not_the_pod() {
        expect(
            &plan(Some(&ALLOWED), Some(UP), Stage::SafetyNet),
            &[Act::SetStage(Stage::SafetyNet)],
            RolloutReason::Serving,
        );
    }

    /// A hub that cannot be reached must not take a model away from clinicians.
    #[test]
    fn what_serves_goes_on_while_the_release_cannot_be_read() {
        expect(&plan(None, Some(UP), Stage::Shadow), &[], RolloutReason::Serving);
        expect(&plan(None, None, Stage::Shadow), &[], RolloutReason::Offered);
    }

    #[test]
    fn the_status_settles() {
        let serving = plan(Some(&ALLOWED), Some(UP), Stage::Shadow);
        let at = |day: u8| format!("2026-01-0{day}T00:00:00Z").parse().unwrap();
        let first = status(None, Some(1), &serving, Digest::of(b"m"), at(1));
        assert_eq!(first.serving_digest, Some(Digest::of(b"m")));
        assert_eq!(status(Some(&first), Some(1), &serving, Digest::of(b"m"), at(2)), first);
    }
}
