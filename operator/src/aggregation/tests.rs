use std::io::Read;

use bytes::Bytes;
use consilium_federation::model::{CHUNK_ELEMENTS, Tensor, TensorSchema};
use consilium_federation::strategy::{Adaptive, Momentum, Second};
use consilium_secagg::ring::encode_head;
use consilium_secagg::sum::to_bytes;
use consilium_secagg::upload::chunk_digest;
use consilium_secagg::weight::Weight;

use super::sum::Summer;
use super::*;
use crate::store::StoreError;

const CLIP: f64 = 10.0;
const ROSTER: u32 = 4;
/// Two body chunks, the second one short.
const BODY: usize = CHUNK_ELEMENTS + 1000;

/// Numbers in (-1, 1) that are the same in every run.
fn noise(seed: u64, n: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u32 << 23) as f32 - 1.0
    };
    (0..n).map(|_| next()).collect()
}

fn floats(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

struct Case {
    folder: tempfile::TempDir,
    store: BlobStore,
    job: SumJob,
    base: Vec<f32>,
    updates: Vec<(Weight, Vec<f32>)>,
}

impl Case {
    /// Three hospitals of a roster of four; `scale` stretches their updates (norm about 600 at 1.0).
    async fn new(scale: f32) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = BlobStore::open(folder.path()).await.unwrap();
        let base = noise(7, BODY);
        let mut chunks = Vec::new();
        for part in floats(&base).chunks(4 << 20) {
            chunks.push(store.put_object(Bytes::copy_from_slice(part)).await.unwrap());
        }
        let schema = TensorSchema(vec![Tensor { name: "w".into(), shape: vec![BODY as u64] }]);
        let manifest = ModelManifest::new(schema, chunks).unwrap();
        let base_model = store.put_object(manifest.to_bytes().into()).await.unwrap();
        let contributors: Vec<SiteName> = ["alder", "birch", "cedar"].map(|n| n.parse().unwrap()).into();
        let subject = Subject::Updates { base_model, clip: CLIP, rule: Rule::Average, moments: vec![] };
        let (round_uid, attempt) = ("r-1".into(), 1);
        let job = SumJob { round_uid, attempt, contributors, subject, roster_size: ROSTER, masks: None };
        let updates = [(1, 1 << 20), (2, 1 << 19), (3, 12_345)].map(|(seed, units)| {
            let update = noise(seed, BODY).into_iter().map(|v| v * scale).collect();
            (Weight::from_units(units).unwrap(), update)
        });
        let case = Self { folder, store, job, base, updates: updates.into() };
        for (site, (weight, update)) in case.job.contributors.iter().zip(&case.updates) {
            case.upload(site, *weight, update).await;
        }
        case
    }

    async fn upload(&self, site: &SiteName, weight: Weight, update: &[f32]) {
        let ring = RingParams::new(ROSTER as usize, CLIP).unwrap();
        let mut head = vec![0; 16];
        encode_head(&ring, weight, &[], &mut head).unwrap();
        let mut body = vec![0; update.len()];
        ring.encode(weight, update, &mut body).unwrap();
        let chunks: Vec<Vec<u8>> =
            std::iter::once(&head[..]).chain(body.chunks(CHUNK_ELEMENTS)).map(to_bytes).collect();
        let key = UploadKey { round_uid: "r-1".into(), attempt: 1, site: site.clone() };
        let digests: Vec<_> = chunks.iter().map(|c| chunk_digest(c)).collect();
        for index in self.store.begin_upload(&key, &digests, 1 << 22).await.unwrap() {
            self.store.put_chunk(&key, index, chunks[index as usize].clone().into()).await.unwrap();
        }
    }

    fn base_model(&self) -> Digest {
        match &self.job.subject {
            Subject::Updates { base_model, .. } => *base_model,
            Subject::Evaluation => panic!("the case sums updates"),
        }
    }

    async fn model(&self, sum: Summed) -> Vec<f32> {
        let Summed::Model(NewModel { model, .. }) = sum else { panic!("{sum:?} is no model") };
        let manifest = self.store.get_manifest(model).await.unwrap();
        let mut values = Vec::new();
        for (index, chunk) in manifest.chunks.iter().enumerate() {
            let bytes = self.store.get_object(*chunk).await.unwrap();
            manifest.verify_chunk(index, &bytes).unwrap();
            values.extend(bytes.chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())));
        }
        values
    }

    /// The file of one chunk of one hospital.
    fn chunk_file(&self, site: &str, chunk: u32) -> std::path::PathBuf {
        let folder = self.folder.path().join("rounds/r-1/1/upload").join(site);
        let manifest = std::fs::read_dir(folder).unwrap().flatten().find(|e| e.path().is_dir()).unwrap();
        manifest.path().join(chunk.to_string())
    }
}

const SMALL: f32 = 0.01;

/// What a researcher gets must be the weighted mean of what the hospitals trained, within the bound that is promised.
#[tokio::test(flavor = "multi_thread")]
async fn the_new_model_is_base_plus_the_plain_weighted_mean() {
    let case = Case::new(SMALL).await;
    let new = case.model(aggregate(&case.store, &case.job).await.unwrap()).await;
    assert_eq!(new.len(), BODY);
    let total: f64 = case.updates.iter().map(|(w, _)| w.as_f64()).sum();
    let units = case.updates.iter().map(|(w, _)| u64::from(w.units())).sum();
    let bound = RingParams::new(ROSTER as usize, CLIP).unwrap().mean_error_bound(3, units);
    let mut worst = 0f64;
    for (i, (new, base)) in new.iter().zip(&case.base).enumerate() {
        let mean = case.updates.iter().map(|(w, u)| w.as_f64() * f64::from(u[i])).sum::<f64>() / total;
        let expected = f64::from(*base) + mean;
        // Twice the rounding of f32: of the mean, and of the addition.
        let allowed = bound + f64::from(f32::EPSILON) * (mean.abs() + expected.abs());
        assert!((f64::from(*new) - expected).abs() <= allowed, "parameter {i}");
        worst = worst.max(mean.abs());
    }
    assert!(worst > 1e3 * bound, "the updates must be large enough for the test to mean anything");
}

/// A hub that is killed after the sum and before it is written down must name the same model again.
#[tokio::test(flavor = "multi_thread")]
async fn computed_again_it_is_the_same_model() {
    let case = Case::new(SMALL).await;
    let first = aggregate(&case.store, &case.job).await.unwrap();
    assert_eq!(aggregate(&case.store, &case.job).await.unwrap(), first);
    let mut other = case.job.clone();
    other.contributors.reverse();
    let store = BlobStore::open(case.folder.path()).await.unwrap();
    assert_eq!(aggregate(&store, &other).await.unwrap(), first);
    other.contributors.pop();
    assert_ne!(aggregate(&store, &other).await.unwrap(), first, "who contributed must matter");
}

/// What the server remembers is as durable as the model: a hub that is killed in a round of FedAdam, or computes it again
/// from what lies in the store, must name the same moments, and the next round must go on from them and not anew.
#[tokio::test(flavor = "multi_thread")]
async fn a_rule_goes_on_from_what_it_remembers() {
    let case = Case::new(SMALL).await;
    let adaptive = Adaptive { rate: 0.01, beta1: 0.9, beta2: 0.99, tau: 1e-3, second: Second::Yogi };
    let rules = [Rule::Momentum(Momentum { rate: 0.5, beta: 0.9 }), Rule::Adaptive(adaptive)];
    let mean: Vec<f32> = {
        let new = case.model(aggregate(&case.store, &case.job).await.unwrap()).await;
        new.iter().zip(&case.base).map(|(new, base)| new - base).collect()
    };
    for rule in rules {
        let (mut model, mut moments) = (NewModel::from(case.base_model()), vec![vec![0.0; BODY]; rule.moments()]);
        let mut expected = case.base.clone();
        for round in 1..=2 {
            let (base_model, known) = (model.model, model.moments.clone());
            let subject = Subject::Updates { base_model, clip: CLIP, rule, moments: known };
            let job = SumJob { subject, ..case.job.clone() };
            let Summed::Model(new) = aggregate(&case.store, &job).await.unwrap() else { panic!("no model") };
            let store = BlobStore::open(case.folder.path()).await.unwrap();
            assert_eq!(aggregate(&store, &job).await.unwrap(), Summed::Model(new.clone()), "round {round}");
            assert_eq!(new.moments.len(), rule.moments());
            let mut step = mean.clone();
            rule.advance(&mut step, &mut moments);
            expected.iter_mut().zip(&step).for_each(|(w, step)| *w += step);
            let found = case.model(Summed::Model(new.clone())).await;
            let off = found.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            // The mean above is a difference of 32-bit numbers, and the adaptive rule divides by its size.
            assert!(off < 1e-4, "round {round} of {rule:?}: off by {off}");
            model = new;
        }
        let fresh = Subject::Updates { base_model: model.model, clip: CLIP, rule, moments: vec![] };
        let kept = Subject::Updates { base_model: model.model, clip: CLIP, rule, moments: model.moments.clone() };
        let with = async |subject| aggregate(&case.store, &SumJob { subject, ..case.job.clone() }).await.unwrap();
        assert_ne!(with(fresh).await, with(kept).await, "what is remembered must matter");
    }
}

/// A damaged volume must not move the model by what another one's rule remembers.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_remembered_is_checked_like_the_model() {
    let case = Case::new(SMALL).await;
    let rule = Rule::Momentum(Momentum { rate: 1.0, beta: 0.9 });
    let with = async |moments| {
        let subject = Subject::Updates { base_model: case.base_model(), clip: CLIP, rule, moments };
        aggregate(&case.store, &SumJob { subject, ..case.job.clone() }).await
    };
    let Summed::Model(new) = with(vec![]).await.unwrap() else { panic!("no model") };
    let small = TensorSchema(vec![Tensor { name: "w".into(), shape: vec![4] }]);
    let chunk = case.store.put_object(Bytes::from_static(&[0; 16])).await.unwrap();
    let other = case.store.put_model(&ModelManifest::new(small, vec![chunk]).unwrap()).await.unwrap();
    let error = with(vec![other]).await.unwrap_err();
    assert!(matches!(error, AggregateError::OtherMoment(found) if found == other) && !error.is_transient(), "{error}");

    let hex = case.store.get_manifest(new.moments[0]).await.unwrap().chunks[1].hex();
    let file = case.folder.path().join(format!("objects/{}/{hex}", &hex[..2]));
    let mut bytes = std::fs::read(&file).unwrap();
    bytes[17] ^= 1;
    std::fs::write(&file, bytes).unwrap();
    let error = with(new.moments.clone()).await.unwrap_err();
    assert!(matches!(error, AggregateError::Moment { chunk: 1, .. }) && !error.is_transient(), "{error}");
}

/// An administrator must learn whose chunk it was, and a damaged one must not reach the model.
#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_chunk_is_refused_by_hospital_and_number() {
    let case = Case::new(SMALL).await;
    let file = case.chunk_file("birch", 2);
    let whole = std::fs::read(&file).unwrap();
    let spoilt: [(&str, Vec<u8>); 3] = [
        ("digest", whole.iter().enumerate().map(|(i, b)| b ^ u8::from(i == 3000)).collect()),
        ("bytes", whole[..3000].to_vec()),
        ("bytes", [&whole[..], &[0]].concat()),
    ];
    for (word, bytes) in spoilt {
        std::fs::write(&file, bytes).unwrap();
        let error = aggregate(&case.store, &case.job).await.unwrap_err();
        let text = error.to_string();
        assert!(text.contains("chunk 2 of birch") && text.contains(word), "{text}");
        assert!(!error.is_transient(), "the attempt must be burned, not tried for ever");
    }
    std::fs::remove_file(&file).unwrap();
    let text = aggregate(&case.store, &case.job).await.unwrap_err().to_string();
    assert!(text.contains("chunk 2 of birch") && text.contains("no longer"), "{text}");
    std::fs::write(&file, &whole).unwrap();
    aggregate(&case.store, &case.job).await.unwrap();
}

/// A model must not be built on a damaged one.
#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_base_model_is_refused_by_chunk() {
    let case = Case::new(SMALL).await;
    let hex = case.store.get_manifest(case.base_model()).await.unwrap().chunks[1].hex();
    let file = case.folder.path().join(format!("objects/{}/{hex}", &hex[..2]));
    let mut bytes = std::fs::read(&file).unwrap();
    bytes[17] ^= 1;
    std::fs::write(&file, bytes).unwrap();
    let error = aggregate(&case.store, &case.job).await.unwrap_err();
    assert!(matches!(error, AggregateError::Base { chunk: 1, .. }) && !error.is_transient(), "{error}");
}

/// One hospital that does not clip could replace the model; the sum alone shows it.
#[tokio::test(flavor = "multi_thread")]
async fn a_mean_longer_than_the_clip_norm_is_refused() {
    let case = Case::new(0.1).await;
    let error = aggregate(&case.store, &case.job).await.unwrap_err();
    assert!(matches!(error, AggregateError::Norm { norm, .. } if norm > CLIP), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_that_make_no_sense_are_refused() {
    let case = Case::new(SMALL).await;
    let with = |edit: fn(&mut SumJob)| {
        let (store, mut job) = (case.store.clone(), case.job.clone());
        edit(&mut job);
        async move { aggregate(&store, &job).await.unwrap_err() }
    };
    assert!(matches!(with(|j| j.contributors.clear()).await, AggregateError::Contributors { found: 0, .. }));
    assert!(matches!(with(|j| j.roster_size = 2).await, AggregateError::Contributors { .. }));
    let twice = with(|j| j.contributors[1] = j.contributors[0].clone()).await;
    assert!(matches!(twice, AggregateError::Contributors { found: 3, .. }));
    assert!(matches!(with(|j| j.attempt = 2).await, AggregateError::Store(StoreError::NotBegun { .. })));
    assert!(matches!(
        with(|j| j.subject =
            Subject::Updates { base_model: base_of(j), clip: -1.0, rule: Rule::Average, moments: vec![] })
        .await,
        AggregateError::Ring(_)
    ));
}

fn base_of(job: &SumJob) -> Digest {
    match &job.subject {
        Subject::Updates { base_model, .. } => *base_model,
        Subject::Evaluation => panic!("the case sums updates"),
    }
}

/// The gate's figure must be the mean over all cases, not over hospitals, and come from one sum alone.
#[tokio::test(flavor = "multi_thread")]
async fn an_evaluation_sums_to_all_cases_and_their_dice() {
    let folder = tempfile::tempdir().unwrap();
    let store = BlobStore::open(folder.path()).await.unwrap();
    let ring = RingParams::new(ROSTER as usize, EVALUATION_CLIP).unwrap();
    let scores = [("alder", 14u64, 0.9f32), ("birch", 13, 0.8), ("cedar", 3, 0.5)];
    for (site, cases, dice) in scores {
        let weight = Weight::from_examples(cases, EXAMPLES_CAP, 1).unwrap();
        let (mut head, mut body) = (vec![0; 16], vec![0; 1]);
        encode_head(&ring, weight, &[], &mut head).unwrap();
        ring.encode(weight, &[dice], &mut body).unwrap();
        let chunks = [to_bytes(&head), to_bytes(&body)];
        let key = UploadKey { round_uid: "r-1".into(), attempt: 2, site: site.parse().unwrap() };
        store.begin_upload(&key, &[chunk_digest(&chunks[0]), chunk_digest(&chunks[1])], 128).await.unwrap();
        for (index, chunk) in (0..).zip(chunks) {
            store.put_chunk(&key, index, chunk.into()).await.unwrap();
        }
    }
    let contributors = scores.map(|(site, ..)| site.parse().unwrap()).into();
    let (round_uid, subject) = ("r-1".into(), Subject::Evaluation);
    let job = SumJob { round_uid, attempt: 2, contributors, subject, roster_size: ROSTER, masks: None };
    let Summed::Cases(sums) = aggregate(&store, &job).await.unwrap() else { panic!("no cases") };
    let expected: f64 = scores.iter().map(|(_, n, dice)| *n as f64 * f64::from(*dice)).sum();
    assert_eq!(sums.cases, 30);
    assert!((sums.dice - expected).abs() < 1e-3, "{} {expected}", sums.dice);
}

/// Bytes that never exist as a whole, and how they were asked for.
struct Counting {
    left: usize,
    largest: usize,
    read: usize,
}

impl Read for Counting {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let n = buffer.len().min(self.left);
        buffer[..n].fill(1);
        self.left -= n;
        self.read += n;
        self.largest = self.largest.max(n);
        Ok(n)
    }
}

/// The hub's memory must not grow with the number of hospitals: a chunk is read once, in small pieces.
#[test]
fn a_chunk_is_read_once_and_never_held() {
    const BYTES: usize = CHUNK_ELEMENTS * 4;
    let digest = chunk_digest(&vec![1; BYTES]);
    let mut summer = Summer::new();
    summer.start(CHUNK_ELEMENTS);
    for site in 1..=200u32 {
        let mut chunk = Counting { left: BYTES, largest: 0, read: 0 };
        summer.add(&mut chunk, digest).unwrap();
        assert_eq!(chunk.read, BYTES, "site {site}");
        assert!(chunk.largest <= 128 << 10, "site {site} was read in pieces of {}", chunk.largest);
    }
    assert!(summer.sum().iter().all(|&v| v == 0x0101_0101u32.wrapping_mul(200)));
    assert_eq!(summer.sum().len(), CHUNK_ELEMENTS);
}
