//! A model on its way between the hub and a file: the door, the file, and what stands beside it.

pub mod beside;
pub mod card;
pub mod door;
pub mod file;

use std::path::Path;

use consilium_crds::ModelRelease;
use consilium_federation::model::ModelManifest;
use door::{Door, DoorError};
use file::{Draft, FileError};
use http_body_util::BodyExt as _;

/// The longest table of contents that is read: that of the largest model, and room for the names of its tensors.
const MAX_MANIFEST: usize = 64 << 20;

/// A model that did not get there. The text is the whole message.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// The hub.
    #[error(transparent)]
    Door(#[from] DoorError),
    /// The file.
    #[error(transparent)]
    File(#[from] FileError),
    /// What came is not the model of the release.
    #[error(transparent)]
    Other(#[from] consilium_federation::model::ModelError),
    /// It ended before its end.
    #[error("the hub ended after {got} of {of} chunks; the same command goes on from there")]
    Short {
        /// Whole chunks that lie in the file.
        got: usize,
        /// Chunks of the model.
        of: usize,
    },
}

/// Takes the model of a release into a file: what comes is checked by the digest that the release names, a chunk at a time,
/// and what lies there from an earlier try is kept as far as it is right. Returns the model's table of contents.
///
/// # Errors
/// See [`ModelError`].
pub async fn pull(door: &Door, release: &ModelRelease, out: &Path) -> Result<ModelManifest, ModelError> {
    let place = door::release_path(release);
    let bytes = door.get(&format!("{place}/manifest")).await?.collect(MAX_MANIFEST).await?;
    let manifest = ModelManifest::parse(&bytes, release.spec.model)?;
    let mut draft = Draft::open(out, &manifest)?;
    let mut answer = door.get(&format!("{place}/payload?from={}", draft.chunks())).await?.into_body();
    while let Some(frame) = answer.frame().await {
        // Cut off: what came is kept, and the count below says so.
        let Ok(frame) = frame else { break };
        if let Some(data) = frame.data_ref() {
            draft.take(data)?;
        }
    }
    let (got, of) = (draft.chunks(), manifest.chunks.len());
    if got < of {
        return Err(ModelError::Short { got, of });
    }
    draft.finish()?;
    Ok(manifest)
}
