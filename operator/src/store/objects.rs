//! Content-addressed objects, and models as manifests of them.

use std::io::Read as _;

use bytes::Bytes;
use consilium_federation::Digest;
use consilium_federation::digest::canonical_json;
use consilium_federation::model::ModelManifest;
use object_store::path::Path;
use serde::Serialize;
use sha2::{Digest as _, Sha256};

use super::{BlobStore, ChunkReader, StoreError, check_name, journal};

pub(super) fn path_of(digest: Digest) -> Path {
    let hex = digest.hex();
    Path::from(format!("objects/{}/{hex}", &hex[..2]))
}

/// Hashes off the async threads: a full chunk takes milliseconds.
pub(super) async fn digest_of(bytes: Bytes) -> Result<Digest, StoreError> {
    if bytes.len() <= 64 << 10 {
        return Ok(Digest::of(&bytes));
    }
    tokio::task::spawn_blocking(move || Digest::of(&bytes)).await.map_err(|_| StoreError::Stopped)
}

/// An object that is handed out piece by piece.
pub struct Object {
    reader: ChunkReader,
    length: usize,
}

impl Object {
    /// One that is made for the occasion.
    pub fn of(bytes: Bytes) -> Self {
        Self { length: bytes.len(), reader: ChunkReader::of(bytes) }
    }

    /// Bytes in it.
    pub fn length(&self) -> usize {
        self.length
    }

    /// The next `bytes` bytes; blocks.
    ///
    /// # Errors
    /// When the volume fails, or the object ends before.
    pub fn read(&mut self, bytes: usize) -> std::io::Result<Bytes> {
        let mut piece = vec![0; bytes];
        self.reader.read_exact(&mut piece)?;
        Ok(piece.into())
    }
}

/// Reads all of an object; its length and its digest.
fn read_through(reader: &mut ChunkReader) -> std::io::Result<(usize, Digest)> {
    let (mut tile, mut length, mut hasher) = (vec![0; 128 << 10], 0, Sha256::new());
    loop {
        let read = reader.read(&mut tile)?;
        if read == 0 {
            return Ok((length, Digest::from_bytes(hasher.finalize().into())));
        }
        length += read;
        hasher.update(&tile[..read]);
    }
}

impl BlobStore {
    /// The object with this digest, verified and not held in memory.
    ///
    /// # Errors
    /// As [`Self::get_object`].
    pub async fn open_verified(&self, digest: Digest) -> Result<Object, StoreError> {
        let path = path_of(digest);
        let mut reader = journal::open(&self.0.files, &path).await?;
        let read = tokio::task::spawn_blocking(move || {
            let (length, found) = read_through(&mut reader)?;
            reader.rewind()?;
            Ok::<_, std::io::Error>((Object { reader, length }, found))
        });
        let failed = |cause| StoreError::Reading { path: path.to_string(), cause };
        let (object, found) = read.await.map_err(|_| StoreError::Stopped)?.map_err(failed)?;
        if found != digest {
            return Err(StoreError::Corrupt { path: path.to_string(), found });
        }
        Ok(object)
    }

    /// Stores bytes under their digest, durably; a second time is a no-op.
    ///
    /// # Errors
    /// When the volume fails.
    pub async fn put_object(&self, bytes: Bytes) -> Result<Digest, StoreError> {
        let digest = digest_of(bytes.clone()).await?;
        let path = path_of(digest);
        let _stays = self.0.taking.read().await;
        // What is there with other bytes cannot have this digest, so it is torn.
        journal::put(&self.0.files, &path, bytes, |_| false).await?;
        self.renew(&path)?;
        Ok(digest)
    }

    /// The bytes with this digest, verified.
    ///
    /// # Errors
    /// [`StoreError::Missing`], [`StoreError::Corrupt`], or the volume.
    pub async fn get_object(&self, digest: Digest) -> Result<Bytes, StoreError> {
        let path = path_of(digest);
        let missing = || StoreError::Missing { path: path.to_string() };
        let bytes = journal::read(&self.0.files, &path).await?.ok_or_else(missing)?;
        let found = digest_of(bytes.clone()).await?;
        if found != digest {
            return Err(StoreError::Corrupt { path: path.to_string(), found });
        }
        Ok(bytes)
    }

    /// An object as a stream; whoever reads it checks its digest.
    ///
    /// # Errors
    /// [`StoreError::Missing`], or the volume.
    pub async fn open_object(&self, digest: Digest) -> Result<ChunkReader, StoreError> {
        journal::open(&self.0.files, &path_of(digest)).await
    }

    /// Whether an object with this digest is there; its bytes are not looked at.
    ///
    /// # Errors
    /// When the volume fails.
    pub async fn has_object(&self, digest: Digest) -> Result<bool, StoreError> {
        journal::exists(&self.0.files, &path_of(digest)).await
    }

    /// Stores a value as canonical JSON; the digest is `Digest::of_json` of it.
    ///
    /// # Errors
    /// As [`Self::put_object`].
    pub async fn put_json<T: Serialize>(&self, value: &T) -> Result<Digest, StoreError> {
        self.put_object(canonical_json(value).into()).await
    }

    /// A model's table of contents.
    ///
    /// # Errors
    /// As [`Self::get_object`], and when the object is no manifest.
    pub async fn get_manifest(&self, model: Digest) -> Result<ModelManifest, StoreError> {
        Ok(ModelManifest::parse(&self.get_object(model).await?, model)?)
    }

    /// Keeps what is left of a round after it has left the API.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] when another record is archived under this number, [`StoreError::Name`], or the volume.
    pub async fn archive(&self, study_uid: &str, number: u32, record: &serde_json::Value) -> Result<(), StoreError> {
        check_name("study UID", study_uid)?;
        let path = Path::from(format!("archive/{study_uid}/{number}"));
        journal::put_sealed(&self.0.files, &path, &canonical_json(record)).await
    }
}
