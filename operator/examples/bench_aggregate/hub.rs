//! The hub's process: gateway, store and sum of the operator, without Kubernetes.
//!
//! It prints its address, then for each line of its input the peak of its memory in kB, after summing if the line
//! says `sum`.

use std::io::BufRead;
use std::path::Path;
use std::sync::Arc;

use consilium_federation::assignment::{Item, ItemState, RoundWork, Work};
use consilium_federation::round::ProtocolStep;
use consilium_federation::task::TaskKind;
use consilium_federation::{Digest, StudyKey};
use consilium_operator::aggregation::aggregate;
use consilium_operator::gateway::{GatewayTls, serve};
use consilium_operator::hub::Hub;
use consilium_operator::metrics::Metrics;
use consilium_operator::store::BlobStore;
use ed25519_dalek::SigningKey;
use jiff::Timestamp;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::uploads::{ROUND, Shape};

fn item(base: Digest, shape: Shape) -> Item {
    let work = RoundWork {
        study: StudyKey::new("bench", "bench"),
        study_uid: "bench".into(),
        spec_digest: base,
        round: 1,
        kind: TaskKind::Train,
        model: base,
        schema: base,
        roster_size: shape.sites as u32,
        attempt: 1,
        step: Some(ProtocolStep::Upload),
        roster: None,
        inputs: None,
        deadline: Timestamp::MAX,
    };
    Item { uid: ROUND.into(), state: ItemState::Active, work: Work::Round(work) }
}

/// `VmHWM` of this process, kB.
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux");
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).expect("VmHWM");
    line.split_whitespace().nth(1).and_then(|n| n.parse().ok()).expect("a number")
}

#[tokio::main]
async fn main_of(folder: &Path) {
    let shape = std::fs::read_to_string(folder.join("shape.json")).expect("shape.json");
    let shape: Shape = serde_json::from_str(&shape).expect("a shape");
    let store = BlobStore::open(&folder.join("store")).await.expect("a store");
    let base = shape.base(&store).await;
    let metrics = Metrics::new();
    let hub = Hub::new(
        store.clone(),
        store.next_boot().await.expect("a boot"),
        metrics.clone(),
        SigningKey::from_bytes(&[5; 32]),
    );
    hub.set_accepted(shape.names().into_iter().collect());
    for name in shape.names() {
        hub.publish(&name, vec![item(base, shape)]);
    }
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    println!("{}", listener.local_addr().expect("bound"));
    let tls = GatewayTls::read(folder).expect("certificates");
    let server = serve(listener, tls, hub, metrics, Arc::new(Timestamp::now), CancellationToken::new());
    tokio::spawn(server);
    let (lines, mut asked) = tokio::sync::mpsc::channel(1);
    std::thread::spawn(move || {
        let _ = std::io::stdin().lock().lines().map_while(Result::ok).try_for_each(|line| lines.blocking_send(line));
    });
    while let Some(line) = asked.recv().await {
        if line == "sum" {
            aggregate(&store, &shape.job(base)).await.expect("a sum");
        }
        println!("{}", peak());
    }
}

pub(crate) fn run(folder: &Path) {
    rustls::crypto::ring::default_provider().install_default().expect("the first provider");
    main_of(folder);
}
