//! Bounds the memory of chunks on their way in: a few bodies are read at a time, the others wait at their senders.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::sync::Semaphore;
use tonic::body::Body;
use tonic::codegen::http::{Request, Response};
use tower::{Layer, Service};

/// Chunk bodies that are read at a time; each holds at most one message.
const BODIES: usize = 8;
/// A body that takes longer loses its place, or a stalled hospital would hold up the others.
const BODY_TIMEOUT: Duration = Duration::from_secs(60);
const PUT_CHUNK: &str = "/consilium.v1.Hub/PutChunk";

/// The layer; all connections share its places.
#[derive(Clone)]
pub(super) struct UploadGate(Arc<Semaphore>);

impl Default for UploadGate {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(BODIES)))
    }
}

impl<S> Layer<S> for UploadGate {
    type Service = Gated<S>;
    fn layer(&self, inner: S) -> Gated<S> {
        Gated { inner, places: self.0.clone() }
    }
}

/// A service whose chunk uploads wait for a place before their body is read.
#[derive(Clone)]
pub(super) struct Gated<S> {
    inner: S,
    places: Arc<Semaphore>,
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

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        if request.uri().path() != PUT_CHUNK {
            return Box::pin(self.inner.call(request));
        }
        // The instance that was polled ready must serve the call (tower's contract).
        let clone = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, clone);
        let places = self.places.clone();
        Box::pin(async move {
            // The semaphore is never closed; without a place the call would only be unbounded, not wrong.
            let _place = places.acquire_owned().await;
            match tokio::time::timeout(BODY_TIMEOUT, inner.call(request)).await {
                Ok(answer) => answer,
                Err(_) => Ok(tonic::Status::deadline_exceeded(format!(
                    "the chunk took longer than {} s; send it again",
                    BODY_TIMEOUT.as_secs()
                ))
                .into_http()),
            }
        })
    }
}
