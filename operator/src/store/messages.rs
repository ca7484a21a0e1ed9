//! Messages of the masking protocol, one for each hospital and step: written once, durable, never replaced.

use bytes::Bytes;
use consilium_federation::SiteName;
use consilium_federation::round::ProtocolStep;
use object_store::path::Path;

use super::{BlobStore, StoreError, UploadKey, check_name, journal};

/// The folder of a step's messages.
fn folder(round_uid: &str, attempt: u32, step: ProtocolStep) -> Result<String, StoreError> {
    check_name("round UID", round_uid)?;
    let step = match step {
        ProtocolStep::Advertise => "advertise",
        ProtocolStep::Share => "share",
        // Beside the chunks, which lie under upload/.
        ProtocolStep::Upload => "manifest",
        ProtocolStep::Agree => "agree",
        ProtocolStep::Unmask => "unmask",
        ProtocolStep::Sum => "sum",
    };
    Ok(format!("rounds/{round_uid}/{attempt}/{step}"))
}

impl BlobStore {
    /// Stores one hospital's message for a step, durably; the same again is a no-op.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] when another one is there, [`StoreError::Name`], or the volume.
    pub async fn put_message(&self, key: &UploadKey, step: ProtocolStep, message: &[u8]) -> Result<(), StoreError> {
        let path = format!("{}/{}", folder(&key.round_uid, key.attempt, step)?, key.site);
        journal::put_sealed(&self.0.files, &Path::from(path), message).await
    }

    /// One hospital's message for a step; `None` when it sent none, or what is there is torn and must be sent again.
    ///
    /// # Errors
    /// [`StoreError::Name`], or the volume.
    pub async fn message(&self, key: &UploadKey, step: ProtocolStep) -> Result<Option<Bytes>, StoreError> {
        let path = format!("{}/{}", folder(&key.round_uid, key.attempt, step)?, key.site);
        match journal::read_sealed(&self.0.files, &Path::from(path)).await {
            Err(StoreError::Torn { .. }) => Ok(None),
            other => other,
        }
    }

    /// The hospitals that have sent their message for a step.
    ///
    /// # Errors
    /// [`StoreError::Name`], or the volume.
    pub async fn messages_of(
        &self,
        round_uid: &str,
        attempt: u32,
        step: ProtocolStep,
    ) -> Result<Vec<SiteName>, StoreError> {
        let folder = Path::from(folder(round_uid, attempt, step)?);
        let names = journal::names(&self.0.files, &folder).await?;
        // What is no hospital's name is a half-written file or someone's own; neither is a message.
        Ok(names.iter().filter_map(|name| name.parse().ok()).collect())
    }
}
