//! SitePolicy `default` as a value that changes.
//!
//! It is read again and again, and a watch only says when to read at once: a watch whose connection is dead is silent and
//! looks like one with no news, and a hospital that says stop must not wait for that to be noticed.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use consilium_crds::{SitePolicy, Unread, Watched};
use futures::StreamExt as _;
use kube::api::ListParams;
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, Client};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use super::POLICY_NAME;
use super::unread::tell;
use crate::Clock;

/// True once the API server has said whether there is a SitePolicy.
pub type Synced = watch::Receiver<bool>;

/// How often the policy is read, and how long an answer may take. A read that has taken too long is made again over a
/// connection of its own, so an edit is seen after two answers and little more than a pause.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Between two reads while nothing says that there is news.
    pub read: Duration,
    /// For an answer.
    pub answer: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self { read: Duration::from_secs(3), answer: Duration::from_secs(3) }
    }
}

/// Follows the SitePolicy until shutdown. `connect` makes a client whose connections are its own.
///
/// A policy that cannot be read allows nothing, and says so where its administrator looks: nothing is done on the
/// strength of what an older one said. While the API server cannot be reached, the last known policy stands.
pub async fn watch(
    (connect, pace, clock): (impl Fn() -> Result<Client, kube::Error>, Pace, Clock),
    namespace: &str,
    policy: watch::Sender<Option<Arc<SitePolicy>>>,
    synced: watch::Sender<bool>,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let client = connect()?;
    let news = Notify::new();
    let mut reader = Reader { api: Api::namespaced(client.clone(), namespace), told: None, policy, synced };
    let read = async {
        loop {
            if let Err(why) =
                reader.read(pace.answer, |unread| drop(tokio::spawn(tell(client.clone(), unread, clock.now())))).await
            {
                tracing::warn!(%why, "the SitePolicy cannot be read for now; the last known one stands");
                match connect() {
                    Ok(client) => reader.api = Api::namespaced(client, namespace),
                    Err(error) => tracing::warn!(%error, "no new connection to the API server can be made"),
                }
                // An API server that refuses at once is not asked without a pause.
                tokio::time::sleep(pace.read / 3).await;
                continue;
            }
            tokio::select! {
                () = news.notified() => {}
                () = tokio::time::sleep(pace.read) => {}
            }
        }
    };
    tokio::select! {
        () = shutdown.cancelled() => Ok(()),
        () = read => Ok(()),
        () = wake(Api::namespaced(client.clone(), namespace), &news) => anyhow::bail!("the watch on the SitePolicy ended; restarting the agent starts it again"),
    }
}

/// Says when there is news.
async fn wake(api: Api<Watched<SitePolicy>>, news: &Notify) {
    let mut stream = pin!(watcher::watch_object(api, POLICY_NAME).default_backoff());
    while let Some(event) = stream.next().await {
        match event {
            Ok(_) => news.notify_one(),
            Err(error) => {
                tracing::warn!(%error, "the SitePolicy cannot be watched for now; it is read every few seconds")
            }
        }
    }
}

/// Reads the policy and passes on what is new.
struct Reader {
    api: Api<Watched<SitePolicy>>,
    /// The version of one that could not be read and was told of.
    told: Option<String>,
    policy: watch::Sender<Option<Arc<SitePolicy>>>,
    synced: watch::Sender<bool>,
}

impl Reader {
    async fn read(&mut self, answer: Duration, unread: impl FnOnce(Unread)) -> Result<(), String> {
        // A list of one: what does not exist is then told from a kind that the API server does not know for now.
        let one = ListParams::default().fields(&format!("metadata.name={POLICY_NAME}"));
        match tokio::time::timeout(answer, self.api.list(&one)).await {
            Ok(Ok(list)) => self.take(list.items.into_iter().next(), unread),
            Ok(Err(error)) => return Err(error.to_string()),
            Err(_) => return Err(format!("no answer within {answer:?}")),
        }
        Ok(())
    }

    fn take(&mut self, found: Option<Watched<SitePolicy>>, unread: impl FnOnce(Unread)) {
        let found = match found {
            Some(Watched(Ok(found))) => Some(Arc::new(found)),
            Some(Watched(Err(why))) => {
                let version = why.metadata.resource_version.clone();
                if self.told != version || version.is_none() {
                    self.told = version;
                    unread(why);
                }
                None
            }
            None => None,
        };
        self.policy.send_if_modified(|known| {
            let changed = *known != found;
            *known = found;
            changed
        });
        self.synced.send_replace(true);
    }
}

#[cfg(test)]
#[path = "watch_tests.rs"]
mod tests;
