//! The task port of the hub: what the pod of an Init task fetches from and delivers to.
//!
//! TLS with a certificate of its own that the pod pins, and a bearer token for each Job. There is nothing to fetch
//! but `task.json`, and nothing to deliver but `model.safetensors`, which is cut into chunks as it comes in and
//! never held whole. Delivering the same model twice is as good as once.

mod intake;
mod split;

use std::collections::BTreeSet;
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use consilium_crds::FederatedStudySpec;
use consilium_federation::digest::canonical_json;
use consilium_federation::model::MAX_ELEMENTS;
use consilium_federation::task::{CONTRACT, TaskFile, TaskKind};
use consilium_federation::{Digest, StudyKey};
use consilium_proto::FILE_PART_BYTES;
use consilium_proto::v1::file_part::Part;
use consilium_proto::v1::task_port_server::{TaskPort, TaskPortServer};
use consilium_proto::v1::{DeliverReply, FetchRequest, FilePart, FileStart, TrainerStateReply, TrainerStateRequest};
use futures::Stream;
use k8s_openapi::api::batch::v1::Job;
use kube::ResourceExt;
use kube::runtime::reflector::ObjectRef;
use rcgen::{CertificateParams, KeyPair};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::metadata::MetadataMap;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Server;
use tonic::{Request, Response, Status, Streaming};

use crate::controllers::context::{Context, ask};
use crate::controllers::init::job::{self, Owner};
use crate::controllers::init::{self, decide::TryState};
use crate::gateway::door::{self, Bounds};
use crate::store::{BlobStore, StoreError};
pub use intake::{Intake, IntakeError};

/// Connections of Init pods; whoever reaches the port and shows no token holds at most these.
const CONNECTIONS: Bounds = Bounds { pending: 32, open: 64, each: 64, handshake: Duration::from_secs(15) };
/// A connection is asked to end after so long, and lives on only with a call under way: whoever has no token has none.
const CONNECTION_AGE: Duration = Duration::from_secs(60);
/// Calls of one connection at a time.
const MAX_CALLS: u32 = 8;
/// Deliveries at a time; each holds a chunk or two.
const MAX_DELIVERIES: usize = 4;
/// A delivery that takes longer is given up.
const DELIVERY_TIMEOUT: Duration = Duration::from_secs(1800);
/// The largest model, and room for its header.
const MAX_MODEL_BYTES: u64 = MAX_ELEMENTS * 4 + (64 << 20);

/// The one file of the result.
const MODEL: &str = "model.safetensors";

/// The task port could not be opened or kept open.
#[derive(Debug, thiserror::Error)]
pub enum PortError {
    /// The address.
    #[error("--task-address is {0:?}: write https:// and the IP address and port of the operator's task Service")]
    Address(String),
    /// The folder of the key.
    #[error("the task port's key in {folder}: {cause}; check the volume of the store")]
    Folder {
        /// Where.
        folder: String,
        /// What the system said.
        cause: std::io::Error,
    },
    /// The certificate.
    #[error("the task port's certificate cannot be made: {0}")]
    Certificate(rcgen::Error),
    /// The certificate cannot be used.
    #[error("the task port's certificate cannot be used: {0}; delete the folder task-port of the store's volume")]
    Tls(String),
    /// The listener.
    #[error("the task port failed: {0}")]
    Serve(tonic::transport::Error),
}

/// The task port's key and certificate, PEM.
#[derive(Clone)]
pub struct PortIdentity {
    key: String,
    /// The certificate: what pods pin.
    pub certificate: String,
}

/// Reads the task port's key and certificate from `folder`, or makes them there for `address`.
///
/// They are kept so that a pod that started before a restart of the operator still trusts it.
///
/// # Errors
/// When the folder cannot be used, or the address is no URL with a host.
pub fn identity(folder: &Path, address: &str) -> Result<PortIdentity, PortError> {
    let fail = |cause| PortError::Folder { folder: folder.display().to_string(), cause };
    let host = host_of(address).ok_or_else(|| PortError::Address(address.to_owned()))?;
    // A certificate for another address is of no use: the name says whose it is.
    let (key_file, certificate_file) = (folder.join(format!("{host}.key")), folder.join(format!("{host}.crt")));
    if let (Ok(key), Ok(certificate)) = (std::fs::read_to_string(&key_file), std::fs::read_to_string(&certificate_file))
    {
        return Ok(PortIdentity { key, certificate });
    }
    let pair = KeyPair::generate().map_err(PortError::Certificate)?;
    let params = CertificateParams::new(vec![host]).map_err(PortError::Certificate)?;
    let certificate = params.self_signed(&pair).map_err(PortError::Certificate)?.pem();
    let key = pair.serialize_pem();
    std::fs::create_dir_all(folder).map_err(fail)?;
    // The certificate comes last: without it both are made anew.
    write_private(&key_file, &key).map_err(fail)?;
    write_private(&certificate_file, &certificate).map_err(fail)?;
    Ok(PortIdentity { key, certificate })
}

fn write_private(file: &Path, text: &str) -> std::io::Result<()> {
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt as _;
    let partial = file.with_extension("part");
    let mut options = std::fs::OpenOptions::new();
    let mut out = options.write(true).create(true).truncate(true).mode(0o600).open(&partial)?;
    out.write_all(text.as_bytes())?;
    out.sync_all()?;
    std::fs::rename(partial, file)
}

fn host_of(address: &str) -> Option<String> {
    let rest = address.strip_prefix("https://")?;
    let (host, port) = rest.trim_end_matches('/').rsplit_once(':')?;
    let _: u16 = port.parse().ok()?;
    let safe = !host.is_empty() && host.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-'));
    safe.then(|| host.to_owned())
}

/// Serves the task port until `shutdown`.
///
/// # Errors
/// When the listener fails.
pub async fn serve(
    listener: TcpListener,
    identity: PortIdentity,
    context: Arc<Context>,
    shutdown: CancellationToken,
) -> Result<(), PortError> {
    let tls = door::tls(identity.certificate.as_bytes(), identity.key.as_bytes(), None).map_err(PortError::Tls)?;
    let incoming = door::open(listener, tls, CONNECTIONS, |_| None);
    let port = InitPort { context: context.clone(), deliveries: Arc::default() };
    let service = TaskPortServer::new(port).max_decoding_message_size(2 * FILE_PART_BYTES);
    // Nothing of a call is read before its token is known.
    let known = move |request: Request<()>| caller(&context, request.metadata()).map(|_| request);
    Server::builder()
        .max_concurrent_streams(MAX_CALLS)
        .max_connection_age(CONNECTION_AGE)
        .max_connection_age_grace(DELIVERY_TIMEOUT)
        .add_service(InterceptedService::new(service, known))
        .serve_with_incoming_shutdown(incoming, shutdown.cancelled_owned())
        .await
        .map_err(PortError::Serve)
}

struct InitPort {
    context: Arc<Context>,
    deliveries: Arc<Deliveries>,
}

/// UIDs of the Jobs whose delivery is under way: each has one at a time, and there are only so many.
#[derive(Default)]
struct Deliveries(Mutex<BTreeSet<String>>);

/// One of them; over when this goes.
struct Delivery {
    all: Arc<Deliveries>,
    job: String,
}

impl Deliveries {
    fn begin(self: &Arc<Self>, job: &str) -> Result<Delivery, Status> {
        let mut under_way = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if under_way.len() >= MAX_DELIVERIES || !under_way.insert(job.to_owned()) {
            return Err(Status::unavailable("this task, or as many others as there may be, delivers now; try again"));
        }
        Ok(Delivery { all: self.clone(), job: job.to_owned() })
    }
}

impl Drop for Delivery {
    fn drop(&mut self) {
        self.all.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.job);
    }
}

/// The caller: a Job that has not ended, and the study it works for.
struct Caller {
    job: Arc<Job>,
    owner: Owner,
}

/// Finds the Job whose token the caller shows. Only the newest try of a study may come: one that was given up must not
/// deliver beside its successor.
fn caller(context: &Context, metadata: &MetadataMap) -> Result<Caller, Status> {
    let refused = || {
        Status::unauthenticated("the bearer token in the metadata key authorization is not that of a task under way")
    };
    let shown = metadata.get("authorization").and_then(|v| v.to_str().ok());
    let shown = Digest::of(shown.and_then(|v| v.strip_prefix("Bearer ")).ok_or_else(refused)?.as_bytes());
    let jobs = context.caches.jobs.state();
    // Digests are compared, so that the time says nothing about the token.
    let mine =
        |j: &&Arc<Job>| j.uid().is_some_and(|uid| Digest::of(job::token(&context.key, &uid).as_bytes()) == shown);
    let job = jobs.iter().find(mine).ok_or_else(refused)?.clone();
    let owner = job::owner(&job).ok_or_else(refused)?;
    let newer = |j: &Arc<Job>| job::owner(j).is_some_and(|o| o == owner) && job::number(j) > job::number(&job);
    if jobs.iter().any(newer) || job::read(&job, None).state != TryState::Active {
        return Err(Status::failed_precondition("this try of the task was given up; a later one takes its place"));
    }
    Ok(Caller { job, owner })
}

impl InitPort {
    fn caller<T>(&self, request: &Request<T>) -> Result<Caller, Status> {
        caller(&self.context, request.metadata())
    }

    async fn task_file(&self, owner: &Owner) -> Result<TaskFile, Status> {
        let spec = self.context.driver.study_spec(owner.spec).await;
        Ok(init_task(&owner.study, &*spec.map_err(|e| Status::unavailable(e.to_string()))?))
    }
}

/// What the trainer is asked for a study's first model.
pub fn init_task(study: &StudyKey, spec: &FederatedStudySpec) -> TaskFile {
    TaskFile {
        contract: CONTRACT,
        study: study.to_string(),
        round: 0,
        rounds: spec.rounds.max,
        kind: TaskKind::Init,
        config: serde_json::Value::Object(spec.trainer.config.clone()),
        seed: u64::try_from(spec.initial_model.seed.unwrap_or(0)).unwrap_or(0),
        data_seed: 0,
        base: None,
        output: spec.output.clone(),
    }
    .written()
}

type Parts = Pin<Box<dyn Stream<Item = Result<FilePart, Status>> + Send>>;

#[tonic::async_trait]
impl TaskPort for InitPort {
    type FetchStream = Parts;

    async fn fetch(&self, request: Request<FetchRequest>) -> Result<Response<Parts>, Status> {
        let caller = self.caller(&request)?;
        let bytes = canonical_json(&self.task_file(&caller.owner).await?);
        let start = FileStart { path: "task.json".into(), size: bytes.len() as u64 };
        let data = bytes.chunks(FILE_PART_BYTES).map(|part| Part::Data(part.to_vec().into()));
        let parts: Vec<_> =
            [Part::Start(start)].into_iter().chain(data).map(|part| Ok(FilePart { part: Some(part) })).collect();
        Ok(Response::new(Box::pin(tokio_stream::iter(parts))))
    }

    async fn deliver(&self, request: Request<Streaming<FilePart>>) -> Result<Response<DeliverReply>, Status> {
        let Caller { job, owner } = self.caller(&request)?;
        let _delivery = self.deliveries.begin(&job.uid().unwrap_or_default())?;
        let mut parts = request.into_inner();
        let incoming = futures::stream::poll_fn(move |context| {
            Pin::new(&mut parts).poll_next(context).map(|part| part.map(|p| p.map(|p| p.part)))
        });
        let received = receive(self.context.hub.store(), Box::pin(incoming));
        let model = tokio::time::timeout(DELIVERY_TIMEOUT, received).await.unwrap_or_else(|_| {
            let minutes = DELIVERY_TIMEOUT.as_secs() / 60;
            Err(Status::deadline_exceeded(format!("the delivery took longer than {minutes} min; deliver again")))
        })?;
        tracing::info!(job = job.name_any(), study = %owner.study, %model, "the first model was delivered");
        let kept = self.context.hub.store().keep_origin(model, &owner.study.namespace).await;
        kept.map_err(|error| untaken(error.into()))?;
        self.context.delivered.put(&owner.uid, owner.spec, model);
        let StudyKey { namespace, name } = &owner.study;
        ask(&self.context.queues.studies, ObjectRef::new(name).within(namespace));
        Ok(Response::new(DeliverReply {}))
    }

    async fn trainer_state(
        &self,
        request: Request<TrainerStateRequest>,
    ) -> Result<Response<TrainerStateReply>, Status> {
        let caller = self.caller(&request)?;
        let pod = init::pod_of(&self.context.caches.pods, &caller.job);
        // However it ended: the courier looks for the result once more before it believes that there is none.
        let failed = pod.is_some_and(|pod| job::ended(&pod).is_some());
        Ok(Response::new(TrainerStateReply { failed }))
    }
}

/// Takes a delivered model into the store; its digest.
async fn receive(
    store: &BlobStore,
    mut parts: Pin<Box<dyn Stream<Item = Result<Option<Part>, Status>> + Send>>,
) -> Result<Digest, Status> {
    use futures::StreamExt as _;
    let bad = |why: &str| Status::invalid_argument(format!("the delivery of an Init task is {MODEL} alone: {why}"));
    let mut file: Option<(Intake<'_>, u64)> = None;
    while let Some(part) = parts.next().await {
        match (part?, &mut file) {
            (Some(Part::Start(start)), None) if start.path == MODEL => {
                if start.size > MAX_MODEL_BYTES {
                    return Err(bad(&format!("{} bytes are more than any model has", start.size)));
                }
                file = Some((Intake::begin(store, start.size).map_err(untaken)?, start.size));
            }
            (Some(Part::Start(start)), _) => return Err(bad(&format!("{:?} is not taken", start.path))),
            (Some(Part::Data(data)), Some((intake, left))) => {
                *left = left.checked_sub(data.len() as u64).ok_or_else(|| bad("it is longer than was said"))?;
                intake.push(&data).await.map_err(untaken)?;
            }
            (Some(Part::Data(_)), None) => return Err(bad("data came before a file's name")),
            (None, _) => return Err(bad("a part was empty")),
        }
    }
    let Some((intake, 0)) = file else { return Err(bad("it is shorter than was said")) };
    intake.finish().await.map_err(untaken)
}

fn untaken(error: IntakeError) -> Status {
    match error {
        IntakeError::Model(why) => {
            Status::invalid_argument(format!("the delivery of an Init task is {MODEL} alone: {why}"))
        }
        IntakeError::Store(error @ StoreError::NoSpace { .. }) => Status::resource_exhausted(error.to_string()),
        IntakeError::Store(error) => Status::unavailable(format!("the model could not be stored: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use consilium_federation::model::{CHUNK_BYTES, ModelManifest, Tensor, TensorSchema};

    use super::*;

    fn model(elements: u64) -> (TensorSchema, Vec<u8>) {
        let schema = TensorSchema(vec![
            Tensor { name: "w".into(), shape: vec![elements - 1] },
            Tensor { name: "b".into(), shape: vec![1] },
        ]);
        let payload: Vec<u8> = (0..elements * 4).map(|i| (i % 251) as u8).collect();
        (schema, payload)
    }

    fn file(elements: u64) -> (ModelManifest, Vec<u8>) {
        let (schema, payload) = model(elements);
        let chunks = payload.chunks(CHUNK_BYTES).map(Digest::of).collect();
        let manifest = ModelManifest::new(schema, chunks).unwrap();
        let mut file = manifest.safetensors_header();
        file.extend(&payload);
        (manifest, file)
    }

    fn start(path: &str, size: usize) -> Option<Part> {
        Some(Part::Start(FileStart { path: path.into(), size: size as u64 }))
    }

    async fn deliver(store: &BlobStore, parts: Vec<Option<Part>>) -> Result<Digest, Status> {
        receive(store, Box::pin(tokio_stream::iter(parts.into_iter().map(Ok)))).await
    }

    #[tokio::test]
    async fn a_delivered_model_lies_in_the_store_chunk_by_chunk_under_its_manifest() {
        let folder = tempfile::tempdir().unwrap();
        let store = BlobStore::open(folder.path()).await.unwrap();
        let (manifest, bytes) = file(CHUNK_BYTES as u64 / 4 + 10);
        let mut parts = vec![start(MODEL, bytes.len())];
        parts.extend(bytes.chunks(700_001).map(|part| Some(Part::Data(part.to_vec().into()))));
        let digest = deliver(&store, parts.clone()).await.unwrap();
        assert_eq!(digest, manifest.digest());
        assert_eq!(store.get_manifest(digest).await.unwrap(), manifest);
        for chunk in &manifest.chunks {
            assert!(store.has_object(*chunk).await.unwrap());
        }
        // The reply was lost and the pod delivers again.
        assert_eq!(deliver(&store, parts).await.unwrap(), digest);
    }

    /// A delivery that is cut off or padded must not become the model that every hospital starts from.
    #[tokio::test]
    async fn a_delivery_that_is_not_one_whole_model_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let store = BlobStore::open(folder.path()).await.unwrap();
        let (_, bytes) = file(100);
        let data = |bytes: &[u8]| Some(Part::Data(bytes.to_vec().into()));
        let size = bytes.len();
        let longer: Vec<u8> = bytes.iter().copied().chain([0; 4]).collect();
        let cases = [
            ("short", vec![start(MODEL, size), data(&bytes[..size - 4])]),
            ("cut to fit", vec![start(MODEL, size - 4), data(&bytes[..size - 4])]),
            ("long", vec![start(MODEL, size), data(&longer)]),
            ("padded", vec![start(MODEL, size + 4), data(&longer)]),
            ("another file", vec![start("update.safetensors", size), data(&bytes)]),
            ("no name", vec![data(&bytes)]),
            ("nothing", vec![]),
        ];
        for (case, parts) in cases {
            let status = deliver(&store, parts).await.unwrap_err();
            assert_eq!(status.code(), tonic::Code::InvalidArgument, "{case}: {status}");
        }
    }

    /// A model that does not fit would fill the volume and stop every round's journal.
    #[tokio::test]
    async fn a_delivery_that_does_not_fit_is_refused_before_it_is_written() {
        let folder = tempfile::tempdir().unwrap();
        let full = Arc::new(|| Ok(crate::store::RESERVED_BYTES + 100));
        let store = BlobStore::open_with(folder.path(), full).await.unwrap();
        let (_, bytes) = file(100);
        let data = |bytes: &[u8]| Some(Part::Data(bytes.to_vec().into()));
        let status = deliver(&store, vec![start(MODEL, bytes.len()), data(&bytes)]).await.unwrap_err();
        assert_eq!(status.code(), tonic::Code::ResourceExhausted, "{status}");
        let status = deliver(&store, vec![start(MODEL, usize::MAX)]).await.unwrap_err();
        assert_eq!(status.code(), tonic::Code::InvalidArgument, "{status}");
        assert_eq!(store.space().unwrap().1, 0);
        // Half precision fits as it comes, and not as it is stored.
        let json = br#"{"w": {"dtype": "BF16", "shape": [10000], "data_offsets": [0, 20000]}}"#;
        let half = [&(json.len() as u64).to_le_bytes()[..], json, &[0; 20_000]].concat();
        let roomy = Arc::new(|| Ok(crate::store::RESERVED_BYTES + 30_000));
        let store = BlobStore::open_with(folder.path(), roomy).await.unwrap();
        let status = deliver(&store, vec![start(MODEL, half.len()), data(&half)]).await.unwrap_err();
        assert_eq!(status.code(), tonic::Code::ResourceExhausted, "{status}");
        assert_eq!(store.space().unwrap().1, 0);
    }

    /// A pod that delivers again and again side by side would hold a chunk of memory for each.
    #[test]
    fn a_task_delivers_once_at_a_time_and_only_so_many_do() {
        let all = Arc::new(Deliveries::default());
        let first = all.begin("1").unwrap();
        assert!(all.begin("1").is_err());
        let _others: Vec<_> = (2..=MAX_DELIVERIES).map(|n| all.begin(&n.to_string()).unwrap()).collect();
        assert!(all.begin("one more").is_err());
        drop(first);
        all.begin("1").unwrap();
    }

    #[test]
    fn the_identity_survives_a_restart_and_the_address_is_checked() {
        let folder = tempfile::tempdir().unwrap();
        let first = identity(folder.path(), "https://10.96.0.50:8444").unwrap();
        let again = identity(folder.path(), "https://10.96.0.50:8444").unwrap();
        assert_eq!(first.certificate, again.certificate);
        assert_ne!(identity(folder.path(), "https://10.96.0.51:8444").unwrap().certificate, first.certificate);
        for bad in ["10.96.0.50:8444", "https://10.96.0.50", "https://../x:1", "https://:1", "http://a:1"] {
            assert!(matches!(identity(folder.path(), bad), Err(PortError::Address(_))), "{bad}");
        }
    }
}
