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
use serde_json::{Value, json};

use crate::batcher::{Batcher, Refused};
use crate::describe;
use crate::encoding::{Encoding, EncodingError, STEP};
use crate::memory::{Bounds, PER_BODY_BYTE, PER_JSON_BYTE, PER_VOXEL};
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
        .route("/v2/health/live", get(async || Json(json!({ "live": true }))))
        .route("/v2/health/ready", get(async || Json(json!({ "ready": true }))))
        .route("/v2/models/stats", get(statistics))
        .route("/v2/repository/index", get(index).post(index))
        .route("/livez", get(healthy))
        .route("/readyz", get(healthy))
        .route("/metrics", get(metrics))
        .route("/v2/models/{model}", get(model_metadata))
        .route("/v2/models/{model}/ready", get(model_ready))
        .route("/v2/models/{model}/config", get(model_config))
        .route("/v2/models/{model}/stats", get(model_statistics))
        .route("/v2/models/{model}/infer", post(infer))
        .route("/v2/models/{model}/versions/{version}", get(version_metadata))
        .route("/v2/models/{model}/versions/{version}/ready", get(version_ready))
        .route("/v2/models/{model}/versions/{version}/config", get(version_config))
        .route("/v2/models/{model}/versions/{version}/stats", get(version_statistics))
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
    Json(describe::server()).into_response()
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

/// What is told about the model by a path that names it.
fn told(served: &Served, model: &str, version: Option<&str>, what: fn(&Served) -> Value) -> Response {
    other_model(served, model, version).unwrap_or_else(|| Json(what(served)).into_response())
}

/// The two handlers of a path: with the model alone, and with its version.
macro_rules! about_the_model {
    ($($by_model:ident, $by_version:ident: $what:expr;)*) => { $(
        async fn $by_model(State(served): State<Served>, Path(model): Path<String>) -> Response {
            told(&served, &model, None, $what)
        }

        async fn $by_version(
            State(served): State<Served>,
            Path((model, version)): Path<(String, String)>,
        ) -> Response {
            told(&served, &model, Some(&version), $what)
        }
    )* };
}

about_the_model! {
    model_metadata, version_metadata: |served| describe::metadata(&served.identity);
    model_ready, version_ready: |served| describe::ready(&served.identity);
    model_config, version_config: |served| describe::config(&served.identity);
    model_statistics, version_statistics: |served| describe::statistics(&served.identity, served.metrics.tally());
}

async fn statistics(State(served): State<Served>) -> Response {
    Json(describe::statistics(&served.identity, served.metrics.tally())).into_response()
}

async fn index(State(served): State<Served>) -> Response {
    Json(describe::index(&served.identity)).into_response()
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
    let took = began.elapsed();
    let (ending, response) = match result {
        Ok(response) => (Ending::Ok, response),
        Err(failure) => *failure,
    };
    served.metrics.ended(ending, took);
    let seconds = took.as_secs_f64();
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
    let Question { volume, turn, form } =
        protocol::parse(&body, json_length, &served.bounds, served.identity.frame.axes())
            .map_err(|e| invalid(StatusCode::BAD_REQUEST, &e.to_string()))?;
    drop(body);
    held.keep(volume.voxels.len() as u64 * PER_VOXEL);
    let (mask, mut held) = served.batcher.segment(volume, held).await.map_err(|e| refused(&e))?;
    let labels = turn.back().voxels(mask.labels, mask.grid.shape);
    let answer = protocol::answer(&served.identity, &form, &labels);
    drop(labels);
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

/// Takes room for a body and all that comes of it, before a byte of it is read; then reads it, and inflates it.
async fn receive(served: &Served, headers: &HeaderMap, body: Body) -> Result<Received, Failure> {
    let json_length = json_length(headers)?;
    let encoding = match Encoding::of(headers) {
        Ok(encoding) => encoding,
        Err(e) => {
            discard(body).await;
            return Err(not_inflated(&e));
        }
    };
    let binary = json_length.is_some();
    let (most, each) = match binary {
        true => (served.bounds.max_binary(), PER_BODY_BYTE),
        false => (served.bounds.max_json, PER_JSON_BYTE),
    };
    let too_long = || {
        let way_out = if binary {
            "send a smaller volume".to_owned()
        } else {
            format!("send the voxels as bytes (binary_data_size, and the header {HEADER_LENGTH})")
        };
        let message = format!("the body is longer than the {most} bytes that are taken of this kind here; {way_out}");
        invalid(StatusCode::PAYLOAD_TOO_LARGE, &message)
    };
    // Without a length the body may be as long as any.
    let length = body.size_hint().upper().unwrap_or(most);
    if length > most {
        discard(body).await;
        return Err(too_long());
    }
    let Some(held) = served.room.take(length * each) else {
        discard(body).await;
        return Err(refused(&Refused::NoRoom));
    };
    match tokio::time::timeout(BODY_TIME, to_bytes(body, usize::try_from(length).unwrap_or(usize::MAX))).await {
        Ok(Ok(body)) if encoding == Encoding::Identity => Ok(Received { json_length, body, held }),
        Ok(Ok(body)) => {
            let (body, held) = inflate(served, encoding, body, (most, each), held).await?;
            Ok(Received { json_length, body, held })
        }
        Ok(Err(e)) if is_length_limit(&e) => Err(too_long()),
        Ok(Err(e)) => Err(invalid(StatusCode::BAD_REQUEST, &format!("the body broke off: {e}"))),
        Err(_) => {
            let message = format!("the body did not come within {} seconds", BODY_TIME.as_secs());
            Err(invalid(StatusCode::REQUEST_TIMEOUT, &message))
        }
    }
}

/// Inflates a body on a thread of its own, with room for the bytes that came and for all that comes of those that they
/// unfold to: so many bytes at most, and so much room for each.
async fn inflate(
    served: &Served,
    encoding: Encoding,
    body: Bytes,
    (most, each): (u64, u64),
    mut held: Held,
) -> Result<(Bytes, Held), Failure> {
    let came = body.len() as u64;
    // What could never have room must not be told to try again.
    let fits = (served.bounds.room.saturating_sub(came) / each).saturating_sub(STEP as u64);
    let room = served.room.clone();
    let work = move || {
        let mut grow = |bytes: u64| room.grow(&mut held, came + bytes * each);
        let inflated = encoding.inflate(&body, most.min(fits), &mut grow)?;
        Ok((Bytes::from(inflated), held))
    };
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result.map_err(|e: EncodingError| not_inflated(&e)),
        Err(e) => Err(refused(&Refused::Failed(e.to_string()))),
    }
}

fn not_inflated(why: &EncodingError) -> Failure {
    let mut failure = match why {
        EncodingError::Unsupported(_) => invalid(StatusCode::UNSUPPORTED_MEDIA_TYPE, &why.to_string()),
        EncodingError::Broken(..) => invalid(StatusCode::BAD_REQUEST, &why.to_string()),
        EncodingError::TooLong(_) => invalid(StatusCode::PAYLOAD_TOO_LARGE, &why.to_string()),
        EncodingError::NoRoom => refused(&Refused::NoRoom),
    };
    if let EncodingError::Unsupported(_) = why {
        failure.1.headers_mut().insert(header::ACCEPT_ENCODING, HeaderValue::from_static("gzip, deflate"));
    }
    failure
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
