//! The two inner loops beside what the machine allows: masks against the keystream rate, sums against reading memory.
use crate::report::{Figure, median, time};
use aes::Aes256;
use aes::cipher::array::Array;
use aes::cipher::{BlockCipherEncrypt, InnerIvInit, KeyInit, StreamCipherCore};
use consilium_secagg::mask::{MaskSet, Sign};
use consilium_secagg::secret::Secret;
use consilium_secagg::sum;
use ctr::CtrCore;
use ctr::flavors::Ctr128BE;
use std::hint::black_box;

const REPEATS: usize = 9;

pub(crate) fn run() {
    masks();
    sums();
}

/// Reads `x` as the plainest vectorised loop can: the bandwidth that a sum is measured against.
fn read_all(x: &[u8]) -> u64 {
    let mut lanes = [0u64; 32];
    for part in x.as_chunks::<256>().0 {
        for (lane, bytes) in lanes.iter_mut().zip(part.as_chunks::<8>().0) {
            *lane ^= u64::from_le_bytes(*bytes);
        }
    }
    lanes.iter().fold(0, |a, b| a ^ b)
}

/// Reads four inputs side by side, which keeps more of the memory busy than one stream does on some machines.
fn read_four(inputs: &[&[u8]]) -> u64 {
    let mut lanes = [0u64; 32];
    for four in inputs.chunks_exact(4) {
        let parts = |i: usize| four[i].as_chunks::<64>().0.iter();
        for (((a, b), c), d) in parts(0).zip(parts(1)).zip(parts(2)).zip(parts(3)) {
            for (lanes, part) in lanes.as_chunks_mut::<8>().0.iter_mut().zip([a, b, c, d]) {
                for (lane, bytes) in lanes.iter_mut().zip(part.as_chunks::<8>().0) {
                    *lane ^= u64::from_le_bytes(*bytes);
                }
            }
        }
    }
    lanes.iter().fold(0, |a, b| a ^ b)
}

/// The cipher alone on blocks that stay in cache: no counters, no sums.
fn cipher_only(cipher: &Aes256, buffer: &mut [aes::Block], total: usize) {
    for _ in 0..total / (buffer.len() * 16) {
        cipher.encrypt_blocks(buffer);
        black_box(&buffer);
    }
}

/// The keystream of the `ctr` crate, into a buffer that stays in cache.
fn keystream(cipher: &Aes256, buffer: &mut [aes::Block], total: usize) {
    let mut core = CtrCore::<&Aes256, Ctr128BE>::inner_iv_init(cipher, &Array::from([0; 16]));
    for _ in 0..total / (buffer.len() * 16) {
        core.write_keystream_blocks(buffer);
        black_box(&buffer);
    }
}

/// Three masks is the least there is: a hospital of three has its own and two shared ones.
fn masks() {
    let n = 1 << 20;
    let bytes = n * 4;
    let cipher = Aes256::new(&[7; 32].into());
    let mut buffer = vec![Array::from([0u8; 16]); 2048];
    let mut acc: Vec<u32> = (0..16 * n as u32).collect();
    for peers in [3usize, 8, 32] {
        let mut set = MaskSet::new();
        (0..peers).for_each(|i| {
            set.push(if i.is_multiple_of(2) { Sign::Plus } else { Sign::Minus }, &Secret::new([i as u8; 32]))
        });
        let (mut blocks, mut stream, mut read, mut fused) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for r in 0..REPEATS {
            blocks.push(time(|| cipher_only(&cipher, &mut buffer, bytes * peers)));
            stream.push(time(|| keystream(&cipher, &mut buffer, bytes * peers)));
            let part = &mut acc[r % 16 * n..][..n];
            read.push(time(|| part.iter_mut().for_each(|a| *a = a.wrapping_add(1))));
            let part = &mut acc[(r + 7) % 16 * n..][..n];
            fused.push(time(|| set.apply(0, part).unwrap_or_default()));
        }
        let total = (bytes * peers) as f64;
        let stream = (total / median(stream)).max(total / median(blocks));
        let (read, fused) = (bytes as f64 / median(read), total / median(fused));
        // The keystream and one read and write of the accumulator, perfectly overlapped.
        let limit = stream.min(read * peers as f64);
        let case = format!("{peers} masks over a 4 MiB chunk, 1 thread");
        let (cipher, memory) = (stream / 1e9, read / 1e9);
        let against = format!("min(AES-256 in cache {cipher:.2} GB/s, {peers} x read-add-write {memory:.2} GB/s)");
        Figure {
            bench: "secagg-mask",
            case: &case,
            metric: "mask bytes",
            value: fused / 1e9,
            unit: "GB/s",
            against: &against,
            ratio: Some(fused / limit),
            budget: Some(0.6),
        }
        .print();
    }
}

fn sums() {
    let (sites, n) = (8, 10_000_000);
    let inputs: Vec<Vec<u8>> =
        (0..sites).map(|s| (0..n * 4).map(|i| (i as u8).wrapping_mul(31).wrapping_add(s)).collect()).collect();
    let slices: Vec<&[u8]> = inputs.iter().map(Vec::as_slice).collect();
    let mut acc = vec![0u32; n];
    let (mut read, mut wide, mut added) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..REPEATS {
        read.push(time(|| {
            slices.iter().for_each(|x| {
                black_box(read_all(x));
            })
        }));
        wide.push(time(|| {
            black_box(read_four(&slices));
        }));
        added.push(time(|| sum::add_all(&mut acc, &slices).unwrap_or_default()));
    }
    let total = f64::from(sites) * n as f64 * 4.0;
    let (read, added) = ((total / median(read)).max(total / median(wide)), total / median(added));
    Figure {
        bench: "secagg-sum",
        case: "8 x 10M, 1 thread",
        metric: "input bytes",
        value: added / 1e9,
        unit: "GB/s",
        against: &format!("reading the same bytes {:.2} GB/s", read / 1e9),
        ratio: Some(added / read),
        budget: Some(0.8),
    }
    .print();
}
