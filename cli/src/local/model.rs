//! The model that a study came to, as a file.

use std::path::PathBuf;

use consilium_federation::Digest;
use consilium_operator::store::{BlobStore, StoreError};
use tokio::fs::File;
use tokio::io::AsyncWriteExt as _;

use super::setup::Plan;
use super::{Failure, Result};

/// Writes `model.safetensors`, chunk by chunk; where it is.
pub(super) async fn export(store: &BlobStore, plan: &Plan, model: Option<Digest>) -> Result<PathBuf> {
    let path = plan.out.join("model.safetensors");
    let Some(model) = model else { return Ok(path) };
    let failed = |error: StoreError| Failure::Part(format!("reading the model {model}: {error}"));
    let manifest = store.get_manifest(model).await.map_err(failed)?;
    let part = path.with_extension("part");
    let mut file = File::create(&part).await.map_err(Failure::file(&part))?;
    file.write_all(&manifest.safetensors_header()).await.map_err(Failure::file(&part))?;
    for chunk in &manifest.chunks {
        let bytes = store.get_object(*chunk).await.map_err(failed)?;
        file.write_all(&bytes).await.map_err(Failure::file(&part))?;
    }
    file.sync_all().await.map_err(Failure::file(&part))?;
    tokio::fs::rename(&part, &path).await.map_err(Failure::file(&path))?;
    Ok(path)
}
