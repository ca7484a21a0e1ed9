//! The FederatedStudy controller: accepts a study, sees to its first model, and makes one round after the other.

pub mod accept;
mod apply;
pub mod carry;
pub mod decide;
mod end;
mod figures;
mod hold;
pub mod lineage;
pub mod make;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use consilium_crds::{FederatedStudy, ModelRelease, TrainingRound};
use consilium_federation::{Digest, StudyKey};
use kube::ResourceExt;
use kube::runtime::controller::Action;

use super::context::Context;
use super::error::Error;
use super::init;
use super::release::cut;
use super::round::seal;
use crate::store::StoreError;
use decide::{Facts, Initial, newest_model};

/// One turn of a study.
///
/// # Errors
/// See [`Error`].
pub async fn reconcile(study: Arc<FederatedStudy>, context: Arc<Context>) -> Result<Action, Error> {
    if study.metadata.deletion_timestamp.is_some() {
        // Its rounds go with it and tell the hospitals; nothing new begins.
        return Ok(Action::await_change());
    }
    let facts = read(&context, study.clone()).await?;
    let plan = decide::decide(&facts, context.now());
    let key = StudyKey::new(study.namespace().unwrap_or_default(), study.name_any());
    let figures = figures::of(&facts, &plan.status);
    context.metrics.study(key, figures, || Context::stands(&context.caches.studies, &*study));
    apply::apply(&context, &facts, plan).await?;
    Ok(Action::await_change())
}

async fn read(context: &Context, study: Arc<FederatedStudy>) -> Result<Facts, Error> {
    let uid = study.uid().ok_or_else(|| Error::Bug("a FederatedStudy without a UID".into()))?;
    let (namespace, name) = (study.namespace().unwrap_or_default(), study.name_any());
    let key = context.key.verifying_key();
    // What someone made by hand is none of the study's, whatever it says.
    let here = |round: &TrainingRound| {
        round.namespace().as_deref() == Some(&namespace) && round.spec.study == name && seal::is_ours(round, &key)
    };
    let (mut rounds, others): (Vec<_>, Vec<_>) =
        context.caches.rounds.state_filter(here).into_iter().partition(|r| r.spec.study_uid == uid);
    rounds.sort_by_key(|r| r.spec.number);
    let own = |r: &ModelRelease| {
        r.namespace().as_deref() == Some(&namespace) && r.spec.study_uid == uid && cut::verify(&r.spec, &key).is_ok()
    };
    let digest = study.spec.digest();
    let stored = context.hub.store().has_object(digest).await;
    let spec_stored = stored.map_err(Error::store("looking for the study's spec"))?;
    Ok(Facts {
        sites: accept::sites(context.caches.sites.state().iter().map(|s| &**s)),
        rosters: context.driver.rosters(),
        leftovers: !others.is_empty(),
        unread: context.owns_unread(&uid),
        releases: context.caches.releases.state_filter(own),
        spec_stored,
        initial: initial(context, &study, &uid, &rounds, digest).await?,
        rounds,
        study,
    })
}

async fn initial(
    context: &Context,
    study: &FederatedStudy,
    uid: &str,
    rounds: &[Arc<TrainingRound>],
    spec: Digest,
) -> Result<Initial, Error> {
    if newest_model(rounds, study.status.as_ref()).is_some() {
        return Ok(Initial::Past { ended: init::ended(context, uid) });
    }
    if let Some(model) = study.spec.initial_model.digest {
        let namespace = study.namespace().unwrap_or_default();
        let key = context.key.verifying_key();
        let released = |r: &ModelRelease| lineage::of_release(r, &namespace, model, &key);
        let made_here = context.hub.store().is_from(model, &namespace).await;
        let may = made_here.map_err(Error::store("looking for who made spec.initialModel"))?
            || context.caches.releases.find(released).is_some();
        let stored = match context.hub.store().get_manifest(model).await {
            Ok(_) => may,
            Err(error) if error.is_transient() => return Err(Error::store("looking for spec.initialModel")(error)),
            Err(StoreError::Missing { .. }) => false,
            Err(error) => {
                tracing::warn!(study = study.name_any(), %error, "spec.initialModel.digest cannot be used");
                false
            }
        };
        return Ok(Initial::Named { model, stored });
    }
    let (tries, stale) = init::read(context, uid, spec);
    Ok(Initial::Made { delivered: context.delivered.get(uid, spec), tries, stale })
}
