//! The controllers: the only place that calls Kubernetes.
//!
//! One reflector for each kind feeds one cache; every change asks for the reconcile of what it concerns
//! (`fanout`); each kind's loop reconciles objects concurrently and never one object twice at once (`run`). Inside a
//! controller the way is read → decide (pure) → apply → status → Events. Nothing is published to a hospital before
//! all caches are synced, and then everything that the objects say.

mod cache;
pub mod collect;
pub mod context;
mod error;
mod fanout;
mod finalizer;
pub mod init;
pub mod models;
pub mod plan;
pub mod promotion;
pub mod release;
pub mod rosters;
pub mod round;
mod run;
pub mod study;
#[cfg(test)]
mod testing;
pub mod trust_site;
mod unread;
mod write;

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::future::Future;
use std::hash::Hash;
use std::sync::Arc;

use kube::runtime::controller::Action;
use kube::runtime::reflector::store::Writer;
use kube::runtime::reflector::{ObjectRef, Store, store};
use kube::runtime::watcher;
use kube::{Api, Client, Resource, ResourceExt};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::metrics::Controller;
use crate::store::StoreError;
use cache::{Change, Seen};
use consilium_crds::{
    ClinicalPlan, FederatedStudy, Kind, ModelPromotion, ModelRelease, TrainingRound, TrustSite, Watched,
};
use context::{Caches, Context, Parts, Queues};
use error::Error;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use run::Loop;

/// How long plans are waited for at the start.
const PLANS: std::time::Duration = std::time::Duration::from_secs(20);

/// The controllers, put together and not yet running.
pub struct Controllers {
    context: Arc<Context>,
    writers: Writers,
    receivers: Receivers,
}

struct Writers {
    sites: Writer<TrustSite>,
    studies: Writer<FederatedStudy>,
    rounds: Writer<TrainingRound>,
    releases: Writer<ModelRelease>,
    promotions: Writer<ModelPromotion>,
    plans: Writer<ClinicalPlan>,
    jobs: Writer<Job>,
    pods: Writer<Pod>,
    rosters: Writer<ConfigMap>,
}

struct Receivers {
    sites: UnboundedReceiver<ObjectRef<TrustSite>>,
    studies: UnboundedReceiver<ObjectRef<FederatedStudy>>,
    rounds: UnboundedReceiver<ObjectRef<TrainingRound>>,
    releases: UnboundedReceiver<ObjectRef<ModelRelease>>,
    promotions: UnboundedReceiver<ObjectRef<ModelPromotion>>,
    plans: UnboundedReceiver<ObjectRef<ClinicalPlan>>,
}

/// The controllers could not go on; the process ends and is started again.
#[derive(Debug, thiserror::Error)]
pub enum ControllersError {
    /// A watch ended that never should.
    #[error("the watch of {0} ended before its cache was synced")]
    NotSynced(&'static str),
    /// The store does not say what hospitals must still be told to stop.
    #[error("reading the tombstones: {0}")]
    Tombstones(#[from] StoreError),
    /// A task panicked.
    #[error("a controller stopped: {0}")]
    Stopped(tokio::task::JoinError),
}

impl Controllers {
    /// Puts the controllers together.
    pub fn new(parts: Parts) -> Self {
        let ((sites, sites_w), (studies, studies_w), (rounds, rounds_w)) = (store(), store(), store());
        let ((releases, releases_w), (promotions, promotions_w)) = (store(), store());
        let (plans, plans_w) = store();
        let ((jobs, jobs_w), (pods, pods_w), (rosters, rosters_w)) = (store(), store(), store());
        let (sites_q, sites_r) = unbounded_channel();
        let (studies_q, studies_r) = unbounded_channel();
        let (rounds_q, rounds_r) = unbounded_channel();
        let (releases_q, releases_r) = unbounded_channel();
        let (promotions_q, promotions_r) = unbounded_channel();
        let (plans_q, plans_r) = unbounded_channel();
        let caches = Caches { sites, studies, rounds, releases, promotions, plans, jobs, pods, rosters };
        let queues = Queues {
            sites: sites_q,
            studies: studies_q,
            rounds: rounds_q,
            releases: releases_q,
            promotions: promotions_q,
            plans: plans_q,
        };
        Self {
            context: Context::new(parts, caches, queues),
            writers: Writers {
                sites: sites_w,
                studies: studies_w,
                rounds: rounds_w,
                releases: releases_w,
                promotions: promotions_w,
                plans: plans_w,
                jobs: jobs_w,
                pods: pods_w,
                rosters: rosters_w,
            },
            receivers: Receivers {
                sites: sites_r,
                studies: studies_r,
                rounds: rounds_r,
                releases: releases_r,
                promotions: promotions_r,
                plans: plans_r,
            },
        }
    }

    /// What the task port needs to know about Init tasks.
    pub fn context(&self) -> Arc<Context> {
        self.context.clone()
    }

    /// Watches, waits for the caches, publishes everything, calls `synced`, and then reconciles until `shutdown`.
    ///
    /// # Errors
    /// When a task stopped that should not.
    pub async fn run(self, synced: impl FnOnce(), shutdown: CancellationToken) -> Result<(), ControllersError> {
        let Self { context, writers, receivers } = self;
        let mut tasks = JoinSet::new();
        watch_all(&context, writers, &shutdown, &mut tasks);
        let ready = tokio::select! {
            ready = wait_for_caches(&context.caches) => ready,
            () = shutdown.cancelled() => return Ok(()),
        };
        ready?;
        // Without any TrustSite nothing has called it yet, and every hospital would hear that the hub is starting.
        trust_site::admit(&context);
        rosters::refresh(&context).await;
        publish_all(&context).await?;
        fanout::sweep(&context);
        tasks.spawn(fanout::hospitals(context.clone(), shutdown.clone()));
        tasks.spawn(collect::run(context.clone(), shutdown.clone()));
        // Reports may have come in while nobody listened.
        fanout::all_hospitals(&context);
        reconcile_all(&context, receivers, &shutdown, &mut tasks);
        synced();
        while let Some(ended) = tasks.join_next().await {
            ended.map_err(ControllersError::Stopped)?;
        }
        Ok(())
    }
}

fn watch_all(context: &Arc<Context>, writers: Writers, shutdown: &CancellationToken, tasks: &mut JoinSet<()>) {
    let Writers { sites, studies, rounds, releases, promotions, plans, jobs, pods, rosters } = writers;
    let client = || context.client.clone();
    let every = watcher::Config::default;
    let tasks_only = || watcher::Config::default().labels(&format!("{}=true", init::job::INIT_LABEL));
    let here = &context.settings.task_namespace;
    let mut start = Starter { context, shutdown, tasks };
    start.follow(Api::all(client()), every(), sites, |context, change| fanout::site(context, change));
    start.follow(Api::all(client()), every(), studies, fanout::study);
    start.follow(Api::all(client()), every(), rounds, |context, change| fanout::round(context, change));
    start.follow(Api::all(client()), every(), releases, |context, change| fanout::release(context, change));
    start.follow(Api::all(client()), every(), promotions, |context, change| fanout::promotion(context, change));
    start.follow(Api::all(client()), every(), plans, |context, change| fanout::plan(context, change));
    start.follow(namespaced(client(), here), tasks_only(), jobs, |context, change| fanout::job(context, change));
    start.follow(namespaced(client(), here), tasks_only(), pods, |context, change| fanout::pod(context, change));
    let signed = watcher::Config::default().labels(&format!("{}=true", consilium_crds::roster::LABEL));
    start.follow(namespaced(client(), &context.settings.namespace), signed, rosters, fanout::roster);
}

fn namespaced<K>(client: Client, namespace: &str) -> Api<Watched<K>>
where
    K: Kind + Resource<Scope = kube::core::NamespaceResourceScope>,
{
    Api::namespaced(client, namespace)
}

struct Starter<'a> {
    context: &'a Arc<Context>,
    shutdown: &'a CancellationToken,
    tasks: &'a mut JoinSet<()>,
}

impl Starter<'_> {
    fn follow<K: Kind>(
        &mut self,
        api: Api<Watched<K>>,
        config: watcher::Config,
        writer: Writer<K>,
        on: impl Fn(&Arc<Context>, Change<K>) + Send + 'static,
    ) {
        let context = self.context.clone();
        let each = move |seen: Seen<K>| match seen {
            Seen::Read(change) => {
                let (Change::Touched(object) | Change::Gone(object)) = &change;
                context.no_longer_unread(object.meta().uid.as_deref().unwrap_or_default());
                on(&context, change);
            }
            Seen::Unread(unread) => unread::found::<K>(&context, unread),
            Seen::UnreadGone(unread) => unread::gone::<K>(&context, &unread),
            Seen::Count(unread) => context.metrics.unreadable(&K::kind(&()), unread),
        };
        self.tasks.spawn(cache::follow(api, config, writer, each, self.shutdown.clone()));
    }

    fn reconcile<K, F, R>(
        &mut self,
        name: Controller,
        store: &Store<K>,
        queue: UnboundedReceiver<ObjectRef<K>>,
        reconcile: F,
    ) where
        K: Resource<DynamicType = ()> + Clone + Debug + Send + Sync + 'static,
        F: Fn(Arc<K>, Arc<Context>) -> R + Send + Sync + 'static,
        R: Future<Output = Result<Action, Error>> + Send + 'static,
        ObjectRef<K>: Eq + Hash + Send,
    {
        let parts = Loop { name, store: store.clone(), queue };
        self.tasks.spawn(run::run(parts, self.context.clone(), reconcile, self.shutdown.clone()));
    }
}

fn reconcile_all(context: &Arc<Context>, queues: Receivers, shutdown: &CancellationToken, tasks: &mut JoinSet<()>) {
    let caches = &context.caches;
    let mut start = Starter { context, shutdown, tasks };
    start.reconcile(Controller::TrustSite, &caches.sites, queues.sites, trust_site::reconcile);
    start.reconcile(Controller::Study, &caches.studies, queues.studies, study::reconcile);
    start.reconcile(Controller::Round, &caches.rounds, queues.rounds, round::reconcile);
    start.reconcile(Controller::Release, &caches.releases, queues.releases, release::reconcile);
    start.reconcile(Controller::Promotion, &caches.promotions, queues.promotions, promotion::reconcile);
    start.reconcile(Controller::Plan, &caches.plans, queues.plans, plan::reconcile);
}

async fn wait_for_caches(caches: &Caches) -> Result<(), ControllersError> {
    let failed = |kind| move |_| ControllersError::NotSynced(kind);
    caches.sites.wait_until_ready().await.map_err(failed("TrustSite"))?;
    caches.studies.wait_until_ready().await.map_err(failed("FederatedStudy"))?;
    caches.rounds.wait_until_ready().await.map_err(failed("TrainingRound"))?;
    caches.releases.wait_until_ready().await.map_err(failed("ModelRelease"))?;
    caches.promotions.wait_until_ready().await.map_err(failed("ModelPromotion"))?;
    // A cluster that has this kind not yet has no plan either: then its promotions wait, and nothing else does.
    if tokio::time::timeout(PLANS, caches.plans.wait_until_ready()).await.is_err() {
        tracing::error!(
            "ClinicalPlans cannot be read: see whether this cluster has the kind and the operator may list it"
        );
    }
    caches.jobs.wait_until_ready().await.map_err(failed("Job"))?;
    caches.pods.wait_until_ready().await.map_err(failed("Pod"))?;
    caches.rosters.wait_until_ready().await.map_err(failed("ConfigMap"))
}

/// Makes the book from the objects and publishes it to every hospital, once and whole.
async fn publish_all(context: &Context) -> Result<(), ControllersError> {
    let buried = context.hub.store().tombstones().await?;
    let mut work = BTreeMap::new();
    for round in context.caches.rounds.state() {
        let round = round::read(&round);
        let items = context.driver.asked_before(&round).await;
        work.insert(round.uid.clone(), (round.owner(), items));
    }
    for promotion in context.caches.promotions.state() {
        let items = promotion::items_from_cache(context, &promotion);
        work.insert(promotion.uid().unwrap_or_default(), (promotion::owner(&promotion), items));
    }
    let hospitals = context.caches.sites.state();
    context.publish(|book| {
        for (site, tombstone) in buried {
            book.bury(&site, tombstone);
        }
        for (uid, (owner, items)) in work {
            book.set(&uid, &owner, items);
        }
        let known = hospitals.iter().filter_map(|site| site.site_name());
        book.sites().into_iter().chain(known).collect()
    });
    Ok(())
}
