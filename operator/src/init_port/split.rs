//! Cuts a `safetensors` file into a schema and chunks as it comes in; holds the header and little more than what has just
//! come. Half and double precision become `F32` on the way; tensors of integers are left out
//! ([`consilium_federation::safetensors`]).

use bytes::{Bytes, BytesMut};
use consilium_federation::model::{CHUNK_BYTES, ModelError, TensorSchema};
use consilium_federation::safetensors::{self, Format, MAX_HEADER};

/// The file so far.
#[derive(Debug, Default)]
pub struct Splitter {
    /// What came and is not understood yet.
    buffer: BytesMut,
    /// Parameters that do not fill a chunk yet.
    payload: BytesMut,
    header: Option<Header>,
}

#[derive(Debug)]
struct Header {
    file: safetensors::Header,
    schema: TensorSchema,
    /// Bytes of payload that have not come yet.
    left: u64,
    /// The tensor whose bytes come next, and how many of them were understood.
    tensor: usize,
    done: u64,
}

/// A whole model, or what is left of it.
#[derive(Debug)]
pub struct Finished {
    /// Its tensors.
    pub schema: TensorSchema,
    /// The last chunk, if one is left.
    pub last: Option<Bytes>,
    /// Names of tensors that were left out.
    pub local: Vec<String>,
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
        let Some(header) = &mut self.header else { return Ok(Vec::new()) };
        if fresh {
            header.take(self.buffer.len())?;
        }
        header.understand(&mut self.buffer, &mut self.payload);
        let mut chunks = Vec::new();
        while self.payload.len() >= CHUNK_BYTES {
            chunks.push(self.payload.split_to(CHUNK_BYTES).freeze());
        }
        Ok(chunks)
    }

    /// By how many bytes the parameters are more than the file's; `None` until its header is known.
    pub fn grows(&self) -> Option<u64> {
        let header = self.header.as_ref()?;
        let stored = header.schema.elements().unwrap_or(0).saturating_mul(4);
        Some(stored.saturating_sub(header.file.payload()))
    }

    /// Parses the header once all of it is there; true when it was parsed now.
    fn read_header(&mut self) -> Result<bool, ModelError> {
        // The first eight bytes say how long the header is; the bound on that is the parser's.
        let Some(length) = self.buffer.first_chunk::<8>().map(|b| u64::from_le_bytes(*b)) else { return Ok(false) };
        let whole = length.saturating_add(8);
        if whole > self.buffer.len() as u64 && length <= MAX_HEADER {
            return Ok(false);
        }
        let file = safetensors::Header::parse(&self.buffer)?;
        let (schema, left) = (file.schema()?, file.payload());
        self.buffer = self.buffer.split_off(file.begin);
        self.header = Some(Header { file, schema, left, tensor: 0, done: 0 });
        Ok(true)
    }

    /// What came of the file.
    ///
    /// # Errors
    /// When the file is shorter than its header says.
    pub fn finish(self) -> Result<Finished, ModelError> {
        let short = |why: String| ModelError::NotSafetensors(why);
        let header = self.header.ok_or_else(|| short("the file ends within its header".into()))?;
        if header.left > 0 {
            return Err(short(format!("the file lacks {} bytes of its tensors", header.left)));
        }
        let local = header.file.local().into_iter().map(str::to_owned).collect();
        let last = (!self.payload.is_empty()).then(|| self.payload.freeze());
        Ok(Finished { schema: header.schema, last, local })
    }
}

impl Header {
    fn take(&mut self, bytes: usize) -> Result<(), ModelError> {
        let left = self.left.checked_sub(bytes as u64);
        self.left = left.ok_or_else(|| ModelError::NotSafetensors("the file is longer than its tensors".into()))?;
        Ok(())
    }

    /// Moves whole numbers from what came to the parameters.
    fn understand(&mut self, buffer: &mut BytesMut, payload: &mut BytesMut) {
        while let Some(stored) = self.file.tensors.get(self.tensor) {
            let missing = stored.to - stored.from - self.done;
            if missing == 0 {
                (self.tensor, self.done) = (self.tensor + 1, 0);
                continue;
            }
            let width = stored.format.width().unwrap_or(1);
            let usable = usize::try_from(missing).map_or(buffer.len(), |missing| missing.min(buffer.len()));
            let bytes = buffer.split_to(usable / width * width);
            if bytes.is_empty() {
                return;
            }
            match stored.format {
                Format::F32 => payload.extend_from_slice(&bytes),
                _ => stored.format.parameters(&bytes, |value| payload.extend_from_slice(&value.to_le_bytes())),
            }
            self.done += bytes.len() as u64;
        }
    }
}

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
                assert!(splitter.buffer.len() < CHUNK_BYTES && splitter.payload.len() < CHUNK_BYTES);
            }
            let finished = splitter.finish().unwrap();
            digests.extend(finished.last.iter().map(|c| Digest::of(c)));
            assert_eq!((finished.schema, digests), (manifest.tensors, manifest.chunks), "{elements} by {step}");
        }
    }

    /// A PyTorch network with BatchNorm, saved in half precision: the counter stays out, everything else is a parameter.
    #[test]
    fn half_precision_is_widened_and_counters_are_left_out() {
        let header = serde_json::json!({
            "a": {"dtype": "BF16", "shape": [3], "data_offsets": [0, 6]},
            "b": {"dtype": "I64", "shape": [], "data_offsets": [6, 14]},
            "c": {"dtype": "F16", "shape": [], "data_offsets": [14, 16]},
            "d": {"dtype": "F32", "shape": [1], "data_offsets": [16, 20]},
        });
        let json = header.to_string().into_bytes();
        let mut file = [&(json.len() as u64).to_le_bytes()[..], &json].concat();
        file.extend([0x80, 0x3f, 0x00, 0x40, 0x40, 0x40]); // 1, 2, 3
        file.extend([9; 8]);
        file.extend([0x00, 0xbc]); // -1
        file.extend(0.25_f32.to_le_bytes());
        for step in 1..file.len() {
            let mut splitter = Splitter::default();
            for part in file.chunks(step) {
                assert!(splitter.push(part).unwrap().is_empty());
            }
            let finished = splitter.finish().unwrap();
            let expected: Vec<u8> = [1.0_f32, 2.0, 3.0, -1.0, 0.25].iter().flat_map(|v| v.to_le_bytes()).collect();
            assert_eq!(finished.last.as_deref(), Some(expected.as_slice()), "by {step}");
            assert_eq!(finished.local, ["b"]);
            assert_eq!(finished.schema.elements(), Ok(5));
        }
    }

    #[test]
    fn a_header_that_claims_gigabytes_is_refused_before_they_are_held() {
        let mut splitter = Splitter::default();
        assert!(splitter.push(&(1u64 << 40).to_le_bytes()).is_err());
    }
}
