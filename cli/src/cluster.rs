//! Reading objects from the cluster of the current kubeconfig context.

use consilium_crds::{Kind, Watched};
use kube::{Api, Client, Resource, ResourceExt as _, api::ListParams, core::NamespaceResourceScope};

use crate::error::{CliError, Result};

/// The cluster of the current context.
pub async fn client() -> Result<Client> {
    rustls::crypto::ring::default_provider().install_default().ok();
    Client::try_default().await.map_err(CliError::from)
}

/// Objects of a kind in one namespace or all; none where the cluster does not know the kind. One that this version
/// cannot read is named on stderr and hides no other.
pub async fn list<K>(client: &Client, namespace: Option<&str>) -> Result<Option<Vec<K>>>
where
    K: Kind + Resource<Scope = NamespaceResourceScope>,
{
    objects(match namespace {
        Some(namespace) => Api::namespaced(client.clone(), namespace),
        None => Api::all(client.clone()),
    })
    .await
}

/// As [`list`], for kinds without a namespace.
pub async fn list_cluster<K: Kind>(client: &Client) -> Result<Option<Vec<K>>> {
    objects(Api::all(client.clone())).await
}

async fn objects<K: Kind>(api: Api<Watched<K>>) -> Result<Option<Vec<K>>> {
    let found = match api.list(&ListParams::default()).await {
        Ok(found) => found.items,
        Err(kube::Error::Api(status)) if status.code == 404 => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let (read, unread): (Vec<_>, Vec<_>) = found.into_iter().partition(|object| object.0.is_ok());
    for object in unread {
        let place = object.namespace().map_or_else(String::new, |namespace| format!("{namespace}/"));
        if let (name, Err(unread)) = (object.name_any(), object.0) {
            eprintln!("{} {place}{name} is left out: {}", K::kind(&()), unread.why);
        }
    }
    Ok(Some(read.into_iter().filter_map(|object| object.0.ok()).collect()))
}
