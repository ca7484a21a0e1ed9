//! Models and uploads for the benches: made chunk by chunk, so that making them needs no memory either.

use bytes::Bytes;
use consilium_federation::model::{CHUNK_BYTES, CHUNK_ELEMENTS, ModelManifest, Tensor, TensorSchema};
use consilium_federation::strategy::Rule;
use consilium_federation::{Digest, SiteName};
use consilium_operator::aggregation::{Subject, SumJob};
use consilium_operator::store::{BlobStore, UploadKey};
use consilium_secagg::ring::{RingParams, encode_head};
use consilium_secagg::sum::to_bytes;
use consilium_secagg::upload::chunk_digest;
use consilium_secagg::weight::Weight;

pub(crate) const ROUND: &str = "bench-round";
const CLIP: f64 = 10.0;

/// `sites` hospitals of a model with `parameters` parameters.
#[derive(Clone, Copy, Debug, serde::Serialize, serde::Deserialize)]
pub(crate) struct Shape {
    pub(crate) sites: usize,
    pub(crate) parameters: usize,
}

impl Shape {
    pub(crate) fn bytes(&self) -> usize {
        self.sites * self.parameters * 4
    }

    pub(crate) fn names(&self) -> Vec<SiteName> {
        (0..self.sites).map(|n| format!("site-{n:03}").parse().expect("a label")).collect()
    }

    pub(crate) fn job(&self, base_model: Digest) -> SumJob {
        let (round_uid, contributors) = (ROUND.to_owned(), self.names());
        let (subject, roster_size) =
            (Subject::Updates { base_model, clip: CLIP, rule: Rule::Average, moments: vec![] }, self.sites as u32);
        SumJob { round_uid, attempt: 1, contributors, subject, roster_size, masks: None }
    }

    pub(crate) fn key(&self, site: &SiteName) -> UploadKey {
        UploadKey { round_uid: ROUND.into(), attempt: 1, site: site.clone() }
    }

    pub(crate) fn chunks(&self) -> u32 {
        1 + self.parameters.div_ceil(CHUNK_ELEMENTS) as u32
    }

    fn body(&self, chunk: u32) -> usize {
        (self.parameters - (chunk as usize - 1) * CHUNK_ELEMENTS).min(CHUNK_ELEMENTS)
    }

    /// One chunk of hospital `site`: the head with weight one, then small ring elements.
    pub(crate) fn chunk(&self, site: usize, chunk: u32) -> Bytes {
        if chunk == 0 {
            let mut head = vec![0; 16];
            let ring = RingParams::new(self.sites, CLIP).expect("a roster");
            encode_head(&ring, Weight::EQUAL, &[], &mut head).expect("a head");
            return to_bytes(&head).into();
        }
        let mut state = ((site as u32) << 16) | chunk;
        let next = |_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            state >> 20
        };
        to_bytes(&(0..self.body(chunk)).map(next).collect::<Vec<u32>>()).into()
    }

    /// Stores a base model of zeros and ones; its digest.
    pub(crate) async fn base(&self, store: &BlobStore) -> Digest {
        let mut chunks = Vec::new();
        for chunk in 1..self.chunks() {
            let mut bytes = Vec::with_capacity(CHUNK_BYTES);
            (0..self.body(chunk)).for_each(|i| bytes.extend(((i as u32 ^ chunk) as f32 * 1e-6).to_le_bytes()));
            chunks.push(store.put_object(bytes.into()).await.expect("stored"));
        }
        let schema = TensorSchema(vec![Tensor { name: "w".into(), shape: vec![self.parameters as u64] }]);
        let manifest = ModelManifest::new(schema, chunks).expect("a model");
        store.put_object(manifest.to_bytes().into()).await.expect("stored")
    }

    /// Stores every hospital's upload.
    pub(crate) async fn store_all(&self, store: &BlobStore) {
        for (site, name) in self.names().iter().enumerate() {
            let digests: Vec<_> = (0..self.chunks()).map(|c| chunk_digest(&self.chunk(site, c))).collect();
            let key = self.key(name);
            for index in store.begin_upload(&key, &digests, 0).await.expect("begun") {
                store.put_chunk(&key, index, self.chunk(site, index)).await.expect("stored");
            }
        }
    }
}
