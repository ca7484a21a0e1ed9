//! Watched objects as local stores that wake a controller.

use std::fmt::Debug;
use std::sync::Arc;

use futures::StreamExt as _;
use kube::runtime::reflector::{self, Store};
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, Resource};
use serde::de::DeserializeOwned;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// Keeps a store of the objects that match, and notifies after each change, until shutdown.
pub fn follow<K>(api: Api<K>, selector: &str, news: Arc<Notify>, shutdown: CancellationToken) -> Store<K>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
{
    let config =
        if selector.is_empty() { watcher::Config::default() } else { watcher::Config::default().labels(selector) };
    let (reader, writer) = reflector::store();
    let stream = kube::runtime::reflector(writer, watcher(api, config)).default_backoff();
    tokio::spawn(async move {
        let mut stream = std::pin::pin!(stream);
        loop {
            let event = tokio::select! {
                () = shutdown.cancelled() => return,
                event = stream.next() => event,
            };
            match event {
                None => return,
                Some(Ok(_)) => news.notify_one(),
                Some(Err(error)) => {
                    tracing::warn!(kind = %K::kind(&()), %error, "watch interrupted; it is set up again")
                }
            }
        }
    });
    reader
}
