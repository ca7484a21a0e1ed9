//! What can go wrong in the store, and what to do about it.

use std::path::PathBuf;

use consilium_federation::Digest;
use consilium_federation::model::ModelError;
use consilium_secagg::ids::Digest as ChunkDigest;

/// A call on the store failed. Nothing was taken over in part.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The store's folder.
    #[error("the store's folder {} cannot be made: {cause}; check --store and the volume's permissions", folder.display())]
    Folder {
        /// Which folder.
        folder: PathBuf,
        /// What the system said.
        cause: std::io::Error,
    },
    /// The volume.
    #[error("{what} {path} failed: {cause}; check the volume of the store")]
    Io {
        /// What was tried.
        what: &'static str,
        /// On which object.
        path: String,
        /// What the system said.
        cause: object_store::Error,
    },
    /// The volume, in the middle of an object.
    #[error("reading {path} failed: {cause}; check the volume of the store")]
    Reading {
        /// Which object.
        path: String,
        /// What the system said.
        cause: std::io::Error,
    },
    /// The free space could not be measured.
    #[error("the free space of the store's volume cannot be measured: {0}")]
    FreeSpace(std::io::Error),
    /// A task of this process was stopped.
    #[error("the work was stopped because the hub is shutting down")]
    Stopped,
    /// There is no such object.
    #[error("{path} is not in the store; was the volume restored from an older copy?")]
    Missing {
        /// Which object.
        path: String,
    },
    /// An object is not what its name says.
    #[error("{path} is damaged: it has the digest {found}; restore the volume, or send it again")]
    Corrupt {
        /// Which object.
        path: String,
        /// The digest it has.
        found: Digest,
    },
    /// A record whose seal is broken.
    #[error("{path} is torn: it fails its own digest; send it again")]
    Torn {
        /// Which record.
        path: String,
    },
    /// Something else is already there under this name.
    #[error("{path} is already there with other content; what is in the journal is never replaced")]
    Conflict {
        /// Which object.
        path: String,
    },
    /// An object that should be a model's manifest.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// A name that does not fit into a path.
    #[error("{what} {value:?} cannot be used as a name: expected 1 to 63 letters, digits or '-'")]
    Name {
        /// Which name.
        what: &'static str,
        /// What was given, cut to 100 characters.
        value: String,
    },
    /// The volume is too full for an upload.
    #[error(
        "the hub's volume has {free} bytes free and the upload needs {needed} with what is promised to others; try again later, or enlarge the volume"
    )]
    NoSpace {
        /// Bytes needed.
        needed: u64,
        /// Bytes free.
        free: u64,
    },
    /// A chunk came before its upload was begun.
    #[error("the upload of {site} for round {round_uid}, attempt {attempt} was not begun; call BeginUpload first")]
    NotBegun {
        /// Which round.
        round_uid: String,
        /// Which attempt.
        attempt: u32,
        /// Whose.
        site: String,
    },
    /// Wrong number of chunks.
    #[error("an upload has {found} chunks, expected 1 to {max}")]
    ChunkCount {
        /// Listed.
        found: usize,
        /// At most.
        max: usize,
    },
    /// A chunk number outside the upload.
    #[error("chunk {index} does not exist: the upload has {chunks} chunks")]
    NoSuchChunk {
        /// Which.
        index: u32,
        /// How many there are.
        chunks: usize,
    },
    /// A chunk that is not the one that the manifest lists.
    #[error("chunk {index} has the digest {found}, the upload was begun with {expected}; send that one")]
    ChunkDigest {
        /// Which.
        index: u32,
        /// The digest it has.
        found: ChunkDigest,
        /// The digest it should have.
        expected: ChunkDigest,
    },
}

impl StoreError {
    /// The same call may succeed later.
    pub fn is_transient(&self) -> bool {
        matches!(
            self,
            Self::Folder { .. }
                | Self::Io { .. }
                | Self::Reading { .. }
                | Self::FreeSpace(_)
                | Self::Stopped
                | Self::NoSpace { .. }
        )
    }

    pub(super) fn name(what: &'static str, value: &str) -> Self {
        Self::Name { what, value: value.chars().take(100).collect() }
    }
}
