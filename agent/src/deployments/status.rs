//! What people of this hospital read of a model: its status, and Events. Pure.

use std::cmp::Ordering;

use consilium_crds::ModelDeploymentStatus;
use consilium_crds::conditions::{Conditions, READY, STALLED};
use consilium_federation::digest::Digest;
use consilium_federation::ladder::Stage;
use consilium_federation::report::RolloutReason;
use jiff::Timestamp;

use super::decide::Plan;
use crate::policy::{Outlook, ReleaseDecision};

/// What the release is verified by.
const VERIFIED: &str = "SignatureVerified";
/// The hospital's word.
const APPROVED: &str = "Approved";
/// The pod answers.
const ROLLED_OUT: &str = "RolledOut";

/// What the status is made of.
pub(super) struct Told<'a> {
    /// The status as it stands.
    pub(super) old: Option<&'a ModelDeploymentStatus>,
    /// Generation that was looked at.
    pub(super) generation: Option<i64>,
    /// The hospital's word, or `None` while the release is not at hand.
    pub(super) decision: Option<&'a ReleaseDecision>,
    /// What was decided.
    pub(super) plan: &'a Plan,
    /// The model.
    pub(super) model: Digest,
    /// The stage on which it stands.
    pub(super) stage: Option<Stage>,
    /// Why no higher.
    pub(super) because: Option<String>,
    /// What the next rung lacks, where that can be said.
    pub(super) outlook: Option<Outlook>,
    /// Digest of everything that changes an answer, if it is known.
    pub(super) pipeline: Option<Digest>,
    /// The time.
    pub(super) now: Timestamp,
}

/// The ModelDeployment's status.
pub(super) fn status(told: &Told<'_>) -> ModelDeploymentStatus {
    let old = told.old.map(|s| s.conditions.as_slice()).unwrap_or_default();
    let mut conditions = Conditions::from_status(old, told.generation, told.now);
    match told.decision {
        Some(ReleaseDecision::Allowed(_)) => {
            conditions.set(VERIFIED, true, "Verified", "").set(APPROVED, true, "Approved", "");
        }
        Some(ReleaseDecision::Refused { reason, message }) => {
            let (reason, verified) = (rollout_name(*reason), *reason != RolloutReason::VerificationFailed);
            let (why, text) = if verified { ("Verified", "") } else { (reason, message.as_str()) };
            conditions.set(VERIFIED, verified, why, text).set(APPROVED, false, reason, message);
        }
        // What was found out before holds.
        Some(ReleaseDecision::Withdrawn) | None => {}
    }
    let reason = told.plan.reason;
    let serving = reason == Some(RolloutReason::Serving);
    let note = Note::of(told.plan);
    conditions.set(ROLLED_OUT, serving, note.reason, &note.message).set(READY, serving, note.reason, &note.message);
    let not_admitted =
        matches!(told.decision, Some(ReleaseDecision::Allowed(_))) && reason == Some(RolloutReason::DeniedByPolicy);
    match reason {
        Some(RolloutReason::VerificationFailed) => conditions.set(STALLED, true, note.reason, &note.message),
        _ if not_admitted => conditions.set(STALLED, true, note.reason, &note.message),
        _ => conditions.clear(STALLED),
    };
    let outlook = told.outlook.as_ref();
    ModelDeploymentStatus {
        observed_generation: told.generation,
        serving_digest: serving.then_some(told.model),
        stage: told.stage,
        because: told.because.clone(),
        next: outlook.and_then(|outlook| outlook.next),
        missing: outlook.map(|outlook| outlook.missing.clone()).unwrap_or_default(),
        until: outlook.and_then(|outlook| outlook.until),
        pipeline: told.pipeline,
        conditions: conditions.into_list(),
    }
}

/// What an Event says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Note {
    /// Someone has to act, or should know.
    pub(super) warning: bool,
    /// CamelCase.
    pub(super) reason: &'static str,
    /// In words.
    pub(super) message: String,
}

impl Note {
    /// Where a model stands.
    pub(super) fn of(plan: &Plan) -> Self {
        // What is forgotten was withdrawn.
        let reason = plan.reason.unwrap_or(RolloutReason::Withdrawn);
        let usual = match reason {
            RolloutReason::Serving => "",
            RolloutReason::Withdrawn => "the hub withdrew the promotion",
            _ => "the pod does not answer yet",
        };
        let warning = matches!(reason, RolloutReason::DeniedByPolicy | RolloutReason::VerificationFailed);
        let message = plan.message.clone().unwrap_or_else(|| usual.to_owned());
        Self { warning, reason: rollout_name(reason), message }
    }

    /// Why a ModelDeployment goes that no item stands behind; `offered`: its promotion is known here.
    pub(super) fn stray(offered: bool) -> Self {
        let (reason, message) = if offered {
            ("Superseded", "its promotion names another release now, or another ModelDeployment stands for it")
        } else {
            (
                "Stray",
                "this hospital was never offered the promotion that it names; models are promoted at the hub, not made \
                 or renamed by hand",
            )
        };
        Self { warning: !offered, reason, message: message.to_owned() }
    }
}

/// What people should hear after a status was written: that something else has become of the model, or that it stands on
/// another stage.
pub(super) fn news(before: Option<&ModelDeploymentStatus>, plan: &Plan, after: &ModelDeploymentStatus) -> Vec<Note> {
    let known = before.into_iter().flat_map(|s| &s.conditions).find(|c| c.type_ == READY);
    let note = Note::of(plan);
    let rollout = known.is_none_or(|c| c.reason != note.reason).then_some(note);
    let moved = before.and_then(|s| s.stage).zip(after.stage).and_then(|(from, to)| {
        let why = after.because.as_ref().map(|because| format!(": {because}")).unwrap_or_default();
        let message = format!("it stands on {to} and stood on {from}{why}");
        match to.cmp(&from) {
            Ordering::Less => Some(Note { warning: true, reason: "StageFell", message }),
            Ordering::Greater => Some(Note { warning: false, reason: "StageRose", message }),
            Ordering::Equal => None,
        }
    });
    rollout.into_iter().chain(moved).collect()
}

/// The reason's name as it stands in the API.
pub(crate) const fn rollout_name(reason: RolloutReason) -> &'static str {
    match reason {
        RolloutReason::Offered => "Offered",
        RolloutReason::DeniedByPolicy => "DeniedByPolicy",
        RolloutReason::RollingOut => "RollingOut",
        RolloutReason::Serving => "Serving",
        RolloutReason::VerificationFailed => "VerificationFailed",
        RolloutReason::Withdrawn => "Withdrawn",
    }
}

#[cfg(test)]
mod tests {
    use consilium_crds::conditions::status_of;
    use consilium_crds::model_deployment::Approved;

    use super::*;

    fn allowed() -> ReleaseDecision {
        let evidence_digest = Digest::of(b"evidence");
        ReleaseDecision::Allowed(Approved {
            stage: Stage::Shadow,
            evidence_digest,
            hospital: None,
            line: None,
            approvals: vec![],
            plan: None,
            output: None,
            stage_approvals: vec![],
        })
    }

    fn plan(reason: RolloutReason, message: Option<&str>) -> Plan {
        Plan { acts: vec![], reason: Some(reason), message: message.map(str::to_owned) }
    }

    fn told(
        old: Option<&ModelDeploymentStatus>,
        decision: Option<&ReleaseDecision>,
        plan: &Plan,
        day: u8,
    ) -> ModelDeploymentStatus {
        let now = format!("2026-01-0{day}T00:00:00Z").parse().unwrap();
        let (stage, because, model) = (Some(Stage::Shadow), None, Digest::of(b"m"));
        let (outlook, pipeline, generation) = (None, None, Some(1));
        status(&Told { old, generation, decision, plan, model, stage, because, outlook, pipeline, now })
    }

    /// A status that never settles is written on every turn, in every hospital.
    #[test]
    fn the_status_settles() {
        let serving = plan(RolloutReason::Serving, None);
        let first = told(None, Some(&allowed()), &serving, 1);
        assert_eq!(first.serving_digest, Some(Digest::of(b"m")));
        assert_eq!(told(Some(&first), Some(&allowed()), &serving, 2), first);
        // The hub being away changes nothing either.
        assert_eq!(told(Some(&first), None, &serving, 3), first);
    }

    /// The administrator must read the server's own words, and that waiting does not help.
    #[test]
    fn a_server_that_refuses_is_told_from_a_hospital_that_does() {
        let down = plan(RolloutReason::VerificationFailed, Some("missing field `network`"));
        let seen = told(None, Some(&allowed()), &down, 1);
        let ready = seen.conditions.iter().find(|c| c.type_ == READY).unwrap();
        assert_eq!((ready.reason.as_str(), ready.message.as_str()), ("VerificationFailed", "missing field `network`"));
        let of = |type_| status_of(&seen.conditions, type_);
        assert_eq!((of(VERIFIED), of(APPROVED), of(STALLED)), (Some("True"), Some("True"), Some("True")));
        assert_eq!(seen.serving_digest, None);
        // A server that can serve it, after an upgrade, is no longer stalled.
        let up = told(Some(&seen), Some(&allowed()), &plan(RolloutReason::Serving, None), 2);
        assert_eq!(status_of(&up.conditions, STALLED), None);

        let unsigned =
            ReleaseDecision::Refused { reason: RolloutReason::DeniedByPolicy, message: "0 of 1 approvals".into() };
        let denied = plan(RolloutReason::DeniedByPolicy, Some("0 of 1 approvals"));
        let seen = told(None, Some(&unsigned), &denied, 1);
        assert_eq!(status_of(&seen.conditions, VERIFIED), Some("True"));
        assert_eq!(status_of(&seen.conditions, APPROVED), Some("False"));
    }

    /// `kubectl describe` must tell an SRE what happened, once each time and not on every turn.
    #[test]
    fn an_event_for_each_change_of_where_it_stands() {
        let starting = plan(RolloutReason::RollingOut, None);
        let first = told(None, Some(&allowed()), &starting, 1);
        assert_eq!(news(None, &starting, &first)[0].reason, "RollingOut");
        assert_eq!(news(Some(&first), &plan(RolloutReason::RollingOut, Some("no room on any node")), &first), []);
        let note = news(Some(&first), &plan(RolloutReason::VerificationFailed, Some("no network")), &first);
        assert_eq!(note, [Note { warning: true, reason: "VerificationFailed", message: "no network".into() }]);
        assert!(!news(Some(&first), &plan(RolloutReason::Serving, None), &first)[0].warning);
        assert_eq!(Note::of(&Plan { acts: vec![], reason: None, message: None }).reason, "Withdrawn");
    }

    /// A clinician who relied on a warning must hear that there is none from now on, and why, where the hospital's people
    /// look; and once.
    #[test]
    fn that_a_model_stands_on_another_stage_is_an_event() {
        let serving = plan(RolloutReason::Serving, None);
        let shadow = told(None, Some(&allowed()), &serving, 1);
        let raised = ModelDeploymentStatus { stage: Some(Stage::SafetyNet), ..shadow.clone() };
        let fallen = ModelDeploymentStatus { because: Some("SafetyNet needs x".into()), ..shadow.clone() };
        let note = news(Some(&raised), &serving, &fallen).pop().unwrap();
        assert_eq!((note.warning, note.reason), (true, "StageFell"));
        assert_eq!(note.message, "it stands on Shadow and stood on SafetyNet: SafetyNet needs x");
        assert_eq!(news(Some(&shadow), &serving, &raised).pop().unwrap().reason, "StageRose");
        assert_eq!(news(Some(&fallen), &serving, &fallen), []);
        let none = ModelDeploymentStatus { stage: None, ..shadow };
        assert_eq!(news(Some(&none), &serving, &fallen), [], "that it is there at all is another event");
    }

    /// A quota waits for people; GitOps tools and `kubectl wait` must read that, and in whose words.
    #[test]
    fn what_the_api_server_refuses_is_stalled_and_not_denied_by_the_policy() {
        let words = "the hospital's API server refused Service a: exceeded quota";
        let seen = told(None, Some(&allowed()), &plan(RolloutReason::DeniedByPolicy, Some(words)), 1);
        let of = |type_| status_of(&seen.conditions, type_);
        assert_eq!((of(APPROVED), of(READY), of(STALLED)), (Some("True"), Some("False"), Some("True")));
        assert!(seen.conditions.iter().any(|c| c.type_ == STALLED && c.message == words));
        assert_eq!(
            status_of(&told(Some(&seen), Some(&allowed()), &plan(RolloutReason::Serving, None), 2).conditions, STALLED),
            None
        );
    }
}
