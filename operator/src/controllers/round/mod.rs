//! The TrainingRound controller: where the rounds of a cluster are written down, for the [`crate::driver`] that carries
//! them on. The resourceVersion is its fence.

mod apply;
pub mod decide;
pub mod seal;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use consilium_crds::TrainingRound;
use consilium_crds::training_round::CANCEL;
use jiff::Timestamp;
use kube::ResourceExt;
use kube::runtime::controller::Action;

use super::context::Context;
use super::error::Error;
use super::write::Note;
use crate::driver::Round;
use apply::Written;

/// Most letters of a person's reason that go into the status.
const CANCEL_WORDS: usize = 200;

/// A TrainingRound as the driver takes it.
pub fn read(object: &TrainingRound) -> Round {
    Round {
        uid: object.uid().unwrap_or_default(),
        namespace: object.namespace().unwrap_or_default(),
        name: object.name_any(),
        spec: object.spec.clone(),
        state: object.status.as_ref().and_then(|status| status.round.clone()),
        deleting: object.metadata.deletion_timestamp.is_some(),
        cancelled: cancelled(object),
    }
}

/// Why the round is to end now: somebody says so, or its object goes.
fn cancelled(round: &TrainingRound) -> Option<String> {
    let asked = round.annotations().get(CANCEL).map(|why| match why.trim() {
        "" => format!("somebody cancelled the round, by the annotation {CANCEL}, and said no reason"),
        why => format!("somebody cancelled the round: {}", why.chars().take(CANCEL_WORDS).collect::<String>()),
    });
    let deleted = || "the round or its study was deleted".to_owned();
    asked.or_else(|| round.metadata.deletion_timestamp.is_some().then(deleted))
}

/// One turn of a round.
///
/// # Errors
/// See [`Error`].
pub async fn reconcile(cached: Arc<TrainingRound>, context: Arc<Context>) -> Result<Action, Error> {
    let object = context.written.newest(cached);
    let round = read(&object);
    if round.uid.is_empty() {
        return Err(Error::Bug("a TrainingRound without a UID".into()));
    }
    let now = context.now();
    // Before anything can fail: a round that the operator cannot carry on is the one to be told of.
    context.note_deadline(&round.uid, round.state.as_ref());
    // What someone made by hand names a study as it likes, if it is the name of anything.
    if !round.deleting && !seal::is_ours(&object, &context.key.verifying_key()) {
        return refuse(&context, &object, now).await;
    }
    if !round.deleting && context.study_is_gone(&round.study(), &round.spec.study_uid).await? {
        return apply::delete(&context, &round).await;
    }
    let store = Written::new(&context, object.clone());
    if round.deleting {
        // Hospitals stop now, whether or not anything of the round can still be read or written.
        context.driver.offer(&store, &round, &Default::default());
    }
    let policy = match context.driver.policy(&round, now).await {
        Ok(policy) => policy,
        // The clean-up needs no rules: an unreadable spec must not keep an object from going.
        Err(_) if round.deleting => return apply::clean_up(&context, &object, &round, now).await,
        // Nor from being over: what has ended needs no rules either.
        Err(error) if error.is_final() && round.state.as_ref().is_some_and(|state| state.is_over()) => {
            return apply::rest(&context, &object, &round).await;
        }
        Err(error) if !error.is_final() => return Err(error.into()),
        Err(error) => return stall(&context, &object, &error.to_string(), now).await,
    };
    let round = context.driver.turn(&store, round, &policy, now).await?;
    if round.deleting {
        let object = context.written.newest(object);
        return apply::clean_up(&context, &object, &round, now).await;
    }
    if round.state.as_ref().is_some_and(|state| state.is_over()) {
        return apply::rest(&context, &context.written.newest(object), &round).await;
    }
    let next = round.state.as_ref().and_then(|state| context.driver.next_turn(state, &policy, now));
    Ok(next.map_or_else(Action::await_change, Action::requeue))
}

/// A round that someone made by hand: nobody is offered it, and its study does not count it.
async fn refuse(context: &Context, round: &Arc<TrainingRound>, now: Timestamp) -> Result<Action, Error> {
    let status = decide::not_ours(round, now);
    if round.status.as_ref() != Some(&status) {
        let note = Note::warning("NotMadeByOperator", decide::NOT_OURS);
        apply::status(context, round.clone(), status, vec![note]).await?;
    }
    Ok(Action::await_change())
}

async fn stall(context: &Context, round: &Arc<TrainingRound>, why: &str, now: Timestamp) -> Result<Action, Error> {
    let status = decide::stalled(round, why, now);
    let fresh = round.status.as_ref() != Some(&status);
    let note = Note::warning("SpecUnreadable", format!("the round cannot go on: {why}"));
    apply::status(context, round.clone(), status, if fresh { vec![note] } else { Vec::new() }).await?;
    Ok(Action::requeue(Duration::from_secs(300)))
}
