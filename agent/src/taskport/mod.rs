//! The port that task pods dial: hands out the base model if the hospital allows it
//! now, takes results in, and tells `deliver` when none will come.
//!
//! The caller is known by its bearer token alone. Everything that comes in is taken
//! as hostile; a delivery is answered when it is on disk.

mod accept;
mod identity;
mod receive;
mod send;

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context as _;
use bytes::Bytes;
use consilium_clinical::plan::ClinicalPlan;
use consilium_crds::{FederatedStudySpec, ModelReleaseSpec};
use consilium_federation::assignment::RoundWork;
use consilium_federation::digest::Digest;
use consilium_federation::model::ModelManifest;
use consilium_federation::task::{Progress, TaskKind};
use consilium_proto::MAX_MESSAGE_BYTES;
use consilium_proto::v1::task_port_server::{TaskPort, TaskPortServer};
use consilium_proto::v1::{DeliverReply, FetchRequest, FilePart, TrainerStateReply, TrainerStateRequest};
use jiff::Timestamp;
use tokio::net::TcpListener;
use tokio::sync::{Mutex, mpsc};
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::metadata::MetadataMap;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Server, ServerTlsConfig};
use tonic::{Request, Response, Status, Streaming};

pub use identity::{Identity, IdentityError, load_or_make};

use crate::Context;
use crate::link::read_plan;
use crate::policy::{Barrier, Decision, ReleaseDecision};
use crate::state::{Entry, Grant, State, StateError};
use crate::tasks::{DeployEntry, Desk, TaskEntry};
use accept::{Accepted, Deliverer, Refusal};
use receive::Inbox;

/// Most bytes of a progress file.
const PROGRESS_BYTES: usize = 4096;

/// What the port needs of the agent around it.
#[tonic::async_trait]
pub trait Backend: Clone + Send + Sync + 'static {
    /// An immutable object, verified.
    async fn object(&self, digest: Digest) -> Result<Bytes, Status>;
    /// The veto ladder at the barrier `Fetch`, now.
    fn judge(&self, uid: &str, work: &RoundWork, spec: &FederatedStudySpec) -> Result<Decision, StateError>;
    /// The release ladder, now.
    fn judge_release(
        &self,
        entry: &DeployEntry,
        named: (&ModelReleaseSpec, Option<&ClinicalPlan>),
    ) -> Result<ReleaseDecision, StateError>;
    /// Counts a delivery by its result.
    fn delivered(&self, kind: TaskKind, result: &'static str);
    /// The time.
    fn now(&self) -> Timestamp;
}

#[tonic::async_trait]
impl Backend for Arc<Context> {
    async fn object(&self, digest: Digest) -> Result<Bytes, Status> {
        self.objects.get(digest).await.map_err(|e| match e.is_transient() {
            true => Status::unavailable(format!("{e}; try again")),
            false => Status::data_loss(e.to_string()),
        })
    }

    fn judge(&self, uid: &str, work: &RoundWork, spec: &FederatedStudySpec) -> Result<Decision, StateError> {
        Context::judge(self, uid, work, Some(spec), Barrier::Fetch)
    }

    fn judge_release(
        &self,
        entry: &DeployEntry,
        named: (&ModelReleaseSpec, Option<&ClinicalPlan>),
    ) -> Result<ReleaseDecision, StateError> {
        // Who asks is a pod of its ModelDeployment.
        Context::judge_release(self, &entry.promotion_uid, &entry.work, entry.state, named, true)
    }

    fn delivered(&self, kind: TaskKind, result: &'static str) {
        self.metrics.deliveries.with_label_values(&[kind.as_str(), result]).inc();
    }

    fn now(&self) -> Timestamp {
        Context::now(self)
    }
}

/// Serves the port until shutdown.
pub async fn run(ctx: Arc<Context>) -> anyhow::Result<()> {
    let identity = ctx.desk.identity(&ctx.state, &ctx.config.task_address)?;
    let inbox = ctx.config.state.join("incoming");
    // What a crash left half-received comes again.
    receive::sweep(&inbox).with_context(|| format!("{} cannot be emptied", inbox.display()))?;
    let listener = TcpListener::bind(ctx.config.tasks_listen)
        .await
        .with_context(|| format!("--tasks-listen {} cannot be bound", ctx.config.tasks_listen))?;
    tracing::info!(address = %ctx.config.tasks_listen, "task port open");
    let port = Port::new(ctx.state.clone(), ctx.desk.clone(), inbox, Arc::clone(&ctx));
    serve(listener, &identity, port, ctx.shutdown.clone()).await.context("the task port failed")
}

/// Serves a port on a listener until shutdown.
pub async fn serve<B: Backend>(
    listener: TcpListener,
    identity: &Identity,
    port: Port<B>,
    shutdown: CancellationToken,
) -> Result<(), tonic::transport::Error> {
    let tls =
        ServerTlsConfig::new().identity(tonic::transport::Identity::from_pem(&identity.certificate, &identity.key));
    let service = TaskPortServer::new(port).max_decoding_message_size(MAX_MESSAGE_BYTES);
    Server::builder()
        .tls_config(tls)?
        .http2_keepalive_interval(Some(std::time::Duration::from_secs(20)))
        .add_service(service)
        .serve_with_incoming_shutdown(TcpIncoming::from(listener).with_nodelay(Some(true)), shutdown.cancelled_owned())
        .await
}

/// The service.
pub struct Port<B> {
    state: State,
    desk: Desk,
    inbox: PathBuf,
    backend: B,
    /// One delivery at a time: encoding takes a core and some chunks of memory.
    delivering: Arc<Mutex<()>>,
}

impl<B: Backend> Port<B> {
    /// A port over this state; `inbox` is a folder on the agent's volume for what comes in.
    pub fn new(state: State, desk: Desk, inbox: PathBuf, backend: B) -> Self {
        Self { state, desk, inbox, backend, delivering: Arc::default() }
    }

    /// The caller, by its token; and whether its try is the newest.
    fn caller(&self, metadata: &MetadataMap) -> Result<(Grant, bool), Status> {
        let header = metadata.get("authorization").and_then(|v| v.to_str().ok());
        let token = header
            .and_then(|text| text.strip_prefix("Bearer "))
            .ok_or_else(|| Status::unauthenticated("the metadata key `authorization` holds no bearer token"))?;
        let granted = self.state.token(Digest::of(token.as_bytes())).map_err(state)?;
        let granted = granted.ok_or_else(|| Status::unauthenticated("the token is not known, or its task is over"))?;
        Ok((granted.grant, granted.newest))
    }

    /// The caller's task, if it is the newest try of one.
    fn task(&self, metadata: &MetadataMap) -> Result<Caller, Status> {
        match self.caller(metadata)? {
            (Grant::Task { uid, name, r#try }, true) => {
                let entry = self.desk.task(&uid).ok_or_else(starting)?;
                Ok(Caller { uid, name, number: r#try, entry })
            }
            (Grant::Task { r#try, .. }, false) => Err(Status::failed_precondition(format!(
                "try {} has been replaced by a later one, which alone may deliver",
                r#try
            ))),
            (Grant::Deployment { .. }, _) => Err(Status::failed_precondition("a deployment delivers nothing")),
        }
    }

    async fn manifest(&self, model: Digest) -> Result<ModelManifest, Status> {
        let bytes = self.backend.object(model).await?;
        ModelManifest::parse(&bytes, model).map_err(|e| Status::data_loss(e.to_string()))
    }

    async fn fetch_task(&self, caller: Caller) -> Result<Files, Status> {
        let Caller { uid, number, entry, .. } = caller;
        allowed(self.backend.judge(&entry.round_uid, &entry.work, &entry.spec).map_err(state)?)?;
        let manifest = self.manifest(entry.work.model).await?;
        let task = send::task_file(&entry.round_uid, &entry.work, &entry.spec, &self.state.secret());
        let json = serde_json::to_vec_pretty(&task).map_err(|e| Status::internal(e.to_string()))?;
        let handed = Entry::BaseHandedOut { task_uid: uid, r#try: number, model: entry.work.model };
        self.state.append(handed, self.backend.now()).map_err(state)?;
        Ok(Files { small: vec![("task.json", json)], manifest })
    }

    async fn fetch_deployment(&self, uid: &str) -> Result<Files, Status> {
        let entry = self.desk.deployment(uid).ok_or_else(starting)?;
        let bytes = self.backend.object(entry.work.release_digest).await?;
        let spec: ModelReleaseSpec =
            serde_json::from_slice(&bytes).map_err(|e| Status::data_loss(format!("the release: {e}")))?;
        let plan = match entry.work.plan {
            // As the controller does: one that cannot be read is none.
            Some(digest) => read_plan(digest, &self.backend.object(digest).await?).ok(),
            None => None,
        };
        match self.backend.judge_release(&entry, (&spec, plan.as_ref())).map_err(state)? {
            ReleaseDecision::Allowed(_) => {}
            ReleaseDecision::Withdrawn => return Err(Status::permission_denied("the model was withdrawn")),
            ReleaseDecision::Refused { message, .. } => return Err(Status::permission_denied(message)),
        }
        let manifest = self.manifest(entry.work.model).await?;
        let small = vec![("release.json", bytes.to_vec()), ("manifest.json", manifest.to_bytes())];
        Ok(Files { small, manifest })
    }

    /// Takes the result of a task in.
    ///
    /// # Errors
    /// What the courier is told.
    pub async fn take<S>(&self, metadata: &MetadataMap, parts: S) -> Result<(), Status>
    where
        S: Stream<Item = Result<FilePart, Status>> + Send + Unpin,
    {
        let caller = self.task(metadata)?;
        let kind = caller.entry.work.kind;
        let _one_at_a_time = self.delivering.lock().await;
        let result = self.accept(caller, parts).await;
        self.backend.delivered(kind, outcome(&result));
        result
    }

    async fn accept<S>(&self, caller: Caller, parts: S) -> Result<(), Status>
    where
        S: Stream<Item = Result<FilePart, Status>> + Send + Unpin,
    {
        let kind = caller.entry.work.kind;
        let manifest = self.manifest(caller.entry.work.model).await?;
        let inbox = Inbox::new(self.inbox.join(&caller.uid))?;
        receive::receive(parts, &receive::expected(kind, &manifest), &inbox).await?;
        let (state, now, uid, number) = (self.state.clone(), self.backend.now(), caller.uid.clone(), caller.number);
        let work = move || {
            let from = Deliverer { uid: &caller.uid, name: &caller.name, entry: &caller.entry, now };
            let accepted = match kind {
                TaskKind::Evaluate => accept::evaluate(&state, &inbox, &from)?,
                TaskKind::Train | TaskKind::Init => accept::train(&state, &inbox, &manifest, &from)?,
            };
            if let Accepted::Stored(result) = accepted {
                state.append(Entry::Delivered { task_uid: caller.uid.clone(), r#try: number, result }, now)?;
            }
            Ok(())
        };
        let result = tokio::task::spawn_blocking(work).await.map_err(|e| Status::internal(e.to_string()))?;
        match result {
            Ok(()) => {
                self.desk.delivered();
                Ok(())
            }
            Err(Refusal::Status(status)) => Err(status),
            Err(Refusal::Rejected(why)) => {
                tracing::warn!(task = uid, why, "result rejected");
                self.desk.set_rejected(&uid, why.clone());
                Err(Status::invalid_argument(why))
            }
        }
    }
}

/// A task that calls.
struct Caller {
    uid: String,
    name: String,
    number: u32,
    entry: TaskEntry,
}

/// The files of one fetch.
struct Files {
    small: Vec<(&'static str, Vec<u8>)>,
    manifest: ModelManifest,
}

fn state(error: StateError) -> Status {
    tracing::error!(%error, "state");
    Status::unavailable("the agent's volume cannot be read; try again")
}

/// Nothing is known of the task yet: the agent has just started.
fn starting() -> Status {
    Status::unavailable("the agent has not looked at its tasks yet; try again")
}

fn allowed(decision: Decision) -> Result<(), Status> {
    match decision {
        Decision::Allowed => Ok(()),
        Decision::SpecNeeded => Err(starting()),
        Decision::Refused { message, .. } => Err(Status::permission_denied(message)),
    }
}

#[tonic::async_trait]
impl<B: Backend> TaskPort for Port<B> {
    type FetchStream = ReceiverStream<Result<FilePart, Status>>;

    async fn fetch(&self, request: Request<FetchRequest>) -> Result<Response<Self::FetchStream>, Status> {
        let files = match self.caller(request.metadata())?.0 {
            Grant::Deployment { uid, .. } => self.fetch_deployment(&uid).await?,
            Grant::Task { .. } => self.fetch_task(self.task(request.metadata())?).await?,
        };
        let (parts, stream) = mpsc::channel(4);
        let backend = self.backend.clone();
        tokio::spawn(async move {
            if let Err(status) = send_all(&parts, &backend, &files).await {
                // Nobody may be there to hear it.
                let _ = parts.send(Err(status)).await;
            }
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn deliver(&self, request: Request<Streaming<FilePart>>) -> Result<Response<DeliverReply>, Status> {
        let (metadata, _, parts) = request.into_parts();
        self.take(&metadata, parts).await.map(|()| Response::new(DeliverReply {}))
    }

    async fn trainer_state(
        &self,
        request: Request<TrainerStateRequest>,
    ) -> Result<Response<TrainerStateReply>, Status> {
        let caller = self.task(request.metadata())?;
        let progress = &request.get_ref().progress;
        if progress.len() <= PROGRESS_BYTES
            && let Ok(progress) = serde_json::from_slice::<Progress>(progress)
        {
            self.desk.set_progress(&caller.uid, progress);
        }
        Ok(Response::new(TrainerStateReply { failed: caller.entry.ended_try == Some(caller.number) }))
    }
}

async fn send_all<B: Backend>(parts: &send::Parts, backend: &B, files: &Files) -> Result<(), Status> {
    for (path, content) in &files.small {
        send::file(parts, path, content).await?;
    }
    send::model(parts, backend, &files.manifest).await
}

fn outcome(result: &Result<(), Status>) -> &'static str {
    match result.as_ref().map_err(Status::code) {
        Ok(()) => "Stored",
        Err(tonic::Code::InvalidArgument) => "Refused",
        Err(tonic::Code::AlreadyExists) => "Conflict",
        Err(_) => "Broken",
    }
}

#[cfg(test)]
mod tests;
