//! `ask`: a client for one scan, for demos and first checks.

use std::path::{Path, PathBuf};
use std::time::Instant;

use axum::body::Bytes;
use axum::http::{Method, Request, Uri};
use consilium_imaging::frame::Frame;
use consilium_imaging::metrics::dice;
use consilium_imaging::nifti_file::{check_pair, read_mask, read_volume, turn_onto, write_mask};
use consilium_imaging::{Mask, ScanError, Volume};
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use serde_json::{Value, json};

use crate::protocol::{self, BadRequest, HEADER_LENGTH};

/// Labels in a reference mask may be any class.
const ANY_CLASS: u8 = 255;

/// A question that got no answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AskError {
    /// A file cannot be used.
    #[error(transparent)]
    Scan(#[from] ScanError),
    /// The address is none.
    #[error("--url {url}: {reason}; expected http://host:port")]
    Address {
        /// What was given.
        url: String,
        /// Why not.
        reason: String,
    },
    /// No connection.
    #[error("{uri}: no answer: {reason}")]
    Unreachable {
        /// Where.
        uri: Uri,
        /// Why.
        reason: String,
    },
    /// The server refused.
    #[error("{uri}: HTTP {status}: {body}")]
    Status {
        /// Where.
        uri: Uri,
        /// The status.
        status: u16,
        /// What it said.
        body: String,
    },
    /// An answer that is none.
    #[error("{0}")]
    Answer(#[from] BadRequest),
}

/// What to ask.
#[derive(Debug, Clone)]
pub struct Question {
    /// `http://host:port`.
    pub url: String,
    /// The model's name, that of its release.
    pub model: String,
    /// The scan.
    pub image: PathBuf,
    /// The true mask, to compare with.
    pub label: Option<PathBuf>,
    /// Where to write the answer.
    pub out: Option<PathBuf>,
}

/// Asks, and gives `{model, digest, voxels by class, milliseconds, dice by class when there is a true mask}`.
pub async fn ask(question: &Question) -> Result<Value, AskError> {
    let stored = read_volume(&question.image)?;
    let grid = stored.grid.clone();
    // As in training: the model sees every scan in one order of axes, and its answer is brought back to the scan's own.
    let (volume, turn) = Frame::default().bring(&question.image, stored)?;
    let began = Instant::now();
    let (head, seen) = send(question, &volume).await?;
    let mask = Mask { labels: turn.back().voxels(seen.labels, seen.grid.shape), grid };
    let milliseconds = began.elapsed().as_secs_f64() * 1e3;
    if let Some(out) = &question.out {
        write_mask(out, &mask)?;
    }
    let highest = mask.labels.iter().copied().max().unwrap_or_default();
    let voxels: Vec<usize> = (0..=highest).map(|class| mask.count(class)).collect();
    let mut said = json!({ "model": head["model_name"], "modelDigest": head["parameters"]["model_digest"],
        "voxels": voxels, "milliseconds": milliseconds });
    if let Some(label) = &question.label {
        said["dice"] = json!(compare(&question.image, &mask, label)?);
    }
    Ok(said)
}

/// Dice of every foreground class up to the highest in either mask; null for one that is in neither.
fn compare(image: &Path, mask: &Mask, label: &Path) -> Result<Vec<Option<f64>>, ScanError> {
    let truth = read_mask(label, ANY_CLASS)?;
    let truth = turn_onto(&mask.grid, &truth.grid).mask(truth);
    check_pair(image, &mask.grid, label, &truth.grid)?;
    let highest = truth.labels.iter().chain(&mask.labels).copied().max().unwrap_or_default();
    Ok((1..=highest).map(|class| dice(mask, &truth, class)).collect())
}

async fn send(question: &Question, volume: &Volume) -> Result<(Value, Mask), AskError> {
    let address = format!("{}/v2/models/{}/infer", question.url.trim_end_matches('/'), question.model);
    let no_address = |reason: String| AskError::Address { url: question.url.clone(), reason };
    let uri: Uri = address.parse().map_err(|e: axum::http::uri::InvalidUri| no_address(e.to_string()))?;
    let (body, length) = protocol::ask(volume);
    let request = Request::builder()
        .method(Method::POST)
        .uri(uri.clone())
        .header(HEADER_LENGTH, length)
        .header("content-type", "application/octet-stream")
        .body(Full::new(Bytes::from(body)))
        .map_err(|e| no_address(e.to_string()))?;
    let client = Client::builder(TokioExecutor::new()).build_http::<Full<Bytes>>();
    let unreachable = |reason: String| AskError::Unreachable { uri: uri.clone(), reason };
    let response = client.request(request).await.map_err(|e| unreachable(with_causes(&e)))?;
    let status = response.status();
    let json_length = response
        .headers()
        .get(HEADER_LENGTH)
        .and_then(|value| value.to_str().ok())
        .and_then(|text| text.parse::<usize>().ok());
    let body = response.into_body().collect().await.map_err(|e| unreachable(with_causes(&e)))?.to_bytes();
    if !status.is_success() {
        let body = String::from_utf8_lossy(&body).into_owned();
        return Err(AskError::Status { uri, status: status.as_u16(), body });
    }
    let mask = protocol::read_answer(&body, json_length, &volume.grid)?;
    let head = body.get(..json_length.unwrap_or_default()).unwrap_or_default();
    let head = serde_json::from_slice(head).map_err(|e| BadRequest(format!("the answer's JSON: {e}")))?;
    Ok((head, mask))
}

/// An error with its causes: "connection refused" stands in the last of them.
fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text += &format!(": {error}");
        cause = error.source();
    }
    text
}
