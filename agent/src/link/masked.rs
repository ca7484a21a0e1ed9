//! A turn with masks: prepares what a step is checked against, runs it in its transaction, shows it, sends it.

use std::num::NonZeroUsize;
use std::sync::Arc;

use bytes::Bytes;
use consilium_crds::FederatedStudySpec;
use consilium_crds::roster::site_id;
use consilium_federation::round::ProtocolStep;
use consilium_secagg::ids::Digest as ChunkDigest;
use consilium_secagg::upload::Masker;
use futures::{StreamExt as _, TryStreamExt as _};

use super::AnnounceError;
use super::plan::{attempt_spec, is_final};
use super::send::{Upload, put_message};
use super::steps::{self, Ask, Masking};
use super::turn::{Asked, Shown, Turn, Turner, upload_begins};
use crate::policy;
use crate::state::{Done, Memory, Refused, StateError};

/// Chunks that are masked at a time: enough for all cores of a node, and 32 MiB of memory at most.
const MASKED_AT_ONCE: usize = 8;

/// What leaves when a step is done.
enum Outgoing {
    Message(Bytes),
    Upload { manifest: Bytes, chunks: Vec<ChunkDigest> },
}

/// What a step came to.
enum Acted {
    Done(Done<Outgoing>),
    Ended(Turn),
}

impl Turner {
    /// A step of an attempt with masks. Always: check, transaction, policy, RoundTask, and then bytes.
    pub(super) async fn masked(&self, asked: &Asked<'_>, spec: &FederatedStudySpec) -> Result<Turn, StateError> {
        let ask = match self.ask(asked, spec).await? {
            Ok(ask) => Arc::new(ask),
            Err(turn) => return Ok(turn),
        };
        for _ in 0..super::SHOW_TRIES {
            let recalled = match self.recall(asked).await? {
                Ok(recalled) => recalled,
                Err(turn) => return Ok(turn),
            };
            let done = match self.act(&ask).await? {
                Acted::Done(done) => done,
                Acted::Ended(turn) => return Ok(turn),
            };
            // The policy's word at this moment counts: to mask a large vector takes a while.
            if let Err(turn) = self.allowed(asked.key, asked.work).await? {
                return Ok(turn);
            }
            match self.show(asked, &recalled, done.head).await? {
                Shown::Yes => return self.deliver(asked, done.said).await,
                Shown::Again => {}
                Shown::No(turn) => return Ok(turn),
            }
        }
        Ok(Turn::Retry(AnnounceError::Changed(asked.update.meta.task_name.clone()).to_string()))
    }

    /// Everything that the step is checked against.
    async fn ask(&self, asked: &Asked<'_>, spec: &FederatedStudySpec) -> Result<Result<Ask, Turn>, StateError> {
        let (ctx, work, key) = (&self.ctx, asked.work, asked.key);
        let Some(policy) = ctx.site_policy() else { return Ok(Err(Turn::Waiting("there is no SitePolicy".into()))) };
        let Some(named) = work.roster else {
            return self.refuse(asked, "the hub names no roster for the attempt".into()).map(Err);
        };
        let governance = match policy::governance(&policy.spec) {
            Ok(Some(governance)) => governance,
            Ok(None) => return Ok(Err(Turn::Waiting("no governance is pinned".into()))),
            Err(why) => return Ok(Err(Turn::Waiting(why))),
        };
        let book = ctx.state.rosters(&governance)?;
        let roster = match book.get(&ChunkDigest(*named.as_bytes())) {
            Ok(roster) => roster.clone(),
            Err(error) => return Ok(Err(Turn::Waiting(error.to_string()))),
        };
        let manifest = match ctx.objects.manifest(work.model).await {
            Ok(manifest) => manifest,
            Err(error) => return Ok(Err(Turn::Retry(error.to_string()))),
        };
        let attempt = match attempt_spec(work, spec, &roster, &manifest) {
            Ok(attempt) => attempt,
            Err(why) => return self.refuse(asked, why).map(Err),
        };
        let inputs = match (key.step, work.inputs) {
            (ProtocolStep::Advertise, _) => Bytes::new(),
            (_, None) => return Ok(Err(Turn::Waiting("the hub has not named what the step starts from".into()))),
            (_, Some(digest)) => match ctx.objects.get(digest).await {
                Ok(inputs) => inputs,
                Err(error) => return Ok(Err(Turn::Retry(error.to_string()))),
            },
        };
        Ok(Ok(Ask {
            key: key.clone(),
            vector: asked.vector.to_owned(),
            attempt,
            model: work.model,
            roster,
            site: site_id(&ctx.site),
            site_key: ctx.state.site_key(&ctx.entropy)?,
            floors: policy::floors(&policy.spec),
            rule: policy::difference_rule(&policy.spec),
            hospitals: spec.sites.len(),
            entropy: ctx.entropy.clone(),
            inputs,
            plain: asked.update.chunks.clone(),
            upload_begins: upload_begins(key, asked.update),
        }))
    }

    /// Does the step, durably. Done again it gives the same.
    async fn act(&self, ask: &Arc<Ask>) -> Result<Acted, StateError> {
        if ask.key.step != ProtocolStep::Upload {
            let done = self.transact(ask, steps::message).await?;
            return self.acted(ask, done, |said| Outgoing::Message(said.into()));
        }
        let masker = match self.transact(ask, steps::bind).await? {
            Ok(Done { said: Masking::Due(masker), .. }) => Some(masker),
            Ok(Done { said: Masking::Done, .. }) => None,
            Err(refused) => return self.refused(&ask.key, &refused, false).map(Acted::Ended),
        };
        let chunks = match masker {
            Some(masker) => match self.mask(ask, Arc::new(*masker)).await? {
                Ok(chunks) => Some(chunks),
                Err(turn) => return Ok(Acted::Ended(turn)),
            },
            None => None,
        };
        let done = self.transact(ask, move |ask: &Ask, memory: &mut Memory| {
            let masked = chunks.unwrap_or_else(|| memory.masked.clone());
            steps::finish(ask, memory, &masked).map(|manifest| (manifest, masked))
        });
        let done = done.await?;
        self.acted(ask, done, |(manifest, chunks)| Outgoing::Upload { manifest: manifest.into(), chunks })
    }

    fn acted<T>(
        &self,
        ask: &Ask,
        done: Result<Done<T>, Refused>,
        outgoing: impl FnOnce(T) -> Outgoing,
    ) -> Result<Acted, StateError> {
        match done {
            Ok(Done { said, head }) => Ok(Acted::Done(Done { said: outgoing(said), head })),
            Err(refused) => self.refused(&ask.key, &refused, false).map(Acted::Ended),
        }
    }

    /// One transaction over the attempt's memory, off the threads that serve connections.
    async fn transact<T: Send + 'static>(
        &self,
        ask: &Arc<Ask>,
        step: impl FnOnce(&Ask, &mut Memory) -> Result<T, Refused> + Send + 'static,
    ) -> Result<Result<Done<T>, Refused>, StateError> {
        let (state, ask, now) = (self.ctx.state.clone(), ask.clone(), self.ctx.now());
        let name = ask.key.step_name();
        let work = move || state.in_attempt(&ask.key.attempt, &name, now, |memory| step(&ask, memory));
        on_a_thread(work).await
    }

    /// Masks the stored vector chunk by chunk onto the volume.
    async fn mask(&self, ask: &Arc<Ask>, masker: Arc<Masker>) -> Result<Result<Vec<ChunkDigest>, Turn>, StateError> {
        let masked = match self.mask_all(ask, masker).await {
            Ok(masked) => masked,
            // A full disk, or a round that was removed in between: nothing has left, and the same can be made again.
            Err(error @ StateError::Io { .. }) if self.stop.is_cancelled() => {
                tracing::info!(%error, "the masking was stopped");
                return Ok(Err(Turn::Stopped));
            }
            Err(error @ StateError::Io { .. }) => return Ok(Err(Turn::Retry(error.to_string()))),
            Err(error) => return Err(error),
        };
        let mut digests = Vec::with_capacity(masked.len());
        for chunk in masked {
            match chunk {
                Masked::Stored(digest) => digests.push(digest),
                Masked::Stopped => return Ok(Err(Turn::Stopped)),
                Masked::Refused(refused) => return self.refused(&ask.key, &refused, true).map(Err),
            }
        }
        Ok(Ok(digests))
    }

    async fn mask_all(&self, ask: &Arc<Ask>, masker: Arc<Masker>) -> Result<Vec<Masked>, StateError> {
        let (state, key) = (self.ctx.state.clone(), ask.key.attempt.clone());
        state.begin_masked(&key)?;
        let threads = std::thread::available_parallelism().map_or(1, NonZeroUsize::get).min(MASKED_AT_ONCE);
        let one = |chunk: u32| {
            let (state, ask, masker, stopped) = (state.clone(), ask.clone(), masker.clone(), self.stop.is_cancelled());
            on_a_thread(move || mask_chunk(&state, &ask, &masker, chunk, stopped))
        };
        let chunks = 0..ask.plain.len() as u32;
        let masked = futures::stream::iter(chunks).map(one).buffered(threads).try_collect().await?;
        let finished = state.clone();
        on_a_thread(move || finished.finish_masked(&key)).await?;
        Ok(masked)
    }

    /// Sends what the step came to.
    async fn deliver(&self, asked: &Asked<'_>, outgoing: Outgoing) -> Result<Turn, StateError> {
        let content = match outgoing {
            Outgoing::Upload { manifest, chunks } => {
                let (key, vector) = (&asked.key.attempt, asked.vector);
                return self.send(asked, &Upload { key, chunks: &chunks, manifest: Some(manifest), vector }).await;
            }
            Outgoing::Message(content) => content,
        };
        let put = tokio::select! {
            put = put_message(&self.channel, asked.key, content) => put,
            // The next step does not wait for the answer to this one.
            () = self.stop.cancelled() => return Ok(Turn::Stopped),
        };
        match put {
            Ok(()) => Ok(Turn::Settled),
            Err(status) => {
                let why = format!("the hub answered {:?}: {}", status.code(), status.message());
                match is_final(status.code()) {
                    true => self.refuse(asked, why),
                    // Also when the step is over there: the next assignment says what is due, and until then asking
                    // again costs little.
                    false if self.stop.is_cancelled() => Ok(Turn::Stopped),
                    false => Ok(Turn::Retry(why)),
                }
            }
        }
    }
}

/// What became of one chunk.
enum Masked {
    Stored(ChunkDigest),
    Stopped,
    Refused(Refused),
}

fn mask_chunk(
    state: &crate::State,
    ask: &Ask,
    masker: &Masker,
    chunk: u32,
    stopped: bool,
) -> Result<Masked, StateError> {
    if stopped {
        return Ok(Masked::Stopped);
    }
    let mut bytes = match state.update_chunk(&ask.vector, chunk) {
        Ok(bytes) => Vec::from(bytes),
        // Without the digests: the hub is told, and could try out which small vector has them.
        Err(StateError::Chunk { .. } | StateError::Missing(_)) => {
            return Ok(Masked::Refused(
                ask.refused(format!("chunk {chunk} of what is stored is damaged; it is not sent")),
            ));
        }
        Err(error) => return Err(error),
    };
    match masker.mask(chunk, &mut bytes) {
        Ok(digest) => {
            state.put_masked(&ask.key.attempt, chunk, &bytes)?;
            Ok(Masked::Stored(digest))
        }
        Err(error) => Ok(Masked::Refused(ask.refused(error))),
    }
}

async fn on_a_thread<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StateError> + Send + 'static,
) -> Result<T, StateError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => match error.try_into_panic() {
            // A bug here is a bug there: it must not look like trouble with the volume.
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => std::future::pending().await,
        },
    }
}
