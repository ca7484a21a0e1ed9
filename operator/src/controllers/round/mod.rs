//! The TrainingRound controller: drives the round machine of `federation` in the cluster.
//!
//! State first, with the resourceVersion as the fence; then effects, which are derived from the state and can be
//! repeated: the items of hospitals, the sum, the clean-up.

mod apply;
pub mod decide;
pub mod items;
pub mod seal;
pub mod secure;
pub mod sums;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use consilium_crds::TrainingRound;
use consilium_federation::round::{Protocol, ProtocolStep, RoundPolicy, RoundState, SiteReason};
use consilium_federation::{SiteName, StudyKey};
use jiff::{SignedDuration, Timestamp};
use kube::ResourceExt;
use kube::runtime::controller::Action;

use super::context::Context;
use super::error::{Class, Error};
use super::write::Note;
use crate::store::UploadKey;
use decide::Facts;

/// When a round that nothing moves is looked at again, for what no event announces.
const IDLE: Duration = Duration::from_secs(60);
/// When it is looked whether hospitals that fell out of an attempt have been heard again.
const RETURNS: Duration = Duration::from_secs(2);
/// How long after its start the hub waits to hear the hospitals of a round before it judges by who has not spoken.
const SETTLE: SignedDuration = SignedDuration::from_mins(2);

/// One turn of a round.
///
/// # Errors
/// See [`Error`].
pub async fn reconcile(cached: Arc<TrainingRound>, context: Arc<Context>) -> Result<Action, Error> {
    let round = context.written.newest(cached);
    let uid = round.uid().ok_or_else(|| Error::Bug("a TrainingRound without a UID".into()))?;
    let now = context.now();
    let deleting = round.metadata.deletion_timestamp.is_some();
    let before = round.status.as_ref().and_then(|s| s.round.as_ref());
    // Before anything can fail: a round that the operator cannot carry on is the one to be told of.
    context.note_deadline(&uid, before);
    let study = StudyKey::new(round.namespace().unwrap_or_default(), round.spec.study.clone());
    if !deleting && context.study_is_gone(&study, &round.spec.study_uid).await? {
        return apply::delete(&context, &round, &uid).await;
    }
    if !deleting && !seal::is_ours(&round, &context.key.verifying_key()) {
        return refuse(&context, &round, now).await;
    }
    if deleting {
        // Hospitals stop now, whether or not anything of the round can still be read or written.
        apply::cancel(&context, &round, &uid);
    }
    let policy = match policy(&context, &round, now).await {
        Ok(policy) => policy,
        // The clean-up needs no rules: an unreadable spec must not keep an object from going.
        Err(_) if deleting => return apply::clean_up(&context, &round, &uid, now).await,
        Err(error) if error.class() == Class::Transient => return Err(error),
        Err(error) => return stall(&context, &round, &error.to_string(), now).await,
    };
    let facts = match read(&context, &round, &uid, &policy).await {
        Ok(facts) => Facts { cancelled: deleting, ..facts },
        // What cannot be read must not keep an object from going.
        Err(_) if deleting => Facts { cancelled: true, ..Facts::default() },
        Err(error) => return Err(error),
    };
    let start = before.cloned().unwrap_or_else(|| decide::begin(&round.spec, now));
    let after = decide::advance(start, &facts, now, &policy);
    let trouble = context.sums.trouble(&uid, after.attempt);
    let status = decide::status(&round, after.clone(), trouble.as_deref(), &policy, now);
    let (notes, ended) = decide::transition(before, &after, now);
    let round = apply::status(&context, round.clone(), status, notes).await?;
    context.note_deadline(&uid, Some(&after));
    if let Some(ended) = ended {
        apply::measure(&context, &after, ended);
    }
    apply::effects(&context, &round, &uid, &after).await?;
    if deleting {
        return apply::clean_up(&context, &round, &uid, now).await;
    }
    let settled = settled_at(&context).filter(|_| policy.starting);
    Ok(requeue(&after, now, settled))
}

/// When to look again; `settled`: from when on time limits count that may have run out.
fn requeue(state: &RoundState, now: Timestamp, settled: Option<Timestamp>) -> Action {
    if state.is_over() {
        return Action::await_change();
    }
    // A little late, so that the deadline has passed when it is looked at.
    let late = |d: Duration| d.saturating_add(Duration::from_millis(5));
    // Whether one that fell out is back shows in when it was last heard, and that wakes nobody.
    let missed = state.protocol_step.is_none() && state.sites.iter().any(|s| s.reason == SiteReason::Missed);
    let most = if missed { RETURNS } else { Duration::MAX };
    let pause = decide::wake_in(state, now).map_or(IDLE, late).min(most);
    let settled = settled.and_then(|at| Duration::try_from(at.duration_since(now)).ok());
    Action::requeue(settled.map_or(pause, |settled| pause.min(late(settled))))
}

fn settled_at(context: &Context) -> Option<Timestamp> {
    context.started.checked_add(SETTLE).ok()
}

/// Whether the hub has just started and a hospital of the round that may call has not reported since.
fn is_starting(context: &Context, round: &TrainingRound, now: Timestamp) -> bool {
    let silent = |site: &SiteName| context.hub.is_accepted(site) && context.hub.report(site).is_none();
    settled_at(context).is_some_and(|at| now < at) && round.spec.participants.iter().any(silent)
}

async fn policy(context: &Context, round: &TrainingRound, now: Timestamp) -> Result<RoundPolicy, Error> {
    let spec = context.study_spec(round.spec.spec_digest).await?;
    // Slow is whom one can wait for.
    let connected = |site: &&SiteName| context.hub.connected(site);
    let waited_for = round.spec.waited_for.iter().filter(connected).cloned().collect();
    let mut policy = spec.round_policy(waited_for).map_err(|e| Error::Invalid(e.to_string()))?;
    policy.starting = is_starting(context, round, now);
    if spec.is_masked() {
        let report = |site: &SiteName| context.hub.report(site).map(|(report, _)| report);
        policy.roster = secure::choose(&context.rosters(), &round.spec.participants, report);
        policy.earlier = secure::earlier(context, &round.spec.study_uid).await?;
    }
    Ok(policy)
}

async fn read(context: &Context, round: &TrainingRound, uid: &str, policy: &RoundPolicy) -> Result<Facts, Error> {
    let mut facts = Facts::default();
    let state = round.status.as_ref().and_then(|s| s.round.as_ref());
    for site in &round.spec.participants {
        let Some((report, heard)) = context.hub.report(site) else { continue };
        if state.is_none_or(|state| decide::counts(state, site, heard, context.hub.connected(site))) {
            facts.reports.extend(decide::of_round(&report, uid).map(|r| (site.clone(), r.clone())));
        }
    }
    let Some(state) = state else { return Ok(facts) };
    if policy.protocol == Protocol::SecAgg && state.protocol_step.is_some() {
        // After a restart the machine is made from the journal here. What it refuses is a fact about the attempt.
        facts.broken = secure::follow_open(context, round, uid, state).await?;
    }
    if let (Some((step, waiting)), None) = (decide::awaited(state), &facts.broken) {
        facts.done = done(context, uid, state, step, waiting).await?;
    }
    facts.sum = context.sums.outcome(uid, state.attempt);
    Ok(facts)
}

/// Who of those waited for has done the open step.
async fn done(
    context: &Context,
    uid: &str,
    state: &RoundState,
    step: ProtocolStep,
    mut waiting: Vec<SiteName>,
) -> Result<Vec<SiteName>, Error> {
    if state.roster.is_some() {
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
