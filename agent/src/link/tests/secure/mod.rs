//! The masking protocol from the hospitals' side, against the real machine of the hub and against hostile ones.

mod hostile;
mod rosters;
mod volumes;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::atomic::AtomicU64;

use consilium_crds::FederatedStudySpec;
use consilium_crds::study::{EVALUATION_CLIP, ProtocolKind};
use consilium_federation::model::{ModelManifest, Tensor, TensorSchema};
use consilium_federation::task::{ClassScore, ScoreFile};
use consilium_secagg::hub::Hub;
use consilium_secagg::identity::SiteKey;
use consilium_secagg::ids::SiteId;
use consilium_secagg::layout::Layout;
use consilium_secagg::ring::{RingParams, encode_head};
use consilium_secagg::roster::{Governance, Roster, RosterEntry, SignedRoster, VerifiedRoster};
use consilium_secagg::sum;
use consilium_secagg::weight::Weight;
use consilium_secagg::wire::Message;
use serde_json::json;

use super::secure_hub::SecureHub;
use super::*;
use crate::link::plan::attempt_spec;
use crate::state::{AttemptKey, StoredScore, evaluate_vector, hub_digest};

const SITES: [&str; 4] = ["alder", "birch", "cedar", "damson"];
const PARAMETERS: u64 = 40;
const STEPS: [ProtocolStep; 5] =
    [ProtocolStep::Advertise, ProtocolStep::Share, ProtocolStep::Upload, ProtocolStep::Agree, ProtocolStep::Unmask];

fn secure_spec() -> FederatedStudySpec {
    let mut spec = spec();
    spec.aggregation.secure.protocol = ProtocolKind::SecAgg;
    spec
}

fn model() -> ModelManifest {
    let tensors = vec![Tensor { name: "w".into(), shape: vec![PARAMETERS] }];
    ModelManifest::new(TensorSchema(tensors), vec![Digest::of(b"payload")]).unwrap()
}

fn secure_work() -> RoundWork {
    let model = model();
    RoundWork { spec_digest: secure_spec().digest(), model: model.digest(), schema: model.tensors.digest(), ..work() }
}

fn governor() -> SiteKey {
    SiteKey::from_seed(&[9; 32])
}

fn governance() -> Governance {
    Governance { federation: "north".into(), keys: vec![governor().public()], required: 1 }
}

fn secure_policy() -> SitePolicy {
    let key = consilium_crds::roster::key_text(&governor().public());
    let pinned = json!({"federation": "north", "required": 1, "keys": [{"id": "chair", "publicKey": key}]});
    let digest = json!(secure_spec().digest());
    SitePolicy::new("default", policy(&[("/governance", pinned), ("/studies/0/specDigest", digest)]))
}

/// Randomness that never repeats within a process: an agent that is started again draws other numbers.
fn fresh() -> Entropy {
    static DRAWN: AtomicU64 = AtomicU64::new(0);
    Entropy::from_fn(|bytes| {
        for part in bytes.chunks_mut(32) {
            let n = DRAWN.fetch_add(1, Ordering::SeqCst);
            part.copy_from_slice(&Digest::of(&n.to_le_bytes()).as_bytes()[..part.len()]);
        }
    })
}

struct Hospital {
    name: &'static str,
    folder: PathBuf,
    shown: Arc<Shown>,
    policy: watch::Sender<Option<Arc<SitePolicy>>>,
}

impl Hospital {
    fn volume(&self) -> PathBuf {
        self.folder.join("state")
    }

    fn site(&self) -> SiteId {
        SiteId::new(self.name).unwrap()
    }
}

/// Four hospitals and a hub.
struct Federation {
    _dir: TempDir,
    hub: Arc<SecureHub>,
    address: std::net::SocketAddr,
    hospitals: Vec<Hospital>,
    roster: SignedRoster,
    revision: AtomicU64,
}

fn sign(version: u64, entries: Vec<RosterEntry>, key: Option<&SiteKey>) -> SignedRoster {
    let mut signed = SignedRoster::new(Roster { federation: "north".into(), version, entries });
    if let Some(key) = key {
        signed.sign(key);
    }
    signed
}

fn key(attempt: u32) -> AttemptKey {
    AttemptKey { round_uid: "round".into(), attempt }
}

impl Federation {
    async fn new() -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let (pki, dir) = (Pki::new(), TempDir::new().unwrap());
        let hospital = |name: &'static str| {
            let folder = dir.path().join(name);
            pki.site_folder(&folder.join("tls"), name);
            let policy = watch::Sender::new(Some(Arc::new(secure_policy())));
            Hospital { name, folder, shown: Arc::default(), policy }
        };
        let hospitals: Vec<Hospital> = SITES.map(hospital).into();
        let (hub, address) = SecureHub::start(&pki).await;
        let entry = |h: &Hospital| {
            let state = State::open(&h.volume(), [1; 32]).unwrap();
            RosterEntry { site: h.site(), key: state.site_key(&fresh()).unwrap().public() }
        };
        let roster = sign(3, hospitals.iter().map(entry).collect(), Some(&governor()));
        hub.keep(canonical_json(&secure_spec()));
        hub.keep(model().to_bytes());
        hub.keep(roster.to_bytes());
        Self { _dir: dir, hub, address, hospitals, roster, revision: AtomicU64::new(0) }
    }

    fn start(&self, of: usize) -> Agent {
        let hospital = &self.hospitals[of];
        self.start_on(of, &hospital.volume())
    }

    fn start_on(&self, of: usize, volume: &Path) -> Agent {
        let Hospital { name, folder, shown, policy } = &self.hospitals[of];
        let agent = start(name, folder, volume, self.address, None, policy.subscribe(), shown.clone(), fresh());
        for (kind, reason) in [(TaskKind::Train, SiteReason::Ready), (TaskKind::Evaluate, SiteReason::Evaluated)] {
            let uid = "round".to_owned();
            agent.ctx.facts.set_round(RoundReport { uid, kind, reason, message: None, evaluation: None });
        }
        agent
    }

    fn verified(&self) -> VerifiedRoster {
        governance().verify(&self.roster).unwrap()
    }

    /// The work of a step, as the hub's own machine would ask for it.
    fn ask(&self, kind: TaskKind, attempt: u32, step: ProtocolStep, inputs: Option<Digest>) -> RoundWork {
        let roster = Some(hub_digest(self.verified().digest()));
        RoundWork { kind, attempt, step: Some(step), roster, inputs, ..secure_work() }
    }

    fn publish_to(&self, sites: &[&str], work: &RoundWork, rosters: Vec<Digest>) {
        let revision = self.revision.fetch_add(1, Ordering::SeqCst) + 1;
        let item = Item { uid: "round".into(), state: ItemState::Active, work: Work::Round(work.clone()) };
        let assignment = Assignment { hub_epoch: "e".into(), revision, rosters, items: vec![item] };
        let all: BTreeMap<String, Assignment> =
            sites.iter().map(|site| ((*site).to_owned(), assignment.clone())).collect();
        self.hub.desired.send_modify(|desired| desired.extend(all));
    }

    fn publish(&self, sites: &[&str], work: &RoundWork) {
        self.publish_to(sites, work, vec![Digest::of(&self.roster.to_bytes())]);
    }

    fn open(&self, kind: TaskKind, attempt: u32) {
        let work = self.ask(kind, attempt, ProtocolStep::Advertise, None);
        let spec = attempt_spec(&work, &secure_spec(), &self.verified(), &model()).unwrap();
        *self.hub.machine.lock().unwrap() = Some(Hub::open(spec, self.verified()).unwrap());
    }

    fn machine<T>(&self, act: impl FnOnce(&mut Hub) -> T) -> T {
        act(self.hub.machine.lock().unwrap().as_mut().unwrap())
    }

    /// Closes the step before and asks everyone for this one.
    fn ask_all(&self, kind: TaskKind, attempt: u32, step: ProtocolStep) {
        let mut own = BTreeMap::new();
        match step {
            ProtocolStep::Share => {
                let list = self.machine(|hub| hub.close_adverts().unwrap());
                own.extend(SITES.map(|site| (site, self.hub.keep(list.to_bytes()))));
            }
            ProtocolStep::Upload => {
                self.machine(|hub| hub.close_shares().unwrap());
                for hospital in &self.hospitals {
                    let bundle = self.machine(|hub| hub.bundle_for(&hospital.site()).unwrap());
                    own.insert(hospital.name, self.hub.keep(bundle.to_bytes()));
                }
            }
            ProtocolStep::Agree => {
                let all: BTreeSet<SiteId> = self.hospitals.iter().map(Hospital::site).collect();
                let statement = self.machine(|hub| hub.close_uploads(&all).unwrap());
                own.extend(SITES.map(|site| (site, self.hub.keep(statement.to_bytes()))));
            }
            ProtocolStep::Unmask => {
                let proof = self.machine(|hub| hub.close_agreement().unwrap());
                own.extend(SITES.map(|site| (site, self.hub.keep(proof.to_bytes()))));
            }
            ProtocolStep::Advertise | ProtocolStep::Sum => self.open(kind, attempt),
        }
        for site in SITES {
            self.publish(&[site], &self.ask(kind, attempt, step, own.get(site).copied()));
        }
    }

    /// Waits until the hub's machine has everyone's part in the open step, with all chunks.
    async fn all_done(&self, attempt: u32, step: ProtocolStep, of: usize) {
        let complete = |chunks: &BTreeMap<(String, u32, u32), Bytes>| {
            step != ProtocolStep::Upload || chunks.keys().filter(|(_, a, _)| *a == attempt).count() == 2 * of
        };
        until("chunks", self.hub.chunks.subscribe(), complete).await;
        until(&format!("{step:?}"), self.hub.heard.subscribe(), |_| self.machine(|hub| hub.heard().len()) == of).await;
    }

    /// Runs an attempt among all up to and with this step.
    async fn run_to(&self, kind: TaskKind, attempt: u32, last: ProtocolStep) {
        for step in STEPS.into_iter().filter(|step| *step <= last) {
            self.ask_all(kind, attempt, step);
            self.all_done(attempt, step, SITES.len()).await;
        }
    }
}

/// The vector of a hospital, as chunks.
fn encoded(of: usize, kind: TaskKind) -> (Vec<Vec<u8>>, Weight) {
    let (clip, values): (f64, Vec<f32>) = match kind {
        TaskKind::Evaluate => (EVALUATION_CLIP, vec![0.5 + 0.1 * of as f32]),
        _ => (10.0, (0..PARAMETERS).map(|i| (of as f32 + 1.0) * 0.01 * i as f32).collect()),
    };
    let (ring, layout) = (RingParams::new(4, clip).unwrap(), Layout::new(0, values.len() as u64).unwrap());
    let weight = Weight::from_examples(100 * (of as u64 + 1), consilium_crds::study::EXAMPLES_CAP, 1).unwrap();
    let (mut head, mut body) = (vec![0; layout.head()], vec![0; values.len()]);
    encode_head(&ring, weight, &[], &mut head).unwrap();
    ring.encode(weight, &values, &mut body).unwrap();
    (vec![sum::to_bytes(&head), sum::to_bytes(&body)], weight)
}

/// Puts a hospital's results on its volume, as the task port does.
fn deliver(state: &State, of: usize) {
    let now = "2026-01-01T00:00:00Z".parse().unwrap();
    for (kind, name) in [(TaskKind::Train, "round".to_owned()), (TaskKind::Evaluate, evaluate_vector("round"))] {
        let mut writer = state.begin_update(&name).unwrap();
        encoded(of, kind).0.iter().for_each(|chunk| _ = writer.put_chunk(chunk).unwrap());
        let meta = UpdateMeta {
            task_uid: "task".into(),
            task_name: format!("hippocampus-r3-{kind:?}"),
            study: work().study,
            spec_digest: secure_spec().digest(),
            round: 3,
            base: model().digest(),
            roster_size: 4,
            examples: 10,
            norm: "1".into(),
            clipped: false,
            delivered: now,
        };
        writer.finish(meta).unwrap();
    }
    let class = ClassScore { label: 1, dice: 0.5, hd95_mm: None, assd_mm: None };
    let score = ScoreFile { cases: 100, classes: vec![class] };
    let (task_uid, task_name) = ("task".into(), "hippocampus-r3-Evaluate".into());
    state.put_score("round", &StoredScore { task_uid, task_name, score, delivered: now }).unwrap();
}

async fn started() -> (Federation, Vec<Agent>) {
    let federation = Federation::new().await;
    let agents: Vec<Agent> = (0..SITES.len()).map(|of| federation.start(of)).collect();
    agents.iter().enumerate().for_each(|(of, agent)| deliver(&agent.ctx.state, of));
    (federation, agents)
}

async fn until_entry(agent: &Agent, what: &str, holds: impl Fn(&Entry) -> bool) {
    let look = async {
        while !ledger(agent).iter().any(&holds) {
            tokio::task::yield_now().await;
        }
    };
    let found = tokio::time::timeout(LIMIT, look).await;
    assert!(found.is_ok(), "waited in vain for {what}: {:#?}", ledger(agent));
}

async fn until_refused(agent: &Agent, words: &str) {
    let named = |entry: &Entry| matches!(entry, Entry::AttemptRefused { why, .. } if why.contains(words));
    until_entry(agent, words, named).await;
}

/// The sum that the hub's machine makes of what came in must be that of the plain vectors.
fn assert_sum(federation: &Federation, kind: TaskKind, attempt: u32) {
    federation.machine(|hub| hub.close_unmasking().unwrap());
    let unmasking = federation.machine(|hub| hub.unmasking().unwrap());
    let chunks = federation.hub.chunks.borrow().clone();
    for chunk in 0..2 {
        let mut plain = vec![0u32; sum::from_bytes(&encoded(0, kind).0[chunk as usize]).len()];
        for of in 0..SITES.len() {
            let vector = sum::from_bytes(&encoded(of, kind).0[chunk as usize]);
            plain.iter_mut().zip(vector).for_each(|(p, v)| *p = p.wrapping_add(v));
        }
        let uploads: Vec<_> = SITES.iter().map(|s| &chunks[&((*s).to_owned(), attempt, chunk)][..]).collect();
        assert_ne!(sum::from_bytes(uploads[0]), sum::from_bytes(&encoded(0, kind).0[chunk as usize]), "it is masked");
        let mut total = Vec::new();
        unmasking.sum_chunk(chunk, &uploads, std::num::NonZeroUsize::MIN, &mut total).unwrap();
        assert_eq!(total, plain);
    }
}

/// The whole way, twice: updates, and then the metric, among the same hospitals.
#[tokio::test]
async fn five_steps_give_the_sum_of_updates_and_then_of_the_metric() {
    let (federation, agents) = started().await;
    federation.run_to(TaskKind::Train, 1, ProtocolStep::Unmask).await;
    assert_sum(&federation, TaskKind::Train, 1);
    until_reason(&agents[0], SiteReason::Submitted).await;
    let names: Vec<_> = ledger(&agents[0]).iter().map(|e| json!(e)["event"].as_str().unwrap().to_owned()).collect();
    let acts: Vec<_> = names.iter().filter(|name| *name != "Decision").map(String::as_str).collect();
    let expected = [
        "RosterAccepted",
        "AttemptOpened",
        "SharesSent",
        "UploadBegins",
        "UploadEnded",
        "SurvivorsSigned",
        "SharesReleased",
    ];
    assert_eq!(acts, expected);
    let act = federation.hospitals[0].shown.act.lock().unwrap().clone().unwrap();
    assert_eq!((act.step.as_str(), act.attempt), ("Unmask", 1));
    assert!(agents[0].ctx.state.had_head(act.ledger_head).unwrap());

    federation.run_to(TaskKind::Evaluate, 2, ProtocolStep::Unmask).await;
    assert_sum(&federation, TaskKind::Evaluate, 2);
    assert_eq!(agents[0].ctx.state.history().unwrap().released.len(), 2);
}

/// Killed with the message on the line and killed after the answer: what is said again is what was said.
#[tokio::test]
async fn a_killed_agent_says_the_same_again_at_every_step() {
    let (federation, mut agents) = started().await;
    for step in STEPS {
        let (name, hub) = (format!("{step:?}"), &federation.hub);
        hub.deaf.lock().unwrap().insert("alder".into());
        federation.ask_all(TaskKind::Train, 1, step);
        until("a lost message", hub.heard.subscribe(), |_| hub.times("alder", 1, &name) >= 1).await;
        agents.remove(0).kill().await;
        hub.deaf.lock().unwrap().clear();
        agents.insert(0, federation.start(0));
        federation.all_done(1, step, SITES.len()).await;
        let before = hub.times("alder", 1, &name);
        agents.remove(0).kill().await;
        agents.insert(0, federation.start(0));
        until("it once more", hub.heard.subscribe(), |_| hub.times("alder", 1, &name) > before).await;
        assert_eq!(hub.said("alder", 1, &name).len(), 1, "{name}: one thing was said");
    }
    assert_sum(&federation, TaskKind::Train, 1);
}

/// A drop-out in the middle of the round must not leave seeds behind, and no hospital is in two attempts.
#[tokio::test]
async fn another_attempt_burns_the_one_before() {
    let (federation, agents) = started().await;
    federation.run_to(TaskKind::Train, 1, ProtocolStep::Upload).await;
    federation.run_to(TaskKind::Train, 2, ProtocolStep::Unmask).await;
    assert_sum(&federation, TaskKind::Train, 2);
    assert_eq!(agents[0].ctx.state.phase(&key(1)).unwrap(), Some("Burned"));
    assert_eq!(agents[0].ctx.state.open_attempts().unwrap(), []);
}

/// A hospital that was away while the others signed still helps to take the masks off: one share fewer could mean none.
#[tokio::test]
async fn a_hospital_that_missed_the_signatures_catches_up() {
    let (federation, mut agents) = started().await;
    federation.run_to(TaskKind::Train, 1, ProtocolStep::Upload).await;
    agents.pop().unwrap().kill().await;
    federation.ask_all(TaskKind::Train, 1, ProtocolStep::Agree);
    federation.all_done(1, ProtocolStep::Agree, 3).await;
    federation.ask_all(TaskKind::Train, 1, ProtocolStep::Unmask);
    let late = federation.start(3);
    federation.all_done(1, ProtocolStep::Unmask, 4).await;
    assert_sum(&federation, TaskKind::Train, 1);
    assert!(ledger(&late).iter().any(|entry| matches!(entry, Entry::SurvivorsSigned { .. })));
    assert_eq!(federation.hub.times("damson", 1, "Agree"), 0);
}
