//! The bytes of one upload: what the hub lacks, a few chunks at a time.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use consilium_proto::v1::{BeginUploadRequest, PutChunkRequest};
use futures::{StreamExt as _, TryStreamExt as _};
use tokio_util::sync::CancellationToken;
use tonic::Request;
use tonic::transport::Channel;

use super::upload_plan::{UploadKey, is_final};
use super::{CALL_TIMEOUT, client};
use crate::Metrics;
use crate::state::{State, StateError, StoredUpdate};

/// Chunks on their way at a time: enough to fill a long line, and 16 MiB of memory at most.
const IN_FLIGHT: usize = 4;

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

/// Sends one update.
pub(super) struct Sender<'a> {
    pub state: &'a State,
    pub metrics: &'a Metrics,
    pub channel: Channel,
    pub stop: &'a CancellationToken,
}

impl Sender<'_> {
    /// Asks what the hub lacks and sends that. Tells what left, also when it fails.
    pub async fn send(&self, key: &UploadKey, update: &StoredUpdate) -> (Sent, Result<(), SendError>) {
        let (chunks, bytes) = (AtomicU32::new(0), AtomicU64::new(0));
        let count = |size: u64| {
            chunks.fetch_add(1, Ordering::Relaxed);
            bytes.fetch_add(size, Ordering::Relaxed);
            self.metrics.upload_bytes.inc_by(size);
        };
        let result = self.missing(key, update, &count).await;
        (Sent { chunks: chunks.into_inner(), bytes: bytes.into_inner() }, result)
    }

    async fn missing(
        &self,
        key: &UploadKey,
        update: &StoredUpdate,
        count: &(dyn Fn(u64) + Sync),
    ) -> Result<(), SendError> {
        let mut begin = Request::new(BeginUploadRequest {
            round_uid: key.round_uid.clone(),
            attempt: key.attempt,
            chunks: update.chunks.iter().map(ToString::to_string).collect(),
        });
        begin.set_timeout(CALL_TIMEOUT);
        let missing = client(self.channel.clone()).begin_upload(begin).await?.into_inner().missing;
        if missing.is_empty() {
            return Ok(());
        }
        let complete = AtomicBool::new(false);
        futures::stream::iter(missing)
            .map(|index| self.chunk(key, update, index, &complete, count))
            .buffer_unordered(IN_FLIGHT)
            .try_collect::<()>()
            .await?;
        if complete.into_inner() { Ok(()) } else { Err(SendError::Unfinished) }
    }

    async fn chunk(
        &self,
        key: &UploadKey,
        update: &StoredUpdate,
        index: u32,
        complete: &AtomicBool,
        count: &(dyn Fn(u64) + Sync),
    ) -> Result<(), SendError> {
        if self.stop.is_cancelled() {
            return Err(SendError::Stopped);
        }
        if index as usize >= update.chunks.len() {
            return Err(SendError::NoSuchChunk { index, chunks: update.chunks.len() });
        }
        let (state, round_uid) = (self.state.clone(), key.round_uid.clone());
        let read = tokio::task::spawn_blocking(move || state.update_chunk(&round_uid, index)).await;
        let content = read.map_err(|_| SendError::Stopped)??;
        let size = content.len() as u64;
        // Counted before it leaves: the ledger rather says too much than too little.
        count(size);
        let (round_uid, attempt) = (key.round_uid.clone(), key.attempt);
        let mut put = Request::new(PutChunkRequest { round_uid, attempt, index, content });
        put.set_timeout(CALL_TIMEOUT);
        if client(self.channel.clone()).put_chunk(put).await?.into_inner().complete {
            complete.store(true, Ordering::Relaxed);
        }
        Ok(())
    }
}
