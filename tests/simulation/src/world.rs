//! The world: what happens in a schedule, one thing after the other, and the way home at its end.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use consilium_crds::conditions::{STALLED, SUCCEEDED, status_of};
use consilium_crds::roster::{RosterDocument, RosterSite, key_text};
use consilium_federation::Digest;
use consilium_federation::model::ModelManifest;
use consilium_operator::store::BlobStore;
use consilium_secagg::roster::SignedRoster;
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use object_store::memory::InMemory;
use object_store::{ObjectStore as _, ObjectStoreExt as _, path::Path};
use tokio::sync::mpsc;
use tokio_stream::StreamExt as _;

use crate::check::{Seen, Violation, broken, in_time, trainings};
use crate::clock::SimClock;
use crate::cluster::Phase;
use crate::hospital::{Agent, Hospital, work};
use crate::hub::{Begin, HubError, HubProcess, SharedApi, api, lock};
use crate::mutant::Mutant;
use crate::schedule::{HOSPITALS, NAMES, Op, Schedule};
use crate::study;
use crate::wire::Packet;

mod calls;
mod home;
mod look;

/// Assignments that a hospital's link may bring again.
const REMEMBERED: usize = 8;

/// Everything there is.
pub struct World {
    clock: SimClock,
    api: SharedApi,
    objects: Arc<InMemory>,
    full: Arc<AtomicBool>,
    rosters: Vec<SignedRoster>,
    hub: Option<HubProcess>,
    old: Option<HubProcess>,
    hospitals: Vec<Hospital>,
    packets: mpsc::UnboundedReceiver<Packet>,
    seen: Seen,
    mutant: Option<Mutant>,
    /// What each hospital said in each step: it never says another thing.
    said: BTreeMap<(usize, String, u32, String), Digest>,
    /// When the hub last took a whole turn.
    turned: Option<Timestamp>,
    _folder: tempfile::TempDir,
}

/// What the simulator itself cannot do.
fn stuck<E: std::fmt::Display>(what: &'static str) -> impl FnOnce(E) -> Violation {
    move |error| broken("the simulator works", format!("{what}: {error}"))
}

/// What a schedule came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Told {
    /// Rounds that made a model, each of them looked at.
    pub sums: usize,
    /// Rounds that ended without.
    pub failed: usize,
    /// Over every state that every round was ever seen in.
    pub trace: Digest,
}

/// Runs a schedule to its end.
///
/// # Errors
/// What does not hold.
pub fn run(schedule: &Schedule) -> Result<Told, Violation> {
    run_with(schedule, None)
}

/// As [`run`], with a fault in what hub and hospitals stand on.
///
/// # Errors
/// What does not hold.
pub fn run_with(schedule: &Schedule, mutant: Option<Mutant>) -> Result<Told, Violation> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().map_err(stuck("a runtime"))?;
    let ended = runtime.block_on(async {
        let mut world = World::new(schedule, mutant).await?;
        for op in &schedule.ops {
            tracing::debug!(?op, at = world.clock.elapsed(), "op");
            world.apply(*op).await?;
            world.look().await?;
        }
        world.home(schedule.setting).await?;
        Ok(world.seen.told())
    });
    runtime.shutdown_background();
    ended
}

impl World {
    async fn new(schedule: &Schedule, mutant: Option<Mutant>) -> Result<Self, Violation> {
        let folder = match std::path::Path::new("/dev/shm") {
            memory if memory.is_dir() => tempfile::tempdir_in(memory),
            _ => tempfile::tempdir(),
        };
        let folder = folder.map_err(stuck("a folder"))?;
        let study = study::study(schedule.setting);
        let clock = SimClock::default();
        let (out, packets) = mpsc::unbounded_channel();
        let policy = study::policy(&study, true);
        let hospitals = (0..HOSPITALS)
            .map(|i| Hospital::new(i, folder.path(), policy.clone(), (&clock, mutant), out.clone()))
            .collect();
        let mut world = Self {
            clock,
            api: api(study, mutant),
            objects: Arc::default(),
            full: Arc::default(),
            rosters: Vec::new(),
            hub: None,
            old: None,
            hospitals,
            packets,
            seen: Seen::default(),
            mutant,
            said: BTreeMap::new(),
            turned: None,
            _folder: folder,
        };
        world.sign_roster().await?;
        world.begin_hub().await?;
        let (payload, manifest) = study::first_model();
        let store = world.store().clone();
        store.put_object(payload).await.map_err(stuck("the first model"))?;
        store.put_object(manifest.to_bytes().into()).await.map_err(stuck("the first model"))?;
        for index in 0..HOSPITALS {
            world.begin_agent(index).await?;
        }
        Ok(world)
    }

    /// Governance signs the hospitals' keys, as the next version.
    async fn sign_roster(&mut self) -> Result<(), Violation> {
        let mut sites = Vec::new();
        for (index, hospital) in self.hospitals.iter_mut().enumerate() {
            let key = hospital.key().await.map_err(stuck("a key"))?;
            sites.push(RosterSite { public_key: key_text(&key), name: study::site(index) });
        }
        let version = self.rosters.len() as u64 + 1;
        let federation = study::federation().to_owned();
        let document = RosterDocument { federation, version, sites, signatures: vec![] };
        let mut signed = document.signed().map_err(stuck("a roster"))?;
        signed.sign(&study::governor());
        self.rosters.push(signed);
        Ok(())
    }

    fn store(&self) -> &BlobStore {
        // Safety: a hub is begun before anything else, and again after each kill.
        #[allow(clippy::expect_used)]
        self.hub.as_ref().expect("a hub").hub.store()
    }

    async fn begin_hub(&mut self) -> Result<(), Violation> {
        let begin = Begin {
            api: &self.api,
            clock: &self.clock,
            objects: &self.objects,
            full: &self.full,
            rosters: &self.rosters,
            mutant: self.mutant,
        };
        // A full volume keeps a hub from starting: it is started again, and again.
        let full = self.full.swap(false, Ordering::SeqCst);
        let begun = HubProcess::begin(&begin).await;
        self.full.store(full, Ordering::SeqCst);
        let mut hub = begun.map_err(stuck("a hub"))?;
        for hospital in &self.hospitals {
            hub.connect(&study::site(hospital.index), hospital.up && hospital.agent.is_some());
        }
        self.hub = Some(hub);
        Ok(())
    }

    /// The hub is killed, and begins again.
    async fn kill_hub(&mut self) -> Result<(), Violation> {
        self.hub = None;
        // What its process had begun on other threads ends with it.
        tokio::task::yield_now().await;
        self.begin_hub().await
    }

    async fn begin_agent(&mut self, index: usize) -> Result<(), Violation> {
        match self.hospitals[index].begin().await {
            // On a disk that does not work none begins; it is tried again when it does.
            Err(error) if !self.hospitals[index].full => return Err(stuck("an agent")(error)),
            _ => self.connect(index),
        }
        Ok(())
    }

    fn connect(&mut self, index: usize) {
        let hospital = &self.hospitals[index];
        let up = hospital.up && hospital.agent.is_some();
        if let Some(hub) = &mut self.hub {
            hub.connect(&study::site(index), up);
        }
    }

    async fn kill_agent(&mut self, index: usize) -> Result<(), Violation> {
        self.hospitals[index].kill();
        if self.mutant == Some(Mutant::SkippedPersist) && self.hospitals[index].backup && !self.hospitals[index].full {
            self.hospitals[index].swap(true).await.map_err(stuck("a copy of a volume"))?;
        }
        self.connect(index);
        self.begin_agent(index).await
    }

    async fn hub_turn(&mut self) -> Result<(), Violation> {
        let Some(hub) = &mut self.hub else { return Ok(()) };
        match hub.turn().await {
            Err(HubError::Killed) => self.kill_hub().await,
            Err(_) => Ok(()),
            Ok(()) => {
                self.turned = Some(self.clock.now());
                Ok(())
            }
        }
    }

    /// What an agent does while the world answers its calls; `false` when it was killed in between.
    async fn during<T>(&mut self, doing: impl Future<Output = T>) -> Result<Option<T>, Violation> {
        tokio::pin!(doing);
        loop {
            tokio::select! {
                biased;
                Some(packet) = self.packets.recv() => {
                    if !self.answer(packet).await? {
                        return Ok(None);
                    }
                }
                done = &mut doing => return Ok(Some(done)),
            }
        }
    }

    /// Has the agent of a hospital do something.
    async fn with<T>(
        &mut self,
        index: usize,
        doing: impl AsyncFnOnce(&mut Agent) -> anyhow::Result<T>,
    ) -> Result<Option<T>, Violation> {
        let Some(mut agent) = self.hospitals[index].agent.take() else { return Ok(None) };
        let done = self.during(doing(&mut agent)).await?;
        match done {
            Some(Ok(done)) => {
                self.hospitals[index].agent = Some(agent);
                Ok(Some(done))
            }
            // Killed in between; or its volume failed, for which the process ends and is started again.
            killed => {
                if let Some(Err(error)) = killed {
                    tracing::debug!(index, %error, "an agent ended");
                }
                drop(agent);
                // What it had begun ends with it.
                while self.packets.try_recv().is_ok() {}
                self.kill_agent(index).await?;
                Ok(None)
            }
        }
    }

    /// The newest assignment comes to a hospital, or an older one again.
    async fn hear(&mut self, index: usize, back: usize) -> Result<(), Violation> {
        let site = study::site(index);
        let hospital = &mut self.hospitals[index];
        if !hospital.up {
            return Ok(());
        }
        if let Some(assignment) = self.hub.as_ref().and_then(|hub| hub.hub.assignment(&site)) {
            let mut message = consilium_proto::v1::Assignment::from(&*assignment);
            message.hub_time = self.clock.now().to_string();
            if self.mutant == Some(Mutant::NoTombstones) {
                message.items.retain(|item| item.state == "Active");
            }
            if hospital.heard.last() != Some(&message) {
                hospital.heard.push(message);
            }
            let most = hospital.heard.len().saturating_sub(REMEMBERED);
            hospital.heard.drain(..most);
        }
        let Some(at) = hospital.heard.len().checked_sub(1 + back) else { return Ok(()) };
        let message = hospital.heard[at].clone();
        self.with(index, async |agent| Ok(agent.link.take(message)?)).await.map(drop)
    }

    async fn turns(&mut self, index: usize) -> Result<(), Violation> {
        if self.mutant == Some(Mutant::SkippedPersist) && self.hospitals[index].agent.is_some() {
            self.hospitals[index].snapshot().map_err(stuck("a copy of a volume"))?;
        }
        let wire = self.hospitals[index].wire();
        self.with(index, async |agent| {
            // What was put off is due again: waits are the loops'.
            agent.link.connect(wire);
            agent.link.rosters().await?;
            agent.link.turns().await
        })
        .await
        .map(drop)
    }

    async fn tasks(&mut self, index: usize) -> Result<(), Violation> {
        self.with(index, async |agent| {
            agent.controller.turn().await;
            Ok(())
        })
        .await
        .map(drop)
    }

    async fn report(&mut self, index: usize) -> Result<(), Violation> {
        self.with(index, async |agent| {
            // One that is not taken is sent again.
            let _ = agent.link.report().await;
            Ok(())
        })
        .await
        .map(drop)
    }

    async fn everything(&mut self, index: usize) -> Result<(), Violation> {
        self.hear(index, 0).await?;
        self.tasks(index).await?;
        self.turns(index).await?;
        self.tasks(index).await?;
        self.report(index).await
    }

    /// The cluster of a hospital goes on with its tries.
    async fn work(&mut self, index: usize) -> Result<(), Violation> {
        for one in self.hospitals[index].cluster.tries() {
            let (now, mutant) = (self.clock.elapsed(), self.mutant);
            let how = (self.hospitals[index].trains, self.hospitals[index].cluster.has_result(&one.task_uid));
            let next = self.with(index, async |agent| Ok(work(agent, &one, (index, mutant), how, now).await)).await?;
            if let Some(Some((phase, end))) = next {
                self.hospitals[index].cluster.set(&one.name, phase, end);
            }
        }
        self.hospitals[index].cluster.sweep();
        Ok(())
    }

    async fn apply(&mut self, op: Op) -> Result<(), Violation> {
        self.clock.forward(50);
        match op {
            Op::Look => self.round_trip().await?,
            Op::Hub => self.hub_turn().await?,
            Op::Site(i) => self.everything(i).await?,
            Op::Hear(i) => self.hear(i, 0).await?,
            Op::Turns(i) => self.turns(i).await?,
            Op::Report(i) => self.report(i).await?,
            Op::Work(i) => self.work(i).await?,
            Op::Wait(seconds) => self.clock.forward(i64::from(seconds) * 1000),
            Op::Call(i, n, fate) => self.hospitals[i].fates.push((n, fate)),
            Op::Round(n, fate) => lock(&self.api).fate = Some((n, fate)),
            Op::Store(n, fate) => self.hub.iter().for_each(|hub| hub.disk.arm(n, fate)),
            Op::StoreFull(full) => self.full.store(full, Ordering::SeqCst),
            Op::DiskFull(i, full) => self.disk_full(i, full).await?,
            Op::Crash(i) => self.kill_agent(i).await?,
            Op::HubCrash => self.kill_hub().await?,
            Op::SecondHub => {
                self.old = self.hub.take();
                self.begin_hub().await?;
            }
            Op::OldHub => {
                if let Some(old) = &mut self.old {
                    let turned = old.rounds_turn().await;
                    old.refresh();
                    if turned.is_err() {
                        self.old = None;
                    }
                }
            }
            Op::NewEpoch => self.new_epoch().await?,
            Op::Backup(i) => self.swap(i, false).await?,
            Op::Restore(i) if self.hospitals[i].backup => self.swap(i, true).await?,
            Op::Restore(_) => {}
            Op::Link(i, up) => {
                self.hospitals[i].up = up && (self.hospitals[i].up || self.mutant != Some(Mutant::OneWayLeave));
                self.connect(i);
            }
            Op::Veto(i, veto) => self.veto(i, veto),
            Op::Stale(i, back) => self.hear(i, usize::from(back)).await?,
            Op::TrainerFails(i) => self.trainer_fails(i),
            Op::Slow(i, seconds) => self.hospitals[i].trains = seconds,
            Op::Suspend(on) => lock(&self.api).study.spec.suspend = Some(on),
            Op::Cancel => self.annotate(),
            Op::DeleteRound => self.delete_round(self.clock.now()),
            Op::Roster => {
                self.sign_roster().await?;
                self.kill_hub().await?;
            }
            Op::Lie(i, how) => self.hospitals[i].lies = Some(how),
        }
        Ok(())
    }

    async fn disk_full(&mut self, index: usize, full: bool) -> Result<(), Violation> {
        self.hospitals[index].set_full(full).map_err(stuck("a full disk"))?;
        if !full && self.hospitals[index].agent.is_none() {
            self.begin_agent(index).await?;
        }
        Ok(())
    }

    fn veto(&mut self, index: usize, veto: bool) {
        let policy = study::policy(&lock(&self.api).study, !veto);
        let hospital = &mut self.hospitals[index];
        hospital.refuses = veto;
        if veto && self.mutant == Some(Mutant::ForgottenVeto) {
            return;
        }
        hospital.policy.send_replace(Some(policy));
        if let Some(agent) = &mut hospital.agent {
            agent.link.policy_changed();
        }
    }

    /// Everybody does once what there is to do.
    async fn round_trip(&mut self) -> Result<(), Violation> {
        self.hub_turn().await?;
        for index in 0..HOSPITALS {
            self.work(index).await?;
            self.everything(index).await?;
        }
        self.clock.forward(5_000);
        Ok(())
    }

    fn trainer_fails(&self, index: usize) {
        let cluster = &self.hospitals[index].cluster;
        if let Some(one) = cluster.tries().iter().find(|one| matches!(one.phase, Phase::Train(_))) {
            let end = consilium_agent::tasks::observe::End::Failed("it failed".into());
            cluster.set(&one.name, Phase::Over, Some(end));
        }
    }

    fn annotate(&self) {
        let mut api = lock(&self.api);
        if let Some((_, round)) = api.rounds.values().next_back().cloned() {
            let mut round = round;
            let why = "in a simulation".to_owned();
            let cancel = consilium_crds::training_round::CANCEL.to_owned();
            round.metadata.annotations.get_or_insert_default().insert(cancel, why);
            api.put(round);
        }
    }

    fn delete_round(&self, now: Timestamp) {
        let mut api = lock(&self.api);
        if let Some((_, round)) = api.rounds.values().next_back().cloned() {
            let mut round = round;
            round.metadata.deletion_timestamp.get_or_insert(Time(now));
            api.put(round);
        }
    }

    async fn new_epoch(&mut self) -> Result<(), Violation> {
        let copy = Arc::new(self.objects.fork());
        let mut all = copy.list(None);
        while let Some(found) = all.next().await {
            let path = found.map_err(stuck("another store"))?.location;
            if !path.as_ref().starts_with("objects/") {
                copy.delete(&path).await.map_err(stuck("another store"))?;
            }
        }
        self.objects = copy;
        self.kill_hub().await
    }

    async fn swap(&mut self, index: usize, restore: bool) -> Result<(), Violation> {
        if self.hospitals[index].full {
            return Ok(());
        }
        self.hospitals[index].kill();
        self.hospitals[index].swap(restore).await.map_err(stuck("a copy of a volume"))?;
        self.hospitals[index].restored |= restore;
        self.begin_agent(index).await
    }
}
