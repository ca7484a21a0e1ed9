//! The TrainingRound controller: drives the round machine of `federation` in the cluster.
//!
//! State first, with the resourceVersion as the fence; then effects, which are derived from the state and can be
//! repeated: the items of hospitals, the sum, the clean-up.

mod apply;
pub mod decide;
pub mod items;
pub mod secure;
pub mod sums;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use consilium_crds::TrainingRound;
use consilium_federation::round::{ProtocolStep, RoundPolicy, RoundState};
use consilium_federation::{SiteName, StudyKey};
use jiff::Timestamp;
use kube::ResourceExt;
use kube::runtime::controller::Action;

use super::context::Context;
use super::error::{Class, Error};
use super::write::Note;
use crate::store::UploadKey;
use decide::Facts;

/// When a round that nothing moves is looked at again, for what no event announces.
const IDLE: Duration = Duration::from_secs(60);

/// One turn of a round.
///
/// # Errors
/// See [`Error`].
pub async fn reconcile(cached: Arc<TrainingRound>, context: Arc<Context>) -> Result<Action, Error> {
    let round = context.written.newest(cached);
    let uid = round.uid().ok_or_else(|| Error::Bug("a TrainingRound without a UID".into()))?;
    let now = context.now();
    let deleting = round.metadata.deletion_timestamp.is_some();
    let study = StudyKey::new(round.namespace().unwrap_or_default(), round.spec.study.clone());
    if !deleting && context.study_is_gone(&study, &round.spec.study_uid).await? {
        return apply::delete(&context, &round, &uid).await;
    }
    let policy = match policy(&context, &round).await {
        Ok(policy) => policy,
        // The clean-up needs no rules: an unreadable spec must not keep an object from going.
        Err(_) if deleting => return apply::clean_up(&context, &round, &uid, now).await,
        Err(error) if error.class() == Class::Transient => return Err(error),
        Err(error) => return stall(&context, &round, &error.to_string(), now).await,
    };
    let facts = read(&context, &round, &uid, deleting).await?;
    let before = round.status.as_ref().and_then(|s| s.round.as_ref());
    let start = before.cloned().unwrap_or_else(|| decide::begin(&round.spec, now));
    let after = decide::advance(start, &facts, now, &policy);
    let trouble = context.sums.trouble(&uid, after.attempt);
    let status = decide::status(&round, after.clone(), trouble.as_deref(), &policy, now);
    let (notes, ended) = decide::transition(before, &after, now, &policy);
    let round = apply::status(&context, round.clone(), status, notes).await?;
    if let Some(ended) = ended {
        apply::measure(&context, &after, ended);
    }
    apply::effects(&context, &round, &uid, &after).await?;
    if deleting {
        return apply::clean_up(&context, &round, &uid, now).await;
    }
    Ok(requeue(&after, now))
}

fn requeue(state: &RoundState, now: Timestamp) -> Action {
    if state.is_over() {
        return Action::await_change();
    }
    // A little late, so that the deadline has passed when it is looked at.
    let pause = decide::wake_in(state, now).map_or(IDLE, |d| d.saturating_add(Duration::from_millis(5)));
    Action::requeue(pause)
}

async fn policy(context: &Context, round: &TrainingRound) -> Result<RoundPolicy, Error> {
    let spec = context.study_spec(round.spec.spec_digest).await?;
    let waited_for = round.spec.waited_for.iter().cloned().collect();
    let mut policy = spec.round_policy(waited_for).map_err(|e| Error::Invalid(e.to_string()))?;
    if spec.is_masked() {
        let report = |site: &SiteName| context.hub.report(site).map(|(report, _)| report);
        policy.roster = secure::choose(&context.rosters(), &round.spec.participants, report);
        let of_study = |other: &TrainingRound| {
            other.spec.study_uid == round.spec.study_uid && other.spec.number < round.spec.number
        };
        policy.earlier = secure::earlier(&context.caches.rounds.state_filter(of_study));
    }
    Ok(policy)
}

async fn read(context: &Context, round: &TrainingRound, uid: &str, cancelled: bool) -> Result<Facts, Error> {
    let mut facts = Facts { cancelled, ..Facts::default() };
    for site in &round.spec.participants {
        if let Some((report, _)) = context.hub.report(site) {
            facts.reports.extend(decide::of_round(&report, uid).map(|r| (site.clone(), r.clone())));
        }
    }
    let Some(state) = round.status.as_ref().and_then(|s| s.round.as_ref()) else { return Ok(facts) };
    if let Some((step, waiting)) = decide::awaited(state) {
        facts.done = done(context, round, uid, state, step, waiting).await?;
    }
    facts.sum = context.sums.outcome(uid, state.attempt);
    Ok(facts)
}

/// Who of those waited for has done the open step.
async fn done(
    context: &Context,
    round: &TrainingRound,
    uid: &str,
    state: &RoundState,
    step: ProtocolStep,
    mut waiting: Vec<SiteName>,
) -> Result<Vec<SiteName>, Error> {
    if state.roster.is_some() {
        // After a restart the machine is made from the journal here.
        secure::follow(context, round, uid, state).await?;
        let heard = context.hub.attempts().heard(uid, state.attempt, step).await;
        waiting.retain(|site| heard.contains(site));
    }
    if step != ProtocolStep::Upload {
        return Ok(waiting);
    }
    let mut uploaded = Vec::new();
    for site in waiting {
        let key = UploadKey { round_uid: uid.to_owned(), attempt: state.attempt, site: site.clone() };
        let complete = context.hub.store().upload_complete(&key).await;
        if complete.map_err(Error::store(format!("looking for the upload of {site}")))? {
            uploaded.push(site);
        }
    }
    Ok(uploaded)
}

async fn stall(context: &Context, round: &Arc<TrainingRound>, why: &str, now: Timestamp) -> Result<Action, Error> {
    let status = decide::stalled(round, why, now);
    let fresh = round.status.as_ref() != Some(&status);
    let note = Note::warning("SpecUnreadable", format!("the round cannot go on: {why}"));
    apply::status(context, round.clone(), status, if fresh { vec![note] } else { Vec::new() }).await?;
    Ok(Action::requeue(Duration::from_secs(300)))
}
