//! What a round writes to the API server.

use std::sync::Arc;
use std::time::Duration;

use consilium_crds::conditions::SUCCEEDED;
use consilium_crds::{TrainingRound, TrainingRoundStatus};
use consilium_federation::round::{RoundState, RoundStep};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::api::{DeleteParams, Preconditions};
use kube::runtime::controller::Action;
use kube::{Api, ResourceExt};

use super::decide::{self, Ended};
use crate::attempts::Inputs;
use crate::controllers::context::Context;
use crate::controllers::error::{Error, not_found};
use crate::controllers::finalizer;
use crate::controllers::write::{self, Note};
use crate::driver::{Round, RoundStore, Turn, items};
use crate::metrics::RoundStage;

/// How long hospitals may take to acknowledge that a round is over or cancelled.
const LINGER: SignedDuration = SignedDuration::from_secs(60);

fn api(context: &Context, round: &TrainingRound) -> Api<TrainingRound> {
    Api::namespaced(context.client.clone(), &round.namespace().unwrap_or_default())
}

/// A TrainingRound, as the place where its turns are written.
pub struct Written<'a> {
    context: &'a Context,
    object: Arc<TrainingRound>,
}

impl<'a> Written<'a> {
    /// The round as it was read.
    pub fn new(context: &'a Context, object: Arc<TrainingRound>) -> Self {
        Self { context, object }
    }
}

impl RoundStore for Written<'_> {
    type Error = Error;

    async fn write(&self, turn: &Turn<'_>) -> Result<(), Error> {
        let (context, before) = (self.context, turn.round.state.as_ref());
        let new = decide::status(&self.object, turn.after.clone(), turn.trouble.as_deref(), turn.policy, turn.now);
        let (notes, ended) = decide::transition(before, turn.after, turn.now);
        status(context, self.object.clone(), new, notes).await?;
        context.note_deadline(&turn.round.uid, Some(turn.after));
        if let Some(ended) = ended {
            measure(context, turn.after, ended);
        }
        Ok(())
    }

    fn stands(&self, _: &Round) -> bool {
        Context::stands(&self.context.caches.rounds, &*self.object)
    }
}

/// Writes the status if it changed, then the Events.
pub async fn status(
    context: &Context,
    round: Arc<TrainingRound>,
    status: TrainingRoundStatus,
    notes: Vec<Note>,
) -> Result<Arc<TrainingRound>, Error> {
    if round.status.as_ref() == Some(&status) {
        return Ok(round);
    }
    let wanted = TrainingRound { status: Some(status), ..(*round).clone() };
    let written = write::status(&api(context, &round), &wanted).await;
    if written.is_err() {
        // Whatever the reason, the cache knows better than we do now.
        context.written.forget(&round.uid().unwrap_or_default());
    }
    let round = context.written.put(&round, written?);
    write::events(context, &*round, notes).await;
    Ok(round)
}

/// Figures of a stage that ended.
fn measure(context: &Context, state: &RoundState, ended: Ended) {
    let stage = match ended.step {
        RoundStep::Training => RoundStage::Training,
        RoundStep::Aggregating => RoundStage::Aggregating,
        RoundStep::Evaluating => RoundStage::Evaluating,
        RoundStep::Succeeded | RoundStep::Failed => return,
    };
    context.metrics.stage(stage, ended.took.unsigned_abs());
    if let Some(outcome) = state.outcome {
        context.metrics.round_finished(outcome);
    }
}

/// Deletes a round whose study is gone; the finalizer keeps it until hospitals know.
pub async fn delete(context: &Context, round: &Round) -> Result<Action, Error> {
    let params = DeleteParams {
        preconditions: Some(Preconditions { uid: Some(round.uid.clone()), resource_version: None }),
        ..DeleteParams::default()
    };
    let api: Api<TrainingRound> = Api::namespaced(context.client.clone(), &round.namespace);
    match api.delete(&round.name, &params).await {
        Ok(_) => Ok(Action::await_change()),
        Err(error) if not_found(&error) => Ok(Action::await_change()),
        Err(error) => Err(Error::kube(format!("deleting {}, whose study is gone", round.name))(error)),
    }
}

/// How long hospitals may still take to acknowledge that the round stopped at this time; `None` once all have, or have had
/// their time. What they have not heard then is kept beside the round.
async fn unheard(context: &Context, round: &Round, since: Timestamp) -> Result<Option<Duration>, Error> {
    let outstanding = items::items(round, &context.book().acknowledged(&round.uid), &Inputs::Nothing);
    let left = since.saturating_add(LINGER).unwrap_or(since).duration_since(context.now());
    if let (false, Ok(pause)) = (outstanding.is_empty() || !left.is_positive(), Duration::try_from(left)) {
        return Ok(Some(pause));
    }
    if !outstanding.is_empty() {
        let names: Vec<_> = outstanding.keys().map(ToString::to_string).collect();
        tracing::warn!(round = round.name, sites = names.join(","), "stopped without their acknowledgement");
        context.bury(outstanding).await?;
    }
    Ok(None)
}

/// A round that is over holds nothing up: neither its study nor its definition nor its namespace must wait for an operator
/// that may be gone already.
pub async fn rest(context: &Context, object: &TrainingRound, round: &Round) -> Result<Action, Error> {
    if !finalizer::is_on(object) {
        return Ok(Action::await_change());
    }
    let ended = |c: &&Condition| c.type_ == SUCCEEDED && c.status != "Unknown";
    let conditions = object.status.as_ref().map_or(&[][..], |status| &status.conditions);
    let since = conditions.iter().find(ended).map_or_else(|| context.now(), |c| c.last_transition_time.0);
    if let Some(pause) = unheard(context, round, since).await? {
        return Ok(Action::requeue(pause));
    }
    finalizer::remove(&api(context, object), object).await?;
    Ok(Action::await_change())
}

/// Lets a deleted round go once every hospital has acknowledged, or has had its time.
pub async fn clean_up(
    context: &Context,
    object: &Arc<TrainingRound>,
    round: &Round,
    now: Timestamp,
) -> Result<Action, Error> {
    let (driver, uid) = (&context.driver, round.uid.as_str());
    driver.offer(&Written::new(context, object.clone()), round, &Inputs::Nothing);
    let since = object.metadata.deletion_timestamp.as_ref().map_or(now, |t| t.0);
    if let Some(pause) = unheard(context, round, since).await? {
        return Ok(Action::requeue(pause));
    }
    driver.close(uid, u32::MAX).await?;
    finalizer::remove(&api(context, object), &**object).await?;
    context.forget_round(uid);
    Ok(Action::await_change())
}
