//! Takes this hospital's steps in attempts of the aggregation protocol, when the hub opens them.
//!
//! The order is what makes it safe to be killed anywhere: the policy is asked once
//! more; what is to be said, the ledger and the memory of it are written as one; the
//! RoundTask shows the act; only then do bytes leave. After a restart the same bytes
//! are sent again. Nothing is trained twice, and nothing is answered in two ways.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use consilium_crds::SitePolicy;
use consilium_federation::assignment::{ItemState, RoundWork, Work};
use consilium_federation::task::TaskKind;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::plan::{TurnKey, outdated, unnamed, wanted};
use super::turn::{Turn, Turner};
use super::{Announce, Backoff, Connection, gone};
use crate::facts::UploadFact;
use crate::state::{AttemptKey, UploadProgress, vector_of};
use crate::{Context, StateError};

/// How long turns have to end between two chunks at shutdown.
const STOP_WITHIN: Duration = Duration::from_secs(5);

/// How long secrets are kept for a round that the hub does not name.
const UNNAMED: Duration = Duration::from_secs(15 * 60);
/// How often that is looked at.
const TIDY: Duration = Duration::from_secs(60);

/// The turns of this hospital; what they hear of, they are told by their caller.
pub(super) struct Turns {
    ctx: Arc<Context>,
    announce: Arc<dyn Announce>,
    running: BTreeMap<TurnKey, Running>,
    pub(super) tasks: JoinSet<(TurnKey, Result<Turn, StateError>)>,
    quiet: BTreeSet<TurnKey>,
    waiting: BTreeSet<TurnKey>,
    retries: BTreeMap<TurnKey, (Backoff, Instant)>,
    /// Since when the hub does not name the rounds of open attempts.
    unnamed: BTreeMap<AttemptKey, Instant>,
    /// Grows with every change of what a turn depends on.
    changes: u64,
    /// The policy that what runs was begun under.
    allowed: Option<Arc<SitePolicy>>,
}

struct Running {
    stop: CancellationToken,
    /// `changes` when it began: what it saw may be out of date by the time it ends.
    began: u64,
}

/// Runs until shutdown. Fails when the volume does, or what it follows ends.
pub(super) async fn run(
    ctx: Arc<Context>,
    mut channel: watch::Receiver<Option<Connection>>,
    announce: Arc<dyn Announce>,
) -> anyhow::Result<()> {
    restore(&ctx)?;
    let (mut desired, mut policy, mut facts) = (ctx.desired.clone(), ctx.policy.clone(), ctx.facts.changed());
    policy.mark_unchanged();
    let mut turns = Turns::new(ctx.clone(), announce);
    turns.tidy()?;
    let mut tidy = tokio::time::interval(TIDY);
    loop {
        let open = channel.borrow_and_update().clone();
        turns.turn(open);
        let retry_at = turns.retry_at();
        let mut followed = Ok(());
        tokio::select! {
            () = ctx.shutdown.cancelled() => break,
            changed = channel.changed() => {
                followed = changed;
                turns.reconnected();
            }
            changed = desired.changed() => {
                followed = changed;
                turns.changed();
                turns.tidy()?;
            }
            _ = tidy.tick() => turns.tidy()?,
            changed = policy.changed() => {
                followed = changed;
                turns.policy(policy.borrow_and_update().clone());
            }
            changed = facts.changed() => {
                followed = changed;
                turns.changed();
            }
            Some(ended) = turns.tasks.join_next() => {
                turns.ended(ended)?;
                turns.tidy()?;
            }
            () = tokio::time::sleep_until(retry_at.unwrap_or_else(Instant::now)), if retry_at.is_some() => {}
        }
        if followed.is_err() {
            break;
        }
    }
    turns.stop();
    let rest = async { while turns.tasks.join_next().await.is_some() {} };
    // What does not stop in time is ended like a kill would, and resumed like after one.
    let _ = tokio::time::timeout(STOP_WITHIN, rest).await;
    gone(&ctx, "what turns follow")
}

/// Shows what is known from before the restart, until the hub has been asked.
pub(super) fn restore(ctx: &Context) -> Result<(), StateError> {
    let desired = ctx.desired.borrow().clone();
    for item in &desired.items {
        for kind in [TaskKind::Train, TaskKind::Evaluate] {
            let record = ctx.state.upload(&vector_of(&item.uid, kind))?;
            let fact = match record.map(|record| record.progress) {
                Some(UploadProgress::Complete) => Some(UploadFact::Submitted),
                Some(UploadProgress::Rejected(why)) => Some(UploadFact::Rejected(why)),
                Some(UploadProgress::Begun(_)) | None => None,
            };
            ctx.facts.set_upload(&item.uid, kind, fact);
        }
    }
    Ok(())
}

impl Turns {
    pub(super) fn new(ctx: Arc<Context>, announce: Arc<dyn Announce>) -> Self {
        Self {
            allowed: ctx.site_policy(),
            ctx,
            announce,
            running: BTreeMap::new(),
            tasks: JoinSet::new(),
            quiet: BTreeSet::new(),
            waiting: BTreeSet::new(),
            retries: BTreeMap::new(),
            unnamed: BTreeMap::new(),
            changes: 0,
        }
    }

    /// Has what runs end between two chunks.
    fn stop(&self) {
        self.running.values().for_each(|running| running.stop.cancel());
    }

    /// There is another connection: what was settled or put off by the last one is asked for anew.
    pub(super) fn reconnected(&mut self) {
        self.quiet.clear();
        self.retries.clear();
    }

    /// The policy was written.
    pub(super) fn policy(&mut self, policy: Option<Arc<SitePolicy>>) {
        let before = std::mem::replace(&mut self.allowed, policy);
        if before.as_deref().map(|policy| &policy.spec) != self.allowed.as_deref().map(|policy| &policy.spec) {
            // What may still be done is taken up again by the next look, and what may not is not.
            self.stop();
        }
        self.changed();
    }

    /// Something that a turn depends on is different now.
    pub(super) fn changed(&mut self) {
        self.changes += 1;
        self.waiting.clear();
    }

    /// Gives up attempts that the hub does not hold open any more. What was refused in one of them is no refusal of
    /// the next.
    pub(super) fn tidy(&mut self) -> Result<(), StateError> {
        let (state, desired) = (&self.ctx.state, self.ctx.desired.borrow().clone());
        let open = state.open_attempts()?;
        let now = Instant::now();
        self.unnamed.retain(|key, _| open.contains(key) && unnamed(key, &desired));
        for key in open {
            // A turn of it ends first, or it would miss what is wiped; this is looked at again then.
            if self.running.keys().any(|running| running.attempt == key) {
                continue;
            }
            let silent = unnamed(&key, &desired) && *self.unnamed.entry(key.clone()).or_insert(now) + UNNAMED <= now;
            let silent = silent.then_some("the hub has not named the round for a quarter of an hour");
            if let Some(why) = outdated(&key, &desired).or(silent)
                && state.burn_attempt(&key, why, self.ctx.now())?
            {
                tracing::info!(round = key.round_uid, attempt = key.attempt, why, "the attempt is given up");
            }
        }
        if self.running.is_empty() {
            state.sweep_masked()?;
        }
        for item in desired.items.iter().filter(|item| item.state == ItemState::Active) {
            let Work::Round(work) = &item.work else { continue };
            let refused = matches!(self.ctx.facts.upload(&item.uid, work.kind), Some(UploadFact::Rejected(_)));
            if refused {
                let record = state.upload(&vector_of(&item.uid, work.kind))?;
                let open = work.step.is_some() && record.is_some_and(|record| record.attempt == work.attempt);
                if !open {
                    self.ctx.facts.set_upload(&item.uid, work.kind, None);
                }
            }
        }
        Ok(())
    }

    /// When the next one that failed is due.
    fn retry_at(&self) -> Option<Instant> {
        let idle = self.retries.iter().filter(|(key, _)| !self.running.contains_key(key));
        idle.map(|(_, (_, at))| *at).min()
    }

    /// Stops what is no longer asked for and starts what is; one step of a round at a time.
    pub(super) fn turn(&mut self, channel: Option<Connection>) {
        let desired = self.ctx.desired.borrow().clone();
        let asked: Vec<(TurnKey, &RoundWork)> = desired.items.iter().filter_map(wanted).collect();
        let keys: BTreeSet<&TurnKey> = asked.iter().map(|(key, _)| key).collect();
        self.running.iter().filter(|(key, _)| !keys.contains(key)).for_each(|(_, running)| running.stop.cancel());
        self.retries.retain(|key, _| keys.contains(key));
        self.quiet.retain(|key| keys.contains(key));
        self.waiting.retain(|key| keys.contains(key));
        let Some(channel) = channel else { return };
        let now = Instant::now();
        for (key, work) in asked {
            let later = self.retries.get(&key).is_some_and(|(_, at)| *at > now);
            let busy = self.running.keys().any(|running| running.attempt.round_uid == key.attempt.round_uid);
            if later || busy || self.quiet.contains(&key) || self.waiting.contains(&key) {
                continue;
            }
            let stop = self.ctx.shutdown.child_token();
            self.running.insert(key.clone(), Running { stop: stop.clone(), began: self.changes });
            let turn =
                Turner { ctx: self.ctx.clone(), announce: self.announce.clone(), channel: channel.clone(), stop };
            let work = work.clone();
            self.tasks.spawn(async move {
                let outcome = turn.run(&key, &work).await;
                (key, outcome)
            });
        }
    }

    pub(super) fn ended(
        &mut self,
        ended: Result<(TurnKey, Result<Turn, StateError>), tokio::task::JoinError>,
    ) -> anyhow::Result<()> {
        let (key, turn) = ended?;
        let began = self.running.remove(&key).map(|running| running.began);
        let (round, attempt, step) = (&key.attempt.round_uid, key.attempt.attempt, key.step);
        match turn? {
            Turn::Settled => {
                self.retries.remove(&key);
                self.quiet.insert(key);
            }
            Turn::Waiting(why) => {
                tracing::info!(round, attempt, ?step, why, "nothing is sent for now");
                self.retries.remove(&key);
                if began == Some(self.changes) {
                    self.waiting.insert(key);
                }
            }
            Turn::Stopped => {}
            Turn::Retry(why) => {
                let (backoff, at) =
                    self.retries.entry(key.clone()).or_insert_with(|| (Backoff::default(), Instant::now()));
                let wait = backoff.wait(self.ctx.entropy.fraction());
                *at = Instant::now() + wait;
                let wait_ms = wait.as_millis() as u64;
                tracing::warn!(round, attempt, ?step, why, wait_ms, "the step is tried again");
            }
        }
        Ok(())
    }
}
