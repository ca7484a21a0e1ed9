//! A whole federation in memory: hospitals, a hub, and a driver that loses, kills and repeats what it is told to.
#![allow(dead_code, reason = "each test binary uses its own part")]
use consilium_secagg::client::{Client, ClientError, Floors, Guard};
use consilium_secagg::history::History;
use consilium_secagg::hub::{Hub, HubError, Receipt};
use consilium_secagg::identity::SiteKey;
use consilium_secagg::ids::{Digest, SiteId};
use consilium_secagg::ring::{self, Statistic};
use consilium_secagg::roster::{Governance, Roster, RosterEntry, SignedRoster, VerifiedRoster};
use consilium_secagg::spec::{AttemptSpec, Purpose, RoundSpec, Weighting};
use consilium_secagg::sum;
use consilium_secagg::upload::elements_digest;
use consilium_secagg::weight::Weight;
use consilium_secagg::wire::Message;
use rand_core::{Infallible, Rng, TryCryptoRng, TryRng};
use sha2::{Digest as _, Sha256};
use std::collections::BTreeSet;
use std::num::NonZeroUsize;

pub const ONE: NonZeroUsize = NonZeroUsize::MIN;
pub const FLOORS: Floors = Floors { min_contributors: 3, colluders: 0 };

/// A random source that is the same for ever, whatever crate changes its generator: SHA-256 of seed and counter.
/// The published vectors depend on it.
#[derive(Debug, Clone)]
pub struct TestRng {
    seed: u64,
    counter: u64,
}

impl TestRng {
    pub fn new(seed: u64) -> Self {
        Self { seed, counter: 0 }
    }
    /// A number in `0..below`.
    pub fn below(&mut self, below: u64) -> u64 {
        self.next_u64() % below
    }
    /// A number in [-1, 1).
    pub fn unit(&mut self) -> f64 {
        self.next_u32() as i32 as f64 / f64::from(1u32 << 31)
    }
}

impl TryRng for TestRng {
    type Error = Infallible;
    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        Ok(self.try_next_u64()? as u32)
    }
    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        let mut bytes = [0; 8];
        self.try_fill_bytes(&mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }
    fn try_fill_bytes(&mut self, out: &mut [u8]) -> Result<(), Infallible> {
        for part in out.chunks_mut(32) {
            let mut hasher = Sha256::new();
            hasher.update(self.seed.to_le_bytes());
            hasher.update(self.counter.to_le_bytes());
            self.counter += 1;
            part.copy_from_slice(&hasher.finalize()[..part.len()]);
        }
        Ok(())
    }
}

impl TryCryptoRng for TestRng {}

/// A hospital as its agent keeps it.
pub struct Site {
    pub id: SiteId,
    pub key: SiteKey,
    pub history: History,
    pub client: Option<Client>,
    pub weight: Weight,
    pub update: Vec<f32>,
    pub statistics: [f64; 2],
    /// Masked chunks as stored and sent.
    pub uploads: Vec<Vec<u8>>,
    pub rng: TestRng,
}

/// A federation of `n` hospitals and an attempt among them.
pub struct World {
    pub sites: Vec<Site>,
    pub governors: Vec<SiteKey>,
    pub governance: Governance,
    pub roster: VerifiedRoster,
    pub attempt: AttemptSpec,
}

/// When a hospital vanishes for good.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Moment {
    BeforeAdvert,
    BeforeShares,
    BeforeUpload,
    BeforeAgree,
    BeforeUnmask,
    Never,
}

/// What else goes wrong for one hospital at one step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    Nothing,
    /// Killed after the step was computed, before it was stored: computes it again.
    KilledBeforeStore,
    /// Killed after it was stored: loads the state and is asked again.
    KilledAfterStore,
    /// The hub asks again although it was answered.
    Repeated,
}

/// The steps at which something may go wrong.
#[derive(Debug, Clone, Copy)]
pub enum At {
    Share,
    Bundle,
    Bind,
    Mask,
    Finish,
    Agree,
    Unmask,
}

/// Trouble of one hospital, by step. In the masking, any trouble is a kill after the first chunk.
pub type Troubles = [Trouble; 7];

#[derive(Debug, Clone)]
pub struct Plan {
    pub vanish: Vec<Moment>,
    pub trouble: Vec<Troubles>,
}

impl Plan {
    pub fn smooth(n: usize) -> Self {
        Self { vanish: vec![Moment::Never; n], trouble: vec![[Trouble::Nothing; 7]; n] }
    }
    pub fn losing(n: usize, site: usize, when: Moment) -> Self {
        let mut plan = Self::smooth(n);
        plan.vanish[site] = when;
        plan
    }
    fn trouble(&self, site: usize, at: At) -> Trouble {
        self.trouble[site][at as usize]
    }
    fn there(&self, site: usize, when: Moment) -> bool {
        self.vanish[site] > when
    }
}

/// How an attempt ended.
#[derive(Debug)]
pub enum Outcome {
    Summed { survivors: Vec<usize>, sum: Vec<u32> },
    Burned { step: &'static str, error: HubError },
}

pub fn site_id(i: usize) -> SiteId {
    SiteId::new(format!("site-{i:03}")).unwrap()
}

pub fn round_spec(n: usize, body: usize) -> RoundSpec {
    RoundSpec {
        federation: "federation".into(),
        study: "research/hippocampus/4f0c".into(),
        round: 1,
        purpose: Purpose::Train,
        subject: Digest([1; 32]),
        plan: Digest([2; 32]),
        schema: Digest([3; 32]),
        roster: Digest([0; 32]),
        capacity: n as u16,
        clip: 10.0,
        weighting: Weighting::Examples { cap: 1000 },
        statistics: vec![Statistic::Count { max: 100_000 }, Statistic::Real { bound: 100.0 }],
        body: body as u64,
        colluders: 0,
        min_contributors: 3,
    }
}

impl World {
    pub fn new(n: usize, body: usize, seed: u64) -> Self {
        let mut rng = TestRng::new(seed);
        let governors: Vec<_> = (0..3).map(|_| SiteKey::generate(&mut rng)).collect();
        let governance = Governance {
            federation: "federation".into(),
            keys: governors.iter().map(SiteKey::public).collect(),
            required: 2,
        };
        let sites: Vec<_> = (0..n).map(|i| Site::new(i, body, &mut rng)).collect();
        let mut world = Self {
            roster: sign_roster(&governors[..2], &governance, 1, &sites),
            sites,
            governors,
            governance,
            attempt: AttemptSpec { round: round_spec(n, body), attempt: 1 },
        };
        world.attempt.round.roster = world.roster.digest();
        world
    }

    /// The encoded update of a hospital: one vector per chunk.
    pub fn encoded(&self, i: usize) -> Vec<Vec<u32>> {
        let (round, site) = (&self.attempt.round, &self.sites[i]);
        let (ring, layout) = (round.ring().unwrap(), round.layout().unwrap());
        let mut head = vec![0; layout.head()];
        let statistics: Vec<_> = round.statistics.iter().copied().zip(site.statistics).collect();
        ring::encode_head(&ring, site.weight, &statistics, &mut head).unwrap();
        let mut chunks = vec![head];
        for chunk in 1..layout.chunks() {
            let range = layout.parameters(chunk).unwrap();
            let mut q = vec![0; layout.chunk_elements(chunk).unwrap()];
            ring.encode(site.weight, &site.update[range.start as usize..range.end as usize], &mut q).unwrap();
            chunks.push(q);
        }
        chunks
    }

    /// The plain sum of encoded updates.
    pub fn plain_sum(&self, of: &[usize]) -> Vec<u32> {
        let mut sum = vec![0u32; self.attempt.round.layout().unwrap().elements() as usize];
        for i in of {
            for (s, q) in sum.iter_mut().zip(self.encoded(*i).concat()) {
                *s = s.wrapping_add(q);
            }
        }
        sum
    }

    pub fn hub(&self) -> Hub {
        Hub::open(self.attempt.clone(), self.roster.clone()).unwrap()
    }

    pub fn open(&mut self, i: usize) -> Result<(), ClientError> {
        let (attempt, roster) = (self.attempt.clone(), self.roster.clone());
        let site = &mut self.sites[i];
        let guard = Guard { roster: &roster, floors: &FLOORS, history: &site.history };
        site.client = Some(Client::open(attempt, site.id.clone(), &site.key, guard, &mut site.rng)?);
        Ok(())
    }

    /// Lets a hospital take one step, with the trouble that was planned for it.
    pub fn act<T: PartialEq + std::fmt::Debug>(
        &mut self,
        i: usize,
        trouble: Trouble,
        step: impl Fn(&mut Client, &mut Site, &VerifiedRoster) -> Result<T, ClientError>,
    ) -> Result<T, ClientError> {
        let roster = self.roster.clone();
        let site = &mut self.sites[i];
        let mut client = site.client.take().unwrap();
        let stored = serde_json::to_string(&client).unwrap();
        let mut result = step(&mut client, site, &roster);
        if trouble == Trouble::KilledBeforeStore {
            client = serde_json::from_str(&stored).unwrap();
            result = step(&mut client, site, &roster);
        }
        if trouble == Trouble::KilledAfterStore {
            client = serde_json::from_str(&serde_json::to_string(&client).unwrap()).unwrap();
        }
        if matches!(trouble, Trouble::KilledAfterStore | Trouble::Repeated) {
            let again = step(&mut client, site, &roster);
            assert_eq!(again, result, "the same question must get the same answer");
        }
        site.client = Some(client);
        result
    }

    /// Masks and stores all chunks, and signs the manifest.
    pub fn upload(&mut self, i: usize, plan: &Plan, hub: &mut Hub) {
        let chunks = self.encoded(i);
        let plain: Vec<_> = chunks.iter().map(|c| elements_digest(c)).collect();
        self.act(i, plan.trouble(i, At::Bind), |client, _, _| client.bind_update(plain.clone())).unwrap();
        let mask = |client: &Client, chunk: usize| {
            let mut bytes = sum::to_bytes(&chunks[chunk]);
            let digest = client.masker().unwrap().mask(chunk as u32, &mut bytes).unwrap();
            (bytes, digest)
        };
        if plan.trouble(i, At::Mask) != Trouble::Nothing {
            // Killed between two chunks: the first one is on the disk, and made once more from what was stored.
            let client = self.sites[i].client.take().unwrap();
            let first = mask(&client, 0);
            let client = serde_json::from_str(&serde_json::to_string(&client).unwrap()).unwrap();
            assert_eq!(mask(&client, 0), first, "a chunk that is made again must be the same");
            self.sites[i].client = Some(client);
        }
        let client = self.sites[i].client.as_ref().unwrap();
        let (uploads, digests): (_, Vec<_>) = (0..chunks.len()).map(|chunk| mask(client, chunk)).unzip();
        self.sites[i].uploads = uploads;
        let manifest = self
            .act(i, plan.trouble(i, At::Finish), |client, site, _| {
                client.finish_upload(digests.clone(), &site.key.clone())
            })
            .unwrap();
        assert_eq!(hub.manifest(&self.sites[i].id, manifest.clone()).unwrap(), Receipt::New);
        assert_eq!(hub.manifest(&self.sites[i].id, manifest).unwrap(), Receipt::Repeated);
    }

    /// Brings an attempt up to (and including) the closing of `until`, without trouble.
    pub fn advance(&mut self, hub: &mut Hub, until: Moment) {
        let n = self.sites.len();
        let plan = Plan::smooth(n);
        self.steps(hub, &plan, until).unwrap();
    }

    /// Runs an attempt to its end.
    pub fn run(&mut self, plan: &Plan) -> Outcome {
        let mut hub = self.hub();
        match self.steps(&mut hub, plan, Moment::Never) {
            Ok(()) => {
                let (survivors, sum) = self.sum(&hub);
                Outcome::Summed { survivors, sum }
            }
            Err(error) => {
                let step = hub.phase();
                assert!(hub.unmasking().is_err(), "a burned attempt reveals nothing");
                Outcome::Burned { step, error }
            }
        }
    }

    pub fn sum(&self, hub: &Hub) -> (Vec<usize>, Vec<u32>) {
        let unmasking = hub.unmasking().unwrap();
        let survivors: Vec<usize> =
            unmasking.survivors().map(|id| self.sites.iter().position(|s| s.id == *id).unwrap()).collect();
        let (mut sum, mut chunk_sum) = (Vec::new(), Vec::new());
        for chunk in 0..unmasking.layout().chunks() {
            let uploads: Vec<&[u8]> =
                survivors.iter().map(|i| self.sites[*i].uploads[chunk as usize].as_slice()).collect();
            unmasking.sum_chunk(chunk, &uploads, ONE, &mut chunk_sum).unwrap();
            sum.extend_from_slice(&chunk_sum);
        }
        (survivors, sum)
    }

    pub fn steps(&mut self, hub: &mut Hub, plan: &Plan, until: Moment) -> Result<(), HubError> {
        let n = self.sites.len();
        for i in (0..n).filter(|i| plan.there(*i, Moment::BeforeAdvert)) {
            if self.sites[i].client.is_none() {
                self.open(i).unwrap();
            }
            let advert = self.sites[i].client.as_ref().unwrap().advert().clone();
            hub.advert(&self.sites[i].id, advert)?;
        }
        let list = hub.close_adverts()?;
        if until == Moment::BeforeShares {
            return Ok(());
        }
        for i in (0..n).filter(|i| plan.there(*i, Moment::BeforeShares)) {
            let shares = self.act(i, plan.trouble(i, At::Share), |client, site, roster| {
                let (key, history) = (site.key.clone(), site.history.clone());
                let guard = Guard { roster, floors: &FLOORS, history: &history };
                client.adverts(&list, &key, guard, &mut site.rng)
            });
            hub.shares(&self.sites[i].id, shares.unwrap())?;
        }
        hub.close_shares()?;
        if until == Moment::BeforeUpload {
            return Ok(());
        }
        self.late_steps(hub, plan, until)
    }

    /// Everything that was sent, from what the clients remember and the hub collected.
    pub fn messages(&self, hub: &Hub) -> serde_json::Value {
        let (mut adverts, mut shares, mut uploads) = (Vec::new(), Vec::new(), Vec::new());
        let (mut agreements, mut replies) = (Vec::new(), Vec::new());
        for (i, site) in self.sites.iter().enumerate() {
            let Some(client) = &site.client else { continue };
            let state = serde_json::to_value(client).unwrap();
            let said = |what: &str| state["said"][what]["output"].clone();
            adverts.push(state["advert"].clone());
            let keep = |list: &mut Vec<serde_json::Value>, what: &str| {
                if !said(what).is_null() {
                    list.push(said(what));
                }
            };
            keep(&mut shares, "shares");
            keep(&mut agreements, "statement");
            keep(&mut replies, "reply");
            if !site.uploads.is_empty() {
                let masked: Vec<_> = site.uploads.iter().map(hex::encode).collect();
                uploads.push(serde_json::json!({"party": i, "masked": masked, "manifest": said("manifest")}));
            }
        }
        let own = |m: Result<Vec<u8>, HubError>| m.map(hex::encode).ok();
        serde_json::json!({
            "adverts": adverts,
            "sid": hub.session().map(|s| s.sid()),
            "shares": shares,
            "uploads": uploads,
            "statement": own(hub.statement().map(Message::to_bytes)),
            "agreements": agreements,
            "proof": own(hub.survivor_proof().map(Message::to_bytes)),
            "replies": replies,
        })
    }

    fn late_steps(&mut self, hub: &mut Hub, plan: &Plan, until: Moment) -> Result<(), HubError> {
        let n = self.sites.len();
        let mut complete = BTreeSet::new();
        for i in (0..n).filter(|i| plan.there(*i, Moment::BeforeUpload)) {
            let bundle = hub.bundle_for(&self.sites[i].id).unwrap();
            self.act(i, plan.trouble(i, At::Bundle), |client, _, _| client.bundle(&bundle)).unwrap();
            self.upload(i, plan, hub);
            complete.insert(self.sites[i].id.clone());
        }
        let statement = hub.close_uploads(&complete)?;
        if until == Moment::BeforeAgree {
            return Ok(());
        }
        let round = self.attempt.round.clone();
        for i in (0..n).filter(|i| plan.there(*i, Moment::BeforeAgree)) {
            let signed = self.act(i, plan.trouble(i, At::Agree), |client, site, _| {
                let rule = site.history.default_rule(&round, n);
                client.survivors(&statement, &site.key, &site.history, rule)
            });
            let session = hub.session().unwrap().clone();
            let sites = statement.sites(&session);
            self.sites[i].history.record_signed(&self.attempt.round, session.sid(), sites);
            hub.agreement(&self.sites[i].id, signed.unwrap())?;
        }
        let proof = hub.close_agreement()?;
        if until == Moment::BeforeUnmask {
            return Ok(());
        }
        for i in (0..n).filter(|i| plan.there(*i, Moment::BeforeUnmask)) {
            let reply = self
                .act(i, plan.trouble(i, At::Unmask), |client, site, _| client.proof(&proof, &site.key, &site.history))
                .unwrap();
            self.sites[i].history.record_released(&self.attempt.round, reply.body.sid);
            hub.unmask(&self.sites[i].id, reply)?;
        }
        hub.close_unmasking()?;
        Ok(())
    }
}

impl Site {
    fn new(i: usize, body: usize, rng: &mut TestRng) -> Self {
        // One coordinate carries most of the norm: the extreme that clipping admits.
        let mut update: Vec<f32> = (0..body).map(|_| (0.01 * rng.unit()) as f32).collect();
        if let Some(first) = update.first_mut() {
            *first = if i.is_multiple_of(2) { 9.9 } else { -9.9 };
        }
        Self {
            id: site_id(i),
            key: SiteKey::generate(rng),
            history: History::default(),
            client: None,
            weight: Weight::from_examples(1 + rng.below(2000), 1000, 1).unwrap(),
            update,
            statistics: [rng.below(1000) as f64, 100.0 * rng.unit()],
            uploads: Vec::new(),
            rng: TestRng::new(rng.next_u64()),
        }
    }
}

pub fn sign_roster(governors: &[SiteKey], governance: &Governance, version: u64, sites: &[Site]) -> VerifiedRoster {
    let entries = sites.iter().map(|s| RosterEntry { site: s.id.clone(), key: s.key.public() }).collect();
    let mut signed = SignedRoster::new(Roster { federation: governance.federation.clone(), version, entries });
    governors.iter().for_each(|g| signed.sign(g));
    governance.verify(&signed).unwrap()
}

/// The weighted mean of updates in plain floating point.
pub fn plain_mean(world: &World, of: &[usize]) -> Vec<f64> {
    let total: f64 = of.iter().map(|i| world.sites[*i].weight.as_f64()).sum();
    let d = world.attempt.round.body as usize;
    let coordinate = |k: usize| {
        let weighted = |i: &usize| world.sites[*i].weight.as_f64() * f64::from(world.sites[*i].update[k]);
        of.iter().map(weighted).sum::<f64>() / total
    };
    (0..d).map(coordinate).collect()
}

/// Wire bytes as ring elements.
pub fn elements(uploads: &[Vec<u8>]) -> Vec<u32> {
    uploads.iter().flat_map(|u| sum::from_bytes(u)).collect()
}
