//! The hub is the attacker, and asks real hospitals over the wire. Every attack ends in a refusal with a reason, to the
//! ledger and to the hub; and nothing that the hub got depends on the victim's update but a masked vector that looks
//! like noise.

mod agreeing;
mod opening;
mod repeating;
mod sharing;
mod unmasking;

use consilium_secagg::identity::Signed;
use consilium_secagg::ids::{Digest as RingDigest, Party};
use consilium_secagg::survivors::{SurvivorProof, SurvivorStatement};
use consilium_secagg::upload::{UploadManifest, chunk_digest};

use super::*;

/// The hospital that the hub is after.
const VICTIM: &str = SITES[0];
/// An attempt that no attack uses.
const LAST: u32 = 99;

/// What a hospital had sent when it refused.
struct Refusal {
    site: String,
    kind: TaskKind,
    attempt: u32,
    sent: usize,
}

/// The federation with the hub as the attacker.
struct Attack {
    federation: Federation,
    agents: Vec<Agent>,
    refusals: Vec<Refusal>,
}

impl std::ops::Deref for Attack {
    type Target = Federation;
    fn deref(&self) -> &Federation {
        &self.federation
    }
}

impl Attack {
    /// All that came in from a hospital about an attempt: messages, manifests and chunks.
    fn sent(&self, site: &str, attempt: u32) -> usize {
        let messages = self.hub.heard.borrow().iter().filter(|(s, a, ..)| s == site && *a == attempt).count();
        messages + self.hub.chunks.borrow().keys().filter(|(s, a, _)| s == site && *a == attempt).count()
    }

    /// Waits until a hospital has refused in these words, in its ledger, and in its own to the hub. It says nothing after
    /// that.
    async fn refuses(&mut self, of: usize, attempt: u32, words: &str) {
        self.refuses_of(TaskKind::Train, of, attempt, words).await;
    }

    async fn refuses_of(&mut self, kind: TaskKind, of: usize, attempt: u32, words: &str) {
        let site = SITES[of];
        let named = |entry: &Entry| matches!(entry, Entry::AttemptRefused { attempt: a, why, .. } if *a == attempt && why.contains(words));
        until_entry(&self.agents[of], words, named).await;
        let told = |_: &_| self.hub.told(site).iter().any(|told| told == crate::words::STEP_REFUSED);
        until(&format!("the report of {words:?}"), self.hub.reports.subscribe(), told).await;
        let sent = self.sent(site, attempt);
        self.refusals.push(Refusal { site: site.to_owned(), kind, attempt, sent });
    }

    /// Waits until the policy of a hospital has denied, in these words.
    async fn denies(&self, of: usize, words: &str) {
        let denied =
            |entry: &Entry| matches!(entry, Entry::Decision { allowed: false, message, .. } if message.contains(words));
        until_entry(&self.agents[of], words, denied).await;
    }

    /// Nothing follows a refusal. A hospital takes one step of a round at a time, so what it says to another attempt
    /// comes after whatever it still had to say to the one that it refused.
    async fn all_silent(&self) {
        for Refusal { site, kind, attempt, sent } in &self.refusals {
            self.open(*kind, LAST);
            self.publish(&[site], &self.ask(*kind, LAST, ProtocolStep::Advertise, None));
            let agent = &self.agents[SITES.iter().position(|s| s == site).unwrap()];
            let look = async {
                let denied = |entry: &Entry| matches!(entry, Entry::Decision { allowed: false, message, .. } if message.contains("second sum"));
                while self.hub.times(site, LAST, "Advertise") == 0 && !ledger(agent).iter().any(denied) {
                    tokio::task::yield_now().await;
                }
            };
            assert!(tokio::time::timeout(LIMIT, look).await.is_ok(), "{site} answers no other attempt");
            assert_eq!(self.sent(site, *attempt), *sent, "{site} went on after its refusal");
        }
    }

    /// The signing key of a hospital that works with the hub.
    fn colluder(&self, of: usize) -> SiteKey {
        self.agents[of].ctx.state.site_key(&self.hospitals[of].dice.entropy()).unwrap()
    }

    /// The plain vector of the victim.
    fn plain(&self, kind: TaskKind) -> Vec<Vec<u8>> {
        vector(0, kind, self.variant).0
    }
}

/// What the hub holds of the victim, apart from masked vectors and their digests.
#[derive(Debug, PartialEq)]
struct View {
    said: BTreeMap<(u32, String), BTreeSet<Vec<u8>>>,
    manifests: BTreeMap<u32, UploadManifest>,
    told: BTreeSet<String>,
}

type Vectors = BTreeMap<(u32, u32), Bytes>;

fn seen(attack: &Attack) -> (View, Vectors) {
    let chunks = attack.hub.chunks.borrow().clone();
    let vectors: Vectors =
        chunks.into_iter().filter(|((s, ..), _)| s == VICTIM).map(|((_, a, c), bytes)| ((a, c), bytes)).collect();
    let mut view = View { said: BTreeMap::new(), manifests: BTreeMap::new(), told: attack.hub.told(VICTIM) };
    for (_, attempt, step, bytes) in attack.hub.heard.borrow().iter().filter(|(site, ..)| site == VICTIM) {
        if step != "Upload" {
            view.said.entry((*attempt, step.clone())).or_default().insert(bytes.clone());
            continue;
        }
        let mut manifest = Signed::<UploadManifest>::from_bytes(bytes).unwrap().body;
        for (chunk, digest) in manifest.chunks.iter().enumerate() {
            let of_vector = vectors.get(&(*attempt, chunk as u32)).is_none_or(|v| chunk_digest(v) == *digest);
            assert!(of_vector, "a digest of something else than the masked vector");
        }
        manifest.chunks.clear();
        let first = view.manifests.entry(*attempt).or_insert_with(|| manifest.clone());
        assert_eq!(*first, manifest, "two manifests in one attempt");
    }
    (view, vectors)
}

/// Runs an attack against two updates of the victim, with the same randomness. What the hub was sent must be the same,
/// but for the masked vector, and that must be noise.
async fn attack(run: impl AsyncFn(&mut Attack)) {
    let mut seen_by_hub = Vec::new();
    for variant in [0, 1] {
        let (federation, agents) = started_with(variant).await;
        let mut attack = Attack { federation, agents, refusals: Vec::new() };
        run(&mut attack).await;
        attack.all_silent().await;
        let plain: Vec<Vec<u8>> =
            [TaskKind::Train, TaskKind::Evaluate].into_iter().flat_map(|kind| attack.plain(kind)).collect();
        let (view, vectors) = seen(&attack);
        for (place, chunk) in &vectors {
            assert!(!plain.iter().any(|p| p == chunk), "chunk {place:?} is plain");
            assert!(chunk.len() < 4096 || is_noise(chunk), "chunk {place:?}: {:?}", scores(chunk));
        }
        seen_by_hub.push((view, vectors));
        for agent in attack.agents {
            agent.kill().await;
        }
    }
    let [(view, vectors), (other_view, other_vectors)] = &seen_by_hub[..] else { unreachable!() };
    assert_eq!(view, other_view, "what the hub sees depends on the victim's update");
    assert!(vectors.keys().eq(other_vectors.keys()));
    assert!(
        vectors.iter().all(|(place, chunk)| other_vectors[place] != chunk),
        "a masked vector that does not hold the update"
    );
}

/// Pearson's chi-square over equally likely bins, as its distance from the mean in standard deviations.
fn chi_square(counts: &[u64]) -> f64 {
    let expected = counts.iter().sum::<u64>() as f64 / counts.len() as f64;
    let chi: f64 = counts.iter().map(|c| (*c as f64 - expected).powi(2) / expected).sum();
    let freedom = counts.len() as f64 - 1.0;
    (chi - freedom) / (2.0 * freedom).sqrt()
}

/// Bytes, pairs of bytes that follow each other, and pairs at the distance of an element (the serial tests).
fn scores(bytes: &[u8]) -> [f64; 3] {
    let mut single = vec![0u64; 256];
    bytes.iter().for_each(|b| single[usize::from(*b)] += 1);
    let serial = |distance: usize| {
        let mut pairs = vec![0u64; 1 << 16];
        let each = bytes.chunks_exact(2 * distance);
        each.for_each(|c| pairs[usize::from(c[0]) << 8 | usize::from(c[distance])] += 1);
        chi_square(&pairs)
    };
    [chi_square(&single), serial(1), serial(4)]
}

/// Five standard deviations: a false alarm in a million for randomness that is drawn once.
fn is_noise(bytes: &[u8]) -> bool {
    scores(bytes).iter().all(|z| z.abs() < 5.0)
}

/// The control for all of these tests: what they compare would show an update that is not masked.
#[test]
fn a_plain_vector_is_no_noise() {
    for variant in [0, 1] {
        let body = &vector(0, TaskKind::Train, variant).0[1];
        assert!(body.len() >= 4096 && scores(body).iter().all(|z| *z > 100.0), "{:?}", scores(body));
    }
    for kind in [TaskKind::Train, TaskKind::Evaluate] {
        let (one, other) = (vector(0, kind, 0).0, vector(0, kind, 1).0);
        assert!(one.iter().zip(&other).all(|(one, other)| one != other));
    }
}
