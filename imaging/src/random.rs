//! Seeded randomness that is the same on every machine: the generator is fixed by name (ChaCha8), not "whatever is
//! standard", so that a phantom or a data order made today is made again next year.

use rand::rngs::ChaCha8Rng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};

/// A random stream for one purpose: equal seeds and purposes give equal streams, different purposes unrelated ones.
pub fn stream(seed: u64, purpose: &str, index: u64) -> ChaCha8Rng {
    let mut key = [0_u8; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    key[8..16].copy_from_slice(&index.to_le_bytes());
    for (slot, byte) in key[16..].iter_mut().zip(purpose.bytes()) {
        *slot = byte;
    }
    ChaCha8Rng::from_seed(key)
}

/// A standard normal number (Box and Muller).
pub fn normal(rng: &mut ChaCha8Rng) -> f32 {
    // 1 - u lies in (0, 1], so the logarithm is finite.
    let (u, v): (f32, f32) = (rng.random(), rng.random());
    (-2.0 * (1.0 - u).ln()).sqrt() * (std::f32::consts::TAU * v).cos()
}

/// A number from `low` to `high`.
pub fn uniform(rng: &mut ChaCha8Rng, low: f32, high: f32) -> f32 {
    low + (high - low) * rng.random::<f32>()
}

/// The numbers 0 to `len` - 1 in an order fixed by seed, purpose and index (for example the epoch).
pub fn permutation(seed: u64, purpose: &str, index: u64, len: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..len).collect();
    order.shuffle(&mut stream(seed, purpose, index));
    order
}
