//! The finalizer on what hospitals must be told to stop. Bounded in time by those who set it.

use std::fmt::Debug;

use kube::api::{Patch, PatchParams};
use kube::{Api, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use serde_json::json;

use super::context::{FINALIZER, MANAGER};
use super::error::{Error, not_found};

/// Whether the object holds it.
pub fn is_on<K: Resource>(object: &K) -> bool {
    object.finalizers().iter().any(|f| f == FINALIZER)
}

/// Sets it.
///
/// # Errors
/// When the API refuses, or someone else wrote first.
pub async fn add<K>(api: &Api<K>, object: &K) -> Result<K, Error>
where
    K: Resource + Clone + Debug + DeserializeOwned,
{
    let list: Vec<&str> = object.finalizers().iter().map(String::as_str).chain([FINALIZER]).collect();
    put(api, object, &list).await.map_err(Error::kube(format!("setting the finalizer of {}", object.name_any())))
}

/// Takes it off; an object that is gone already is as good.
///
/// # Errors
/// When the API refuses, or someone else wrote first.
pub async fn remove<K>(api: &Api<K>, object: &K) -> Result<(), Error>
where
    K: Resource + Clone + Debug + DeserializeOwned,
{
    if !is_on(object) {
        return Ok(());
    }
    let list: Vec<&str> = object.finalizers().iter().map(String::as_str).filter(|f| *f != FINALIZER).collect();
    match put(api, object, &list).await {
        Ok(_) => Ok(()),
        Err(error) if not_found(&error) => Ok(()),
        Err(error) => Err(Error::kube(format!("removing the finalizer of {}", object.name_any()))(error)),
    }
}

async fn put<K>(api: &Api<K>, object: &K, finalizers: &[&str]) -> Result<K, kube::Error>
where
    K: Resource + Clone + Debug + DeserializeOwned,
{
    // The version is the precondition: a list is replaced whole.
    let patch = json!({"metadata": {"finalizers": finalizers, "resourceVersion": object.resource_version()}});
    let params = PatchParams { field_manager: Some(MANAGER.into()), ..PatchParams::default() };
    api.patch(&object.name_any(), &params, &Patch::Merge(&patch)).await
}
