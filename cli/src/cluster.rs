//! Reading objects from the cluster of the current kubeconfig context.

use std::fmt::Debug;

use kube::{Api, Client, Resource, api::ListParams, core::NamespaceResourceScope};
use serde::de::DeserializeOwned;

use crate::error::{CliError, Result};

/// The cluster of the current context.
pub async fn client() -> Result<Client> {
    rustls::crypto::ring::default_provider().install_default().ok();
    Client::try_default().await.map_err(CliError::from)
}

/// Objects of a kind in one namespace or all; none where the cluster does not know the kind.
pub async fn list<K>(client: &Client, namespace: Option<&str>) -> Result<Option<Vec<K>>>
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + Debug + DeserializeOwned,
{
    let api: Api<K> = match namespace {
        Some(namespace) => Api::namespaced(client.clone(), namespace),
        None => Api::all(client.clone()),
    };
    known(api.list(&ListParams::default()).await.map(|list| list.items))
}

/// As [`list`], for kinds without a namespace.
pub async fn list_cluster<K>(client: &Client) -> Result<Option<Vec<K>>>
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned,
{
    known(Api::<K>::all(client.clone()).list(&ListParams::default()).await.map(|list| list.items))
}

fn known<T>(result: std::result::Result<T, kube::Error>) -> Result<Option<T>> {
    match result {
        Ok(found) => Ok(Some(found)),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(None),
        Err(error) => Err(error.into()),
    }
}
