//! A gateway on loopback, a CA, and clients with certificates of it.

use std::net::SocketAddr;
use std::sync::Mutex;

use bytes::Bytes;
use consilium_federation::assignment::{Item, ItemState, RoundWork, Work};
use consilium_federation::model::{CHUNK_ELEMENTS, ModelManifest, Tensor, TensorSchema};
use consilium_federation::round::ProtocolStep;
use consilium_federation::task::TaskKind;
use consilium_federation::{Digest, StudyKey};
use consilium_proto::v1;
use consilium_proto::v1::hub_client::HubClient;
use consilium_secagg::upload::chunk_digest;
use ed25519_dalek::SigningKey;
use jiff::Timestamp;
use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, SanType};
use tokio::task::JoinHandle;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};

use super::super::*;
use crate::store::{BlobStore, UploadKey};

/// Parameters of the models here.
pub(super) const BODY: usize = 10;

pub(super) fn now() -> Timestamp {
    Timestamp::from_second(1_700_000_000).unwrap()
}

/// A CA of its own.
pub(super) struct Pki {
    pub(super) ca: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Pki {
    pub(super) fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let ca = params.self_signed(&key).unwrap().pem();
        Self { ca, issuer: Issuer::new(params, key) }
    }

    fn issue(&self, mut params: CertificateParams, usage: ExtendedKeyUsagePurpose) -> (String, String) {
        params.extended_key_usages = vec![usage];
        let key = KeyPair::generate().unwrap();
        (params.signed_by(&key, &self.issuer).unwrap().pem(), key.serialize_pem())
    }

    pub(super) fn identity(&self, uris: &[&str]) -> Identity {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.subject_alt_names = uris.iter().map(|uri| SanType::URI((*uri).try_into().unwrap())).collect();
        let (certificate, key) = self.issue(params, ExtendedKeyUsagePurpose::ClientAuth);
        Identity::from_pem(certificate, key)
    }

    pub(super) fn site(&self, name: &str) -> Identity {
        self.identity(&[&format!("{SPIFFE_PREFIX}{name}")])
    }
}

pub(super) struct Rig {
    folder: tempfile::TempDir,
    pub(super) pki: Pki,
    pub(super) hub: Hub,
    pub(super) metrics: Metrics,
    address: SocketAddr,
    stop: CancellationToken,
    server: JoinHandle<Result<(), GatewayError>>,
    tls: GatewayTls,
    clock: Arc<Mutex<Timestamp>>,
}

impl Rig {
    pub(super) async fn start() -> Self {
        // Another test may have been first.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let pki = Pki::new();
        let params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        let (certificate, key) = pki.issue(params, ExtendedKeyUsagePurpose::ServerAuth);
        let tls = GatewayTls { certificate: certificate.into(), key: key.into(), client_ca: pki.ca.clone().into() };
        let folder = tempfile::tempdir().unwrap();
        let (metrics, stop) = (Metrics::new(), CancellationToken::new());
        let clock = Arc::new(Mutex::new(now()));
        let (hub, address, server) = serve_in(&folder, &tls, &metrics, &clock, &stop).await;
        Self { folder, pki, hub, metrics, address, stop, server, tls, clock }
    }

    /// Sets the gateway's clock.
    pub(super) fn set_clock(&self, at: Timestamp) {
        *self.clock.lock().unwrap() = at;
    }

    /// Ends the hub and starts another one on the same volume.
    pub(super) async fn restart(&mut self) {
        self.stop.cancel();
        (&mut self.server).await.unwrap().unwrap();
        self.stop = CancellationToken::new();
        (self.hub, self.address, self.server) =
            serve_in(&self.folder, &self.tls, &self.metrics, &self.clock, &self.stop).await;
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Replaces a file of the store.
    pub(super) fn spoil(&self, file: &str, content: &[u8]) {
        std::fs::write(self.folder.path().join(file), content).unwrap();
    }

    pub(super) fn accept(&self, sites: &[&str]) {
        self.hub.set_accepted(sites.iter().map(|site| site.parse().unwrap()).collect());
    }

    pub(super) fn client(&self, identity: Option<Identity>) -> HubClient<Channel> {
        self.client_at(self.address, identity)
    }

    pub(super) fn client_at(&self, address: SocketAddr, identity: Option<Identity>) -> HubClient<Channel> {
        let mut tls =
            ClientTlsConfig::new().ca_certificate(Certificate::from_pem(&self.pki.ca)).domain_name("localhost");
        if let Some(identity) = identity {
            tls = tls.identity(identity);
        }
        let endpoint = Endpoint::from_shared(format!("https://{address}")).unwrap().tls_config(tls).unwrap();
        HubClient::new(endpoint.connect_lazy())
    }

    pub(super) fn site(&self, name: &str) -> HubClient<Channel> {
        self.client(Some(self.pki.site(name)))
    }

    pub(super) fn plaintext_client(&self) -> HubClient<Channel> {
        HubClient::new(Endpoint::from_shared(format!("http://{}", self.address)).unwrap().connect_lazy())
    }

    /// A relay to the gateway that, once told, keeps its connection open and passes nothing on.
    pub(super) async fn relay(&self) -> (SocketAddr, CancellationToken) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, silence, gateway) = (listener.local_addr().unwrap(), CancellationToken::new(), self.address);
        let told = silence.clone();
        tokio::spawn(async move {
            let (mut near, _) = listener.accept().await.unwrap();
            let mut far = tokio::net::TcpStream::connect(gateway).await.unwrap();
            tokio::select! {
                _ = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
                () = told.cancelled() => std::future::pending().await,
            }
        });
        (address, silence)
    }

    /// Stores the manifest of a model of so many full chunks, and none of them; its digest.
    pub(super) async fn large_model(&self, chunks: usize) -> Digest {
        let digests = (0..chunks).map(|n| Digest::of(&n.to_le_bytes())).collect();
        let schema = TensorSchema(vec![Tensor { name: "w".into(), shape: vec![(chunks * CHUNK_ELEMENTS) as u64] }]);
        let manifest = ModelManifest::new(schema, digests).unwrap();
        self.hub.store().put_object(manifest.to_bytes().into()).await.unwrap()
    }

    /// Stores a model of ten parameters; its digest.
    pub(super) async fn model(&self, seed: u8) -> Digest {
        let store = self.hub.store();
        let payload: Vec<u8> = (0..BODY).flat_map(|i| (i as f32 + f32::from(seed)).to_le_bytes()).collect();
        let chunk = store.put_object(payload.into()).await.unwrap();
        let schema = TensorSchema(vec![Tensor { name: "w".into(), shape: vec![BODY as u64] }]);
        let manifest = ModelManifest::new(schema, vec![chunk]).unwrap();
        store.put_object(manifest.to_bytes().into()).await.unwrap()
    }
}

async fn serve_in(
    folder: &tempfile::TempDir,
    tls: &GatewayTls,
    metrics: &Metrics,
    clock: &Arc<Mutex<Timestamp>>,
    stop: &CancellationToken,
) -> (Hub, SocketAddr, JoinHandle<Result<(), GatewayError>>) {
    let store = BlobStore::open(folder.path()).await.unwrap();
    let boot = store.next_boot().await.unwrap();
    let hub = Hub::new(store, boot, metrics.clone(), SigningKey::from_bytes(&[5; 32]));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let clock = clock.clone();
    let told = Arc::new(move || *clock.lock().unwrap());
    let server = serve(listener, tls.clone(), hub.clone(), metrics.clone(), told, stop.clone());
    (hub, address, tokio::spawn(server))
}

pub(super) fn items(items: &[Item]) -> Vec<Item> {
    items.to_vec()
}

pub(super) fn round_item(uid: &str, model: Digest, step: Option<ProtocolStep>) -> Item {
    let work = RoundWork {
        study: StudyKey::new("research", "hippocampus"),
        study_uid: "u-1".into(),
        spec_digest: Digest::of(uid.as_bytes()),
        round: 1,
        kind: TaskKind::Train,
        model,
        schema: Digest::of(b"schema"),
        roster_size: 4,
        attempt: u32::from(step.is_some()),
        step,
        roster: None,
        inputs: None,
        deadline: now(),
    };
    Item { uid: uid.into(), state: ItemState::Active, work: Work::Round(work) }
}

pub(super) fn key(site: &str, round: &str, attempt: u32) -> UploadKey {
    UploadKey { round_uid: round.into(), attempt, site: site.parse().unwrap() }
}

/// An upload that fits the models here: a head of 16 elements and a body of ten.
pub(super) struct Upload([Bytes; 2]);

pub(super) fn upload(seed: u8) -> Upload {
    Upload([vec![seed; 64].into(), vec![seed; BODY * 4].into()])
}

impl Upload {
    pub(super) fn begin(&self, round: &str, attempt: u32) -> v1::BeginUploadRequest {
        let chunks = self.0.iter().map(|chunk| Bytes::copy_from_slice(&chunk_digest(chunk).0)).collect();
        v1::BeginUploadRequest { round_uid: round.into(), attempt, chunks, manifest: Bytes::new() }
    }

    pub(super) fn chunk(&self, round: &str, attempt: u32, index: u32) -> v1::PutChunkRequest {
        let content = self.0[index as usize].clone();
        v1::PutChunkRequest { round_uid: round.into(), attempt, index, content }
    }
}
