//! The hub's journal: immutable objects on a volume, created only if absent and durable before a call returns.
//!
//! ```text
//! epoch                                         identity of this store
//! boots/<n>                                     one per start of the hub
//! objects/<2 hex>/<64 hex>                      content-addressed: specs, schemas, manifests, model chunks
//! rounds/<uid>/<attempt>/upload/<site>/manifest
//! rounds/<uid>/<attempt>/upload/<site>/<manifest digest>/<chunk>
//! rounds/<uid>/<attempt>/upload/<site>/complete
//! rounds/<uid>/<attempt>/{advertise,share,manifest,agree,unmask}/<site>   messages of the masking protocol
//! ledgers/<site>/<entries>                      the furthest end of a hospital's ledger that it has shown
//! origins/<64 hex>/<namespace>                   whose studies made a model
//! archive/<study uid>/<round>                   rounds that have left the API
//! sets/<study uid>/<round>-<attempt>            whom hospitals were asked to sign for
//! tombstones/<site>/<uid>                       work whose object is gone and that a hospital must still be told to stop
//! torn/…                                        what failed its own digest, kept for a person to look at
//! ```
//! There and equal: success. There and torn: set aside and rewritten. There and different: [`StoreError::Conflict`].

mod collect;
mod error;
mod journal;
mod kept;
mod ledgers;
mod messages;
mod objects;
mod uploads;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use object_store::ObjectStore;
use object_store::local::LocalFileSystem;

pub use collect::{Collected, Names};
pub use error::StoreError;
pub use journal::ChunkReader;
pub use kept::SignedSet;
pub use objects::Object;
pub use uploads::{Reserved, UploadKey};

/// Free bytes that an upload must leave on the volume, so that sums and journals still fit.
pub const RESERVED_BYTES: u64 = 64 << 20;

/// Says how many bytes are free on the volume.
pub type FreeSpace = Arc<dyn Fn() -> std::io::Result<u64> + Send + Sync>;

/// Where the objects lie.
pub type Files = Arc<dyn ObjectStore>;

/// A store on a folder; a clone is the same store.
#[derive(Clone)]
pub struct BlobStore(Arc<Inner>);

struct Inner {
    /// The folder that the objects lie in, if they lie in one.
    root: Option<PathBuf>,
    files: Files,
    epoch: String,
    free_space: FreeSpace,
    uploads: Mutex<uploads::Open>,
    /// Sets of studies that were asked for, read once.
    sets: Mutex<HashMap<String, Vec<SignedSet>>>,
    /// Objects are put side by side, and taken away alone: what is put again just then stays.
    taking: tokio::sync::RwLock<()>,
}

impl BlobStore {
    /// Opens the store in a folder, making it when it is empty.
    ///
    /// # Errors
    /// When the folder cannot be made, read or written.
    pub async fn open(root: &Path) -> Result<Self, StoreError> {
        let folder = root.to_owned();
        let free_space = Arc::new(move || {
            let volume = rustix::fs::statvfs(&folder)?;
            Ok(volume.f_bavail * volume.f_frsize)
        });
        Self::open_with(root, free_space).await
    }

    /// As [`Self::open`], with another measure of the free space.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub async fn open_with(root: &Path, free_space: FreeSpace) -> Result<Self, StoreError> {
        std::fs::create_dir_all(root).map_err(|cause| StoreError::Folder { folder: root.to_owned(), cause })?;
        sweep_half_written(&root.join("objects"));
        let files = LocalFileSystem::new_with_prefix(root)
            .map_err(|cause| StoreError::Io { what: "opening", path: root.display().to_string(), cause })?
            .with_fsync(true);
        Self::on(Arc::new(files), Some(root.to_owned()), free_space).await
    }

    /// Opens a store whose objects lie elsewhere than in a folder. There they have no time of their own, so that nothing of
    /// it is ever collected.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub async fn open_on(files: Files, free_space: FreeSpace) -> Result<Self, StoreError> {
        Self::on(files, None, free_space).await
    }

    async fn on(files: Files, root: Option<PathBuf>, free_space: FreeSpace) -> Result<Self, StoreError> {
        let epoch = journal::epoch(&files, rand::random()).await?;
        let (uploads, sets, taking) = Default::default();
        Ok(Self(Arc::new(Inner { root, files, epoch, free_space, uploads, sets, taking })))
    }

    /// Size of the volume, where the objects lie on one.
    ///
    /// # Errors
    /// When the volume cannot be asked.
    pub fn volume(&self) -> std::io::Result<Option<u64>> {
        let size = |root: &PathBuf| rustix::fs::statvfs(root).map(|volume| volume.f_blocks * volume.f_frsize);
        Ok(self.0.root.as_ref().map(size).transpose()?)
    }

    fn sets(&self) -> MutexGuard<'_, HashMap<String, Vec<SignedSet>>> {
        // A panic elsewhere leaves whole values behind: every critical section here is one map operation.
        self.0.sets.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Identity of this store, made once: a hub that lost its store has another.
    pub fn epoch(&self) -> &str {
        &self.0.epoch
    }

    /// A number above all that earlier starts of the hub got, from 1.
    ///
    /// # Errors
    /// When the volume fails.
    pub async fn next_boot(&self) -> Result<u64, StoreError> {
        journal::next_boot(&self.0.files).await
    }
}

/// Names that come from outside become part of a path, so they hold nothing that a path gives a meaning to.
fn check_name(what: &'static str, value: &str) -> Result<(), StoreError> {
    let fits = (1..=63).contains(&value.len()) && value.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    if fits { Ok(()) } else { Err(StoreError::name(what, value)) }
}

/// Removes what a killed hub left half-written: files that `object_store` stages as `name#number`, which no listing
/// shows and nothing refers to. A failure costs only space.
fn sweep_half_written(objects: &Path) {
    let entries = |folder: &Path| std::fs::read_dir(folder).into_iter().flatten().flatten();
    for file in entries(objects).flat_map(|folder| entries(&folder.path()).collect::<Vec<_>>()) {
        if file.file_name().to_string_lossy().contains('#') {
            let _ = std::fs::remove_file(file.path());
        }
    }
}

#[cfg(test)]
mod tests;
