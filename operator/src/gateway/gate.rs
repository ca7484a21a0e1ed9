//! Before any body is read: who calls, from the connection's certificate, and whether it may; and for chunks and reports a
//! place, so that a few bodies are in memory at a time and the others wait at their senders.

use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use consilium_federation::SiteName;
use consilium_proto::CHUNKS_IN_FLIGHT;
use http_body_util::Limited;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::http::{Request, Response};
use tonic::transport::server::{TcpConnectInfo, TlsConnectInfo};
use tower::{Layer, Service};

use super::Clock;
use super::identity::{Caller, IdentityError, caller};
use crate::hub::Hub;
use crate::metrics::{Metrics, Refusal};

/// Chunk bodies that are read at a time; each holds at most one message.
const BODIES: usize = 8;
/// A body that takes longer loses its place: two at a time, on a line of one megabit a second, just fit.
const BODY_TIMEOUT: Duration = Duration::from_secs(90);
const PUT_CHUNK: &str = "/consilium.v1.Hub/PutChunk";
const REPORT: &str = "/consilium.v1.Hub/Report";
/// Most bytes of a report, and one is read from a hospital at a time: decoded it may need ninety times as much, since an
/// entry of two bytes becomes a whole one, and how many there are is only seen then.
const REPORT_BYTES: usize = 1 << 20;

/// The layer; all connections share it.
#[derive(Clone)]
pub(super) struct Gate(Arc<Shared>);

struct Shared {
    hub: Hub,
    metrics: Metrics,
    clock: Clock,
    places: Places,
    reports: Places,
}

impl Gate {
    pub(super) fn new(hub: Hub, metrics: Metrics, clock: Clock) -> Self {
        let (places, reports) = (Places::new(BODIES, CHUNKS_IN_FLIGHT), Places::new(Semaphore::MAX_PERMITS, 1));
        Self(Arc::new(Shared { hub, metrics, clock, places, reports }))
    }
}

/// Places for bodies of one kind.
struct Places {
    all: Arc<Semaphore>,
    /// How many one hospital gets.
    each: usize,
    /// By hospital; only accepted ones get here.
    of_one: Mutex<HashMap<SiteName, Arc<Semaphore>>>,
}

impl Places {
    fn new(all: usize, each: usize) -> Self {
        Self { all: Arc::new(Semaphore::new(all)), each, of_one: Mutex::default() }
    }

    /// Waits for a place. The semaphores are never closed; without a place a call would be unbounded, not wrong.
    async fn take(&self, site: &SiteName) -> [Option<OwnedSemaphorePermit>; 2] {
        let own = {
            let mut known = self.of_one.lock().unwrap_or_else(PoisonError::into_inner);
            known.entry(site.clone()).or_insert_with(|| Arc::new(Semaphore::new(self.each))).clone()
        };
        // Its own first, so that one hospital that stalls holds nobody else up.
        let own = own.acquire_owned().await.ok();
        [own, self.all.clone().acquire_owned().await.ok()]
    }
}

impl Shared {
    /// Who calls, if it may.
    fn admit(&self, request: &Request<Body>) -> Result<Caller, Status> {
        let tls = request.extensions().get::<TlsConnectInfo<TcpConnectInfo>>();
        let certificates = tls.and_then(TlsConnectInfo::peer_certs);
        let leaf = certificates.as_ref().and_then(|chain| chain.first());
        let now = (self.clock)();
        let known = leaf.ok_or(IdentityError::NoCertificate).and_then(|leaf| caller(leaf)?.at(now));
        let caller = known.map_err(|error| {
            self.metrics.refused(Refusal::NoIdentity);
            Status::unauthenticated(error.to_string())
        })?;
        if !self.hub.knows_accepted() {
            return Err(Status::unavailable("the hub is starting and does not know its hospitals yet; try again soon"));
        }
        if !self.hub.is_accepted(&caller.site) {
            self.metrics.refused(Refusal::NotAccepted);
            return Err(super::not_accepted(&caller.site));
        }
        self.hub.contact(&caller.site, now);
        self.metrics.certificate_expiry(&caller.site, caller.expires);
        Ok(caller)
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
        let site = caller.site.clone();
        request.extensions_mut().insert(caller);
        let is_report = match request.uri().path() {
            PUT_CHUNK => false,
            REPORT => true,
            _ => return Box::pin(self.inner.call(request)),
        };
        if is_report {
            request = request.map(|body| Body::new(Limited::new(body, REPORT_BYTES)));
        }
        // The instance that was polled ready must serve the call (tower's contract).
        let clone = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, clone);
        let gate = self.gate.clone();
        Box::pin(async move {
            let places = if is_report { &gate.reports } else { &gate.places };
            let _place = places.take(&site).await;
            match tokio::time::timeout(BODY_TIMEOUT, inner.call(request)).await {
                Ok(answer) => answer,
                Err(_) => Ok(Status::deadline_exceeded(format!(
                    "the call took longer than {} s; send it again",
                    BODY_TIMEOUT.as_secs()
                ))
                .into_http()),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    /// A hospital whose uploads stall must not stop the uploads of every study.
    #[tokio::test]
    async fn one_hospital_cannot_take_all_places() {
        let places = Places::new(BODIES, CHUNKS_IN_FLIGHT);
        let (alder, birch): (SiteName, SiteName) = ("alder".parse().unwrap(), "birch".parse().unwrap());
        let held = [places.take(&alder).await, places.take(&alder).await];
        assert!(places.take(&alder).now_or_never().is_none());
        assert!(places.take(&birch).now_or_never().is_some());
        drop(held);
        assert!(places.take(&alder).now_or_never().is_some());
    }
}
