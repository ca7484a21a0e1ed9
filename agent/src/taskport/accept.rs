//! From a received result to one that is stored: checked, encoded, durable. Blocks.

use std::fs::{self, File};
use std::io;

use consilium_crds::study::Weighting;
use consilium_federation::digest::Digest;
use consilium_federation::model::ModelManifest;
use consilium_federation::task::{ScoreFile, TaskMetrics};
use consilium_secagg::weight::Weight;
use jiff::Timestamp;
use tonic::Status;

use super::receive::{Inbox, storage};
use crate::state::{State, StateError, StoredScore, UpdateMeta};
use crate::tasks::TaskEntry;
use crate::tasks::encode::{EncodeError, EncodeSpec, WEIGHT_CAP, encode, weight_of_examples};

/// Most classes of a score: the wire's bound.
const MAX_CLASSES: usize = 8;

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
    let metrics: TaskMetrics = parse(inbox, "metrics.json")?;
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
        task_uid: from.uid.to_owned(),
        task_name: from.name.to_owned(),
        study: entry.work.study.clone(),
        spec_digest: entry.work.spec_digest,
        round: entry.work.round,
        base: entry.work.model,
        roster_size: entry.work.roster_size,
        examples: as_they_weigh(metrics.examples, entry.weight_bucket),
        norm: format!("{:.6}", encoded.norm),
        clipped: encoded.clipped,
        delivered: from.now,
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
    (examples.saturating_add(bucket / 2) / bucket).max(1).saturating_mul(bucket).min(WEIGHT_CAP)
}

/// Checks a score and stores it.
pub(super) fn evaluate(state: &State, inbox: &Inbox, from: &Deliverer<'_>) -> Result<Accepted, Refusal> {
    let score: ScoreFile = parse(inbox, "score.json")?;
    score.check().map_err(Refusal::Rejected)?;
    if score.classes.is_empty() || score.classes.len() > MAX_CLASSES {
        let found = score.classes.len();
        return Err(Refusal::Rejected(format!("score.json: {found} classes, expected 1 to {MAX_CLASSES}")));
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

fn parse<T: serde::de::DeserializeOwned>(inbox: &Inbox, name: &str) -> Result<T, Refusal> {
    let bytes = fs::read(inbox.file(name)).map_err(|e| Refusal::Status(storage(&e)))?;
    serde_json::from_slice(&bytes).map_err(|e| Refusal::Rejected(format!("{name}: {e}")))
}
