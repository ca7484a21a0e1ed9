//! The Init task: makes the first model of a study in the hub's own task namespace.
//!
//! A Job of the same shape as in a hospital, without data. Its pod fetches and delivers at the operator's own task
//! port (`init_port`). What was delivered is kept in memory until the study's status holds it; a hub that is killed
//! in between makes the model again, which from the same seed is the same.

pub mod decide;
pub mod job;

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use consilium_crds::FederatedStudySpec;
use consilium_federation::Digest;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{Pod, Secret};
use kube::api::{Api, DeleteParams, PostParams, PropagationPolicy};
use kube::{ResourceExt, runtime::reflector::Store};

use super::context::{Context, MANAGER};
use super::error::{Error, already_exists, not_found};
use decide::{Try, TryState};
use job::Owner;

/// Models that Init tasks delivered, by study UID and spec.
#[derive(Debug, Default)]
pub struct Delivered {
    models: Mutex<HashMap<(String, Digest), Digest>>,
    credentials: Mutex<BTreeSet<String>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Delivered {
    /// Notes a model.
    pub fn put(&self, study_uid: &str, spec: Digest, model: Digest) {
        lock(&self.models).insert((study_uid.to_owned(), spec), model);
    }

    /// The model for this study and spec.
    pub fn get(&self, study_uid: &str, spec: Digest) -> Option<Digest> {
        lock(&self.models).get(&(study_uid.to_owned(), spec)).copied()
    }

    /// All of them.
    pub fn models(&self) -> Vec<Digest> {
        lock(&self.models).values().copied().collect()
    }

    /// Forgets a study: its status holds the model, or it is gone.
    pub fn forget(&self, study_uid: &str) {
        lock(&self.models).retain(|(uid, _), _| uid != study_uid);
    }
}

fn jobs_of(context: &Context, study_uid: &str) -> Vec<Arc<Job>> {
    let mut jobs =
        context.caches.jobs.state_filter(|j| j.labels().get(job::UID_LABEL).is_some_and(|uid| uid == study_uid));
    jobs.sort_by_key(|j| job::number(j));
    jobs
}

/// A Job's pod, if the cache has it.
pub fn pod_of(pods: &Store<Pod>, of: &Job) -> Option<Arc<Pod>> {
    pods.find(|pod| job::is_of(pod, of))
}

/// The tries for one spec of a study, and the names of Jobs for other specs.
pub fn read(context: &Context, study_uid: &str, spec: Digest) -> (Vec<Try>, Vec<String>) {
    let (mut tries, mut stale) = (Vec::new(), Vec::new());
    for of in jobs_of(context, study_uid).iter().filter(|j| j.metadata.deletion_timestamp.is_none()) {
        if job::owner(of).is_some_and(|owner| owner.spec == spec) {
            tries.push(job::read(of, pod_of(&context.caches.pods, of).as_deref()));
        } else {
            stale.push(of.name_any());
        }
    }
    (tries, stale)
}

/// The names of a study's Jobs that have ended, once its first model is written down.
pub fn ended(context: &Context, study_uid: &str) -> Vec<String> {
    let over = |j: &&Arc<Job>| job::read(j, None).state != TryState::Active;
    jobs_of(context, study_uid)
        .iter()
        .filter(|j| j.metadata.deletion_timestamp.is_none())
        .filter(over)
        .map(|j| j.name_any())
        .collect()
}

/// Makes the Job of a try and its credential.
///
/// # Errors
/// When the API refuses. A Job whose credential could not be made gets it at the next turn.
pub async fn start(context: &Context, owner: &Owner, spec: &FederatedStudySpec, number: u32) -> Result<(), Error> {
    let wanted = job::job(owner, spec, number, &context.settings).map_err(Error::Bug)?;
    let params = PostParams { field_manager: Some(MANAGER.into()), ..PostParams::default() };
    let what = format!("making Job {}", wanted.name_any());
    let made = jobs(context).create(&params, &wanted).await.map_err(Error::kube(what))?;
    give_credential(context, &made).await
}

/// Makes the credential of a Job, unless this process has done so already.
///
/// # Errors
/// When the API refuses.
pub async fn ensure_credential(context: &Context, name: &str) -> Result<(), Error> {
    match context.caches.jobs.find(|j| j.name_any() == name) {
        Some(job) => give_credential(context, &job).await,
        None => Ok(()),
    }
}

async fn give_credential(context: &Context, of: &Job) -> Result<(), Error> {
    let uid = of.uid().ok_or_else(|| Error::Bug("a Job without a UID".into()))?;
    if lock(&context.delivered.credentials).contains(&uid) {
        return Ok(());
    }
    let token = job::token(&context.key, &uid);
    let secret = job::credential(of, &token, &context.settings.task_certificate);
    let params = PostParams { field_manager: Some(MANAGER.into()), ..PostParams::default() };
    let api: Api<Secret> = Api::namespaced(context.client.clone(), &context.settings.task_namespace);
    match api.create(&params, &secret).await {
        Err(error) if !already_exists(&error) => {
            return Err(Error::kube(format!("making Secret {}", secret.name_any()))(error));
        }
        Ok(_) | Err(_) => {}
    }
    lock(&context.delivered.credentials).insert(uid);
    Ok(())
}

/// Deletes Jobs and their pods.
///
/// # Errors
/// When the API refuses.
pub async fn delete(context: &Context, names: &[String]) -> Result<(), Error> {
    let params = DeleteParams { propagation_policy: Some(PropagationPolicy::Background), ..DeleteParams::default() };
    for name in names {
        match jobs(context).delete(name, &params).await {
            Err(error) if !not_found(&error) => return Err(Error::kube(format!("deleting Job {name}"))(error)),
            Ok(_) | Err(_) => {}
        }
    }
    Ok(())
}

/// Deletes the Jobs of studies that are gone: an owner in another namespace cannot take them along.
///
/// # Errors
/// When the API refuses.
pub async fn sweep(context: &Context) -> Result<(), Error> {
    let mut orphans = Vec::new();
    for of in context.caches.jobs.state().iter().filter(|j| j.metadata.deletion_timestamp.is_none()) {
        let Some(owner) = job::owner(of) else { continue };
        if context.study_is_gone(&owner.study, &owner.uid).await? {
            context.delivered.forget(&owner.uid);
            orphans.push(of.name_any());
        }
    }
    delete(context, &orphans).await
}

fn jobs(context: &Context) -> Api<Job> {
    Api::namespaced(context.client.clone(), &context.settings.task_namespace)
}
