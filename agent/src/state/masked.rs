//! Masked chunks: files of one attempt, written once, sent again as often as needed.
//!
//! Until the manifest over them is signed they can be made again, byte by byte the same. From then on they are only
//! read, and each is checked against the digest that was signed.

use std::fs;
use std::path::PathBuf;

use bytes::Bytes;
use consilium_secagg::ids::Digest;
use consilium_secagg::upload::chunk_digest;

use super::update::{chunk_name, remove_dir, sync_dir, write_synced};
use super::{AttemptKey, State, StateError, check_name};

impl State {
    /// Makes the folder of an attempt's masked chunks.
    pub fn begin_masked(&self, key: &AttemptKey) -> Result<(), StateError> {
        check_name("round UID", &key.round_uid)?;
        let dir = self.masked_dir(key);
        fs::create_dir_all(&dir).map_err(StateError::io(&dir))
    }

    /// Writes one masked chunk, durably but for its name.
    pub fn put_masked(&self, key: &AttemptKey, chunk: u32, content: &[u8]) -> Result<(), StateError> {
        write_synced(&self.masked_dir(key).join(chunk_name(chunk as usize)), content)
    }

    /// Makes the names of all chunks written so far durable.
    pub fn finish_masked(&self, key: &AttemptKey) -> Result<(), StateError> {
        sync_dir(&self.masked_dir(key))?;
        sync_dir(&self.masked_root())
    }

    /// One masked chunk, checked against the digest that was signed.
    pub fn masked_chunk(&self, key: &AttemptKey, index: u32, expected: Digest) -> Result<Bytes, StateError> {
        let path = self.masked_dir(key).join(chunk_name(index as usize));
        let content = fs::read(&path).map_err(StateError::io(&path))?;
        let found = chunk_digest(&content);
        if found != expected {
            return Err(StateError::Chunk { round_uid: key.round_uid.clone(), index, found, expected });
        }
        Ok(content.into())
    }

    /// Removes the masked chunks of a round.
    pub(super) fn delete_masked(&self, round_uid: &str) -> Result<(), StateError> {
        let prefix = format!("{round_uid}.");
        for (name, path) in self.masked_folders()? {
            if name.starts_with(&prefix) {
                remove_dir(&path)?;
            }
        }
        Ok(())
    }

    /// Removes the masked chunks of attempts that are not there any more, and makes the folder.
    pub fn sweep_masked(&self) -> Result<(), StateError> {
        let root = self.masked_root();
        fs::create_dir_all(&root).map_err(StateError::io(&root))?;
        for (name, path) in self.masked_folders()? {
            let key = name.rsplit_once('.').and_then(|(round_uid, attempt)| {
                Some(AttemptKey { round_uid: round_uid.to_owned(), attempt: attempt.parse().ok()? })
            });
            let phase = key.map(|key| self.phase(&key)).transpose()?.flatten();
            if matches!(phase, None | Some("Burned")) {
                remove_dir(&path)?;
            }
        }
        Ok(())
    }

    fn masked_folders(&self) -> Result<Vec<(String, PathBuf)>, StateError> {
        let root = self.masked_root();
        let folders = fs::read_dir(&root).map_err(StateError::io(&root))?;
        let named = folders.map(|folder| {
            let folder = folder.map_err(StateError::io(&root))?;
            Ok((folder.file_name().to_string_lossy().into_owned(), folder.path()))
        });
        named.collect()
    }

    fn masked_root(&self) -> PathBuf {
        self.0.dir.join("masked")
    }

    fn masked_dir(&self, key: &AttemptKey) -> PathBuf {
        self.masked_root().join(format!("{}.{}", key.round_uid, key.attempt))
    }
}
