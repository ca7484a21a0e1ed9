//! The HTTP surface: the protocol's endpoints, health and metrics.

use std::time::{Duration, Instant};

use axum::Router;
use axum::body::{Body, Bytes, HttpBody, to_bytes};
use axum::extract::{Path, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::middleware::map_response;
use axum::response::{IntoResponse, Json, Response};
use axum::routing::{get, post};
use http_body_util::{BodyExt, LengthLimitError};
use serde_json::json;

use crate::batcher::{Batcher, Refused};
use crate::memory::{Bounds, PER_BODY_BYTE, PER_VOXEL};
use crate::metrics::{Ending, Metrics};
use crate::protocol::{self, HEADER_LENGTH, Identity, Question};
use crate::room::{Held, Room};

/// How long a body may take: it holds room that others wait for.
const BODY_TIME: Duration = Duration::from_secs(60);

/// What handlers share.
#[derive(Debug, Clone)]
pub struct Served {
    /// The model's names.
    pub identity: Identity,
    /// The way to the network.
    pub batcher: Batcher,
    /// Metrics.
    pub metrics: Metrics,
    /// What fits in memory.
    pub bounds: Bounds,
    /// What of it is left.
    pub room: Room,
}

/// All routes. The network is loaded before the server listens, so that live and ready are one.
pub fn router(served: Served) -> Router {
    Router::new()
        .route("/v2", get(server_metadata))
        .route("/v2/health/live", get(healthy))
        .route("/v2/health/ready", get(healthy))
        .route("/livez", get(healthy))
        .route("/readyz", get(healthy))
        .route("/metrics", get(metrics))
        .route("/v2/models/{model}", get(model_metadata))
        .route("/v2/models/{model}/ready", get(model_ready))
        .route("/v2/models/{model}/infer", post(infer))
        .route("/v2/models/{model}/versions/{version}", get(version_metadata))
        .route("/v2/models/{model}/versions/{version}/ready", get(version_ready))
        .route("/v2/models/{model}/versions/{version}/infer", post(infer_version))
        .layer(map_response(with_a_message))
        .with_state(served)
}

/// Gives errors that no handler of ours made (an unknown path, another method) the form of the others.
async fn with_a_message(response: Response) -> Response {
    let status = response.status();
    let json = HeaderValue::from_static("application/json");
    let error = status.is_client_error() || status.is_server_error();
    if !error || response.headers().get(header::CONTENT_TYPE) == Some(&json) {
        return response;
    }
    let reason = status.canonical_reason().unwrap_or("error");
    let text = json!({ "error": format!("{reason}: see docs/guides/inference.md for the paths and methods") });
    let (mut head, _) = response.into_parts();
    head.headers.remove(header::CONTENT_LENGTH);
    head.headers.insert(header::CONTENT_TYPE, json);
    Response::from_parts(head, Body::from(text.to_string()))
}

async fn server_metadata() -> Response {
    Json(json!({ "name": "consilium-inference", "version": env!("CARGO_PKG_VERSION"),
        "extensions": ["binary_tensor_data"] }))
    .into_response()
}

async fn healthy() -> StatusCode {
    StatusCode::OK
}

async fn metrics(State(served): State<Served>) -> Response {
    match served.metrics.text() {
        Ok(text) => ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response(),
        Err(e) => error(StatusCode::INTERNAL_SERVER_ERROR, &e.to_string()),
    }
}

fn error(status: StatusCode, message: &str) -> Response {
    (status, Json(json!({ "error": message }))).into_response()
}

/// Whether a path names the served model; `None` when it does.
fn other_model(served: &Served, model: &str, version: Option<&str>) -> Option<Response> {
    let identity = &served.identity;
    if model != identity.name {
        let message = format!("model {model:?} is not served here; this server serves {:?}", identity.name);
        return Some(error(StatusCode::NOT_FOUND, &message));
    }
    let version = version.filter(|version| *version != identity.version)?;
    let message =
        format!("version {version:?} of {model:?} is not served here; this server serves {:?}", identity.version);
    Some(error(StatusCode::NOT_FOUND, &message))
}

async fn model_metadata(State(served): State<Served>, Path(model): Path<String>) -> Response {
    other_model(&served, &model, None).unwrap_or_else(|| Json(protocol::metadata(&served.identity)).into_response())
}

async fn version_metadata(State(served): State<Served>, Path((model, version)): Path<(String, String)>) -> Response {
    other_model(&served, &model, Some(&version))
        .unwrap_or_else(|| Json(protocol::metadata(&served.identity)).into_response())
}

async fn model_ready(State(served): State<Served>, Path(model): Path<String>) -> Response {
    other_model(&served, &model, None).unwrap_or_else(|| StatusCode::OK.into_response())
}

async fn version_ready(State(served): State<Served>, Path((model, version)): Path<(String, String)>) -> Response {
    other_model(&served, &model, Some(&version)).unwrap_or_else(|| StatusCode::OK.into_response())
}

async fn infer(State(served): State<Served>, Path(model): Path<String>, headers: HeaderMap, body: Body) -> Response {
    match other_model(&served, &model, None) {
        Some(response) => response,
        None => answer(&served, &headers, body).await,
    }
}

async fn infer_version(
    State(served): State<Served>,
    Path((model, version)): Path<(String, String)>,
    headers: HeaderMap,
    body: Body,
) -> Response {
    match other_model(&served, &model, Some(&version)) {
        Some(response) => response,
        None => answer(&served, &headers, body).await,
    }
}

async fn answer(served: &Served, headers: &HeaderMap, body: Body) -> Response {
    let received = receive(served, headers, body).await;
    let began = Instant::now();
    let result = match received {
        Ok(request) => try_answer(served, request).await,
        Err(failure) => Err(failure),
    };
    let seconds = began.elapsed().as_secs_f64();
    let (ending, response) = match result {
        Ok(response) => {
            served.metrics.seconds.observe(seconds);
            (Ending::Ok, response)
        }
        Err(failure) => *failure,
    };
    served.metrics.ended(ending);
    tracing::info!(result = ?ending, status = response.status().as_u16(), seconds, "infer");
    response
}

/// A whole request, with the room that it and its answer take.
struct Received {
    json_length: Option<usize>,
    body: Bytes,
    held: Held,
}

type Failure = Box<(Ending, Response)>;

fn invalid(status: StatusCode, message: &str) -> Failure {
    Box::new((Ending::Invalid, error(status, message)))
}

fn refused(refused: &Refused) -> Failure {
    match refused {
        Refused::Overloaded(_) | Refused::NoRoom => {
            let mut response = error(StatusCode::SERVICE_UNAVAILABLE, &refused.to_string());
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("5"));
            Box::new((Ending::Overloaded, response))
        }
        Refused::Failed(_) => {
            Box::new((Ending::Failed, error(StatusCode::INTERNAL_SERVER_ERROR, &refused.to_string())))
        }
    }
}

async fn try_answer(served: &Served, request: Received) -> Result<Response, Failure> {
    let Received { json_length, body, mut held } = request;
    let Question { id, volume, binary_answer } = protocol::parse(&body, json_length, &served.bounds)
        .map_err(|e| invalid(StatusCode::BAD_REQUEST, &e.to_string()))?;
    drop(body);
    held.keep(volume.voxels.len() as u64 * PER_VOXEL);
    let (mask, mut held) = served.batcher.segment(volume, held).await.map_err(|e| refused(&e))?;
    let answer = protocol::answer(&served.identity, id.as_deref(), binary_answer, &mask);
    drop(mask);
    held.keep(answer.body.capacity() as u64);
    let mut response = held.around(answer.body).into_response();
    let kind = if answer.json_length.is_some() { "application/octet-stream" } else { "application/json" };
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    if let Some(length) = answer.json_length {
        // Safety of the name: a constant of valid header characters in any case.
        response.headers_mut().insert("inference-header-content-length", HeaderValue::from(length));
    }
    Ok(response)
}

fn json_length(headers: &HeaderMap) -> Result<Option<usize>, Failure> {
    let Some(value) = headers.get(HEADER_LENGTH) else { return Ok(None) };
    let length = value.to_str().ok().and_then(|text| text.parse::<usize>().ok());
    let wrong = || invalid(StatusCode::BAD_REQUEST, &format!("{HEADER_LENGTH} is no whole number"));
    length.map(Some).ok_or_else(wrong)
}

/// Takes room for a body and all that comes of it, before a byte of it is read; then reads it.
async fn receive(served: &Served, headers: &HeaderMap, body: Body) -> Result<Received, Failure> {
    let json_length = json_length(headers)?;
    let binary = json_length.is_some();
    let most = if binary { served.bounds.max_binary() } else { served.bounds.max_json };
    let too_long = || {
        let way_out = if binary { "send a smaller volume" } else { "send the voxels as bytes (binary_data_size)" };
        let message = format!("the body is longer than the {most} bytes that are taken of this kind here; {way_out}");
        invalid(StatusCode::PAYLOAD_TOO_LARGE, &message)
    };
    // Without a length the body may be as long as any.
    let length = body.size_hint().upper().unwrap_or(most);
    if length > most {
        discard(body).await;
        return Err(too_long());
    }
    let Some(held) = served.room.take(length * PER_BODY_BYTE) else {
        discard(body).await;
        return Err(refused(&Refused::NoRoom));
    };
    match tokio::time::timeout(BODY_TIME, to_bytes(body, usize::try_from(length).unwrap_or(usize::MAX))).await {
        Ok(Ok(body)) => Ok(Received { json_length, body, held }),
        Ok(Err(e)) if is_length_limit(&e) => Err(too_long()),
        Ok(Err(e)) => Err(invalid(StatusCode::BAD_REQUEST, &format!("the body broke off: {e}"))),
        Err(_) => {
            let message = format!("the body did not come within {} seconds", BODY_TIME.as_secs());
            Err(invalid(StatusCode::REQUEST_TIMEOUT, &message))
        }
    }
}

/// Reads a refused body and keeps nothing of it: most clients listen for an answer only when they have sent all, and
/// would see a broken connection instead of the reason.
async fn discard(mut body: Body) {
    let all = async { while let Some(Ok(_)) = body.frame().await {} };
    // Whoever takes longer goes without the reason.
    let _ = tokio::time::timeout(BODY_TIME, all).await;
}

fn is_length_limit(error: &axum::Error) -> bool {
    std::error::Error::source(error).is_some_and(|source| source.is::<LengthLimitError>())
}
