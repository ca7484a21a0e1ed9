//! SitePolicy `default` as a value that changes.

use std::pin::pin;
use std::sync::Arc;

use consilium_crds::SitePolicy;
use futures::{Stream, StreamExt as _};
use kube::core::DeserializeGuard;
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, Client};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::POLICY_NAME;

/// True once the API server has said whether there is a SitePolicy.
pub type Synced = watch::Receiver<bool>;

/// Follows the SitePolicy until shutdown.
///
/// A policy that cannot be read counts as none: nothing is allowed on the strength of what an older one said. While
/// the API server cannot be reached, the last known policy stands.
pub async fn watch(
    client: Client,
    namespace: &str,
    policy: watch::Sender<Option<Arc<SitePolicy>>>,
    synced: watch::Sender<bool>,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let api: Api<DeserializeGuard<SitePolicy>> = Api::namespaced(client, namespace);
    let stream = kube::runtime::watcher::watch_object(api, POLICY_NAME).default_backoff();
    tokio::select! {
        () = shutdown.cancelled() => Ok(()),
        () = follow(stream, &policy, &synced) => anyhow::bail!("the watch on the SitePolicy ended; restarting the agent starts it again"),
    }
}

async fn follow(
    stream: impl Stream<Item = Result<Option<DeserializeGuard<SitePolicy>>, watcher::Error>>,
    policy: &watch::Sender<Option<Arc<SitePolicy>>>,
    synced: &watch::Sender<bool>,
) {
    let mut stream = pin!(stream);
    while let Some(event) = stream.next().await {
        let found = match event {
            Ok(Some(DeserializeGuard(Ok(found)))) => Some(Arc::new(found)),
            Ok(Some(DeserializeGuard(Err(error)))) => {
                tracing::error!(%error, "SitePolicy default cannot be read, so nothing is allowed; correct it or update the agent");
                None
            }
            Ok(None) => None,
            Err(error) => {
                tracing::warn!(%error, "the SitePolicy cannot be watched for now; the last known one stands");
                continue;
            }
        };
        policy.send_if_modified(|known| {
            let changed = *known != found;
            *known = found;
            changed
        });
        synced.send_replace(true);
    }
}
