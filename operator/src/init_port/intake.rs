//! A model on its way into the store: chunk by chunk, never held whole.

use consilium_federation::Digest;
use consilium_federation::model::{ModelError, ModelManifest};

use super::split::{Finished, Splitter};
use crate::store::{BlobStore, Reserved, StoreError};

/// A `safetensors` file that is taken into the store.
pub struct Intake<'a> {
    store: &'a BlobStore,
    /// The file and its manifest fit, or nothing of them is taken.
    room: Vec<Reserved>,
    splitter: Splitter,
    chunks: Vec<Digest>,
}

/// A model is not taken.
#[derive(Debug, thiserror::Error)]
pub enum IntakeError {
    /// It is no model.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl<'a> Intake<'a> {
    /// Makes room for a file of this many bytes.
    ///
    /// # Errors
    /// When there is none.
    pub fn begin(store: &'a BlobStore, bytes: u64) -> Result<Self, IntakeError> {
        Ok(Self { store, room: vec![store.reserve(bytes)?], splitter: Splitter::default(), chunks: Vec::new() })
    }

    /// Takes the next bytes.
    ///
    /// # Errors
    /// See [`IntakeError`].
    pub async fn push(&mut self, bytes: &[u8]) -> Result<(), IntakeError> {
        let ready = self.splitter.push(bytes)?;
        // Half precision takes twice its size when it is stored.
        if let (Some(more), 1) = (self.splitter.grows(), self.room.len()) {
            self.room.push(self.store.reserve(more)?);
        }
        for chunk in ready {
            self.chunks.push(self.store.put_object(chunk).await?);
        }
        Ok(())
    }

    /// The model's digest, once all of the file is there.
    ///
    /// # Errors
    /// See [`IntakeError`].
    pub async fn finish(mut self) -> Result<Digest, IntakeError> {
        let Finished { schema, last, local } = self.splitter.finish()?;
        if !local.is_empty() {
            tracing::info!(?local, "tensors of integers are no part of the model: they stay with each trainer");
        }
        if let Some(last) = last {
            self.chunks.push(self.store.put_object(last).await?);
        }
        let manifest = ModelManifest::new(schema, self.chunks)?;
        Ok(self.store.put_model(&manifest).await?)
    }
}
