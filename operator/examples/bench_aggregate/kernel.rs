//! The addition alone, in memory, beside reading the same bytes.

use std::hint::black_box;

use consilium_secagg::sum::add_all;

use crate::report::{Budget, Figure, median, time};

const REPEATS: usize = 9;
const SITES: usize = 8;
const ELEMENTS: usize = 10_000_000;

/// Reads as the plainest vectorised loop can.
fn read(bytes: &[u8]) -> u64 {
    let mut lanes = [0u64; 32];
    for part in bytes.as_chunks::<256>().0 {
        for (lane, word) in lanes.iter_mut().zip(part.as_chunks::<8>().0) {
            *lane ^= u64::from_le_bytes(*word);
        }
    }
    lanes.iter().fold(0, |a, b| a ^ b)
}

/// Four streams side by side, which keeps more of the memory busy than one on some machines.
fn read_four(inputs: &[&[u8]]) -> u64 {
    let mut lanes = [[0u64; 8]; 4];
    for four in inputs.chunks_exact(4) {
        let parts = |i: usize| four[i].as_chunks::<64>().0.iter();
        for (((a, b), c), d) in parts(0).zip(parts(1)).zip(parts(2)).zip(parts(3)) {
            for (lanes, part) in lanes.iter_mut().zip([a, b, c, d]) {
                for (lane, word) in lanes.iter_mut().zip(part.as_chunks::<8>().0) {
                    *lane ^= u64::from_le_bytes(*word);
                }
            }
        }
    }
    lanes.iter().flatten().fold(0, |a, b| a ^ b)
}

pub(crate) fn run() {
    let inputs: Vec<Vec<u8>> = (0..SITES)
        .map(|site| (0..ELEMENTS * 4).map(|i| (i as u8).wrapping_mul(31).wrapping_add(site as u8)).collect())
        .collect();
    let slices: Vec<&[u8]> = inputs.iter().map(Vec::as_slice).collect();
    let mut sum = vec![0u32; ELEMENTS];
    let (mut plain, mut wide, mut added) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..REPEATS {
        plain.push(time(|| slices.iter().map(|x| black_box(read(x))).fold(0, |a, b| a ^ b)));
        wide.push(time(|| read_four(&slices)));
        added.push(time(|| add_all(&mut sum, &slices).expect("lengths agree")));
    }
    let total = (SITES * ELEMENTS * 4) as f64 / 1e9;
    let (limit, value) = ((total / median(plain)).max(total / median(wide)), total / median(added));
    Figure {
        case: "8 x 10M, 1 thread",
        metric: "sum kernel",
        value,
        unit: "GB/s",
        against: format!("reading the same bytes from memory, {limit:.2} GB/s"),
        ratio: value / limit,
        budget: Budget::AtLeast(0.8),
    }
    .print();
}
