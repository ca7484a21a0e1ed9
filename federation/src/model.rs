//! A model as it travels: a manifest of content-addressed chunks.
//!
//! The payload is the parameters as little-endian `f32`, tensor after tensor in
//! the order of the schema, cut into chunks of [`CHUNK_BYTES`]. A model's digest
//! is that of its manifest's canonical JSON, so two hubs that compute the same
//! parameters name them alike, and a download can be resumed and checked chunk
//! by chunk. A `safetensors` file is the same payload behind a header.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::digest::{Digest, canonical_json};
use crate::safetensors::{Format, Header};

/// Parameters in a full chunk: 1 Mi.
pub const CHUNK_ELEMENTS: usize = 1 << 20;
/// Bytes in a full chunk: 4 MiB.
pub const CHUNK_BYTES: usize = CHUNK_ELEMENTS * 4;

/// One tensor of the model; all are `f32`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Tensor {
    /// Name in the `safetensors` file.
    pub name: String,
    /// Sizes, outermost first.
    pub shape: Vec<u64>,
}

impl Tensor {
    /// Number of parameters, or `None` when it does not fit in 64 bits.
    pub fn elements(&self) -> Option<u64> {
        self.shape.iter().try_fold(1u64, |n, &side| n.checked_mul(side))
    }
}

/// The tensors of a model in payload order. Its digest is `tensorSchemaDigest`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TensorSchema(pub Vec<Tensor>);

impl TensorSchema {
    /// Number of parameters in all; an error names the tensor that breaks a bound.
    pub fn elements(&self) -> Result<u64, ModelError> {
        let mut total = 0u64;
        for tensor in &self.0 {
            // A scalar has an empty shape and one element, an empty tensor a side of 0 and none.
            let size = tensor.elements().filter(|&n| n <= MAX_ELEMENTS);
            total = size
                .and_then(|n| total.checked_add(n))
                .filter(|&n| n <= MAX_ELEMENTS)
                .ok_or_else(|| ModelError::Shape { tensor: tensor.name.clone(), shape: tensor.shape.clone() })?;
        }
        if total == 0 { Err(ModelError::Empty) } else { Ok(total) }
    }

    /// Digest of the schema.
    pub fn digest(&self) -> Digest {
        Digest::of_json(self)
    }
}

/// The largest model that is accepted, in parameters: 4 Gi (16 GiB of `f32`).
pub const MAX_ELEMENTS: u64 = 1 << 32;

/// A model's table of contents. Its digest names the model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelManifest {
    /// Always [`FORMAT`].
    pub format: String,
    /// Tensors in payload order.
    pub tensors: TensorSchema,
    /// Digests of the chunks in order; all but the last hold [`CHUNK_BYTES`].
    pub chunks: Vec<Digest>,
}

/// Name of the manifest format.
pub const FORMAT: &str = "consilium-model/v1";

/// A manifest or payload that is not a model.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ModelError {
    /// The manifest is not what it should be.
    #[error("the model manifest cannot be read: {0}; ask for the model again")]
    Manifest(String),
    /// Not a `safetensors` file that can be used.
    #[error("not a safetensors file that can be used: {0}; write it with the safetensors library")]
    NotSafetensors(String),
    /// A tensor of a type that no model holds.
    #[error(
        "tensor {tensor:?} is of type {dtype}: a model holds F32 (F16 and BF16 are widened to it, F64 is rounded), and \
         integers and booleans stay local; convert the tensor, in PyTorch with .float()"
    )]
    TensorType {
        /// Which tensor.
        tensor: String,
        /// Its type.
        dtype: String,
    },
    /// Another format.
    #[error("model format {0:?} is not known; this version reads {FORMAT:?}")]
    Format(String),
    /// No parameters.
    #[error("the model holds no parameters")]
    Empty,
    /// A tensor's shape.
    #[error("tensor {tensor:?} has the shape {shape:?}: a model has at most 2^32 parameters; make it smaller")]
    Shape {
        /// Which tensor.
        tensor: String,
        /// Its shape.
        shape: Vec<u64>,
    },
    /// Wrong number of chunks.
    #[error("the manifest lists {found} chunks but its tensors fill {expected}")]
    ChunkCount {
        /// Listed.
        found: usize,
        /// Needed.
        expected: usize,
    },
    /// A chunk has the wrong size.
    #[error("chunk {index} has {found} bytes, expected {expected}")]
    ChunkSize {
        /// Which chunk.
        index: usize,
        /// Bytes found.
        found: usize,
        /// Bytes needed.
        expected: usize,
    },
    /// A digest differs.
    #[error("{what} has the digest {found}, expected {expected}; it was damaged or replaced and is not used")]
    Digest {
        /// What was checked.
        what: String,
        /// The digest it has.
        found: Digest,
        /// The digest it should have.
        expected: Digest,
    },
}

impl ModelManifest {
    /// A manifest from a schema and its payload's chunk digests.
    pub fn new(tensors: TensorSchema, chunks: Vec<Digest>) -> Result<Self, ModelError> {
        let manifest = Self { format: FORMAT.to_owned(), tensors, chunks };
        manifest.check()?;
        Ok(manifest)
    }

    /// Parses untrusted bytes, checking that they have the expected digest.
    pub fn parse(bytes: &[u8], expected: Digest) -> Result<Self, ModelError> {
        let found = Digest::of(bytes);
        if found != expected {
            return Err(ModelError::Digest { what: "the model manifest".into(), found, expected });
        }
        let manifest: Self = serde_json::from_slice(bytes).map_err(|e| ModelError::Manifest(e.to_string()))?;
        manifest.check()?;
        Ok(manifest)
    }

    fn check(&self) -> Result<(), ModelError> {
        if self.format != FORMAT {
            return Err(ModelError::Format(self.format.chars().take(100).collect()));
        }
        let expected = self.tensors.elements()?.div_ceil(CHUNK_ELEMENTS as u64) as usize;
        if self.chunks.len() != expected {
            return Err(ModelError::ChunkCount { found: self.chunks.len(), expected });
        }
        Ok(())
    }

    /// The bytes whose digest names the model.
    pub fn to_bytes(&self) -> Vec<u8> {
        canonical_json(self)
    }

    /// The model's digest.
    pub fn digest(&self) -> Digest {
        Digest::of(&self.to_bytes())
    }

    /// Number of parameters.
    pub fn elements(&self) -> u64 {
        // Safety: `check` ran when the manifest was made, and fields are not changed after.
        self.tensors.elements().unwrap_or(0)
    }

    /// Bytes of chunk `index`.
    pub fn chunk_bytes(&self, index: usize) -> usize {
        let total = self.elements() as usize * 4;
        total.saturating_sub(index * CHUNK_BYTES).min(CHUNK_BYTES)
    }

    /// Checks one chunk's size and digest.
    pub fn verify_chunk(&self, index: usize, bytes: &[u8]) -> Result<(), ModelError> {
        let expected = self.chunk_bytes(index);
        if bytes.len() != expected || index >= self.chunks.len() {
            return Err(ModelError::ChunkSize { index, found: bytes.len(), expected });
        }
        let found = Digest::of(bytes);
        if found != self.chunks[index] {
            return Err(ModelError::Digest { what: format!("chunk {index}"), found, expected: self.chunks[index] });
        }
        Ok(())
    }

    /// Checks a whole payload (all chunks in order).
    pub fn verify(&self, payload: &[u8]) -> Result<(), ModelError> {
        let expected = self.elements() as usize * 4;
        if payload.len() != expected {
            return Err(ModelError::ChunkSize { index: 0, found: payload.len(), expected });
        }
        payload.chunks(CHUNK_BYTES).enumerate().try_for_each(|(index, chunk)| self.verify_chunk(index, chunk))
    }

    /// The header of a `safetensors` file for this model: 8 bytes of length and the JSON header, padded to 8.
    /// The payload follows it unchanged.
    pub fn safetensors_header(&self) -> Vec<u8> {
        let mut offset = 0u64;
        let mut entries = serde_json::Map::new();
        for tensor in &self.tensors.0 {
            let end = offset + tensor.elements().unwrap_or(0) * 4;
            entries.insert(
                tensor.name.clone(),
                serde_json::json!({"dtype": "F32", "shape": tensor.shape, "data_offsets": [offset, end]}),
            );
            offset = end;
        }
        let mut json = serde_json::Value::Object(entries).to_string().into_bytes();
        while !(json.len() + 8).is_multiple_of(8) {
            json.push(b' ');
        }
        let mut header = (json.len() as u64).to_le_bytes().to_vec();
        header.extend_from_slice(&json);
        header
    }
}

/// The header of a `safetensors` file whose tensors are all `F32`, as Consilium itself writes it: the schema in payload
/// order and where the payload begins. What others write is read by [`crate::safetensors`].
pub fn parse_safetensors_header(start: &[u8]) -> Result<(TensorSchema, usize), ModelError> {
    let header = Header::parse(start)?;
    match header.tensors.iter().find(|stored| stored.format != Format::F32) {
        None => Ok((header.schema()?, header.begin)),
        Some(other) => Err(ModelError::NotSafetensors(format!(
            "tensor {:?} is {:?}, and a model that is handed out holds F32 alone",
            other.tensor.name, other.format
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn small() -> (ModelManifest, Vec<u8>) {
        let payload: Vec<u8> = (0..24u8).collect();
        let schema = TensorSchema(vec![
            Tensor { name: "b".into(), shape: vec![2, 2] },
            Tensor { name: "a".into(), shape: vec![2] },
        ]);
        (ModelManifest::new(schema, vec![Digest::of(&payload)]).unwrap(), payload)
    }

    #[test]
    fn a_changed_byte_or_length_is_noticed() {
        let (manifest, mut payload) = small();
        manifest.verify(&payload).unwrap();
        payload[3] ^= 1;
        assert!(matches!(manifest.verify(&payload), Err(ModelError::Digest { .. })));
        payload.pop();
        assert!(matches!(manifest.verify(&payload), Err(ModelError::ChunkSize { .. })));
    }

    #[test]
    fn the_safetensors_header_round_trips_in_payload_order() {
        let (manifest, payload) = small();
        let mut file = manifest.safetensors_header();
        let header = file.len();
        file.extend(&payload);
        assert_eq!(header % 8, 0);
        assert_eq!(parse_safetensors_header(&file).unwrap(), (manifest.tensors.clone(), header));
    }

    #[test]
    fn a_manifest_under_another_name_is_refused() {
        let (manifest, _) = small();
        assert_eq!(ModelManifest::parse(&manifest.to_bytes(), manifest.digest()).unwrap(), manifest);
        assert!(ModelManifest::parse(&manifest.to_bytes(), Digest::of(b"else")).is_err());
    }

    #[test]
    fn impossible_shapes_are_refused() {
        for shape in [vec![0], vec![u64::MAX, 2], vec![MAX_ELEMENTS + 1]] {
            let schema = TensorSchema(vec![Tensor { name: "t".into(), shape }]);
            assert!(schema.elements().is_err());
        }
        assert!(ModelManifest::new(TensorSchema(vec![Tensor { name: "t".into(), shape: vec![4] }]), vec![]).is_err());
    }

    /// A learned scalar and an empty buffer, as PyTorch's networks have them, travel like other tensors: through the
    /// manifest, the file that hospitals get, and back.
    #[test]
    fn scalars_and_empty_tensors_travel() {
        let tensor = |name: &str, shape: &[u64]| Tensor { name: name.into(), shape: shape.to_vec() };
        let schema =
            TensorSchema(vec![tensor("a", &[0, 3]), tensor("b", &[0]), tensor("scale", &[]), tensor("w", &[2])]);
        let payload = [0_u8; 12];
        let manifest = ModelManifest::new(schema.clone(), vec![Digest::of(&payload)]).unwrap();
        assert_eq!(manifest.elements(), 3);
        manifest.verify(&payload).unwrap();
        assert_eq!(ModelManifest::parse(&manifest.to_bytes(), manifest.digest()).unwrap(), manifest);
        let header = manifest.safetensors_header();
        assert_eq!(parse_safetensors_header(&header).unwrap(), (schema, header.len()));
    }
}
