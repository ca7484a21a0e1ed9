use std::sync::Mutex;

use axum::body::to_bytes;
use axum::http::Request;
use consilium_federation::model::{CHUNK_BYTES, Tensor, TensorSchema};
use tempfile::TempDir;
use tower::ServiceExt as _;

use super::*;

/// Lets `jane` pull, `push` push; all of them know one release.
struct Fake {
    model: Digest,
    recorded: Mutex<Vec<(Who, Act, Digest)>>,
}

#[tonic::async_trait]
impl Cluster for Fake {
    async fn admit(&self, token: &str, act: &Act) -> Result<Who, Denied> {
        match (token, act) {
            ("jane", Act::Pull { .. }) | ("pat", Act::Push { .. }) => Ok(Who(token.into())),
            ("jane" | "pat", _) => Err(Denied::Forbidden(format!("{token} may not"))),
            ("late", _) => Err(Denied::Passing("try again".into())),
            _ => Err(Denied::Unknown),
        }
    }

    fn release(&self, namespace: &str, name: &str) -> Result<Digest, Denied> {
        let known = (namespace, name) == ("research", "hippocampus-r5");
        known.then_some(self.model).ok_or_else(|| Denied::Release(format!("no {namespace}/{name}")))
    }

    async fn record(&self, who: &Who, act: &Act, model: Digest) {
        self.recorded.lock().unwrap().push((who.clone(), act.clone(), model));
    }
}

struct Rig {
    _folder: TempDir,
    store: BlobStore,
    cluster: Arc<Fake>,
    router: Router,
    manifest: ModelManifest,
    payload: Vec<u8>,
}

/// A store with a model of two chunks, the second of which is short.
async fn rig() -> Rig {
    let folder = tempfile::tempdir().unwrap();
    let store = BlobStore::open(folder.path()).await.unwrap();
    let payload: Vec<u8> = (0..CHUNK_BYTES + 12).map(|i| (i % 251) as u8).collect();
    let mut chunks = Vec::new();
    for chunk in payload.chunks(CHUNK_BYTES) {
        chunks.push(store.put_object(chunk.to_vec().into()).await.unwrap());
    }
    let schema = TensorSchema(vec![Tensor { name: "w".into(), shape: vec![payload.len() as u64 / 4] }]);
    let manifest = ModelManifest::new(schema, chunks).unwrap();
    store.put_model(&manifest).await.unwrap();
    let cluster = Arc::new(Fake { model: manifest.digest(), recorded: Mutex::default() });
    let router = router(store.clone(), cluster.clone());
    Rig { _folder: folder, store, cluster, router, manifest, payload }
}

impl Rig {
    async fn ask(&self, method: &str, path: &str, token: &str, body: Vec<u8>) -> Response {
        let request = Request::builder().method(method).uri(path).header("authorization", format!("Bearer {token}"));
        let request = request.header("content-length", body.len()).body(Body::from(body)).unwrap();
        self.router.clone().oneshot(request).await.unwrap()
    }

    async fn get(&self, path: &str, token: &str) -> Response {
        self.ask("GET", &format!("/v1/{path}"), token, Vec::new()).await
    }
}

async fn text(response: Response) -> (u16, String) {
    let status = response.status().as_u16();
    (status, String::from_utf8(to_bytes(response.into_body(), usize::MAX).await.unwrap().to_vec()).unwrap())
}

const PAYLOAD: &str = "research/releases/hippocampus-r5/payload";

/// A researcher takes a model home, and again from the middle when the line was cut; each time it is written down.
#[tokio::test]
async fn a_model_goes_out_whole_or_from_where_it_was_cut_off() {
    let rig = rig().await;
    let manifest = rig.get("research/releases/hippocampus-r5/manifest", "jane").await;
    let bytes = to_bytes(manifest.into_body(), 1 << 20).await.unwrap();
    assert_eq!(ModelManifest::parse(&bytes, rig.manifest.digest()).unwrap(), rig.manifest);
    for (query, from) in [("", 0), ("?from=1", CHUNK_BYTES), ("?from=2", rig.payload.len())] {
        let answer = rig.get(&format!("{PAYLOAD}{query}"), "jane").await;
        assert_eq!(to_bytes(answer.into_body(), usize::MAX).await.unwrap(), rig.payload[from..]);
    }
    assert_eq!(text(rig.get(&format!("{PAYLOAD}?from=3"), "jane").await).await.0, 416);
    let recorded = rig.cluster.recorded.lock().unwrap();
    let act = Act::Pull { namespace: "research".into(), release: "hippocampus-r5".into() };
    assert_eq!(*recorded, vec![(Who("jane".into()), act, rig.manifest.digest()); 3]);
}

/// Whoever can forward a port must still not get a model by it, nor learn which ones there are.
#[tokio::test]
async fn without_a_token_and_a_right_nothing_goes_out_or_in() {
    let rig = rig().await;
    for path in [PAYLOAD, "research/releases/hippocampus-r5/manifest", "research/releases/other/manifest"] {
        for (token, status) in [("", 401), ("stranger", 401), ("pat", 403), ("late", 503)] {
            assert_eq!(text(rig.get(path, token).await).await.0, status, "{path} {token:?}");
        }
    }
    let bare = Request::get(format!("/v1/{PAYLOAD}")).body(Body::empty()).unwrap();
    assert_eq!(rig.router.clone().oneshot(bare).await.unwrap().status(), StatusCode::UNAUTHORIZED);
    let (status, why) = text(rig.get("research/releases/other/manifest", "jane").await).await;
    assert!(status == 404 && why.contains("research/other"), "{why}");
    assert_eq!(text(rig.ask("POST", "/v1/research/models", "jane", vec![1]).await).await.0, 403);
    assert!(rig.cluster.recorded.lock().unwrap().is_empty());
}

/// A laptop that went to sleep in the middle of each of a hundred downloads must cost the hub no more than four chunks.
#[tokio::test]
async fn only_so_many_are_on_their_way() {
    let rig = rig().await;
    let mut open = Vec::new();
    for _ in 0..MOVES {
        open.push(rig.get(PAYLOAD, "jane").await);
    }
    let busy = rig.get(PAYLOAD, "jane").await;
    assert!(busy.status() == StatusCode::SERVICE_UNAVAILABLE && busy.headers()[RETRY_AFTER] == "5");
    open.pop();
    assert_eq!(rig.get(PAYLOAD, "jane").await.status(), StatusCode::OK);
}

/// What a volume has damaged must not reach a researcher as a model.
#[tokio::test]
async fn a_damaged_chunk_ends_the_answer() {
    let rig = rig().await;
    let hex = rig.manifest.chunks[1].hex();
    std::fs::write(rig._folder.path().join(format!("objects/{}/{hex}", &hex[..2])), b"torn").unwrap();
    let answer = rig.get(PAYLOAD, "jane").await;
    assert!(to_bytes(answer.into_body(), usize::MAX).await.is_err());
}

/// A model that was trained elsewhere is a start for studies of the namespace that it was brought to, and of no other.
#[tokio::test]
async fn a_model_comes_in_for_one_namespace() {
    let rig = rig().await;
    let payload: Vec<u8> = [1.5_f32, -2.0].iter().flat_map(|v| v.to_le_bytes()).collect();
    let schema = TensorSchema(vec![Tensor { name: "w".into(), shape: vec![2] }]);
    let manifest = ModelManifest::new(schema, vec![Digest::of(&payload)]).unwrap();
    let file = [manifest.safetensors_header(), payload].concat();
    let (status, answer) = text(rig.ask("POST", "/v1/research/models", "pat", file.clone()).await).await;
    assert_eq!((status, answer), (200, serde_json::json!({"model": manifest.digest()}).to_string()));
    assert!(rig.store.is_from(manifest.digest(), "research").await.unwrap());
    assert!(!rig.store.is_from(manifest.digest(), "rivals").await.unwrap());
    let recorded = rig.cluster.recorded.lock().unwrap().clone();
    assert_eq!(recorded, [(Who("pat".into()), Act::Push { namespace: "research".into() }, manifest.digest())]);

    let (status, why) =
        text(rig.ask("POST", "/v1/research/models", "pat", b"a pickle, not a model".to_vec()).await).await;
    assert!(status == 422 && why.contains("safetensors"), "{why}");
    let cut = rig.ask("POST", "/v1/research/models", "pat", file[..file.len() - 4].to_vec()).await;
    assert_eq!(text(cut).await.0, 422);
    for (length, expected) in [(None, 411), (Some(u64::MAX), 413)] {
        let request = Request::post("/v1/research/models").header("authorization", "Bearer pat");
        let request = length.iter().fold(request, |request, length| request.header("content-length", *length));
        let answer = rig.router.clone().oneshot(request.body(Body::from(file.clone())).unwrap()).await.unwrap();
        assert_eq!(answer.status().as_u16(), expected);
    }
    assert!(!rig.store.is_from(rig.manifest.digest(), "research").await.unwrap(), "what was there is nobody's by that");
}
