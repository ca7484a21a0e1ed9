//! The bytes of one upload: what the hub lacks, a few chunks at a time.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use bytes::Bytes;
use consilium_proto::CHUNKS_IN_FLIGHT;
use consilium_proto::v1::{BeginUploadRequest, PutChunkRequest, PutMessageRequest};
use consilium_secagg::ids::Digest;
use futures::{StreamExt as _, TryStreamExt as _};
use tokio_util::sync::CancellationToken;

use super::Connection;
use super::plan::{TurnKey, is_final};
use crate::Metrics;
use crate::state::{AttemptKey, State, StateError};

/// What has left.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Sent {
    /// Chunks.
    pub chunks: u32,
    /// Their bytes.
    pub bytes: u64,
}

#[derive(Debug, thiserror::Error)]
pub(super) enum SendError {
    #[error("the hub answered {:?}: {}", .0.code(), .0.message())]
    Hub(Box<tonic::Status>),
    #[error(transparent)]
    State(#[from] StateError),
    #[error("the hub asks for chunk {index} of an update that has {chunks}")]
    NoSuchChunk { index: u32, chunks: usize },
    #[error("the hub did not say that the upload is complete")]
    Unfinished,
    #[error("it was stopped")]
    Stopped,
}

impl SendError {
    /// Trying again would end the same way.
    pub fn is_final(&self) -> bool {
        match self {
            Self::Hub(status) => is_final(status.code()),
            Self::State(StateError::Chunk { .. }) | Self::NoSuchChunk { .. } => true,
            Self::State(_) | Self::Unfinished | Self::Stopped => false,
        }
    }
}

impl From<tonic::Status> for SendError {
    fn from(status: tonic::Status) -> Self {
        Self::Hub(Box::new(status))
    }
}

/// What is uploaded.
pub(super) struct Upload<'a> {
    /// In which attempt.
    pub key: &'a AttemptKey,
    /// BLAKE3 digests of the chunks that leave.
    pub chunks: &'a [Digest],
    /// The signed manifest over masked chunks; without one the stored vector leaves as it is.
    pub manifest: Option<Bytes>,
    /// Name of the stored vector.
    pub vector: &'a str,
}

/// Sends a message of the protocol; it is durable at the hub when this returns.
pub(super) async fn put_message(channel: &Connection, key: &TurnKey, content: Bytes) -> Result<(), tonic::Status> {
    let (round_uid, attempt) = (key.attempt.round_uid.clone(), key.attempt.attempt);
    channel.put_message(PutMessageRequest { round_uid, attempt, step: key.step_name(), content }).await.map(drop)
}

/// Sends one upload.
pub(super) struct Sender<'a> {
    pub state: &'a State,
    pub metrics: &'a Metrics,
    pub channel: Connection,
    pub stop: &'a CancellationToken,
}

impl Sender<'_> {
    /// Asks what the hub lacks and sends that. Tells what left, also when it fails.
    pub async fn send(&self, upload: &Upload<'_>) -> (Sent, Result<(), SendError>) {
        let (chunks, bytes) = (AtomicU32::new(0), AtomicU64::new(0));
        let count = |size: u64| {
            chunks.fetch_add(1, Ordering::Relaxed);
            bytes.fetch_add(size, Ordering::Relaxed);
            self.metrics.upload_bytes.inc_by(size);
        };
        let result = self.missing(upload, &count).await;
        (Sent { chunks: chunks.into_inner(), bytes: bytes.into_inner() }, result)
    }

    async fn missing(&self, upload: &Upload<'_>, count: &(dyn Fn(u64) + Sync)) -> Result<(), SendError> {
        let begin = BeginUploadRequest {
            round_uid: upload.key.round_uid.clone(),
            attempt: upload.key.attempt,
            chunks: upload.chunks.iter().map(|chunk| Bytes::copy_from_slice(&chunk.0)).collect(),
            manifest: upload.manifest.clone().unwrap_or_default(),
        };
        let missing = self.channel.begin_upload(begin).await?.missing;
        if missing.is_empty() {
            return Ok(());
        }
        let complete = AtomicBool::new(false);
        futures::stream::iter(missing)
            .map(|index| self.chunk(upload, index, &complete, count))
            .buffer_unordered(CHUNKS_IN_FLIGHT)
            .try_collect::<()>()
            .await?;
        if complete.into_inner() { Ok(()) } else { Err(SendError::Unfinished) }
    }

    async fn chunk(
        &self,
        upload: &Upload<'_>,
        index: u32,
        complete: &AtomicBool,
        count: &(dyn Fn(u64) + Sync),
    ) -> Result<(), SendError> {
        if self.stop.is_cancelled() {
            return Err(SendError::Stopped);
        }
        let Some(digest) = upload.chunks.get(index as usize).copied() else {
            return Err(SendError::NoSuchChunk { index, chunks: upload.chunks.len() });
        };
        let (state, key, vector) = (self.state.clone(), upload.key.clone(), upload.vector.to_owned());
        let masked = upload.manifest.is_some();
        let read = tokio::task::spawn_blocking(move || match masked {
            true => state.masked_chunk(&key, index, digest),
            false => state.update_chunk(&vector, index),
        })
        .await;
        let content = read.map_err(|_| SendError::Stopped)??;
        let size = content.len() as u64;
        // Counted before it leaves: the ledger rather says too much than too little.
        count(size);
        let (round_uid, attempt) = (upload.key.round_uid.clone(), upload.key.attempt);
        if self.channel.put_chunk(PutChunkRequest { round_uid, attempt, index, content }).await?.complete {
            complete.store(true, Ordering::Relaxed);
        }
        Ok(())
    }
}
