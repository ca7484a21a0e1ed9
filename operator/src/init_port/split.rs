//! Cuts a `safetensors` file into a schema and chunks as it comes in; holds one chunk and the header, never more.

use bytes::{Bytes, BytesMut};
use consilium_federation::model::{CHUNK_BYTES, ModelError, TensorSchema, parse_safetensors_header};

/// The file so far.
#[derive(Debug, Default)]
pub struct Splitter {
    buffer: BytesMut,
    header: Option<Header>,
}

#[derive(Debug)]
struct Header {
    schema: TensorSchema,
    /// Bytes of payload that have not come yet.
    left: u64,
}

impl Splitter {
    /// Takes the next bytes; the chunks that they complete.
    ///
    /// # Errors
    /// When this is no `safetensors` file that Consilium exchanges, or more comes than its header says.
    pub fn push(&mut self, data: &[u8]) -> Result<Vec<Bytes>, ModelError> {
        self.buffer.extend_from_slice(data);
        let fresh = match &mut self.header {
            Some(header) => {
                header.take(data.len())?;
                false
            }
            None => self.read_header()?,
        };
        if self.header.is_none() {
            return Ok(Vec::new());
        }
        if let (true, Some(header)) = (fresh, &mut self.header) {
            header.take(self.buffer.len())?;
        }
        let mut chunks = Vec::new();
        while self.buffer.len() >= CHUNK_BYTES {
            chunks.push(self.buffer.split_to(CHUNK_BYTES).freeze());
        }
        Ok(chunks)
    }

    /// Parses the header once all of it is there; true when it was parsed now.
    fn read_header(&mut self) -> Result<bool, ModelError> {
        // The first eight bytes say how long the header is; the bound on that is the parser's.
        let Some(length) = self.buffer.first_chunk::<8>().map(|b| u64::from_le_bytes(*b)) else { return Ok(false) };
        let whole = length.saturating_add(8);
        if whole > self.buffer.len() as u64 && length <= MAX_HEADER {
            return Ok(false);
        }
        let (schema, start) = parse_safetensors_header(&self.buffer)?;
        let left = schema.elements()? * 4;
        self.buffer = self.buffer.split_off(start);
        self.header = Some(Header { schema, left });
        Ok(true)
    }

    /// The schema and the last chunk, if one is left.
    ///
    /// # Errors
    /// When the file is shorter than its header says.
    pub fn finish(self) -> Result<(TensorSchema, Option<Bytes>), ModelError> {
        let header = self.header.ok_or_else(|| ModelError::Manifest("the file ends within its header".into()))?;
        if header.left > 0 {
            return Err(ModelError::Manifest(format!("the file lacks {} bytes of its tensors", header.left)));
        }
        Ok((header.schema, (!self.buffer.is_empty()).then(|| self.buffer.freeze())))
    }
}

impl Header {
    fn take(&mut self, bytes: usize) -> Result<(), ModelError> {
        let left = self.left.checked_sub(bytes as u64);
        self.left = left.ok_or_else(|| ModelError::Manifest("the file is longer than its tensors".into()))?;
        Ok(())
    }
}

/// Longer headers are refused by the parser; this is its bound.
const MAX_HEADER: u64 = 16 << 20;

#[cfg(test)]
mod tests {
    use consilium_federation::Digest;
    use consilium_federation::model::{ModelManifest, Tensor};

    use super::*;

    fn file(elements: u64) -> (ModelManifest, Vec<u8>) {
        let schema = TensorSchema(vec![Tensor { name: "w".into(), shape: vec![elements] }]);
        let payload: Vec<u8> = (0..elements * 4).map(|i| (i % 253) as u8).collect();
        let manifest = ModelManifest::new(schema, payload.chunks(CHUNK_BYTES).map(Digest::of).collect()).unwrap();
        let mut file = manifest.safetensors_header();
        file.extend(payload);
        (manifest, file)
    }

    /// However the network cuts the stream, the digests are those of the file.
    #[test]
    fn the_chunks_do_not_depend_on_how_the_stream_is_cut() {
        let two_chunks = CHUNK_BYTES as u64 / 4 * 2;
        for (elements, step) in [(5, 1), (5, 1000), (two_chunks, 1 << 20), (two_chunks + 3, 999_999)] {
            let (manifest, file) = file(elements);
            let mut splitter = Splitter::default();
            let mut digests = Vec::new();
            for part in file.chunks(step) {
                digests.extend(splitter.push(part).unwrap().iter().map(|c| Digest::of(c)));
                assert!(splitter.buffer.len() < CHUNK_BYTES);
            }
            let (schema, last) = splitter.finish().unwrap();
            digests.extend(last.iter().map(|c| Digest::of(c)));
            assert_eq!((schema, digests), (manifest.tensors, manifest.chunks), "{elements} by {step}");
        }
    }

    #[test]
    fn a_header_that_claims_gigabytes_is_refused_before_they_are_held() {
        let mut splitter = Splitter::default();
        assert!(splitter.push(&(1u64 << 40).to_le_bytes()).is_err());
    }
}
