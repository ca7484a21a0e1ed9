//! Brings a safetensors file to a hub and takes it home again, through a real door: for the checks of what others make of
//! such a file (`cargo xtask test --only clients`). The release beside the first gives its config.

use std::path::Path;
use std::sync::Arc;

use consilium_cli::model::{self, beside, door::Door};
use consilium_crds::ModelRelease;
use consilium_federation::Digest;
use consilium_operator::models::{Act, Cluster, Denied, Who, serve};
use consilium_operator::store::BlobStore;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

struct Everybody(std::sync::Mutex<Option<Digest>>);

#[tonic::async_trait]
impl Cluster for Everybody {
    async fn admit(&self, _: &str, _: &Act) -> Result<Who, Denied> {
        Ok(Who("everybody".into()))
    }

    fn release(&self, _: &str, _: &str) -> Result<Digest, Denied> {
        self.0.lock().ok().and_then(|known| *known).ok_or(Denied::Unknown)
    }

    async fn record(&self, _: &Who, _: &Act, model: Digest) {
        if let Ok(mut known) = self.0.lock() {
            *known = Some(model);
        }
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [from, out] = arguments.as_slice() else {
        return Err("usage: take_home MODEL.safetensors OUT.safetensors".into());
    };
    let folder = std::path::PathBuf::from(format!("{out}.store"));
    let store = BlobStore::open(&folder).await?;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let door = Door { address: listener.local_addr()?.to_string(), token: "any".into() };
    tokio::spawn(serve(listener, store, Arc::new(Everybody(Default::default())), CancellationToken::new()));
    let model = door.push("research", Path::new(from)).await?;
    let made: Value = serde_json::from_slice(&std::fs::read(Path::new(from).with_file_name("release.json"))?)?;
    let mut release = ModelRelease::new(
        "phantoms-r1",
        serde_json::from_value(json!({
            "study": "research/phantoms", "studyUID": "u", "round": 1, "model": model, "specDigest": model, "baseModel": model,
            "trainerImage": "registry.example/trainer", "config": made["config"], "contributors": ["alder"], "dice": "0.5",
            "evidence": [], "attestation": {"keyID": "", "signature": ""},
        }))?,
    );
    release.metadata.namespace = Some("research".into());
    model::pull(&door, &release, Path::new(out)).await?;
    beside::write(Path::new(out), &release, None)?;
    std::fs::remove_dir_all(folder)?;
    println!("{model}");
    Ok(())
}
