//! Uploads of hospitals, chunk by chunk (named by BLAKE3, as the masking protocol signs them), so that a kill of either side at any point costs at most one chunk.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, MutexGuard, PoisonError};

use bytes::Bytes;
use consilium_federation::digest::canonical_json;
use consilium_federation::model::{CHUNK_BYTES, CHUNK_ELEMENTS, MAX_ELEMENTS};
use consilium_federation::{Digest, SiteName};
use consilium_secagg::ids::Digest as ChunkDigest;
use consilium_secagg::upload::chunk_digest;
use object_store::path::Path;

use super::{BlobStore, ChunkReader, RESERVED_BYTES, StoreError, check_name, journal};

/// Chunks of the largest upload: the head and the body of the largest model.
const MAX_CHUNKS: usize = 1 + (MAX_ELEMENTS as usize).div_ceil(CHUNK_ELEMENTS);

/// Whose upload, for which attempt of which round.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct UploadKey {
    /// UID of the TrainingRound.
    pub round_uid: String,
    /// The attempt, from 1.
    pub attempt: u32,
    /// Whose.
    pub site: SiteName,
}

/// Hashes off the async threads: a full chunk takes a millisecond.
async fn blake3_of(bytes: Bytes) -> Result<ChunkDigest, StoreError> {
    if bytes.len() <= 64 << 10 {
        return Ok(chunk_digest(&bytes));
    }
    tokio::task::spawn_blocking(move || chunk_digest(&bytes)).await.map_err(|_| StoreError::Stopped)
}

/// Uploads under way, as far as this process has seen them, and the space that is promised.
#[derive(Default)]
pub(super) struct Open {
    uploads: HashMap<UploadKey, OpenUpload>,
    /// Bytes of what the sum of a round will give, until its uploads are deleted.
    results: HashMap<String, u64>,
    /// Bytes that others asked for, by the number of the promise.
    others: HashMap<u64, u64>,
    promises: u64,
    /// One look at which chunks of an upload are missing at a time, or many chunks of it.
    turns: HashMap<UploadKey, Turn>,
    /// One deletion of a round's uploads at a time, or many uploads.
    rounds: HashMap<String, Turn>,
}

pub(super) type Turn = Arc<tokio::sync::RwLock<()>>;

struct OpenUpload {
    chunks: Arc<[ChunkDigest]>,
    missing: BTreeSet<u32>,
    /// Bytes of all chunks, at most.
    bytes: u64,
}

impl OpenUpload {
    fn promised(&self) -> u64 {
        (self.missing.len() as u64 * CHUNK_BYTES as u64).min(self.bytes)
    }
}

impl Open {
    fn promised(&self) -> u64 {
        let uploads: u64 = self.uploads.values().map(OpenUpload::promised).sum();
        uploads + self.results.values().sum::<u64>() + self.others.values().sum::<u64>()
    }
}

/// Space that is promised to someone, until this goes.
pub struct Reserved {
    store: BlobStore,
    number: u64,
}

impl Drop for Reserved {
    fn drop(&mut self) {
        self.store.open_uploads().others.remove(&self.number);
    }
}

impl UploadKey {
    fn folder(&self) -> Result<String, StoreError> {
        check_name("round UID", &self.round_uid)?;
        Ok(format!("rounds/{}/{}/upload/{}", self.round_uid, self.attempt, self.site))
    }

    fn manifest(&self) -> Result<Path, StoreError> {
        Ok(Path::from(format!("{}/manifest", self.folder()?)))
    }

    fn complete(&self) -> Result<Path, StoreError> {
        Ok(Path::from(format!("{}/complete", self.folder()?)))
    }

    fn chunks(&self, chunks: &[ChunkDigest]) -> Result<Path, StoreError> {
        let manifest = Digest::of_json(&chunks);
        Ok(Path::from(format!("{}/{}", self.folder()?, manifest.hex())))
    }

    fn chunk(&self, chunks: &[ChunkDigest], index: u32) -> Result<Path, StoreError> {
        Ok(Path::from(format!("{}/{index}", self.chunks(chunks)?)))
    }
}

impl BlobStore {
    /// Begins or resumes an upload of so many bytes; answers which chunks are missing. None missing: it is complete and
    /// durable. What its round's sum will give is promised room too: as much as one upload.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] when this attempt was begun with other chunks, [`StoreError::NoSpace`],
    /// [`StoreError::ChunkCount`], or the volume.
    pub async fn begin_upload(
        &self,
        key: &UploadKey,
        chunks: &[ChunkDigest],
        bytes: u64,
    ) -> Result<Vec<u32>, StoreError> {
        if !(1..=MAX_CHUNKS).contains(&chunks.len()) {
            return Err(StoreError::ChunkCount { found: chunks.len(), max: MAX_CHUNKS });
        }
        key.folder()?;
        let (round, turn) = self.turns(key);
        let _round = round.read().await;
        // Alone with this upload: a chunk that lands while the missing ones are counted would be counted for ever.
        let _turn = turn.write().await;
        let known = {
            let open = self.open_uploads();
            let same = open.uploads.get(key).filter(|upload| *upload.chunks == *chunks);
            same.map(|upload| upload.missing.iter().copied().collect::<Vec<u32>>())
        };
        if let Some(missing) = known {
            // All chunks are there and the marker is not: writing it failed, and nobody sends a chunk again.
            if missing.is_empty() {
                self.mark_complete(key, chunks).await?;
            }
            return Ok(missing);
        }
        let missing = self.missing(key, chunks).await?;
        self.admit(key, chunks.into(), &missing, bytes)?;
        let written = journal::put_sealed(&self.0.files, &key.manifest()?, &canonical_json(&chunks)).await;
        if written.is_err() {
            // An upload that is known here is not begun again, and this one has no manifest.
            self.open_uploads().uploads.remove(key);
        }
        written?;
        if missing.is_empty() {
            self.mark_complete(key, chunks).await?;
        }
        Ok(missing.into_iter().collect())
    }

    /// Stores one chunk of a begun upload, durably; answers whether it was the last one missing.
    ///
    /// # Errors
    /// [`StoreError::NotBegun`], [`StoreError::NoSuchChunk`], [`StoreError::ChunkDigest`], or the volume.
    pub async fn put_chunk(&self, key: &UploadKey, index: u32, bytes: Bytes) -> Result<bool, StoreError> {
        key.folder()?;
        let (round, turn) = self.turns(key);
        let _round = round.read().await;
        let chunks = match self.known_chunks(key) {
            Some(chunks) => chunks,
            // This process has not seen the upload: it was begun before a restart, or it is complete.
            None => {
                // What is there is read again, which may take longer than a call: that goes on without the caller, and
                // without the chunk in its hands.
                let (store, key, turn) = (self.clone(), key.clone(), turn.clone());
                let reopened = tokio::spawn(async move {
                    let _turn = turn.write_owned().await;
                    store.reopen(&key).await
                });
                reopened.await.map_err(|_| StoreError::Stopped)??
            }
        };
        let _turn = turn.read().await;
        let no_such = StoreError::NoSuchChunk { index, chunks: chunks.len() };
        let expected = *chunks.get(index as usize).ok_or(no_such)?;
        let found = blake3_of(bytes.clone()).await?;
        if found != expected || bytes.len() > CHUNK_BYTES {
            return Err(StoreError::ChunkDigest { index, found, expected });
        }
        // What is there with other bytes cannot have this digest, so it is torn.
        journal::put(&self.0.files, &key.chunk(&chunks, index)?, bytes, |_| false).await?;
        let complete = {
            let mut open = self.open_uploads();
            open.uploads.get_mut(key).is_none_or(|upload| {
                upload.missing.remove(&index);
                upload.missing.is_empty()
            })
        };
        if complete {
            self.mark_complete(key, &chunks).await?;
        }
        Ok(complete)
    }

    /// Whether every chunk of an upload was stored.
    ///
    /// # Errors
    /// When the volume fails.
    pub async fn upload_complete(&self, key: &UploadKey) -> Result<bool, StoreError> {
        match journal::read_sealed(&self.0.files, &key.complete()?).await {
            Ok(marker) => Ok(marker.is_some()),
            // The hospital begins again and the marker is written anew.
            Err(StoreError::Torn { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// The digests of an upload's chunks, in order.
    ///
    /// # Errors
    /// [`StoreError::NotBegun`], [`StoreError::Torn`], or the volume.
    pub async fn upload_chunks(&self, key: &UploadKey) -> Result<Vec<ChunkDigest>, StoreError> {
        let path = key.manifest()?;
        let bytes = journal::read_sealed(&self.0.files, &path).await?.ok_or_else(|| StoreError::NotBegun {
            round_uid: key.round_uid.clone(),
            attempt: key.attempt,
            site: key.site.to_string(),
        })?;
        serde_json::from_slice(&bytes).map_err(|_| StoreError::Torn { path: path.to_string() })
    }

    /// One stored chunk as a stream; whoever reads it checks its digest against `chunks[index]`.
    ///
    /// # Errors
    /// [`StoreError::Missing`], or the volume.
    pub async fn open_chunk(
        &self,
        key: &UploadKey,
        chunks: &[ChunkDigest],
        index: u32,
    ) -> Result<ChunkReader, StoreError> {
        journal::open(&self.0.files, &key.chunk(chunks, index)?).await
    }

    /// Deletes what was sent for a round; what is deleted already is no fault.
    ///
    /// # Errors
    /// [`StoreError::Name`], or the volume.
    pub async fn delete_round_uploads(&self, round_uid: &str) -> Result<(), StoreError> {
        check_name("round UID", round_uid)?;
        self.delete_uploads(round_uid, &format!("rounds/{round_uid}"), |_| true).await
    }

    /// Deletes what was sent for the attempts of a round up to this one, which came to nothing.
    ///
    /// # Errors
    /// [`StoreError::Name`], or the volume.
    pub async fn delete_attempts(&self, round_uid: &str, upto: u32) -> Result<(), StoreError> {
        check_name("round UID", round_uid)?;
        let folder = Path::from(format!("rounds/{round_uid}"));
        let attempts = journal::folders(&self.0.files, &folder).await?;
        for attempt in attempts.iter().filter_map(|name| name.parse::<u32>().ok()).filter(|&n| n <= upto) {
            let folder = format!("rounds/{round_uid}/{attempt}");
            self.delete_uploads(round_uid, &folder, |key| key.attempt == attempt).await?;
        }
        Ok(())
    }

    async fn delete_uploads(
        &self,
        round_uid: &str,
        folder: &str,
        which: impl Fn(&UploadKey) -> bool,
    ) -> Result<(), StoreError> {
        let round = self.open_uploads().rounds.entry(round_uid.to_owned()).or_default().clone();
        let _round = round.write().await;
        {
            let mut open = self.open_uploads();
            let stays = |key: &UploadKey| key.round_uid != round_uid || !which(key);
            open.uploads.retain(|key, _| stays(key));
            open.turns.retain(|key, _| stays(key));
            if !open.turns.keys().any(|key| key.round_uid == round_uid) {
                open.results.remove(round_uid);
            }
        }
        journal::delete_all(&self.0.files, &Path::from(folder)).await?;
        // Half-written files of a killed hub are invisible to the listing above.
        let gone = match self.0.root.as_ref().map(|root| root.join(folder)) {
            Some(folder) => match tokio::fs::remove_dir_all(&folder).await {
                Err(cause) if cause.kind() != std::io::ErrorKind::NotFound => Err(StoreError::Folder { folder, cause }),
                _ => Ok(()),
            },
            None => Ok(()),
        };
        let mut open = self.open_uploads();
        // Nobody waits for it: what comes later makes another one.
        if Arc::strong_count(&round) <= 2 {
            open.rounds.remove(round_uid);
        }
        gone
    }

    /// Promises space for something that is not an upload, or refuses when the volume is too full for it.
    ///
    /// # Errors
    /// [`StoreError::NoSpace`], or the volume.
    pub fn reserve(&self, bytes: u64) -> Result<Reserved, StoreError> {
        let mut open = self.open_uploads();
        self.check_space(open.promised() + bytes)?;
        open.promises += 1;
        let number = open.promises;
        open.others.insert(number, bytes);
        Ok(Reserved { store: self.clone(), number })
    }

    /// Bytes that are free on the volume, and those that are promised.
    ///
    /// # Errors
    /// When the volume fails.
    pub fn space(&self) -> Result<(u64, u64), StoreError> {
        let free = (self.0.free_space)().map_err(StoreError::FreeSpace)?;
        Ok((free, self.open_uploads().promised()))
    }

    fn check_space(&self, promised: u64) -> Result<(), StoreError> {
        let needed = promised + RESERVED_BYTES;
        let free = (self.0.free_space)().map_err(StoreError::FreeSpace)?;
        if free < needed { Err(StoreError::NoSpace { needed, free }) } else { Ok(()) }
    }

    /// The turn of one upload.
    #[cfg(test)]
    pub(super) fn hold(&self, key: &UploadKey) -> Turn {
        self.turns(key).1
    }

    /// Whose turn it is, with the uploads of the round and with this one.
    fn turns(&self, key: &UploadKey) -> (Turn, Turn) {
        let mut open = self.open_uploads();
        let round = open.rounds.entry(key.round_uid.clone()).or_default().clone();
        (round, open.turns.entry(key.clone()).or_default().clone())
    }

    /// Which chunks are not there whole. What is there is read once, and set aside when it is torn.
    async fn missing(&self, key: &UploadKey, chunks: &[ChunkDigest]) -> Result<BTreeSet<u32>, StoreError> {
        let known = match self.upload_chunks(key).await {
            Ok(known) => known,
            Err(StoreError::NotBegun { .. } | StoreError::Torn { .. }) => return Ok((0..chunks.len() as u32).collect()),
            Err(error) => return Err(error),
        };
        if known != chunks {
            return Err(StoreError::Conflict { path: key.manifest()?.to_string() });
        }
        if self.upload_complete(key).await? {
            return Ok(BTreeSet::new());
        }
        let present: BTreeSet<String> =
            journal::names(&self.0.files, &key.chunks(chunks)?).await?.into_iter().collect();
        let mut missing = BTreeSet::new();
        for (index, expected) in (0u32..).zip(chunks) {
            if !present.contains(&index.to_string()) || !self.is_whole(key, chunks, index, *expected).await? {
                missing.insert(index);
            }
        }
        Ok(missing)
    }

    async fn is_whole(
        &self,
        key: &UploadKey,
        chunks: &[ChunkDigest],
        index: u32,
        expected: ChunkDigest,
    ) -> Result<bool, StoreError> {
        let path = key.chunk(chunks, index)?;
        let Some(bytes) = journal::read(&self.0.files, &path).await? else { return Ok(false) };
        if blake3_of(bytes).await? == expected {
            return Ok(true);
        }
        journal::set_aside(&self.0.files, &path).await?;
        Ok(false)
    }

    /// Alone with this upload.
    async fn reopen(&self, key: &UploadKey) -> Result<Arc<[ChunkDigest]>, StoreError> {
        if let Some(chunks) = self.known_chunks(key) {
            return Ok(chunks);
        }
        let chunks: Arc<[ChunkDigest]> = self.upload_chunks(key).await?.into();
        let missing = self.missing(key, &chunks).await?;
        let bytes = chunks.len() as u64 * CHUNK_BYTES as u64;
        self.admit(key, chunks.clone(), &missing, bytes)?;
        Ok(chunks)
    }

    /// Promises the space for what is missing, and for the result, or refuses when the volume is too full for it.
    fn admit(
        &self,
        key: &UploadKey,
        chunks: Arc<[ChunkDigest]>,
        missing: &BTreeSet<u32>,
        bytes: u64,
    ) -> Result<(), StoreError> {
        let mut open = self.open_uploads();
        open.uploads.remove(key);
        let result = open.results.get(&key.round_uid).copied().unwrap_or_default().max(bytes);
        let before = open.results.insert(key.round_uid.clone(), result);
        if missing.is_empty() {
            return Ok(());
        }
        let upload = OpenUpload { chunks, missing: missing.clone(), bytes };
        if let Err(error) = self.check_space(open.promised() + upload.promised()) {
            match before {
                Some(before) => open.results.insert(key.round_uid.clone(), before),
                None => open.results.remove(&key.round_uid),
            };
            return Err(error);
        }
        open.uploads.insert(key.clone(), upload);
        Ok(())
    }

    async fn mark_complete(&self, key: &UploadKey, chunks: &[ChunkDigest]) -> Result<(), StoreError> {
        let manifest = Digest::of_json(&chunks).to_string();
        journal::put_sealed(&self.0.files, &key.complete()?, manifest.as_bytes()).await?;
        self.open_uploads().uploads.remove(key);
        Ok(())
    }

    fn known_chunks(&self, key: &UploadKey) -> Option<Arc<[ChunkDigest]>> {
        self.open_uploads().uploads.get(key).map(|upload| upload.chunks.clone())
    }

    fn open_uploads(&self) -> MutexGuard<'_, Open> {
        // A panic elsewhere leaves whole values behind: every critical section here is a few map operations.
        self.0.uploads.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
