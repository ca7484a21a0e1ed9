//! The inner loops: add one chunk of one hospital to the sum, and turn a sum into new parameters.

use std::io::Read;

use bytes::{Bytes, BytesMut};
use consilium_federation::Digest;
use consilium_secagg::ids::Digest as ChunkDigest;
use consilium_secagg::ring::{RingParams, WeightSum};
use consilium_secagg::sum::add_assign_ring;
use sha2::{Digest as _, Sha256};

use super::error::ChunkError;

/// Bytes that are read, hashed and added at a time: they stay in the second-level cache.
const TILE_BYTES: usize = 128 << 10;
/// Elements that are decoded at a time.
const TILE_ELEMENTS: usize = 8192;
/// What one [`Summer`] holds at most: the sum, the new chunk, and tiles.
pub const CHUNK_BUFFER_BYTES: usize = 2 * consilium_federation::model::CHUNK_BYTES + 2 * TILE_BYTES;

/// Adds up one chunk over the hospitals. Its buffers are used again for the next chunk.
pub struct Summer {
    sum: Vec<u32>,
    tile: Vec<u8>,
    new: BytesMut,
}

impl Default for Summer {
    fn default() -> Self {
        Self::new()
    }
}

impl Summer {
    /// Without a chunk yet.
    pub fn new() -> Self {
        Self { sum: Vec::new(), tile: vec![0; TILE_BYTES], new: BytesMut::new() }
    }

    /// Begins a chunk of `elements` ring elements at zero.
    pub fn start(&mut self, elements: usize) {
        self.sum.clear();
        self.sum.resize(elements, 0);
    }

    /// Adds one hospital's chunk while checking that it is the one with this digest.
    ///
    /// # Errors
    /// [`ChunkError`]; the sum is then spoilt and must be started again.
    pub fn add(&mut self, mut chunk: impl Read, expected: ChunkDigest) -> Result<(), ChunkError> {
        let expected_bytes = self.sum.len() * 4;
        let mut hasher = blake3::Hasher::new();
        for part in self.sum.chunks_mut(TILE_BYTES / 4) {
            let tile = &mut self.tile[..part.len() * 4];
            read_tile(&mut chunk, tile, expected_bytes)?;
            hasher.update(&*tile);
            // The tile has the part's length, the only thing that can be wrong with it.
            add_assign_ring(part, tile).map_err(|_| ChunkError::Size { expected: 0 })?;
        }
        if chunk.read(&mut self.tile[..1])? != 0 {
            return Err(ChunkError::Size { expected: expected_bytes });
        }
        let found = ChunkDigest(*hasher.finalize().as_bytes());
        let (found, expected) = (found.to_string(), expected.to_string());
        if found == expected { Ok(()) } else { Err(ChunkError::Digest { found, expected }) }
    }

    /// The sum so far.
    pub fn sum(&self) -> &[u32] {
        &self.sum
    }

    /// The sum, to take masks off.
    pub(super) fn sum_mut(&mut self) -> &mut [u32] {
        &mut self.sum
    }

    /// Base plus mean as the new chunk's bytes, and the squared L2 norm of the mean.
    ///
    /// `base` gives little-endian f32, one for each element of the sum, and is checked against its digest.
    pub(super) fn add_mean(
        &mut self,
        ring: &RingParams,
        weights: WeightSum,
        mut base: impl Read,
        expected: Digest,
    ) -> Result<(Bytes, f64), MeanError> {
        let expected_bytes = self.sum.len() * 4;
        self.new.resize(expected_bytes, 0);
        let mut mean = vec![0f32; TILE_ELEMENTS];
        let mut hasher = Sha256::new();
        let (mut squares, mut broken) = (0f64, None);
        for (tile, (sum, new)) in self.sum.chunks(TILE_ELEMENTS).zip(self.new.chunks_mut(TILE_ELEMENTS * 4)).enumerate()
        {
            let (base_tile, mean) = (&mut self.tile[..new.len()], &mut mean[..sum.len()]);
            read_tile(&mut base, base_tile, expected_bytes)?;
            hasher.update(&*base_tile);
            // The lengths are equal, the only thing that can be wrong here.
            ring.decode_mean(sum, weights, mean).map_err(|_| ChunkError::Size { expected: 0 })?;
            let at = add_tile(base_tile, mean, new);
            broken = broken.or(at.map(|offset| tile * TILE_ELEMENTS + offset));
            squares += squares_of(mean);
        }
        if base.read(&mut self.tile[..1]).map_err(ChunkError::Read)? != 0 {
            return Err(ChunkError::Size { expected: expected_bytes }.into());
        }
        let found = Digest::from_bytes(hasher.finalize().into());
        if found != expected {
            let (found, expected) = (found.to_string(), expected.to_string());
            return Err(ChunkError::Digest { found, expected }.into());
        }
        match broken {
            Some(offset) => Err(MeanError::NotFinite(offset)),
            None => Ok((std::mem::take(&mut self.new).freeze(), squares)),
        }
    }

    /// Takes a chunk's buffer back, to be used for the next one.
    pub(super) fn reuse(&mut self, chunk: Bytes) {
        // Someone else may still hold it; then the next chunk gets a buffer of its own.
        self.new = chunk.try_into_mut().unwrap_or_default();
    }
}

/// Why a new chunk was not made.
#[derive(Debug)]
pub(super) enum MeanError {
    /// The base chunk cannot be used.
    Base(ChunkError),
    /// The parameter at this offset would not be finite.
    NotFinite(usize),
}

impl From<ChunkError> for MeanError {
    fn from(error: ChunkError) -> Self {
        Self::Base(error)
    }
}

/// Fills a tile; a stream that ends too early has the wrong size, which reading it again does not mend.
fn read_tile(stream: &mut impl Read, tile: &mut [u8], expected: usize) -> Result<(), ChunkError> {
    stream.read_exact(tile).map_err(|error| match error.kind() {
        std::io::ErrorKind::UnexpectedEof => ChunkError::Size { expected },
        _ => ChunkError::Read(error),
    })
}

/// `new = base + mean`; the offset of the first value that is not finite.
fn add_tile(base: &[u8], mean: &[f32], new: &mut [u8]) -> Option<usize> {
    let mut finite = true;
    for ((mean, base), new) in mean.iter().zip(base.as_chunks::<4>().0).zip(new.as_chunks_mut::<4>().0) {
        let value = f32::from_le_bytes(*base) + mean;
        finite &= value.is_finite();
        *new = value.to_le_bytes();
    }
    if finite {
        return None;
    }
    new.as_chunks::<4>().0.iter().position(|value| !f32::from_le_bytes(*value).is_finite())
}

/// Sum of squares in eight fixed lanes: quick, and the same on every machine.
fn squares_of(values: &[f32]) -> f64 {
    let mut lanes = [0f64; 8];
    let (whole, rest) = values.as_chunks::<8>();
    for part in whole {
        for (lane, value) in lanes.iter_mut().zip(part) {
            *lane += f64::from(*value) * f64::from(*value);
        }
    }
    let rest: f64 = rest.iter().map(|v| f64::from(*v) * f64::from(*v)).sum();
    lanes.iter().sum::<f64>() + rest
}
