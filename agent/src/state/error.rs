//! What can go wrong with the volume, and what to do about it.

use std::path::PathBuf;

use consilium_secagg::ids::Digest;

/// The state on the volume cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// Two agents on one volume.
    #[error(
        "{0} is in use by another agent: two agents on one volume would upload twice; stop the other one, or give this one its own volume with --state"
    )]
    InUse(PathBuf),
    /// A file of the volume.
    #[error("{path}: {source}; check that the volume is mounted, writable and not full")]
    Io {
        /// Which file or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The database.
    #[error("the state database: {0}; if this repeats, restore the volume and let the hub burn the open attempts")]
    Database(Box<redb::Error>),
    /// Something stored cannot be read back.
    #[error("{what} on the volume cannot be read ({why}); it was damaged, or written by a newer agent")]
    Damaged {
        /// What.
        what: String,
        /// Why.
        why: String,
    },
    /// The ledger does not hold together.
    #[error(
        "the ledger is broken at entry {seq}: {why}; it was changed from outside. Keep a copy of the volume for the audit before anything else"
    )]
    Ledger {
        /// First entry that does not fit.
        seq: u64,
        /// What does not fit.
        why: String,
    },
    /// A name that would leave its folder.
    #[error("{what} {value:?} cannot be used as a name: use letters, digits and '-'")]
    Name {
        /// Of what.
        what: &'static str,
        /// The name.
        value: String,
    },
    /// A chunk with the wrong content.
    #[error(
        "chunk {index} of the update for round {round_uid} has the digest {found}, expected {expected}; it is not sent"
    )]
    Chunk {
        /// Of which round.
        round_uid: String,
        /// Which chunk.
        index: u32,
        /// The digest it has.
        found: Digest,
        /// The digest it should have.
        expected: Digest,
    },
    /// Nothing there.
    #[error("there is no {0} on the volume")]
    Missing(String),
}

impl StateError {
    pub(crate) fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, source }
    }

    pub(crate) fn damaged(what: impl Into<String>) -> impl FnOnce(serde_json::Error) -> Self {
        let what = what.into();
        move |error| Self::Damaged { what, why: error.to_string() }
    }
}

macro_rules! from_redb {
    ($($error:ty),*) => {$(
        impl From<$error> for StateError {
            fn from(error: $error) -> Self {
                Self::Database(Box::new(error.into()))
            }
        }
    )*};
}
from_redb!(redb::TransactionError, redb::TableError, redb::StorageError, redb::CommitError, redb::DatabaseError);
