//! What a round does to the outside.

use std::sync::Arc;
use std::time::Duration;

use consilium_crds::{TrainingRound, TrainingRoundStatus};
use consilium_federation::SiteName;
use consilium_federation::round::{HubWork, RoundState, RoundStep, hub_work};
use consilium_federation::task::TaskKind;
use jiff::{SignedDuration, Timestamp};
use kube::api::{DeleteParams, Preconditions};
use kube::runtime::controller::Action;
use kube::runtime::reflector::ObjectRef;
use kube::{Api, ResourceExt};

use super::decide::Ended;
use super::{decide, items, secure};
use crate::aggregation::{Subject, SumJob};
use crate::attempts::Inputs;
use crate::controllers::book::Owner;
use crate::controllers::context::Context;
use crate::controllers::error::{Error, not_found};
use crate::controllers::finalizer;
use crate::controllers::write::{self, Note};
use crate::metrics::RoundStage;

/// How long hospitals may take to acknowledge that a deleted round is cancelled.
const LINGER: SignedDuration = SignedDuration::from_secs(60);

fn api(context: &Context, round: &TrainingRound) -> Api<TrainingRound> {
    Api::namespaced(context.client.clone(), &round.namespace().unwrap_or_default())
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
pub fn measure(context: &Context, state: &RoundState, ended: Ended) {
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

/// Does what the state asks for; again is as good as once.
pub async fn effects(
    context: &Arc<Context>,
    round: &Arc<TrainingRound>,
    uid: &str,
    state: &RoundState,
) -> Result<(), Error> {
    // What a step starts from lies in the store before anyone is told to take it.
    let inputs = secure::follow(context, round, uid, state).await?;
    publish(context, round, uid, &inputs);
    if let Some(HubWork::Sum { attempt, kind, contributors }) = hub_work(state) {
        let job = sum_job(context, round, uid, state, (attempt, kind, contributors)).await?;
        context.sums.start(context, ObjectRef::from_obj(&**round), job);
    }
    // The sum stands: what hospitals sent for it is no longer needed, and is kept no longer.
    let summed = state.step == RoundStep::Evaluating && state.protocol_step.is_none();
    if summed || state.is_over() {
        context.sums.forget(uid);
        context.hub.attempts().forget(uid);
        delete_uploads(context, uid, state.attempt).await?;
        return Ok(());
    }
    let spent = decide::spent(state);
    if spent > 0 && !context.is_clean(uid, spent) {
        let gone = context.hub.store().delete_attempts(uid, spent).await;
        gone.map_err(Error::store("deleting the uploads of an attempt that came to nothing"))?;
        context.mark_clean(uid, spent);
    }
    Ok(())
}

async fn sum_job(
    context: &Context,
    round: &TrainingRound,
    uid: &str,
    state: &RoundState,
    (attempt, kind, contributors): (u32, TaskKind, Vec<SiteName>),
) -> Result<SumJob, Error> {
    let spec = context.study_spec(round.spec.spec_digest).await?;
    let masks = match secure::plan(context, round, uid, state).await? {
        Some(plan) => Some(context.hub.attempts().masks(context.hub.store(), &plan).await.map_err(secure::error)?),
        None => None,
    };
    let subject = match kind {
        TaskKind::Evaluate => Subject::Evaluation,
        TaskKind::Train | TaskKind::Init => Subject::Updates {
            base_model: round.spec.base_model,
            clip: spec.clip().map_err(|e| Error::Invalid(e.to_string()))?,
        },
    };
    let roster_size = round.spec.participants.len() as u32;
    Ok(SumJob { round_uid: uid.to_owned(), attempt, contributors, subject, roster_size, masks })
}

fn publish(context: &Context, round: &TrainingRound, uid: &str, inputs: &Inputs) {
    let owner = Owner::Round { namespace: round.namespace().unwrap_or_default(), name: round.name_any() };
    context.publish(|book| {
        if !Context::stands(&context.caches.rounds, round) {
            return book.remove(uid);
        }
        let items = items::items(round, &book.acknowledged(uid), inputs);
        book.set(uid, &owner, items)
    });
}

/// Tells the hospitals of a round that is being deleted to stop.
pub fn cancel(context: &Context, round: &TrainingRound, uid: &str) {
    publish(context, round, uid, &Inputs::Nothing);
}

async fn delete_uploads(context: &Context, uid: &str, attempt: u32) -> Result<(), Error> {
    if context.is_clean(uid, attempt) {
        return Ok(());
    }
    let gone = context.hub.store().delete_round_uploads(uid).await;
    gone.map_err(Error::store("deleting the uploads of a finished round"))?;
    context.mark_clean(uid, attempt);
    Ok(())
}

/// Deletes a round whose study is gone; the finalizer keeps it until hospitals know.
pub async fn delete(context: &Context, round: &TrainingRound, uid: &str) -> Result<Action, Error> {
    let params = DeleteParams {
        preconditions: Some(Preconditions { uid: Some(uid.to_owned()), resource_version: None }),
        ..DeleteParams::default()
    };
    match api(context, round).delete(&round.name_any(), &params).await {
        Ok(_) => Ok(Action::await_change()),
        Err(error) if not_found(&error) => Ok(Action::await_change()),
        Err(error) => Err(Error::kube(format!("deleting {}, whose study is gone", round.name_any()))(error)),
    }
}

/// Lets a deleted round go once every hospital has acknowledged, or has had its time.
pub async fn clean_up(
    context: &Arc<Context>,
    round: &Arc<TrainingRound>,
    uid: &str,
    now: Timestamp,
) -> Result<Action, Error> {
    publish(context, round, uid, &Inputs::Nothing);
    let outstanding = items::items(round, &context.book().acknowledged(uid), &Inputs::Nothing);
    let since = round.metadata.deletion_timestamp.as_ref().map_or(now, |t| t.0);
    let left = since.saturating_add(LINGER).unwrap_or(now).duration_since(now);
    if let (false, Ok(pause)) = (outstanding.is_empty() || !left.is_positive(), Duration::try_from(left)) {
        return Ok(Action::requeue(pause));
    }
    if !outstanding.is_empty() {
        let names: Vec<_> = outstanding.keys().map(ToString::to_string).collect();
        tracing::warn!(round = round.name_any(), sites = names.join(","), "deleted without their acknowledgement");
        context.bury(outstanding).await?;
    }
    context.sums.forget(uid);
    context.hub.attempts().forget(uid);
    delete_uploads(context, uid, u32::MAX).await?;
    finalizer::remove(&api(context, round), &**round).await?;
    context.forget_round(uid);
    Ok(Action::await_change())
}
