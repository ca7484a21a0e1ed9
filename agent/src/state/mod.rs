//! What survives a restart: one redb file and the update store beside it, on the agent's own volume.
//!
//! Every write is durable when the call returns (redb commits with fsync; files are
//! written, synced, renamed and their folder synced). Calls block for milliseconds;
//! those that move megabytes belong into `spawn_blocking`.

mod assignment;
mod attempts;
mod consents;
mod countersigned;
mod entry;
mod error;
mod grants;
mod ledger;
mod masked;
mod rollback;
mod rosters;
mod unrecorded;
mod update;
mod uploads;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use serde::Serialize;
use serde::de::DeserializeOwned;

pub use attempts::{AttemptKey, Done, Memory, Refused};
pub use consents::{Taken, Today};
pub use entry::{Entry, Reported, Said};
pub use error::StateError;
pub use grants::{Grant, Granted};
pub use ledger::Record;
pub use rollback::{Closed, HubClaim, RolledBack};
pub use rosters::hub_digest;
pub use unrecorded::Unrecorded;
pub use update::{StoredScore, StoredUpdate, UpdateMeta, UpdateWriter, evaluate_vector, vector_of};
pub use uploads::{UploadProgress, UploadRecord};

const META: TableDefinition<&str, &[u8]> = TableDefinition::new("meta");
const BLOBS: TableDefinition<&str, &[u8]> = TableDefinition::new("blobs");
const UPDATES: TableDefinition<&str, &[u8]> = TableDefinition::new("updates");
const SCORES: TableDefinition<&str, &[u8]> = TableDefinition::new("scores");
/// By round UID, which round of which study it is.
const ROUNDS: TableDefinition<&str, &[u8]> = TableDefinition::new("rounds");
/// Its file.
const DATABASE: &str = "state.redb";
/// Memory for pages of the database; it holds little.
const CACHE_BYTES: usize = 8 << 20;

/// The agent's state; a cheap clone of one shared handle.
#[derive(Clone)]
pub struct State(Arc<Inner>);

/// UID and generation.
type PolicyId = (Option<String>, Option<i64>);

struct Inner {
    db: Database,
    dir: PathBuf,
    secret: [u8; 32],
    /// Serialises what is more than one transaction.
    staging: Mutex<u64>,
    /// The policy that the ledger says is in force, or is about to.
    in_force: Mutex<Option<PolicyId>>,
    _lock: File,
}

impl State {
    /// Opens the volume, or makes a new state on it. Verifies the ledger.
    ///
    /// `fresh_secret` becomes this hospital's secret if the volume holds none yet.
    pub fn open(dir: &Path, fresh_secret: [u8; 32]) -> Result<Self, StateError> {
        let state = Self::open_as_it_is(dir, fresh_secret)?;
        state.sweep_staging()?;
        state.verify()?;
        Ok(state)
    }

    /// Opens the volume of a hospital for its ledger alone, which need not hold together: it is evidence as it is.
    pub fn open_ledger(dir: &Path) -> Result<Self, StateError> {
        let known = dir.join(DATABASE);
        std::fs::metadata(&known).map_err(StateError::io(known))?;
        Self::open_as_it_is(dir, [0; 32])
    }

    fn open_as_it_is(dir: &Path, fresh_secret: [u8; 32]) -> Result<Self, StateError> {
        std::fs::create_dir_all(dir).map_err(StateError::io(dir))?;
        let lock = lock(dir)?;
        let path = dir.join(DATABASE);
        let db = match Database::builder().set_cache_size(CACHE_BYTES).create(&path) {
            Err(redb::DatabaseError::DatabaseAlreadyOpen) => return Err(StateError::InUse(dir.to_owned())),
            other => other?,
        };
        let secret = prepare(&db, fresh_secret)?;
        let (dir, staging, in_force) = (dir.to_owned(), Mutex::new(0), Mutex::default());
        Ok(Self(Arc::new(Inner { db, dir, secret, staging, in_force, _lock: lock })))
    }

    /// A secret of this hospital, made once: salts what must not be comparable from outside.
    pub fn secret(&self) -> [u8; 32] {
        self.0.secret
    }

    /// A small value under a name, for parts that keep their own: keys, certificates.
    pub fn blob(&self, name: &str) -> Result<Option<Vec<u8>>, StateError> {
        self.read(BLOBS, name)
    }

    /// Stores a small value under a name.
    pub fn put_blob(&self, name: &str, bytes: &[u8]) -> Result<(), StateError> {
        self.write(BLOBS, name, bytes)
    }

    /// Removes a value.
    pub fn delete_blob(&self, name: &str) -> Result<(), StateError> {
        self.remove(BLOBS, name)
    }

    /// All values whose names begin like this, in order of name.
    pub fn blobs(&self, prefix: &str) -> Result<Vec<(String, Vec<u8>)>, StateError> {
        let read = self.0.db.begin_read()?;
        let table = read.open_table(BLOBS)?;
        let mut found = Vec::new();
        for entry in table.range(prefix..)? {
            let (name, bytes) = entry?;
            if !name.value().starts_with(prefix) {
                break;
            }
            found.push((name.value().to_owned(), bytes.value().to_vec()));
        }
        Ok(found)
    }

    /// Makes what is stored under a key unreadable, as a failing disk could.
    #[cfg(test)]
    pub(crate) fn damage(&self, table: &str, key: &str) {
        self.write(TableDefinition::new(table), key, b"{").unwrap();
    }

    /// How many parts hold this state, for tests that kill agents.
    #[cfg(test)]
    pub(crate) fn handles(&self) -> usize {
        Arc::strong_count(&self.0)
    }

    fn read(&self, table: TableDefinition<&str, &[u8]>, key: &str) -> Result<Option<Vec<u8>>, StateError> {
        let read = self.0.db.begin_read()?;
        let table = read.open_table(table)?;
        Ok(table.get(key)?.map(|value| value.value().to_vec()))
    }

    fn write(&self, table: TableDefinition<&str, &[u8]>, key: &str, value: &[u8]) -> Result<(), StateError> {
        let write = self.0.db.begin_write()?;
        write.open_table(table)?.insert(key, value)?;
        Ok(write.commit()?)
    }

    fn remove(&self, table: TableDefinition<&str, &[u8]>, key: &str) -> Result<(), StateError> {
        let write = self.0.db.begin_write()?;
        write.open_table(table)?.remove(key)?;
        Ok(write.commit()?)
    }

    fn read_json<T: DeserializeOwned>(
        &self,
        table: TableDefinition<&str, &[u8]>,
        key: &str,
    ) -> Result<Option<T>, StateError> {
        let Some(bytes) = self.read(table, key)? else { return Ok(None) };
        serde_json::from_slice(&bytes).map(Some).map_err(StateError::damaged(key))
    }

    fn write_json<T: Serialize>(
        &self,
        table: TableDefinition<&str, &[u8]>,
        key: &str,
        value: &T,
    ) -> Result<(), StateError> {
        self.write(table, key, &to_json(key, value)?)
    }
}

fn to_json<T: Serialize>(what: &str, value: &T) -> Result<Vec<u8>, StateError> {
    serde_json::to_vec(value).map_err(StateError::damaged(what))
}

/// Held as long as the process lives; the system releases it when it dies, however it dies.
fn lock(dir: &Path) -> Result<File, StateError> {
    let path = dir.join("lock");
    let file = File::options().create(true).truncate(false).write(true).open(&path).map_err(StateError::io(&path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => Err(StateError::InUse(dir.to_owned())),
        Err(std::fs::TryLockError::Error(error)) => Err(StateError::io(&path)(error)),
    }
}

/// Makes every table, so that readers find them, and the secret.
fn prepare(db: &Database, fresh_secret: [u8; 32]) -> Result<[u8; 32], StateError> {
    let write = db.begin_write()?;
    let secret = {
        let mut meta = write.open_table(META)?;
        let known = meta.get("secret")?.map(|value| value.value().to_vec());
        match known {
            Some(bytes) => bytes.try_into().map_err(|_| StateError::Damaged {
                what: "the hospital's secret".into(),
                why: "it is not 32 bytes".into(),
            })?,
            None => {
                meta.insert("secret", fresh_secret.as_slice())?;
                fresh_secret
            }
        }
    };
    for table in [BLOBS, UPDATES, SCORES, ROUNDS] {
        write.open_table(table)?;
    }
    grants::prepare(&write)?;
    assignment::prepare(&write)?;
    attempts::prepare(&write)?;
    consents::prepare(&write)?;
    countersigned::prepare(&write)?;
    ledger::prepare(&write)?;
    uploads::prepare(&write)?;
    write.commit()?;
    Ok(secret)
}

/// UIDs come over the wire and become file names.
fn check_name(what: &'static str, value: &str) -> Result<(), StateError> {
    let ok = (1..=63).contains(&value.len()) && value.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    if ok { Ok(()) } else { Err(StateError::Name { what, value: value.chars().take(100).collect() }) }
}

#[cfg(test)]
mod secure_tests;
#[cfg(test)]
mod tests;
