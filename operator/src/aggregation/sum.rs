//! The inner loops: add one chunk of one hospital to the sum, and turn a sum into new parameters.

use std::io::Read;

use consilium_federation::Digest;
use consilium_secagg::ring::{RingParams, WeightSum};
use consilium_secagg::sum::add_assign_ring;
use sha2::{Digest as _, Sha256};

use super::error::ChunkError;

/// Bytes that are read, hashed and added at a time: they stay in the second-level cache.
const TILE_BYTES: usize = 128 << 10;
/// Elements that are decoded at a time.
const TILE_ELEMENTS: usize = 8192;
/// What one [`Summer`] and one new chunk hold at most: the sum, the base chunk, the new chunk, and a tile.
pub const CHUNK_BUFFER_BYTES: usize = 3 * consilium_federation::model::CHUNK_BYTES + TILE_BYTES;

/// Adds up one chunk over the hospitals. Its buffers are used again for the next chunk.
pub struct Summer {
    sum: Vec<u32>,
    tile: Vec<u8>,
}

impl Default for Summer {
    fn default() -> Self {
        Self::new()
    }
}

impl Summer {
    /// Without a chunk yet.
    pub fn new() -> Self {
        Self { sum: Vec::new(), tile: vec![0; TILE_BYTES] }
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
    pub fn add(&mut self, mut chunk: impl Read, expected: Digest) -> Result<(), ChunkError> {
        let size = ChunkError::Size { expected: self.sum.len() * 4 };
        let mut hasher = Sha256::new();
        for part in self.sum.chunks_mut(TILE_BYTES / 4) {
            let tile = &mut self.tile[..part.len() * 4];
            match chunk.read_exact(tile) {
                Ok(()) => {}
                Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Err(size),
                Err(error) => return Err(error.into()),
            }
            hasher.update(&*tile);
            // The tile has the part's length, the only thing that can be wrong with it.
            add_assign_ring(part, tile).map_err(|_| ChunkError::Size { expected: 0 })?;
        }
        if chunk.read(&mut self.tile[..1])? != 0 {
            return Err(size);
        }
        let found = Digest::from_bytes(hasher.finalize().into());
        if found == expected { Ok(()) } else { Err(ChunkError::Digest { found, expected }) }
    }

    /// The sum so far.
    pub fn sum(&self) -> &[u32] {
        &self.sum
    }
}

/// Base plus mean as the new chunk's bytes, and the squared L2 norm of the mean.
///
/// `base` holds little-endian f32, one for each element of `sum`. Fails with the offset of the first parameter that
/// would not be finite.
pub(super) fn add_mean(
    ring: &RingParams,
    sum: &[u32],
    weights: WeightSum,
    base: &[u8],
) -> Result<(Vec<u8>, f64), usize> {
    let mut new = vec![0; sum.len() * 4];
    let mut mean = [0f32; TILE_ELEMENTS];
    let mut squares = 0f64;
    let tiles = sum.chunks(TILE_ELEMENTS).zip(base.chunks(TILE_ELEMENTS * 4)).zip(new.chunks_mut(TILE_ELEMENTS * 4));
    for (tile, ((sum, base), new)) in tiles.enumerate() {
        let mean = &mut mean[..sum.len()];
        // The lengths are equal, the only thing that can be wrong here.
        ring.decode_mean(sum, weights, mean).map_err(|_| tile * TILE_ELEMENTS)?;
        let mut finite = true;
        for ((mean, base), new) in mean.iter().zip(base.as_chunks::<4>().0).zip(new.as_chunks_mut::<4>().0) {
            let value = f32::from_le_bytes(*base) + mean;
            finite &= value.is_finite();
            *new = value.to_le_bytes();
        }
        if !finite {
            let at = new.as_chunks::<4>().0.iter().position(|v| !f32::from_le_bytes(*v).is_finite());
            return Err(tile * TILE_ELEMENTS + at.unwrap_or(0));
        }
        squares += squares_of(mean);
    }
    Ok((new, squares))
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
