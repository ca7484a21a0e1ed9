//! One part in one round as it was read, and what is said of it.

use std::sync::Arc;

use consilium_crds::{FederatedStudySpec, RoundTask, SitePolicy};
use consilium_federation::Digest;
use consilium_federation::assignment::{Item, RoundWork};
use consilium_federation::report::Evaluation;
use consilium_federation::round::SiteReason;
use consilium_federation::task::TaskKind;
use jiff::Timestamp;
use kube::ResourceExt as _;

use super::TaskEntry;
use super::decide::{Inputs, TaskSeen, Verdict};
use super::error::ControlError;
use super::job::try_name;
use super::observe::TrySeen;
use super::read::Started;
use super::refusals::PartKey;
use super::runner::Runner;
use super::status::{self, StatusInputs, evaluation, report};
use crate::Context;
use crate::facts::UploadFact;
use crate::policy::{Decision, opt_in};
use crate::state::Entry;

/// A result on the volume.
pub(super) struct Stored {
    /// Since when.
    pub(super) at: Timestamp,
    /// Digest of an update.
    pub(super) update: Option<Digest>,
}

/// Everything that is known of one part.
pub(super) struct Part<'a> {
    pub(super) item: &'a Item,
    pub(super) work: &'a RoundWork,
    pub(super) task: Option<&'a RoundTask>,
    /// Empty without a task.
    pub(super) task_uid: String,
    pub(super) seen: Option<TaskSeen>,
    /// The round's tasks of another kind.
    pub(super) left: Vec<&'a RoundTask>,
    /// Their tries.
    pub(super) others: Vec<TrySeen>,
    pub(super) stored: Option<Stored>,
    pub(super) decision: Decision,
    pub(super) spec: Option<Arc<FederatedStudySpec>>,
    /// When its time is over.
    pub(super) ends: Timestamp,
}

impl Part<'_> {
    /// By which it is told from all others.
    pub(super) fn key(&self) -> PartKey {
        (self.item.uid.clone(), self.work.kind)
    }

    /// What the decision depends on.
    pub(super) fn inputs<'b>(
        &'b self,
        unprobed: bool,
        (rejected, refused): (Option<&'b str>, Option<&'b str>),
        now: Timestamp,
    ) -> Inputs<'b> {
        Inputs {
            kind: self.work.kind,
            item: self.item.state,
            deadline: self.ends,
            decision: &self.decision,
            unprobed,
            task: self.seen.as_ref(),
            has_result: self.stored.is_some(),
            rejected,
            others: &self.others,
            refused,
            now,
        }
    }

    /// What the task port needs to know, if the task exists.
    pub(super) fn entry(&self, policy: Option<&SitePolicy>) -> Option<(String, TaskEntry)> {
        let (_, spec) = self.task.zip(self.spec.clone())?;
        let bucket = policy.and_then(|p| opt_in(&p.spec, &self.work.study)).map_or(1, |o| o.weight_bucket);
        let newest = self.seen.as_ref().and_then(|s| s.tries.last());
        let entry = TaskEntry {
            round_uid: self.item.uid.clone(),
            work: self.work.clone(),
            spec,
            weight_bucket: bucket,
            ended_try: newest.filter(|t| t.trainer_ended).map(|t| t.number),
        };
        Some((self.task_uid.clone(), entry))
    }
}

/// Sets the fact for the hub, then the status for the hospital.
pub(super) async fn say(
    ctx: &Context,
    runner: &dyn Runner,
    part: &Part<'_>,
    verdict: &Verdict,
    just_started: Option<Started>,
) -> Result<(), ControlError> {
    let (uid, kind) = (part.item.uid.as_str(), part.work.kind);
    let vote = match (verdict.reason, &part.spec) {
        (SiteReason::Evaluated, Some(spec)) => vote(ctx, uid, part.work, spec)?,
        // A vote that cannot be read again yet must not be taken back.
        (SiteReason::Evaluated, None) => return Ok(()),
        _ => None,
    };
    ctx.facts.set_round(report((uid, kind), &part.decision, verdict, vote));
    let Some(task) = part.task else { return Ok(()) };
    let shown = match ctx.facts.round(uid, kind) {
        Some(fact) if fact.reason != verdict.reason => {
            let message = match ctx.facts.upload(uid, kind) {
                Some(UploadFact::Rejected(why)) => Some(why),
                Some(UploadFact::Submitted) | None => fact.message,
            };
            Verdict { reason: fact.reason, message }
        }
        _ => verdict.clone(),
    };
    let newest = part.seen.as_ref().and_then(|s| s.tries.last()).map(|t| (t.number, t.job.clone()));
    let started = just_started.map(|s| (s.number, try_name(&task.name_any(), s.number)));
    let new = status::status(&StatusInputs {
        old: task.status.as_ref(),
        generation: task.metadata.generation,
        decision: &part.decision,
        verdict: &shown,
        newest: newest.max(started),
        progress: ctx.desk.progress(&part.task_uid),
        delivered: part.stored.as_ref().map(|s| (s.at, s.update)),
        now: ctx.now(),
    });
    runner.status(task, &new).await
}

/// Says in the status of the round's tasks of another kind that the round goes on without them, if they have come to no
/// end.
pub(super) async fn say_left(ctx: &Context, runner: &dyn Runner, part: &Part<'_>) -> Result<(), ControlError> {
    let open = |task: &&&RoundTask| status::is_open(task.status.as_ref());
    for task in part.left.iter().filter(open) {
        let stored = ctx.state.update(&part.item.uid)?.filter(|_| task.spec.kind == TaskKind::Train);
        if stored.is_some() || task.metadata.deletion_timestamp.is_some() {
            continue;
        }
        let why = "the round goes on without this result; what still ran was stopped".to_owned();
        let new = status::status(&StatusInputs {
            old: task.status.as_ref(),
            generation: task.metadata.generation,
            decision: &part.decision,
            verdict: &Verdict { reason: SiteReason::Missed, message: Some(why) },
            newest: None,
            progress: None,
            delivered: None,
            now: ctx.now(),
        });
        runner.status(task, &new).await?;
    }
    Ok(())
}

/// The hospital's vote; the ledger says that it leaves before it does.
fn vote(
    ctx: &Context,
    uid: &str,
    work: &RoundWork,
    spec: &FederatedStudySpec,
) -> Result<Option<Evaluation>, ControlError> {
    let (Some(stored), Some(policy)) = (ctx.state.score(uid)?, ctx.site_policy()) else { return Ok(None) };
    let publish = opt_in(&policy.spec, &work.study).is_some_and(|o| o.publish_metrics);
    // With masks the numbers leave in a sum of all hospitals and nowhere else.
    let sums = policy.spec.aggregation.allow_plaintext_updates && !spec.is_masked();
    let Some(new) = evaluation(&stored.score, spec, sums, publish)? else { return Ok(None) };
    let known = ctx.facts.round(uid, TaskKind::Evaluate).and_then(|fact| fact.evaluation);
    if known.as_ref() != Some(&new) {
        let sent = Entry::EvaluationSent {
            round_uid: uid.to_owned(),
            vote: format!("{:?}", new.vote),
            sums: new.sums.is_some(),
            published: new.published.is_some(),
        };
        ctx.state.append(sent, ctx.now())?;
    }
    Ok(Some(new))
}
