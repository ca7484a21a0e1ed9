//! The Open Inference Protocol v2 over REST, with Triton's binary tensor data extension: what stands in requests and
//! responses. Pure: bytes in, volumes out, and back.
//!
//! A request has one input `volume` of shape `[z, y, x]` (leading axes of length 1 are allowed), FP32 or UINT8, as JSON
//! numbers or as raw little-endian bytes after the JSON, whose length the header `Inference-Header-Content-Length` tells.
//! Optional request parameter `spacing`: `[x, y, z]` in mm. The answer has one output `labels`, UINT8, `[z, y, x]`.

use consilium_imaging::{Grid, Mask, Volume};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// Header that tells how long the JSON part of a body is.
pub const HEADER_LENGTH: &str = "Inference-Header-Content-Length";
/// The name of the input.
pub const INPUT: &str = "volume";
/// The name of the output.
pub const OUTPUT: &str = "labels";

/// A request that cannot be answered; the message goes to the client.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BadRequest(pub String);

fn bad<T>(message: impl Into<String>) -> Result<T, BadRequest> {
    Err(BadRequest(message.into()))
}

#[derive(Debug, Deserialize, Serialize)]
struct Request {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    inputs: Vec<Input>,
    #[serde(default)]
    outputs: Vec<Output>,
    #[serde(default)]
    parameters: Value,
}

#[derive(Debug, Deserialize, Serialize)]
struct Input {
    name: String,
    shape: Vec<usize>,
    datatype: String,
    #[serde(default)]
    parameters: Value,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    data: Option<Value>,
}

#[derive(Debug, Deserialize, Serialize)]
struct Output {
    name: String,
    #[serde(default)]
    parameters: Value,
}

/// A request, understood.
#[derive(Debug, Clone, PartialEq)]
pub struct Question {
    /// The client's name for it, given back.
    pub id: Option<String>,
    /// The scan.
    pub volume: Volume,
    /// Whether the answer's labels go after the JSON as raw bytes.
    pub binary_answer: bool,
}

/// Bytes per value and their meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Datatype {
    Fp32,
    Uint8,
}

/// Reads a request. `json_length` is the value of [`HEADER_LENGTH`], when the client sent it.
pub fn parse(body: &[u8], json_length: Option<usize>, max_voxels: usize) -> Result<Question, BadRequest> {
    let length = json_length.unwrap_or(body.len());
    let Some((head, tail)) = body.split_at_checked(length) else {
        return bad(format!("{HEADER_LENGTH} is {length}, the body has only {} bytes", body.len()));
    };
    let request: Request = serde_json::from_slice(head)
        .map_err(|e| BadRequest(format!("the request is not a v2 inference request: {e}")))?;
    let [input] = request.inputs.as_slice() else {
        return bad(format!("inputs has {} tensors: it must hold exactly one, named {INPUT}", request.inputs.len()));
    };
    if input.name != INPUT {
        return bad(format!("input {:?} is not known: the model's input is {INPUT:?}", input.name));
    }
    if let Some(output) = request.outputs.iter().find(|output| output.name != OUTPUT) {
        return bad(format!("output {:?} is not known: the model's output is {OUTPUT:?}", output.name));
    }
    let shape = shape_of(&input.shape, max_voxels)?;
    let voxels = voxels_of(input, tail, shape.iter().product())?;
    if let Some(at) = voxels.iter().position(|v| !v.is_finite()) {
        return bad(format!("{INPUT} value number {at} is NaN or infinite: every voxel must be finite"));
    }
    let wants = |parameters: &Value, name: &str| parameters.get(name).and_then(Value::as_bool);
    let binary_answer = match request.outputs.first().and_then(|output| wants(&output.parameters, "binary_data")) {
        Some(wanted) => wanted,
        None => wants(&request.parameters, "binary_data_output").unwrap_or(false),
    };
    let grid = Grid::axis_aligned(shape, spacing_of(&request.parameters)?);
    Ok(Question { id: request.id, volume: Volume { grid, voxels }, binary_answer })
}

/// `[…1, z, y, x]` to x, y, z.
fn shape_of(shape: &[usize], max_voxels: usize) -> Result<[usize; 3], BadRequest> {
    let lead = shape.len().saturating_sub(3);
    let plain = shape.len() >= 3 && shape[..lead].iter().all(|&side| side == 1);
    let voxels = shape.iter().try_fold(1_usize, |n, &side| n.checked_mul(side));
    match (plain, voxels) {
        (true, Some(n)) if n > 0 && n <= max_voxels => Ok([shape[lead + 2], shape[lead + 1], shape[lead]]),
        (true, _) => bad(format!("shape {shape:?}: a volume has from 1 to {max_voxels} voxels")),
        (false, _) => bad(format!("shape {shape:?}: expected [z, y, x], with leading axes of length 1 at most")),
    }
}

fn voxels_of(input: &Input, tail: &[u8], count: usize) -> Result<Vec<f32>, BadRequest> {
    let datatype = match input.datatype.as_str() {
        "FP32" => Datatype::Fp32,
        "UINT8" => Datatype::Uint8,
        other => return bad(format!("datatype {other:?} is not supported: send FP32 or UINT8")),
    };
    let size = input.parameters.get("binary_data_size").and_then(Value::as_u64);
    match (size, &input.data) {
        (Some(size), None) => {
            let width = if datatype == Datatype::Fp32 { 4 } else { 1 };
            if size != tail.len() as u64 || tail.len() != count * width {
                return bad(format!(
                    "binary_data_size is {size} and {} bytes follow the JSON: shape and datatype need {}",
                    tail.len(),
                    count * width
                ));
            }
            Ok(match datatype {
                Datatype::Uint8 => tail.iter().map(|&byte| f32::from(byte)).collect(),
                Datatype::Fp32 => tail.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
            })
        }
        (None, Some(data)) => {
            let mut voxels = Vec::with_capacity(count);
            flatten(data, &mut voxels)?;
            if voxels.len() != count {
                return bad(format!("data has {} values, the shape needs {count}", voxels.len()));
            }
            Ok(voxels)
        }
        (Some(_), Some(_)) => bad("the input has both data and binary_data_size: send one of them"),
        (None, None) => bad("the input has neither data nor parameters.binary_data_size: send one of them"),
    }
}

/// Numbers of a flat or nested array, in row-major order.
fn flatten(data: &Value, into: &mut Vec<f32>) -> Result<(), BadRequest> {
    match data {
        Value::Array(items) => items.iter().try_for_each(|item| flatten(item, into)),
        Value::Number(number) => {
            into.push(number.as_f64().unwrap_or(f64::NAN) as f32);
            Ok(())
        }
        other => bad(format!("data holds {other}, which is no number")),
    }
}

fn spacing_of(parameters: &Value) -> Result<[f32; 3], BadRequest> {
    let Some(given) = parameters.get("spacing") else { return Ok([1.0; 3]) };
    match serde_json::from_value::<[f32; 3]>(given.clone()) {
        Ok(spacing) if spacing.iter().all(|s| s.is_finite() && *s > 0.0) => Ok(spacing),
        _ => bad(format!("parameters.spacing is {given}: expected [x, y, z] in mm, all above 0")),
    }
}

/// What the server says about itself in each answer.
#[derive(Debug, Clone)]
pub struct Identity {
    /// The model's name, that of its release.
    pub name: String,
    /// The first 12 hexadecimal digits of its digest.
    pub version: String,
    /// The digest.
    pub digest: String,
}

/// An answer: the body, and how much of it is JSON when raw bytes follow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The body.
    pub body: Vec<u8>,
    /// For [`HEADER_LENGTH`].
    pub json_length: Option<usize>,
}

/// Writes the answer to the question with this id.
pub fn answer(identity: &Identity, id: Option<&str>, binary: bool, mask: &Mask) -> Answer {
    let [x, y, z] = mask.grid.shape;
    let mut output = json!({ "name": OUTPUT, "datatype": "UINT8", "shape": [z, y, x] });
    if binary {
        output["parameters"] = json!({ "binary_data_size": mask.labels.len() });
    } else {
        output["data"] = json!(mask.labels);
    }
    let mut head = json!({ "model_name": identity.name, "model_version": identity.version, "outputs": [output],
        "parameters": { "model_digest": identity.digest } });
    if let Some(id) = id {
        head["id"] = json!(id);
    }
    let mut body = head.to_string().into_bytes();
    let json_length = binary.then_some(body.len());
    if binary {
        body.extend_from_slice(&mask.labels);
    }
    Answer { body, json_length }
}

/// A binary request for a scan: the body and the length of its JSON.
pub fn ask(volume: &Volume) -> (Vec<u8>, usize) {
    let [x, y, z] = volume.grid.shape;
    let head = json!({
        "inputs": [{ "name": INPUT, "datatype": "FP32", "shape": [z, y, x],
            "parameters": { "binary_data_size": volume.voxels.len() * 4 } }],
        "outputs": [{ "name": OUTPUT, "parameters": { "binary_data": true } }],
        "parameters": { "spacing": volume.grid.spacing },
    });
    let mut body = head.to_string().into_bytes();
    let json_length = body.len();
    body.extend(volume.voxels.iter().flat_map(|v| v.to_le_bytes()));
    (body, json_length)
}

/// Reads a binary answer to [`ask`] as a mask on the scan's grid.
pub fn read_answer(body: &[u8], json_length: Option<usize>, grid: &Grid) -> Result<Mask, BadRequest> {
    let tail = json_length.and_then(|length| body.get(length..)).unwrap_or_default();
    if tail.len() != grid.len() {
        return bad(format!("the answer has {} labels, the scan has {} voxels", tail.len(), grid.len()));
    }
    Ok(Mask { grid: grid.clone(), labels: tail.to_vec() })
}

/// `GET /v2/models/{model}`.
pub fn metadata(identity: &Identity) -> Value {
    json!({
        "name": identity.name, "versions": [identity.version], "platform": "consilium",
        "inputs": [{ "name": INPUT, "datatype": "FP32", "shape": [-1, -1, -1] }],
        "outputs": [{ "name": OUTPUT, "datatype": "UINT8", "shape": [-1, -1, -1] }],
    })
}

#[cfg(test)]
#[path = "protocol_tests.rs"]
mod tests;
