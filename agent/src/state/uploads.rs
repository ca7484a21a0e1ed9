//! How far the upload of each stored vector has come: only what cannot be asked again.

use consilium_federation::Digest;
use jiff::Timestamp;
use redb::{TableDefinition, WriteTransaction};
use serde::{Deserialize, Serialize};

use super::ledger;
use super::{Entry, State, StateError, to_json};

const UPLOADS: TableDefinition<&str, &[u8]> = TableDefinition::new("uploads");

/// The newest upload of a stored vector.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct UploadRecord {
    /// In which attempt.
    pub attempt: u32,
    /// How far it is.
    pub progress: UploadProgress,
}

/// How far an upload is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum UploadProgress {
    /// Past the point of no return; the ledger's head then.
    Begun(Digest),
    /// The hub said that it holds all of it.
    Complete,
    /// Refused for good, and why.
    Rejected(String),
}

pub(super) fn prepare(write: &WriteTransaction) -> Result<(), StateError> {
    write.open_table(UPLOADS)?;
    Ok(())
}

/// Writes a record within a transaction.
pub(super) fn put_in(write: &WriteTransaction, vector: &str, record: &UploadRecord) -> Result<(), StateError> {
    write.open_table(UPLOADS)?.insert(vector, to_json("an upload", record)?.as_slice())?;
    Ok(())
}

impl State {
    /// The newest upload of a stored vector.
    pub fn upload(&self, vector: &str) -> Result<Option<UploadRecord>, StateError> {
        self.read_json(UPLOADS, vector)
    }

    /// Writes how far an upload is and its ledger entry as one; returns the ledger's head.
    pub fn put_upload(
        &self,
        vector: &str,
        attempt: u32,
        progress: impl FnOnce(Digest) -> UploadProgress,
        entry: &Entry,
        now: Timestamp,
    ) -> Result<Digest, StateError> {
        let write = self.0.db.begin_write()?;
        let head = ledger::append_in(&write, entry, now)?;
        put_in(&write, vector, &UploadRecord { attempt, progress: progress(head) })?;
        write.commit()?;
        Ok(head)
    }

    pub(super) fn forget_upload(&self, vector: &str) -> Result<(), StateError> {
        self.remove(UPLOADS, vector)
    }
}
