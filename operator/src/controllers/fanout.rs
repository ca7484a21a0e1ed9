//! What a change concerns: which objects are looked at again.

use std::sync::Arc;

use consilium_crds::{ClinicalPlan, FederatedStudy, ModelPromotion, ModelRelease, TrainingRound, TrustSite};
use consilium_federation::{SiteName, StudyKey};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::ResourceExt;
use kube::runtime::reflector::ObjectRef;
use tokio::sync::broadcast::error::RecvError;
use tokio_util::sync::CancellationToken;

use super::cache::Change;
use super::context::{Context, ask};
use super::init::{self, job};
use super::{rosters, trust_site};
use crate::news::News;

/// A TrustSite: the gateway at once, then the hospital, and everything that names it.
pub fn site(context: &Context, change: Change<TrustSite>) {
    trust_site::admit(context);
    let (Change::Touched(object) | Change::Gone(object)) = &change;
    ask(&context.queues.sites, ObjectRef::from_obj(&**object));
    let Some(name) = object.site_name() else { return };
    // A heartbeat in its status is nothing that a study or a promotion acts on.
    if !context.site_changed(&name, &change) {
        return;
    }
    naming(context, &name);
}

/// Everything that names a hospital.
pub fn naming(context: &Context, name: &SiteName) {
    for study in context.caches.studies.state_filter(|s| s.spec.sites.iter().any(|site| site.name == *name)) {
        ask(&context.queues.studies, ObjectRef::from_obj(&*study));
    }
    for promotion in context.caches.promotions.state_filter(|p| p.spec.sites.contains(name)) {
        ask(&context.queues.promotions, ObjectRef::from_obj(&*promotion));
    }
}

/// A study; one that is gone takes its rounds and its Init task along.
pub fn study(context: &Arc<Context>, change: Change<FederatedStudy>) {
    match change {
        Change::Touched(object) => ask(&context.queues.studies, ObjectRef::from_obj(&*object)),
        Change::Gone(object) => {
            let uid = object.uid().unwrap_or_default();
            for round in context.caches.rounds.state_filter(|r| r.spec.study_uid == uid) {
                ask(&context.queues.rounds, ObjectRef::from_obj(&*round));
            }
            context.delivered.forget(&uid);
            context.metrics.forget_study(&StudyKey::new(object.namespace().unwrap_or_default(), object.name_any()));
            sweep(context);
        }
    }
}

/// Deletes Init Jobs whose study is gone, in the background.
pub fn sweep(context: &Arc<Context>) {
    let context = context.clone();
    tokio::spawn(async move {
        if let Err(error) = init::sweep(&context).await {
            // The next deletion or start sweeps again, and a Job ends by its own deadline.
            tracing::warn!(%error, "Jobs of deleted studies were not deleted");
        }
    });
}

/// A round and its study.
pub fn round(context: &Context, change: Change<TrainingRound>) {
    let (Change::Touched(object) | Change::Gone(object)) = &change;
    ask(&context.queues.rounds, ObjectRef::from_obj(&**object));
    let namespace = object.namespace().unwrap_or_default();
    ask(&context.queues.studies, ObjectRef::new(&object.spec.study).within(&namespace));
    if let (Change::Gone(object), Some(uid)) = (&change, object.uid()) {
        tracing::debug!(round = object.name_any(), "gone");
        context.forget_round(&uid);
    }
}

/// A release, its study, those that start from its model, and the promotions that name it.
pub fn release(context: &Context, change: Change<ModelRelease>) {
    let (Change::Touched(object) | Change::Gone(object)) = change;
    ask(&context.queues.releases, ObjectRef::from_obj(&*object));
    let study = &object.spec.study;
    ask(&context.queues.studies, ObjectRef::new(&study.name).within(&study.namespace));
    // One that waited for the release, or until it was shared.
    let waits = |s: &FederatedStudy| s.spec.initial_model.digest == Some(object.spec.model);
    for study in context.caches.studies.state_filter(waits) {
        ask(&context.queues.studies, ObjectRef::from_obj(&*study));
    }
    let names = |p: &ModelPromotion| p.namespace() == object.namespace() && p.spec.release.name == object.name_any();
    for promotion in context.caches.promotions.state_filter(names) {
        ask(&context.queues.promotions, ObjectRef::from_obj(&*promotion));
    }
}

/// A plan, and the promotions that name it.
pub fn plan(context: &Context, change: Change<ClinicalPlan>) {
    let (Change::Touched(object) | Change::Gone(object)) = change;
    ask(&context.queues.plans, ObjectRef::from_obj(&*object));
    naming_plan(context, &object.namespace().unwrap_or_default(), &object.name_any());
}

/// The promotions that name a plan.
pub fn naming_plan(context: &Context, namespace: &str, name: &str) {
    let names = |p: &ModelPromotion| {
        p.namespace().as_deref() == Some(namespace) && p.spec.plan.as_ref().is_some_and(|plan| plan.name == name)
    };
    for promotion in context.caches.promotions.state_filter(names) {
        ask(&context.queues.promotions, ObjectRef::from_obj(&*promotion));
    }
}

/// A promotion.
pub fn promotion(context: &Context, change: Change<ModelPromotion>) {
    match change {
        Change::Touched(object) => ask(&context.queues.promotions, ObjectRef::from_obj(&*object)),
        Change::Gone(object) => {
            let uid = object.uid().unwrap_or_default();
            context.promotions_written.forget(&uid);
            context.publish(|book| book.remove(&uid));
        }
    }
}

/// A Job of an Init task: its study.
pub fn job(context: &Context, change: Change<Job>) {
    let (Change::Touched(object) | Change::Gone(object)) = change;
    if let Some(owner) = job::owner(&object) {
        ask(&context.queues.studies, ObjectRef::new(&owner.study.name).within(&owner.study.namespace));
    }
}

/// A pod of an Init task: what it says is read when its Job changes, and by the task port.
pub fn pod(_: &Context, _: Change<Pod>) {}

/// A roster: every study and round, if what is offered changes.
pub fn roster(context: &Arc<Context>, _: Change<ConfigMap>) {
    let context = context.clone();
    tokio::spawn(async move { rosters::refresh(&context).await });
}

/// Listens to the hub: a hospital that said or did something concerns its TrustSite and the work it was given.
pub async fn hospitals(context: Arc<Context>, shutdown: CancellationToken) {
    let mut changes = context.hub.changes();
    loop {
        let changed = tokio::select! {
            changed = changes.recv() => changed,
            () = shutdown.cancelled() => return,
        };
        match changed {
            Ok((site, news)) => hospital(&context, &site, &news),
            Err(RecvError::Lagged(_)) => all_hospitals(&context),
            Err(RecvError::Closed) => return,
        }
    }
}

/// Looks at every hospital.
pub fn all_hospitals(context: &Arc<Context>) {
    for site in context.caches.sites.state().iter().filter_map(|s| s.site_name()) {
        hospital(context, &site, &News::Everything);
    }
}

fn hospital(context: &Arc<Context>, site: &SiteName, news: &News) {
    if *news == News::Everything {
        ask(&context.queues.sites, ObjectRef::new(site.as_str()));
    }
    let (owners, rested) = context.driver.hear(site, news);
    if !rested.is_empty() {
        context.publish_one(site);
        tokio::spawn(forget(context.clone(), site.clone(), rested));
    }
    owners.iter().for_each(|owner| context.queues.ask(owner));
}

/// Takes tombstones that were heard out of the store. One that stays there is sent, and heard, once more.
async fn forget(context: Arc<Context>, site: SiteName, uids: Vec<String>) {
    for uid in uids {
        if let Err(error) = context.hub.store().forget_tombstone(&site, &uid).await {
            tracing::warn!(%site, uid, %error, "a tombstone that was heard was not deleted");
        }
    }
}
