//! One turn: every part is read, decided, carried out and told, one after the other.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use consilium_crds::site_policy::TASK_DURATION;
use consilium_crds::{FederatedStudySpec, RoundTask};
use consilium_federation::Digest;
use consilium_federation::assignment::{Item, ItemState, RoundWork, Work};
use consilium_federation::round::SiteReason;
use consilium_federation::task::TaskKind;
use jiff::Timestamp;
use kube::ResourceExt as _;

use super::clean::CLEAN;
use super::decide::{Act, Plan, TaskSeen, Verdict, decide};
use super::erase::{self, Spent, Why};
use super::error::ControlError;
use super::observe::{End, TryState};
use super::part::{Part, Stored, say, say_left};
use super::read::{Started, StartedTries, WATCH_LAG, task_name, task_of, tasks_left};
use super::refusals::{PartKey, Refusals};
use super::runner::{Runner, Sight, task_spec};
use super::status::{is_open, report};
use super::{TURN, TaskEntry, in_turn};
use crate::policy::{Barrier, Decision, ends};
use crate::state::{AttemptKey, Entry};
use crate::{Context, Enforcement};

/// What carries this hospital's parts in rounds on.
pub struct Controller {
    ctx: Arc<Context>,
    runner: Arc<dyn Runner>,
    /// Approved specs in use.
    specs: BTreeMap<Digest, Arc<FederatedStudySpec>>,
    started: StartedTries,
    /// Tokens of tries that were started, or are to be, by UID of the task and number.
    tokens: BTreeMap<(String, u32), String>,
    /// What the API server refused.
    refusals: Refusals,
    /// Tries whose end has been counted.
    counted: BTreeSet<String>,
    /// Tasks that were made a moment ago, and when.
    made: BTreeMap<PartKey, Timestamp>,
    /// How many there have been.
    turns: usize,
}

/// What one turn works from.
struct World {
    tasks: Vec<Arc<RoundTask>>,
    sight: Box<dyn Sight>,
    now: Timestamp,
}

impl Controller {
    /// One that has not looked yet.
    pub fn new(ctx: Arc<Context>, runner: Arc<dyn Runner>) -> Self {
        let (specs, started, tokens) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        Self {
            ctx,
            runner,
            specs,
            started,
            tokens,
            refusals: Refusals::default(),
            counted: BTreeSet::new(),
            made: BTreeMap::new(),
            turns: 0,
        }
    }

    /// Looks at everything once. A part that fails does not keep the others waiting.
    pub async fn turn(&mut self) {
        let begun = Instant::now();
        let (desired, now) = (self.ctx.desired.borrow().clone(), self.ctx.now());
        let sight = self.runner.look();
        let world = World { tasks: sight.tasks().to_vec(), sight, now };
        if let Err(error) = self.runner.clean(now).await {
            self.failed(&error, CLEAN);
        }
        if let Err(error) = self.runner.count(now) {
            self.failed(&error, "gpus");
        }
        let mut entries = BTreeMap::new();
        let here = |item: &Item| world.tasks.iter().any(|task| task.spec.round_uid == item.uid);
        let (here, new) = in_turn(&desired.items, here, self.turns);
        let known = here.len();
        self.turns += 1;
        for (n, item) in here.into_iter().chain(new).enumerate() {
            let Work::Round(work) = &item.work else { continue };
            if n >= known && begun.elapsed() > TURN {
                break;
            }
            match self.reconcile(&world, item, work).await {
                Ok(entry) => entries.extend(entry),
                Err(error) => {
                    self.failed(&error, &item.uid);
                    // The task port goes by what was known: a pod must not lose its agent over a slow API server.
                    let known = task_of(&world.tasks, &item.uid, work.kind).and_then(|t| t.uid());
                    entries.extend(known.and_then(|uid| self.ctx.desk.task(&uid).map(|entry| (uid, entry))));
                }
            }
        }
        let assigned = !desired.hub_epoch.is_empty();
        // An attempt that is open is given up before its round is forgotten: the hub may only be between two steps.
        let open = self.ctx.state.open_attempts();
        let of = |keys: &Vec<AttemptKey>, t: &RoundTask| keys.iter().any(|key| key.round_uid == t.spec.round_uid);
        // A volume that cannot be read says nothing of it, so nothing is removed.
        let in_attempt = |t: &RoundTask| open.as_ref().map_or(true, |keys| of(keys, t));
        let hub_time = self.ctx.hub_clock();
        let stray = |t: &&Arc<RoundTask>| {
            is_stray(t, &desired.items, assigned) && hub_time.on_ours(t.spec.deadline) <= now && !in_attempt(t)
        };
        for task in world.tasks.iter().filter(stray) {
            if let Err(error) = self.remove(&task.spec.round_uid, &world).await {
                self.failed(&error, &task.spec.round_uid);
            }
        }
        if let Err(error) = self.erase_unnamed(&world, &desired.items).await {
            self.failed(&error, "retention");
        }
        self.ctx.desk.set_tasks(entries);
        self.tidy(&world, &desired.items);
        let seconds = begun.elapsed().as_secs_f64();
        self.ctx.metrics.reconcile_seconds.with_label_values(&["tasks"]).observe(seconds);
    }

    fn failed(&self, error: &ControlError, uid: &str) {
        tracing::warn!(uid, %error, class = error.class(), "a part could not be reconciled; it is looked at again");
        self.ctx.metrics.reconcile_errors.with_label_values(&["tasks", error.class()]).inc();
    }

    /// One part in one round; the entry for the task port if its task exists.
    async fn reconcile(
        &mut self,
        world: &World,
        item: &Item,
        work: &RoundWork,
    ) -> Result<Option<(String, TaskEntry)>, ControlError> {
        if item.state == ItemState::Cancelled {
            return self.remove(&item.uid, world).await.map(|()| None);
        }
        if erase::known(&self.ctx.state, &item.uid)?.is_some_and(|spent| spent.erased) {
            let message = Some("what was kept for it was erased, as spec.retention of the SitePolicy says".to_owned());
            let verdict = Verdict { reason: SiteReason::Failed, message };
            self.ctx.facts.set_round(report((&item.uid, work.kind), &Decision::Allowed, &verdict, None));
            return Ok(None);
        }
        let part = self.read(world, item, work).await?;
        if self.is_spent(&part, world.now)? {
            self.erase(&item.uid, world).await?;
            return Ok(None);
        }
        let rejected = self.ctx.desk.rejected(&part.task_uid);
        let unprobed = *self.ctx.enforcement.borrow() == Enforcement::Unknown;
        let refused = self.refusals.standing(&part.key(), self.policy_generation(), world.now);
        let plan = decide(&part.inputs(unprobed, (rejected.as_deref(), refused), world.now));
        self.count_ends(work.kind, part.seen.as_ref());
        let plan = self.carry_out(world, &part, plan).await?;
        say_left(&self.ctx, &*self.runner, &part).await?;
        let Some(verdict) = &plan.verdict else { return Ok(None) };
        let just_started = self.started.get(&part.task_uid).copied();
        say(&self.ctx, &*self.runner, &part, verdict, just_started).await?;
        Ok(part.entry(self.ctx.site_policy().as_deref()))
    }

    /// Whether the hospital keeps nothing of this part any longer. From when it counts is on the volume.
    fn is_spent(&self, part: &Part<'_>, now: Timestamp) -> Result<bool, ControlError> {
        let (state, uid) = (&self.ctx.state, part.item.uid.as_str());
        let Some(within) = self.ctx.site_policy().and_then(|policy| policy.spec.erased_within()) else {
            return Ok(false);
        };
        let known = erase::known(state, uid)?;
        let exists = part.task.is_some() || part.stored.is_some() || !part.left.is_empty();
        let unprobed = *self.ctx.enforcement.borrow() == Enforcement::Unknown;
        let why = erase::of(&part.decision, unprobed, part.ends, now).filter(|_| exists);
        let next = erase::next(known, why, now);
        if next != known {
            erase::remember(state, uid, next.as_ref())?;
        }
        Ok(next.is_some_and(|spent| erase::is_due(&spent, within, now)))
    }

    /// Erases what is kept for a round. What the hospital refuses may be allowed again; what is over is made no more.
    async fn erase(&self, uid: &str, world: &World) -> Result<(), ControlError> {
        let state = &self.ctx.state;
        let spent = erase::known(state, uid)?.unwrap_or(Spent { since: world.now, why: Why::Over, erased: false });
        tracing::info!(round = uid, why = spent.why.words(), "what was kept for a round is erased");
        self.remove(uid, world).await?;
        let what = "RoundTask, update, masked chunks and score of a round".to_owned();
        let why = format!("{} since {}", spent.why.words(), spent.since);
        let entry = Entry::Erased { what, uids: vec![uid.to_owned()], why };
        if let Err(error) = state.append(entry.clone(), world.now) {
            tracing::error!(%error, "what was erased could not be written down; it is written later");
            self.ctx.unrecorded.push(entry, world.now);
        }
        let after = Spent { erased: true, ..spent };
        Ok(erase::remember(state, uid, Some(&after).filter(|after| after.why == Why::Over))?)
    }

    /// What no item leads to any more, and has had its time by the hospital's own limit: a hub that falls silent keeps
    /// nothing here.
    async fn erase_unnamed(&self, world: &World, items: &[Item]) -> Result<(), ControlError> {
        let policy = self.ctx.site_policy();
        let Some(within) = policy.as_ref().and_then(|policy| policy.spec.erased_within()) else { return Ok(()) };
        let longest = policy.as_ref().map_or(TASK_DURATION, |policy| policy.spec.task_duration());
        let over = |since: Timestamp| world.now.duration_since(since) >= longest + within / 2;
        let made = |task: &Arc<RoundTask>| task.creation_timestamp().is_some_and(|at| over(at.0));
        let going = |task: &Arc<RoundTask>| task.metadata.deletion_timestamp.is_some();
        let of_tasks = world.tasks.iter().filter(|task| made(task) && !going(task)).map(|t| t.spec.round_uid.clone());
        let stored = self.ctx.state.stored_rounds()?.into_iter().filter(|(_, since)| over(*since)).map(|(uid, _)| uid);
        let all: BTreeSet<String> = of_tasks.chain(stored).collect();
        for uid in all.iter().filter(|uid| !items.iter().any(|item| item.uid == **uid)) {
            self.erase(uid, world).await?;
        }
        Ok(())
    }

    async fn read<'a>(
        &mut self,
        world: &'a World,
        item: &'a Item,
        work: &'a RoundWork,
    ) -> Result<Part<'a>, ControlError> {
        let task = task_of(&world.tasks, &item.uid, work.kind);
        let task_uid = task.and_then(|t| t.uid()).unwrap_or_default();
        let started = self.started.get(&task_uid).copied();
        let seen = task.map(|t| world.sight.see(t, started, world.now));
        let left: Vec<&RoundTask> = tasks_left(&world.tasks, &item.uid, work.kind).collect();
        let others = left.iter().flat_map(|t| world.sight.see(t, None, world.now).tries).collect();
        let stored = self.stored(&item.uid, work.kind)?;
        let exists = task.is_some() || stored.is_some();
        let (mut decision, spec) = self.judge(&item.uid, work, exists).await?;
        if decision == Decision::Allowed && !exists {
            let running = (self.running(world, None), self.running(world, Some(TaskKind::Evaluate)));
            decision = self.ctx.judge_amount(&item.uid, work, running)?;
        }
        let since = task.and_then(|t| t.creation_timestamp()).map(|at| at.0);
        let deadline = self.ctx.hub_clock().on_ours(work.deadline);
        let ends = ends(deadline, since, self.ctx.site_policy().as_deref().map(|p| &p.spec));
        Ok(Part { item, work, task, task_uid, seen, left, others, stored, decision, spec, ends })
    }

    /// The hospital's word now. The spec is fetched only once every rung that needs none has passed.
    async fn judge(
        &mut self,
        uid: &str,
        work: &RoundWork,
        exists: bool,
    ) -> Result<(Decision, Option<Arc<FederatedStudySpec>>), ControlError> {
        let barrier = if exists { Barrier::Fetch } else { Barrier::CreateTask };
        let known = self.specs.get(&work.spec_digest).cloned();
        let decision = self.ctx.judge(uid, work, known.as_deref(), barrier)?;
        if decision != Decision::SpecNeeded {
            return Ok((decision, known));
        }
        match self.ctx.objects.study_spec(work.spec_digest).await {
            Ok(spec) => {
                self.specs.insert(work.spec_digest, Arc::clone(&spec));
                Ok((self.ctx.judge(uid, work, Some(&spec), barrier)?, Some(spec)))
            }
            Err(error) if error.is_transient() => {
                tracing::warn!(study = %work.study, %error, "the study's spec is not at hand");
                Ok((decision, None))
            }
            // Its digest is the approved one, and this agent does not understand all of it.
            Err(error) => Ok((self.ctx.not_understood(uid, work, barrier, &error.to_string())?, None)),
        }
    }

    /// Tasks that are under way, of one kind or of all, those included that were just made and are in no watch yet.
    fn running(&self, world: &World, only: Option<TaskKind>) -> u32 {
        let counts = |kind: TaskKind| only.is_none_or(|only| only == kind);
        let open = world.tasks.iter().filter(|task| counts(task.spec.kind) && is_open(task.status.as_ref()));
        let here = |(uid, kind): &PartKey| task_of(&world.tasks, uid, *kind).is_some();
        let made = self.made.keys().filter(|key| counts(key.1) && !here(key)).count();
        u32::try_from(open.count() + made).unwrap_or(u32::MAX)
    }

    fn stored(&self, round_uid: &str, kind: TaskKind) -> Result<Option<Stored>, ControlError> {
        Ok(match kind {
            TaskKind::Evaluate => self.ctx.state.score(round_uid)?.map(|s| Stored { at: s.delivered, update: None }),
            TaskKind::Train | TaskKind::Init => {
                self.ctx.state.update(round_uid)?.map(|u| Stored { at: u.meta.delivered, update: Some(u.digest()) })
            }
        })
    }

    /// Does what the plan says. What the API server refuses is the hospital's word, and changes the plan.
    async fn carry_out(&mut self, world: &World, part: &Part<'_>, plan: Plan) -> Result<Plan, ControlError> {
        let (key, uid) = (part.key(), part.item.uid.as_str());
        match self.apply(world, part, &plan).await {
            Err(error @ ControlError::Refused { .. }) => {
                self.failed(&error, uid);
                let why = format!("{error}; it is asked again every minute, and when the SitePolicy changes");
                self.ctx.admitted(uid, part.work, Some(&why))?;
                self.refusals.note(key, why.clone(), self.policy_generation(), world.now);
                Ok(plan.refused(&why))
            }
            Err(error) => Err(error),
            Ok(()) => {
                if plan.makes() && self.refusals.lift(&key) {
                    self.ctx.admitted(uid, part.work, None)?;
                }
                Ok(plan)
            }
        }
    }

    fn policy_generation(&self) -> Option<i64> {
        self.ctx.site_policy().and_then(|policy| policy.metadata.generation)
    }

    async fn apply(&mut self, world: &World, part: &Part<'_>, plan: &Plan) -> Result<(), ControlError> {
        let round = &part.item.uid;
        for act in &plan.acts {
            match (act, part.task, &part.spec) {
                (Act::CreateTask, _, Some(spec)) => {
                    // The approval is used up before anything begins by it.
                    self.ctx.state.take(round, part.work, world.now)?;
                    self.made.insert(part.key(), world.now);
                    let name = task_name(part.work, round, &world.tasks);
                    self.runner.create_task(&name, task_spec(round, part.work, spec)).await?;
                }
                (Act::StartTry { number, mode }, Some(task), Some(spec)) => {
                    let token = self.tokens.entry((part.task_uid.clone(), *number));
                    let token = token.or_insert_with(|| hex::encode(self.ctx.entropy.bytes32()));
                    self.runner.start_try(task, spec, (*number, *mode), token).await?;
                    let started = Started { number: *number, mode: *mode, at: world.now };
                    self.started.insert(part.task_uid.clone(), started);
                }
                (Act::StopTry { job }, _, _) => self.runner.stop_try(job).await?,
                (Act::DeleteTask | Act::Forget, _, _) => self.remove(round, world).await?,
                // Only an allowed part is created or started, and what is allowed has its spec.
                (Act::CreateTask | Act::StartTry { .. }, _, _) => {}
            }
        }
        Ok(())
    }

    /// Removes every task of a round and what is stored for it, and falls silent about it.
    async fn remove(&self, round_uid: &str, world: &World) -> Result<(), ControlError> {
        let mut uids = Vec::new();
        for task in world.tasks.iter().filter(|t| t.spec.round_uid == round_uid) {
            if task.metadata.deletion_timestamp.is_none() {
                self.runner.delete_task(&task.name_any()).await?;
            }
            uids.extend(task.uid());
        }
        self.forget(round_uid, uids).await
    }

    /// Drops what is stored for a round, and then its facts: the hub takes their absence as done.
    async fn forget(&self, round_uid: &str, tasks: Vec<String>) -> Result<(), ControlError> {
        let (state, round) = (self.ctx.state.clone(), round_uid.to_owned());
        tokio::task::spawn_blocking(move || {
            // A tombstone is looked at many times; what is gone need not be removed again.
            if state.holds(&round)? {
                state.delete_update(&round)?;
                state.delete_score(&round)?;
                // Last: as long as anything is left, it belongs to this round.
                state.forget_round(&round)?;
            }
            tasks.iter().try_for_each(|uid| state.delete_tokens(uid))
        })
        .await??;
        for kind in [TaskKind::Train, TaskKind::Evaluate] {
            self.ctx.facts.drop_round(round_uid, kind);
        }
        Ok(())
    }

    fn count_ends(&mut self, kind: TaskKind, seen: Option<&TaskSeen>) {
        for one in seen.iter().flat_map(|s| &s.tries) {
            let TryState::Ended(end) = &one.state else { continue };
            if self.counted.insert(one.job.clone()) {
                self.ctx.metrics.tries.with_label_values(&[kind.as_str(), end_label(end)]).inc();
            }
        }
    }

    /// Forgets what belongs to tasks and items that are gone.
    fn tidy(&mut self, world: &World, items: &[Item]) {
        let uids: BTreeSet<String> = world.tasks.iter().filter_map(|t| t.uid()).collect();
        self.started.retain(|uid, _| uids.contains(uid));
        self.made.retain(|_, at| world.now.duration_since(*at) < WATCH_LAG);
        self.tokens.retain(|(uid, _), _| uids.contains(uid));
        self.refusals.retain(|(uid, _)| items.iter().any(|item| item.uid == *uid));
        let wanted =
            |digest: &Digest| items.iter().any(|i| matches!(&i.work, Work::Round(work) if work.spec_digest == *digest));
        self.specs.retain(|digest, _| wanted(digest));
        let rounds = world.tasks.iter().map(|task| task.spec.round_uid.as_str());
        // Also what came while this turn went on: its facts may be there already.
        let newest = self.ctx.desired.borrow().clone();
        let asked = items.iter().chain(&newest.items).map(|item| item.uid.as_str());
        let known: BTreeSet<&str> = asked.chain(rounds).collect();
        self.ctx.facts.retain_rounds(|uid| known.contains(uid));
        if let Err(error) = erase::retain(&self.ctx.state, |uid| known.contains(uid)) {
            self.failed(&error.into(), "retention");
        }
        self.counted.retain(|job| world.sight.has_try(job));
    }
}

fn end_label(end: &End) -> &'static str {
    match end {
        End::Invalid(_) => "Invalid",
        End::OutOfMemory(_) => "OutOfMemory",
        End::Complete => "Delivered",
        End::Undelivered => "Undelivered",
        End::NoResult => "NoResult",
        End::Deadline => "Deadline",
        End::Lost(_) => "Lost",
        End::Failed(_) => "Failed",
    }
}

/// A task that the hub no longer mentions. Without an assignment nothing is judged by absence.
fn is_stray(task: &RoundTask, items: &[Item], assigned: bool) -> bool {
    let of_round = |item: &Item| matches!(item.work, Work::Round(_)) && item.uid == task.spec.round_uid;
    let mentioned = items.iter().any(of_round);
    assigned && !mentioned && task.metadata.deletion_timestamp.is_none()
}
