//! What all controllers share.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use consilium_crds::{ClinicalPlan, FederatedStudy, ModelPromotion, ModelRelease, TrainingRound, TrustSite, Watched};
use consilium_federation::assignment::Item;
use consilium_federation::round::RoundState;
use consilium_federation::{SiteName, StudyKey};
use ed25519_dalek::SigningKey;
use jiff::Timestamp;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::runtime::events::Recorder;
use kube::runtime::reflector::{ObjectRef, Store};
use kube::{Api, Client, Resource, ResourceExt};
use tokio::sync::mpsc::UnboundedSender;

use super::cache::Change;
use super::error::Error;
use super::init::Delivered;
use super::write::Written;
use crate::driver::Driver;
use crate::driver::book::{Book, Owner};
use crate::gateway::Clock;
use crate::hub::Hub;
use crate::metrics::Metrics;

/// Field manager of everything that the operator writes.
pub const MANAGER: &str = "consilium-operator";
/// Finalizer on what hospitals must be told to stop.
pub const FINALIZER: &str = "consilium.health/cancel";
/// Label with the name of the study on what the operator makes for it.
pub const STUDY_LABEL: &str = "consilium.health/study";

/// Settings of the controllers.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The operator's own namespace, where rosters lie.
    pub namespace: String,
    /// Namespace of Init tasks.
    pub task_namespace: String,
    /// Address that Init tasks dial, `https://IP:PORT`.
    pub task_address: String,
    /// Image of the courier that fetches and delivers.
    pub courier_image: String,
    /// The certificate (PEM) that Init tasks pin.
    pub task_certificate: String,
    /// How long a model that nothing names stays in the store.
    pub unnamed_for: Duration,
}

/// The caches: what the API server last said.
#[derive(Clone)]
pub struct Caches {
    /// TrustSites.
    pub sites: Store<TrustSite>,
    /// FederatedStudies.
    pub studies: Store<FederatedStudy>,
    /// TrainingRounds.
    pub rounds: Store<TrainingRound>,
    /// ModelReleases.
    pub releases: Store<ModelRelease>,
    /// ModelPromotions.
    pub promotions: Store<ModelPromotion>,
    /// ClinicalPlans.
    pub plans: Store<ClinicalPlan>,
    /// Init Jobs.
    pub jobs: Store<Job>,
    /// Their pods.
    pub pods: Store<Pod>,
    /// ConfigMaps with rosters.
    pub rosters: Store<ConfigMap>,
}

/// Where to ask for a reconcile. Asking twice costs nothing: requests for one object are merged.
#[derive(Clone)]
pub struct Queues {
    /// TrustSites.
    pub sites: UnboundedSender<ObjectRef<TrustSite>>,
    /// FederatedStudies.
    pub studies: UnboundedSender<ObjectRef<FederatedStudy>>,
    /// TrainingRounds.
    pub rounds: UnboundedSender<ObjectRef<TrainingRound>>,
    /// ModelReleases.
    pub releases: UnboundedSender<ObjectRef<ModelRelease>>,
    /// ModelPromotions.
    pub promotions: UnboundedSender<ObjectRef<ModelPromotion>>,
    /// ClinicalPlans.
    pub plans: UnboundedSender<ObjectRef<ClinicalPlan>>,
}

impl Queues {
    /// Asks for a reconcile of whatever stands in a book entry.
    pub fn ask(&self, owner: &Owner) {
        match owner {
            Owner::Round { namespace, name } => ask(&self.rounds, ObjectRef::new(name).within(namespace)),
            Owner::Promotion { namespace, name } => ask(&self.promotions, ObjectRef::new(name).within(namespace)),
            Owner::Buried => {}
        }
    }
}

/// Puts a request into a queue; a queue that is closed belongs to a process that ends.
pub fn ask<T>(queue: &UnboundedSender<T>, what: T) {
    let _ = queue.send(what);
}

/// What all controllers share.
pub struct Context {
    /// The API.
    pub client: Client,
    /// Hospitals.
    pub hub: Hub,
    /// Figures.
    pub metrics: Metrics,
    /// Events.
    pub recorder: Recorder,
    /// The hub's key: attests releases, and seeds the tokens of Init tasks.
    pub key: SigningKey,
    /// Settings.
    pub settings: Settings,
    /// Caches.
    pub caches: Caches,
    /// Queues.
    pub queues: Queues,
    /// Results of Init tasks that no study has written down yet.
    pub delivered: Delivered,
    /// Drives the rounds.
    pub driver: Driver,
    /// Rounds as last written, while the cache lags behind.
    pub written: Written<TrainingRound>,
    /// Promotions as last written, while the cache lags behind.
    pub promotions_written: Written<ModelPromotion>,
    clock: Clock,
    deadlines: Mutex<BTreeMap<String, Timestamp>>,
    seen_sites: Mutex<BTreeMap<SiteName, SeenSite>>,
    /// Objects that are there and cannot be read, and whose they are, by UID.
    unread: Mutex<BTreeMap<String, Vec<String>>>,
    /// One look at the rosters at a time, so that an older one never overtakes a newer one.
    pub(super) roster_turn: tokio::sync::Mutex<()>,
}

/// UID, generation and deletion of a TrustSite as last seen.
type SeenSite = (Option<String>, Option<i64>, bool);

/// Parts of a [`Context`] that come from outside.
pub struct Parts {
    /// The API.
    pub client: Client,
    /// Hospitals.
    pub hub: Hub,
    /// Figures.
    pub metrics: Metrics,
    /// The hub's key.
    pub key: SigningKey,
    /// Settings.
    pub settings: Settings,
    /// The time.
    pub clock: Clock,
}

impl Context {
    /// Puts the parts together.
    pub fn new(parts: Parts, caches: Caches, queues: Queues) -> Arc<Self> {
        let Parts { client, hub, metrics, key, settings, clock } = parts;
        let recorder = Recorder::new(client.clone(), MANAGER.into());
        let asked = queues.clone();
        let driver = Driver::new(hub.clone(), clock(), Arc::new(move |owner| asked.ask(owner)));
        Arc::new(Self {
            client,
            hub,
            metrics,
            recorder,
            key,
            settings,
            caches,
            queues,
            delivered: Delivered::default(),
            driver,
            written: Written::default(),
            promotions_written: Written::default(),
            clock,
            deadlines: Mutex::default(),
            seen_sites: Mutex::default(),
            unread: Mutex::default(),
            roster_turn: tokio::sync::Mutex::default(),
        })
    }

    /// The time.
    pub fn now(&self) -> Timestamp {
        (self.clock)()
    }

    /// The book of assignments. Never held over an await.
    pub fn book(&self) -> MutexGuard<'_, Book> {
        self.driver.book()
    }

    /// Whether a TrustSite differs from how it was last seen in anything but its status.
    pub fn site_changed(&self, name: &SiteName, change: &Change<TrustSite>) -> bool {
        let mut seen = self.seen_sites.lock().unwrap_or_else(PoisonError::into_inner);
        match change {
            Change::Gone(_) => {
                seen.remove(name);
                true
            }
            Change::Touched(object) => {
                let meta = &object.metadata;
                let now = (meta.uid.clone(), meta.generation, meta.deletion_timestamp.is_some());
                seen.insert(name.clone(), now.clone()) != Some(now)
            }
        }
    }

    /// Forgets how a TrustSite was last seen.
    pub fn forget_site(&self, name: &SiteName) {
        self.seen_sites.lock().unwrap_or_else(PoisonError::into_inner).remove(name);
    }

    fn unread_objects(&self) -> MutexGuard<'_, BTreeMap<String, Vec<String>>> {
        self.unread.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes an object that cannot be read.
    pub fn unread(&self, meta: &ObjectMeta) {
        let owners = meta.owner_references.iter().flatten().map(|owner| owner.uid.clone()).collect();
        self.unread_objects().insert(meta.uid.clone().unwrap_or_default(), owners);
    }

    /// It can be read again, or is gone.
    pub fn no_longer_unread(&self, uid: &str) {
        self.unread_objects().remove(uid);
    }

    /// Whether something of this owner is there and cannot be read.
    pub fn owns_unread(&self, uid: &str) -> bool {
        self.unread_objects().values().flatten().any(|owner| owner == uid)
    }

    /// Whether this very object is still in its cache. Asked under the book's lock: the cache forgets an object before
    /// its work is taken out of the book, so work that is put in while the object stands is taken out when it goes.
    pub fn stands<K>(cache: &Store<K>, object: &K) -> bool
    where
        K: Resource<DynamicType = ()> + Clone + 'static,
    {
        cache.get(&ObjectRef::from_obj(object)).is_some_and(|known| known.meta().uid == object.meta().uid)
    }

    /// Changes the book and publishes what changed, in one go, so that no older list overtakes a newer one.
    pub fn publish(&self, change: impl FnOnce(&mut Book) -> BTreeSet<SiteName>) {
        self.driver.publish(change);
    }

    /// Publishes one hospital's list, also when it is empty: "nothing to do" differs from "not known yet".
    pub fn publish_one(&self, site: &SiteName) {
        self.publish(|_| BTreeSet::from([site.clone()]));
    }

    /// Whether a study is gone, or another stands under its name. A study that the cache lacks is asked for at the API:
    /// one that does not parse is left out of the cache, and must not take its rounds along.
    ///
    /// # Errors
    /// When the API does not say.
    pub async fn study_is_gone(&self, study: &StudyKey, uid: &str) -> Result<bool, Error> {
        let key = ObjectRef::<FederatedStudy>::new(&study.name).within(&study.namespace);
        if let Some(known) = self.caches.studies.get(&key) {
            return Ok(known.uid().as_deref() != Some(uid));
        }
        // Not its metadata alone: who wrote a field nests as deep as the field, and nothing would bound that.
        let api: Api<Watched<FederatedStudy>> = Api::namespaced(self.client.clone(), &study.namespace);
        let found = api.get_opt(&study.name).await;
        let found = found.map_err(Error::kube(format!("looking whether the study {study} is gone")))?;
        Ok(found.is_none_or(|found| found.meta().uid.as_deref() != Some(uid)))
    }

    /// Keeps tombstones that their hospitals have not acknowledged, durably, because their object goes.
    ///
    /// # Errors
    /// When the store fails; the object must stay then.
    pub async fn bury(&self, tombstones: BTreeMap<SiteName, Item>) -> Result<(), Error> {
        for (site, item) in &tombstones {
            let kept = self.hub.store().keep_tombstone(site, item).await;
            kept.map_err(Error::store(format!("keeping a tombstone for {site}")))?;
        }
        self.publish(|book| tombstones.into_iter().filter_map(|(s, i)| book.bury(&s, i).then_some(s)).collect());
        Ok(())
    }

    /// Notes when the open step of a round ends; a round that is over, or not begun, has none.
    pub fn note_deadline(&self, round_uid: &str, state: Option<&RoundState>) {
        let mut deadlines = self.deadlines.lock().unwrap_or_else(PoisonError::into_inner);
        match state.filter(|state| !state.is_over()) {
            Some(state) => drop(deadlines.insert(round_uid.to_owned(), state.deadline)),
            None => drop(deadlines.remove(round_uid)),
        }
        self.metrics.earliest_deadline(deadlines.values().min().copied());
    }

    /// Forgets everything in memory about a round whose object is gone.
    pub fn forget_round(&self, uid: &str) {
        self.note_deadline(uid, None);
        self.written.forget(uid);
        self.driver.forget(uid);
    }
}
