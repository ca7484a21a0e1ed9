//! The inner loops: add one chunk of one hospital to the sum, and turn a sum into new parameters.

use std::io::Read;

use bytes::{Bytes, BytesMut};
use consilium_federation::Digest;
use consilium_federation::strategy::Rule;
use consilium_secagg::ids::Digest as ChunkDigest;
use consilium_secagg::ring::{RingParams, WeightSum};
use consilium_secagg::sum::add_assign_ring;
use sha2::{Digest as _, Sha256};

use super::error::ChunkError;

/// Bytes that are read, hashed and added at a time: they stay in the second-level cache.
const TILE_BYTES: usize = 128 << 10;
/// Elements that are decoded at a time.
const TILE_ELEMENTS: usize = 8192;
/// What one [`Summer`] holds at most: the sum, the new chunk, and tiles; and a chunk for each moment of the rule.
pub const CHUNK_BUFFER_BYTES: usize = 2 * consilium_federation::model::CHUNK_BYTES + 2 * TILE_BYTES;

/// Adds up one chunk over the hospitals. Its buffers are used again for the next chunk.
pub struct Summer {
    sum: Vec<u32>,
    tile: Vec<u8>,
    spare: Vec<BytesMut>,
}

impl Default for Summer {
    fn default() -> Self {
        Self::new()
    }
}

impl Summer {
    /// Without a chunk yet.
    pub fn new() -> Self {
        Self { sum: Vec::new(), tile: vec![0; TILE_BYTES], spare: Vec::new() }
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

    /// The chunk after this one by the rule: base plus the move that it makes of the mean, and each of its moments; and
    /// the squared L2 norm of the mean. `None` stands for a moment that begins.
    ///
    /// `base` and `moments` give little-endian f32, one for each element of the sum.
    pub(super) fn advance<R: Read>(
        &mut self,
        ring: &RingParams,
        weights: WeightSum,
        rule: &Rule,
        mut base: Old<R>,
        mut moments: Vec<Option<Old<R>>>,
    ) -> Result<(Vec<Bytes>, f64), MeanError> {
        let bytes = self.sum.len() * 4;
        let mut buffer = || {
            let mut buffer = self.spare.pop().unwrap_or_default();
            buffer.resize(bytes, 0);
            buffer
        };
        let (mut new, mut remembered) = (buffer(), moments.iter().map(|_| buffer()).collect::<Vec<_>>());
        let (mut mean, mut tiles) = (vec![0f32; TILE_ELEMENTS], vec![Vec::new(); moments.len()]);
        let (mut squares, mut broken) = (0f64, None);
        for (number, sum) in self.sum.chunks(TILE_ELEMENTS).enumerate() {
            let first = number * TILE_ELEMENTS * 4;
            let at = first..first + sum.len() * 4;
            let (old, mean) = (&mut self.tile[..at.len()], &mut mean[..sum.len()]);
            // The lengths are equal, the only thing that can be wrong here.
            ring.decode_mean(sum, weights, mean).map_err(|_| MeanError::Base(ChunkError::Size { expected: 0 }))?;
            squares += squares_of(mean);
            for (tile, moment) in tiles.iter_mut().zip(&mut moments) {
                tile.clear();
                match moment {
                    Some(moment) => {
                        moment.read(old, bytes).map_err(MeanError::Moment)?;
                        tile.extend(old.as_chunks::<4>().0.iter().map(|value| f32::from_le_bytes(*value)));
                    }
                    None => tile.resize(sum.len(), 0.0),
                }
            }
            rule.advance(mean, &mut tiles);
            for (tile, new) in tiles.iter().zip(&mut remembered) {
                for (value, new) in tile.iter().zip(new[at.clone()].as_chunks_mut::<4>().0) {
                    *new = value.to_le_bytes();
                }
            }
            base.read(old, bytes).map_err(MeanError::Base)?;
            let offset = add_tile(old, mean, &mut new[at]);
            broken = broken.or(offset.map(|offset| number * TILE_ELEMENTS + offset));
        }
        base.finish(bytes).map_err(MeanError::Base)?;
        moments.into_iter().flatten().try_for_each(|moment| moment.finish(bytes)).map_err(MeanError::Moment)?;
        match broken {
            Some(offset) => Err(MeanError::NotFinite(offset)),
            None => Ok((std::iter::once(new).chain(remembered).map(BytesMut::freeze).collect(), squares)),
        }
    }

    /// Takes a chunk's buffer back, to be used for the next one.
    pub(super) fn reuse(&mut self, chunk: Bytes) {
        // Someone else may still hold it; then the next chunk gets a buffer of its own.
        self.spare.extend(chunk.try_into_mut());
    }
}

/// A chunk of the round before, and the digest that it must have.
pub(super) struct Old<R> {
    reader: R,
    hasher: Sha256,
    expected: Digest,
}

impl<R: Read> Old<R> {
    pub(super) fn new(reader: R, expected: Digest) -> Self {
        Self { reader, hasher: Sha256::new(), expected }
    }

    fn read(&mut self, tile: &mut [u8], expected: usize) -> Result<(), ChunkError> {
        read_tile(&mut self.reader, tile, expected)?;
        self.hasher.update(&*tile);
        Ok(())
    }

    /// Whether it had so many bytes, and was the one.
    fn finish(mut self, expected: usize) -> Result<(), ChunkError> {
        if self.reader.read(&mut [0])? != 0 {
            return Err(ChunkError::Size { expected });
        }
        let found = Digest::from_bytes(self.hasher.finalize().into());
        if found == self.expected {
            return Ok(());
        }
        Err(ChunkError::Digest { found: found.to_string(), expected: self.expected.to_string() })
    }
}

/// Why a new chunk was not made.
#[derive(Debug)]
pub(super) enum MeanError {
    /// The base chunk cannot be used.
    Base(ChunkError),
    /// A moment's chunk cannot be used.
    Moment(ChunkError),
    /// The parameter at this offset would not be finite.
    NotFinite(usize),
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
