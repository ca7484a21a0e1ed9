//! The hub: the operator's program with a volume, an identity and the API server.

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use consilium_federation::Digest;
use consilium_federation::model::{CHUNK_ELEMENTS, ModelManifest, Tensor, TensorSchema};
use consilium_operator::store::BlobStore;
use xtask::federation::pki::Pair;

const IMAGE: &str = "registry.example/agent@sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";

/// A child process that is ended when this goes.
pub(crate) struct Process(pub Child);

impl Process {
    /// The most memory that it ever held, MB.
    pub(crate) fn peak_mb(&self) -> f64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.0.id())).expect("it runs");
        let line = status.lines().find(|line| line.starts_with("VmHWM:")).expect("VmHWM");
        let kib: f64 = line.split_whitespace().nth(1).and_then(|n| n.parse().ok()).expect("a number");
        kib * 1024.0 / 1e6
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Writes a pair and the authority of the other side, as a TLS Secret is mounted.
pub(crate) fn tls_folder(folder: &Path, pair: &Pair, authority: &str) {
    fs::create_dir_all(folder).expect("a folder");
    for (name, text) in [("tls.crt", pair.certificate.as_str()), ("tls.key", &pair.key), ("ca.crt", authority)] {
        fs::write(folder.join(name), text).expect("written");
    }
}

/// Stores a model of zeros, whose chunks are all alike but the last.
pub(crate) async fn store_model(folder: &Path, parameters: usize) -> ModelManifest {
    let store = BlobStore::open(folder).await.expect("a store");
    let mut chunks: Vec<Digest> = Vec::new();
    for begin in (0..parameters).step_by(CHUNK_ELEMENTS) {
        let bytes = vec![0u8; 4 * CHUNK_ELEMENTS.min(parameters - begin)];
        chunks.push(store.put_object(Bytes::from(bytes)).await.expect("stored"));
    }
    let schema = TensorSchema(vec![Tensor { name: "w".into(), shape: vec![parameters as u64] }]);
    let manifest = ModelManifest::new(schema, chunks).expect("a model");
    store.put_object(manifest.to_bytes().into()).await.expect("stored");
    manifest
}

/// Seed of the hub's key.
pub(crate) const KEY: [u8; 32] = [5; 32];

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a port").port()
}

/// Starts the operator; answers it and its gateway's port.
pub(crate) fn start(folder: &Path, kubeconfig: &str) -> (Process, u16) {
    let program = std::env::var("CONSILIUM_OPERATOR").expect("`cargo xtask bench round` says where the operator is");
    let key = folder.join("hub-key");
    fs::write(&key, BASE64.encode(KEY)).expect("written");
    let [gateway, tasks, admin] = [free_port(), free_port(), free_port()];
    let at = |port: u16| format!("127.0.0.1:{port}");
    let log = fs::File::create(folder.join("hub.log")).expect("a log");
    let child = Command::new(program)
        .args(["--gateway-listen", &at(gateway), "--tasks-listen", &at(tasks), "--admin-listen", &at(admin)])
        .args([
            "--task-address",
            &format!("https://{}", at(tasks)),
            "--courier-image",
            IMAGE,
            "--log",
            &std::env::var("RUST_LOG").unwrap_or_else(|_| "warn".to_owned()),
        ])
        .arg("--store")
        .arg(folder.join("store"))
        .arg("--gateway-tls")
        .arg(folder.join("gateway-tls"))
        .arg("--hub-key")
        .arg(key)
        .env("KUBECONFIG", kubeconfig)
        .stdin(Stdio::null())
        .stdout(log)
        .spawn()
        .expect("the operator starts");
    (Process(child), gateway)
}
