//! What lies beside a model's file: the release with the hub's attestation, what the model answers, and its card.

use std::fs;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use consilium_crds::{FederatedStudy, ModelRelease, ModelReleaseSpec};
use consilium_operator::controllers::release::cut;
use ed25519_dalek::VerifyingKey;
use serde_json::{Value, json};

use super::card;
use super::file::FileError;

/// `model.safetensors` → `model.release.json`.
pub fn named(model: &Path, ending: &str) -> PathBuf {
    model.with_extension(ending)
}

/// Writes all of them; their names.
///
/// # Errors
/// When the system fails.
pub fn write(model: &Path, release: &ModelRelease, study: Option<&FederatedStudy>) -> Result<Vec<PathBuf>, FileError> {
    let mut written = Vec::new();
    let mut put = |ending: &str, text: String| {
        let path = named(model, ending);
        fs::write(&path, text).map_err(|cause| FileError::Io { path: path.clone(), cause })?;
        written.push(path);
        Ok::<_, FileError>(())
    };
    let spec = json!(release.spec);
    put(
        "release.json",
        pretty(&json!({
            "apiVersion": "consilium.health/v1alpha1", "kind": "ModelRelease",
            "metadata": {"name": release.metadata.name, "namespace": release.metadata.namespace},
            "spec": spec,
        })),
    )?;
    if let Some(output) = &release.spec.output {
        put("output.json", pretty(&json!(output)))?;
    }
    put("card.md", card::card(release, study))?;
    Ok(written)
}

fn pretty(value: &Value) -> String {
    format!("{value:#}\n")
}

/// The hub's public key, as hospitals pin it: 32 bytes in base64.
///
/// # Errors
/// In words.
pub fn hub_key(text: &str) -> Result<VerifyingKey, String> {
    let raw = STANDARD.decode(text.trim()).map_err(|error| error.to_string())?;
    let raw: [u8; 32] =
        raw.try_into().map_err(|raw: Vec<u8>| format!("it has {} bytes, and a key has 32", raw.len()))?;
    VerifyingKey::from_bytes(&raw).map_err(|error| error.to_string())
}

/// Whether the hub that has this key attests the release.
///
/// # Errors
/// In words.
pub fn attested(spec: &ModelReleaseSpec, key: &VerifyingKey) -> Result<(), String> {
    cut::verify(spec, key)
}
