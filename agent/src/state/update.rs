//! The update store: what a hospital trained, kept until the round is over.
//!
//! An update is a folder of chunk files and a row in the database. It is written
//! into a staging folder, synced and renamed; the row comes last, so an update
//! either is there in full or is not there. The bytes are re-sent, never re-made:
//! the first update stored for a round is the one that counts.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::PoisonError;

use bytes::Bytes;
use consilium_federation::assignment::RoundWork;
use consilium_federation::task::{ScoreFile, TaskKind};
use consilium_federation::{Digest, StudyKey};
use consilium_secagg::ids::Digest as ChunkDigest;
use consilium_secagg::upload::chunk_digest;
use jiff::Timestamp;
use redb::{ReadableDatabase, ReadableTable};
use serde::{Deserialize, Serialize};

use super::{ROUNDS, SCORES, State, StateError, UPDATES, check_name, to_json};

/// What stands behind a round's UID in the name of its evaluation.
const EVALUATE: &str = ".evaluate";

/// What is known about an update beside its bytes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct UpdateMeta {
    /// UID of the RoundTask that made it.
    pub task_uid: String,
    /// Its name.
    pub task_name: String,
    /// The study.
    pub study: StudyKey,
    /// Digest of the study's spec under which it was encoded.
    pub spec_digest: Digest,
    /// The round.
    pub round: u32,
    /// The model it starts from.
    pub base: Digest,
    /// The roster size that it was encoded for.
    pub roster_size: u32,
    /// Training examples, as they weigh.
    pub examples: u64,
    /// L2 norm before clipping, a decimal for people.
    pub norm: String,
    /// It was shortened to the clip bound.
    pub clipped: bool,
    /// When it was delivered.
    pub delivered: Timestamp,
}

/// An update on the volume.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StoredUpdate {
    /// UID of the TrainingRound.
    pub round_uid: String,
    /// What is known about it.
    pub meta: UpdateMeta,
    /// BLAKE3 digests of its chunks: the head, then the body.
    pub chunks: Vec<ChunkDigest>,
    /// Bytes of all chunks.
    pub bytes: u64,
}

impl StoredUpdate {
    /// Digest of the update: that of its list of chunk digests.
    pub fn digest(&self) -> Digest {
        Digest::of_json(&self.chunks)
    }
}

/// A result of the evaluator on the volume.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StoredScore {
    /// UID of the RoundTask that made it.
    pub task_uid: String,
    /// Its name.
    pub task_name: String,
    /// The numbers.
    pub score: ScoreFile,
    /// When it was delivered.
    pub delivered: Timestamp,
}

/// Takes the chunks of one update. Dropping it without [`UpdateWriter::finish`] leaves nothing.
pub struct UpdateWriter {
    state: State,
    round_uid: String,
    dir: PathBuf,
    chunks: Vec<ChunkDigest>,
    bytes: u64,
    finished: bool,
}

impl UpdateWriter {
    /// Stores the next chunk, durably: the head first, then the body in order.
    pub fn put_chunk(&mut self, content: &[u8]) -> Result<ChunkDigest, StateError> {
        write_synced(&self.dir.join(chunk_name(self.chunks.len())), content)?;
        let digest = chunk_digest(content);
        self.chunks.push(digest);
        self.bytes += content.len() as u64;
        Ok(digest)
    }

    /// Makes the update this hospital's word for the round, durably.
    ///
    /// If one is stored already, that one is kept and returned: a second delivery of a result is no new result.
    pub fn finish(mut self, meta: UpdateMeta) -> Result<StoredUpdate, StateError> {
        let state = self.state.clone();
        let _one_at_a_time = state.0.staging.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(stored) = state.update(&self.round_uid)? {
            return Ok(stored);
        }
        let target = state.update_dir(&self.round_uid);
        if target.exists() {
            // From a crash between the rename and the row: nothing refers to it.
            fs::remove_dir_all(&target).map_err(StateError::io(&target))?;
        }
        sync_dir(&self.dir)?;
        fs::rename(&self.dir, &target).map_err(StateError::io(&target))?;
        sync_dir(&state.updates_dir())?;
        self.finished = true;
        let stored = StoredUpdate {
            round_uid: self.round_uid.clone(),
            meta,
            chunks: std::mem::take(&mut self.chunks),
            bytes: self.bytes,
        };
        state.write_json(UPDATES, &self.round_uid, &stored)?;
        Ok(stored)
    }
}

impl Drop for UpdateWriter {
    fn drop(&mut self) {
        if !self.finished {
            // What cannot be removed now is swept at the next start.
            let _ = fs::remove_dir_all(&self.dir);
        }
    }
}

/// Name of the stored vector of a round's evaluation. No UID of the hub's holds a dot, so none can name it.
pub fn evaluate_vector(round_uid: &str) -> String {
    format!("{round_uid}{EVALUATE}")
}

/// Name of the vector that a round's part adds to a sum.
pub fn vector_of(round_uid: &str, kind: TaskKind) -> String {
    match kind {
        TaskKind::Evaluate => evaluate_vector(round_uid),
        TaskKind::Train | TaskKind::Init => round_uid.to_owned(),
    }
}

fn check_vector(name: &str) -> Result<(), StateError> {
    check_name("round UID", name.strip_suffix(EVALUATE).unwrap_or(name))
}

pub(super) fn chunk_name(index: usize) -> String {
    format!("{index:08}")
}

pub(super) fn write_synced(path: &Path, content: &[u8]) -> Result<(), StateError> {
    let write = || {
        let mut file = File::create(path)?;
        file.write_all(content)?;
        file.sync_all()
    };
    write().map_err(StateError::io(path))
}

pub(super) fn sync_dir(path: &Path) -> Result<(), StateError> {
    File::open(path).and_then(|dir| dir.sync_all()).map_err(StateError::io(path))
}

pub(super) fn remove_dir(dir: &Path) -> Result<(), StateError> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(StateError::io(dir)(error)),
        _ => Ok(()),
    }
}

impl State {
    /// Starts to store an update for a round.
    pub fn begin_update(&self, round_uid: &str) -> Result<UpdateWriter, StateError> {
        check_vector(round_uid)?;
        let number = {
            let mut counter = self.0.staging.lock().unwrap_or_else(PoisonError::into_inner);
            *counter += 1;
            *counter
        };
        let dir = self.staging_dir().join(format!("{round_uid}.{number}"));
        fs::create_dir_all(&dir).map_err(StateError::io(&dir))?;
        let round_uid = round_uid.to_owned();
        Ok(UpdateWriter { state: self.clone(), round_uid, dir, chunks: Vec::new(), bytes: 0, finished: false })
    }

    /// The update stored for a round.
    pub fn update(&self, round_uid: &str) -> Result<Option<StoredUpdate>, StateError> {
        self.read_json(UPDATES, round_uid)
    }

    /// All stored updates.
    pub fn updates(&self) -> Result<Vec<StoredUpdate>, StateError> {
        let read = self.0.db.begin_read()?;
        let table = read.open_table(UPDATES)?;
        let mut updates = Vec::new();
        for row in table.iter()? {
            let (uid, bytes) = row?;
            let what = || format!("the update for round {}", uid.value());
            updates.push(serde_json::from_slice(bytes.value()).map_err(StateError::damaged(what()))?);
        }
        Ok(updates)
    }

    /// The rounds for which something is stored, and since when.
    pub fn stored_rounds(&self) -> Result<Vec<(String, Timestamp)>, StateError> {
        let updates = self.updates()?.into_iter();
        let round = |name: &str| name.strip_suffix(EVALUATE).unwrap_or(name).to_owned();
        let mut stored: Vec<_> = updates.map(|update| (round(&update.round_uid), update.meta.delivered)).collect();
        let read = self.0.db.begin_read()?;
        for row in read.open_table(SCORES)?.iter()? {
            let (uid, bytes) = row?;
            let score: StoredScore = serde_json::from_slice(bytes.value()).map_err(StateError::damaged(uid.value()))?;
            stored.push((uid.value().to_owned(), score.delivered));
        }
        Ok(stored)
    }

    /// One chunk of a stored update, checked against its digest.
    pub fn update_chunk(&self, round_uid: &str, index: u32) -> Result<Bytes, StateError> {
        let missing = || StateError::Missing(format!("chunk {index} of an update for round {round_uid}"));
        let update = self.update(round_uid)?.ok_or_else(missing)?;
        let expected = *update.chunks.get(index as usize).ok_or_else(missing)?;
        let path = self.update_dir(round_uid).join(chunk_name(index as usize));
        let content = fs::read(&path).map_err(StateError::io(&path))?;
        let found = chunk_digest(&content);
        if found != expected {
            return Err(StateError::Chunk { round_uid: round_uid.to_owned(), index, found, expected });
        }
        Ok(content.into())
    }

    /// Removes what was stored for a round that is over: its update, its evaluation, and its parts in attempts. The
    /// history of what was released stays.
    pub fn delete_update(&self, round_uid: &str) -> Result<(), StateError> {
        check_name("round UID", round_uid)?;
        // First: what is left of masked vectors after a kill is swept up only if no attempt is known to need it.
        self.forget_attempts(round_uid)?;
        self.delete_masked(round_uid)?;
        self.delete_vector(round_uid)?;
        self.delete_vector(&evaluate_vector(round_uid))
    }

    /// Removes one stored vector.
    pub fn delete_vector(&self, name: &str) -> Result<(), StateError> {
        check_vector(name)?;
        self.remove(UPDATES, name)?;
        self.forget_upload(name)?;
        remove_dir(&self.update_dir(name))
    }

    /// Whether anything is stored for a round.
    pub fn holds(&self, round_uid: &str) -> Result<bool, StateError> {
        let vectors = self.update(round_uid)?.is_some() || self.update(&evaluate_vector(round_uid))?.is_some();
        let uploads = self.upload(round_uid)?.is_some() || self.upload(&evaluate_vector(round_uid))?.is_some();
        Ok(vectors || uploads || self.score(round_uid)?.is_some() || self.read(ROUNDS, round_uid)?.is_some())
    }

    /// Whether a UID is that of this round of this study, which it is from now on if it was of none. What a round's task
    /// read and what is stored for it go by the UID alone, so a hub that gave it to another study would get one study's
    /// results under the permissions of the other.
    pub fn is_round(&self, uid: &str, work: &RoundWork) -> Result<bool, StateError> {
        let RoundWork { study, study_uid, spec_digest, round, .. } = work;
        let offered = to_json("round", &(study, study_uid, spec_digest, round))?;
        if let Some(known) = self.read(ROUNDS, uid)? {
            return Ok(known == offered);
        }
        self.write(ROUNDS, uid, &offered)?;
        Ok(true)
    }

    /// Forgets a round of which nothing is left.
    pub fn forget_round(&self, uid: &str) -> Result<(), StateError> {
        self.remove(ROUNDS, uid)
    }

    /// Stores a score. The first one for a round wins, as with updates.
    pub fn put_score(&self, round_uid: &str, score: &StoredScore) -> Result<StoredScore, StateError> {
        let _one_at_a_time = self.0.staging.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(stored) = self.score(round_uid)? {
            return Ok(stored);
        }
        self.write_json(SCORES, round_uid, score)?;
        Ok(score.clone())
    }

    /// The score stored for a round.
    pub fn score(&self, round_uid: &str) -> Result<Option<StoredScore>, StateError> {
        self.read_json(SCORES, round_uid)
    }

    /// Removes the score of a round that is over.
    pub fn delete_score(&self, round_uid: &str) -> Result<(), StateError> {
        self.remove(SCORES, round_uid)
    }

    fn updates_dir(&self) -> PathBuf {
        self.0.dir.join("updates")
    }

    fn staging_dir(&self) -> PathBuf {
        self.0.dir.join("staging")
    }

    fn update_dir(&self, round_uid: &str) -> PathBuf {
        self.updates_dir().join(round_uid)
    }

    /// Removes what a crash left half-written, and makes the folders.
    pub(super) fn sweep_staging(&self) -> Result<(), StateError> {
        let staging = self.staging_dir();
        if staging.exists() {
            fs::remove_dir_all(&staging).map_err(StateError::io(&staging))?;
        }
        let updates = self.updates_dir();
        for dir in [&staging, &updates] {
            fs::create_dir_all(dir).map_err(StateError::io(dir))?;
        }
        for folder in fs::read_dir(&updates).map_err(StateError::io(&updates))? {
            let folder = folder.map_err(StateError::io(&updates))?;
            let uid = folder.file_name().to_string_lossy().into_owned();
            if self.update(&uid)?.is_none() {
                fs::remove_dir_all(folder.path()).map_err(StateError::io(folder.path()))?;
            }
        }
        self.sweep_masked()?;
        sync_dir(&self.0.dir)
    }
}
