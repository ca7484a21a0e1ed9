//! Requests that wait at the same time go through the network together. One thread owns the network; handlers hand it
//! volumes over a bounded queue, and a full queue turns a request away at once instead of letting all of them time out.

use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread;

use consilium_imaging::torch::Segmenter;
use consilium_imaging::{Mask, Volume};
use tokio::sync::oneshot;

use crate::metrics::Metrics;

/// Volumes that go through the network together at most.
const MAX_BATCH: usize = 8;

/// A request was not segmented.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Too many wait already.
    #[error("{0} requests wait already; try again in a few seconds")]
    Overloaded(usize),
    /// The network failed.
    #[error("the network failed: {0}")]
    Failed(String),
}

struct Work {
    volume: Volume,
    reply: oneshot::Sender<Result<Mask, Refused>>,
}

/// The handlers' end of the queue.
#[derive(Debug, Clone)]
pub struct Batcher {
    queue: SyncSender<Work>,
    length: usize,
    metrics: Metrics,
}

impl std::fmt::Debug for Work {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Voxels of a patient stay out of every log.
        write!(f, "Work({:?})", self.volume.grid.shape)
    }
}

impl Batcher {
    /// Starts the thread that owns the network; it ends when the last handle is dropped.
    pub fn start(segmenter: Segmenter, length: usize, metrics: Metrics) -> std::io::Result<Self> {
        let (queue, work) = sync_channel(length.max(1));
        let for_thread = metrics.clone();
        thread::Builder::new().name("network".into()).spawn(move || serve(&segmenter, &work, &for_thread))?;
        Ok(Self { queue, length: length.max(1), metrics })
    }

    /// Segments one volume, together with others that wait.
    pub async fn segment(&self, volume: Volume) -> Result<Mask, Refused> {
        let (reply, answer) = oneshot::channel();
        // Counted before it is sent, or the other thread might take it off first.
        self.metrics.queued.inc();
        if let Err(e) = self.queue.try_send(Work { volume, reply }) {
            self.metrics.queued.dec();
            return Err(match e {
                TrySendError::Full(_) => Refused::Overloaded(self.length),
                TrySendError::Disconnected(_) => Refused::Failed("its thread has ended".into()),
            });
        }
        answer.await.unwrap_or_else(|_| Err(Refused::Failed("its thread has ended".into())))
    }
}

fn serve(segmenter: &Segmenter, work: &Receiver<Work>, metrics: &Metrics) {
    while let Ok(first) = work.recv() {
        let mut batch = vec![first];
        batch.extend(work.try_iter().take(MAX_BATCH - 1));
        metrics.queued.sub(batch.len() as i64);
        metrics.batch_volumes.observe(batch.len() as f64);
        let volumes: Vec<&Volume> = batch.iter().map(|work| &work.volume).collect();
        let voxels: usize = volumes.iter().map(|volume| volume.grid.len()).sum();
        let results: Vec<Result<Mask, Refused>> = match segmenter.segment_all(&volumes) {
            Ok(masks) => {
                metrics.voxels.inc_by(voxels as u64);
                masks.into_iter().map(Ok).collect()
            }
            Err(e) => batch.iter().map(|_| Err(Refused::Failed(e.to_string()))).collect(),
        };
        for (work, result) in batch.into_iter().zip(results) {
            // A client that went away needs no answer.
            let _ = work.reply.send(result);
        }
    }
}
