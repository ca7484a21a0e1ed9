//! A hub for tests: the wire contract over real mutual TLS, with faults on demand.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use consilium_federation::Digest;
use consilium_federation::assignment::Assignment;
use consilium_proto::v1;
use consilium_proto::v1::hub_server::{Hub, HubServer};
use consilium_secagg::ids::Digest as ChunkDigest;
use consilium_secagg::upload::chunk_digest;
use futures::{Stream, StreamExt as _};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, SanType};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_stream::wrappers::{TcpListenerStream, WatchStream};
use tonic::transport::{Certificate, Identity, Server, ServerTlsConfig};
use tonic::{Request, Response, Status};

/// A certificate authority and what it signed.
pub struct Pki {
    issuer: CertifiedIssuer<'static, KeyPair>,
    /// Whose each certificate is, by its bytes.
    pub sites: Mutex<HashMap<Vec<u8>, String>>,
}

impl Pki {
    pub fn new() -> Self {
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "test authority");
        Self {
            issuer: CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap(),
            sites: Mutex::default(),
        }
    }

    fn sign(&self, name: SanType) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.subject_alt_names.push(name);
        (params.signed_by(&key, &self.issuer).unwrap().pem(), key.serialize_pem())
    }

    /// Writes the folder that an agent of this hospital mounts.
    pub fn site_folder(&self, folder: &Path, site: &str) {
        let uri = format!("spiffe://consilium/site/{site}");
        let (certificate, key) = self.sign(SanType::URI(uri.as_str().try_into().unwrap()));
        let (_, pem) = x509_parser::pem::parse_x509_pem(certificate.as_bytes()).unwrap();
        self.sites.lock().unwrap().insert(pem.contents, site.to_owned());
        std::fs::create_dir_all(folder).unwrap();
        for (name, text) in [("tls.crt", &certificate), ("tls.key", &key), ("ca.crt", &self.issuer.pem())] {
            std::fs::write(folder.join(name), text).unwrap();
        }
    }

    pub fn server_tls(&self) -> ServerTlsConfig {
        let (certificate, key) = self.sign(SanType::DnsName("localhost".try_into().unwrap()));
        ServerTlsConfig::new()
            .identity(Identity::from_pem(certificate, key))
            .client_ca_root(Certificate::from_pem(self.issuer.pem()))
    }
}

/// What a test does to the next chunks.
#[derive(Clone, Copy, PartialEq)]
pub enum Fault {
    None,
    /// The chunk with this number (in order of arrival, from 0) never gets an answer.
    HangAt(usize),
    /// Every chunk is refused.
    Conflict,
}

pub struct FakeHub {
    pub desired: watch::Sender<Option<Assignment>>,
    pub reports: watch::Sender<Vec<v1::ReportRequest>>,
    pub objects: Mutex<HashMap<Digest, Bytes>>,
    pub chunks: watch::Sender<BTreeMap<u32, Bytes>>,
    pub arrivals: watch::Sender<Vec<u32>>,
    pub fault: Mutex<Fault>,
    /// What the hub says of its clock; a hub of a version before says nothing.
    pub time: Mutex<String>,
    /// What the hub remembers of the hospital's ledger.
    pub ledger: Mutex<Option<v1::LedgerEnd>>,
    expected: Mutex<Vec<ChunkDigest>>,
    /// What happened, in order, also at the hospital's own API server.
    pub events: Arc<Mutex<Vec<String>>>,
}

impl FakeHub {
    /// Starts to listen; ends with the test's runtime.
    pub async fn start(pki: &Pki) -> (Arc<Self>, SocketAddr) {
        let hub = Arc::new(Self {
            desired: watch::Sender::new(None),
            reports: watch::Sender::new(Vec::new()),
            objects: Mutex::default(),
            chunks: watch::Sender::new(BTreeMap::new()),
            arrivals: watch::Sender::new(Vec::new()),
            fault: Mutex::new(Fault::None),
            time: Mutex::default(),
            ledger: Mutex::default(),
            expected: Mutex::default(),
            events: Arc::default(),
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let service = HubServer::from_arc(hub.clone()).max_decoding_message_size(5 << 20);
        let mut server = Server::builder().tls_config(pki.server_tls()).unwrap();
        tokio::spawn(server.add_service(service).serve_with_incoming(TcpListenerStream::new(listener)));
        (hub, address)
    }

    fn missing(&self) -> Vec<u32> {
        let chunks = self.chunks.borrow();
        (0..self.expected.lock().unwrap().len() as u32).filter(|index| !chunks.contains_key(index)).collect()
    }
}

#[tonic::async_trait]
impl Hub for FakeHub {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<v1::Assignment, Status>> + Send>>;

    async fn watch(&self, _: Request<v1::WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let stream = WatchStream::new(self.desired.subscribe());
        let hub_time = self.time.lock().unwrap().clone();
        let said = move |a: Assignment| Ok(v1::Assignment { hub_time: hub_time.clone(), ..v1::Assignment::from(&a) });
        Ok(Response::new(Box::pin(stream.filter_map(move |a| std::future::ready(a.map(&said))))))
    }

    async fn report(&self, request: Request<v1::ReportRequest>) -> Result<Response<v1::ReportReply>, Status> {
        self.reports.send_modify(|reports| reports.push(request.into_inner()));
        let ledger = self.ledger.lock().unwrap().clone();
        let hub_time = self.time.lock().unwrap().clone();
        Ok(Response::new(v1::ReportReply { ledger, signature: Bytes::from_static(&[7; 64]), hub_time }))
    }

    async fn get_object(&self, request: Request<v1::GetObjectRequest>) -> Result<Response<v1::GetObjectReply>, Status> {
        let digest = request.into_inner().digest.parse().unwrap();
        let content = self.objects.lock().unwrap().get(&digest).cloned();
        content
            .map(|content| Response::new(v1::GetObjectReply { content }))
            .ok_or_else(|| Status::not_found("no such object"))
    }

    async fn put_message(&self, _: Request<v1::PutMessageRequest>) -> Result<Response<v1::PutMessageReply>, Status> {
        Err(Status::unimplemented("this hub masks nothing"))
    }

    async fn begin_upload(
        &self,
        request: Request<v1::BeginUploadRequest>,
    ) -> Result<Response<v1::BeginUploadReply>, Status> {
        let chunks = request.into_inner().chunks;
        *self.expected.lock().unwrap() =
            chunks.iter().map(|bytes| ChunkDigest(bytes[..].try_into().unwrap())).collect();
        self.events.lock().unwrap().push("begin".into());
        Ok(Response::new(v1::BeginUploadReply { missing: self.missing() }))
    }

    async fn put_chunk(&self, request: Request<v1::PutChunkRequest>) -> Result<Response<v1::PutChunkReply>, Status> {
        let request = request.into_inner();
        let fault = *self.fault.lock().unwrap();
        let number = self.arrivals.borrow().len();
        match fault {
            Fault::Conflict => return Err(Status::already_exists("another update was begun under this attempt")),
            Fault::HangAt(at) if number >= at => {
                self.arrivals.send_modify(|seen| seen.push(request.index));
                return std::future::pending().await;
            }
            Fault::None | Fault::HangAt(_) => {}
        }
        assert_eq!(chunk_digest(&request.content), self.expected.lock().unwrap()[request.index as usize]);
        self.events.lock().unwrap().push("chunk".into());
        self.chunks.send_modify(|chunks| drop(chunks.insert(request.index, request.content)));
        self.arrivals.send_modify(|seen| seen.push(request.index));
        Ok(Response::new(v1::PutChunkReply { complete: self.missing().is_empty() }))
    }
}

/// A proxy that knows CONNECT and nothing else, and leads every tunnel to one place.
pub struct TinyProxy {
    pub address: SocketAddr,
    /// `CONNECT` lines that came in.
    pub seen: watch::Sender<Vec<String>>,
    cut: watch::Sender<u64>,
}

impl TinyProxy {
    pub async fn start(upstream: SocketAddr) -> Arc<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let proxy = Arc::new(Self { address, seen: watch::Sender::new(Vec::new()), cut: watch::Sender::new(0) });
        let handle = proxy.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(handle.clone().tunnel(stream, upstream));
            }
        });
        proxy
    }

    /// Breaks every connection that is open.
    pub fn cut(&self) {
        self.cut.send_modify(|n| *n += 1);
    }

    async fn tunnel(self: Arc<Self>, mut inside: TcpStream, upstream: SocketAddr) {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(inside.read_u8().await.unwrap());
        }
        let line = String::from_utf8(head).unwrap().lines().next().unwrap().to_owned();
        self.seen.send_modify(|seen| seen.push(line));
        let mut cut = self.cut.subscribe();
        let mut outside = TcpStream::connect(upstream).await.unwrap();
        inside.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").await.unwrap();
        tokio::select! {
            _ = tokio::io::copy_bidirectional(&mut inside, &mut outside) => {}
            _ = cut.changed() => {}
        }
    }
}
