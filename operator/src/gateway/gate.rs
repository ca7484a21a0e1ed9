//! Before any body is read: who calls, from the connection's certificate, and whether it may; then room for what the call
//! holds in memory, of this hospital and of all, so that a few bodies are in memory at a time and the others wait at their
//! senders. Every kind of call has its own room: who sends large chunks over a slow line keeps no report or veto waiting.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use consilium_proto::{CHUNKS_IN_FLIGHT, INSTANCE, MAX_MESSAGE_BYTES};
use http_body_util::{BodyExt as _, Full, Limited};
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::Bytes;
use tonic::codegen::http::{Request, Response};
use tower::{Layer, Service};

use super::door::Visitor;
use super::identity::{Caller, IdentityError, caller};
use super::objects;
use super::scales::{Scales, Weight, count};
use super::{Clock, service};
use crate::hub::Hub;
use crate::metrics::{Metrics, Refusal};

/// Chunk bodies that are read at a time; each holds at most one message.
const BODIES: usize = 8;
/// A chunk or an object that takes longer loses its place: two at a time, on a line of one megabit a second, just fit.
const BODY_TIMEOUT: Duration = Duration::from_secs(90);
/// Any other call that takes longer is given up.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);
/// Downloads at a time, of all hospitals and of one.
const DOWNLOADS: (usize, usize) = (128 * objects::HELD, CHUNKS_IN_FLIGHT * 4 * objects::HELD);
/// Words (all other bodies) that are read at a time, and those that are decoded and served.
const WORDS: (usize, usize) = (64 << 20, 2 << 20);
const SERVED: (usize, usize) = (64 << 20, 16 << 20);
/// Watches that one hospital may have open: its own, and those of connections that are not given up yet.
const WATCHES: usize = 8;
/// Most bytes of a call that only says a name.
const NAME_BYTES: usize = 4 << 10;

const SERVICE: &str = "/consilium.v1.Hub/";

/// What is known of a kind of call before it is read.
struct Words {
    /// Most bytes of its body.
    bytes: usize,
    /// Fields that become structures of their own when it is decoded, by their path, and how many there may be.
    entries: (&'static [&'static [u32]], usize),
}

/// Entries of a report: rounds, deployments, rosters, and the classes of published scores.
const REPORT: Words = Words { bytes: 1 << 20, entries: (&[&[4], &[5], &[6], &[4, 5, 3, 2]], 20_000) };
/// Digests of chunks: four thousand for the largest model there can be.
const BEGIN_UPLOAD: Words = Words { bytes: 512 << 10, entries: (&[&[3]], 8192) };
/// The shares of the largest roster take eighty thousand bytes.
const PUT_MESSAGE: Words = Words { bytes: 256 << 10, entries: (&[], 0) };
/// Bytes that a decoded entry takes, at most.
const ENTRY: usize = 512;

/// The layer; all connections share it.
#[derive(Clone)]
pub(super) struct Gate(Arc<Shared>);

struct Shared {
    hub: Hub,
    metrics: Metrics,
    clock: Clock,
    chunks: Scales,
    downloads: Scales,
    words: Scales,
    served: Scales,
    watches: Scales,
}

impl Gate {
    pub(super) fn new(hub: Hub, metrics: Metrics, clock: Clock) -> Self {
        Self(Arc::new(Shared {
            hub,
            metrics,
            clock,
            chunks: Scales::new(BODIES * MAX_MESSAGE_BYTES, CHUNKS_IN_FLIGHT * MAX_MESSAGE_BYTES),
            downloads: Scales::new(DOWNLOADS.0, DOWNLOADS.1),
            words: Scales::new(WORDS.0, WORDS.1),
            served: Scales::new(SERVED.0, SERVED.1),
            // One KiB each stands for one.
            watches: Scales::new(1 << 30, WATCHES << 10),
        }))
    }
}

impl Shared {
    /// Who calls, if it may.
    fn admit(&self, request: &Request<Body>) -> Result<Caller, Status> {
        let certificate = request.extensions().get::<Visitor>().and_then(Visitor::certificate);
        let now = (self.clock)();
        let known = certificate.ok_or(IdentityError::NoCertificate).and_then(|leaf| caller(leaf)?.at(now));
        let caller = known.map_err(|error| {
            self.metrics.refused(Refusal::NoIdentity);
            Status::unauthenticated(error.to_string())
        })?;
        if !self.hub.knows_accepted() {
            return Err(Status::unavailable("the hub is starting and does not know its hospitals yet; try again soon"));
        }
        // A certificate in the wrong hands is nobody's: it is not heard as an agent of its hospital.
        if let Some(error) = self.hub.issued_since(&caller.site).and_then(|since| caller.superseded(since)) {
            self.metrics.refused(Refusal::NoIdentity);
            return Err(Status::unauthenticated(error.to_string()));
        }
        // Heard also while it is refused: it is there.
        let instance = request.headers().get(INSTANCE).and_then(|name| name.to_str().ok()).unwrap_or_default();
        self.hub.hear_instance(&caller.site, instance, now);
        if !self.hub.is_accepted(&caller.site) {
            return Err(super::not_accepted(&self.hub, &self.metrics, &caller.site));
        }
        self.hub.contact(&caller.site, now);
        self.metrics.certificate_expiry(&caller.site, caller.expires);
        Ok(caller)
    }

    /// Reads a whole body that is no longer than the call may be, within the room of this hospital.
    async fn read(&self, caller: &Caller, body: Body, words: &Words) -> Result<(Bytes, Weight), Status> {
        let weight = self.words.take(&caller.site, words.bytes).await;
        let body = Limited::new(body, words.bytes).collect().await.map_err(|error| {
            if error.is::<http_body_util::LengthLimitError>() {
                return Status::resource_exhausted(format!("the call has more than {} bytes", words.bytes));
            }
            Status::unavailable("the call's body ended early; send it again")
        })?;
        let bytes = body.to_bytes();
        let (paths, most) = words.entries;
        let entries = match paths {
            [] => 0,
            // What cannot be counted may decode to anything: a second frame, a byte too many, a field of no known kind.
            paths => objects::message(&bytes).and_then(|message| count(message, paths)).ok_or_else(|| {
                Status::invalid_argument("the call is not one whole message; agent and hub must be of one version")
            })?,
        };
        if entries > most {
            return Err(Status::invalid_argument(format!("the call lists {entries} entries, at most {most} are read")));
        }
        // The body counts for as long as it waits: this order alone, so that nobody waits for each other.
        let served = self.served.take(&caller.site, 2 * bytes.len() + entries * ENTRY).await;
        drop(weight);
        Ok((bytes, served))
    }

    async fn download(&self, caller: &Caller, request: Request<Body>) -> Result<Response<Body>, Status> {
        let visitor = request.extensions().get::<Visitor>().cloned();
        let words = Words { bytes: NAME_BYTES, entries: (&[], 0) };
        let (body, _weight) = self.read(caller, request.into_body(), &words).await?;
        let digest = objects::asked(&body)?;
        let found = service::find_object(&self.hub, &self.metrics, &caller.site, &digest).await?;
        let weight = self.downloads.take(&caller.site, objects::HELD + found.in_memory()).await;
        let object = service::open_object(&self.hub, found).await?;
        self.metrics.downloaded(&caller.site, object.length());
        Ok(objects::answer(object, weight, visitor, BODY_TIMEOUT))
    }
}

impl<S> Layer<S> for Gate {
    type Service = Gated<S>;
    fn layer(&self, inner: S) -> Gated<S> {
        Gated { inner, gate: self.0.clone() }
    }
}

/// A service whose calls know their caller.
#[derive(Clone)]
pub(super) struct Gated<S> {
    inner: S,
    gate: Arc<Shared>,
}

impl<S> Service<Request<Body>> for Gated<S>
where
    S: Service<Request<Body>, Response = Response<Body>> + Clone + Send + 'static,
    S::Future: Send,
    S::Error: Send,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let caller = match self.gate.admit(&request) {
            Ok(caller) => caller,
            Err(status) => {
                tracing::info!(
                    path = request.uri().path(),
                    message = status.message(),
                    "a call was refused at the door"
                );
                return Box::pin(async move { Ok(status.into_http()) });
            }
        };
        request.extensions_mut().insert(caller.clone());
        // The instance that was polled ready must serve the call (tower's contract).
        let clone = self.inner.clone();
        let inner = std::mem::replace(&mut self.inner, clone);
        let gate = self.gate.clone();
        Box::pin(async move {
            let method = request.uri().path().strip_prefix(SERVICE).unwrap_or_default().to_owned();
            let limit = match &*method {
                // Its time begins with its place: a queue behind slow lines must not cost those who wait in it.
                "PutChunk" => return gate.serve(&method, caller, request, inner).await,
                "GetObject" => BODY_TIMEOUT,
                _ => CALL_TIMEOUT,
            };
            within(limit, gate.serve(&method, caller, request, inner)).await
        })
    }
}

impl Shared {
    async fn serve<S>(
        &self,
        method: &str,
        caller: Caller,
        request: Request<Body>,
        mut inner: S,
    ) -> Result<Response<Body>, S::Error>
    where
        S: Service<Request<Body>, Response = Response<Body>>,
    {
        let words = match method {
            "PutChunk" => {
                let _weight = self.chunks.take(&caller.site, MAX_MESSAGE_BYTES).await;
                return within(BODY_TIMEOUT, inner.call(request)).await;
            }
            "GetObject" => {
                let begun = std::time::Instant::now();
                let answer = self.download(&caller, request).await;
                service::observed(&self.metrics, "GetObject", begun, answer.as_ref().err());
                return Ok(answer.unwrap_or_else(Status::into_http));
            }
            "Watch" => {
                let Some(place) = self.watches.try_take(&caller.site, 1) else {
                    let text = format!("{WATCHES} watches are open for this hospital; close one");
                    return Ok(Status::resource_exhausted(text).into_http());
                };
                let request = request.map(|body| Body::new(Limited::new(body, NAME_BYTES)));
                let answer = inner.call(request).await?;
                return Ok(answer.map(|body| Body::new(Holding { body, place })));
            }
            "Report" => REPORT,
            "BeginUpload" => BEGIN_UPLOAD,
            "PutMessage" => PUT_MESSAGE,
            // There is no such call, and the answer says so without reading anything.
            _ => return inner.call(request.map(|_| Body::empty())).await,
        };
        let (head, body) = request.into_parts();
        match self.read(&caller, body, &words).await {
            Ok((bytes, _weight)) => inner.call(Request::from_parts(head, Body::new(Full::new(bytes)))).await,
            Err(status) => {
                tracing::info!(site = %caller.site, method, message = status.message(), "a call was not read");
                Ok(status.into_http())
            }
        }
    }
}

/// The answer, or that it takes too long.
async fn within<E>(
    limit: Duration,
    answer: impl Future<Output = Result<Response<Body>, E>>,
) -> Result<Response<Body>, E> {
    tokio::time::timeout(limit, answer).await.unwrap_or_else(|_| {
        let text = format!("the call took longer than {} s; send it again", limit.as_secs());
        Ok(Status::deadline_exceeded(text).into_http())
    })
}

/// A body that holds a place until it ends.
struct Holding {
    body: Body,
    #[allow(dead_code, reason = "held for its Drop")]
    place: Weight,
}

impl http_body::Body for Holding {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, Status>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }
}
