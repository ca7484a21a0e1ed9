//! `ask`: a client for one scan, for demos and first checks.

use std::path::{Path, PathBuf};
use std::time::Instant;

use axum::body::Bytes;
use axum::http::{Method, Request, Uri};
use consilium_imaging::frame::Frame;
use consilium_imaging::metrics::dice;
use consilium_imaging::nifti_file::{check_pair, read_mask, read_volume, turn_onto, write_mask};
use consilium_imaging::place::Axes;
use consilium_imaging::{Mask, ScanError, Volume};
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use serde_json::{Value, json};

use crate::describe::{ORIENTATION, SPACING};
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
    let (volume, turn) = frame_of(question).await?.bring(&question.image, stored)?;
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

/// How the model wants its scans to lie, by its configuration; `RAS` where that does not say.
async fn frame_of(question: &Question) -> Result<Frame, AskError> {
    let answer = call(question, Method::GET, "config", Vec::new(), None).await?;
    let config: Value =
        serde_json::from_slice(&answer.body).map_err(|e| BadRequest(format!("the model's configuration: {e}")))?;
    let said = |name: &str| config["parameters"][name]["string_value"].as_str();
    let wrong = |e: String| BadRequest(format!("the model's configuration: {e}"));
    let axes = said(ORIENTATION).map(str::parse::<Axes>).transpose().map_err(wrong)?;
    let spacing = said(SPACING).map(|text| {
        let sides: Option<Vec<f32>> = text.split(' ').map(|side| side.parse().ok()).collect();
        let sides: Option<[f32; 3]> = sides.and_then(|sides| sides.try_into().ok());
        sides.ok_or_else(|| wrong(format!("spacing {text:?} is not three numbers")))
    });
    Ok(Frame::new(axes, spacing.transpose()?))
}

async fn send(question: &Question, volume: &Volume) -> Result<(Value, Mask), AskError> {
    let (body, length) = protocol::ask(volume);
    let answer = call(question, Method::POST, "infer", body, Some(length)).await?;
    let mask = protocol::read_answer(&answer.body, answer.json_length, &volume.grid)?;
    let head = answer.body.get(..answer.json_length.unwrap_or_default()).unwrap_or_default();
    let head = serde_json::from_slice(head).map_err(|e| BadRequest(format!("the answer's JSON: {e}")))?;
    Ok((head, mask))
}

struct Answer {
    body: Bytes,
    json_length: Option<usize>,
}

/// Calls one of the model's endpoints; `json_length` is how much of the body is JSON, where bytes follow.
async fn call(
    question: &Question,
    method: Method,
    endpoint: &str,
    body: Vec<u8>,
    json_length: Option<usize>,
) -> Result<Answer, AskError> {
    let address = format!("{}/v2/models/{}/{endpoint}", question.url.trim_end_matches('/'), question.model);
    let no_address = |reason: String| AskError::Address { url: question.url.clone(), reason };
    let uri: Uri = address.parse().map_err(|e: axum::http::uri::InvalidUri| no_address(e.to_string()))?;
    let mut request = Request::builder().method(method).uri(uri.clone());
    if let Some(length) = json_length {
        request = request.header(HEADER_LENGTH, length).header("content-type", "application/octet-stream");
    }
    let request = request.body(Full::new(Bytes::from(body))).map_err(|e| no_address(e.to_string()))?;
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
    Ok(Answer { body, json_length })
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
