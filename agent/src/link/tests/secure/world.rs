//! Four hospitals, each an agent as it runs there, and a hub over real mutual TLS.

use std::path::PathBuf;
use std::sync::atomic::AtomicU64;
use std::thread::ThreadId;

use consilium_crds::study::{EVALUATION_CLIP, ProtocolKind, StudySite};
use consilium_federation::model::{Tensor, TensorSchema};
use consilium_federation::task::{ClassScore, ScoreFile};
use consilium_secagg::layout::Layout;
use consilium_secagg::ring::{RingParams, encode_head};
use consilium_secagg::roster::{Governance, Roster, RosterEntry};
use serde_json::Value;

use super::*;
use crate::state::StoredScore;

pub(super) const SITES: [&str; 4] = ["alder", "birch", "cedar", "damson"];
/// Enough for the tests of randomness to see what is not random.
const PARAMETERS: u64 = 16_384;
pub(super) const STEPS: [ProtocolStep; 5] =
    [ProtocolStep::Advertise, ProtocolStep::Share, ProtocolStep::Upload, ProtocolStep::Agree, ProtocolStep::Unmask];

pub(super) fn secure_spec() -> FederatedStudySpec {
    let mut spec = spec();
    spec.aggregation.secure.protocol = ProtocolKind::SecAgg;
    // The hub opens rounds among four of eight: few enough for the laxer rule of small studies, if that were its choice.
    let more = ["elm", "fir", "gorse", "hazel"].map(|name| StudySite { name: name.parse().unwrap(), required: false });
    spec.sites.extend(more);
    spec
}

fn model_of(payload: &[u8]) -> ModelManifest {
    let tensors = vec![Tensor { name: "w".into(), shape: vec![PARAMETERS] }];
    ModelManifest::new(TensorSchema(tensors), vec![Digest::of(payload)]).unwrap()
}

pub(super) fn model() -> ModelManifest {
    model_of(b"payload")
}

/// A round, as the hub and the hospitals know it.
#[derive(Clone)]
pub(super) struct RoundOf {
    pub uid: &'static str,
    pub number: u32,
    pub model: ModelManifest,
}

pub(super) fn first_round() -> RoundOf {
    RoundOf { uid: "round", number: 3, model: model() }
}

/// The next round: another base model.
pub(super) fn next_round() -> RoundOf {
    RoundOf { uid: "round-4", number: 4, model: model_of(b"the sum of round 3") }
}

pub(super) fn secure_work() -> RoundWork {
    let model = model();
    RoundWork { spec_digest: secure_spec().digest(), model: model.digest(), schema: model.tensors.digest(), ..work() }
}

pub(super) fn governor() -> SiteKey {
    SiteKey::from_seed(&[9; 32])
}

pub(super) fn governance() -> Governance {
    Governance { federation: "north".into(), keys: vec![governor().public()], required: 1 }
}

pub(super) fn secure_policy() -> SitePolicy {
    secure_policy_with(&[])
}

pub(super) fn secure_policy_with(more: &[(&str, Value)]) -> SitePolicy {
    let key = consilium_crds::roster::key_text(&governor().public());
    let pinned = json!({"federation": "north", "required": 1, "keys": [{"id": "chair", "publicKey": key}]});
    let digest = json!(secure_spec().digest());
    let mut changes = vec![("/governance", pinned), ("/studies/0/specDigest", digest)];
    changes.extend_from_slice(more);
    SitePolicy::new("default", policy(&changes))
}

/// A hospital's randomness: the same in every run of a test, and within one never the same twice, also after a restart.
pub(super) struct Dice {
    name: &'static str,
    /// Waits are drawn on the runtime's own thread and must not shift what the protocol draws on others.
    runtime: ThreadId,
    drawn: [AtomicU64; 2],
    /// All secrets of 32 bytes that were drawn: what an attacker would know who broke the hospital open.
    secrets: Mutex<Vec<[u8; 32]>>,
}

impl Dice {
    pub(super) fn new(name: &'static str) -> Arc<Self> {
        let runtime = std::thread::current().id();
        Arc::new(Self { name, runtime, drawn: Default::default(), secrets: Mutex::default() })
    }

    pub(super) fn entropy(self: &Arc<Self>) -> Entropy {
        let dice = self.clone();
        Entropy::from_fn(move |bytes| dice.fill(bytes))
    }

    pub(super) fn secrets(&self) -> Vec<[u8; 32]> {
        self.secrets.lock().unwrap().clone()
    }

    fn fill(&self, bytes: &mut [u8]) {
        let stream = usize::from(std::thread::current().id() == self.runtime);
        let n = self.drawn[stream].fetch_add(1, Ordering::SeqCst);
        for (i, part) in bytes.chunks_mut(32).enumerate() {
            let block = Digest::of(format!("{} {stream} {n} {i}", self.name).as_bytes());
            part.copy_from_slice(&block.as_bytes()[..part.len()]);
        }
        if let Ok(secret) = <[u8; 32]>::try_from(&bytes[..]) {
            self.secrets.lock().unwrap().push(secret);
        }
    }
}

pub(super) struct Hospital {
    pub name: &'static str,
    pub folder: PathBuf,
    pub shown: Arc<Shown>,
    pub policy: watch::Sender<Option<Arc<SitePolicy>>>,
    pub dice: Arc<Dice>,
}

impl Hospital {
    pub(super) fn volume(&self) -> PathBuf {
        self.folder.join("state")
    }

    pub(super) fn site(&self) -> SiteId {
        SiteId::new(self.name).unwrap()
    }
}

/// Four hospitals and a hub.
pub(super) struct Federation {
    _dir: TempDir,
    pub hub: Arc<SecureHub>,
    address: std::net::SocketAddr,
    pub hospitals: Vec<Hospital>,
    pub roster: SignedRoster,
    pub revision: AtomicU64,
    /// The round that the hub runs.
    pub round: Mutex<RoundOf>,
    /// Which results the first hospital has.
    pub variant: u8,
}

pub(super) fn sign(version: u64, entries: Vec<RosterEntry>, key: Option<&SiteKey>) -> SignedRoster {
    let mut signed = SignedRoster::new(Roster { federation: "north".into(), version, entries });
    if let Some(key) = key {
        signed.sign(key);
    }
    signed
}

pub(super) fn key(attempt: u32) -> AttemptKey {
    AttemptKey { round_uid: "round".into(), attempt }
}

impl Federation {
    pub(super) async fn new(variant: u8) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let (pki, dir) = (Pki::new(), TempDir::new().unwrap());
        let hospital = |name: &'static str| {
            let folder = dir.path().join(name);
            pki.site_folder(&folder.join("tls"), name);
            let policy = watch::Sender::new(Some(Arc::new(secure_policy())));
            Hospital { name, folder, shown: Arc::default(), policy, dice: Dice::new(name) }
        };
        let hospitals: Vec<Hospital> = SITES.map(hospital).into();
        let (hub, address) = SecureHub::start(&pki).await;
        let entry = |h: &Hospital| {
            let state = State::open(&h.volume(), [1; 32]).unwrap();
            RosterEntry { site: h.site(), key: state.site_key(&h.dice.entropy()).unwrap().public() }
        };
        let roster = sign(3, hospitals.iter().map(entry).collect(), Some(&governor()));
        hub.keep(canonical_json(&secure_spec()));
        hub.keep(model().to_bytes());
        hub.keep(roster.to_bytes());
        let round = Mutex::new(first_round());
        Self { _dir: dir, hub, address, hospitals, roster, revision: AtomicU64::new(0), round, variant }
    }

    pub(super) fn start(&self, of: usize) -> Agent {
        let hospital = &self.hospitals[of];
        self.start_on(of, &hospital.volume())
    }

    pub(super) fn start_on(&self, of: usize, volume: &Path) -> Agent {
        let Hospital { name, folder, shown, policy, dice } = &self.hospitals[of];
        let agent = start(name, folder, volume, self.address, None, policy.subscribe(), shown.clone(), dice.entropy());
        self.has_results(&agent);
        agent
    }

    /// Says that the tasks of the round are done, as the task controller does.
    fn has_results(&self, agent: &Agent) {
        for (kind, reason) in [(TaskKind::Train, SiteReason::Ready), (TaskKind::Evaluate, SiteReason::Evaluated)] {
            let uid = self.round.lock().unwrap().uid.to_owned();
            agent.ctx.facts.set_round(RoundReport { uid, kind, reason, message: None, evaluation: None });
        }
    }

    /// The hub goes on to another round, for which every hospital has its results already.
    pub(super) fn go_on(&self, agents: &[Agent], round: RoundOf) {
        self.hub.keep(round.model.to_bytes());
        *self.round.lock().unwrap() = round.clone();
        for (of, agent) in agents.iter().enumerate() {
            deliver_to(&agent.ctx.state, of, self.variant, &round);
            self.has_results(agent);
        }
    }

    pub(super) fn verified(&self) -> VerifiedRoster {
        governance().verify(&self.roster).unwrap()
    }

    /// The work of a step, as the hub's own machine would ask for it.
    pub(super) fn ask(&self, kind: TaskKind, attempt: u32, step: ProtocolStep, inputs: Option<Digest>) -> RoundWork {
        let roster = Some(hub_digest(self.verified().digest()));
        let RoundOf { number: round, model, .. } = self.round.lock().unwrap().clone();
        RoundWork { kind, attempt, step: Some(step), roster, inputs, round, model: model.digest(), ..secure_work() }
    }

    pub(super) fn publish_to(&self, sites: &[&str], work: &RoundWork, rosters: Vec<Digest>) {
        let revision = self.revision.fetch_add(1, Ordering::SeqCst) + 1;
        self.publish_as(sites, work, rosters, ("e", revision));
    }

    /// Also what no honest hub publishes: an older revision, another epoch.
    pub(super) fn publish_as(&self, sites: &[&str], work: &RoundWork, rosters: Vec<Digest>, as_of: (&str, u64)) {
        let uid = self.round.lock().unwrap().uid.to_owned();
        let items = vec![Item { uid, state: ItemState::Active, work: Work::Round(work.clone()) }];
        let assignment = Assignment { hub_epoch: as_of.0.into(), revision: as_of.1, rosters, items };
        let all: BTreeMap<String, Assignment> =
            sites.iter().map(|site| ((*site).to_owned(), assignment.clone())).collect();
        self.hub.desired.send_modify(|desired| desired.extend(all));
    }

    pub(super) fn publish(&self, sites: &[&str], work: &RoundWork) {
        self.publish_to(sites, work, self.rosters());
    }

    pub(super) fn rosters(&self) -> Vec<Digest> {
        vec![Digest::of(&self.roster.to_bytes())]
    }

    /// Asks a hospital for a step that starts from a message.
    pub(super) fn press(&self, site: &str, attempt: u32, step: ProtocolStep, inputs: &impl Message) {
        let inputs = Some(self.hub.keep(inputs.to_bytes()));
        self.publish(&[site], &self.ask(TaskKind::Train, attempt, step, inputs));
    }

    /// What the hospitals make of an attempt.
    pub(super) fn attempt_spec(&self, kind: TaskKind, attempt: u32) -> AttemptSpec {
        let work = self.ask(kind, attempt, ProtocolStep::Advertise, None);
        let model = self.round.lock().unwrap().model.clone();
        attempt_spec(&work, &secure_spec(), &self.verified(), &model).unwrap()
    }

    pub(super) fn open(&self, kind: TaskKind, attempt: u32) {
        let machine = Hub::open(self.attempt_spec(kind, attempt), self.verified()).unwrap();
        *self.hub.machine.lock().unwrap() = Some(machine);
    }

    pub(super) fn machine<T>(&self, act: impl FnOnce(&mut Hub) -> T) -> T {
        act(self.hub.machine.lock().unwrap().as_mut().unwrap())
    }

    /// Closes the step before and asks everyone for this one.
    pub(super) fn ask_all(&self, kind: TaskKind, attempt: u32, step: ProtocolStep) {
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
    pub(super) async fn all_done(&self, attempt: u32, step: ProtocolStep, of: usize) {
        let complete = |chunks: &BTreeMap<(String, u32, u32), Bytes>| {
            step != ProtocolStep::Upload || chunks.keys().filter(|(_, a, _)| *a == attempt).count() == 2 * of
        };
        until("chunks", self.hub.chunks.subscribe(), complete).await;
        until(&format!("{step:?}"), self.hub.heard.subscribe(), |_| self.machine(|hub| hub.heard().len()) == of).await;
    }

    /// Runs an attempt among all up to and with this step.
    pub(super) async fn run_to(&self, kind: TaskKind, attempt: u32, last: ProtocolStep) {
        for step in STEPS.into_iter().filter(|step| *step <= last) {
            self.ask_all(kind, attempt, step);
            self.all_done(attempt, step, SITES.len()).await;
        }
    }
}

/// The vector of a hospital, as chunks. The first hospital has other results in another `variant`.
pub(super) fn vector(of: usize, kind: TaskKind, variant: u8) -> (Vec<Vec<u8>>, Weight) {
    let other = if of == 0 { f32::from(variant) } else { 0.0 };
    let (clip, values): (f64, Vec<f32>) = match kind {
        TaskKind::Evaluate => (EVALUATION_CLIP, vec![0.5 + 0.1 * of as f32 - 0.2 * other]),
        _ => {
            let value = |i| (of as f32 + 1.0) * 0.01 * (i % 40) as f32 * (1.0 - 1.5 * other) + 0.3 * other;
            (10.0, (0..PARAMETERS).map(value).collect())
        }
    };
    let (ring, layout) = (RingParams::new(4, clip).unwrap(), Layout::new(0, values.len() as u64).unwrap());
    let examples = 100 * (of as u64 + 1) + 5_000 * other as u64;
    let weight = Weight::from_examples(examples, consilium_crds::study::EXAMPLES_CAP, 1).unwrap();
    let (mut head, mut body) = (vec![0; layout.head()], vec![0; values.len()]);
    encode_head(&ring, weight, &[], &mut head).unwrap();
    ring.encode(weight, &values, &mut body).unwrap();
    (vec![sum::to_bytes(&head), sum::to_bytes(&body)], weight)
}

pub(super) fn encoded(of: usize, kind: TaskKind) -> (Vec<Vec<u8>>, Weight) {
    vector(of, kind, 0)
}

/// Puts a hospital's results on its volume, as the task port does.
pub(super) fn deliver(state: &State, of: usize) {
    deliver_to(state, of, 0, &first_round());
}

pub(super) fn deliver_to(state: &State, of: usize, variant: u8, round: &RoundOf) {
    let now = "2026-01-01T00:00:00Z".parse().unwrap();
    let other = if of == 0 { u64::from(variant) } else { 0 };
    for (kind, name) in [(TaskKind::Train, round.uid.to_owned()), (TaskKind::Evaluate, evaluate_vector(round.uid))] {
        let mut writer = state.begin_update(&name).unwrap();
        vector(of, kind, variant).0.iter().for_each(|chunk| _ = writer.put_chunk(chunk).unwrap());
        let meta = UpdateMeta {
            task_uid: "task".into(),
            task_name: format!("hippocampus-r{}-{kind:?}", round.number),
            study: work().study,
            spec_digest: secure_spec().digest(),
            round: round.number,
            base: round.model.digest(),
            roster_size: 4,
            examples: 10 + 5_000 * other,
            norm: format!("{}", 1 + other),
            clipped: other > 0,
            delivered: now,
        };
        writer.finish(meta).unwrap();
    }
    let class = ClassScore { label: 1, dice: 0.5 - 0.2 * other as f64, hd95_mm: None, assd_mm: None };
    let score = ScoreFile { cases: 100 + other as u32, classes: vec![class] };
    let (task_uid, task_name) = ("task".into(), format!("hippocampus-r{}-Evaluate", round.number));
    state.put_score(round.uid, &StoredScore { task_uid, task_name, score, delivered: now }).unwrap();
}

pub(super) async fn started() -> (Federation, Vec<Agent>) {
    started_with(0).await
}

/// All agents run and have their results; those of the first hospital depend on `variant`.
pub(super) async fn started_with(variant: u8) -> (Federation, Vec<Agent>) {
    let federation = Federation::new(variant).await;
    let agents: Vec<Agent> = (0..SITES.len()).map(|of| federation.start(of)).collect();
    agents.iter().enumerate().for_each(|(of, agent)| deliver_to(&agent.ctx.state, of, variant, &first_round()));
    (federation, agents)
}
