//! Takes away models that nothing names any more. Each round leaves one: without an end, the volume fills.
//!
//! What is named is what the API's objects say, as text: a digest that stands in one, in whatever field, keeps its object,
//! also when this version cannot read the field. What was put, or put again, a short time ago stays too: who put it may
//! be about to name it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::SystemTime;

use consilium_federation::Digest;
use consilium_federation::model::{CHUNK_BYTES, ModelManifest};
use object_store::path::Path;

use super::objects::path_of;
use super::{BlobStore, StoreError, journal};

/// An object of this size that belongs to no model is what is left of one that was never finished.
const LARGE: u64 = 1 << 20;

/// What was taken away.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Collected {
    /// Objects.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// The digests that stand in a text, which comes in pieces.
#[derive(Debug, Default)]
pub struct Names {
    /// All of them.
    pub found: BTreeSet<Digest>,
    /// The end of what came before, which may hold the beginning of one.
    rest: Vec<u8>,
}

impl Names {
    const PREFIX: &[u8] = b"sha256:";
    const LENGTH: usize = 71;

    /// The next piece.
    pub fn read(&mut self, piece: &[u8]) {
        self.rest.extend_from_slice(piece);
        let mut at = 0;
        while let Some(window) = self.rest.get(at..at + Self::LENGTH) {
            let named = window.starts_with(Self::PREFIX).then(|| std::str::from_utf8(window).ok()?.parse().ok());
            match named.flatten() {
                Some(digest) => {
                    self.found.insert(digest);
                    at += Self::LENGTH;
                }
                None => at += 1,
            }
        }
        self.rest.drain(..at);
    }
}

struct Found {
    bytes: u64,
    put: SystemTime,
}

impl BlobStore {
    /// Takes away every model that is not among the `named` objects and was last put before `before`, with those of its
    /// chunks that no other model has, and what is left of models that were never finished.
    ///
    /// # Errors
    /// When the volume fails, or a named model cannot be read: then nothing is taken away, for nobody knows its chunks.
    pub async fn collect(&self, named: &BTreeSet<Digest>, before: SystemTime) -> Result<Collected, StoreError> {
        let objects = self.objects().await?;
        let manifests = self.manifests(&objects, named).await?;
        let is_old = |digest: &Digest| objects.get(digest).is_some_and(|found| found.put < before);
        let stays = |digest: &Digest| named.contains(digest) || !is_old(digest);
        let of_models = |alive: bool| -> BTreeSet<Digest> {
            let models = manifests.iter().filter(|(model, _)| stays(model) == alive);
            models.flat_map(|(_, chunks)| chunks.iter().copied()).collect()
        };
        let (needed, spare) = (of_models(true), of_models(false));
        let mut gone = Collected::default();
        // A model goes before its chunks: one that is there is whole, whenever this ends.
        let models = manifests.keys().filter(|model| !stays(model));
        let parts = objects.iter().filter(|(digest, found)| {
            let part = spare.contains(*digest) || found.bytes >= LARGE && !manifests.contains_key(*digest);
            part && !needed.contains(*digest) && !stays(digest)
        });
        for digest in models.chain(parts.map(|(digest, _)| digest)) {
            let bytes = self.take(*digest, before).await?;
            if bytes.is_some() && manifests.contains_key(digest) {
                self.forget_origins(*digest).await?;
            }
            gone = Collected {
                objects: gone.objects + u64::from(bytes.is_some()),
                bytes: gone.bytes + bytes.unwrap_or(0),
            };
        }
        Ok(gone)
    }

    /// Stores a model's table of contents, when all of its chunks are there; they count as put now.
    ///
    /// # Errors
    /// [`StoreError::Missing`] when a chunk is not there: it took so long to make the model that its beginning was taken
    /// for what nobody needs. Or the volume.
    pub async fn put_model(&self, manifest: &ModelManifest) -> Result<Digest, StoreError> {
        {
            let _stays = self.0.taking.read().await;
            for chunk in &manifest.chunks {
                let path = path_of(*chunk);
                if !journal::exists(&self.0.files, &path).await? {
                    return Err(StoreError::Missing { path: path.to_string() });
                }
                self.renew(&path)?;
            }
        }
        self.put_object(manifest.to_bytes().into()).await
    }

    /// Says that an object was put now.
    pub(super) fn renew(&self, path: &Path) -> Result<(), StoreError> {
        use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT, utimensat};
        let Some(root) = &self.0.root else { return Ok(()) };
        let mark = |tv_nsec| Timespec { tv_sec: 0, tv_nsec };
        let times = Timestamps { last_access: mark(UTIME_OMIT), last_modification: mark(UTIME_NOW) };
        let written = utimensat(CWD, root.join(path.as_ref()), &times, AtFlags::empty());
        written.map_err(|cause| StoreError::Reading { path: path.to_string(), cause: cause.into() })
    }

    /// Takes one object away unless it was put again; its bytes.
    async fn take(&self, digest: Digest, before: SystemTime) -> Result<Option<u64>, StoreError> {
        let path = path_of(digest);
        let Some(root) = &self.0.root else { return Ok(None) };
        let file = root.join(path.as_ref());
        let _alone = self.0.taking.write().await;
        let failed = |cause: std::io::Error| StoreError::Reading { path: path.to_string(), cause };
        let known = match file.metadata() {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            known => known.map_err(failed)?,
        };
        if known.modified().map_err(failed)? >= before {
            return Ok(None);
        }
        std::fs::remove_file(file).map_err(failed)?;
        Ok(Some(known.len()))
    }

    /// All objects.
    async fn objects(&self) -> Result<BTreeMap<Digest, Found>, StoreError> {
        let Some(root) = &self.0.root else { return Ok(BTreeMap::new()) };
        let root = root.join("objects");
        let walked = tokio::task::spawn_blocking(move || {
            walk(&root).map_err(|cause| StoreError::Folder { folder: root.clone(), cause })
        });
        walked.await.map_err(|_| StoreError::Stopped)?
    }

    /// The models among them, and the chunks of each.
    async fn manifests(
        &self,
        objects: &BTreeMap<Digest, Found>,
        named: &BTreeSet<Digest>,
    ) -> Result<BTreeMap<Digest, Vec<Digest>>, StoreError> {
        let mut manifests = BTreeMap::new();
        for (digest, _) in
            objects.iter().filter(|(digest, found)| found.bytes < CHUNK_BYTES as u64 || named.contains(digest))
        {
            match self.get_object(*digest).await {
                Ok(bytes) => {
                    let manifest = ModelManifest::parse(&bytes, *digest).ok();
                    manifests.extend(manifest.map(|manifest| (*digest, manifest.chunks)));
                }
                Err(StoreError::Missing { .. }) => {}
                Err(error) if named.contains(digest) => return Err(error),
                Err(error) => {
                    tracing::warn!(%digest, %error, "an object of the store that nothing names cannot be read")
                }
            }
        }
        Ok(manifests)
    }
}

fn walk(root: &std::path::Path) -> std::io::Result<BTreeMap<Digest, Found>> {
    let mut found = BTreeMap::new();
    let folders = match std::fs::read_dir(root) {
        // Nothing was put yet.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(found),
        folders => folders?,
    };
    for folder in folders {
        let files: Vec<PathBuf> =
            std::fs::read_dir(folder?.path())?.map(|file| Ok(file?.path())).collect::<std::io::Result<_>>()?;
        for file in files {
            let name = file.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            // Half-written ones have other names.
            let Ok(digest) = format!("sha256:{name}").parse::<Digest>() else { continue };
            let meta = file.metadata()?;
            found.insert(digest, Found { bytes: meta.len(), put: meta.modified()? });
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use consilium_federation::model::{Tensor, TensorSchema};

    use super::*;

    async fn put(store: &BlobStore, chunks: &[u8]) -> Digest {
        let mut digests = Vec::new();
        for n in chunks {
            digests.push(store.put_object(vec![*n; CHUNK_BYTES].into()).await.unwrap());
        }
        let elements = (chunks.len() * CHUNK_BYTES / 4) as u64;
        let schema = TensorSchema(vec![Tensor { name: "w".into(), shape: vec![elements] }]);
        let manifest = ModelManifest::new(schema, digests).unwrap();
        store.put_object(manifest.to_bytes().into()).await.unwrap()
    }

    /// Later than everything that was put so far.
    fn soon() -> SystemTime {
        SystemTime::now() + Duration::from_secs(60)
    }

    fn file(store: &BlobStore, digest: Digest) -> PathBuf {
        store.0.root.as_ref().unwrap().join(path_of(digest).as_ref())
    }

    /// A study of fifty rounds with a model of 400 MB would fill a volume of 20 GB, and stop every study on it.
    #[tokio::test]
    async fn a_model_goes_when_nothing_names_it_and_takes_no_chunk_of_another_along() {
        let folder = tempfile::tempdir().unwrap();
        let store = BlobStore::open(folder.path()).await.unwrap();
        let (kept, old) = (put(&store, &[1, 2]).await, put(&store, &[2, 3]).await);
        for model in [kept, old] {
            store.keep_origin(model, "research").await.unwrap();
        }
        let spec = store.put_object(b"{\"a\":1}"[..].into()).await.unwrap();
        let unfinished = store.put_object(vec![9; CHUNK_BYTES].into()).await.unwrap();
        let named = BTreeSet::from([kept]);
        // What has just been put may be about to be named.
        let young = SystemTime::now() - Duration::from_secs(3600);
        assert_eq!(store.collect(&named, young).await.unwrap(), Collected::default());
        let gone = store.collect(&named, soon()).await.unwrap();
        assert_eq!(gone.objects, 3);
        // Whose it was goes with it, or a record would stay of every model that there ever was.
        assert!(store.is_from(kept, "research").await.unwrap() && !store.is_from(old, "research").await.unwrap());
        assert!(gone.bytes > 2 * CHUNK_BYTES as u64);
        for chunk in store.get_manifest(kept).await.unwrap().chunks {
            store.get_object(chunk).await.unwrap();
        }
        for lost in [old, unfinished, Digest::of(&[3; CHUNK_BYTES])] {
            assert!(!store.has_object(lost).await.unwrap());
        }
        assert!(store.has_object(spec).await.unwrap(), "small ones that are no model are specs, schemas and rosters");
        assert_eq!(store.collect(&named, soon()).await.unwrap(), Collected::default());
    }

    /// A new round's sum may give a chunk that an old model had: its object is there, so nothing is written.
    #[tokio::test]
    async fn what_is_put_again_counts_as_new() {
        let folder = tempfile::tempdir().unwrap();
        let store = BlobStore::open(folder.path()).await.unwrap();
        let model = put(&store, &[1]).await;
        let old = SystemTime::now() - Duration::from_secs(7200);
        for digest in [model, Digest::of(&[1; CHUNK_BYTES])] {
            std::fs::File::open(file(&store, digest)).unwrap().set_modified(old).unwrap();
        }
        put(&store, &[1]).await;
        let hour_ago = SystemTime::now() - Duration::from_secs(3600);
        assert_eq!(store.collect(&BTreeSet::new(), hour_ago).await.unwrap(), Collected::default());
    }

    /// A sum that takes longer than what nothing names is kept must not give a model with holes.
    #[tokio::test]
    async fn a_model_is_whole_or_there_is_none() {
        let folder = tempfile::tempdir().unwrap();
        let store = BlobStore::open(folder.path()).await.unwrap();
        let model = store.get_manifest(put(&store, &[1, 2]).await).await.unwrap();
        assert_eq!(store.put_model(&model).await.unwrap(), model.digest());
        std::fs::remove_file(file(&store, model.chunks[0])).unwrap();
        assert!(matches!(store.put_model(&model).await, Err(StoreError::Missing { .. })));
    }

    /// Without its table of contents nobody knows which chunks a named model needs.
    #[tokio::test]
    async fn with_a_named_model_that_cannot_be_read_nothing_goes() {
        let folder = tempfile::tempdir().unwrap();
        let store = BlobStore::open(folder.path()).await.unwrap();
        let (kept, other) = (put(&store, &[1]).await, put(&store, &[2]).await);
        std::fs::write(file(&store, kept), b"torn").unwrap();
        assert!(store.collect(&BTreeSet::from([kept]), soon()).await.is_err());
        assert!(store.has_object(other).await.unwrap());
    }

    /// A digest that lies across two pieces of an answer is one all the same, or a model in use would go.
    #[test]
    fn names_are_found_wherever_they_lie_in_the_pieces() {
        let (a, b) = (Digest::of(b"a"), Digest::of(b"b"));
        let text = format!("{{\"x\":\"{a}\",\"sha256:\":[\"ssha256:{b}\",\"sha256:{}\"]}}", "0".repeat(63));
        for size in 1..=text.len() {
            let mut names = Names::default();
            text.as_bytes().chunks(size).for_each(|piece| names.read(piece));
            assert_eq!(names.found, BTreeSet::from([a, b]), "{size}");
        }
    }
}
