//! What to do about one model that the hub offers, and which ones nobody offers: pure, over plain values.

use std::sync::Arc;

use consilium_crds::ModelDeployment;
use consilium_crds::model_deployment::Approved;
use consilium_federation::assignment::{Assignment, DeployWork, Item, ItemState, Work};
use consilium_federation::digest::Digest;
use consilium_federation::ladder::Stage;
use consilium_federation::report::{DeployReport, RolloutReason};
use kube::ResourceExt as _;

use crate::policy::{Place, ReleaseDecision, Room};
use crate::words;

/// Everything that the decision on one model depends on.
#[derive(Clone, Debug)]
pub(super) struct Inputs<'a> {
    /// The hospital's word, or `None` while the release is not at hand.
    pub(super) decision: Option<&'a ReleaseDecision>,
    /// The stage that is asked for.
    pub(super) stage: Stage,
    /// Why it is not served although it is allowed.
    pub(super) withdrawn: Option<String>,
    /// Its ModelDeployment, if it exists.
    pub(super) seen: Option<Seen>,
}

/// A ModelDeployment and its Deployment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Seen {
    /// It is being removed.
    pub(super) deleting: bool,
    /// The stage that its object asks for.
    pub(super) stage: Stage,
    /// On whose word.
    pub(super) approved: Option<Approved>,
    /// Its Deployment exists as it should.
    pub(super) built: bool,
    /// Its Deployment was told to run no pod, because the server refused the model.
    pub(super) stopped: bool,
    /// What has become of its pod.
    pub(super) pod: PodSeen,
}

/// The pod of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum PodSeen {
    /// It answers.
    Ready,
    /// Not yet; what is in the way, if anything.
    Starting(Option<String>),
    /// The server refused the model for good, in its own words.
    Refused(String),
}

/// One thing to do.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::large_enum_variant, reason = "a handful of them exist at a time")]
pub(super) enum Act {
    /// Make the ModelDeployment, on this word.
    Create(Approved),
    /// Make or complete what it owns.
    Build,
    /// Run no pod, and remember the server's words: it would end the same way each time.
    Stop(String),
    /// Write another stage or another word into it.
    Restate(Stage, Approved),
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

impl Plan {
    /// The same, where the hospital's API server refuses an object that the model needs: a word of the hospital, as its
    /// policy is. What serves already goes on as it is.
    pub(super) fn refused(self, why: String) -> Self {
        // Nor does it hide that a model is not what it says it is.
        let weighs =
            |reason: &RolloutReason| matches!(reason, RolloutReason::Serving | RolloutReason::VerificationFailed);
        let message = self.message.filter(|_| self.reason.as_ref().is_some_and(weighs));
        let message = message.map_or_else(|| why.clone(), |first| format!("{first}; and {why}"));
        let reason = self.reason.filter(weighs).or(Some(RolloutReason::DeniedByPolicy));
        Self { reason, message: Some(message), ..self }
    }
}

/// Decides.
pub(super) fn decide(inputs: &Inputs<'_>) -> Plan {
    let plan = of_decision(inputs);
    match (&inputs.withdrawn, inputs.decision) {
        (Some(why), Some(ReleaseDecision::Allowed(_)) | None) => held(plan, why),
        _ => plan,
    }
}

fn of_decision(inputs: &Inputs<'_>) -> Plan {
    let seen = inputs.seen.as_ref();
    let delete = || seen.filter(|s| !s.deleting).map(|_| Act::Delete).into_iter().collect::<Vec<_>>();
    let plan = |acts, reason| Plan { acts, reason: Some(reason), message: None };
    match (inputs.decision, seen) {
        (Some(ReleaseDecision::Withdrawn), _) => Plan { acts: delete(), reason: None, message: None },
        (Some(ReleaseDecision::Refused { reason, message }), _) => {
            Plan { acts: delete(), reason: Some(*reason), message: Some(message.clone()) }
        }
        (None, None) => plan(vec![], RolloutReason::Offered),
        (Some(ReleaseDecision::Allowed(on)), None) => plan(vec![Act::Create(on.clone())], RolloutReason::RollingOut),
        (Some(ReleaseDecision::Allowed(_)), Some(seen)) if seen.deleting => plan(vec![], RolloutReason::RollingOut),
        (Some(ReleaseDecision::Allowed(on)), Some(seen)) => standing(seen, upkeep(seen, inputs.stage, on)),
        // What runs goes on while the hub cannot be asked: it was allowed by what is known.
        (None, Some(seen)) => standing(seen, vec![]),
    }
}

/// The same, where a hazard withdraws the model: its object is kept up to date, and nothing of it runs.
fn held(plan: Plan, why: &str) -> Plan {
    let object = |act: &Act| matches!(act, Act::Create(_) | Act::Restate(..) | Act::Delete);
    let acts = plan.acts.into_iter().filter(object).collect();
    Plan { acts, reason: Some(RolloutReason::DeniedByPolicy), message: Some(why.to_owned()) }
}

fn standing(seen: &Seen, acts: Vec<Act>) -> Plan {
    let (reason, message) = match &seen.pod {
        PodSeen::Ready => (RolloutReason::Serving, None),
        PodSeen::Starting(obstacle) => (RolloutReason::RollingOut, obstacle.clone()),
        PodSeen::Refused(words) => (RolloutReason::VerificationFailed, Some(words.clone())),
    };
    Plan { acts, reason: Some(reason), message }
}

/// What an allowed model lacks.
fn upkeep(seen: &Seen, stage: Stage, approved: &Approved) -> Vec<Act> {
    let current = seen.stage == stage && seen.approved.as_ref() == Some(approved);
    let stage = (!current).then(|| Act::Restate(stage, approved.clone()));
    let build = match &seen.pod {
        PodSeen::Refused(words) => (!seen.built || !seen.stopped).then(|| Act::Stop(words.clone())),
        PodSeen::Ready | PodSeen::Starting(_) => (!seen.built).then_some(Act::Build),
    };
    stage.into_iter().chain(build).collect()
}

/// The fact for the hub; `admitted`: the API server took what was made. Every other message stays in the hospital, and so
/// does why a model stands on no higher stage.
pub(super) fn report(
    uid: &str,
    model: Digest,
    reason: RolloutReason,
    stage: Option<Stage>,
    admitted: bool,
) -> DeployReport {
    let serving = (reason == RolloutReason::Serving).then_some(model);
    let message = (!admitted).then(|| words::MODEL_NOT_ADMITTED.to_owned());
    DeployReport { uid: uid.to_owned(), reason, serving, stage: stage.filter(|_| serving.is_some()), message }
}

/// The stage that is written down for a model: a fall at once, a rise where the policy takes something new.
pub(super) fn written(place: &Place, before: Option<Stage>, room: Room) -> Option<Stage> {
    let stage = place.stage()?;
    match room {
        Room::Open => Some(stage),
        Room::Kept(_) | Room::Closed(_) => Some(stage.min(before.unwrap_or(Stage::Shadow))),
    }
}

/// The stage that is said of a model, here and to the hub: a rise that is not in the ledger is none yet, a fall is one.
pub(super) fn said(stage: Option<Stage>, before: Option<Stage>, recorded: bool) -> Option<Stage> {
    if recorded { stage } else { stage.min(before) }
}

/// The ModelDeployment of one promotion: of several, the oldest that is not being removed. In a tombstone the UID alone
/// counts, for it outlives its release.
pub(super) fn own<'a>(
    models: &'a [Arc<ModelDeployment>],
    item: &Item,
    work: &DeployWork,
) -> Option<&'a Arc<ModelDeployment>> {
    let named = |m: &ModelDeployment| {
        let spec = &m.spec;
        spec.model == work.model && spec.release_digest == work.release_digest && spec.release == work.release
    };
    let fits = |m: &&Arc<ModelDeployment>| {
        m.spec.promotion_uid == item.uid && (item.state == ItemState::Cancelled || named(m))
    };
    models.iter().filter(fits).min_by_key(|m| {
        (m.metadata.deletion_timestamp.is_some(), m.metadata.creation_timestamp.clone(), m.metadata.name.clone())
    })
}

/// The ModelDeployments that go because no item stands behind them: made or changed by hand, a second one of one
/// promotion, or of a release that its promotion no longer names. Nobody would ask again whether they may serve.
///
/// An item that the hub no longer mentions is kept as an orphan, and one that it cancelled until its model is gone; so
/// what is in no item was never asked of this hospital. Before the first assignment nothing is judged by absence.
pub(super) fn strays<'a>(models: &'a [Arc<ModelDeployment>], desired: &Assignment) -> Vec<&'a Arc<ModelDeployment>> {
    let kept: Vec<_> = desired
        .items
        .iter()
        .filter_map(|item| match &item.work {
            Work::Deploy(work) => own(models, item, work)?.uid(),
            Work::Round(_) => None,
        })
        .collect();
    let stray = |m: &&Arc<ModelDeployment>| {
        m.metadata.deletion_timestamp.is_none() && !m.uid().is_some_and(|uid| kept.contains(&uid))
    };
    models.iter().filter(|_| !desired.hub_epoch.is_empty()).filter(stray).collect()
}

#[cfg(test)]
#[path = "decide_tests.rs"]
mod tests;
