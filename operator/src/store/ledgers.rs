//! The furthest end of each hospital's ledger that it has shown, so that a volume that was set back is told so.

use consilium_federation::SiteName;
use consilium_federation::digest::canonical_json;
use consilium_federation::report::LedgerEnd;
use object_store::ObjectStoreExt as _;
use object_store::path::Path;

use super::{BlobStore, StoreError, journal};

fn folder(site: &SiteName) -> Path {
    Path::from(format!("ledgers/{site}"))
}

impl BlobStore {
    /// The furthest end that this hospital has shown.
    ///
    /// # Errors
    /// When the volume fails.
    pub async fn ledger_end(&self, site: &SiteName) -> Result<Option<LedgerEnd>, StoreError> {
        let names = journal::names(&self.0.files, &folder(site)).await?;
        let mut entries: Vec<u64> = names.iter().filter_map(|name| name.parse().ok()).collect();
        entries.sort_unstable();
        // The newest that is whole: a torn one was never acknowledged.
        for entries in entries.into_iter().rev() {
            let path = Path::from(format!("ledgers/{site}/{entries}"));
            match journal::read_sealed(&self.0.files, &path).await {
                Ok(Some(record)) => {
                    let end = serde_json::from_slice(&record);
                    return end.map(Some).map_err(|_| StoreError::Torn { path: path.to_string() });
                }
                Ok(None) | Err(StoreError::Torn { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    /// Keeps a further end, durably, and forgets the ones before it.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] when another head was kept for as many entries, or the volume.
    pub async fn keep_ledger_end(&self, site: &SiteName, end: LedgerEnd) -> Result<(), StoreError> {
        let path = |entries: u64| Path::from(format!("ledgers/{site}/{entries}"));
        journal::put_sealed(&self.0.files, &path(end.entries), &canonical_json(&end)).await?;
        let names = journal::names(&self.0.files, &folder(site)).await?;
        for old in names.iter().filter_map(|name| name.parse::<u64>().ok()).filter(|old| *old < end.entries) {
            match self.0.files.delete(&path(old)).await {
                Ok(()) | Err(object_store::Error::NotFound { .. }) => {}
                Err(cause) => {
                    return Err(StoreError::Io { what: "deleting", path: path(old).to_string(), cause });
                }
            }
        }
        Ok(())
    }
}
