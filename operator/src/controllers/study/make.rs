//! What a study makes of its store: its spec, and the snapshot that a round is.

use consilium_crds::study::training_deadline;
use consilium_crds::{FederatedStudy, TrainingRound, TrainingRoundSpec};
use jiff::Timestamp;
use kube::ResourceExt;

use super::carry;
use super::decide::NewRound;
use crate::driver::DriveError;
use crate::store::BlobStore;

/// Puts the spec of a study where hospitals fetch it.
///
/// # Errors
/// When the store fails.
pub async fn store_spec(store: &BlobStore, study: &FederatedStudy) -> Result<(), DriveError> {
    let stored = store.put_json(&study.spec.agreed()).await.map_err(DriveError::store("storing the study's spec"))?;
    let expected = study.spec.digest();
    if stored == expected {
        return Ok(());
    }
    Err(DriveError::Invalid(format!("the spec was stored as {stored}, but its digest is {expected}")))
}

/// A new round, not yet written down.
///
/// # Errors
/// When the model that it starts from cannot be read from the store.
pub async fn round(
    store: &BlobStore,
    study: &FederatedStudy,
    new: &NewRound,
    now: Timestamp,
) -> Result<TrainingRound, DriveError> {
    let manifest = store.get_manifest(new.base_model).await;
    let manifest = manifest.map_err(DriveError::store("reading the model that the round starts from"))?;
    let schema = store.put_json(&manifest.tensors).await;
    let spec = TrainingRoundSpec {
        study: study.name_any(),
        study_uid: study.uid().unwrap_or_default(),
        spec_digest: study.spec.digest(),
        number: new.number,
        base_model: new.base_model,
        moments: new.moments.clone(),
        tensor_schema: schema.map_err(DriveError::store("storing the tensor schema"))?,
        participants: new.participants.clone(),
        waited_for: new.waited_for.clone(),
        quorum: study.spec.rounds.quorum,
        deadline: training_deadline(&study.spec, now).map_err(|e| DriveError::Invalid(e.to_string()))?,
    };
    let mut round = TrainingRound::new(&format!("{}-{}", study.name_any(), new.number), spec);
    round.metadata.namespace = study.namespace();
    round.metadata.annotations = Some([(carry::ANNOTATION.to_owned(), new.carry.to_text())].into());
    Ok(round)
}
