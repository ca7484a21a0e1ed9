//! The rules of the journal over a plain object store: create only if absent, tell torn from different, and the
//! two records that every store has.

use std::io::{Cursor, Read, Seek as _};

use bytes::Bytes;
use consilium_federation::Digest;
use futures::TryStreamExt;
use object_store::path::Path;
use object_store::{Error, GetResultPayload, ObjectStore, ObjectStoreExt, PutMode, PutOptions};

use super::Files;
use super::error::StoreError;

/// Bytes of `sha256:<64 hex>` and a line feed, in front of a sealed record.
const SEAL: usize = 72;
/// Times that a put looks again.
const TURNS: u32 = 8;

/// One stored object as a stream of bytes; nothing says yet that they are the right ones.
pub struct ChunkReader(Source);

enum Source {
    File(std::fs::File),
    Memory(Cursor<Bytes>),
}

impl ChunkReader {
    pub(super) fn of(bytes: Bytes) -> Self {
        Self(Source::Memory(Cursor::new(bytes)))
    }

    /// Back to the first byte.
    pub(super) fn rewind(&mut self) -> std::io::Result<()> {
        match &mut self.0 {
            Source::File(file) => file.rewind(),
            Source::Memory(bytes) => bytes.rewind(),
        }
    }
}

impl Read for ChunkReader {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        match &mut self.0 {
            Source::File(file) => file.read(buffer),
            Source::Memory(bytes) => bytes.read(buffer),
        }
    }
}

fn io(what: &'static str, path: &Path, cause: Error) -> StoreError {
    StoreError::Io { what, path: path.to_string(), cause }
}

/// Puts an object that must not be replaced.
///
/// Equal content that is already there is success. Other content is set aside and replaced when `is_whole` says
/// that it is torn, and a [`StoreError::Conflict`] otherwise.
pub(super) async fn put(
    files: &Files,
    path: &Path,
    content: Bytes,
    is_whole: impl Fn(&[u8]) -> bool,
) -> Result<(), StoreError> {
    // Each turn settles it but when another writes at the same moment, or something is in the way that is no object.
    for _ in 0..TURNS {
        // Looking first costs nothing for what is new, and spares writing what a replay brings a second time.
        match read(files, path).await? {
            None => {}
            Some(there) if there == content => return Ok(()),
            Some(there) if is_whole(&there) => return Err(StoreError::Conflict { path: path.to_string() }),
            Some(_) => set_aside(files, path).await?,
        }
        let options = PutOptions::from(PutMode::Create);
        match files.put_opts(path, content.clone().into(), options).await {
            Ok(_) => return Ok(()),
            // Someone else was first: look at what they wrote.
            Err(Error::AlreadyExists { .. }) => {}
            Err(cause) => return Err(io("writing", path, cause)),
        }
    }
    let cause = Error::AlreadyExists { path: path.to_string(), source: "it is there and cannot be read".into() };
    Err(io("writing", path, cause))
}

/// Reads an object; `None` when it is not there.
pub(super) async fn read(files: &Files, path: &Path) -> Result<Option<Bytes>, StoreError> {
    match files.get(path).await {
        Ok(found) => found.bytes().await.map(Some).map_err(|cause| io("reading", path, cause)),
        Err(Error::NotFound { .. }) => Ok(None),
        Err(cause) => Err(io("reading", path, cause)),
    }
}

/// Opens an object as a stream.
pub(super) async fn open(files: &Files, path: &Path) -> Result<ChunkReader, StoreError> {
    let found = match files.get(path).await {
        Ok(found) => found,
        Err(Error::NotFound { .. }) => return Err(StoreError::Missing { path: path.to_string() }),
        Err(cause) => return Err(io("reading", path, cause)),
    };
    let source = match found.payload {
        GetResultPayload::File(file, _) => Source::File(file),
        // Other stores than a folder have no file to read from; a chunk is small enough to hold.
        GetResultPayload::Stream(_) => {
            Source::Memory(Cursor::new(found.bytes().await.map_err(|cause| io("reading", path, cause))?))
        }
    };
    Ok(ChunkReader(source))
}

/// Whether an object is there.
pub(super) async fn exists(files: &Files, path: &Path) -> Result<bool, StoreError> {
    match files.head(path).await {
        Ok(_) => Ok(true),
        Err(Error::NotFound { .. }) => Ok(false),
        Err(cause) => Err(io("looking at", path, cause)),
    }
}

/// Names of the objects directly under a prefix.
pub(super) async fn names(files: &Files, prefix: &Path) -> Result<Vec<String>, StoreError> {
    let listed = files.list_with_delimiter(Some(prefix)).await.map_err(|cause| io("listing", prefix, cause))?;
    Ok(listed.objects.iter().filter_map(|o| o.location.filename().map(str::to_owned)).collect())
}

/// Names of the folders directly under a prefix.
pub(super) async fn folders(files: &Files, prefix: &Path) -> Result<Vec<String>, StoreError> {
    let listed = files.list_with_delimiter(Some(prefix)).await.map_err(|cause| io("listing", prefix, cause))?;
    Ok(listed.common_prefixes.iter().filter_map(|folder| folder.filename().map(str::to_owned)).collect())
}

/// Deletes everything under a prefix; what is gone already is no fault.
pub(super) async fn delete_all(files: &Files, prefix: &Path) -> Result<(), StoreError> {
    let paths: Vec<Path> = files
        .list(Some(prefix))
        .map_ok(|found| found.location)
        .try_collect()
        .await
        .map_err(|cause| io("listing", prefix, cause))?;
    for path in paths {
        match files.delete(&path).await {
            Ok(()) | Err(Error::NotFound { .. }) => {}
            Err(cause) => return Err(io("deleting", &path, cause)),
        }
    }
    Ok(())
}

/// Moves a torn object out of the way and keeps it for a person to look at.
pub(super) async fn set_aside(files: &Files, path: &Path) -> Result<(), StoreError> {
    tracing::warn!(path = %path, "an object in the store fails its own digest; it is set aside under torn/");
    for n in 0u32.. {
        let aside = Path::from(format!("torn/{path}.{n}"));
        match files.rename_if_not_exists(path, &aside).await {
            Ok(()) | Err(Error::NotFound { .. }) => return Ok(()),
            Err(Error::AlreadyExists { .. }) => {}
            Err(cause) => return Err(io("setting aside", path, cause)),
        }
    }
    Ok(())
}

/// A record that can be told torn from whole: its digest in a line of its own, then its bytes.
pub(super) fn seal(bytes: &[u8]) -> Bytes {
    let mut sealed = format!("{}\n", Digest::of(bytes)).into_bytes();
    sealed.extend_from_slice(bytes);
    sealed.into()
}

/// The bytes of a sealed record; `None` when it is torn.
pub(super) fn unseal(sealed: &Bytes) -> Option<Bytes> {
    let digest: Digest = std::str::from_utf8(sealed.get(..SEAL - 1)?).ok()?.parse().ok()?;
    let bytes = (sealed.len() >= SEAL).then(|| sealed.slice(SEAL..))?;
    (sealed[SEAL - 1] == b'\n' && Digest::of(&bytes) == digest).then_some(bytes)
}

/// Puts a sealed record.
pub(super) async fn put_sealed(files: &Files, path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
    put(files, path, seal(bytes), |there| unseal(&Bytes::copy_from_slice(there)).is_some()).await
}

/// Reads a sealed record; `None` when it is not there, an error when it is torn.
pub(super) async fn read_sealed(files: &Files, path: &Path) -> Result<Option<Bytes>, StoreError> {
    match read(files, path).await? {
        None => Ok(None),
        Some(sealed) => unseal(&sealed).map(Some).ok_or_else(|| StoreError::Torn { path: path.to_string() }),
    }
}

/// The identity of this store, made from `fresh` if it has none yet.
pub(super) async fn epoch(files: &Files, fresh: [u8; 16]) -> Result<String, StoreError> {
    let path = Path::from("epoch");
    loop {
        match read_sealed(files, &path).await {
            Ok(Some(known)) => return Ok(String::from_utf8_lossy(&known).into_owned()),
            Ok(None) => {}
            Err(StoreError::Torn { .. }) => set_aside(files, &path).await?,
            Err(error) => return Err(error),
        }
        match put_sealed(files, &path, hex::encode(fresh).as_bytes()).await {
            // Someone else was first: theirs counts.
            Ok(()) | Err(StoreError::Conflict { .. }) => {}
            Err(error) => return Err(error),
        }
    }
}

/// A number above all that were given out before, from 1.
pub(super) async fn next_boot(files: &Files) -> Result<u64, StoreError> {
    let folder = Path::from("boots");
    loop {
        let known: Vec<u64> = names(files, &folder).await?.iter().filter_map(|n| n.parse().ok()).collect();
        let next = known.iter().max().map_or(1, |last| last + 1);
        let path = Path::from(format!("boots/{next}"));
        let options = PutOptions::from(PutMode::Create);
        match files.put_opts(&path, Bytes::new().into(), options).await {
            Ok(_) => {}
            Err(Error::AlreadyExists { .. }) => continue,
            Err(cause) => return Err(io("writing", &path, cause)),
        }
        // Only the highest counts, so older ones need not pile up.
        for old in known {
            let path = Path::from(format!("boots/{old}"));
            match files.delete(&path).await {
                Ok(()) | Err(Error::NotFound { .. }) => {}
                Err(cause) => return Err(io("deleting", &path, cause)),
            }
        }
        return Ok(next);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A record cut off by a power failure must never be taken for a whole one.
    #[test]
    fn a_sealed_record_shorter_or_changed_is_torn() {
        let sealed = seal(b"content");
        assert_eq!(unseal(&sealed).unwrap(), "content");
        for cut in 0..sealed.len() {
            assert!(unseal(&sealed.slice(..cut)).is_none(), "{cut}");
        }
        for at in 0..sealed.len() {
            let mut spoilt = sealed.to_vec();
            spoilt[at] ^= 1;
            assert!(unseal(&spoilt.into()).is_none(), "{at}");
        }
    }
}
