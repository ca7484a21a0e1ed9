//! Both sides of the protocol as they run: CPU seconds of a hospital (encode, bind, mask, hash) and of the hub (verify,
//! add, unmask), for the points at which peers were measured. One thread, so CPU time is the cost.
//!
//! The uploads that the hub sums are arbitrary bytes under signed manifests: its cost does not depend on them, and
//! making 32 real ones would take longer than summing them.
use crate::peer::Peer;
use crate::report::{Figure, cpu, median};
use consilium_secagg::advert::AdvertList;
use consilium_secagg::client::{Client, Floors, Guard};
use consilium_secagg::history::{DifferenceRule, History};
use consilium_secagg::hub::Hub;
use consilium_secagg::identity::SiteKey;
use consilium_secagg::ids::{Digest, SiteId};
use consilium_secagg::layout::Layout;
use consilium_secagg::ring::encode_head;
use consilium_secagg::roster::{Governance, Roster, RosterEntry, SignedRoster, VerifiedRoster};
use consilium_secagg::spec::{AttemptSpec, Purpose, RoundSpec, Weighting};
use consilium_secagg::sum::to_bytes;
use consilium_secagg::upload::chunk_digest;
use consilium_secagg::weight::Weight;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::collections::BTreeSet;
use std::error::Error;
use std::num::NonZeroUsize;

const ONE: NonZeroUsize = NonZeroUsize::MIN;
const FLOORS: Floors = Floors { min_contributors: 3, colluders: 0 };
const POINTS: [(usize, usize); 5] = [(3, 1), (8, 1), (32, 1), (3, 10), (32, 10)];
const MILLION: usize = 1_000_000;

type Outcome<T> = Result<T, Box<dyn Error>>;

struct Federation {
    sites: Vec<SiteId>,
    keys: Vec<SiteKey>,
    roster: VerifiedRoster,
    attempt: AttemptSpec,
    clients: Vec<Client>,
    hub: Hub,
}

pub(crate) fn run(client: bool, hub: bool, long: bool) -> Outcome<()> {
    for (n, millions) in POINTS {
        let d = millions * MILLION;
        let peer = if long { Some(Peer::measure(n, millions)?) } else { None };
        let beside = |side: &str, dropped: usize| peer.as_ref().and_then(|p| p.cpu(side, dropped));
        if client {
            Federation::open(n, d)?.client_figures(n, millions, beside("client", 0))?;
        }
        for drops in [0, 1] {
            // With three hospitals t is three: a drop-out burns the attempt instead of costing the hub anything.
            if hub && (n > 3 || drops == 0) {
                Federation::open(n, d)?.hub_figures(n, millions, drops, beside("hub", drops))?;
            }
        }
    }
    Ok(())
}

fn figure(bench: &str, case: &str, metric: &str, value: f64, unit: &str) {
    Figure { bench, case, metric, value, unit, against: "none", ratio: None, budget: None }.print();
}

/// A cost, and how many times as much the peer spent on the same.
fn cost(bench: &str, case: &str, metric: &str, value: f64, peer: Option<f64>, budget: f64) {
    let against = peer.map_or("none".to_owned(), |p| format!("Flower 1.42.0 SecAgg+ {p:.4} CPU s"));
    let (ratio, budget) = (peer.map(|p| p / value), peer.map(|_| budget));
    Figure { bench, case, metric, value, unit: "CPU s", against: &against, ratio, budget }.print();
}

fn attempt(n: usize, d: usize, roster: Digest) -> AttemptSpec {
    let round = RoundSpec {
        federation: "bench".into(),
        study: "bench".into(),
        round: 1,
        purpose: Purpose::Train,
        subject: Digest([1; 32]),
        plan: Digest([2; 32]),
        schema: Digest([3; 32]),
        roster,
        capacity: n as u16,
        clip: 10.0,
        weighting: Weighting::Equal,
        statistics: Vec::new(),
        body: d as u64,
        colluders: 0,
        min_contributors: 3,
    };
    AttemptSpec { round, attempt: 1 }
}

impl Federation {
    /// All hospitals up to dealt shares; prints what these steps cost one hospital.
    fn open(n: usize, d: usize) -> Outcome<Self> {
        let mut rng = StdRng::seed_from_u64(1);
        let sites = (0..n).map(|i| SiteId::new(format!("site-{i:03}"))).collect::<Result<Vec<_>, _>>()?;
        let keys: Vec<_> = (0..n).map(|_| SiteKey::generate(&mut rng)).collect();
        let governor = SiteKey::generate(&mut rng);
        let entry = |(site, key): (&SiteId, &SiteKey)| RosterEntry { site: site.clone(), key: key.public() };
        let entries = sites.iter().zip(&keys).map(entry).collect();
        let mut signed = SignedRoster::new(Roster { federation: "bench".into(), version: 1, entries });
        signed.sign(&governor);
        let roster = Governance { federation: "bench".into(), keys: vec![governor.public()], required: 1 };
        let roster = roster.verify(&signed)?;
        let attempt = attempt(n, d, roster.digest());
        let mut hub = Hub::open(attempt.clone(), roster.clone())?;
        let history = History::default();
        let guard = Guard { roster: &roster, floors: &FLOORS, history: &history };
        let mut clients = Vec::new();
        for (site, key) in sites.iter().zip(&keys) {
            let client = Client::open(attempt.clone(), site.clone(), key, guard, &mut rng)?;
            hub.advert(site, client.advert().clone())?;
            clients.push(client);
        }
        let list: AdvertList = hub.close_adverts()?;
        for ((client, site), key) in clients.iter_mut().zip(&sites).zip(&keys) {
            hub.shares(site, client.adverts(&list, key, guard, &mut rng)?)?;
        }
        hub.close_shares()?;
        Ok(Self { sites, keys, roster, attempt, clients, hub })
    }

    fn layout(&self) -> Outcome<Layout> {
        Ok(self.attempt.round.layout()?)
    }

    /// One hospital: protocol messages, then encode, bind, mask and hash all chunks.
    fn client_figures(&mut self, n: usize, millions: usize, peer: Option<f64>) -> Outcome<()> {
        let (layout, ring) = (self.layout()?, self.attempt.round.ring()?);
        let case = format!("n={n}, d={millions}M, 1 thread");
        let history = History::default();
        let guard = Guard { roster: &self.roster, floors: &FLOORS, history: &history };
        let mut rng = StdRng::seed_from_u64(2);
        let start = cpu();
        let mut again = Client::open(self.attempt.clone(), self.sites[0].clone(), &self.keys[0], guard, &mut rng)?;
        let mut list = self.hub.advert_list()?.clone();
        list.adverts[0] = again.advert().clone();
        again.adverts(&list, &self.keys[0], guard, &mut rng)?;
        self.clients[0].bundle(&self.hub.bundle_for(&self.sites[0])?)?;
        let messages = cpu() - start;
        figure("secagg-client", &case, "keys, shares and envelopes", messages, "CPU s");
        let update: Vec<f32> = (0..layout.body()).map(|i| ((i % 1000) as f32 - 500.0) * 1e-6).collect();
        let mut stored: Vec<Vec<u8>> = Vec::new();
        let (mut q, mut plain, mut masked) = (Vec::new(), Vec::new(), Vec::new());
        // As the agent does: encode once when training is done, store, mask when the attempt is open.
        let start = cpu();
        for chunk in 0..layout.chunks() {
            q.resize(layout.chunk_elements(chunk)?, 0);
            if chunk == 0 {
                encode_head(&ring, Weight::EQUAL, &[], &mut q)?;
            } else {
                let range = layout.parameters(chunk)?;
                ring.encode(Weight::EQUAL, &update[range.start as usize..range.end as usize], &mut q)?;
            }
            let bytes = to_bytes(&q);
            plain.push(chunk_digest(&bytes));
            stored.push(bytes);
        }
        let encoded = cpu() - start;
        let start = cpu();
        self.clients[0].bind_update(plain)?;
        let masker = self.clients[0].masker()?;
        for (chunk, bytes) in stored.iter_mut().enumerate() {
            masked.push(masker.mask(chunk as u32, bytes)?);
        }
        self.clients[0].finish_upload(masked, &self.keys[0])?;
        let vector = cpu() - start;
        figure("secagg-client", &case, "encode and hash", encoded, "CPU s");
        figure("secagg-client", &case, "check, mask and hash", vector, "CPU s");
        cost("secagg-client", &case, "whole client path", encoded + vector + messages, peer, 5.0);
        let ratio = layout.upload_bytes() as f64 / (layout.body() as f64 * 4.0);
        Figure {
            bench: "secagg-client",
            case: &case,
            metric: "upload",
            value: layout.upload_bytes() as f64 / 1e6,
            unit: "MB",
            against: "1.01 times 4 bytes per parameter",
            ratio: Some(1.01 / ratio),
            budget: Some(1.0),
        }
        .print();
        Ok(())
    }

    /// The hub from manifests to the sum, with the last `drops` hospitals lost after dealing shares.
    fn hub_figures(mut self, n: usize, millions: usize, drops: usize, peer: Option<f64>) -> Outcome<()> {
        let layout = self.layout()?;
        let mut uploads = Vec::new();
        for i in 0..n - drops {
            let mut bytes = vec![0; layout.chunk_bytes(layout.chunks().min(2) - 1)?];
            StdRng::seed_from_u64(i as u64).fill_bytes(&mut bytes);
            let digests: Vec<_> = (0..layout.chunks())
                .map(|c| Ok(chunk_digest(&bytes[..layout.chunk_bytes(c)?])))
                .collect::<Outcome<_>>()?;
            let client = &mut self.clients[i];
            client.bundle(&self.hub.bundle_for(&self.sites[i])?)?;
            client.bind_update(digests.clone())?;
            self.hub.manifest(&self.sites[i], client.finish_upload(digests, &self.keys[i])?)?;
            uploads.push(bytes);
        }
        let complete: BTreeSet<_> = self.sites[..n - drops].iter().cloned().collect();
        let statement = self.hub.close_uploads(&complete)?;
        let history = History::default();
        let rule = DifferenceRule::Allow;
        let people = || self.sites.iter().zip(&self.keys);
        for (client, (site, key)) in self.clients.iter_mut().zip(people()).take(n - drops) {
            self.hub.agreement(site, client.survivors(&statement, key, &history, rule)?)?;
        }
        let proof = self.hub.close_agreement()?;
        let mut replies = Vec::new();
        for (client, key) in self.clients.iter_mut().zip(&self.keys).take(n - drops) {
            replies.push(client.proof(&proof, key, &history)?);
        }
        let start = cpu();
        for (site, reply) in self.sites.iter().zip(replies) {
            self.hub.unmask(site, reply)?;
        }
        self.hub.close_unmasking()?;
        let unmasking = self.hub.unmasking()?;
        let seeds = cpu() - start;
        let slices = |chunk: u32| -> Outcome<Vec<&[u8]>> {
            let bytes = layout.chunk_bytes(chunk)?;
            Ok(uploads.iter().map(|u| &u[..bytes]).collect())
        };
        let (mut sum, mut checked, mut unchecked) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..3 {
            let start = cpu();
            for chunk in 0..layout.chunks() {
                sum = unmasking.begin_chunk(chunk, sum)?.verify_and_add(&slices(chunk)?)?.finish(ONE)?;
            }
            checked.push(cpu() - start);
            let start = cpu();
            for chunk in 0..layout.chunks() {
                sum = unmasking.begin_chunk(chunk, sum)?.add_verified(&slices(chunk)?)?.finish(ONE)?;
            }
            unchecked.push(cpu() - start);
        }
        let case = format!("n={n}, d={millions}M, {drops} dropped, {} masks, 1 thread", unmasking.masks());
        figure("secagg-hub", &case, "verify chunks, add and unmask", median(checked) + seeds, "CPU s");
        // Flower verifies nothing; the store has verified what it hands over here.
        cost("secagg-hub", &case, "reconstruct, add and unmask", median(unchecked) + seeds, peer, 10.0);
        Ok(())
    }
}
