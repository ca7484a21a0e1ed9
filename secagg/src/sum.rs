//! Adding ring vectors: the hub's inner loop.
//!
//! Inputs are chunks as they came over the wire (little-endian `u32`), the accumulator is native. All additions wrap
//! modulo 2^32. The loops are shaped so that the compiler vectorises them; [`add_all`] walks the inputs tile by tile
//! so that the accumulator is read and written from cache and memory traffic is one read of every input.
use crate::layout::ELEMENT_BYTES;

/// Elements per tile of [`add_all`]: 32 KiB of accumulator.
const TILE: usize = 8192;

/// An input whose length does not fit the accumulator.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("input {input} has {bytes} bytes, the accumulator needs {expected}")]
pub struct LengthMismatch {
    /// Which input, counted from 0.
    pub input: usize,
    /// Its bytes.
    pub bytes: usize,
    /// Bytes that fit.
    pub expected: usize,
}

/// `acc += x`, with `x` little-endian bytes of the same number of elements.
///
/// # Errors
/// [`LengthMismatch`]; the accumulator is then untouched.
pub fn add_assign_ring(acc: &mut [u32], x: &[u8]) -> Result<(), LengthMismatch> {
    check(acc.len(), 0, x)?;
    add1(acc, x);
    Ok(())
}

/// `acc -= x`, with `x` little-endian bytes of the same number of elements.
///
/// # Errors
/// [`LengthMismatch`]; the accumulator is then untouched.
pub fn sub_assign_ring(acc: &mut [u32], x: &[u8]) -> Result<(), LengthMismatch> {
    check(acc.len(), 0, x)?;
    for (a, b) in acc.iter_mut().zip(x.as_chunks::<ELEMENT_BYTES>().0) {
        *a = a.wrapping_sub(u32::from_le_bytes(*b));
    }
    Ok(())
}

/// `acc += Σ inputs`, tile by tile.
///
/// # Errors
/// [`LengthMismatch`] naming the input; the accumulator is then untouched.
pub fn add_all(acc: &mut [u32], inputs: &[&[u8]]) -> Result<(), LengthMismatch> {
    for (i, x) in inputs.iter().enumerate() {
        check(acc.len(), i, x)?;
    }
    for (t, tile) in acc.chunks_mut(TILE).enumerate() {
        let from = t * TILE * ELEMENT_BYTES;
        let to = from + tile.len() * ELEMENT_BYTES;
        let mut groups = inputs.chunks_exact(4);
        for g in &mut groups {
            add4(tile, &g[0][from..to], &g[1][from..to], &g[2][from..to], &g[3][from..to]);
        }
        for x in groups.remainder() {
            add1(tile, &x[from..to]);
        }
    }
    Ok(())
}

/// Ring elements as they go over the wire.
#[must_use]
pub fn to_bytes(elements: &[u32]) -> Vec<u8> {
    let mut out = vec![0u8; elements.len() * ELEMENT_BYTES];
    for (b, a) in out.as_chunks_mut::<ELEMENT_BYTES>().0.iter_mut().zip(elements) {
        *b = a.to_le_bytes();
    }
    out
}

/// Ring elements from wire bytes; bytes beyond the last whole element are ignored, so check lengths first.
#[must_use]
pub fn from_bytes(bytes: &[u8]) -> Vec<u32> {
    bytes.as_chunks::<ELEMENT_BYTES>().0.iter().map(|b| u32::from_le_bytes(*b)).collect()
}

fn check(elements: usize, input: usize, x: &[u8]) -> Result<(), LengthMismatch> {
    let expected = elements * ELEMENT_BYTES;
    if x.len() == expected { Ok(()) } else { Err(LengthMismatch { input, bytes: x.len(), expected }) }
}

fn add1(acc: &mut [u32], x: &[u8]) {
    for (a, b) in acc.iter_mut().zip(x.as_chunks::<ELEMENT_BYTES>().0) {
        *a = a.wrapping_add(u32::from_le_bytes(*b));
    }
}

/// Four inputs per pass: one accumulator load and store for four loads.
fn add4(acc: &mut [u32], w: &[u8], x: &[u8], y: &[u8], z: &[u8]) {
    let of = |b: &[u8; ELEMENT_BYTES]| u32::from_le_bytes(*b);
    let inputs = w.as_chunks().0.iter().zip(x.as_chunks().0).zip(y.as_chunks().0).zip(z.as_chunks().0);
    for (a, (((w, x), y), z)) in acc.iter_mut().zip(inputs) {
        *a = a.wrapping_add(of(w).wrapping_add(of(x))).wrapping_add(of(y).wrapping_add(of(z)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vector(seed: u32, n: usize) -> Vec<u32> {
        (0..n as u32).map(|i| i.wrapping_mul(2_654_435_761).wrapping_add(seed).rotate_left(seed % 31)).collect()
    }

    /// The tiled kernel must give the very sum of the plain loop, whatever the number and length of inputs.
    #[test]
    fn tiled_sum_equals_plain_sum() {
        for n in [0usize, 1, 7, TILE - 1, TILE, TILE + 1, 3 * TILE + 5] {
            for k in 0..10u32 {
                let inputs: Vec<Vec<u8>> = (0..k).map(|s| to_bytes(&vector(s, n))).collect();
                let mut expected = vector(99, n);
                for s in 0..k {
                    for (e, x) in expected.iter_mut().zip(vector(s, n)) {
                        *e = e.wrapping_add(x);
                    }
                }
                let mut acc = vector(99, n);
                add_all(&mut acc, &inputs.iter().map(Vec::as_slice).collect::<Vec<_>>()).unwrap();
                assert_eq!(acc, expected, "n={n} k={k}");
            }
        }
    }

    #[test]
    fn subtraction_undoes_addition() {
        let (start, x) = (vector(1, 1000), to_bytes(&vector(2, 1000)));
        let mut acc = start.clone();
        add_assign_ring(&mut acc, &x).unwrap();
        assert_ne!(acc, start);
        sub_assign_ring(&mut acc, &x).unwrap();
        assert_eq!(acc, start);
        assert_eq!(from_bytes(&to_bytes(&start)), start);
    }

    /// A truncated chunk must not be summed in part.
    #[test]
    fn wrong_lengths_leave_the_accumulator_alone() {
        let mut acc = vec![5u32; 10];
        let (good, short) = (vec![1u8; 40], vec![1u8; 39]);
        let error = LengthMismatch { input: 1, bytes: 39, expected: 40 };
        assert_eq!(add_all(&mut acc, &[&good, &short]), Err(error));
        assert!(add_assign_ring(&mut acc, &short).is_err() && sub_assign_ring(&mut acc, &short).is_err());
        assert_eq!(acc, vec![5u32; 10]);
    }
}
