//! The HTTP surface: the protocol's endpoints, health and metrics.

use std::time::Instant;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Json, Response};
use axum::routing::{get, post};
use serde_json::json;

use crate::batcher::{Batcher, Refused};
use crate::metrics::{Ending, Metrics};
use crate::protocol::{self, HEADER_LENGTH, Identity};

/// Room in a body beside the voxels.
const JSON_ROOM: usize = 1 << 20;
/// JSON spends up to this many bytes on a number; binary tensors spend 4.
const BYTES_PER_VOXEL: usize = 16;

/// What handlers share.
#[derive(Debug, Clone)]
pub struct Served {
    /// The model's names.
    pub identity: Identity,
    /// The way to the network.
    pub batcher: Batcher,
    /// Metrics.
    pub metrics: Metrics,
    /// The largest volume.
    pub max_voxels: usize,
}

/// All routes. The network is loaded before the server listens, so that live and ready are one.
pub fn router(served: Served) -> Router {
    let limit = served.max_voxels.saturating_mul(BYTES_PER_VOXEL).saturating_add(JSON_ROOM);
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
        .layer(DefaultBodyLimit::max(limit))
        .with_state(served)
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

async fn infer(State(served): State<Served>, Path(model): Path<String>, headers: HeaderMap, body: Bytes) -> Response {
    match other_model(&served, &model, None) {
        Some(response) => response,
        None => answer(&served, &headers, body).await,
    }
}

async fn infer_version(
    State(served): State<Served>,
    Path((model, version)): Path<(String, String)>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    match other_model(&served, &model, Some(&version)) {
        Some(response) => response,
        None => answer(&served, &headers, body).await,
    }
}

async fn answer(served: &Served, headers: &HeaderMap, body: Bytes) -> Response {
    let began = Instant::now();
    let (ending, response) = match try_answer(served, headers, body).await {
        Ok(response) => (Ending::Ok, response),
        Err(failure) => failure,
    };
    served.metrics.ended(ending);
    if ending == Ending::Ok {
        served.metrics.seconds.observe(began.elapsed().as_secs_f64());
    }
    tracing::info!(result = ?ending, status = response.status().as_u16(), seconds = began.elapsed().as_secs_f64(), "infer");
    response
}

async fn try_answer(served: &Served, headers: &HeaderMap, body: Bytes) -> Result<Response, (Ending, Response)> {
    let invalid = |message: String| (Ending::Invalid, error(StatusCode::BAD_REQUEST, &message));
    let json_length = match headers.get(HEADER_LENGTH) {
        None => None,
        Some(value) => Some(
            value
                .to_str()
                .ok()
                .and_then(|text| text.parse::<usize>().ok())
                .ok_or_else(|| invalid(format!("{HEADER_LENGTH} is no whole number")))?,
        ),
    };
    let protocol::Question { id, volume, binary_answer } =
        protocol::parse(&body, json_length, served.max_voxels).map_err(|e| invalid(e.to_string()))?;
    drop(body);
    let mask = served.batcher.segment(volume).await.map_err(|refused| match refused {
        Refused::Overloaded(_) => {
            let mut response = error(StatusCode::SERVICE_UNAVAILABLE, &refused.to_string());
            response.headers_mut().insert(header::RETRY_AFTER, header::HeaderValue::from_static("5"));
            (Ending::Overloaded, response)
        }
        Refused::Failed(_) => (Ending::Failed, error(StatusCode::INTERNAL_SERVER_ERROR, &refused.to_string())),
    })?;
    let answer = protocol::answer(&served.identity, id.as_deref(), binary_answer, &mask);
    let mut response = answer.body.into_response();
    let kind = if answer.json_length.is_some() { "application/octet-stream" } else { "application/json" };
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(kind));
    if let Some(length) = answer.json_length {
        // Safety of the name: a constant of valid header characters in any case.
        response.headers_mut().insert("inference-header-content-length", header::HeaderValue::from(length));
    }
    Ok(response)
}
