//! From `update.safetensors` to ring elements: checked, clipped, encoded.
//!
//! Two passes over the file on disk, in blocks of one chunk: the first looks at every
//! value and sums the squares, the second scales, encodes and hands the chunks on.
//! Memory is a few chunks, whatever the model's size.

use std::collections::{HashMap, HashSet};
use std::io::{self, Read, Seek, SeekFrom};

use consilium_crds::study::EXAMPLES_CAP;
use consilium_federation::model::{ModelError, Tensor, TensorSchema};
use consilium_federation::safetensors::{Format, Header, MAX_HEADER, Stored};
use consilium_secagg::layout::{CHUNK_ELEMENTS, Layout, LayoutError};
use consilium_secagg::ring::{RingError, RingParams, encode_head};
use consilium_secagg::sum::to_bytes;
use consilium_secagg::weight::{Weight, WeightError};

/// What an update is checked against and how it is encoded.
#[derive(Clone, Copy, Debug)]
pub struct EncodeSpec<'a> {
    /// The base model's tensors in payload order.
    pub schema: &'a TensorSchema,
    /// Number of hospitals in the study: n of the ring encoding.
    pub roster_size: u32,
    /// The study's bound C on the L2 norm.
    pub clip: f64,
    /// How much this hospital counts.
    pub weight: Weight,
}

/// What was found while encoding.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Encoded {
    /// L2 norm before clipping.
    pub norm: f64,
    /// The update was longer than C and was shortened to it.
    pub clipped: bool,
}

/// An update that is not encoded.
#[derive(Debug, thiserror::Error)]
pub enum EncodeError {
    /// Not a `safetensors` file of the kind that is exchanged.
    #[error("update.safetensors: {0}")]
    File(ModelError),
    /// Tensors are missing, of another shape, or not in the model.
    #[error("update.safetensors: {0}; the update must hold exactly the tensors of the model it started from")]
    Schema(String),
    /// NaN or infinity.
    #[error(
        "update.safetensors: tensor {tensor:?} holds {value} at element {index}: training diverged; lower the learning rate or look at the data"
    )]
    NotFinite {
        /// Which tensor.
        tensor: String,
        /// Element within it, in row-major order.
        index: u64,
        /// What stands there.
        value: f32,
    },
    /// The example count is of no use.
    #[error("metrics.json: {0}")]
    Weight(#[from] WeightError),
    /// The ring encoding refused.
    #[error("update.safetensors: {0}")]
    Ring(#[from] RingError),
    /// The model is too large for an upload.
    #[error("update.safetensors: {0}")]
    Layout(#[from] LayoutError),
    /// Reading the file or storing a chunk failed: the update may be fine.
    #[error("the update could not be read or stored: {0}; it is tried again")]
    Io(#[from] io::Error),
}

impl EncodeError {
    /// The update itself is at fault: this hospital's part is `Rejected`. Otherwise a later try may work.
    pub fn is_rejection(&self) -> bool {
        !matches!(self, Self::Io(_))
    }
}

/// The weight of a hospital with this many examples, rounded to the bucket that its policy chooses.
pub fn weight_of_examples(examples: u64, bucket: u32) -> Result<Weight, EncodeError> {
    Ok(Weight::from_examples(examples, EXAMPLES_CAP, u64::from(bucket.max(1)))?)
}

/// Checks, clips and encodes `update.safetensors`; `sink` takes the chunks in order, the head first.
///
/// # Errors
/// [`EncodeError`]; the chunks handed over before an error are to be thrown away.
pub fn encode<R: Read + Seek>(
    file: &mut R,
    spec: &EncodeSpec<'_>,
    mut sink: impl FnMut(&[u8]) -> io::Result<()>,
) -> Result<Encoded, EncodeError> {
    let tensors = stored_tensors(file, spec.schema)?;
    let elements = spec.schema.elements().map_err(EncodeError::File)?;
    let layout = Layout::new(0, elements)?;
    let ring = RingParams::new(spec.roster_size as usize, spec.clip)?;

    let norm = norm(&mut Payload::new(file, &tensors), spec.schema)?;
    let factor = clip_factor(norm, spec.clip);

    let mut head = vec![0u32; layout.head()];
    encode_head(&ring, spec.weight, &[], &mut head)?;
    sink(&to_bytes(&head))?;

    let mut payload = Payload::new(file, &tensors);
    let (mut values, mut encoded) = (Vec::new(), Vec::new());
    while payload.next_block(&mut values)? {
        if let Some(factor) = factor {
            values.iter_mut().for_each(|v| *v = (f64::from(*v) * factor) as f32);
        }
        encoded.resize(values.len(), 0);
        ring.encode(spec.weight, &values, &mut encoded)?;
        sink(&to_bytes(&encoded))?;
    }
    Ok(Encoded { norm, clipped: factor.is_some() })
}

/// The factor that brings a vector of this norm to the bound, if it is longer.
fn clip_factor(norm: f64, clip: f64) -> Option<f64> {
    (norm > clip).then(|| clip / norm)
}

/// The L2 norm over all tensors, in f64; refuses the first value that is not finite.
fn norm<R: Read + Seek>(payload: &mut Payload<'_, R>, schema: &TensorSchema) -> Result<f64, EncodeError> {
    let (mut values, mut seen, mut squares) = (Vec::new(), 0u64, 0f64);
    while payload.next_block(&mut values)? {
        let block: f64 = values.iter().map(|&v| f64::from(v) * f64::from(v)).sum();
        // Finite f32 squares cannot overflow an f64 sum, so this says that some value is not finite.
        if !block.is_finite() {
            return Err(not_finite(schema, seen, &values));
        }
        squares += block;
        seen += values.len() as u64;
    }
    Ok(squares.sqrt())
}

fn not_finite(schema: &TensorSchema, before: u64, values: &[f32]) -> EncodeError {
    let at = values.iter().position(|v| !v.is_finite()).unwrap_or(0);
    let (tensor, index) = locate(schema, before + at as u64);
    EncodeError::NotFinite { tensor, index, value: values.get(at).copied().unwrap_or(f32::NAN) }
}

/// The tensor and the element within it that a place in the payload belongs to.
fn locate(schema: &TensorSchema, mut element: u64) -> (String, u64) {
    for tensor in &schema.0 {
        let size = tensor.elements().unwrap_or(0);
        if element < size {
            return (tensor.name.clone(), element);
        }
        element -= size;
    }
    (String::new(), element)
}

/// Where each tensor of the schema stands in the file. The file may hold them in another order, in half or double
/// precision, and tensors of integers beside them, which are no parameters.
fn stored_tensors<R: Read + Seek>(file: &mut R, schema: &TensorSchema) -> Result<Vec<Part>, EncodeError> {
    let size = file.seek(SeekFrom::End(0))?;
    file.seek(SeekFrom::Start(0))?;
    let mut start = Vec::new();
    file.by_ref().take(8).read_to_end(&mut start)?;
    let length = start.first_chunk::<8>().map_or(0, |bytes| u64::from_le_bytes(*bytes));
    file.by_ref().take(length.min(MAX_HEADER)).read_to_end(&mut start)?;
    let header = Header::parse(&start).map_err(EncodeError::File)?;
    let expected = header.begin as u64 + header.payload();
    if size != expected {
        return Err(EncodeError::Schema(format!("it has {size} bytes where its header announces {expected}")));
    }
    // By name: a header has room for a quarter of a million tensors, and one delivery is taken at a time.
    let found: HashMap<&str, &Stored> = header.tensors.iter().map(|s| (s.tensor.name.as_str(), s)).collect();
    match_tensors(schema, &found, &header.tensors)?;
    let part = |wanted: &Tensor| {
        let stored = found.get(wanted.name.as_str())?;
        let elements = wanted.elements()?;
        Some(Part { offset: header.begin as u64 + stored.from, elements, format: stored.format.clone() })
    };
    // Everything wanted was just found there.
    Ok(schema.0.iter().filter_map(part).collect())
}

fn match_tensors(
    schema: &TensorSchema,
    found: &HashMap<&str, &Stored>,
    in_order: &[Stored],
) -> Result<(), EncodeError> {
    let refused = |why: String| Err(EncodeError::Schema(why));
    for wanted in &schema.0 {
        let name = &wanted.name;
        match found.get(name.as_str()) {
            None => return refused(format!("tensor {name:?} is missing")),
            Some(Stored { tensor, .. }) if tensor.shape != wanted.shape => {
                let (got, expected) = (&tensor.shape, &wanted.shape);
                return refused(format!("tensor {name:?} has the shape {got:?}, expected {expected:?}"));
            }
            Some(Stored { format: Format::Local(dtype), .. }) => {
                return refused(format!("tensor {name:?} is of type {dtype}, a difference of parameters is F32"));
            }
            Some(_) => {}
        }
    }
    let wanted: HashSet<&str> = schema.0.iter().map(|tensor| tensor.name.as_str()).collect();
    let parameters = in_order.iter().filter(|stored| stored.format.width().is_some());
    match parameters.map(|stored| &stored.tensor).find(|t| !wanted.contains(t.name.as_str())) {
        Some(extra) => refused(format!("tensor {:?} is not in the model", extra.name)),
        None => Ok(()),
    }
}

/// Where a tensor's parameters stand.
struct Part {
    offset: u64,
    elements: u64,
    format: Format,
}

/// The file's values in the order of the schema, a chunk at a time.
struct Payload<'a, R> {
    file: &'a mut R,
    /// In payload order.
    tensors: &'a [Part],
    tensor: usize,
    done: u64,
    bytes: Vec<u8>,
}

impl<'a, R: Read + Seek> Payload<'a, R> {
    fn new(file: &'a mut R, tensors: &'a [Part]) -> Self {
        Self { file, tensors, tensor: 0, done: 0, bytes: Vec::new() }
    }

    /// Fills `values` with the next chunk's worth; false at the end.
    fn next_block(&mut self, values: &mut Vec<f32>) -> io::Result<bool> {
        values.clear();
        while values.len() < CHUNK_ELEMENTS {
            let Some(Part { offset, elements, format }) = self.tensors.get(self.tensor) else { break };
            let count = (elements - self.done).min((CHUNK_ELEMENTS - values.len()) as u64);
            // `match_tensors` let nothing through that is no parameter.
            let width = format.width().unwrap_or_default();
            self.bytes.resize(count as usize * width, 0);
            self.file.seek(SeekFrom::Start(offset + self.done * width as u64))?;
            self.file.read_exact(&mut self.bytes)?;
            format.parameters(&self.bytes, |value| values.push(value));
            self.done += count;
            if self.done == *elements {
                (self.tensor, self.done) = (self.tensor + 1, 0);
            }
        }
        Ok(!values.is_empty())
    }
}

#[cfg(test)]
#[path = "encode_tests.rs"]
mod tests;
