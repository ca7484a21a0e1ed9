//! The Open Inference Protocol v2 over REST, with Triton's binary tensor data extension: what stands in requests and
//! responses. Pure: bytes in, volumes out, and back.
//!
//! A request has one input `volume` of shape `[z, y, x]` (leading axes of length 1 are allowed), FP32 or UINT8, as JSON
//! numbers or as raw little-endian bytes after the JSON, whose length the header `Inference-Header-Content-Length` tells.
//! The answer has one output `labels`, UINT8, `[z, y, x]`. Nothing of a request becomes a tree of JSON values, which would
//! take many times its size.

use std::fmt;

use consilium_imaging::{Grid, Mask, Volume};
use serde::de::{DeserializeSeed, Deserializer, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::memory::{Bounds, MAX_HEAD};

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

#[derive(Debug, Deserialize)]
struct Request {
    id: Option<String>,
    inputs: Vec<Input>,
    #[serde(default)]
    outputs: Vec<Output>,
    #[serde(default)]
    parameters: Parameters,
}

#[derive(Debug, Deserialize)]
struct Input {
    name: String,
    shape: Vec<usize>,
    datatype: String,
    #[serde(default)]
    parameters: Parameters,
    data: Option<Numbers>,
}

#[derive(Debug, Deserialize)]
struct Output {
    name: String,
    #[serde(default)]
    parameters: Parameters,
}

/// The parameters that something acts on, wherever they stand.
#[derive(Debug, Default, Deserialize)]
struct Parameters {
    binary_data_size: Option<u64>,
    binary_data: Option<bool>,
    binary_data_output: Option<bool>,
}

/// Numbers of a flat or nested array, in row-major order.
#[derive(Debug)]
struct Numbers(Vec<f32>);

impl<'de> Deserialize<'de> for Numbers {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let mut all = Vec::new();
        Append(&mut all).deserialize(from)?;
        Ok(Self(all))
    }
}

/// Adds a number, or all numbers of an array, to a list.
struct Append<'a>(&'a mut Vec<f32>);

impl<'de> DeserializeSeed<'de> for Append<'_> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<(), D::Error> {
        from.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Append<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a number or an array of numbers in data")
    }

    fn visit_f64<E>(self, number: f64) -> Result<(), E> {
        self.0.push(number as f32);
        Ok(())
    }

    fn visit_u64<E>(self, number: u64) -> Result<(), E> {
        self.0.push(number as f32);
        Ok(())
    }

    fn visit_i64<E>(self, number: i64) -> Result<(), E> {
        self.0.push(number as f32);
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        while items.next_element_seed(Append(self.0))?.is_some() {}
        Ok(())
    }
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
pub fn parse(body: &[u8], json_length: Option<usize>, bounds: &Bounds) -> Result<Question, BadRequest> {
    let length = json_length.unwrap_or(body.len());
    if json_length.is_some_and(|length| length as u64 > MAX_HEAD) {
        return bad(format!("{HEADER_LENGTH} is {length}: the JSON before the voxels has at most {MAX_HEAD} bytes"));
    }
    let Some((head, tail)) = body.split_at_checked(length) else {
        return bad(format!("{HEADER_LENGTH} is {length}, the body has only {} bytes", body.len()));
    };
    let mut request: Request = serde_json::from_slice(head)
        .map_err(|e| BadRequest(format!("the request is not a v2 inference request: {e}")))?;
    let [input] = request.inputs.as_mut_slice() else {
        return bad(format!("inputs has {} tensors: it must hold exactly one, named {INPUT}", request.inputs.len()));
    };
    if input.name != INPUT {
        return bad(format!("input {:?} is not known: the model's input is {INPUT:?}", input.name));
    }
    if let Some(output) = request.outputs.iter().find(|output| output.name != OUTPUT) {
        return bad(format!("output {:?} is not known: the model's output is {OUTPUT:?}", output.name));
    }
    let shape = shape_of(&input.shape, bounds)?;
    let voxels = voxels_of(input, tail, shape.iter().product())?;
    if let Some(at) = voxels.iter().position(|v| !v.is_finite()) {
        return bad(format!("{INPUT} value number {at} is NaN or infinite: every voxel must be finite"));
    }
    let of_output = request.outputs.first().and_then(|output| output.parameters.binary_data);
    let binary_answer = of_output.or(request.parameters.binary_data_output).unwrap_or(false);
    // A network sees voxels and not millimetres: where they lie is the client's.
    let grid = Grid::axis_aligned(shape, [1.0; 3]);
    Ok(Question { id: request.id, volume: Volume { grid, voxels }, binary_answer })
}

/// `[…1, z, y, x]` to x, y, z.
fn shape_of(shape: &[usize], bounds: &Bounds) -> Result<[usize; 3], BadRequest> {
    let lead = shape.len().saturating_sub(3);
    if shape.len() < 3 || shape[..lead].iter().any(|&side| side != 1) {
        return bad(format!("shape {shape:?}: expected [z, y, x], with leading axes of length 1 at most"));
    }
    let found = [shape[lead + 2], shape[lead + 1], shape[lead]];
    let voxels = |shape: [usize; 3]| shape.iter().try_fold(1_usize, |n, &side| n.checked_mul(side));
    if !voxels(found).is_some_and(|n| n > 0 && n <= bounds.max_voxels) {
        return bad(format!("shape {shape:?}: a volume has from 1 to {} voxels here", bounds.max_voxels));
    }
    let padded = [0, 1, 2].map(|axis| found[axis].max(bounds.tile[axis]));
    if voxels(padded).is_none_or(|n| n > bounds.canvas_voxels) {
        let [x, y, z] = bounds.tile;
        return bad(format!(
            "shape {shape:?}: padded to the model's tile of {:?} it has more than the {} voxels that fit in memory here",
            [z, y, x],
            bounds.canvas_voxels
        ));
    }
    Ok(found)
}

fn voxels_of(input: &mut Input, tail: &[u8], count: usize) -> Result<Vec<f32>, BadRequest> {
    let datatype = match input.datatype.as_str() {
        "FP32" => Datatype::Fp32,
        "UINT8" => Datatype::Uint8,
        other => return bad(format!("datatype {other:?} is not supported: send FP32 or UINT8")),
    };
    match (input.parameters.binary_data_size, input.data.take()) {
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
        (None, Some(Numbers(voxels))) => {
            if voxels.len() != count {
                return bad(format!("data has {} values, the shape needs {count}", voxels.len()));
            }
            Ok(voxels)
        }
        (Some(_), Some(_)) => bad("the input has both data and binary_data_size: send one of them"),
        (None, None) => bad("the input has neither data nor parameters.binary_data_size: send one of them"),
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

#[derive(Serialize)]
struct Reply<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a str>,
    model_name: &'a str,
    model_version: &'a str,
    outputs: [Labels<'a>; 1],
    parameters: Value,
}

#[derive(Serialize)]
struct Labels<'a> {
    name: &'static str,
    datatype: &'static str,
    shape: [usize; 3],
    #[serde(skip_serializing_if = "Option::is_none")]
    parameters: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<&'a [u8]>,
}

/// Writes the answer to the question with this id.
pub fn answer(identity: &Identity, id: Option<&str>, binary: bool, mask: &Mask) -> Answer {
    let [x, y, z] = mask.grid.shape;
    let labels = mask.labels.as_slice();
    let output = Labels {
        name: OUTPUT,
        datatype: "UINT8",
        shape: [z, y, x],
        parameters: binary.then(|| json!({ "binary_data_size": labels.len() })),
        data: (!binary).then_some(labels),
    };
    let reply = Reply {
        id,
        model_name: &identity.name,
        model_version: &identity.version,
        outputs: [output],
        parameters: json!({ "model_digest": identity.digest }),
    };
    // As JSON a label takes two bytes: a digit and a comma.
    let mut body = Vec::with_capacity(1024 + if binary { labels.len() } else { 2 * labels.len() });
    // Safety of leaving the result out: a list of bytes takes everything, and there is no key that is not a string.
    let _ = serde_json::to_writer(&mut body, &reply);
    let json_length = binary.then_some(body.len());
    if binary {
        body.extend_from_slice(labels);
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
