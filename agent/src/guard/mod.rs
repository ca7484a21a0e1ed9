//! Stops what may not be here: trainings, evaluations and models, each judged from its own spec against the SitePolicy.
//!
//! It needs the API server and nothing else. Not the hub, whose word is not asked; not the volume, which may be full,
//! broken or new; not the controllers, which may be waiting for either. The wiring gives it a thread of its own. It
//! only ever takes away, so it may do the same as a controller at the same time.
//!
//! Stop first, record second: what was stopped is put down for the ledger afterwards.
//!
//! What may stay on, models alone, stays on a lease that is renewed here: when this part is gone, they end by it. With the
//! lease a model's pod is told on which stage the model stands.

mod apply;
mod decide;
mod lease;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use consilium_crds::site_policy::SitePolicySpec;
use consilium_crds::{ModelDeployment, ModelHazard, RoundTask, SitePolicy};
use consilium_federation::Digest;
use futures::FutureExt as _;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Pod;
use kube::runtime::reflector::Store;
use kube::runtime::watcher;
use kube::{Api, Client, Resource};
use serde::de::DeserializeOwned;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use crate::deployments::LABEL as MODEL_LABEL;
use crate::policy::{self, Hospital, Room, SeenHazards, places};
use crate::site::Synced;
use crate::state::Unrecorded;
use crate::tasks::{follow_as, job::TASK_LABEL};
use crate::{Clock, Enforcement, Metrics};
use apply::{Done, Stopper};
use decide::{Kind, Seen, Stop, decide, told};
use lease::{Terms, due};

/// Longest time between two looks: a limit of time is noticed by then, and a call that failed is made again.
const TURN: Duration = Duration::from_secs(3);

/// How long hazards may be unread before every model counts as if one were open.
const UNREAD: SignedDuration = SignedDuration::from_secs(30);

/// Seconds after which the API server ends a watch and it is begun anew where it stood. One that is silent for a little
/// longer is dead, and is noticed by that: otherwise a Job that came meanwhile would go unseen for five minutes.
const WATCH_SECONDS: u32 = 10;

/// What it works with.
pub struct Guard {
    /// The hospital's API server, to watch.
    pub watches: Client,
    /// The same over connections of its own, to change things: a watch that is dead must not hold up a stop.
    pub calls: Client,
    /// Namespace of tasks and models.
    pub namespace: String,
    /// The agent's own, where the hospital's people open hazards.
    pub own_namespace: String,
    /// The hazards that were seen.
    pub hazards: SeenHazards,
    /// Digest of the image that serves models.
    pub image: Option<Digest>,
    /// What the hospital allows.
    pub policy: watch::Receiver<Option<Arc<SitePolicy>>>,
    /// Whether that is known.
    pub synced: Synced,
    /// Whether task pods are kept from the network.
    pub enforcement: watch::Receiver<Enforcement>,
    /// Where what was stopped waits for the ledger.
    pub unrecorded: Unrecorded,
    /// Prometheus metrics.
    pub metrics: Metrics,
    /// The time.
    pub clock: Clock,
    /// Cancelled at the end of the process.
    pub shutdown: CancellationToken,
}

/// Runs until shutdown.
pub async fn run(mut guard: Guard) -> anyhow::Result<()> {
    let news = Arc::new(Notify::new());
    let here = Here::follow(&guard, &news);
    tokio::select! {
        () = guard.shutdown.cancelled() => return Ok(()),
        known = guard.synced.wait_for(|known| *known) => { known?; }
    }
    let stopper = Stopper::new(&guard);
    let mut told = BTreeSet::new();
    loop {
        // A last look gives every model the whole of its lease: a restart of the agent takes none out of use.
        let last = guard.shutdown.is_cancelled();
        turn(&mut guard, &here, &stopper, &mut told, last).await;
        if last {
            return Ok(());
        }
        tokio::select! {
            // Before the others: who watches the policy ends at the same time.
            biased;
            () = guard.shutdown.cancelled() => {}
            () = news.notified() => {}
            changed = guard.policy.changed() => changed?,
            changed = guard.enforcement.changed() => changed?,
            () = tokio::time::sleep(TURN) => {}
        }
    }
}

async fn turn(guard: &mut Guard, here: &Here, stopper: &Stopper, known: &mut BTreeSet<String>, last: bool) {
    let policy = guard.policy.borrow_and_update().clone();
    let enforcement = guard.enforcement.borrow_and_update().clone();
    for (kind, room) in [("tasks", policy::tasks as fn(&SitePolicySpec) -> Room), ("models", policy::models)] {
        let closed = policy.as_deref().is_none_or(|policy| matches!(room(&policy.spec), Room::Closed(_)));
        guard.metrics.suspended.with_label_values(&[kind]).set(i64::from(closed));
    }
    let (tasks, jobs, models) = (seen(&here.tasks), seen(&here.jobs), seen(&here.models));
    let now = guard.clock.now();
    if let Some(found) = seen(&here.hazards) {
        guard.hazards.take(&found);
    }
    let hazards = guard.hazards.known();
    guard.metrics.hazards_open.set(hazards.open() as i64);
    let spec = policy.as_deref().map(|policy| &policy.spec);
    let hospital = Hospital { policy: spec, hazards: Some(&hazards), image: guard.image, now };
    let places = models.as_deref().map(|models| places(models, &hospital)).unwrap_or_default();
    let stops = decide(&Seen {
        policy: policy.as_deref().map(|policy| &policy.spec),
        enforcement: &enforcement,
        tasks: tasks.as_deref(),
        jobs: jobs.as_deref(),
        task_pods: &here.task_pods.state(),
        models: models.as_deref(),
        places: &places,
        deployments: &here.deployments.state(),
        model_pods: &here.model_pods.state(),
        now,
    });
    // A model that cannot be read is not judged, and what is not judged is not renewed.
    let leases = match (&policy, &models) {
        (Some(policy), Some(models)) => {
            // In its first moments it has not read the hazards: then nobody is told anything else than before.
            let said = hazards.whole() || now.duration_since(here.since) > UNREAD;
            let told = |pod: &Pod| said.then(|| told(pod, models, &places)).flatten();
            due(&here.model_pods.state(), &stops, &Terms { length: policy.spec.model_lease(), now, last }, told)
        }
        _ => Vec::new(),
    };
    // What is told once is not told at each look until it is gone.
    let standing: BTreeSet<String> = stops.iter().map(|stop| stop.uid.clone()).collect();
    known.retain(|uid| standing.contains(uid));
    for (stop, result) in stopper.all(stops).await {
        match result {
            Ok(Done::Stopped) if known.insert(stop.uid.clone()) => stopper.tell(&stop),
            Ok(Done::Stopped) => {}
            Ok(Done::Kept) => {
                tracing::info!(
                    kind = stop.kind.as_str(),
                    name = stop.name,
                    "kept: what stands behind it is there, and a watch behind"
                );
            }
            Err(error) => {
                tracing::error!(kind = stop.kind.as_str(), name = stop.name, %error, "could not be stopped; it is tried again");
                guard.metrics.reconcile_errors.with_label_values(&["guard", error.class()]).inc();
            }
        }
    }
    // What may stay has minutes; what must stop has had its turn.
    stopper.renew(leases, &guard.metrics).await;
}

/// What is watched.
struct Here {
    /// Since when.
    since: Timestamp,
    hazards: Store<ModelHazard>,
    tasks: Store<RoundTask>,
    jobs: Store<Job>,
    task_pods: Store<Pod>,
    models: Store<ModelDeployment>,
    deployments: Store<Deployment>,
    model_pods: Store<Pod>,
}

impl Here {
    fn follow(guard: &Guard, news: &Arc<Notify>) -> Self {
        Self {
            since: guard.clock.now(),
            hazards: watched_in(guard, &guard.own_namespace, "", news),
            tasks: watched(guard, "", news),
            jobs: watched(guard, TASK_LABEL, news),
            task_pods: watched(guard, TASK_LABEL, news),
            models: watched(guard, "", news),
            deployments: watched(guard, MODEL_LABEL, news),
            model_pods: watched(guard, MODEL_LABEL, news),
        }
    }
}

fn watched<K>(guard: &Guard, selector: &str, news: &Arc<Notify>) -> Store<K>
where
    K: consilium_crds::Kind + Resource<DynamicType = (), Scope = NamespaceResourceScope>,
{
    watched_in(guard, &guard.namespace, selector, news)
}

fn watched_in<K>(guard: &Guard, namespace: &str, selector: &str, news: &Arc<Notify>) -> Store<K>
where
    K: consilium_crds::Kind + Resource<DynamicType = (), Scope = NamespaceResourceScope>,
{
    let api = Api::namespaced(guard.watches.clone(), namespace);
    let config = watcher::Config::default().timeout(WATCH_SECONDS);
    follow_as(config, api, selector, Arc::clone(news), guard.shutdown.clone())
}

/// The objects of a kind; none before they are known, for absence is a word only then.
fn seen<K>(store: &Store<K>) -> Option<Vec<Arc<K>>>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Send + Sync + 'static,
{
    store.wait_until_ready().now_or_never().map(|_| store.state())
}
