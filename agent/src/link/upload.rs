//! Sends what the hospital trained, when the hub opens the upload step of an attempt.
//!
//! The order is what makes it safe to be killed anywhere: the policy is asked once
//! more; the ledger and the record are written as one; the RoundTask shows the act;
//! only then do bytes leave. After a restart the hub is asked what it lacks, and
//! the stored bytes of that are sent again. Nothing is trained twice.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use consilium_crds::round_task::Irreversible;
use consilium_federation::assignment::RoundWork;
use consilium_federation::round::ProtocolStep;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

use super::send::{Sender, Sent};
use super::upload_plan::{UploadKey, mismatch, rolled_back, wanted};
use super::{Answer, Backoff};
use crate::facts::UploadFact;
use crate::policy::{Barrier, Decision};
use crate::state::{Entry, StoredUpdate, UploadProgress};
use crate::{Context, StateError};

/// The hospital's own record of an act that cannot be taken back: `RoundTask.status.irreversible`.
pub trait Announce: Send + Sync {
    /// What the RoundTask remembers.
    fn recall<'a>(&'a self, task: &'a str) -> Answer<'a, Result<Option<Irreversible>, AnnounceError>>;
    /// Writes it, before the act.
    fn announce<'a>(&'a self, task: &'a str, act: &'a Irreversible) -> Answer<'a, Result<(), AnnounceError>>;
}

/// The act could not be shown, so it does not happen now.
#[derive(Debug, thiserror::Error)]
pub enum AnnounceError {
    /// Someone deleted the task, which stops it.
    #[error("RoundTask {0} does not exist (any more), so nothing is sent for it")]
    Gone(String),
    /// The API server.
    #[error("RoundTask {task} cannot be read or written: {why}; it is tried again")]
    Api {
        /// Which one.
        task: String,
        /// What the API server said.
        why: String,
    },
}

/// How long uploads have to end between two chunks at shutdown.
const STOP_WITHIN: Duration = Duration::from_secs(5);

/// How one turn of an upload ended.
enum Turn {
    /// The hub holds all of it, or has refused it: nothing to do while this connection lasts.
    Settled,
    /// Nothing to do until something changes.
    Waiting(String),
    /// Try again after a while.
    Retry(String),
    /// It was no longer asked for.
    Stopped,
}

struct Uploads {
    ctx: Arc<Context>,
    announce: Arc<dyn Announce>,
    running: HashMap<UploadKey, Running>,
    tasks: JoinSet<(UploadKey, Result<Turn, StateError>)>,
    quiet: HashSet<UploadKey>,
    waiting: HashSet<UploadKey>,
    retries: HashMap<UploadKey, (Backoff, Instant)>,
    /// Grows with every change of what a turn depends on.
    changes: u64,
}

struct Running {
    stop: CancellationToken,
    /// `changes` when it began: what it saw may be out of date by the time it ends.
    began: u64,
}

/// Runs until shutdown. Fails only when the volume does.
pub(super) async fn run(
    ctx: Arc<Context>,
    mut channel: watch::Receiver<Option<Channel>>,
    announce: Arc<dyn Announce>,
) -> anyhow::Result<()> {
    restore(&ctx)?;
    let (mut desired, mut policy, mut facts) = (ctx.desired.clone(), ctx.policy.clone(), ctx.facts.changed());
    let mut uploads = Uploads {
        ctx: ctx.clone(),
        announce,
        running: HashMap::new(),
        tasks: JoinSet::new(),
        quiet: HashSet::new(),
        waiting: HashSet::new(),
        retries: HashMap::new(),
        changes: 0,
    };
    loop {
        let open = channel.borrow_and_update().clone();
        uploads.turn(open);
        let retry_at = uploads.retry_at();
        tokio::select! {
            () = ctx.shutdown.cancelled() => {
                uploads.running.values().for_each(|running| running.stop.cancel());
                let rest = async { while uploads.tasks.join_next().await.is_some() {} };
                // What does not stop in time is ended like a kill would, and resumed like after one.
                let _ = tokio::time::timeout(STOP_WITHIN, rest).await;
                return Ok(());
            }
            _ = channel.changed() => {
                uploads.quiet.clear();
                uploads.retries.clear();
            }
            _ = desired.changed() => uploads.changed(),
            _ = policy.changed() => uploads.changed(),
            _ = facts.changed() => uploads.changed(),
            Some(ended) = uploads.tasks.join_next() => uploads.ended(ended)?,
            () = tokio::time::sleep_until(retry_at.unwrap_or_else(Instant::now)), if retry_at.is_some() => {}
        }
    }
}

/// Shows what is known from before the restart, until the hub has been asked.
fn restore(ctx: &Context) -> Result<(), StateError> {
    for update in ctx.state.updates()? {
        let fact = match ctx.state.upload(&update.round_uid)?.map(|record| record.progress) {
            Some(UploadProgress::Complete) => Some(UploadFact::Submitted),
            Some(UploadProgress::Rejected(why)) => Some(UploadFact::Rejected(why)),
            Some(UploadProgress::Begun(_)) | None => None,
        };
        ctx.facts.set_upload(&update.round_uid, fact);
    }
    Ok(())
}

impl Uploads {
    /// Something that a turn depends on is different now.
    fn changed(&mut self) {
        self.changes += 1;
        self.waiting.clear();
    }

    /// When the next one that failed is due.
    fn retry_at(&self) -> Option<Instant> {
        let idle = self.retries.iter().filter(|(key, _)| !self.running.contains_key(key));
        idle.map(|(_, (_, at))| *at).min()
    }

    /// Stops what is no longer asked for and starts what is.
    fn turn(&mut self, channel: Option<Channel>) {
        let desired = self.ctx.desired.borrow().clone();
        let asked: Vec<(UploadKey, &RoundWork)> = desired.items.iter().filter_map(wanted).collect();
        let keys: BTreeSet<&UploadKey> = asked.iter().map(|(key, _)| key).collect();
        self.running.iter().filter(|(key, _)| !keys.contains(key)).for_each(|(_, running)| running.stop.cancel());
        self.retries.retain(|key, _| keys.contains(key));
        self.quiet.retain(|key| keys.contains(key));
        self.waiting.retain(|key| keys.contains(key));
        let Some(channel) = channel else { return };
        let now = Instant::now();
        for (key, work) in asked {
            let later = self.retries.get(&key).is_some_and(|(_, at)| *at > now);
            if later || self.running.contains_key(&key) || self.quiet.contains(&key) || self.waiting.contains(&key) {
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

    fn ended(
        &mut self,
        ended: Result<(UploadKey, Result<Turn, StateError>), tokio::task::JoinError>,
    ) -> anyhow::Result<()> {
        let (key, turn) = ended?;
        let began = self.running.remove(&key).map(|running| running.began);
        match turn? {
            Turn::Settled => {
                self.retries.remove(&key);
                self.quiet.insert(key);
            }
            Turn::Waiting(why) => {
                tracing::info!(round = key.round_uid, attempt = key.attempt, why, "nothing is uploaded for now");
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
                tracing::warn!(
                    round = key.round_uid,
                    attempt = key.attempt,
                    why,
                    wait_ms = wait.as_millis() as u64,
                    "the upload is tried again"
                );
            }
        }
        Ok(())
    }
}

/// One turn of one upload.
struct Turner {
    ctx: Arc<Context>,
    announce: Arc<dyn Announce>,
    channel: Channel,
    stop: CancellationToken,
}

impl Turner {
    async fn run(&self, key: &UploadKey, work: &RoundWork) -> Result<Turn, StateError> {
        let state = &self.ctx.state;
        let Some(update) = state.update(&key.round_uid)? else {
            return Ok(Turn::Waiting("there is no update yet".into()));
        };
        if state.is_burned(&key.round_uid, key.attempt)? {
            return Ok(Turn::Waiting("the attempt was burned; the hub opens another one".into()));
        }
        let record = state.upload(&key.round_uid)?.filter(|record| record.attempt == key.attempt);
        let begun = match record.map(|record| record.progress) {
            Some(UploadProgress::Rejected(why)) => {
                self.ctx.facts.set_upload(&key.round_uid, Some(UploadFact::Rejected(why)));
                return Ok(Turn::Settled);
            }
            Some(UploadProgress::Begun(head)) => Some(head),
            // The hub still asks: it is told once more in each connection what it already has.
            Some(UploadProgress::Complete) => return self.send(key, &update).await,
            None => None,
        };
        self.ctx.facts.set_upload(&key.round_uid, None);
        if let Some(why) = mismatch(work, &update) {
            return self.reject(key, why, Sent::default());
        }
        if let Some(turn) = self.barrier(key, work).await? {
            return Ok(turn);
        }
        let before = match self.announce.recall(&update.meta.task_name).await {
            Ok(before) => before,
            Err(error) => return Ok(Turn::Retry(error.to_string())),
        };
        let known = before.as_ref().map(|act| state.had_head(act.ledger_head)).transpose()?.unwrap_or(true);
        if let Some(why) = rolled_back(before.as_ref(), known) {
            state.burn(&key.round_uid, key.attempt)?;
            return Ok(Turn::Waiting(why));
        }
        let ledger_head = match begun {
            Some(head) => head,
            None => self.begin(key, &update)?,
        };
        let act = Irreversible { attempt: key.attempt, step: step_name(ProtocolStep::Upload), ledger_head };
        if before.as_ref() != Some(&act)
            && let Err(error) = self.announce.announce(&update.meta.task_name, &act).await
        {
            return Ok(Turn::Retry(error.to_string()));
        }
        self.send(key, &update).await
    }

    /// The policy's last word before the point of no return.
    async fn barrier(&self, key: &UploadKey, work: &RoundWork) -> Result<Option<Turn>, StateError> {
        let spec = match self.ctx.objects.study_spec(work.spec_digest).await {
            Ok(spec) => spec,
            Err(error) if error.is_transient() => return Ok(Some(Turn::Retry(error.to_string()))),
            Err(error) => return Ok(Some(Turn::Waiting(error.to_string()))),
        };
        let decision = self.ctx.judge(&key.round_uid, work, Some(&spec), Barrier::Upload)?;
        Ok(match decision {
            Decision::Allowed => None,
            Decision::SpecNeeded => Some(Turn::Retry("the study's spec is needed".into())),
            Decision::Refused { message, .. } => Some(Turn::Waiting(message)),
        })
    }

    /// Writes the point of no return into the ledger, together with the record that says so.
    fn begin(&self, key: &UploadKey, update: &StoredUpdate) -> Result<consilium_federation::Digest, StateError> {
        let entry = Entry::UploadBegins {
            round_uid: key.round_uid.clone(),
            attempt: key.attempt,
            update: update.digest(),
            chunks: update.chunks.len() as u32,
            bytes: update.bytes,
        };
        self.ctx.state.put_upload(&key.round_uid, key.attempt, UploadProgress::Begun, &entry, self.ctx.now())
    }

    async fn send(&self, key: &UploadKey, update: &StoredUpdate) -> Result<Turn, StateError> {
        let sender = Sender {
            state: &self.ctx.state,
            metrics: &self.ctx.metrics,
            channel: self.channel.clone(),
            stop: &self.stop,
        };
        let (sent, result) = sender.send(key, update).await;
        match result {
            Ok(()) => self.complete(key, sent),
            Err(error) if error.is_final() => self.reject(key, error.to_string(), sent),
            Err(error) => {
                if sent.bytes > 0 {
                    self.ctx.state.append(ended(key, sent, false), self.ctx.now())?;
                }
                self.count("interrupted");
                Ok(if self.stop.is_cancelled() { Turn::Stopped } else { Turn::Retry(error.to_string()) })
            }
        }
    }

    fn complete(&self, key: &UploadKey, sent: Sent) -> Result<Turn, StateError> {
        let known = self.ctx.state.upload(&key.round_uid)?;
        let news =
            known.is_none_or(|r| r.attempt != key.attempt || r.progress != UploadProgress::Complete) || sent.bytes > 0;
        if news {
            let entry = ended(key, sent, true);
            let progress = |_| UploadProgress::Complete;
            self.ctx.state.put_upload(&key.round_uid, key.attempt, progress, &entry, self.ctx.now())?;
            self.count("complete");
            tracing::info!(
                round = key.round_uid,
                attempt = key.attempt,
                bytes = sent.bytes,
                "the update is at the hub"
            );
        }
        self.ctx.facts.set_upload(&key.round_uid, Some(UploadFact::Submitted));
        Ok(Turn::Settled)
    }

    fn reject(&self, key: &UploadKey, why: String, sent: Sent) -> Result<Turn, StateError> {
        tracing::error!(round = key.round_uid, attempt = key.attempt, why, "the update is refused");
        let progress = |_| UploadProgress::Rejected(why.clone());
        let entry = ended(key, sent, false);
        self.ctx.state.put_upload(&key.round_uid, key.attempt, progress, &entry, self.ctx.now())?;
        self.count("rejected");
        self.ctx.facts.set_upload(&key.round_uid, Some(UploadFact::Rejected(why)));
        Ok(Turn::Settled)
    }

    fn count(&self, result: &str) {
        self.ctx.metrics.uploads.with_label_values(&[result]).inc();
    }
}

fn ended(key: &UploadKey, sent: Sent, complete: bool) -> Entry {
    let (round_uid, attempt) = (key.round_uid.clone(), key.attempt);
    Entry::UploadEnded { round_uid, attempt, chunks: sent.chunks, bytes: sent.bytes, complete }
}

fn step_name(step: ProtocolStep) -> String {
    format!("{step:?}")
}
