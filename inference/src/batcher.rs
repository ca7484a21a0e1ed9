//! Requests that wait at the same time go through the network together. One thread owns the network; handlers hand it
//! volumes over a bounded queue, and a full queue turns a request away at once instead of letting all of them time out.
//! No more go together than memory holds, and one that fails does not take the others with it.

use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread;

use consilium_imaging::torch::Segmenter;
use consilium_imaging::{Mask, Volume};
use tokio::sync::oneshot;

use crate::metrics::Metrics;
use crate::room::Held;

/// Volumes that go through the network together at most.
const MAX_BATCH: usize = 8;

/// A request was not segmented.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Too many wait already.
    #[error("{0} requests wait already; try again in a few seconds")]
    Overloaded(usize),
    /// The memory for requests is in use.
    #[error("the requests under way use the memory that this one needs; try again in a few seconds")]
    NoRoom,
    /// The network failed.
    #[error("the network failed: {0}")]
    Failed(String),
}

struct Work {
    volume: Volume,
    /// Goes with the volume and not with the handler, which ends when its client goes away.
    held: Held,
    reply: oneshot::Sender<Result<(Mask, Held), Refused>>,
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
    /// Starts the thread that owns the network; it ends when the last handle is dropped. Volumes that go through the
    /// network together have `canvas_voxels` padded voxels at most; a larger one goes alone.
    pub fn start(segmenter: Segmenter, length: usize, canvas_voxels: usize, metrics: Metrics) -> std::io::Result<Self> {
        let (queue, work) = sync_channel(length.max(1));
        let for_thread = metrics.clone();
        thread::Builder::new()
            .name("network".into())
            .spawn(move || serve(&segmenter, &work, canvas_voxels, &for_thread))?;
        Ok(Self { queue, length: length.max(1), metrics })
    }

    /// Segments one volume, together with others that wait; gives back the room that it holds.
    pub async fn segment(&self, volume: Volume, held: Held) -> Result<(Mask, Held), Refused> {
        let (reply, answer) = oneshot::channel();
        // Counted before it is sent, or the other thread might take it off first.
        self.metrics.queued.inc();
        if let Err(e) = self.queue.try_send(Work { volume, held, reply }) {
            self.metrics.queued.dec();
            return Err(match e {
                TrySendError::Full(_) => Refused::Overloaded(self.length),
                TrySendError::Disconnected(_) => Refused::Failed("its thread has ended".into()),
            });
        }
        answer.await.unwrap_or_else(|_| Err(Refused::Failed("its thread has ended".into())))
    }
}

fn serve(segmenter: &Segmenter, work: &Receiver<Work>, canvas_voxels: usize, metrics: &Metrics) {
    let mut left_over = None;
    while let Some(first) = left_over.take().or_else(|| work.recv().ok()) {
        let size = |work: &Work| segmenter.canvas_voxels(work.volume.grid.shape);
        let (batch, next) = batch(first, work.try_iter(), size, canvas_voxels);
        left_over = next;
        metrics.queued.sub(batch.len() as i64);
        metrics.executed(batch.len());
        let volumes: Vec<&Volume> = batch.iter().map(|work| &work.volume).collect();
        let results = segment(&|volumes| segmenter.segment_all(volumes), &volumes);
        for (Work { volume, held, reply }, result) in batch.into_iter().zip(results) {
            if result.is_ok() {
                metrics.voxels.inc_by(volume.grid.len() as u64);
            }
            drop(volume);
            // A client that went away needs no answer.
            let _ = reply.send(result.map(|mask| (mask, held)).map_err(|e| Refused::Failed(e.to_string())));
        }
    }
}

/// The first of those that wait and as many of the next as fit with it; and the one that no longer did.
fn batch<T>(
    first: T,
    waiting: impl Iterator<Item = T>,
    size: impl Fn(&T) -> usize,
    most: usize,
) -> (Vec<T>, Option<T>) {
    let mut total = size(&first);
    let mut batch = vec![first];
    for next in waiting {
        total = total.saturating_add(size(&next));
        if total > most {
            return (batch, Some(next));
        }
        batch.push(next);
        if batch.len() == MAX_BATCH {
            break;
        }
    }
    (batch, None)
}

/// What segments volumes together.
type Network<'a, M, E> = dyn Fn(&[&Volume]) -> Result<Vec<M>, E> + 'a;

/// Segments volumes together; where that fails, each by itself, so that only the one at fault fails.
fn segment<M, E>(network: &Network<'_, M, E>, volumes: &[&Volume]) -> Vec<Result<M, E>> {
    match network(volumes) {
        Ok(masks) => masks.into_iter().map(Ok).collect(),
        Err(e) if volumes.len() == 1 => vec![Err(e)],
        Err(_) => volumes.iter().flat_map(|volume| segment(network, &[*volume])).collect(),
    }
}

#[cfg(test)]
mod tests {
    use consilium_imaging::Grid;

    use super::*;

    /// Eight large volumes at once would need eight times the memory that one was admitted for.
    #[test]
    fn no_more_go_together_than_fit() {
        let sizes = |first, rest: &[usize]| {
            let mut waiting = rest.iter().copied();
            let (batch, next) = batch(first, waiting.by_ref(), |size| *size, 100);
            (batch, next, waiting.collect::<Vec<_>>())
        };
        assert_eq!(sizes(60, &[40, 1, 5]), (vec![60, 40], Some(1), vec![5]));
        // A volume too large for any company still goes through.
        assert_eq!(sizes(500, &[1]), (vec![500], Some(1), vec![]));
        assert_eq!(sizes(1, &[1; 9]), (vec![1; 8], None, vec![1; 2]));
    }

    /// A scan that the network cannot take must not cost its neighbours in the batch their answers.
    #[test]
    fn one_that_fails_fails_alone() {
        let volume = |side| Volume { grid: Grid::axis_aligned([side; 3], [1.0; 3]), voxels: vec![] };
        let (good, bad, other) = (volume(1), volume(2), volume(3));
        let network = |volumes: &[&Volume]| match volumes.iter().any(|volume| volume.grid.shape[0] == 2) {
            true => Err("refused"),
            false => Ok(volumes.iter().map(|volume| volume.grid.shape[0]).collect()),
        };
        assert_eq!(segment(&network, &[&good, &bad, &other]), [Ok(1), Err("refused"), Ok(3)]);
        assert_eq!(segment(&network, &[&bad]), [Err("refused")]);
    }
}
