//! The Open Inference Protocol v2 over REST, with Triton's binary tensor data extension: what stands in requests and
//! responses. Pure: bytes in, volumes out, and back.
//!
//! A request has one input `volume` of shape `[z, y, x]` (leading axes of length 1 are allowed), FP32 or UINT8, as JSON
//! numbers or as raw little-endian bytes after the JSON, whose length the header `Inference-Header-Content-Length` tells.
//! `parameters.orientation` may say where its axes point in the patient; without it they point as the model's. The
//! answer has one output `labels`, UINT8, of the same shape. Nothing of a request becomes a tree of JSON values, which
//! would take many times its size.

use consilium_imaging::frame::Frame;
use consilium_imaging::place::{Axes, Turn};
use consilium_imaging::{Grid, Mask, Volume};
use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::memory::{Bounds, MAX_HEAD};
use crate::numbers::{Datatype, Numbers};

/// Header that tells how long the JSON part of a body is.
pub const HEADER_LENGTH: &str = "Inference-Header-Content-Length";
/// The name of the input.
pub const INPUT: &str = "volume";
/// The name of the output.
pub const OUTPUT: &str = "labels";
/// Axes of a shape: z, y and x, and before them a batch and a channel.
const MOST_AXES: usize = 5;

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
    outputs: Option<Vec<Output>>,
    parameters: Option<Parameters>,
}

#[derive(Debug, Deserialize)]
struct Input {
    name: String,
    shape: Vec<usize>,
    datatype: String,
    parameters: Option<Parameters>,
    data: Option<Numbers>,
}

#[derive(Debug, Deserialize)]
struct Output {
    name: String,
    parameters: Option<Parameters>,
}

/// The parameters that something acts on, wherever they stand. Others are let pass, but for those without which the answer
/// would be another than the one asked for.
#[derive(Debug, Default, Deserialize)]
struct Parameters {
    binary_data_size: Option<u64>,
    binary_data: Option<bool>,
    binary_data_output: Option<bool>,
    classification: Option<IgnoredAny>,
    shared_memory_region: Option<IgnoredAny>,
    orientation: Option<String>,
}

/// A request, understood.
#[derive(Debug, Clone, PartialEq)]
pub struct Question {
    /// The scan in the model's order of axes.
    pub volume: Volume,
    /// How it was brought there; the answer goes back.
    pub turn: Turn,
    /// In which form the answer is wanted.
    pub form: Form,
}

/// The form of an answer, by its question.
#[derive(Debug, Clone, PartialEq)]
pub struct Form {
    /// The client's name for it, given back.
    pub id: Option<String>,
    /// The shape as the client gave it, with leading axes of length 1; the answer has the same.
    pub shape: Vec<usize>,
    /// Where its axes were taken to point: as the client said, or else as the model's.
    pub axes: Axes,
    /// Whether the labels go after the JSON as raw bytes.
    pub binary: bool,
}

/// Reads a request to a model that wants its scans to lie along `axes`. `json_length` is the value of [`HEADER_LENGTH`],
/// when the client sent it.
pub fn parse(body: &[u8], json_length: Option<usize>, bounds: &Bounds, axes: Axes) -> Result<Question, BadRequest> {
    let length = json_length.unwrap_or(body.len());
    if json_length.is_some_and(|length| length as u64 > MAX_HEAD) {
        return bad(format!("{HEADER_LENGTH} is {length}: the JSON before the voxels has at most {MAX_HEAD} bytes"));
    }
    let Some((head, tail)) = body.split_at_checked(length) else {
        return bad(format!("{HEADER_LENGTH} is {length}, the body has only {} bytes", body.len()));
    };
    let mut request: Request = serde_json::from_slice(head).map_err(|e| not_a_request(head, json_length, &e))?;
    let [input] = request.inputs.as_mut_slice() else {
        return bad(format!("inputs has {} tensors: it must hold exactly one, named {INPUT}", request.inputs.len()));
    };
    if input.name != INPUT {
        return bad(format!("input {:?} is not known: the model's input is {INPUT:?}", input.name));
    }
    let binary = wanted(request.outputs.as_deref().unwrap_or_default(), request.parameters.as_ref())?;
    let said = axes_of([input.parameters.as_ref(), request.parameters.as_ref()], axes)?;
    let turn = Turn::between(said, axes);
    let sent = shape_of(&input.shape, &turn, bounds)?;
    let voxels = voxels_of(input, tail, json_length, &turn, sent)?;
    if let Some(at) = voxels.iter().position(|v| !v.is_finite()) {
        let at = turn.sources(sent).nth(at).unwrap_or(at);
        return bad(format!("{INPUT} value number {at} is NaN or infinite: every voxel must be finite"));
    }
    // A network sees voxels and not millimetres: where they lie is the client's.
    let grid = Grid::axis_aligned(turn.by_axis(sent), [1.0; 3]);
    let form = Form { id: request.id, shape: std::mem::take(&mut input.shape), axes: said, binary };
    Ok(Question { volume: Volume { grid, voxels }, turn, form })
}

/// Where the client's axes point, by what it says of them.
fn axes_of(said: [Option<&Parameters>; 2], wanted: Axes) -> Result<Axes, BadRequest> {
    let mut said = said.into_iter().flatten().filter_map(|parameters| parameters.orientation.as_deref());
    let Some(orientation) = said.next() else { return Ok(wanted) };
    if let Some(other) = said.find(|other| *other != orientation) {
        return bad(format!(
            "parameters.orientation is {orientation:?} of the input and {other:?} of the request: say one"
        ));
    }
    orientation.parse().map_err(|e| BadRequest(format!("parameters.{e}")))
}

/// What to tell a client whose JSON is none. Most often it sends bytes after it and does not say where they begin.
fn not_a_request(head: &[u8], json_length: Option<usize>, error: &serde_json::Error) -> BadRequest {
    let mut values = serde_json::Deserializer::from_slice(head).into_iter::<IgnoredAny>();
    let ended = values.next().is_some_and(|first| first.is_ok()).then(|| values.byte_offset());
    match ended.filter(|&end| !head[end..].trim_ascii().is_empty()) {
        Some(end) if json_length.is_none() => BadRequest(format!(
            "{} bytes follow the JSON: the header {HEADER_LENGTH} must say how long the JSON is ({end})",
            head.len() - end
        )),
        Some(end) => BadRequest(format!("{HEADER_LENGTH} is {}, the JSON has {end} bytes", head.len())),
        None => BadRequest(format!("the request is not a v2 inference request: {error}")),
    }
}

/// Whether the answer's labels are wanted as bytes.
fn wanted(outputs: &[Output], of_request: Option<&Parameters>) -> Result<bool, BadRequest> {
    if let Some(output) = outputs.iter().find(|output| output.name != OUTPUT) {
        return bad(format!("output {:?} is not known: the model's output is {OUTPUT:?}", output.name));
    }
    if outputs.len() > 1 {
        return bad(format!("outputs names {OUTPUT:?} {} times: name it once", outputs.len()));
    }
    let of_output = outputs.first().and_then(|output| output.parameters.as_ref());
    if of_output.is_some_and(|parameters| parameters.classification.is_some()) {
        return bad("parameters.classification is not offered: the answer is a label for each voxel");
    }
    if of_output.is_some_and(|parameters| parameters.shared_memory_region.is_some()) {
        return bad("parameters.shared_memory_region is not offered: the answer comes in the body");
    }
    let of_output = of_output.and_then(|parameters| parameters.binary_data);
    Ok(of_output.or(of_request.and_then(|parameters| parameters.binary_data_output)).unwrap_or(false))
}

/// `[…1, z, y, x]` to x, y, z.
fn shape_of(shape: &[usize], turn: &Turn, bounds: &Bounds) -> Result<[usize; 3], BadRequest> {
    let lead = shape.len().saturating_sub(3);
    if !(3..=MOST_AXES).contains(&shape.len()) || shape[..lead].iter().any(|&side| side != 1) {
        // A shape may be as long as the JSON.
        let shown = &shape[..shape.len().min(MOST_AXES + 1)];
        return bad(format!(
            "shape {shown:?}: expected [z, y, x], at most with a batch and a channel axis of length 1 before them"
        ));
    }
    let found = [shape[lead + 2], shape[lead + 1], shape[lead]];
    let voxels = |shape: [usize; 3]| shape.iter().try_fold(1_usize, |n, &side| n.checked_mul(side));
    if !voxels(found).is_some_and(|n| n > 0 && n <= bounds.max_voxels) {
        return bad(format!("shape {shape:?}: a volume has from 1 to {} voxels here", bounds.max_voxels));
    }
    let seen = turn.by_axis(found);
    let padded = [0, 1, 2].map(|axis| seen[axis].max(bounds.tile[axis]));
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

/// The voxels of a scan of shape `sent` (x, y, z), turned.
fn voxels_of(
    input: &mut Input,
    tail: &[u8],
    json_length: Option<usize>,
    turn: &Turn,
    sent: [usize; 3],
) -> Result<Vec<f32>, BadRequest> {
    let datatype = Datatype::parse(&input.datatype).map_err(BadRequest)?;
    let parameters = input.parameters.as_ref();
    if parameters.is_some_and(|parameters| parameters.shared_memory_region.is_some()) {
        return bad("parameters.shared_memory_region is not offered: send data, or bytes after the JSON");
    }
    match (parameters.and_then(|parameters| parameters.binary_data_size), input.data.take()) {
        (Some(size), None) if json_length.is_none() => bad(format!(
            "binary_data_size is {size}, but nothing follows the JSON: send the bytes, and the header {HEADER_LENGTH} to \
             say where they begin"
        )),
        (Some(size), None) => {
            let needed = input.shape.iter().product::<usize>() * datatype.width();
            if size != tail.len() as u64 || tail.len() != needed {
                return bad(format!(
                    "binary_data_size is {size} and {} bytes follow the JSON: shape and datatype need {needed}",
                    tail.len(),
                ));
            }
            // Not read and then turned: that would take the memory twice.
            Ok(if *turn == Turn::NONE { datatype.read(tail) } else { datatype.read_at(tail, turn.sources(sent)) })
        }
        (None, Some(_)) if !tail.is_empty() => bad(format!(
            "{} bytes follow the JSON and belong to no input: the voxels stand in data already",
            tail.len()
        )),
        (None, Some(numbers)) => {
            let voxels = numbers.tensor(datatype, &input.shape).map_err(BadRequest)?;
            Ok(turn.voxels(voxels, sent))
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
    /// How scans have to lie.
    pub frame: Frame,
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
    shape: &'a [usize],
    #[serde(skip_serializing_if = "Option::is_none")]
    parameters: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<&'a [u8]>,
}

/// Writes the answer: labels in the client's order, and the order that its voxels were taken in, for a client that named
/// none to see what was assumed.
pub fn answer(identity: &Identity, form: &Form, labels: &[u8]) -> Answer {
    let (shape, binary) = (&*form.shape, form.binary);
    let output = Labels {
        name: OUTPUT,
        datatype: "UINT8",
        shape,
        parameters: binary.then(|| json!({ "binary_data_size": labels.len() })),
        data: (!binary).then_some(labels),
    };
    let reply = Reply {
        id: form.id.as_deref(),
        model_name: &identity.name,
        model_version: &identity.version,
        outputs: [output],
        parameters: json!({ "model_digest": identity.digest, "orientation": form.axes.to_string() }),
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

#[cfg(test)]
#[path = "protocol_tests.rs"]
mod tests;
