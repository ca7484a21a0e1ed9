//! A release on disk through to an answer, and every way in which it may not be served. If one of these slipped, a
//! hospital would run a model that nobody signed.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a helper that fails is a test that fails")]

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::Command;

use axum::body::{Body, Bytes, to_bytes};
use axum::http::{Request, StatusCode};
use axum::{Router, response::Response};
use consilium_federation::digest::{Digest, canonical_json};
use consilium_federation::model::{CHUNK_BYTES, ModelManifest, parse_safetensors_header};
use consilium_imaging::input::Input;
use consilium_imaging::phantom::{Profile, phantom};
use consilium_imaging::torch::{Network, UNet3d, named_parameters, save_weights};
use consilium_inference::batcher::Batcher;
use consilium_inference::memory::{Bounds, MAX_HEAD, PER_BODY_BYTE};
use consilium_inference::metrics::Metrics;
use consilium_inference::protocol::{HEADER_LENGTH, Identity, ask, read_answer};
use consilium_inference::release::{Allowed, ReleaseError, load, verify};
use consilium_inference::room::Room;
use consilium_inference::server::{Served, router};
use flate2::Compression;
use flate2::write::{GzEncoder, ZlibEncoder};
use serde_json::{Value, json};
use tch::{Device, nn};
use tempfile::TempDir;
use tokio::sync::mpsc::{Sender, channel};
use tokio_stream::wrappers::ReceiverStream;
use tower::ServiceExt;

const NETWORK: Network = Network::UNet3D { width: 2, levels: 2, classes: 3, input: Input::PLAIN };

const BOUNDS: Bounds =
    Bounds { tile: [16, 16, 12], tiles: 2, max_voxels: 100_000, canvas_voxels: 100_000, room: 8 << 20, max_json: 1000 };

/// Writes a release as the agent hands it out.
fn release(dir: &Path) -> Allowed {
    tch::manual_seed(5);
    let store = nn::VarStore::new(Device::Cpu);
    let _net = UNet3d::new(&store.root(), NETWORK.unet()).unwrap();
    let file = dir.join("model.safetensors");
    save_weights(&named_parameters(&store), &file).unwrap();
    let bytes = fs::read(&file).unwrap();
    let (schema, payload) = parse_safetensors_header(&bytes).unwrap();
    let chunks = bytes[payload..].chunks(CHUNK_BYTES).map(Digest::of).collect();
    let manifest = ModelManifest::new(schema, chunks).unwrap();
    fs::write(dir.join("manifest.json"), manifest.to_bytes()).unwrap();
    let spec = json!({
        "study": "research/phantoms", "studyUID": "u", "round": 2, "model": manifest.digest(),
        "config": { "network": NETWORK, "shape": [16, 16, 12], "epochsPerRound": 1 }, "contributors": ["alder"],
    });
    write_release(dir, &spec, manifest.digest())
}

fn write_release(dir: &Path, spec: &Value, model: Digest) -> Allowed {
    let bytes = canonical_json(spec);
    fs::write(dir.join("release.json"), &bytes).unwrap();
    Allowed { root: dir.to_owned(), release: Digest::of(&bytes), model }
}

fn server(allowed: &Allowed) -> Router {
    let release = verify(allowed).unwrap();
    let segmenter = load(allowed, &release, Device::Cpu, 2).unwrap();
    let metrics = Metrics::new().unwrap();
    let batcher = Batcher::start(segmenter, 4, BOUNDS.canvas_voxels, metrics.clone()).unwrap();
    let digest = allowed.model.to_string();
    let frame = release.frame().unwrap();
    let identity = Identity { name: "phantoms-r2".into(), version: "v".into(), digest, frame };
    router(Served { identity, batcher, metrics, bounds: BOUNDS, room: Room::new(BOUNDS.room) })
}

/// A body whose length is not told, and its other end.
fn stream() -> (Sender<Result<Bytes, std::io::Error>>, Body) {
    let (sender, receiver) = channel(4);
    (sender, Body::from_stream(ReceiverStream::new(receiver)))
}

async fn get(router: &Router, path: &str) -> Response {
    router.clone().oneshot(Request::get(path).body(Body::empty()).unwrap()).await.unwrap()
}

async fn body(response: Response) -> Bytes {
    to_bytes(response.into_body(), usize::MAX).await.unwrap()
}

#[test]
fn a_whole_release_is_accepted_and_a_changed_one_is_not() {
    let dir = TempDir::new().unwrap();
    let allowed = release(dir.path());
    let found = verify(&allowed).unwrap();
    assert_eq!((found.round, found.tile().unwrap(), found.network()), (2, [16, 16, 12], &NETWORK));

    let other = Digest::of(b"another");
    let told = Allowed { release: other, ..allowed.clone() };
    assert!(matches!(verify(&told), Err(ReleaseError::WrongRelease { expected, .. }) if expected == other));
    let told = Allowed { model: other, ..allowed.clone() };
    assert!(matches!(verify(&told), Err(ReleaseError::WrongModel { expected, .. }) if expected == other));

    // One flipped bit in the last weight.
    let file = dir.path().join("model.safetensors");
    let good = fs::read(&file).unwrap();
    let mut bad = good.clone();
    *bad.last_mut().unwrap() ^= 1;
    fs::write(&file, &bad).unwrap();
    let message = verify(&allowed).unwrap_err().to_string();
    assert!(message.contains("model.safetensors") && message.contains("digest"), "{message}");

    // The same numbers under other names would be another network.
    let text = String::from_utf8_lossy(&good[8..]).into_owned();
    let end = 8 + text.find("}}").unwrap();
    let mut renamed = good.clone();
    let at = renamed[..end].windows(8).position(|w| w == b"encoder0").unwrap();
    renamed[at..at + 8].copy_from_slice(b"encoderX");
    fs::write(&file, &renamed).unwrap();
    assert!(verify(&allowed).unwrap_err().to_string().contains("tensors are not those of the manifest"));

    fs::remove_file(&file).unwrap();
    assert!(matches!(verify(&allowed), Err(ReleaseError::Unreadable { .. })));
}

#[test]
fn a_release_for_another_network_is_refused() {
    let dir = TempDir::new().unwrap();
    let allowed = release(dir.path());
    let mut spec: Value = serde_json::from_slice(&fs::read(dir.path().join("release.json")).unwrap()).unwrap();
    spec["config"]["network"]["width"] = json!(3);
    let told = write_release(dir.path(), &spec, allowed.model);
    let found = verify(&told).unwrap();
    assert!(load(&told, &found, Device::Cpu, 2).unwrap_err().to_string().contains("shape"));
    // What the network sees is part of it: a server that knows less than the release says would show it another scan.
    spec["config"]["network"]["width"] = json!(2);
    spec["config"]["network"]["input"] = json!({ "scaling": "Local", "sharpen": true });
    let told = write_release(dir.path(), &spec, allowed.model);
    assert!(verify(&told).unwrap_err().to_string().contains("sharpen"));
    spec["config"]["network"]["input"] = json!({ "scaling": "Local" });
    let told = write_release(dir.path(), &spec, allowed.model);
    assert!(load(&told, &verify(&told).unwrap(), Device::Cpu, 2).is_ok());
    spec["config"]["network"]["width"] = json!(0);
    let told = write_release(dir.path(), &spec, allowed.model);
    assert!(verify(&told).unwrap_err().to_string().contains("width"));
    // Served with a tile that it was not judged with, it would be another model.
    spec["config"] = json!({ "network": NETWORK });
    let told = write_release(dir.path(), &spec, allowed.model);
    assert!(verify(&told).unwrap_err().to_string().contains("shape"));
}

/// A request has no header of a scan: a client that is not told how the model wants it shows it a mirrored patient.
#[tokio::test]
async fn a_model_says_how_scans_have_to_lie() {
    let dir = TempDir::new().unwrap();
    let allowed = release(dir.path());
    let said = async |allowed: &Allowed| -> Value {
        let answer = body(get(&server(allowed), "/v2/models/phantoms-r2/config").await).await;
        serde_json::from_slice::<Value>(&answer).unwrap()["parameters"].clone()
    };
    assert_eq!(said(&allowed).await, json!({ "orientation": { "string_value": "RAS" } }));
    let mut spec: Value = serde_json::from_slice(&fs::read(dir.path().join("release.json")).unwrap()).unwrap();
    spec["output"] = json!({ "kind": "Segmentation", "classes": ["anterior", "posterior"], "orientation": "LPS",
        "spacing": ["1", "1.5", "2"] });
    let told = write_release(dir.path(), &spec, allowed.model);
    let expected = json!({ "orientation": { "string_value": "LPS" }, "spacing": { "string_value": "1 1.5 2" } });
    assert_eq!(said(&told).await, expected);
}

/// The pod must end with 42, so that the agent reports it once and does not restart it for ever.
#[test]
fn the_binary_exits_with_42_and_says_why() {
    let dir = TempDir::new().unwrap();
    let allowed = release(dir.path());
    let output = Command::new(env!("CARGO_BIN_EXE_consilium-inference"))
        .args(["serve", "--name", "m", "--listen", "127.0.0.1:0", "--root"])
        .arg(dir.path())
        .args(["--release-digest", &allowed.release.to_string()])
        .args(["--model-digest", &Digest::of(b"another").to_string()])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(42));
    assert!(String::from_utf8_lossy(&output.stderr).contains("nothing is served"));
}

#[tokio::test]
async fn health_metadata_and_names() {
    let dir = TempDir::new().unwrap();
    let router = server(&release(dir.path()));
    for path in [
        "/v2/models/phantoms-r2/stats",
        "/v2/models/stats",
        "/v2/models/phantoms-r2/versions/v/stats",
        "/v2/models/phantoms-r2/config",
        "/v2/models/phantoms-r2/versions/v/config",
        "/v2/repository/index",
        "/v2",
        "/v2/health/live",
        "/v2/health/ready",
        "/livez",
        "/readyz",
        "/v2/models/phantoms-r2/ready",
        "/v2/models/phantoms-r2/versions/v",
        "/v2/models/phantoms-r2/versions/v/ready",
    ] {
        assert_eq!(get(&router, path).await.status(), StatusCode::OK, "{path}");
    }
    let metadata: Value = serde_json::from_slice(&body(get(&router, "/v2/models/phantoms-r2").await).await).unwrap();
    assert_eq!(
        (&metadata["inputs"][0]["name"], &metadata["outputs"][0]["datatype"]),
        (&json!("volume"), &json!("UINT8"))
    );
    for path in [
        "/v2/models/other",
        "/v2/models/other/config",
        "/v2/models/phantoms-r2/versions/9",
        "/v2/models/phantoms-r2/versions/9/stats",
    ] {
        let response = get(&router, path).await;
        assert_eq!(response.status(), StatusCode::NOT_FOUND, "{path}");
        assert!(String::from_utf8_lossy(&body(response).await).contains("not served here"));
    }
}

#[tokio::test]
async fn a_scan_comes_back_as_a_mask_of_its_shape_and_is_counted() {
    let dir = TempDir::new().unwrap();
    let router = server(&release(dir.path()));
    let (volume, _) = phantom(1, 1, [19, 16, 11], &Profile::of_hospital(0));
    let (request, length) = ask(&volume);
    let post = |bytes: Vec<u8>, length: usize| {
        Request::post("/v2/models/phantoms-r2/infer").header(HEADER_LENGTH, length).body(Body::from(bytes)).unwrap()
    };
    // Four at once, so that some share a batch.
    let mut answers = Vec::new();
    for _ in 0..4 {
        answers.push(tokio::spawn(router.clone().oneshot(post(request.clone(), length))));
    }
    let mut masks = Vec::new();
    for answer in answers {
        let response = answer.await.unwrap().unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        let length = response.headers()[HEADER_LENGTH].to_str().unwrap().parse().ok();
        masks.push(read_answer(&body(response).await, length, &volume.grid).unwrap());
    }
    assert!(masks.iter().all(|mask| mask.labels.len() == volume.voxels.len()));

    let response = router.clone().oneshot(post(b"{}".to_vec(), 2)).await.unwrap();
    assert_eq!(response.status(), StatusCode::BAD_REQUEST);
    let text = String::from_utf8(body(get(&router, "/metrics").await).await.to_vec()).unwrap();
    for line in [
        "consilium_inference_requests_total{result=\"ok\"} 4",
        "consilium_inference_requests_total{result=\"invalid\"} 1",
        "consilium_inference_queued_requests 0",
    ] {
        assert!(text.contains(line), "{line} is not in {text}");
    }
}

/// A client reads `error` of whatever went wrong, and must not have to guess at an empty body.
#[tokio::test]
async fn every_error_has_a_message() {
    let dir = TempDir::new().unwrap();
    let router = server(&release(dir.path()));
    let infer = "/v2/models/phantoms-r2/infer";
    let long = || Body::from(vec![b' '; 1001]);
    let (sender, chunks) = stream();
    for _ in 0..3 {
        sender.try_send(Ok(Bytes::from(vec![b' '; 500]))).unwrap();
    }
    drop(sender);
    let cases = [
        (Request::get("/v3").body(Body::empty()), StatusCode::NOT_FOUND, "Not Found"),
        (Request::get(infer).body(Body::empty()), StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed"),
        (Request::get("/v2/models/%ff").body(Body::empty()), StatusCode::BAD_REQUEST, "Bad Request"),
        (Request::post(infer).body(long()), StatusCode::PAYLOAD_TOO_LARGE, "longer than the 1000 bytes"),
        (Request::post(infer).body(chunks), StatusCode::PAYLOAD_TOO_LARGE, "binary_data_size"),
        (Request::post(infer).header(HEADER_LENGTH, "x").body(long()), StatusCode::BAD_REQUEST, HEADER_LENGTH),
    ];
    for (request, status, part) in cases {
        let response = router.clone().oneshot(request.unwrap()).await.unwrap();
        assert_eq!(response.status(), status, "{part}");
        assert_eq!(response.headers()["content-type"], "application/json", "{part}");
        let found: Value = serde_json::from_slice(&body(response).await).unwrap();
        assert!(found["error"].as_str().unwrap().contains(part), "{found} lacks {part}");
    }
}

/// Were bodies read before it is known whether there is room, a hospital's workstations that all send at once would take
/// the server down for everybody.
#[tokio::test]
async fn no_body_is_read_that_there_is_no_room_for() {
    let dir = TempDir::new().unwrap();
    let router = server(&release(dir.path()));
    let largest = BOUNDS.max_voxels as u64 * 4 + MAX_HEAD;
    assert!(largest * PER_BODY_BYTE * 2 > BOUNDS.room, "two must not fit");
    let infer = || Request::post("/v2/models/phantoms-r2/infer").header(HEADER_LENGTH, "10");
    // No length is told and nothing comes: it holds room for the largest body.
    let (first, body_of_first) = stream();
    let waiting = tokio::spawn(router.clone().oneshot(infer().body(body_of_first).unwrap()));
    // One thread runs all of this, so that the other task comes to its wait for the body here.
    tokio::task::yield_now().await;
    let (second, body_of_second) = stream();
    // It is read to its end all the same, and nothing of it kept: clients listen only when they have sent all.
    second.try_send(Ok(Bytes::from(vec![0; 500]))).unwrap();
    drop(second);
    let response = router.clone().oneshot(infer().body(body_of_second).unwrap()).await.unwrap();
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(response.headers()["retry-after"], "5");
    assert!(String::from_utf8_lossy(&body(response).await).contains("memory"));
    // When the first goes away, its room is free again.
    drop(first);
    assert_eq!(waiting.await.unwrap().unwrap().status(), StatusCode::BAD_REQUEST);
    let text = String::from_utf8(body(get(&router, "/metrics").await).await.to_vec()).unwrap();
    assert!(text.contains("requests_total{result=\"overloaded\"} 1"), "{text}");
    let (volume, _) = phantom(1, 1, [16, 16, 12], &Profile::of_hospital(0));
    let (request, length) = ask(&volume);
    let post = Request::post("/v2/models/phantoms-r2/infer").header(HEADER_LENGTH, length);
    assert_eq!(router.oneshot(post.body(Body::from(request)).unwrap()).await.unwrap().status(), StatusCode::OK);
}

/// Clients compress bodies when they are told to, and what unfolds from them must be as bounded as what comes as it is.
#[tokio::test]
async fn compressed_bodies_are_answered_like_others() {
    let dir = TempDir::new().unwrap();
    let router = server(&release(dir.path()));
    let (volume, _) = phantom(1, 1, [16, 16, 12], &Profile::of_hospital(0));
    let (request, length) = ask(&volume);
    let post = |encoding: &str, body: Vec<u8>| {
        let post = Request::post("/v2/models/phantoms-r2/infer").header(HEADER_LENGTH, length);
        router.clone().oneshot(post.header("content-encoding", encoding).body(Body::from(body)).unwrap())
    };
    let gzip = |bytes: &[u8]| {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    };
    let mut deflate = ZlibEncoder::new(Vec::new(), Compression::fast());
    deflate.write_all(&request).unwrap();
    let plain = body(post("identity", request.clone()).await.unwrap()).await;
    for (encoding, sent) in [("gzip", gzip(&request)), ("deflate", deflate.finish().unwrap())] {
        let response = post(encoding, sent).await.unwrap();
        assert_eq!(response.status(), StatusCode::OK, "{encoding}");
        assert_eq!(body(response).await, plain, "{encoding}");
    }
    let bomb = gzip(&vec![0; 64 << 20]);
    for (encoding, sent, status, part) in [
        ("br", request.clone(), StatusCode::UNSUPPORTED_MEDIA_TYPE, "gzip, deflate"),
        ("gzip", request.clone(), StatusCode::BAD_REQUEST, "is no gzip"),
        ("gzip", gzip(&request)[..400].to_vec(), StatusCode::BAD_REQUEST, "too early"),
        ("gzip", bomb, StatusCode::PAYLOAD_TOO_LARGE, "inflated"),
    ] {
        let response = post(encoding, sent).await.unwrap();
        assert_eq!(response.status(), status, "{part}");
        assert_eq!(response.headers().contains_key("accept-encoding"), encoding == "br");
        let found: Value = serde_json::from_slice(&body(response).await).unwrap();
        assert!(found["error"].as_str().unwrap().contains(part), "{found} lacks {part}");
    }
    // Nothing of it is held for longer than its request.
    assert_eq!(post("gzip", gzip(&request)).await.unwrap().status(), StatusCode::OK);
    let told: Value = serde_json::from_slice(&body(get(&router, "/v2/models/phantoms-r2/stats").await).await).unwrap();
    let counted = &told["model_stats"][0];
    assert_eq!((&counted["inference_count"], &counted["inference_stats"]["fail"]["count"]), (&json!(4), &json!(4)));
    assert!(counted["last_inference"].as_u64().unwrap() > 0 && counted["execution_count"] == json!(4), "{told}");
}
