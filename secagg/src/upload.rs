//! Step 3: the masked vector, chunk by chunk, under one signed manifest.
//!
//! The manifest names the digest of every masked chunk, so the hub can take chunks in any order, again, and after a
//! restart. Chunk digests are BLAKE3 of the little-endian bytes.
use crate::ids::{Digest, Party, Sid};
use crate::layout::{ELEMENT_BYTES, Layout, LayoutError};
use crate::mask::{MaskSet, Misaligned};
use crate::wire::{Message, Reader, WireError, Writer, serde_as_wire};

/// The digest of a chunk's bytes.
#[must_use]
pub fn chunk_digest(bytes: &[u8]) -> Digest {
    Digest(*blake3::hash(bytes).as_bytes())
}

/// The digest that ring elements would have as a chunk's bytes, without making those.
#[must_use]
pub fn elements_digest(elements: &[u32]) -> Digest {
    let mut hasher = blake3::Hasher::new();
    let mut buffer = [0u8; 1 << 16];
    for part in elements.chunks(buffer.len() / ELEMENT_BYTES) {
        let bytes = &mut buffer[..part.len() * ELEMENT_BYTES];
        bytes.as_chunks_mut::<ELEMENT_BYTES>().0.iter_mut().zip(part).for_each(|(b, e)| *b = e.to_le_bytes());
        hasher.update(bytes);
    }
    Digest(*hasher.finalize().as_bytes())
}

/// What a hospital signs about its upload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UploadManifest {
    /// The session.
    pub sid: Sid,
    /// The hospital.
    pub from: Party,
    /// The view of step 2 that its masks are made for.
    pub view: Digest,
    /// Digests of the masked chunks, one per chunk of the layout.
    pub chunks: Vec<Digest>,
}

impl Message for UploadManifest {
    const TAG: &'static str = "consilium/secagg/v1/upload";

    fn write(&self, w: &mut Writer) {
        w.fixed(&self.sid.0).u8(self.from.0).fixed(&self.view.0).count(self.chunks.len());
        for chunk in &self.chunks {
            w.fixed(&chunk.0);
        }
    }

    fn read(r: &mut Reader<'_>) -> Result<Self, WireError> {
        let (sid, from, view) = (Sid(r.fixed()?), Party(r.u8()?), Digest(r.fixed()?));
        let n = r.count("chunks", 32)?;
        let chunks = (0..n).map(|_| Ok(Digest(r.fixed()?))).collect::<Result<_, WireError>>()?;
        Ok(Self { sid, from, view, chunks })
    }
}

serde_as_wire!(UploadManifest);

/// Why a chunk was not masked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MaskError {
    /// A chunk number or length that the layout does not have.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// Wrong number of bytes.
    #[error("chunk {chunk} has {got} bytes, the layout says {expected}")]
    Length {
        /// The chunk.
        chunk: u32,
        /// Bytes given.
        got: usize,
        /// Bytes expected.
        expected: usize,
    },
    /// Not the update that was bound to this session: masking two under one mask would reveal their difference.
    #[error("chunk {chunk} is not the update bound to this session; re-send what was masked, or burn the attempt")]
    OtherUpdate {
        /// The chunk.
        chunk: u32,
    },
    /// A layout whose chunks do not begin on cipher blocks.
    #[error(transparent)]
    Misaligned(#[from] Misaligned),
}

/// Bytes that are hashed, masked and hashed again before the next ones, so that they are in cache all the while.
const TILE_BYTES: usize = 1 << 17;

/// Masks the chunks of one bound update. Different chunks may be masked on different threads; wiped on drop.
#[derive(Debug)]
pub struct Masker {
    pub(crate) layout: Layout,
    pub(crate) masks: MaskSet,
    pub(crate) plain: Vec<Digest>,
}

impl Masker {
    /// Masks chunk `chunk` of the bound update in place (wire bytes in, wire bytes out) and returns the digest of the
    /// masked bytes.
    ///
    /// # Errors
    /// [`MaskError`]; `bytes` hold nothing of the update or its masks then.
    pub fn mask(&self, chunk: u32, bytes: &mut [u8]) -> Result<Digest, MaskError> {
        let range = self.layout.elements_of(chunk)?;
        let expected = self.layout.chunk_bytes(chunk)?;
        if bytes.len() != expected {
            return Err(MaskError::Length { chunk, got: bytes.len(), expected });
        }
        let (mut plain, mut masked) = (blake3::Hasher::new(), blake3::Hasher::new());
        for (i, tile) in bytes.chunks_mut(TILE_BYTES).enumerate() {
            plain.update(tile);
            let offset = range.start + (i * TILE_BYTES / ELEMENT_BYTES) as u64;
            self.masks.apply(offset, tile.as_chunks_mut::<ELEMENT_BYTES>().0)?;
            masked.update(tile);
        }
        if self.plain.get(chunk as usize) != Some(&Digest(*plain.finalize().as_bytes())) {
            bytes.fill(0);
            return Err(MaskError::OtherUpdate { chunk });
        }
        Ok(Digest(*masked.finalize().as_bytes()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sum;

    #[test]
    fn both_digests_agree() {
        for n in [0u32, 1, 16, 16_384, 40_000] {
            let elements: Vec<u32> = (0..n).map(|i| i.wrapping_mul(0x9e37_79b9)).collect();
            assert_eq!(elements_digest(&elements), chunk_digest(&sum::to_bytes(&elements)));
        }
    }
}
