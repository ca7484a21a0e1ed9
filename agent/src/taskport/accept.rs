//! From a received result to one that is stored: checked, encoded, durable. Blocks.

use std::fs::{self, File};
use std::io;

use consilium_crds::study::{EVALUATION_CLIP, EVALUATION_ELEMENTS, EXAMPLES_CAP, Weighting};
use consilium_federation::digest::Digest;
use consilium_federation::model::ModelManifest;
use consilium_federation::results::{self, Reported};
use consilium_federation::task::ScoreFile;
use consilium_secagg::layout::Layout;
use consilium_secagg::ring::{RingParams, encode_head};
use consilium_secagg::sum::to_bytes;
use consilium_secagg::weight::Weight;
use jiff::Timestamp;
use tonic::Status;

use super::receive::{Inbox, storage};
use crate::state::{State, StateError, StoredScore, UpdateMeta, evaluate_vector};
use crate::tasks::TaskEntry;
use crate::tasks::encode::{EncodeError, EncodeSpec, encode, weight_of_examples};

/// The task whose result it is.
pub(super) struct Deliverer<'a> {
    pub(super) uid: &'a str,
    pub(super) name: &'a str,
    pub(super) entry: &'a TaskEntry,
    pub(super) now: Timestamp,
}

/// What came of a result.
pub(super) enum Accepted {
    /// It is stored now; its digest.
    Stored(Digest),
    /// The same was stored before.
    Known,
}

/// Why a result is not stored.
pub(super) enum Refusal {
    /// It is at fault: this hospital's part is over. The reason.
    Rejected(String),
    /// Anything else, as the courier is told.
    Status(Status),
}

impl From<StateError> for Refusal {
    fn from(error: StateError) -> Self {
        Self::Status(Status::unavailable(format!("{error}; deliver again")))
    }
}

impl From<EncodeError> for Refusal {
    fn from(error: EncodeError) -> Self {
        match error.is_rejection() {
            true => Self::Rejected(error.to_string()),
            false => Self::Status(Status::unavailable(error.to_string())),
        }
    }
}

fn other_result() -> Refusal {
    Refusal::Status(Status::already_exists(
        "another result is stored for this round; the first one counts and is not replaced",
    ))
}

/// Checks, clips and encodes an update, and stores it.
pub(super) fn train(
    state: &State,
    inbox: &Inbox,
    model: &ModelManifest,
    from: &Deliverer<'_>,
) -> Result<Accepted, Refusal> {
    let entry = from.entry;
    let metrics = reported(inbox, from.uid)?;
    let weight = match entry.spec.aggregation.weighting {
        Weighting::Examples => weight_of_examples(metrics.examples, entry.weight_bucket)?,
        Weighting::Equal => Weight::EQUAL,
    };
    let clip = entry.spec.clip().map_err(|e| Refusal::Rejected(e.to_string()))?;
    let spec = EncodeSpec { schema: &model.tensors, roster_size: entry.work.roster_size, clip, weight };
    let mut file = File::open(inbox.file("update.safetensors")).map_err(|e| Refusal::Status(storage(&e)))?;

    let mut writer = state.begin_update(&entry.round_uid)?;
    let mut chunks = Vec::new();
    let encoded = encode(&mut file, &spec, |bytes| {
        chunks.push(writer.put_chunk(bytes).map_err(io::Error::other)?);
        Ok(())
    })?;
    let stored = writer.finish(UpdateMeta {
        norm: format!("{:.6}", encoded.norm),
        clipped: encoded.clipped,
        ..meta(from, as_they_weigh(metrics.examples, entry.weight_bucket))
    })?;
    match stored.chunks == chunks {
        true if stored.meta.delivered == from.now => Ok(Accepted::Stored(stored.digest())),
        true => Ok(Accepted::Known),
        false => Err(other_result()),
    }
}

/// Rounded to the bucket and capped, as the weight is.
fn as_they_weigh(examples: u64, bucket: u32) -> u64 {
    let bucket = u64::from(bucket.max(1));
    (examples.saturating_add(bucket / 2) / bucket).max(1).saturating_mul(bucket).min(EXAMPLES_CAP)
}

/// Checks a score and stores it.
pub(super) fn evaluate(state: &State, inbox: &Inbox, from: &Deliverer<'_>) -> Result<Accepted, Refusal> {
    let score: ScoreFile = parse(inbox, "score.json")?;
    score.check().map_err(Refusal::Rejected)?;
    let known = state.score(&from.entry.round_uid)?;
    if from.entry.spec.is_masked() && known.as_ref().is_none_or(|known| known.score == score) {
        store_evaluation(state, &score, from, known.is_some())?;
    }
    let offered =
        StoredScore { task_uid: from.uid.to_owned(), task_name: from.name.to_owned(), score, delivered: from.now };
    let stored = state.put_score(&from.entry.round_uid, &offered)?;
    match stored.score == offered.score {
        true if stored.delivered == from.now => Ok(Accepted::Stored(Digest::of_json(&stored.score))),
        true => Ok(Accepted::Known),
        false => Err(other_result()),
    }
}

/// Encodes what a score adds to the sum over all hospitals, and stores it before the score itself: a vote that stands
/// has its vector. A score without cases has none.
fn store_evaluation(state: &State, score: &ScoreFile, from: &Deliverer<'_>, voted: bool) -> Result<(), Refusal> {
    let (entry, name) = (from.entry, evaluate_vector(&from.entry.round_uid));
    let Some(dice) = score.mean_dice() else { return Ok(()) };
    match (state.update(&name)?, voted) {
        (Some(_), true) => return Ok(()),
        // From a crash before its score was stored: no attempt can have used it.
        (Some(_), false) => state.delete_vector(&name)?,
        (None, _) => {}
    }
    let rejected = |error: &dyn std::fmt::Display| Refusal::Rejected(format!("score.json: {error}"));
    let cases = u64::from(score.cases);
    let weight = weight_of_examples(cases, entry.weight_bucket)?;
    let layout = Layout::new(0, EVALUATION_ELEMENTS).map_err(|e| rejected(&e))?;
    let ring = RingParams::new(entry.work.roster_size as usize, EVALUATION_CLIP).map_err(|e| rejected(&e))?;
    let mut head = vec![0; layout.head()];
    encode_head(&ring, weight, &[], &mut head).map_err(|e| rejected(&e))?;
    let mut body = [0; EVALUATION_ELEMENTS as usize];
    ring.encode(weight, &[dice as f32], &mut body).map_err(|e| rejected(&e))?;
    let mut writer = state.begin_update(&name)?;
    writer.put_chunk(&to_bytes(&head))?;
    writer.put_chunk(&to_bytes(&body))?;
    let mut meta = meta(from, as_they_weigh(cases, entry.weight_bucket));
    meta.norm = format!("{dice:.6}");
    writer.finish(meta)?;
    Ok(())
}

/// What is known about a vector beside its bytes.
fn meta(from: &Deliverer<'_>, examples: u64) -> UpdateMeta {
    let work = &from.entry.work;
    UpdateMeta {
        task_uid: from.uid.to_owned(),
        task_name: from.name.to_owned(),
        study: work.study.clone(),
        spec_digest: work.spec_digest,
        round: work.round,
        base: work.model,
        roster_size: work.roster_size,
        examples,
        norm: String::new(),
        clipped: false,
        delivered: from.now,
    }
}

/// What the trainer says of its training. A metric that is no number costs a word and not the round.
fn reported(inbox: &Inbox, task: &str) -> Result<Reported, Refusal> {
    let bytes = fs::read(inbox.file("metrics.json")).map_err(|e| Refusal::Status(storage(&e)))?;
    let reported = results::metrics(&bytes).map_err(Refusal::Rejected)?;
    if !reported.dropped.is_empty() {
        tracing::warn!(task, metrics = ?reported.dropped, "metrics.json: these are no numbers (NaN or infinite) and are left out");
    }
    Ok(reported)
}

fn parse<T: serde::de::DeserializeOwned>(inbox: &Inbox, name: &str) -> Result<T, Refusal> {
    let bytes = fs::read(inbox.file(name)).map_err(|e| Refusal::Status(storage(&e)))?;
    serde_json::from_slice(&bytes).map_err(|e| Refusal::Rejected(format!("{name}: {e}")))
}
