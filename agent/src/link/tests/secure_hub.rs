//! The hub's side of the masking protocol for tests: the real machine behind real mutual TLS.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use consilium_federation::Digest;
use consilium_federation::assignment::Assignment;
use consilium_proto::v1;
use consilium_proto::v1::hub_server::{Hub as HubRpc, HubServer};
use consilium_secagg::hub::{Hub, HubError, Receipt};
use consilium_secagg::identity::Signed;
use consilium_secagg::ids::{Digest as ChunkDigest, SiteId};
use consilium_secagg::upload::{UploadManifest, chunk_digest};
use consilium_secagg::wire::{Message, WireError};
use futures::{Stream, StreamExt as _};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_stream::wrappers::{TcpListenerStream, WatchStream};
use tonic::transport::Server;
use tonic::{Request, Response, Status};

use super::hub::Pki;

/// A message as it came in: from whom, for which attempt and step, and its bytes.
pub type Heard = (String, u32, String, Vec<u8>);

pub struct SecureHub {
    sites: HashMap<Vec<u8>, String>,
    pub desired: watch::Sender<BTreeMap<String, Assignment>>,
    pub objects: Mutex<HashMap<Digest, Bytes>>,
    pub machine: Mutex<Option<Hub>>,
    /// Everything that came in, in order, also what was refused. An upload counts with its manifest.
    pub heard: watch::Sender<Vec<Heard>>,
    /// Masked chunks by hospital, attempt and number.
    pub chunks: watch::Sender<BTreeMap<(String, u32, u32), Bytes>>,
    /// Hospitals whose messages are taken from the line and never answered well.
    pub deaf: Mutex<BTreeSet<String>>,
    /// Takes whatever comes without a look, as no honest hub would.
    pub sly: AtomicBool,
    /// Everything that hospitals reported, in order.
    pub reports: watch::Sender<Vec<(String, v1::ReportRequest)>>,
}

impl SecureHub {
    /// Starts to listen; ends with the test's runtime.
    pub async fn start(pki: &Pki) -> (Arc<Self>, SocketAddr) {
        let hub = Arc::new(Self {
            sites: pki.sites.lock().unwrap().clone(),
            desired: watch::Sender::new(BTreeMap::new()),
            objects: Mutex::default(),
            machine: Mutex::default(),
            heard: watch::Sender::new(Vec::new()),
            chunks: watch::Sender::new(BTreeMap::new()),
            deaf: Mutex::default(),
            sly: AtomicBool::new(false),
            reports: watch::Sender::new(Vec::new()),
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let service = HubServer::from_arc(hub.clone()).max_decoding_message_size(5 << 20);
        let mut server = Server::builder().tls_config(pki.server_tls()).unwrap();
        tokio::spawn(server.add_service(service).serve_with_incoming(TcpListenerStream::new(listener)));
        (hub, address)
    }

    /// Keeps an object and returns the digest that it is fetched by.
    pub fn keep(&self, bytes: Vec<u8>) -> Digest {
        let digest = Digest::of(&bytes);
        self.objects.lock().unwrap().insert(digest, bytes.into());
        digest
    }

    /// What this hospital sent for a step of an attempt, in order, equal ones once.
    pub fn said(&self, site: &str, attempt: u32, step: &str) -> Vec<Vec<u8>> {
        let heard = self.heard.borrow();
        let mine = heard.iter().filter(|(s, a, t, _)| s == site && *a == attempt && t == step);
        let mut said: Vec<Vec<u8>> = mine.map(|(.., bytes)| bytes.clone()).collect();
        said.sort();
        said.dedup();
        said
    }

    /// How many messages came in from a hospital for a step.
    pub fn times(&self, site: &str, attempt: u32, step: &str) -> usize {
        self.heard.borrow().iter().filter(|(s, a, t, _)| s == site && *a == attempt && t == step).count()
    }

    /// The words of refusals that a hospital reported so far.
    pub fn told(&self, site: &str) -> BTreeSet<String> {
        let reports = self.reports.borrow();
        let rounds = reports.iter().filter(|(s, _)| s == site).flat_map(|(_, report)| &report.rounds);
        rounds.map(|round| round.message.clone()).filter(|message| !message.is_empty()).collect()
    }

    fn caller<T>(&self, request: &Request<T>) -> Result<String, Status> {
        let certificates = request.peer_certs().ok_or_else(|| Status::unauthenticated("no certificate"))?;
        let site = certificates.first().and_then(|certificate| self.sites.get(certificate.as_ref()));
        site.cloned().ok_or_else(|| Status::permission_denied("unknown certificate"))
    }

    fn hear(&self, site: &str, attempt: u32, step: &str, bytes: &[u8]) -> Result<(), Status> {
        self.heard.send_modify(|heard| heard.push((site.into(), attempt, step.into(), bytes.to_vec())));
        match self.deaf.lock().unwrap().contains(site) {
            true => Err(Status::unavailable("the hub goes down")),
            false => Ok(()),
        }
    }

    fn admit<T: Message>(
        &self,
        site: &str,
        content: &[u8],
        take: impl FnOnce(&mut Hub, &SiteId, T) -> Result<Receipt, HubError>,
    ) -> Result<(), Status> {
        let message = T::from_bytes(content).map_err(|e: WireError| Status::invalid_argument(e.to_string()))?;
        let mut machine = self.machine.lock().unwrap();
        let machine = machine.as_mut().ok_or_else(|| Status::failed_precondition("no attempt is open"))?;
        match take(machine, &SiteId::new(site).unwrap(), message) {
            Ok(_) => Ok(()),
            Err(error @ HubError::Conflict { .. }) => Err(Status::already_exists(error.to_string())),
            Err(error @ HubError::OutOfOrder { .. }) => Err(Status::failed_precondition(error.to_string())),
            Err(error) => Err(Status::invalid_argument(error.to_string())),
        }
    }
}

#[tonic::async_trait]
impl HubRpc for SecureHub {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<v1::Assignment, Status>> + Send>>;

    async fn watch(&self, request: Request<v1::WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let site = self.caller(&request)?;
        let mine = WatchStream::new(self.desired.subscribe()).filter_map(move |all| {
            let found = all.get(&site).map(|a| Ok(v1::Assignment::from(a)));
            async move { found }
        });
        Ok(Response::new(Box::pin(mine)))
    }

    async fn report(&self, request: Request<v1::ReportRequest>) -> Result<Response<v1::ReportReply>, Status> {
        let site = self.caller(&request)?;
        self.reports.send_modify(|reports| reports.push((site, request.into_inner())));
        Ok(Response::new(v1::ReportReply::default()))
    }

    async fn get_object(&self, request: Request<v1::GetObjectRequest>) -> Result<Response<v1::GetObjectReply>, Status> {
        let digest = request.into_inner().digest.parse().unwrap();
        let content = self.objects.lock().unwrap().get(&digest).cloned();
        let reply = content.map(|content| Response::new(v1::GetObjectReply { content }));
        reply.ok_or_else(|| Status::not_found("no such object"))
    }

    async fn put_message(
        &self,
        request: Request<v1::PutMessageRequest>,
    ) -> Result<Response<v1::PutMessageReply>, Status> {
        let site = self.caller(&request)?;
        let v1::PutMessageRequest { attempt, step, content, .. } = request.into_inner();
        self.hear(&site, attempt, &step, &content)?;
        if self.sly.load(Ordering::SeqCst) {
            return Ok(Response::new(v1::PutMessageReply {}));
        }
        match step.as_str() {
            "Advertise" => self.admit(&site, &content, |hub, from, advert| hub.advert(from, advert))?,
            "Share" => self.admit(&site, &content, |hub, from, shares| hub.shares(from, shares))?,
            "Agree" => self.admit(&site, &content, |hub, from, signed| hub.agreement(from, signed))?,
            "Unmask" => self.admit(&site, &content, |hub, from, reply| hub.unmask(from, reply))?,
            other => return Err(Status::invalid_argument(format!("no step {other}"))),
        }
        Ok(Response::new(v1::PutMessageReply {}))
    }

    async fn begin_upload(
        &self,
        request: Request<v1::BeginUploadRequest>,
    ) -> Result<Response<v1::BeginUploadReply>, Status> {
        let site = self.caller(&request)?;
        let v1::BeginUploadRequest { attempt, chunks, manifest, .. } = request.into_inner();
        self.hear(&site, attempt, "Upload", &manifest)?;
        let digests: Vec<_> = chunks.iter().map(|bytes| ChunkDigest(bytes[..].try_into().unwrap())).collect();
        let sly = self.sly.load(Ordering::SeqCst);
        let admitted = self.admit(&site, &manifest, |hub, from, manifest: Signed<UploadManifest>| {
            assert_eq!(manifest.body.chunks, digests, "the digests are those of the manifest");
            hub.manifest(from, manifest)
        });
        if !sly {
            admitted?;
        }
        let held = self.chunks.borrow();
        let lacks = |index: &u32| !held.contains_key(&(site.clone(), attempt, *index));
        Ok(Response::new(v1::BeginUploadReply { missing: (0..digests.len() as u32).filter(lacks).collect() }))
    }

    async fn put_chunk(&self, request: Request<v1::PutChunkRequest>) -> Result<Response<v1::PutChunkReply>, Status> {
        let site = self.caller(&request)?;
        let v1::PutChunkRequest { attempt, index, content, .. } = request.into_inner();
        let manifest = self.said(&site, attempt, "Upload").pop();
        let manifest = manifest.ok_or_else(|| Status::failed_precondition("no manifest"))?;
        let expected = Signed::<UploadManifest>::from_bytes(&manifest).unwrap().body.chunks;
        assert_eq!(chunk_digest(&content), expected[index as usize]);
        self.chunks.send_modify(|chunks| drop(chunks.insert((site.clone(), attempt, index), content)));
        let held = self.chunks.borrow().keys().filter(|(s, a, _)| *s == site && *a == attempt).count();
        Ok(Response::new(v1::PutChunkReply { complete: held == expected.len() }))
    }
}
