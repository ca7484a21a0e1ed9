//! SitePolicy `default` as a value that changes.

use std::pin::pin;
use std::sync::Arc;

use consilium_crds::{SitePolicy, Unread, Watched};
use futures::{Stream, StreamExt as _};
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, Client};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::POLICY_NAME;
use super::unread::tell;
use crate::Clock;

/// True once the API server has said whether there is a SitePolicy.
pub type Synced = watch::Receiver<bool>;

/// Follows the SitePolicy until shutdown.
///
/// A policy that cannot be read allows nothing, and says so where its administrator looks: nothing is done on the
/// strength of what an older one said. While the API server cannot be reached, the last known policy stands.
pub async fn watch(
    (client, clock): (Client, Clock),
    namespace: &str,
    policy: watch::Sender<Option<Arc<SitePolicy>>>,
    synced: watch::Sender<bool>,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let api: Api<Watched<SitePolicy>> = Api::namespaced(client.clone(), namespace);
    let stream = kube::runtime::watcher::watch_object(api, POLICY_NAME).default_backoff();
    let unread = |found: Option<Unread>| {
        if let Some(unread) = found {
            tokio::spawn(tell(client.clone(), unread, clock.now()));
        }
    };
    tokio::select! {
        () = shutdown.cancelled() => Ok(()),
        () = follow(stream, &policy, &synced, unread) => anyhow::bail!("the watch on the SitePolicy ended; restarting the agent starts it again"),
    }
}

async fn follow(
    stream: impl Stream<Item = Result<Option<Watched<SitePolicy>>, watcher::Error>>,
    policy: &watch::Sender<Option<Arc<SitePolicy>>>,
    synced: &watch::Sender<bool>,
    unread: impl Fn(Option<Unread>),
) {
    let mut stream = pin!(stream);
    while let Some(event) = stream.next().await {
        let (found, trouble) = match event {
            Ok(Some(Watched(Ok(found)))) => (Some(Arc::new(found)), None),
            Ok(Some(Watched(Err(why)))) => (None, Some(why)),
            Ok(None) => (None, None),
            Err(error) => {
                tracing::warn!(%error, "the SitePolicy cannot be watched for now; the last known one stands");
                continue;
            }
        };
        unread(trouble);
        policy.send_if_modified(|known| {
            let changed = *known != found;
            *known = found;
            changed
        });
        synced.send_replace(true);
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use futures::stream;
    use serde_json::{Value, json};

    use super::*;

    fn event(spec: Value) -> Result<Option<Watched<SitePolicy>>, watcher::Error> {
        let object = json!({"apiVersion": "consilium.health/v1alpha1", "kind": "SitePolicy",
            "metadata": {"name": "default", "uid": "u"}, "spec": spec});
        Ok(Some(serde_json::from_value(object).unwrap()))
    }

    /// An administrator who added a rule that this agent does not know would otherwise believe it to be in force, or
    /// read that there is no policy.
    #[tokio::test]
    async fn a_policy_that_cannot_be_read_allows_nothing_and_says_why() {
        let good = serde_json::to_value(crate::policy::tests::policy(&[])).unwrap();
        let mut later = good.clone();
        later["window"] = json!({"from": "22:00"});
        let (policy, seen) = watch::channel(None);
        let (synced, _synced) = watch::channel(false);
        let told: RefCell<Vec<Option<String>>> = RefCell::default();
        let tell = |found: Option<Unread>| told.borrow_mut().push(found.map(|unread| unread.why.to_string()));
        follow(stream::iter([event(good.clone())]), &policy, &synced, &tell).await;
        assert!(seen.borrow().is_some());
        follow(stream::iter([event(later)]), &policy, &synced, &tell).await;
        assert!(seen.borrow().is_none());
        assert!(told.borrow()[1].as_ref().is_some_and(|why| why.contains("spec.window") && why.contains("update")));
        follow(stream::iter([event(good), Ok(None)]), &policy, &synced, &tell).await;
        assert_eq!((told.borrow()[2].clone(), seen.borrow().is_some()), (None, false));
    }
}
