//! The calls of the hub's service.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use consilium_crds::study::EVALUATION_ELEMENTS;
use consilium_federation::assignment::{Assignment, RoundWork};
use consilium_federation::round::ProtocolStep;
use consilium_federation::task::TaskKind;
use consilium_federation::{Digest, SiteName};
use consilium_proto::v1::hub_server::Hub as HubService;
use consilium_proto::{clock, read_report, v1};
use consilium_secagg::hub::HubError;
use consilium_secagg::ids::Digest as ChunkDigest;
use consilium_secagg::layout::Layout;
use futures::Stream;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request, Response, Status};

use super::Clock;
use super::identity::{Caller, IdentityError};
use super::not_accepted;
use crate::attempts::Refused;
use crate::hub::{Connection, Hub};
use crate::metrics::{Metrics, Refusal};
use crate::store::{BlobStore, Object, StoreError, UploadKey};

/// The service; one for all connections. Its calls carry a [`Caller`] in their extensions.
pub struct Gateway {
    hub: Hub,
    store: BlobStore,
    metrics: Metrics,
    clock: Clock,
    shutdown: CancellationToken,
}

impl Gateway {
    /// The service of a hub.
    pub fn new(hub: Hub, metrics: Metrics, clock: Clock, shutdown: CancellationToken) -> Self {
        Self { store: hub.store().clone(), hub, metrics, clock, shutdown }
    }

    /// Who calls, as the gate has it from the connection's certificate.
    fn caller<T>(&self, request: &Request<T>) -> Result<Caller, Status> {
        let caller = request.extensions().get::<Caller>();
        let caller = caller.ok_or_else(|| Status::unauthenticated(IdentityError::NoCertificate.to_string()))?;
        // Asked again: it may have been revoked while the body came in.
        if !self.hub.is_accepted(&caller.site) {
            return Err(not_accepted(&self.hub, &self.metrics, &caller.site));
        }
        Ok(caller.clone())
    }

    /// What an open watch is told when its hospital may no longer call.
    fn refusal(&self) -> Box<dyn Fn(&SiteName) -> Status + Send> {
        let (hub, metrics) = (self.hub.clone(), self.metrics.clone());
        Box::new(move |site| not_accepted(&hub, &metrics, site))
    }

    fn site<T>(&self, request: &Request<T>) -> Result<SiteName, Status> {
        self.caller(request).map(|caller| caller.site)
    }

    /// Runs one call and counts it.
    async fn observe<T>(
        &self,
        method: &'static str,
        call: impl Future<Output = Result<T, Status>>,
    ) -> Result<Response<T>, Status> {
        let start = Instant::now();
        let result = call.await;
        observed(&self.metrics, method, start, result.as_ref().err());
        result.map(Response::new)
    }

    /// An upload that the store does not take.
    fn unstored(&self, error: StoreError) -> Status {
        if matches!(error, StoreError::NoSpace { .. }) {
            self.metrics.refused(Refusal::StoreFull);
        }
        status(error)
    }

    fn not_assigned(&self, message: String) -> Status {
        self.metrics.refused(Refusal::NotAssigned);
        Status::failed_precondition(message)
    }

    /// The step that a hospital may do now.
    fn step(
        &self,
        site: &SiteName,
        round_uid: &str,
        attempt: u32,
        step: ProtocolStep,
    ) -> Result<(UploadKey, RoundWork), Status> {
        let work = self.hub.step_work(site, round_uid, attempt, step).ok_or_else(|| {
            let round: String = round_uid.chars().take(63).collect();
            self.not_assigned(format!(
                "step {step:?} is not asked of {site} for round {round}, attempt {attempt}; look at the assignment again"
            ))
        })?;
        Ok((UploadKey { round_uid: round_uid.to_owned(), attempt, site: site.clone() }, work))
    }

    /// The upload that a hospital may send now, its layout, and whether it is masked.
    async fn upload(&self, site: &SiteName, round_uid: &str, attempt: u32) -> Result<Upload, Status> {
        let (key, work) = self.step(site, round_uid, attempt, ProtocolStep::Upload)?;
        let body = match work.kind {
            TaskKind::Evaluate => EVALUATION_ELEMENTS,
            TaskKind::Train | TaskKind::Init => self.hub.manifest(work.model).await.map_err(status)?.elements(),
        };
        let layout = Layout::new(0, body).map_err(|error| Status::failed_precondition(error.to_string()))?;
        Ok(Upload { key, layout, masked: work.roster.is_some() })
    }

    /// What is uploaded under masks begins with a manifest that the hospital signed, and consists of what it lists.
    async fn manifest(&self, upload: &Upload, chunks: &[ChunkDigest], manifest: &[u8]) -> Result<(), Status> {
        if !upload.masked {
            return Ok(());
        }
        if manifest.is_empty() {
            return Err(Status::invalid_argument("field manifest is empty; an upload under masks needs a signed one"));
        }
        let attempts = self.hub.attempts();
        attempts.receive(&self.store, &upload.key, ProtocolStep::Upload, manifest).await.map_err(refused)?;
        if attempts.signed_chunks(&upload.key).await.as_deref() == Some(chunks) {
            return Ok(());
        }
        Err(Status::invalid_argument("field chunks differs from the chunks that the manifest lists"))
    }

    async fn begin_upload(&self, request: Request<v1::BeginUploadRequest>) -> Result<v1::BeginUploadReply, Status> {
        let site = self.site(&request)?;
        let request = request.into_inner();
        let upload = self.upload(&site, &request.round_uid, request.attempt).await?;
        let expected = upload.layout.chunks() as usize;
        if request.chunks.len() != expected {
            let found = request.chunks.len();
            let rule = format!("field chunks has {found} digests, the round's model needs {expected} (head and body)");
            return Err(Status::invalid_argument(rule));
        }
        let digest = |bytes: &Bytes| {
            let bytes = <[u8; 32]>::try_from(&bytes[..]);
            bytes.map(ChunkDigest).map_err(|_| Status::invalid_argument("field chunks: a BLAKE3 digest has 32 bytes"))
        };
        let chunks: Vec<ChunkDigest> = request.chunks.iter().map(digest).collect::<Result<_, _>>()?;
        self.manifest(&upload, &chunks, &request.manifest).await?;
        let bytes = 4 * (upload.layout.body() + upload.layout.head() as u64);
        let (store, key) = (self.store.clone(), upload.key.clone());
        // After a restart all that is there is read again, which may take longer than a call: it goes on without the
        // caller, and the next call finds it done.
        let begun = tokio::spawn(async move { store.begin_upload(&key, &chunks, bytes).await });
        let missing = begun.await.map_err(|_| StoreError::Stopped).flatten().map_err(|e| self.unstored(e))?;
        if missing.is_empty() {
            self.hub.work_changed(&site, &request.round_uid);
        }
        Ok(v1::BeginUploadReply { missing })
    }

    async fn put_chunk(&self, request: Request<v1::PutChunkRequest>) -> Result<v1::PutChunkReply, Status> {
        let site = self.site(&request)?;
        let request = request.into_inner();
        let upload = self.upload(&site, &request.round_uid, request.attempt).await?;
        let expected = upload.layout.chunk_bytes(request.index).map_err(|e| Status::invalid_argument(e.to_string()))?;
        let bytes = request.content.len();
        if bytes != expected {
            let rule = format!("chunk {} has {bytes} bytes, the model's layout asks for {expected}", request.index);
            return Err(Status::invalid_argument(rule));
        }
        let complete = self.store.put_chunk(&upload.key, request.index, request.content).await.map_err(status)?;
        self.metrics.uploaded(&site, bytes);
        if complete {
            self.hub.work_changed(&site, &request.round_uid);
        }
        Ok(v1::PutChunkReply { complete })
    }

    async fn put_message(&self, request: Request<v1::PutMessageRequest>) -> Result<v1::PutMessageReply, Status> {
        let site = self.site(&request)?;
        let request = request.into_inner();
        let step = match request.step.as_str() {
            "Advertise" => ProtocolStep::Advertise,
            "Share" => ProtocolStep::Share,
            "Agree" => ProtocolStep::Agree,
            "Unmask" => ProtocolStep::Unmask,
            _ => return Err(Status::invalid_argument("field step: expected Advertise, Share, Agree or Unmask")),
        };
        let (key, _) = self.step(&site, &request.round_uid, request.attempt, step)?;
        self.hub.attempts().receive(&self.store, &key, step, &request.content).await.map_err(refused)?;
        self.metrics.uploaded(&site, request.content.len());
        self.hub.work_changed(&site, &request.round_uid);
        Ok(v1::PutMessageReply {})
    }

    async fn report(&self, request: Request<v1::ReportRequest>) -> Result<v1::ReportReply, Status> {
        let (site, request, now) = (self.site(&request)?, request.into_inner(), (self.clock)());
        self.hub.hear_clock(&site, clock(&request.agent_time), now);
        let (report, unknown) = read_report(request)?;
        self.metrics.not_understood(unknown);
        let shown = report.ledger;
        // Heard before anything is written: a full volume must not keep a hospital's no from being heard.
        self.hub.put_report(&site, report, now);
        let reply = || v1::ReportReply { hub_time: (self.clock)().to_string(), ..v1::ReportReply::default() };
        let Some(shown) = shown else { return Ok(reply()) };
        match self.hub.countersign(&site, shown).await {
            Ok((end, signature)) => {
                Ok(v1::ReportReply { ledger: Some((&end).into()), signature: signature.to_vec().into(), ..reply() })
            }
            Err(error) => {
                tracing::error!(%site, %error, "where a hospital's ledger stands was not kept; it is asked again");
                Ok(reply())
            }
        }
    }
}

#[tonic::async_trait]
impl HubService for Gateway {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<v1::Assignment, Status>> + Send>>;

    async fn watch(&self, request: Request<v1::WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        self.observe("Watch", async {
            let Caller { site, expires, .. } = self.caller(&request)?;
            let left = u64::try_from(expires.saturating_sub((self.clock)().as_second())).unwrap_or(0);
            tracing::info!(%site, agent = %request.get_ref().agent_version.escape_debug(), "a hospital watches");
            let watch = Watch {
                accepted: self.hub.accepted(),
                desired: self.hub.subscribe(&site),
                connection: self.hub.connect(&site),
                shutdown: self.shutdown.clone(),
                clock: self.clock.clone(),
                refusal: self.refusal(),
                ends: Box::pin(tokio::time::sleep(Duration::from_secs(left))),
                site,
                look: true,
            };
            Ok(Box::pin(futures::stream::unfold(Some(watch), next)) as Self::WatchStream)
        })
        .await
    }

    async fn report(&self, request: Request<v1::ReportRequest>) -> Result<Response<v1::ReportReply>, Status> {
        self.observe("Report", self.report(request)).await
    }

    async fn get_object(&self, _: Request<v1::GetObjectRequest>) -> Result<Response<v1::GetObjectReply>, Status> {
        // The gate answers these, piece by piece: here an object would have to be held whole.
        Err(Status::internal("objects are handed out at the gate"))
    }

    async fn begin_upload(
        &self,
        request: Request<v1::BeginUploadRequest>,
    ) -> Result<Response<v1::BeginUploadReply>, Status> {
        self.observe("BeginUpload", self.begin_upload(request)).await
    }

    async fn put_chunk(&self, request: Request<v1::PutChunkRequest>) -> Result<Response<v1::PutChunkReply>, Status> {
        self.observe("PutChunk", self.put_chunk(request)).await
    }

    async fn put_message(
        &self,
        request: Request<v1::PutMessageRequest>,
    ) -> Result<Response<v1::PutMessageReply>, Status> {
        self.observe("PutMessage", self.put_message(request)).await
    }
}

/// One open watch. Dropping it with the stream says that the hospital is gone.
struct Watch {
    site: SiteName,
    accepted: watch::Receiver<Arc<std::collections::BTreeSet<SiteName>>>,
    desired: watch::Receiver<Option<Arc<Assignment>>>,
    shutdown: CancellationToken,
    clock: Clock,
    refusal: Box<dyn Fn(&SiteName) -> Status + Send>,
    /// With the certificate that it was opened with.
    ends: Pin<Box<tokio::time::Sleep>>,
    /// The desired state is to be looked at: at the start, and after each change.
    look: bool,
    #[allow(dead_code, reason = "held for its Drop")]
    connection: Connection,
}

/// The next message of a watch; an error is its last.
async fn next(watch: Option<Watch>) -> Option<(Result<v1::Assignment, Status>, Option<Watch>)> {
    let mut watch = watch?;
    loop {
        if !watch.accepted.borrow_and_update().contains(&watch.site) {
            let status = (watch.refusal)(&watch.site);
            return Some((Err(status), None));
        }
        let look = std::mem::take(&mut watch.look);
        let desired = if look { watch.desired.borrow_and_update().clone() } else { None };
        if let Some(assignment) = desired {
            let mut message = v1::Assignment::from(&*assignment);
            message.hub_time = (watch.clock)().to_string();
            return Some((Ok(message), Some(watch)));
        }
        tokio::select! {
            () = watch.shutdown.cancelled() => {
                return Some((Err(Status::unavailable("the hub restarts; connect again")), None));
            }
            () = &mut watch.ends => {
                let text = "the certificate of this connection has ended; connect again with the one that was renewed";
                return Some((Err(Status::unavailable(text)), None));
            }
            // Their senders live as long as the hub, so neither ends before it.
            changed = watch.accepted.changed() => changed.ok()?,
            changed = watch.desired.changed() => {
                changed.ok()?;
                watch.look = true;
            }
        }
    }
}

/// Counts one call.
pub(super) fn observed(metrics: &Metrics, method: &'static str, begun: Instant, refused: Option<&Status>) {
    metrics.request(method, refused.map_or(Code::Ok, Status::code), begun.elapsed());
    if let Some(status) = refused {
        tracing::info!(method, code = ?status.code(), message = status.message(), "a call was not served");
    }
}

/// An object that a hospital may have.
pub(super) enum Found {
    /// It lies in the store.
    Stored(Digest),
    /// It is made for this hospital, with so many bytes.
    Made(UploadKey, Digest, usize),
}

impl Found {
    /// Bytes that it takes in memory beside the piece that is sent.
    pub(super) const fn in_memory(&self) -> usize {
        match self {
            // While it is made there are three copies of its parts.
            Self::Made(_, _, bytes) => 3 * *bytes,
            Self::Stored(_) => 0,
        }
    }
}

/// The object of a digest, if this hospital's work leads to it.
pub(super) async fn find_object(hub: &Hub, metrics: &Metrics, site: &SiteName, digest: &str) -> Result<Found, Status> {
    let digest: Digest = digest.parse().map_err(|error| Status::invalid_argument(format!("field digest: {error}")))?;
    if let Some(key) = hub.made_in(site, digest)
        && let Some(bytes) = hub.attempts().made_bytes(&key, digest).await
    {
        return Ok(Found::Made(key, digest, bytes));
    }
    // The same answer for what is not there and what is not for this hospital: others' work is not to be probed.
    if !hub.may_read(site, digest).await.map_err(status)? {
        metrics.refused(Refusal::NotAssigned);
        return Err(Status::not_found(format!("no active work of {site} leads to the object {digest}")));
    }
    Ok(Found::Stored(digest))
}

/// The object itself, verified.
pub(super) async fn open_object(hub: &Hub, found: Found) -> Result<Object, Status> {
    match found {
        Found::Stored(digest) => hub.store().open_verified(digest).await.map_err(status),
        Found::Made(key, digest, _) => {
            let made = hub.attempts().made(&key, digest).await;
            made.map(Object::of).ok_or_else(|| Status::unavailable("the step is over; look at the assignment again"))
        }
    }
}

/// An upload that is asked of a hospital.
struct Upload {
    key: UploadKey,
    layout: Layout,
    masked: bool,
}

/// How a hospital is told that its message is not taken.
fn refused(error: Refused) -> Status {
    let text = error.to_string();
    match error {
        Refused::NotOpen { .. } => Status::unavailable(text),
        Refused::OutOfStep { .. } => Status::failed_precondition(text),
        Refused::Protocol(HubError::Conflict { .. }) => Status::already_exists(text),
        Refused::Wire(_) | Refused::Protocol(_) => {
            tracing::warn!(error = %text, "a hospital's message does not fit the protocol");
            Status::invalid_argument(text)
        }
        Refused::Store(error) => status(error),
    }
}

fn status(error: StoreError) -> Status {
    let text = error.to_string();
    match error {
        StoreError::NoSpace { .. } => Status::resource_exhausted(text),
        StoreError::Conflict { .. } => Status::already_exists(text),
        StoreError::NotBegun { .. } => Status::failed_precondition(text),
        StoreError::Missing { .. } => Status::not_found(text),
        StoreError::Corrupt { .. } | StoreError::Torn { .. } | StoreError::Model(_) => Status::data_loss(text),
        StoreError::Name { .. }
        | StoreError::ChunkCount { .. }
        | StoreError::NoSuchChunk { .. }
        | StoreError::ChunkDigest { .. } => Status::invalid_argument(text),
        StoreError::Folder { .. }
        | StoreError::Io { .. }
        | StoreError::Reading { .. }
        | StoreError::FreeSpace(_)
        | StoreError::Stopped => {
            // Paths of the hub's volume are for its own logs.
            tracing::error!(error = %text, "the store failed");
            Status::unavailable("the hub's store failed; try again later")
        }
    }
}
