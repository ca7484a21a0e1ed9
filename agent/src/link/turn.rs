//! One turn of one step: checks that hold for every step, and the upload without masks.

use std::sync::Arc;

use consilium_crds::FederatedStudySpec;
use consilium_crds::round_task::Irreversible;
use consilium_federation::Digest;
use consilium_federation::assignment::RoundWork;
use consilium_federation::round::ProtocolStep;
use consilium_federation::task::TaskKind;
use tokio_util::sync::CancellationToken;

use super::plan::{TurnKey, mismatch, rolled_back};
use super::send::{Sender, Sent, Upload};
use super::{Announce, AnnounceError, Connection, Recalled};
use crate::facts::UploadFact;
use crate::policy::{Barrier, Decision};
use crate::state::{Entry, Refused, StoredUpdate, UploadProgress, UploadRecord, vector_of};
use crate::{Context, StateError};

/// How one turn ended.
pub(super) enum Turn {
    /// The hub has it, or has refused it: nothing to do while this connection lasts.
    Settled,
    /// Nothing to do until something changes.
    Waiting(String),
    /// Try again after a while.
    Retry(String),
    /// It was no longer asked for.
    Stopped,
}

/// Takes turns.
pub(super) struct Turner {
    pub ctx: Arc<Context>,
    pub announce: Arc<dyn Announce>,
    pub channel: Connection,
    pub stop: CancellationToken,
}

/// A step that is asked for, with the vector that it is about.
pub(super) struct Asked<'a> {
    pub key: &'a TurnKey,
    pub work: &'a RoundWork,
    /// Name of the stored vector.
    pub vector: &'a str,
    pub update: &'a StoredUpdate,
}

/// Whether an act is in the RoundTask.
pub(super) enum Shown {
    /// It is; bytes may leave.
    Yes,
    /// Someone else wrote the RoundTask: look at it again.
    Again,
    /// It is not.
    No(Turn),
}

impl Turner {
    pub(super) async fn run(&self, key: &TurnKey, work: &RoundWork) -> Result<Turn, StateError> {
        let (state, uid) = (&self.ctx.state, key.attempt.round_uid.as_str());
        let vector = vector_of(uid, key.kind);
        let record = state.upload(&vector)?.filter(|record| record.attempt == key.attempt.attempt);
        if let Some(UploadRecord { progress: UploadProgress::Rejected(why), .. }) = record {
            self.ctx.facts.set_upload(uid, key.kind, Some(UploadFact::Rejected(why)));
            return Ok(Turn::Settled);
        }
        if state.is_burned(uid, key.attempt.attempt)? {
            return Ok(Turn::Waiting("the attempt was burned; the hub opens another one".into()));
        }
        let update = match self.stored(key, &vector)? {
            Ok(update) => update,
            Err(turn) => return Ok(turn),
        };
        if record.is_none() {
            self.ctx.facts.set_upload(uid, key.kind, None);
        }
        let asked = Asked { key, work, vector: &vector, update: &update };
        // Also what is at the hub already is asked for anew, with all checks: what it asks for may be another thing now.
        if let Some(why) = mismatch(work, &update) {
            return self.refuse(&asked, why);
        }
        let spec = match self.allowed(key, work).await? {
            Ok(spec) => spec,
            Err(turn) => return Ok(turn),
        };
        if spec.is_masked() {
            return self.masked(&asked, &spec).await;
        }
        if (key.kind, key.step) != (TaskKind::Train, ProtocolStep::Upload) {
            return Ok(Turn::Waiting("without masks there is no step but the upload of updates".into()));
        }
        self.plain(&asked, record.map(|record| record.progress)).await
    }

    /// The vector that is to be summed.
    fn stored(&self, key: &TurnKey, vector: &str) -> Result<Result<StoredUpdate, Turn>, StateError> {
        let (state, uid) = (&self.ctx.state, &key.attempt.round_uid);
        let scored = key.kind != TaskKind::Evaluate || state.score(uid)?.is_some();
        match state.update(vector)?.filter(|_| scored) {
            Some(update) => Ok(Ok(update)),
            None if key.kind == TaskKind::Evaluate && scored => {
                let why = "there were no cases to evaluate, so this hospital adds nothing to the sum".to_owned();
                Ok(Err(self.refused(key, &self.refusal(key, vector, why), true)?))
            }
            None => Ok(Err(Turn::Waiting("there is no result yet".into()))),
        }
    }

    /// The policy's last word before anything leaves.
    pub(super) async fn allowed(
        &self,
        key: &TurnKey,
        work: &RoundWork,
    ) -> Result<Result<Arc<FederatedStudySpec>, Turn>, StateError> {
        let spec = match self.ctx.objects.study_spec(work.spec_digest).await {
            Ok(spec) => spec,
            Err(error) if error.is_transient() => return Ok(Err(Turn::Retry(error.to_string()))),
            Err(error) => return Ok(Err(Turn::Waiting(error.to_string()))),
        };
        let decision = self.ctx.judge(&key.attempt.round_uid, work, Some(&spec), Barrier::Upload)?;
        Ok(match decision {
            Decision::Allowed => Ok(spec),
            Decision::SpecNeeded => Err(Turn::Retry("the study's spec is needed".into())),
            Decision::Refused { message, .. } => Err(Turn::Waiting(message)),
        })
    }

    /// What the RoundTask remembers, unless the volume is older than that: then everything open is burned.
    pub(super) async fn recall(&self, asked: &Asked<'_>) -> Result<Result<Recalled, Turn>, StateError> {
        let recalled = match self.announce.recall(&asked.update.meta.task_name).await {
            Ok(recalled) => recalled,
            Err(error) => return Ok(Err(Turn::Retry(error.to_string()))),
        };
        let state = &self.ctx.state;
        let known = recalled.act.as_ref().map(|act| state.had_head(act.ledger_head)).transpose()?.unwrap_or(true);
        let Some(why) = rolled_back(recalled.act.as_ref(), known) else { return Ok(Ok(recalled)) };
        let attempt = &asked.key.attempt;
        crate::site::set_back(&self.ctx, self.ctx.site_policy().as_deref(), &why)?;
        state.burn(&attempt.round_uid, attempt.attempt)?;
        tracing::error!(round = attempt.round_uid, why, "the volume was restored or copied");
        Ok(Err(Turn::Waiting(why)))
    }

    /// Shows an act on the RoundTask, over the version that was recalled.
    ///
    /// What is shown only moves forward: an older act is asked for again at the hub's will, and shown in place of a
    /// newer one it would hide from a copy of the volume all that came between.
    pub(super) async fn show(
        &self,
        asked: &Asked<'_>,
        recalled: &Recalled,
        ledger_head: Digest,
    ) -> Result<Shown, StateError> {
        let number = |head| self.ctx.state.head_number(head);
        if let Some(act) = &recalled.act
            && number(act.ledger_head)? >= number(ledger_head)?
        {
            return Ok(Shown::Yes);
        }
        let (attempt, step) = (asked.key.attempt.attempt, asked.key.step_name());
        let act = Irreversible { attempt, step, ledger_head };
        Ok(match self.announce.announce(&asked.update.meta.task_name, &act, &recalled.version).await {
            Ok(()) => Shown::Yes,
            Err(AnnounceError::Changed(_)) => Shown::Again,
            Err(error) => Shown::No(Turn::Retry(error.to_string())),
        })
    }

    /// The upload without masks: the stored chunks as they are.
    async fn plain(&self, asked: &Asked<'_>, progress: Option<UploadProgress>) -> Result<Turn, StateError> {
        let upload =
            Upload { key: &asked.key.attempt, chunks: &asked.update.chunks, manifest: None, vector: asked.vector };
        if progress == Some(UploadProgress::Complete) {
            // The hub still asks: it is told once more in each connection what it already has.
            return self.send(asked, &upload).await;
        }
        let mut begun = match progress {
            Some(UploadProgress::Begun(head)) => Some(head),
            _ => None,
        };
        for _ in 0..super::SHOW_TRIES {
            let recalled = match self.recall(asked).await? {
                Ok(recalled) => recalled,
                Err(turn) => return Ok(turn),
            };
            let head = match begun {
                Some(head) => head,
                None => self.begin(asked)?,
            };
            begun = Some(head);
            match self.show(asked, &recalled, head).await? {
                Shown::Yes => return self.send(asked, &upload).await,
                Shown::Again => {}
                Shown::No(turn) => return Ok(turn),
            }
        }
        Ok(Turn::Retry(AnnounceError::Changed(asked.update.meta.task_name.clone()).to_string()))
    }

    /// Writes the point of no return into the ledger, together with the record that says so.
    fn begin(&self, asked: &Asked<'_>) -> Result<Digest, StateError> {
        let entry = upload_begins(asked.key, asked.update);
        self.ctx.state.put_upload(
            asked.vector,
            asked.key.attempt.attempt,
            UploadProgress::Begun,
            &entry,
            self.ctx.now(),
        )
    }

    /// Sends the chunks that the hub lacks.
    pub(super) async fn send(&self, asked: &Asked<'_>, upload: &Upload<'_>) -> Result<Turn, StateError> {
        let sender = Sender {
            state: &self.ctx.state,
            metrics: &self.ctx.metrics,
            channel: self.channel.clone(),
            stop: &self.stop,
        };
        let (sent, result) = sender.send(upload).await;
        match result {
            Ok(()) => self.complete(asked, sent),
            Err(error) if error.is_final() => {
                self.ctx.state.append(ended(asked.key, sent, false), self.ctx.now())?;
                self.refuse(asked, error.to_string())
            }
            Err(error) => {
                if sent.bytes > 0 {
                    self.ctx.state.append(ended(asked.key, sent, false), self.ctx.now())?;
                }
                self.count("interrupted");
                Ok(if self.stop.is_cancelled() { Turn::Stopped } else { Turn::Retry(error.to_string()) })
            }
        }
    }

    fn complete(&self, asked: &Asked<'_>, sent: Sent) -> Result<Turn, StateError> {
        let (round, attempt) = (&asked.key.attempt.round_uid, asked.key.attempt.attempt);
        let known = self.ctx.state.upload(asked.vector)?;
        let news =
            known.is_none_or(|r| r.attempt != attempt || r.progress != UploadProgress::Complete) || sent.bytes > 0;
        if news {
            let entry = ended(asked.key, sent, true);
            self.ctx.state.put_upload(asked.vector, attempt, |_| UploadProgress::Complete, &entry, self.ctx.now())?;
            self.count("complete");
            tracing::info!(round, attempt, bytes = sent.bytes, "the upload is at the hub");
        }
        self.ctx.facts.set_upload(round, asked.key.kind, Some(UploadFact::Submitted));
        Ok(Turn::Settled)
    }

    fn refusal(&self, key: &TurnKey, vector: &str, why: String) -> Refused {
        Refused { vector: vector.to_owned(), step: key.step_name(), why }
    }

    /// Refuses the step for good: the ledger says why, the attempt is burned, the hub is told.
    pub(super) fn refuse(&self, asked: &Asked<'_>, why: String) -> Result<Turn, StateError> {
        self.refused(asked.key, &self.refusal(asked.key, asked.vector, why), true)
    }

    /// Tells of a refusal; `write` it down, unless that was done.
    pub(super) fn refused(&self, key: &TurnKey, refused: &Refused, write: bool) -> Result<Turn, StateError> {
        let attempt = &key.attempt;
        tracing::error!(
            round = attempt.round_uid,
            attempt = attempt.attempt,
            step = refused.step,
            why = refused.why,
            "refused"
        );
        if write {
            self.ctx.state.refuse(attempt, refused, self.ctx.now())?;
        }
        self.count("rejected");
        let fact = UploadFact::Rejected(refused.why.clone());
        self.ctx.facts.set_upload(&attempt.round_uid, key.kind, Some(fact));
        Ok(Turn::Settled)
    }

    pub(super) fn count(&self, result: &str) {
        self.ctx.metrics.uploads.with_label_values(&[result]).inc();
    }
}

/// The ledger's entry before the first byte of an upload leaves.
pub(super) fn upload_begins(key: &TurnKey, update: &StoredUpdate) -> Entry {
    Entry::UploadBegins {
        round_uid: key.attempt.round_uid.clone(),
        attempt: key.attempt.attempt,
        update: update.digest(),
        chunks: update.chunks.len() as u32,
        bytes: update.bytes,
        manifest: None,
    }
}

fn ended(key: &TurnKey, sent: Sent, complete: bool) -> Entry {
    let (round_uid, attempt) = (key.attempt.round_uid.clone(), key.attempt.attempt);
    Entry::UploadEnded { round_uid, attempt, chunks: sent.chunks, bytes: sent.bytes, complete }
}
