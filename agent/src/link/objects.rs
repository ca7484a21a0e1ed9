//! Immutable objects of the hub: fetched once, kept by digest, checked whenever they are read.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use consilium_clinical::plan::ClinicalPlan;
use consilium_crds::{FederatedStudySpec, ModelReleaseSpec, WrittenSpec};
use consilium_federation::Digest;
use consilium_federation::model::{ModelError, ModelManifest};
use consilium_proto::v1::GetObjectRequest;
use tokio::sync::watch;

use super::{Answer, Connection, connected};
use crate::Metrics;

/// How long a fetch waits for the connection to come back.
const CONNECTION_WAIT: Duration = Duration::from_secs(15);

/// An object is not to be had.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ObjectError {
    /// The hub cannot be asked now.
    #[error("object {digest} cannot be fetched now: {why}; it is tried again")]
    Unavailable {
        /// Which object.
        digest: Digest,
        /// What was seen.
        why: String,
    },
    /// The hub sent something else.
    #[error("the hub sent {found} for object {digest}; it is not used")]
    Digest {
        /// Which object.
        digest: Digest,
        /// The digest of what came.
        found: Digest,
    },
    /// The object is no study spec, release, plan or manifest.
    #[error("object {digest} is no {what} that this agent ({version}) can read: {why}; update the agent, or tell the hub's administrators", version = crate::VERSION)]
    Content {
        /// Which object.
        digest: Digest,
        /// What it should be.
        what: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// The volume.
    #[error("{path}: {why}; check that the agent's volume is writable and not full")]
    Disk {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        why: String,
    },
}

impl ObjectError {
    /// A later try may work without anyone doing something.
    pub const fn is_transient(&self) -> bool {
        matches!(self, Self::Unavailable { .. } | Self::Disk { .. })
    }
}

/// Where objects come from; tests give their own.
pub trait ObjectSource: Send + Sync {
    /// Fetches an object; the caller checks the digest.
    fn fetch(&self, digest: Digest) -> Answer<'_, Result<Bytes, ObjectError>>;
}

/// The hub as a source.
pub(super) struct HubObjects {
    channel: watch::Receiver<Option<Connection>>,
}

impl HubObjects {
    pub(super) fn new(channel: watch::Receiver<Option<Connection>>) -> Self {
        Self { channel }
    }
}

impl ObjectSource for HubObjects {
    fn fetch(&self, digest: Digest) -> Answer<'_, Result<Bytes, ObjectError>> {
        Box::pin(async move {
            let unavailable = |why: String| ObjectError::Unavailable { digest, why };
            let mut channel = self.channel.clone();
            let channel = tokio::time::timeout(CONNECTION_WAIT, connected(&mut channel)).await.ok().flatten();
            let channel = channel.ok_or_else(|| unavailable("the hub is not connected".into()))?;
            match channel.get_object(GetObjectRequest { digest: digest.to_string() }).await {
                Ok(reply) => Ok(reply.content),
                // Also `NotFound`: a hub that has just restarted does not know yet what it asked for.
                Err(status) => Err(unavailable(status.message().to_owned())),
            }
        })
    }
}

/// Objects by digest; a cheap clone of one shared cache.
#[derive(Clone)]
pub struct ObjectCache(Arc<Inner>);

struct Inner {
    dir: PathBuf,
    limit: u64,
    source: Arc<dyn ObjectSource>,
    metrics: Metrics,
    /// One fetch at a time for each object.
    fetching: Mutex<HashMap<Digest, Weak<tokio::sync::Mutex<()>>>>,
}

impl ObjectCache {
    /// A cache in a folder of its own, which holds at most about `limit` bytes.
    pub fn new(dir: PathBuf, limit: u64, source: Arc<dyn ObjectSource>, metrics: Metrics) -> std::io::Result<Self> {
        std::fs::create_dir_all(&dir)?;
        for file in std::fs::read_dir(&dir)? {
            let path = file?.path();
            // Left by a crash in the middle of a write.
            if path.extension().is_some() {
                std::fs::remove_file(path)?;
            }
        }
        Ok(Self(Arc::new(Inner { dir, limit, source, metrics, fetching: Mutex::default() })))
    }

    /// The object's bytes, from the volume or from the hub; always with the right digest.
    pub async fn get(&self, digest: Digest) -> Result<Bytes, ObjectError> {
        let turn = self.turn(digest);
        let _turn = turn.lock().await;
        if let Some(bytes) = self.cached(digest).await? {
            return Ok(bytes);
        }
        let bytes = self.0.source.fetch(digest).await?;
        let found = Digest::of(&bytes);
        if found != digest {
            return Err(ObjectError::Digest { digest, found });
        }
        self.0.metrics.object_bytes.inc_by(bytes.len() as u64);
        self.keep(digest, bytes.clone()).await?;
        Ok(bytes)
    }

    /// A model's manifest.
    pub async fn manifest(&self, digest: Digest) -> Result<ModelManifest, ObjectError> {
        let bytes = self.get(digest).await?;
        let content = |e: ModelError| ObjectError::Content { digest, what: "model manifest", why: e.to_string() };
        ModelManifest::parse(&bytes, digest).map_err(content)
    }

    /// A study's spec.
    pub async fn study_spec(&self, digest: Digest) -> Result<Arc<FederatedStudySpec>, ObjectError> {
        let bytes = self.get(digest).await?;
        let content = |why: String| ObjectError::Content { digest, what: "study spec", why };
        let written = serde_json::from_slice(&bytes).map_err(|e| content(e.to_string()))?;
        WrittenSpec::of(written).read().map(Arc::new).map_err(|e| content(e.to_string()))
    }

    /// A release, parsed and as it came.
    pub async fn release(&self, digest: Digest) -> Result<(Arc<ModelReleaseSpec>, Bytes), ObjectError> {
        let bytes = self.get(digest).await?;
        let content = |e: serde_json::Error| ObjectError::Content { digest, what: "release", why: e.to_string() };
        let release = serde_json::from_slice(&bytes).map_err(content)?;
        Ok((Arc::new(release), bytes))
    }

    /// A clinical plan.
    pub async fn plan(&self, digest: Digest) -> Result<ClinicalPlan, ObjectError> {
        let bytes = self.get(digest).await?;
        read_plan(digest, &bytes)
    }

    fn turn(&self, digest: Digest) -> Arc<tokio::sync::Mutex<()>> {
        let mut fetching = self.0.fetching.lock().unwrap_or_else(PoisonError::into_inner);
        fetching.retain(|_, turn| turn.strong_count() > 0);
        if let Some(turn) = fetching.get(&digest).and_then(Weak::upgrade) {
            return turn;
        }
        let turn = Arc::new(tokio::sync::Mutex::new(()));
        fetching.insert(digest, Arc::downgrade(&turn));
        turn
    }

    async fn cached(&self, digest: Digest) -> Result<Option<Bytes>, ObjectError> {
        let path = self.0.dir.join(digest.hex());
        on_disk(path.clone(), move || {
            let content = match std::fs::read(&path) {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
                other => other?,
            };
            if Digest::of(&content) != digest {
                tracing::warn!(%digest, "a cached object was damaged; it is fetched again");
                std::fs::remove_file(&path)?;
                return Ok(None);
            }
            // The time of last use decides what goes first.
            std::fs::File::options().append(true).open(&path)?.set_modified(SystemTime::now())?;
            Ok(Some(content.into()))
        })
        .await
    }

    async fn keep(&self, digest: Digest, bytes: Bytes) -> Result<(), ObjectError> {
        let (dir, limit) = (self.0.dir.clone(), self.0.limit);
        let path = dir.join(digest.hex());
        on_disk(path.clone(), move || {
            prune(&dir, limit.saturating_sub(bytes.len() as u64))?;
            let draft = path.with_extension("part");
            // No fsync: what a crash tears fails its digest and is fetched again.
            std::fs::write(&draft, &bytes)?;
            std::fs::rename(&draft, &path)
        })
        .await
    }
}

/// Reads a clinical plan that came under a digest.
pub(crate) fn read_plan(digest: Digest, bytes: &[u8]) -> Result<ClinicalPlan, ObjectError> {
    let content = |why: String| ObjectError::Content { digest, what: "clinical plan", why };
    let tree = serde_json::from_slice(bytes).map_err(|e| content(e.to_string()))?;
    let plan = ClinicalPlan::read(&tree).map_err(|e| content(e.to_string()))?;
    let found = plan.digest();
    if found == digest { Ok(plan) } else { Err(content(format!("as it is read here its digest is {found}"))) }
}

/// Removes the least recently used files until the rest fits.
fn prune(dir: &Path, limit: u64) -> std::io::Result<()> {
    let mut files = Vec::new();
    let mut total = 0;
    for file in std::fs::read_dir(dir)? {
        let file = file?;
        let data = file.metadata()?;
        total += data.len();
        files.push((data.modified()?, data.len(), file.path()));
    }
    files.sort();
    for (_, size, path) in files {
        if total <= limit {
            break;
        }
        std::fs::remove_file(path)?;
        total -= size;
    }
    Ok(())
}

async fn on_disk<T: Send + 'static>(
    path: PathBuf,
    work: impl FnOnce() -> std::io::Result<T> + Send + 'static,
) -> Result<T, ObjectError> {
    let disk = |why: String| ObjectError::Disk { path, why };
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result.map_err(|e| disk(e.to_string())),
        Err(panicked) => Err(disk(panicked.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// A hub that holds these objects.
    struct Holds(Vec<Bytes>);

    impl ObjectSource for Holds {
        fn fetch(&self, digest: Digest) -> Answer<'_, Result<Bytes, ObjectError>> {
            let found = self.0.iter().find(|bytes| Digest::of(bytes) == digest).cloned();
            let missing = ObjectError::Unavailable { digest, why: "it is not there".into() };
            Box::pin(async move { found.ok_or(missing) })
        }
    }

    /// The hub is a version ahead, and a researcher uses what is new: this hospital says which field of which study it
    /// does not know and what to do, and takes part in the other study as before.
    #[tokio::test]
    async fn a_study_of_a_later_version_is_refused_by_its_field_and_no_other_with_it() {
        let plain = serde_json::to_value(crate::policy::tests::spec()).unwrap();
        let mut later = plain.clone();
        later["rounds"]["privacy"] = json!({"epsilon": "3"});
        let all = [plain, later].map(WrittenSpec::of);
        let digests = all.each_ref().map(WrittenSpec::digest);
        let dir = tempfile::tempdir().unwrap();
        let source = Arc::new(Holds(all.iter().map(|spec| spec.bytes().into()).collect()));
        let cache = ObjectCache::new(dir.path().to_owned(), 1 << 20, source, Metrics::new().unwrap()).unwrap();
        let error = cache.study_spec(digests[1]).await.unwrap_err();
        let words = error.to_string();
        assert!(!error.is_transient() && words.contains("spec.rounds.privacy") && words.contains("update"), "{words}");
        assert_eq!(cache.study_spec(digests[0]).await.unwrap().digest(), digests[0]);
    }
}
