//! Watched objects as local stores that wake a controller.

use std::sync::Arc;

use consilium_crds::{Kind, Unread, Watched};
use futures::StreamExt as _;
use kube::Api;
use kube::runtime::reflector::store::Writer;
use kube::runtime::reflector::{self, ObjectRef, Store};
use kube::runtime::watcher::Event;
use kube::runtime::{WatchStreamExt as _, watcher};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// Keeps a store of the objects that match, and notifies after each change, until shutdown. One that cannot be read is
/// left out alone.
pub fn follow<K: Kind>(
    api: Api<Watched<K>>,
    selector: &str,
    news: Arc<Notify>,
    shutdown: CancellationToken,
) -> Store<K> {
    follow_as(watcher::Config::default(), api, selector, news, shutdown)
}

/// The same, with a word on how the watch is kept.
pub fn follow_as<K: Kind>(
    config: watcher::Config,
    api: Api<Watched<K>>,
    selector: &str,
    news: Arc<Notify>,
    shutdown: CancellationToken,
) -> Store<K> {
    let config = if selector.is_empty() { config } else { config.labels(selector) };
    let (reader, writer) = reflector::store();
    let mut sorter = Sorter { reader: reader.clone(), writer };
    tokio::spawn(async move {
        let mut stream = std::pin::pin!(watcher(api, config).default_backoff());
        loop {
            let event = tokio::select! {
                () = shutdown.cancelled() => return,
                event = stream.next() => event,
            };
            match event {
                None => return,
                Some(Ok(event)) => {
                    if let Some(unread) = sorter.take(event) {
                        let name = unread.metadata.name.as_deref().unwrap_or_default();
                        tracing::error!(kind = %K::kind(&()), name, error = %unread.why, "an object cannot be read and is left out, alone");
                    }
                    news.notify_one();
                }
                Some(Err(error)) => {
                    tracing::warn!(kind = %K::kind(&()), %error, "watch interrupted; it is set up again")
                }
            }
        }
    });
    reader
}

/// Sorts what was read into the store.
struct Sorter<K: Kind> {
    reader: Store<K>,
    writer: Writer<K>,
}

impl<K: Kind> Sorter<K> {
    /// Answers what cannot be read.
    fn take(&mut self, event: Event<Watched<K>>) -> Option<Unread> {
        let event = match event {
            Event::Init => Event::Init,
            Event::InitDone => Event::InitDone,
            Event::InitApply(Watched(Ok(object))) => Event::InitApply(object),
            Event::Apply(Watched(Ok(object))) => Event::Apply(object),
            Event::Delete(Watched(Ok(object))) => Event::Delete(object),
            Event::Delete(Watched(Err(unread))) => {
                self.drop_known(&unread);
                return None;
            }
            Event::Apply(Watched(Err(unread))) | Event::InitApply(Watched(Err(unread))) => {
                self.drop_known(&unread);
                return Some(unread);
            }
        };
        self.writer.apply_watcher_event(&event);
        None
    }

    /// What it was before it was changed into something that cannot be read holds no more.
    fn drop_known(&mut self, unread: &Unread) {
        let key = ObjectRef::<K>::new(unread.metadata.name.as_deref().unwrap_or_default());
        let key = key.within(unread.metadata.namespace.as_deref().unwrap_or_default());
        if let Some(known) = self.reader.get(&key) {
            self.writer.apply_watcher_event(&Event::Delete(Arc::unwrap_or_clone(known)));
        }
    }
}

#[cfg(test)]
mod tests {
    use consilium_crds::ModelDeployment;
    use kube::runtime::reflector::store;
    use serde_json::json;

    use super::*;

    fn watched(name: &str, stage: &str) -> Watched<ModelDeployment> {
        let digest = format!("sha256:{}", "a".repeat(64));
        let object = json!({"apiVersion": "consilium.health/v1alpha1", "kind": "ModelDeployment",
            "metadata": {"name": name, "namespace": "tasks", "uid": name},
            "spec": {"release": "r", "releaseDigest": digest, "model": digest, "stage": stage, "promotionUID": "p"}});
        serde_json::from_value(object).unwrap()
    }

    /// One object that cannot be read once failed the whole list: no task started and no model was stopped any more.
    #[test]
    fn what_cannot_be_read_is_left_out_alone() {
        let (reader, writer) = store::<ModelDeployment>();
        let mut sorter = Sorter { reader: reader.clone(), writer };
        let mut take = |event| sorter.take(event).map(|unread| unread.metadata.name.unwrap_or_default());
        let names = || {
            let mut names: Vec<String> = reader.state().iter().filter_map(|m| m.metadata.name.clone()).collect();
            names.sort();
            names
        };
        assert_eq!(take(Event::Init), None);
        assert_eq!(take(Event::InitApply(watched("a", "Shadow"))), None);
        assert_eq!(take(Event::InitApply(watched("b", "Oracle"))).as_deref(), Some("b"));
        assert_eq!(take(Event::InitApply(watched("c", "Shadow"))), None);
        assert_eq!(take(Event::InitDone), None);
        assert_eq!(names(), ["a", "c"]);
        assert_eq!(take(Event::Apply(watched("a", "Oracle"))).as_deref(), Some("a"));
        assert_eq!(names(), ["c"]);
        assert_eq!(take(Event::Apply(watched("b", "Shadow"))), None);
        assert_eq!(take(Event::Delete(watched("a", "Oracle"))), None);
        assert_eq!(names(), ["b", "c"]);
    }
}
