//! What gateway and controllers share: the desired state of each hospital, and what each hospital last said.
//!
//! Nothing here is written down: after a restart the controllers publish anew and every hospital reports anew.
//! Time comes in as an argument.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use consilium_federation::assignment::{Assignment, Item, ItemState, RoundWork, Work};
use consilium_federation::clock::OtherClock;
use consilium_federation::model::ModelManifest;
use consilium_federation::report::{LedgerEnd, Report};
use consilium_federation::round::ProtocolStep;
use consilium_federation::{Digest, SiteName};
use ed25519_dalek::{Signature, Signer as _, SigningKey};
use jiff::Timestamp;
use tokio::sync::{broadcast, watch};

use crate::attempts::Attempts;
use crate::instances::Instances;
use crate::metrics::Metrics;
use crate::news::{News, differences};
use crate::store::{BlobStore, StoreError, UploadKey};

/// Changes that a slow listener may lag behind before it is told to look at everything.
const CHANGES: usize = 4096;

/// Manifests kept in memory: a few kilobytes each, and one for each model that is worked on.
const MANIFESTS: usize = 256;

/// Shared by gateway and controllers; a clone is the same hub.
#[derive(Clone)]
pub struct Hub(Arc<Inner>);

struct Inner {
    store: BlobStore,
    metrics: Metrics,
    epoch: String,
    boot: u64,
    counter: AtomicU64,
    sites: Mutex<BTreeMap<SiteName, Site>>,
    manifests: Mutex<BTreeMap<Digest, Arc<ModelManifest>>>,
    attempts: Attempts,
    rosters: Mutex<Vec<Digest>>,
    ledgers: Mutex<BTreeMap<SiteName, Ledger>>,
    key: SigningKey,
    /// Who may call by the TrustSites, and of those the ones for whom one agent speaks.
    admitted: Mutex<BTreeSet<SiteName>>,
    /// From when on certificates of a hospital count, where its TrustSite says so.
    issued_since: Mutex<BTreeMap<SiteName, Timestamp>>,
    accepted: watch::Sender<Arc<BTreeSet<SiteName>>>,
    knows_accepted: AtomicBool,
    changes: broadcast::Sender<(SiteName, News)>,
}

/// Where one hospital's ledger stands, once it was read: each waits for the volume alone.
type Ledger = Arc<tokio::sync::Mutex<Option<LedgerEnd>>>;

struct Site {
    desired: watch::Sender<Option<Arc<Assignment>>>,
    report: Option<(Arc<Report>, Timestamp)>,
    /// Highest revision that the hospital works from, in this epoch: what it gets lies above.
    floor: u64,
    streams: usize,
    last_contact: Option<Timestamp>,
    instances: Instances,
    clock: OtherClock,
}

impl Default for Site {
    fn default() -> Self {
        Self {
            desired: watch::Sender::new(None),
            report: None,
            floor: 0,
            streams: 0,
            last_contact: None,
            instances: Instances::default(),
            clock: OtherClock::default(),
        }
    }
}

/// A hospital's open watch; dropping it says that the hospital is gone.
pub struct Connection {
    hub: Hub,
    site: SiteName,
}

impl Hub {
    /// A hub over a store, in its next boot: revisions grow over restarts because `boot` does.
    ///
    /// `boot` comes from [`BlobStore::next_boot`]; `key` is the hub's own, which countersigns ledgers.
    pub fn new(store: BlobStore, boot: u64, metrics: Metrics, key: SigningKey) -> Self {
        Self(Arc::new(Inner {
            epoch: store.epoch().to_owned(),
            store,
            metrics,
            boot,
            counter: AtomicU64::new(0),
            sites: Mutex::default(),
            manifests: Mutex::default(),
            attempts: Attempts::default(),
            rosters: Mutex::default(),
            ledgers: Mutex::default(),
            key,
            admitted: Mutex::default(),
            issued_since: Mutex::default(),
            accepted: watch::Sender::new(Arc::default()),
            knows_accepted: AtomicBool::new(false),
            changes: broadcast::Sender::new(CHANGES),
        }))
    }

    /// The store that this hub journals in.
    pub fn store(&self) -> &BlobStore {
        &self.0.store
    }

    /// The open attempts of the masking protocol.
    pub fn attempts(&self) -> &Attempts {
        &self.0.attempts
    }

    /// Replaces the rosters that are offered to every hospital (digests of signed rosters, newest first).
    pub fn set_rosters(&self, rosters: Vec<Digest>) {
        // Under the lock of the sites, as in `publish`: an older list must not overtake a newer one.
        let sites = self.sites();
        if *lock(&self.0.rosters) == rosters {
            return;
        }
        lock(&self.0.rosters).clone_from(&rosters);
        for site in sites.values() {
            site.desired.send_if_modified(|known| {
                let Some(assignment) = known.as_ref().filter(|known| known.rosters != rosters) else { return false };
                *known = Some(Arc::new(self.assign(
                    site.floor.max(assignment.revision),
                    assignment.items.clone(),
                    rosters.clone(),
                )));
                true
            });
        }
    }

    fn assign(&self, floor: u64, items: Vec<Item>, rosters: Vec<Digest>) -> Assignment {
        let own = (self.0.boot << 32) | (self.0.counter.fetch_add(1, Ordering::Relaxed) + 1);
        let revision = own.max(floor.saturating_add(1));
        Assignment { hub_epoch: self.0.epoch.clone(), revision, rosters, items }
    }

    /// Publishes what one hospital is to do; its watchers get it if it differs from what they have.
    ///
    /// Call it only from synced caches: until the first call a hospital is told nothing at all, because an
    /// assignment that lacks an item is not the same as none. Returns whether anything changed.
    pub fn publish(&self, site: &SiteName, items: Vec<Item>) -> bool {
        let mut sites = self.sites();
        let rosters = lock(&self.0.rosters).clone();
        let site = sites.entry(site.clone()).or_default();
        let floor = site.floor.max(site.desired.borrow().as_ref().map_or(0, |known| known.revision));
        site.desired.send_if_modified(|known| {
            if known.as_ref().is_some_and(|known| known.items == items) {
                return false;
            }
            *known = Some(Arc::new(self.assign(floor, items, rosters)));
            true
        })
    }

    /// The desired state of one hospital as it changes; `None` until the first [`Self::publish`].
    pub fn subscribe(&self, site: &SiteName) -> watch::Receiver<Option<Arc<Assignment>>> {
        self.sites().entry(site.clone()).or_default().desired.subscribe()
    }

    /// The desired state of one hospital now.
    pub fn assignment(&self, site: &SiteName) -> Option<Arc<Assignment>> {
        self.sites().get(site).and_then(|s| s.desired.borrow().clone())
    }

    /// Takes a hospital's report in place of its last one: what it says of work that it was given. The controllers hear of
    /// the parts that differ.
    pub fn put_report(&self, site: &SiteName, mut report: Report, now: Timestamp) {
        let news = {
            let mut sites = self.sites();
            let entry = sites.entry(site.clone()).or_default();
            // Until the first assignment is made nobody knows what the hospital was given.
            if let Some(assignment) = entry.desired.borrow().as_ref() {
                let given: BTreeSet<&str> = assignment.items.iter().map(|item| item.uid.as_str()).collect();
                report.rounds.retain(|round| given.contains(round.uid.as_str()));
                report.deployments.retain(|deployment| given.contains(deployment.uid.as_str()));
            }
            let known = entry.report.as_ref().map(|(known, _)| &**known);
            let news = known.map_or(News::Everything, |known| differences(known, &report));
            if report.hub_epoch == self.0.epoch {
                self.rise(site, entry, report.revision);
            }
            entry.report = Some((Arc::new(report), now));
            news
        };
        match news {
            News::Nothing => {}
            news => self.tell(site, news),
        }
    }

    /// Publishes above the revision that a hospital works from. One above ours is of a life of this hub that its volume
    /// has forgotten (it was restored from a backup), and the hospital refuses what is below.
    fn rise(&self, name: &SiteName, site: &mut Site, theirs: u64) {
        site.floor = site.floor.max(theirs);
        let rosters = lock(&self.0.rosters).clone();
        let floor = site.floor;
        let risen = site.desired.send_if_modified(|known| {
            let Some(assignment) = known.as_ref().filter(|known| known.revision < theirs) else { return false };
            *known = Some(Arc::new(self.assign(floor, assignment.items.clone(), rosters)));
            true
        });
        if risen {
            tracing::warn!(site = %name, revision = theirs, "a hospital is ahead: was the store restored from a backup?");
        }
    }

    /// Takes note of where a hospital's ledger stands; answers the furthest end that it has ever shown, durably kept, with
    /// the hub's signature. A hospital whose ledger never had that head works on a volume that was set back.
    ///
    /// # Errors
    /// When the volume fails; nothing is acknowledged then.
    pub async fn countersign(&self, site: &SiteName, shown: LedgerEnd) -> Result<(LedgerEnd, Signature), StoreError> {
        let ledger = lock(&self.0.ledgers).entry(site.clone()).or_default().clone();
        let mut ledger = ledger.lock().await;
        let known = match *ledger {
            Some(known) => Some(known),
            None => self.0.store.ledger_end(site).await?,
        };
        let further = known.is_none_or(|known| shown.entries > known.entries);
        if further {
            self.0.store.keep_ledger_end(site, shown).await?;
        }
        let end = known.filter(|_| !further).unwrap_or(shown);
        if end != shown {
            tracing::warn!(%site, entries = shown.entries, furthest = end.entries, "a hospital's ledger went back");
        }
        *ledger = Some(end);
        Ok((end, self.0.key.sign(&end.signed_bytes(site))))
    }

    /// What a hospital last said, and when it came in.
    pub fn report(&self, site: &SiteName) -> Option<(Arc<Report>, Timestamp)> {
        self.sites().get(site).and_then(|s| s.report.clone())
    }

    /// A watch of this hospital is open.
    pub fn connected(&self, site: &SiteName) -> bool {
        self.sites().get(site).is_some_and(|s| s.streams > 0)
    }

    /// When the hospital last called.
    pub fn last_contact(&self, site: &SiteName) -> Option<Timestamp> {
        self.sites().get(site).and_then(|s| s.last_contact)
    }

    /// What changed of which hospital: its report, its connection, an upload, its acceptance.
    ///
    /// A listener that lags (`RecvError::Lagged`) must look at all of them.
    pub fn changes(&self) -> broadcast::Receiver<(SiteName, News)> {
        self.0.changes.subscribe()
    }

    /// Whether an object is one that the hospital's active work leads to: the study's spec, the model's manifest,
    /// its chunks, the tensor schema, a release, a clinical plan, what a step of an attempt starts from, a roster.
    ///
    /// # Errors
    /// When nothing else leads to it and a model's manifest cannot be read from the store.
    pub async fn may_read(&self, site: &SiteName, digest: Digest) -> Result<bool, StoreError> {
        let Some(assignment) = self.assignment(site) else { return Ok(false) };
        let active = || assignment.items.iter().filter(|item| item.state == ItemState::Active);
        let named = |item: &Item| match &item.work {
            Work::Round(r) => [r.spec_digest, r.model, r.schema].contains(&digest) || r.inputs == Some(digest),
            Work::Deploy(d) => [d.release_digest, d.model].contains(&digest) || d.plan == Some(digest),
        };
        if active().any(named) || assignment.rosters.contains(&digest) {
            return Ok(true);
        }
        let models: BTreeSet<Digest> = active().map(model_of).collect();
        // A model that is missing or damaged must not keep the hospital from its other work.
        let mut trouble = None;
        for model in models {
            match self.manifest(model).await {
                Ok(manifest) if manifest.chunks.contains(&digest) => return Ok(true),
                Ok(_) => {}
                Err(error) => trouble = Some(error),
            }
        }
        trouble.map_or(Ok(false), Err)
    }

    /// The attempt in which this object is made for this hospital when it asks, if it is one.
    pub fn made_in(&self, site: &SiteName, digest: Digest) -> Option<UploadKey> {
        self.assignment(site)?.items.iter().find_map(|item| match &item.work {
            Work::Round(work) if item.state == ItemState::Active && work.inputs == Some(digest) => {
                Some(UploadKey { round_uid: item.uid.clone(), attempt: work.attempt, site: site.clone() })
            }
            _ => None,
        })
    }

    /// A model's manifest; those asked for lately are kept in memory.
    ///
    /// # Errors
    /// When it cannot be read from the store.
    pub async fn manifest(&self, model: Digest) -> Result<Arc<ModelManifest>, StoreError> {
        if let Some(known) = lock(&self.0.manifests).get(&model) {
            return Ok(known.clone());
        }
        let manifest = Arc::new(self.0.store.get_manifest(model).await?);
        let mut known = lock(&self.0.manifests);
        if known.len() >= MANIFESTS {
            known.clear();
        }
        known.insert(model, manifest.clone());
        Ok(manifest)
    }

    /// The work for which this hospital may do a step now: an active item of this round whose open attempt and step
    /// are these.
    pub fn step_work(&self, site: &SiteName, round_uid: &str, attempt: u32, step: ProtocolStep) -> Option<RoundWork> {
        let assignment = self.assignment(site)?;
        assignment.items.iter().find_map(|item| match &item.work {
            Work::Round(work)
                if item.uid == round_uid
                    && item.state == ItemState::Active
                    && work.attempt == attempt
                    && work.step == Some(step) =>
            {
                Some(work.clone())
            }
            _ => None,
        })
    }

    /// Notes that a hospital called.
    pub fn contact(&self, site: &SiteName, now: Timestamp) {
        self.sites().entry(site.clone()).or_default().last_contact = Some(now);
        self.0.metrics.contact(site, now);
    }

    /// Notes when a hospital last called before this process began, as far as that is known.
    pub fn remember_contact(&self, site: &SiteName, at: Timestamp) {
        let mut sites = self.sites();
        let entry = sites.entry(site.clone()).or_default();
        if entry.last_contact.is_none() {
            entry.last_contact = Some(at);
            self.0.metrics.contact(site, at);
        }
    }

    /// Notes that a hospital's watch is open for as long as the result lives.
    pub fn connect(&self, site: &SiteName) -> Connection {
        self.sites().entry(site.clone()).or_default().streams += 1;
        self.0.metrics.connected(site, true);
        self.changed(site);
        Connection { hub: self.clone(), site: site.clone() }
    }

    /// Tells the controllers to look at what concerns this hospital.
    pub fn changed(&self, site: &SiteName) {
        self.tell(site, News::Everything);
    }

    /// Tells the controllers to look at one piece of this hospital's work.
    pub fn work_changed(&self, site: &SiteName, uid: &str) {
        self.tell(site, News::Work(BTreeSet::from([uid.to_owned()])));
    }

    fn tell(&self, site: &SiteName, news: News) {
        // No listener is no fault: the controllers look at everything when they start.
        let _ = self.0.changes.send((site.clone(), news));
    }

    fn sites(&self) -> MutexGuard<'_, BTreeMap<SiteName, Site>> {
        lock(&self.0.sites)
    }
}

fn model_of(item: &Item) -> Digest {
    match &item.work {
        Work::Round(round) => round.model,
        Work::Deploy(deploy) => deploy.model,
    }
}

/// A panic elsewhere leaves whole values behind: every critical section here is a few assignments.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Drop for Connection {
    fn drop(&mut self) {
        let gone = {
            let mut sites = self.hub.sites();
            let entry = sites.entry(self.site.clone()).or_default();
            entry.streams = entry.streams.saturating_sub(1);
            entry.streams == 0
        };
        if gone {
            // The series of a revoked hospital has gone before its connection.
            if self.hub.is_accepted(&self.site) {
                self.hub.0.metrics.connected(&self.site, false);
            }
            self.hub.changed(&self.site);
        }
    }
}

#[path = "hub_callers.rs"]
mod callers;
#[cfg(test)]
#[path = "hub_tests.rs"]
mod tests;
