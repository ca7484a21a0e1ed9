//! What outlives the objects that it came from: tombstones that no hospital has acknowledged yet, and which sets of
//! hospitals were asked to sign.

use std::collections::BTreeSet;

use consilium_federation::assignment::Item;
use consilium_federation::digest::canonical_json;
use consilium_federation::task::TaskKind;
use consilium_federation::{Digest, SiteName};
use object_store::ObjectStoreExt as _;
use object_store::path::Path;
use serde::{Deserialize, Serialize};

use super::{BlobStore, StoreError, check_name, journal};

/// Hospitals that were asked to sign that they are in one sum.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignedSet {
    /// Number of the round.
    pub round: u32,
    /// The attempt in it.
    pub attempt: u32,
    /// A sum of updates (Train) or of an evaluation.
    pub kind: TaskKind,
    /// Who.
    pub sites: BTreeSet<SiteName>,
}

impl BlobStore {
    /// Keeps a tombstone, durably. The first for a piece of work stands: what counts in it is its UID.
    ///
    /// # Errors
    /// [`StoreError::Name`], or the volume.
    pub async fn keep_tombstone(&self, site: &SiteName, item: &Item) -> Result<(), StoreError> {
        check_name("UID", &item.uid)?;
        let path = Path::from(format!("tombstones/{site}/{}", item.uid));
        match journal::put_sealed(&self.0.files, &path, &canonical_json(item)).await {
            Ok(()) | Err(StoreError::Conflict { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// The tombstones that are kept. One that cannot be read, or is of a later version, counts by its name, the UID:
    /// otherwise its hospital would never be told to stop.
    ///
    /// # Errors
    /// When the volume fails.
    pub async fn tombstones(&self) -> Result<Vec<(SiteName, Item)>, StoreError> {
        let mut kept = Vec::new();
        for site in journal::folders(&self.0.files, &Path::from("tombstones")).await? {
            let Ok(site) = site.parse::<SiteName>() else { continue };
            let folder = Path::from(format!("tombstones/{site}"));
            for name in journal::names(&self.0.files, &folder).await? {
                let path = Path::from(format!("tombstones/{site}/{name}"));
                let record = match journal::read_sealed(&self.0.files, &path).await {
                    Ok(Some(record)) => serde_json::from_slice(&record).ok(),
                    Ok(None) => continue,
                    Err(StoreError::Torn { .. }) => None,
                    Err(error) => return Err(error),
                };
                let item = record.unwrap_or_else(|| {
                    tracing::warn!(path = %path, "a tombstone cannot be read; its hospital is told to stop by its name");
                    Item::tombstone(name)
                });
                kept.push((site.clone(), item));
            }
        }
        Ok(kept)
    }

    /// Deletes a tombstone that its hospital has acknowledged.
    ///
    /// # Errors
    /// [`StoreError::Name`], or the volume.
    pub async fn forget_tombstone(&self, site: &SiteName, uid: &str) -> Result<(), StoreError> {
        check_name("UID", uid)?;
        let path = Path::from(format!("tombstones/{site}/{uid}"));
        match self.0.files.delete(&path).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(cause) => Err(StoreError::Io { what: "deleting", path: path.to_string(), cause }),
        }
    }

    /// Keeps that a study of this namespace made a model, durably. Objects of the API say so too, but their status may be
    /// written by more people than the operator.
    ///
    /// # Errors
    /// [`StoreError::Name`], or the volume.
    pub async fn keep_origin(&self, model: Digest, namespace: &str) -> Result<(), StoreError> {
        journal::put_sealed(&self.0.files, &origin(model, namespace)?, b"").await
    }

    /// Whether a study of this namespace made the model.
    ///
    /// # Errors
    /// [`StoreError::Name`], or the volume.
    pub async fn is_from(&self, model: Digest, namespace: &str) -> Result<bool, StoreError> {
        journal::exists(&self.0.files, &origin(model, namespace)?).await
    }

    /// Forgets who made a model that is gone.
    pub(super) async fn forget_origins(&self, model: Digest) -> Result<(), StoreError> {
        journal::delete_all(&self.0.files, &Path::from(format!("origins/{}", model.hex()))).await
    }

    /// Keeps whom the hospitals of a study are asked to sign for, durably; the same again is a no-op.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] when another set was kept for this attempt, [`StoreError::Name`], or the volume.
    pub async fn keep_signed_set(&self, study_uid: &str, set: &SignedSet) -> Result<(), StoreError> {
        check_name("study UID", study_uid)?;
        let path = Path::from(format!("sets/{study_uid}/{}-{}", set.round, set.attempt));
        let known = self.signed_sets(study_uid).await?;
        if known.contains(set) {
            return Ok(());
        }
        journal::put_sealed(&self.0.files, &path, &canonical_json(set)).await?;
        self.sets().entry(study_uid.to_owned()).or_default().push(set.clone());
        Ok(())
    }

    /// All sets that the hospitals of a study were asked to sign for, as far as they can be read.
    ///
    /// # Errors
    /// [`StoreError::Name`], or the volume.
    pub async fn signed_sets(&self, study_uid: &str) -> Result<Vec<SignedSet>, StoreError> {
        check_name("study UID", study_uid)?;
        if let Some(known) = self.sets().get(study_uid) {
            return Ok(known.clone());
        }
        let mut sets = Vec::new();
        for name in journal::names(&self.0.files, &Path::from(format!("sets/{study_uid}"))).await? {
            let path = Path::from(format!("sets/{study_uid}/{name}"));
            match journal::read_sealed(&self.0.files, &path).await {
                Ok(Some(record)) => sets.extend(serde_json::from_slice::<SignedSet>(&record).ok()),
                Ok(None) | Err(StoreError::Torn { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        sets.sort_by_key(|set| (set.round, set.attempt));
        self.sets().insert(study_uid.to_owned(), sets.clone());
        Ok(sets)
    }
}

fn origin(model: Digest, namespace: &str) -> Result<Path, StoreError> {
    check_name("namespace", namespace)?;
    Ok(Path::from(format!("origins/{}/{namespace}", model.hex())))
}

#[cfg(test)]
mod tests {
    use consilium_federation::assignment::{DeployWork, ItemState, Work};
    use consilium_federation::ladder::Stage;

    use super::*;

    fn site(name: &str) -> SiteName {
        name.parse().unwrap()
    }

    fn tombstone(uid: &str, stage: Stage) -> Item {
        let work = DeployWork {
            release: "r".into(),
            release_digest: Digest::of(b"r"),
            model: Digest::of(b"m"),
            stage,
            approvals: vec![],
            plan: None,
            stage_approvals: Vec::new(),
        };
        Item { uid: uid.into(), state: ItemState::Cancelled, work: Work::Deploy(work) }
    }

    /// A hospital that comes back after the hub was restarted must still be told to stop.
    #[tokio::test]
    async fn tombstones_outlive_the_process_until_they_are_heard() {
        let folder = tempfile::tempdir().unwrap();
        let store = BlobStore::open(folder.path()).await.unwrap();
        store.keep_tombstone(&site("alder"), &tombstone("u-1", Stage::Shadow)).await.unwrap();
        store.keep_tombstone(&site("birch"), &tombstone("u-1", Stage::Shadow)).await.unwrap();
        store.keep_tombstone(&site("birch"), &tombstone("u-1", Stage::Triage)).await.unwrap();
        assert!(store.keep_tombstone(&site("birch"), &tombstone("../x", Stage::Triage)).await.is_err());
        let again = BlobStore::open(folder.path()).await.unwrap();
        let mut kept = again.tombstones().await.unwrap();
        kept.sort_by(|a, b| a.0.cmp(&b.0));
        let expected = [site("alder"), site("birch")].map(|site| (site, tombstone("u-1", Stage::Shadow)));
        assert_eq!(kept, expected);
        // One of a later version, or damaged, still tells its hospital to stop: by its name.
        tokio::fs::write(folder.path().join("tombstones/birch/u-2"), b"later").await.unwrap();
        let kept = again.tombstones().await.unwrap();
        assert!(kept.contains(&(site("birch"), Item::tombstone("u-2"))), "{kept:?}");
        again.forget_tombstone(&site("birch"), "u-2").await.unwrap();
        again.forget_tombstone(&site("alder"), "u-1").await.unwrap();
        again.forget_tombstone(&site("alder"), "u-1").await.unwrap();
        assert_eq!(again.tombstones().await.unwrap().len(), 1);
    }

    /// Hospitals refuse a set that is one hospital away from any they ever signed, also in burned attempts and archived
    /// rounds; a hub that forgot one would propose such a set again and again.
    #[tokio::test]
    async fn signed_sets_are_kept_by_attempt_for_the_life_of_the_study() {
        let folder = tempfile::tempdir().unwrap();
        let set = |round, attempt, sites: &[&str]| SignedSet {
            round,
            attempt,
            kind: TaskKind::Train,
            sites: sites.iter().map(|s| site(s)).collect(),
        };
        let (burned, summed) = (set(1, 1, &["alder", "birch"]), set(2, 1, &["alder"]));
        let store = BlobStore::open(folder.path()).await.unwrap();
        for set in [&summed, &burned, &burned] {
            store.keep_signed_set("study-1", set).await.unwrap();
        }
        assert_eq!(store.signed_sets("study-1").await.unwrap().len(), 2);
        assert!(store.keep_signed_set("study-1", &set(1, 1, &["cedar"])).await.is_err());
        let again = BlobStore::open(folder.path()).await.unwrap();
        assert_eq!(again.signed_sets("study-1").await.unwrap(), [burned, summed]);
        assert!(again.signed_sets("study-2").await.unwrap().is_empty());
    }
}
