//! The sum of an attempt and the model that follows from it, chunk by chunk.
//!
//! A chunk of every contributor is read tile by tile, hashed and added while it is in cache, so nothing is read
//! twice and memory is a few chunks, whatever the number of hospitals or parameters. The arithmetic is ring integers
//! up to the mean and one f32 addition per parameter after it: a hub that computes it again gets the same digest.
//!
//! With masks, they come off the sum of a chunk while it is in memory; no single upload is ever without its masks.

mod error;
mod sum;

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use consilium_crds::study::{EVALUATION_CLIP, EVALUATION_ELEMENTS, EXAMPLES_CAP};
use consilium_federation::gate::CaseSums;
use consilium_federation::model::ModelManifest;
use consilium_federation::round::{NewModel, Summed};
use consilium_federation::strategy::Rule;
use consilium_federation::{Digest, SiteName};
use consilium_secagg::ids::Digest as ChunkDigest;
use consilium_secagg::layout::{CHUNK_ELEMENTS, Layout};
use consilium_secagg::ring::{RingParams, WeightSum};
use consilium_secagg::unmasking::Unmasking;
use consilium_secagg::weight::WEIGHT_ONE;
use tokio::runtime::Handle;

use crate::store::{BlobStore, UploadKey};

pub use error::AggregateError;
pub use sum::{CHUNK_BUFFER_BYTES, Summer};

use sum::{MeanError, Old};

/// Chunks that are summed side by side: two cores hash twice as fast, and while one chunk waits for the volume to make
/// it durable the others go on. Memory is this many times [`CHUNK_BUFFER_BYTES`]; a rule that remembers has fewer.
const LANES: usize = 3;

/// What to sum, and what becomes of the sum.
#[derive(Clone, Debug)]
pub struct SumJob {
    /// UID of the TrainingRound.
    pub round_uid: String,
    /// The attempt.
    pub attempt: u32,
    /// The hospitals whose uploads are complete.
    pub contributors: Vec<SiteName>,
    /// What was uploaded.
    pub subject: Subject,
    /// The number of hospitals that the ring's scale was made for.
    pub roster_size: u32,
    /// What takes the masks off; `None` where there are none.
    pub masks: Option<Masks>,
}

/// What is summed.
#[derive(Clone, Debug, PartialEq)]
pub enum Subject {
    /// Updates, whose mean is added to the model that they started from.
    Updates {
        /// Digest of that model.
        base_model: Digest,
        /// L2 clip norm of an update.
        clip: f64,
        /// How their mean moves the model.
        rule: Rule,
        /// What the rule remembers with that model. Another number of moments than it has, because it was changed or this
        /// is its first round, is as none: they begin at 0.
        moments: Vec<Digest>,
    },
    /// Each hospital's mean Dice, weighted by cases.
    Evaluation,
}

/// What takes the masks off a sum.
#[derive(Clone, Debug)]
pub struct Masks {
    /// The revealed seeds, checked.
    pub unmasking: Arc<Unmasking>,
    /// The chunk digests that each survivor signed.
    pub chunks: BTreeMap<SiteName, Vec<ChunkDigest>>,
}

/// One contributor's upload: who, where, and the digests of its chunks.
struct Upload {
    key: UploadKey,
    chunks: Vec<ChunkDigest>,
}

/// Everything that the lanes share.
struct Plan {
    store: BlobStore,
    uploads: Vec<Upload>,
    base: Option<ModelManifest>,
    rule: Rule,
    /// As many as the rule has; `None` for those that begin.
    moments: Vec<Option<ModelManifest>>,
    masks: Option<Arc<Unmasking>>,
    layout: Layout,
    ring: RingParams,
    next: AtomicU32,
    stopped: AtomicBool,
}

/// A new chunk: its number, its digest and those of the moments' chunks, and the squared norm of the mean in it.
type Done = (u32, Vec<Digest>, f64);

/// Sums the uploads of an attempt. Updates: adds their weighted mean to the base model and stores the result; answers
/// its digest. Evaluations: answers the cases and their Dice. Doing it again gives the same.
///
/// # Errors
/// [`AggregateError`]; those that are not transient name the hospital and the chunk at fault.
pub async fn aggregate(store: &BlobStore, job: &SumJob) -> Result<Summed, AggregateError> {
    let plan = Arc::new(plan(store, job).await?);
    // Whoever drops this future (the study was deleted) stops the lanes too.
    let stop = StopOnDrop(plan.clone());
    let handle = Handle::current();
    let weights = {
        let (plan, handle) = (plan.clone(), handle.clone());
        blocking(move || plan.weights(&handle)).await?
    };
    if job.subject == Subject::Evaluation {
        let plan = plan.clone();
        return blocking(move || plan.cases(&handle, weights)).await.map(Summed::Cases);
    }
    let lanes: Vec<_> = (0..plan.lanes())
        .map(|_| {
            let (plan, handle) = (plan.clone(), handle.clone());
            tokio::task::spawn_blocking(move || plan.lane(&handle, weights))
        })
        .collect();
    let mut done = Vec::new();
    let mut failed = None;
    for lane in lanes {
        match lane.await.unwrap_or(Err(AggregateError::Stopped)) {
            Ok(chunks) => done.extend(chunks),
            // The first lane's reason; the other one was only told to stop.
            Err(error) => failed = failed.filter(|f| !matches!(f, AggregateError::Stopped)).or(Some(error)),
        }
    }
    drop(stop);
    match failed {
        Some(error) => Err(error),
        None => finish(store, &plan, weights, done).await.map(Summed::Model),
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, AggregateError> + Send + 'static,
) -> Result<T, AggregateError> {
    tokio::task::spawn_blocking(work).await.map_err(|_| AggregateError::Stopped)?
}

async fn plan(store: &BlobStore, job: &SumJob) -> Result<Plan, AggregateError> {
    let distinct: BTreeSet<&SiteName> = job.contributors.iter().collect();
    if distinct.is_empty() || distinct.len() != job.contributors.len() || distinct.len() > job.roster_size as usize {
        let (found, roster) = (job.contributors.len(), job.roster_size);
        return Err(AggregateError::Contributors { found, roster });
    }
    let (mut rule, mut moments) = (Rule::Average, Vec::new());
    let (base, body, clip) = match &job.subject {
        Subject::Updates { base_model, clip, rule: by, moments: known } => {
            let base = store.get_manifest(*base_model).await?;
            (rule, moments) = (*by, remembered(store, &base, by, known).await?);
            let elements = base.elements();
            (Some(base), elements, *clip)
        }
        Subject::Evaluation => (None, EVALUATION_ELEMENTS, EVALUATION_CLIP),
    };
    let layout = Layout::new(0, body)?;
    let ring = RingParams::new(job.roster_size as usize, clip)?;
    let mut uploads = Vec::new();
    for site in distinct {
        let key = UploadKey { round_uid: job.round_uid.clone(), attempt: job.attempt, site: site.clone() };
        let chunks = match &job.masks {
            // What was signed counts, whatever the journal says.
            Some(masks) => masks.chunks.get(site).cloned().unwrap_or_default(),
            None => store.upload_chunks(&key).await?,
        };
        if chunks.len() != layout.chunks() as usize {
            let (found, expected) = (chunks.len(), layout.chunks());
            return Err(AggregateError::ChunkCount { site: site.clone(), found, expected });
        }
        uploads.push(Upload { key, chunks });
    }
    let masks = job.masks.as_ref().map(|masks| masks.unmasking.clone());
    let (next, stopped) = (AtomicU32::new(1), AtomicBool::new(false));
    Ok(Plan { store: store.clone(), uploads, base, rule, moments, masks, layout, ring, next, stopped })
}

/// The rule's moments by the digests that were kept of them.
async fn remembered(
    store: &BlobStore,
    base: &ModelManifest,
    rule: &Rule,
    known: &[Digest],
) -> Result<Vec<Option<ModelManifest>>, AggregateError> {
    if known.len() != rule.moments() {
        return Ok(vec![None; rule.moments()]);
    }
    let mut moments = Vec::new();
    for digest in known {
        let moment = store.get_manifest(*digest).await?;
        if moment.tensors != base.tensors {
            return Err(AggregateError::OtherMoment(*digest));
        }
        moments.push(Some(moment));
    }
    Ok(moments)
}

impl Plan {
    /// The sum of weights, from the head chunks.
    fn weights(&self, handle: &Handle) -> Result<WeightSum, AggregateError> {
        let mut summer = Summer::new();
        let head = self.sum(handle, &mut summer, 0)?;
        Ok(self.ring.decode_weights(head[0], self.uploads.len())?)
    }

    /// The evaluation: all cases, and the sum of their Dice.
    fn cases(&self, handle: &Handle, weights: WeightSum) -> Result<CaseSums, AggregateError> {
        let mut summer = Summer::new();
        let sum = self.sum(handle, &mut summer, 1)?;
        let mut mean = [0f32];
        self.ring.decode_mean(sum, weights, &mut mean)?;
        let cases = (u64::from(weights.units()) * EXAMPLES_CAP + u64::from(WEIGHT_ONE) / 2) / u64::from(WEIGHT_ONE);
        let mean = f64::from(mean[0]).clamp(0.0, 1.0);
        Ok(CaseSums { cases: u32::try_from(cases).unwrap_or(u32::MAX), dice: mean * cases as f64 })
    }

    /// Takes chunk after chunk until there are none left.
    fn lane(&self, handle: &Handle, weights: WeightSum) -> Result<Vec<Done>, AggregateError> {
        let mut summer = Summer::new();
        let mut done = Vec::new();
        loop {
            let chunk = self.next.fetch_add(1, Ordering::Relaxed);
            if chunk >= self.layout.chunks() {
                return Ok(done);
            }
            let result = self.new_chunk(handle, &mut summer, weights, chunk);
            if result.is_err() {
                self.stopped.store(true, Ordering::Relaxed);
            }
            done.push(result?);
        }
    }

    /// Body chunk `chunk` of the new model: base plus mean.
    fn new_chunk(
        &self,
        handle: &Handle,
        summer: &mut Summer,
        weights: WeightSum,
        chunk: u32,
    ) -> Result<Done, AggregateError> {
        self.sum(handle, summer, chunk)?;
        // Safety: the caller takes chunks from 1 up, and the manifest has one for each body chunk of the layout.
        let index = chunk as usize - 1;
        let Some(model) = &self.base else { return Err(AggregateError::Stopped) };
        let open = |of: &ModelManifest| -> Result<_, AggregateError> {
            let digest = of.chunks[index];
            Ok(Old::new(handle.block_on(self.store.open_object(digest))?, digest))
        };
        let moments = self.moments.iter().map(|moment| moment.as_ref().map(open).transpose());
        let moments = moments.collect::<Result<Vec<_>, _>>()?;
        let made = summer.advance(&self.ring, weights, &self.rule, open(model)?, moments);
        let (chunks, squares) = made.map_err(|error| match error {
            MeanError::Base(source) => AggregateError::Base { chunk: index, source },
            MeanError::Moment(source) => AggregateError::Moment { chunk: index, source },
            MeanError::NotFinite(offset) => {
                AggregateError::NotFinite { parameter: index as u64 * CHUNK_ELEMENTS as u64 + offset as u64 }
            }
        })?;
        let mut stored = Vec::new();
        for new in chunks {
            stored.push(handle.block_on(self.store.put_object(new.clone()))?);
            summer.reuse(new);
        }
        Ok((chunk, stored, squares))
    }

    /// As many as take the memory of [`LANES`] of a rule that remembers nothing: the sum and the new chunk in each, and a
    /// chunk for each moment.
    fn lanes(&self) -> usize {
        (LANES * 2 / (2 + self.moments.len())).max(1)
    }

    /// Lanes work side by side; what cores they leave idle take masks off.
    fn mask_threads(&self) -> NonZeroUsize {
        let cores = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
        // The first chunk is the head, which is summed before there are lanes.
        let lanes = self.lanes().min(self.layout.chunks().saturating_sub(1) as usize).max(1);
        NonZeroUsize::new(cores.div_ceil(lanes)).unwrap_or(NonZeroUsize::MIN)
    }

    /// The ring sum of one chunk over all contributors, without masks.
    fn sum<'a>(&self, handle: &Handle, summer: &'a mut Summer, chunk: u32) -> Result<&'a [u32], AggregateError> {
        summer.start(self.layout.chunk_elements(chunk)?);
        for upload in &self.uploads {
            if self.stopped.load(Ordering::Relaxed) {
                return Err(AggregateError::Stopped);
            }
            let at = |source| AggregateError::Chunk { site: upload.key.site.clone(), chunk, source };
            let reader = handle.block_on(self.store.open_chunk(&upload.key, &upload.chunks, chunk));
            let reader = reader.map_err(|error| error::ChunkError::from_store(error).map_or_else(|e| e.into(), at))?;
            summer.add(reader, upload.chunks[chunk as usize]).map_err(at)?;
        }
        if let Some(masks) = &self.masks {
            masks.take_off(self.layout.elements_of(chunk)?.start, summer.sum_mut(), self.mask_threads())?;
        }
        Ok(summer.sum())
    }
}

/// Checks what can be checked of the whole, and names the model and what is remembered with it.
async fn finish(
    store: &BlobStore,
    plan: &Plan,
    weights: WeightSum,
    mut done: Vec<Done>,
) -> Result<NewModel, AggregateError> {
    // In the order of the chunks, so that the norm does not depend on which lane was faster.
    done.sort_unstable_by_key(|(chunk, ..)| *chunk);
    let norm = done.iter().map(|(.., squares)| squares).sum::<f64>().sqrt();
    let rounding = plan.ring.mean_error_bound(plan.uploads.len(), u64::from(weights.units()));
    let allowed = plan.ring.clip() * (1.0 + 1e-5) + rounding * (plan.layout.body() as f64).sqrt();
    if norm > allowed {
        return Err(AggregateError::Norm { norm, clip: plan.ring.clip() });
    }
    let Some(base) = &plan.base else { return Err(AggregateError::Stopped) };
    let put = async |which: usize| -> Result<Digest, AggregateError> {
        let chunks = done.iter().map(|(_, digests, _)| digests[which]).collect();
        Ok(store.put_model(&ModelManifest::new(base.tensors.clone(), chunks)?).await?)
    };
    let mut moments = Vec::new();
    for which in 1..=plan.moments.len() {
        moments.push(put(which).await?);
    }
    Ok(NewModel { model: put(0).await?, moments })
}

struct StopOnDrop(Arc<Plan>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.stopped.store(true, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests;
