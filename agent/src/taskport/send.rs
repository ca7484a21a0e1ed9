//! What a pod is given: the task and the base model, or a release and its model, as a stream of files.

use bytes::Bytes;
use consilium_crds::study::FederatedStudySpec;
use consilium_federation::assignment::RoundWork;
use consilium_federation::model::ModelManifest;
use consilium_federation::task::{CONTRACT, TaskFile};
use consilium_proto::FILE_PART_BYTES;
use consilium_proto::v1::file_part::Part;
use consilium_proto::v1::{FilePart, FileStart};
use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc;
use tonic::Status;

use super::Backend;

/// The sending half of a stream of files.
pub(super) type Parts = mpsc::Sender<Result<FilePart, Status>>;

/// `task.json` of one part in a round. `secret` is the hospital's own.
pub(super) fn task_file(round_uid: &str, work: &RoundWork, spec: &FederatedStudySpec, secret: &[u8; 32]) -> TaskFile {
    let seed = spec.initial_model.seed.and_then(|s| u64::try_from(s).ok());
    TaskFile {
        contract: CONTRACT,
        study: work.study.to_string(),
        round: work.round,
        rounds: spec.rounds.max,
        kind: work.kind,
        config: serde_json::Value::Object(spec.trainer.config.clone()),
        seed: seed.unwrap_or_else(|| first_bits(work.spec_digest.as_bytes())),
        data_seed: data_seed(round_uid, secret),
        base: Some(work.model),
        output: spec.output.clone(),
    }
    .written()
}

/// Equal for every try of a round here, and not to be guessed from outside.
fn data_seed(round_uid: &str, secret: &[u8; 32]) -> u64 {
    let mut hasher = Sha256::new();
    hasher.update(b"consilium/data-seed/v1\0");
    hasher.update(secret);
    hasher.update(round_uid.as_bytes());
    first_bits(&hasher.finalize().into())
}

/// 53 bits: what every JSON reader keeps exact.
fn first_bits(bytes: &[u8; 32]) -> u64 {
    let [a, b, c, d, e, f, g, h, ..] = *bytes;
    u64::from_be_bytes([a, b, c, d, e, f, g, h]) >> 11
}

/// A whole small file.
pub(super) async fn file(parts: &Parts, path: &str, content: &[u8]) -> Result<(), Status> {
    start(parts, path, content.len() as u64).await?;
    data(parts, &Bytes::copy_from_slice(content)).await
}

/// `model.safetensors`: the header, then chunk after chunk, each verified.
pub(super) async fn model(parts: &Parts, backend: &impl Backend, manifest: &ModelManifest) -> Result<(), Status> {
    let header = manifest.safetensors_header();
    start(parts, "model.safetensors", header.len() as u64 + manifest.elements() * 4).await?;
    data(parts, &header.into()).await?;
    for (index, digest) in manifest.chunks.iter().enumerate() {
        let chunk = backend.object(*digest).await?;
        manifest.verify_chunk(index, &chunk).map_err(|e| Status::data_loss(e.to_string()))?;
        data(parts, &chunk).await?;
    }
    Ok(())
}

async fn start(parts: &Parts, path: &str, size: u64) -> Result<(), Status> {
    put(parts, Part::Start(FileStart { path: path.into(), size })).await
}

async fn data(parts: &Parts, content: &Bytes) -> Result<(), Status> {
    let mut rest = content.clone();
    while !rest.is_empty() {
        let piece = rest.split_to(rest.len().min(FILE_PART_BYTES));
        put(parts, Part::Data(piece)).await?;
    }
    Ok(())
}

async fn put(parts: &Parts, part: Part) -> Result<(), Status> {
    let gone = |_| Status::cancelled("the pod is gone");
    parts.send(Ok(FilePart { part: Some(part) })).await.map_err(gone)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two rounds on one base must not be comparable from outside; two tries of one round must be the same training.
    #[test]
    fn the_order_of_the_data_is_the_hospitals_own() {
        let seed = data_seed("round-1", &[1; 32]);
        assert_eq!(seed, data_seed("round-1", &[1; 32]));
        assert!(seed != data_seed("round-2", &[1; 32]) && seed != data_seed("round-1", &[2; 32]));
        assert!(seed < 1 << 53);
    }
}
