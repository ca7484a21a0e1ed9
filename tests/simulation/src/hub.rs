//! The hub: the driver of rounds, the rules for studies, gateway and store as they are, over an API server that is a map.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use consilium_crds::{FederatedStudy, ModelRelease, TrainingRound};
use consilium_federation::SiteName;
use consilium_federation::round::{HubWork, hub_work};
use consilium_operator::controllers::release::cut;
use consilium_operator::controllers::round as rounds;
use consilium_operator::controllers::study::decide::{self as study, Act, Initial, NewRound, newest_model};
use consilium_operator::controllers::study::{accept, make};
use consilium_operator::driver::items::items;
use consilium_operator::driver::{DriveError, Driver, Round, RoundStore, Turn, rosters};
use consilium_operator::gateway::{Caller, Gateway};
use consilium_operator::hub::{Connection, Hub};
use consilium_operator::metrics::Metrics;
use consilium_operator::news::News;
use consilium_operator::store::{BlobStore, StoreError};
use consilium_secagg::roster::SignedRoster;
use ed25519_dalek::SigningKey;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use object_store::memory::InMemory;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::clock::SimClock;
use crate::disk::Disk;
use crate::mutant::Mutant;
use crate::schedule::{HOSPITALS, Write};
use crate::study::{NAMESPACE, STUDY_UID, site};

/// What the hub's API server holds.
pub struct Api {
    /// The study.
    pub study: FederatedStudy,
    /// Rounds, with the version of each.
    pub rounds: BTreeMap<u32, (u64, TrainingRound)>,
    /// Rounds that are not there any more, as they were last.
    pub gone: Vec<TrainingRound>,
    releases: Vec<Arc<ModelRelease>>,
    version: u64,
    /// How many writes from now on, and what comes of that one.
    pub fate: Option<(u8, Write)>,
    mutant: Option<Mutant>,
    before: Option<(u64, TrainingRound)>,
}

/// The API server, which outlives hubs.
pub type SharedApi = Arc<Mutex<Api>>;

/// An API server with a study.
pub fn api(study: FederatedStudy, mutant: Option<Mutant>) -> SharedApi {
    let (rounds, gone, releases) = Default::default();
    Arc::new(Mutex::new(Api { study, rounds, gone, releases, version: 0, fate: None, mutant, before: None }))
}

impl Api {
    /// Writes a round, whoever asks.
    pub fn put(&mut self, round: TrainingRound) {
        self.version += 1;
        self.before = self.rounds.insert(round.spec.number, (self.version, round));
    }

    /// What was written last is gone.
    fn forget(&mut self) {
        if let Some((version, round)) = self.before.take() {
            self.rounds.insert(round.spec.number, (version, round));
        }
    }

    fn due(&mut self) -> Option<Write> {
        match self.fate.as_mut()? {
            (0, fate) => {
                let fate = *fate;
                self.fate = None;
                Some(fate)
            }
            (n, _) => {
                *n -= 1;
                None
            }
        }
    }
}

/// Locks it.
pub fn lock(api: &SharedApi) -> MutexGuard<'_, Api> {
    api.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Why a turn of the hub did not come through.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// The process was killed.
    #[error("the hub was killed")]
    Killed,
    /// Somebody else wrote the object.
    #[error("somebody else wrote the round")]
    Conflict,
    /// As the driver says.
    #[error(transparent)]
    Drive(#[from] DriveError),
}

/// One process of the hub.
pub struct HubProcess {
    /// What hospitals speak to.
    pub hub: Hub,
    /// Its service.
    pub gateway: Gateway,
    /// Its metrics.
    pub metrics: Metrics,
    /// Its volume.
    pub disk: Disk,
    /// What carries its rounds on.
    pub driver: Driver,
    key: SigningKey,
    api: SharedApi,
    clock: SimClock,
    cache: BTreeMap<u32, (u64, TrainingRound)>,
    connections: BTreeMap<SiteName, Connection>,
    woken: Arc<Notify>,
}

/// What a process of the hub begins with.
pub struct Begin<'a> {
    pub api: &'a SharedApi,
    pub clock: &'a SimClock,
    pub objects: &'a Arc<InMemory>,
    pub full: &'a Arc<AtomicBool>,
    pub rosters: &'a [SignedRoster],
    pub mutant: Option<Mutant>,
}

fn read_store(error: StoreError) -> HubError {
    DriveError::store("opening the store")(error).into()
}

impl HubProcess {
    /// Begins, as after any restart.
    pub async fn begin(begin: &Begin<'_>) -> Result<Self, HubError> {
        if begin.mutant == Some(Mutant::ForgetfulApi) {
            lock(begin.api).forget();
        }
        let disk = Disk::new(begin.objects.clone(), begin.full.clone(), begin.mutant);
        let free = Arc::new(|| Ok(1 << 40));
        let store = BlobStore::open_on(Arc::new(disk.clone()), free).await.map_err(read_store)?;
        let boot = store.next_boot().await.map_err(read_store)?;
        let metrics = Metrics::new();
        let key = SigningKey::from_bytes(&[7; 32]);
        let hub = Hub::new(store.clone(), boot, metrics.clone(), key.clone());
        hub.set_accepted((0..HOSPITALS).map(site).collect());
        let woken = Arc::new(Notify::new());
        let wake = {
            let woken = woken.clone();
            Arc::new(move |_: &_| woken.notify_one())
        };
        let driver = Driver::new(hub.clone(), begin.clock.now(), wake);
        let mut known = Vec::new();
        for signed in begin.rosters.iter().rev() {
            known.push(rosters::keep(&store, signed).await.map_err(read_store)?);
        }
        driver.set_rosters(known);
        let clock = {
            let clock = begin.clock.clone();
            Arc::new(move || clock.now())
        };
        let gateway = Gateway::new(hub.clone(), metrics.clone(), clock, CancellationToken::new());
        let (cache, connections) = Default::default();
        let (api, clock) = (begin.api.clone(), begin.clock.clone());
        let mut process = Self { hub, gateway, metrics, disk, driver, key, api, clock, cache, connections, woken };
        process.refresh();
        let mut work = Vec::new();
        for round in process.cache.values().map(|(_, round)| rounds::read(round)) {
            work.push((process.driver.asked_before(&round).await, round));
        }
        process.driver.publish(|book| {
            for (items, round) in work {
                book.set(&round.uid, &round.owner(), items);
            }
            (0..HOSPITALS).map(site).collect()
        });
        Ok(process)
    }

    /// Looks at the API server.
    pub fn refresh(&mut self) {
        self.cache = lock(&self.api).rounds.clone();
    }

    /// A hospital's watch opens, or ends.
    pub fn connect(&mut self, site: &SiteName, up: bool) {
        if up {
            let connection = self.hub.connect(site);
            self.connections.insert(site.clone(), connection);
        } else {
            self.connections.remove(site);
        }
    }

    /// Whoever calls, by its certificate.
    pub fn caller(&self, site: &SiteName) -> Caller {
        Caller { site: site.clone(), issued: 0, expires: i64::MAX / 4 }
    }

    /// Takes note of what a hospital said.
    pub fn hear(&self, site: &SiteName) {
        self.driver.hear(site, &News::Everything);
    }

    /// One turn of everything.
    ///
    /// # Errors
    /// When it was killed; what else goes wrong is tried again by the next turn.
    pub async fn turn(&mut self) -> Result<(), HubError> {
        self.refresh();
        for _ in 0..8 {
            if !self.alive(self.study_turn().await)?.unwrap_or(false) {
                break;
            }
            self.refresh();
        }
        self.rounds_turn().await?;
        for _ in 0..8 {
            self.refresh();
            if !self.alive(self.study_turn().await)?.unwrap_or(false) {
                break;
            }
        }
        Ok(())
    }

    fn alive<T>(&self, result: Result<T, HubError>) -> Result<Option<T>, HubError> {
        match result {
            _ if self.disk.is_dead() => Err(HubError::Killed),
            Err(HubError::Killed) => Err(HubError::Killed),
            Err(error) => {
                tracing::debug!(%error, "the hub tries again");
                Ok(None)
            }
            Ok(done) => Ok(Some(done)),
        }
    }

    /// One turn of each round, as this process last saw them.
    ///
    /// # Errors
    /// When it was killed.
    pub async fn rounds_turn(&mut self) -> Result<(), HubError> {
        for number in self.cache.keys().copied().collect::<Vec<_>>() {
            // A sum that ends wakes the hub.
            for _ in 0..4 {
                let turned = self.round_turn(number).await;
                let sums = match self.alive(turned)? {
                    Some(Some(round)) => {
                        let state = round.state.as_ref();
                        state.is_some_and(|state| matches!(hub_work(state), Some(HubWork::Sum { .. })))
                    }
                    _ => false,
                };
                if !sums || tokio::time::timeout(Duration::from_secs(5), self.woken.notified()).await.is_err() {
                    break;
                }
            }
        }
        Ok(())
    }

    /// The time, as rounds are judged by it.
    fn now(&self) -> jiff::Timestamp {
        match lock(&self.api).mutant {
            Some(Mutant::LateDeadline) => self.clock.now() - jiff::SignedDuration::from_hours(1),
            _ => self.clock.now(),
        }
    }

    async fn round_turn(&mut self, number: u32) -> Result<Option<Round>, HubError> {
        let Some((version, object)) = self.cache.get(&number).cloned() else { return Ok(None) };
        let (round, now) = (rounds::read(&object), self.now());
        let policy = match self.driver.policy(&round, now).await {
            Ok(policy) => policy,
            Err(error) => return Err(error.into()),
        };
        let store = Written { api: &self.api, object: &object, version, newest: Mutex::default() };
        let turned = self.driver.turn(&store, round, &policy, now).await;
        let newest = store.newest.into_inner().unwrap_or_else(PoisonError::into_inner);
        if let Some(newest) = newest {
            self.cache.insert(number, newest);
        }
        let round = turned?;
        self.finalize(&round);
        Ok(Some(round))
    }

    /// A round that is deleted goes when every hospital has forgotten it.
    fn finalize(&mut self, round: &Round) {
        let acknowledged = self.driver.book().acknowledged(&round.uid);
        if round.deleting && items(round, &acknowledged, &Default::default()).is_empty() {
            self.take_out(round.spec.number, &round.uid);
        }
    }

    fn take_out(&mut self, number: u32, uid: &str) {
        let mut api = lock(&self.api);
        if let Some((_, round)) = api.rounds.remove(&number) {
            api.gone.push(round);
        }
        drop(api);
        self.cache.remove(&number);
        self.driver.forget(uid);
    }

    async fn study_turn(&self) -> Result<bool, HubError> {
        let store = self.hub.store();
        let (object, releases) = {
            let api = lock(&self.api);
            (api.study.clone(), api.releases.clone())
        };
        let known: Vec<Arc<TrainingRound>> = self.cache.values().map(|(_, round)| Arc::new(round.clone())).collect();
        let initial = match (newest_model(&known, object.status.as_ref()), object.spec.initial_model.digest) {
            (None, Some(model)) => Initial::Named { model, stored: store.get_manifest(model).await.is_ok() },
            _ => Initial::Past { ended: vec![] },
        };
        let stored = store.has_object(object.spec.digest()).await;
        let fact = |index| (site(index), accept::SiteFacts { accepted: true, namespaces: vec![NAMESPACE.to_owned()] });
        let facts = study::Facts {
            study: Arc::new(object.clone()),
            sites: (0..HOSPITALS).map(fact).collect(),
            rosters: self.driver.rosters(),
            rounds: known,
            leftovers: false,
            unread: false,
            releases,
            spec_stored: stored.map_err(DriveError::store("looking for the study's spec"))?,
            initial,
        };
        let now = self.clock.now();
        let plan = study::decide(&facts, now);
        let mut moved = false;
        for act in &plan.acts {
            moved |= self.perform(&object, act).await?;
        }
        let mut api = lock(&self.api);
        if api.study.status.as_ref() != Some(&plan.status) {
            api.study.status = Some(plan.status);
        }
        Ok(moved)
    }

    async fn perform(&self, object: &FederatedStudy, act: &Act) -> Result<bool, HubError> {
        match act {
            Act::StoreSpec => make::store_spec(self.hub.store(), object).await.map(|()| true).map_err(HubError::from),
            Act::StartInit(_) | Act::EnsureCredential(_) | Act::DeleteJobs(_) => Ok(false),
            Act::Release { round } => {
                let Some((_, made)) = self.cache.get(round) else { return Ok(false) };
                let spec = cut::cut(made, &object.spec, &self.key).map_err(DriveError::Invalid)?;
                let release = ModelRelease::new(&format!("sim-r{round}"), spec);
                lock(&self.api).releases.push(Arc::new(release));
                Ok(true)
            }
            Act::Archive { round } => Ok(self.archive(*round)),
            Act::Start(new) => self.start(object, new).await.map(|()| true),
        }
    }

    fn archive(&self, number: u32) -> bool {
        let Some(round) = self.cache.get(&number).map(|(_, round)| rounds::read(round)) else { return false };
        let acknowledged = self.driver.book().acknowledged(&round.uid);
        if !items(&round, &acknowledged, &Default::default()).is_empty() {
            return false;
        }
        let mut api = lock(&self.api);
        if let Some((_, round)) = api.rounds.remove(&number) {
            api.gone.push(round);
        }
        drop(api);
        self.driver.forget(&round.uid);
        true
    }

    async fn start(&self, object: &FederatedStudy, new: &NewRound) -> Result<(), HubError> {
        let now = self.clock.now();
        let mut round = make::round(self.hub.store(), object, new, now).await?;
        let mut api = lock(&self.api);
        if api.rounds.contains_key(&new.number) {
            return Err(HubError::Conflict);
        }
        round.metadata.uid = Some(format!("{}-{}-{}", &STUDY_UID[..8], new.number, api.version));
        round.metadata.generation = Some(1);
        round.metadata.creation_timestamp = Some(Time(now));
        api.put(round);
        Ok(())
    }
}

/// A round on the API server, whose version is the fence.
struct Written<'a> {
    api: &'a SharedApi,
    object: &'a TrainingRound,
    version: u64,
    newest: Mutex<Option<(u64, TrainingRound)>>,
}

impl RoundStore for Written<'_> {
    type Error = HubError;

    async fn write(&self, turn: &Turn<'_>) -> Result<(), HubError> {
        let status =
            rounds::decide::status(self.object, turn.after.clone(), turn.trouble.as_deref(), turn.policy, turn.now);
        if self.object.status.as_ref() == Some(&status) {
            return Ok(());
        }
        let written = TrainingRound { status: Some(status), ..self.object.clone() };
        let mut api = lock(self.api);
        let fate = api.due();
        match fate {
            Some(Write::CrashBefore) => return Err(HubError::Killed),
            Some(Write::Conflict) => return Err(HubError::Conflict),
            Some(Write::CrashAfter) | None => {}
        }
        let number = written.spec.number;
        let fenced = api.mutant != Some(Mutant::StaleWriter);
        if fenced && api.rounds.get(&number).map(|(version, _)| *version) != Some(self.version) {
            return Err(HubError::Conflict);
        }
        api.put(written);
        let newest = api.rounds.get(&number).cloned();
        drop(api);
        *self.newest.lock().unwrap_or_else(PoisonError::into_inner) = newest;
        if fate == Some(Write::CrashAfter) { Err(HubError::Killed) } else { Ok(()) }
    }

    fn stands(&self, round: &Round) -> bool {
        let api = lock(self.api);
        api.rounds.get(&round.spec.number).is_some_and(|(_, known)| known.metadata.uid.as_ref() == Some(&round.uid))
    }
}
