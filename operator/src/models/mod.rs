//! The door for models: releases go out to people, models of theirs come in.
//!
//! It listens on the pod's loopback alone, in plain HTTP: there is no way to it but the API server's port-forward, which the
//! cluster's roles grant, and nothing behind it without a short-lived token that was made for this door ([`AUDIENCE`]).
//! Whether its owner may pull or push is asked of the API server, each time. A model is never held whole: it goes out chunk
//! by chunk, each verified, and comes in as the result of an Init task does.
//!
//! ```text
//! GET  /v1/{namespace}/releases/{name}/manifest         the model's table of contents, whose digest names the model
//! GET  /v1/{namespace}/releases/{name}/payload?from=N   its chunks from number N on
//! POST /v1/{namespace}/models                           a safetensors file; answers {"model": digest}
//! ```

mod connection;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, Query, Request, State};
use axum::http::header::{AUTHORIZATION, CONTENT_LENGTH, RETRY_AFTER};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use bytes::Bytes;
use consilium_federation::Digest;
use consilium_federation::model::{MAX_ELEMENTS, ModelManifest};
use futures::StreamExt as _;
use futures::stream::{self, Stream};
use serde::Deserialize;
use tokio::net::TcpListener;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use crate::init_port::{Intake, IntakeError};
use crate::store::{BlobStore, StoreError};

/// Whom a token must be for: one that opens the API server opens nothing here, and the other way round.
pub const AUDIENCE: &str = "consilium.health/models";
/// Models on their way at a time, out and in; each holds a chunk or two.
const MOVES: usize = 4;
/// A model that takes longer to come in is given up.
const PUSH_TIMEOUT: Duration = Duration::from_secs(1800);
/// The largest model, and room for its header.
const MAX_FILE: u64 = MAX_ELEMENTS * 4 + (64 << 20);

/// What somebody wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Act {
    /// Take the model of a release home.
    Pull {
        /// Namespace of the release.
        namespace: String,
        /// Its name.
        release: String,
    },
    /// Bring a model that studies of a namespace may start from.
    Push {
        /// The namespace.
        namespace: String,
    },
}

/// Who wants it, as the API server names them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Who(pub String);

/// Why somebody does not get in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Denied {
    /// The token is not known here.
    Unknown,
    /// They have no right to it; the text says which one is missing.
    Forbidden(String),
    /// There is no such release, or it may not be handed out; the text says why.
    Release(String),
    /// It could not be found out now.
    Passing(String),
}

/// What the door asks of the cluster.
#[tonic::async_trait]
pub trait Cluster: Send + Sync + 'static {
    /// Who has this token, if they may do this.
    async fn admit(&self, token: &str, act: &Act) -> Result<Who, Denied>;
    /// The model of a release that is attested by this hub.
    fn release(&self, namespace: &str, name: &str) -> Result<Digest, Denied>;
    /// Writes down, where others look, that somebody took or brought a model.
    async fn record(&self, who: &Who, act: &Act, model: Digest);
}

#[derive(Clone)]
struct Door {
    store: BlobStore,
    cluster: Arc<dyn Cluster>,
    moves: Arc<Semaphore>,
}

/// Serves the door until `shutdown`.
///
/// # Errors
/// When the listener fails.
pub async fn serve(
    listener: TcpListener,
    store: BlobStore,
    cluster: Arc<dyn Cluster>,
    shutdown: CancellationToken,
) -> std::io::Result<()> {
    let listener = connection::Bounded::new(listener);
    axum::serve(listener, router(store, cluster)).with_graceful_shutdown(shutdown.cancelled_owned()).await
}

/// What [`serve`] answers with.
pub fn router(store: BlobStore, cluster: Arc<dyn Cluster>) -> Router {
    Router::new()
        .route("/v1/{namespace}/releases/{name}/manifest", get(manifest))
        .route("/v1/{namespace}/releases/{name}/payload", get(payload))
        .route("/v1/{namespace}/models", post(push))
        .with_state(Door { store, cluster, moves: Arc::new(Semaphore::new(MOVES)) })
}

/// An answer that is none of what was asked for: a sentence for a person.
struct Refused(StatusCode, String);

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let mut response = (self.0, self.1).into_response();
        if self.0 == StatusCode::SERVICE_UNAVAILABLE {
            response.headers_mut().insert(RETRY_AFTER, axum::http::HeaderValue::from_static("5"));
        }
        response
    }
}

impl From<Denied> for Refused {
    fn from(denied: Denied) -> Self {
        match denied {
            Denied::Unknown => {
                let why =
                    format!("the token is not one that this cluster made for {AUDIENCE}, or it is over; make another");
                Self(StatusCode::UNAUTHORIZED, why)
            }
            Denied::Forbidden(why) => Self(StatusCode::FORBIDDEN, why),
            Denied::Release(why) => Self(StatusCode::NOT_FOUND, why),
            Denied::Passing(why) => Self(StatusCode::SERVICE_UNAVAILABLE, why),
        }
    }
}

impl From<StoreError> for Refused {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::NoSpace { .. } => Self(StatusCode::INSUFFICIENT_STORAGE, error.to_string()),
            error => Self(StatusCode::SERVICE_UNAVAILABLE, format!("the hub's store: {error}")),
        }
    }
}

impl From<IntakeError> for Refused {
    fn from(error: IntakeError) -> Self {
        match error {
            IntakeError::Model(why) => Self(StatusCode::UNPROCESSABLE_ENTITY, why.to_string()),
            IntakeError::Store(error) => error.into(),
        }
    }
}

impl Door {
    async fn admit(&self, headers: &HeaderMap, act: &Act) -> Result<Who, Refused> {
        let shown = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok());
        let token = shown.and_then(|value| value.strip_prefix("Bearer ")).filter(|token| !token.is_empty());
        let admitted = self.cluster.admit(token.ok_or(Denied::Unknown)?, act).await;
        if let Err(denied) = &admitted {
            tracing::warn!(?act, ?denied, "the door for models stays shut");
        }
        Ok(admitted?)
    }

    /// A place among those whose models are on their way.
    fn begin(&self) -> Result<OwnedSemaphorePermit, Refused> {
        self.moves.clone().try_acquire_owned().map_err(|_| {
            let why = format!("{MOVES} models are on their way, and no more are taken at a time; try again");
            Refused(StatusCode::SERVICE_UNAVAILABLE, why)
        })
    }

    async fn asked(&self, headers: &HeaderMap, path: (String, String)) -> Result<(Who, Act, ModelManifest), Refused> {
        let (namespace, release) = path;
        let act = Act::Pull { namespace: namespace.clone(), release: release.clone() };
        // First who asks: to others it is not even said whether there is such a release.
        let who = self.admit(headers, &act).await?;
        let model = self.cluster.release(&namespace, &release)?;
        Ok((who, act, self.store.get_manifest(model).await?))
    }
}

async fn manifest(
    State(door): State<Door>,
    Path(path): Path<(String, String)>,
    headers: HeaderMap,
) -> Result<Vec<u8>, Refused> {
    let (_, _, manifest) = door.asked(&headers, path).await?;
    Ok(manifest.to_bytes())
}

#[derive(Deserialize)]
struct From_ {
    #[serde(default)]
    from: usize,
}

async fn payload(
    State(door): State<Door>,
    Path(path): Path<(String, String)>,
    Query(From_ { from }): Query<From_>,
    headers: HeaderMap,
) -> Result<Body, Refused> {
    let place = door.begin()?;
    let (who, act, manifest) = door.asked(&headers, path).await?;
    if from > manifest.chunks.len() {
        let why = format!("from is {from}, but the model has {} chunks", manifest.chunks.len());
        return Err(Refused(StatusCode::RANGE_NOT_SATISFIABLE, why));
    }
    let model = manifest.digest();
    door.cluster.record(&who, &act, model).await;
    tracing::info!(who = who.0, %model, ?act, from, "a model goes out");
    let going = Going { store: door.store, who, model, manifest, next: from, _place: place };
    Ok(Body::from_stream(chunks(going)))
}

/// A model on its way out. The log says how far it came, however it ends.
struct Going {
    store: BlobStore,
    who: Who,
    model: Digest,
    manifest: ModelManifest,
    next: usize,
    _place: OwnedSemaphorePermit,
}

impl Drop for Going {
    fn drop(&mut self) {
        let (next, of) = (self.next, self.manifest.chunks.len());
        tracing::info!(who = self.who.0, model = %self.model, chunks = next, of, whole = next == of, "a model went out");
    }
}

fn chunks(going: Going) -> impl Stream<Item = Result<Bytes, StoreError>> {
    stream::try_unfold(going, |mut going| async move {
        let Some(chunk) = going.manifest.chunks.get(going.next) else { return Ok(None) };
        let bytes = going.store.get_object(*chunk).await?;
        going.next += 1;
        Ok(Some((bytes, going)))
    })
}

async fn push(
    State(door): State<Door>,
    Path(namespace): Path<String>,
    headers: HeaderMap,
    request: Request,
) -> Result<Response, Refused> {
    let _place = door.begin()?;
    let act = Act::Push { namespace: namespace.clone() };
    let who = door.admit(&headers, &act).await?;
    let said = headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    let size =
        said.ok_or_else(|| Refused(StatusCode::LENGTH_REQUIRED, "say the file's length in Content-Length".into()))?;
    if size > MAX_FILE {
        let why = format!("{size} bytes are more than any model has ({MAX_FILE})");
        return Err(Refused(StatusCode::PAYLOAD_TOO_LARGE, why));
    }
    let taken = tokio::time::timeout(PUSH_TIMEOUT, take(&door.store, size, request.into_body())).await;
    let model = taken.unwrap_or_else(|_| {
        let minutes = PUSH_TIMEOUT.as_secs() / 60;
        Err(Refused(
            StatusCode::REQUEST_TIMEOUT,
            format!("the file took longer than {minutes} min to come; push it again"),
        ))
    })?;
    door.store.keep_origin(model, &namespace).await?;
    door.cluster.record(&who, &act, model).await;
    tracing::info!(who = who.0, %model, ?act, bytes = size, "a model came in");
    Ok(axum::Json(serde_json::json!({ "model": model })).into_response())
}

async fn take(store: &BlobStore, size: u64, body: Body) -> Result<Digest, Refused> {
    let mut intake = Intake::begin(store, size)?;
    let mut parts = body.into_data_stream();
    // That no more comes than was said, and no less, is the matter of the library that reads the body.
    while let Some(part) = parts.next().await {
        let part = part.map_err(|error| {
            Refused(StatusCode::BAD_REQUEST, format!("the file came in pieces that end early: {error}"))
        })?;
        intake.push(&part).await?;
    }
    Ok(intake.finish().await?)
}

#[cfg(test)]
mod tests;
