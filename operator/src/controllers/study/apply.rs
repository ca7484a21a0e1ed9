//! What a study does to the outside.

use std::sync::Arc;

use consilium_crds::{FederatedStudy, ModelRelease, TrainingRound};
use consilium_federation::StudyKey;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::{DeleteParams, PostParams, Preconditions};
use kube::runtime::reflector::ObjectRef;
use kube::{Api, Resource, ResourceExt};

use super::decide::{self, Act, Facts, NewRound, Plan};
use super::make;
use crate::controllers::context::{Context, FINALIZER, MANAGER, STUDY_LABEL};
use crate::controllers::error::{Class, Error, already_exists, not_found};
use crate::controllers::init::{self, job};
use crate::controllers::release::cut;
use crate::controllers::round::seal;
use crate::controllers::write;

/// Acts, writes the status if it changed, records the Events. A failed act does not keep the status unwritten, nor
/// the acts that do not need it: a release whose name is taken must not end the training.
pub async fn apply(context: &Context, facts: &Facts, plan: Plan) -> Result<(), Error> {
    let Plan { acts, mut status, mut notes } = plan;
    let mut failures: Vec<(&Act, Error)> = Vec::new();
    for act in &acts {
        if failures.iter().any(|(failed, _)| needs(act, failed)) {
            continue;
        }
        if let Err(error) = perform(context, facts, act).await {
            failures.push((act, error));
        }
    }
    let study = &*facts.study;
    if let Some(words) = failures.iter().find_map(|(_, error)| error.refusal()) {
        notes.extend(decide::not_admitted(study, &mut status, &words, context.now()));
    }
    if study.status.as_ref() != Some(&status) {
        let namespace = study.namespace().unwrap_or_default();
        let api: Api<FederatedStudy> = Api::namespaced(context.client.clone(), &namespace);
        let model = status.model;
        let wanted = FederatedStudy { status: Some(status), ..study.clone() };
        write::status(&api, &wanted).await?;
        if let (Some(_), Some(uid)) = (model, study.uid()) {
            context.delivered.forget(&uid);
        }
        write::events(context, study, notes).await;
    }
    // The first is the one to act on; the others come again with the next turn.
    failures.into_iter().next().map_or(Ok(()), |(_, error)| Err(error))
}

/// Whether an act makes no sense after another failed.
const fn needs(act: &Act, failed: &Act) -> bool {
    match failed {
        Act::StoreSpec => matches!(act, Act::StartInit(_) | Act::Start(_)),
        // A round is kept until its release is cut.
        Act::Release { .. } => matches!(act, Act::Archive { .. }),
        _ => false,
    }
}

async fn perform(context: &Context, facts: &Facts, act: &Act) -> Result<(), Error> {
    let study = &*facts.study;
    let round = |number: u32| facts.rounds.iter().find(|r| r.spec.number == number);
    match act {
        Act::StoreSpec => Ok(make::store_spec(context.hub.store(), study).await?),
        Act::StartInit(number) => {
            let owner = job::Owner {
                study: StudyKey::new(study.namespace().unwrap_or_default(), study.name_any()),
                uid: study.uid().unwrap_or_default(),
                spec: study.spec.digest(),
            };
            init::start(context, &owner, &study.spec, *number).await
        }
        Act::EnsureCredential(job) => init::ensure_credential(context, job).await,
        Act::DeleteJobs(names) => init::delete(context, names).await,
        Act::Release { round: number } => match round(*number) {
            Some(round) => release(context, facts, round).await,
            None => Ok(()),
        },
        Act::Archive { round: number } => match round(*number) {
            Some(round) => archive(context, round).await,
            None => Ok(()),
        },
        Act::Start(new) => start(context, study, new).await,
    }
}

/// Makes a round. It is a snapshot that never changes, so it is created, not applied: one that is there already
/// means that the cache lags behind.
async fn start(context: &Context, study: &FederatedStudy, new: &NewRound) -> Result<(), Error> {
    let mut round = make::round(context.hub.store(), study, new, context.now()).await?;
    round.metadata.labels = Some(job::study_label(&study.name_any()));
    round.metadata.finalizers = Some(vec![FINALIZER.into()]);
    round.metadata.owner_references = Some(vec![OwnerReference {
        api_version: FederatedStudy::api_version(&()).into_owned(),
        kind: FederatedStudy::kind(&()).into_owned(),
        name: study.name_any(),
        uid: study.uid().unwrap_or_default(),
        controller: Some(true),
        block_owner_deletion: None,
    }]);
    let sealed = seal::seal(&context.key, &round.namespace().unwrap_or_default(), &round.name_any(), &round.spec);
    round.annotations_mut().insert(seal::ANNOTATION.into(), sealed);
    let api: Api<TrainingRound> = Api::namespaced(context.client.clone(), &study.namespace().unwrap_or_default());
    let params = PostParams { field_manager: Some(MANAGER.into()), ..PostParams::default() };
    match api.create(&params, &round).await {
        Ok(_) => {
            let message = format!("round {} of {}", new.number, study.spec.rounds.max);
            write::events(context, study, vec![write::Note::normal("RoundStarted", message)]).await;
            Ok(())
        }
        Err(error) if already_exists(&error) => {
            let key = ObjectRef::from_obj(&round);
            let theirs = |known: &TrainingRound| !seal::is_ours(known, &context.key.verifying_key());
            if context.caches.rounds.get(&key).is_some_and(|known| theirs(&known)) {
                let name = round.name_any();
                return Err(Error::Invalid(format!(
                    "a TrainingRound {name} was made by hand and is in the way; delete it"
                )));
            }
            Err(Error::Conflict(format!("{} is there already; reading again", round.name_any())))
        }
        Err(error) => Err(Error::kube(format!("making {}", round.name_any()))(error)),
    }
}

/// Cuts a release. Its name is taken when another study of the same name cut one; then the UID tells them apart.
async fn release(context: &Context, facts: &Facts, round: &Arc<TrainingRound>) -> Result<(), Error> {
    let study = &*facts.study;
    let namespace = study.namespace().unwrap_or_default();
    let snapshot = context.driver.study_spec(round.spec.spec_digest).await?;
    let spec = cut::cut(round, &snapshot, &context.key).map_err(Error::Bug)?;
    let api: Api<ModelRelease> = Api::namespaced(context.client.clone(), &namespace);
    let params = PostParams { field_manager: Some(MANAGER.into()), ..PostParams::default() };
    let short = format!("{}-r{}", study.name_any(), round.spec.number);
    let uid: String = study.uid().unwrap_or_default().chars().take(8).collect();
    for name in [short.clone(), format!("{short}-{uid}")] {
        let mut release = ModelRelease::new(&name, spec.clone());
        release.metadata.namespace = Some(namespace.clone());
        release.metadata.labels = Some([(STUDY_LABEL.to_owned(), study.name_any())].into());
        match api.create(&params, &release).await {
            Ok(_) => {
                let note = write::Note::normal("Released", format!("ModelRelease {name} was cut"));
                write::events(context, study, vec![note]).await;
                return Ok(());
            }
            Err(error) if already_exists(&error) => {
                let known =
                    context.caches.releases.find(|r| r.name_any() == name && r.namespace() == release.namespace());
                match known {
                    Some(known) if known.spec.study_uid != spec.study_uid => {}
                    // Made just now, or not to be read by this version: its next change is looked at.
                    _ => {
                        return Err(Error::Invalid(format!(
                            "ModelRelease {name} is there already; see its conditions"
                        )));
                    }
                }
            }
            Err(error) => return Err(Error::kube(format!("cutting ModelRelease {name}"))(error)),
        }
    }
    Err(Error::Invalid(format!("both {short} and {short}-{uid} are taken by releases of other studies; delete one")))
}

async fn archive(context: &Context, round: &TrainingRound) -> Result<(), Error> {
    let name = round.name_any();
    let value = serde_json::to_value(round).map_err(|e| Error::Bug(format!("{name} does not become JSON: {e}")))?;
    let kept = context.hub.store().archive(&round.spec.study_uid, round.spec.number, &value).await;
    if let Err(error) = kept.map_err(Error::store(format!("archiving {name}"))) {
        // Archived before, and the object changed since (a tombstone was acknowledged): the first copy stands.
        if error.class() == Class::Transient {
            return Err(error);
        }
        tracing::warn!(round = name, %error, "the archive keeps its first copy");
    }
    let params = DeleteParams {
        preconditions: Some(Preconditions { uid: round.uid(), resource_version: None }),
        ..DeleteParams::default()
    };
    let api: Api<TrainingRound> = Api::namespaced(context.client.clone(), &round.namespace().unwrap_or_default());
    match api.delete(&name, &params).await {
        Err(error) if !not_found(&error) => Err(Error::kube(format!("deleting {name}, which is archived"))(error)),
        Ok(_) | Err(_) => Ok(()),
    }
}
