//! A model on its way home and back, over a real door on loopback: the store's chunks, HTTP, and a file at the end.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use consilium_cli::model::door::Door;
use consilium_cli::model::{self, ModelError, beside, file};
use consilium_crds::ModelRelease;
use consilium_federation::Digest;
use consilium_federation::model::{CHUNK_BYTES, ModelManifest, Tensor, TensorSchema};
use consilium_operator::models::{Act, Cluster, Denied, Who, serve};
use consilium_operator::store::BlobStore;
use safetensors::SafeTensors;
use serde_json::json;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// A cluster that lets everybody in who says `ten minutes`.
struct Open(Digest);

#[tonic::async_trait]
impl Cluster for Open {
    async fn admit(&self, token: &str, _: &Act) -> Result<Who, Denied> {
        let known = token == "ten minutes";
        known.then(|| Who("jane".into())).ok_or(Denied::Unknown)
    }

    fn release(&self, _: &str, _: &str) -> Result<Digest, Denied> {
        Ok(self.0)
    }

    async fn record(&self, _: &Who, _: &Act, _: Digest) {}
}

struct Rig {
    folder: TempDir,
    door: Door,
    release: ModelRelease,
    manifest: ModelManifest,
    payload: Vec<u8>,
}

/// A hub with a model of three chunks, and its release.
async fn rig() -> Rig {
    let folder = tempfile::tempdir().unwrap();
    let store = BlobStore::open(&folder.path().join("store")).await.unwrap();
    let payload: Vec<u8> = (0..2 * CHUNK_BYTES + 48).map(|i| (i % 241) as u8).collect();
    let mut chunks = Vec::new();
    for chunk in payload.chunks(CHUNK_BYTES) {
        chunks.push(store.put_object(chunk.to_vec().into()).await.unwrap());
    }
    let half = payload.len() as u64 / 8;
    let tensor = |name: &str, shape| Tensor { name: name.into(), shape };
    let schema = TensorSchema(vec![tensor("z.weight", vec![half]), tensor("a.bias", vec![2, half / 2])]);
    let manifest = ModelManifest::new(schema, chunks).unwrap();
    store.put_model(&manifest).await.unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let cluster = Arc::new(Open(manifest.digest()));
    tokio::spawn(serve(listener, store, cluster, CancellationToken::new()));
    let spec = serde_json::from_value(json!({
        "study": "research/hippocampus", "studyUID": "u", "round": 5, "model": manifest.digest(),
        "specDigest": Digest::of(b"s"), "baseModel": Digest::of(b"b"), "trainerImage": "r.example/t@sha256:0", "config": {},
        "contributors": ["alder"], "dice": "0.8312", "evidence": [], "attestation": {"keyID": "", "signature": ""},
    }));
    let mut release = ModelRelease::new("hippocampus-r5", spec.unwrap());
    release.metadata.namespace = Some("research".into());
    Rig { folder, door: Door { address, token: "ten minutes".into() }, release, manifest, payload }
}

impl Rig {
    fn out(&self) -> PathBuf {
        self.folder.path().join("home.safetensors")
    }

    fn part(&self) -> PathBuf {
        self.folder.path().join("home.safetensors.part")
    }

    fn object(&self, chunk: usize) -> PathBuf {
        let hex = self.manifest.chunks[chunk].hex();
        self.folder.path().join(format!("store/objects/{}/{hex}", &hex[..2]))
    }

    fn check(&self, file: &Path) {
        let bytes = fs::read(file).unwrap();
        let read = SafeTensors::deserialize(&bytes).unwrap();
        let half = self.payload.len() / 2;
        assert_eq!(read.tensor("z.weight").unwrap().data(), &self.payload[..half]);
        let bias = read.tensor("a.bias").unwrap();
        assert_eq!((bias.shape(), bias.data()), (&[2, half / 8][..], &self.payload[half..]));
        assert_eq!(file::digest(file).unwrap(), self.release.spec.model);
    }
}

/// What a researcher has at home is what the hospitals made, and opens in the library that everybody has.
#[tokio::test]
async fn a_pulled_model_is_the_models_numbers_in_a_safetensors_file() {
    let rig = rig().await;
    model::pull(&rig.door, &rig.release, &rig.out()).await.unwrap();
    rig.check(&rig.out());
    assert!(!rig.part().exists());
    let names = beside::write(&rig.out(), &rig.release, None).unwrap();
    assert_eq!(names, ["release.json", "card.md"].map(|ending| rig.folder.path().join(format!("home.{ending}"))));
    let kept: ModelRelease = serde_json::from_slice(&fs::read(&names[0]).unwrap()).unwrap();
    assert_eq!(kept.spec.digest(), rig.release.spec.digest());
    // A second pull does not write over it.
    let again = model::pull(&rig.door, &rig.release, &rig.out()).await.unwrap_err();
    assert!(again.to_string().contains("is there already"), "{again}");
}

/// A line that is cut at 90 % of 400 MB must not cost the whole again, and what was damaged on the disk meanwhile is fetched
/// anew. That the first chunk is not asked for again is shown by its not being there any more.
#[tokio::test]
async fn what_was_cut_off_goes_on_from_the_last_whole_chunk() {
    let rig = rig().await;
    let object = fs::read(rig.object(1)).unwrap();
    fs::write(rig.object(1), b"torn").unwrap();
    let cut = model::pull(&rig.door, &rig.release, &rig.out()).await.unwrap_err();
    assert!(matches!(cut, ModelError::Short { got: 1, of: 3 }), "{cut}");
    assert!(!rig.out().exists());
    fs::write(rig.object(1), object).unwrap();
    let mut part = fs::read(rig.part()).unwrap();
    part.extend([7; 100]);
    fs::write(rig.part(), part).unwrap();
    fs::remove_file(rig.object(0)).unwrap();
    model::pull(&rig.door, &rig.release, &rig.out()).await.unwrap();
    rig.check(&rig.out());
}

/// A hub, or whoever sits on the way, that gives another model than the release names must not get it into a file.
#[tokio::test]
async fn another_model_than_the_releases_is_not_written() {
    let mut rig = rig().await;
    rig.release.spec.model = Digest::of(b"another");
    let error = model::pull(&rig.door, &rig.release, &rig.out()).await.unwrap_err();
    assert!(matches!(error, ModelError::Other(_)) && !rig.part().exists(), "{error}");
    rig.door.token = "another".into();
    let error = model::pull(&rig.door, &rig.release, &rig.out()).await.unwrap_err().to_string();
    assert!(error.contains("401") && error.contains("consilium.health/models"), "{error}");
}

/// What was taken home can be brought back: it is the same model.
#[tokio::test]
async fn a_file_that_was_pulled_is_the_same_model_when_it_is_pushed() {
    let rig = rig().await;
    model::pull(&rig.door, &rig.release, &rig.out()).await.unwrap();
    assert_eq!(rig.door.push("research", &rig.out()).await.unwrap(), rig.release.spec.model);
    let not_one = rig.folder.path().join("notes.txt");
    fs::write(&not_one, b"not a model at all").unwrap();
    let error = rig.door.push("research", &not_one).await.unwrap_err().to_string();
    assert!(error.contains("422") && error.contains("safetensors"), "{error}");
    assert!(file::digest(&not_one).is_err());
    let mut bytes = fs::read(rig.out()).unwrap();
    bytes.push(0);
    fs::write(&not_one, bytes).unwrap();
    assert!(file::digest(&not_one).unwrap_err().to_string().contains("more follows"));
}
