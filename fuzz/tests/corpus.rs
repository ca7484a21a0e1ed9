//! The seeds of every target, and changes of each: what libFuzzer does for hours, for a moment and the same each time.
//! A parser that falls over would take an agent, a hub or a trainer with it.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a helper that fails is a test that fails")]

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use consilium_fuzz::{TARGETS, Target};
use proptest::prelude::Rng as _;
use proptest::test_runner::{RngAlgorithm, TestRng};

/// Changes of each seed.
const CHANGES: usize = 200;

fn seeds(target: &Target) -> Vec<(PathBuf, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target.name);
    let entries = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files.into_iter().map(|file| (file.clone(), fs::read(file).unwrap())).collect()
}

fn run(target: &Target, what: &str, data: &[u8]) -> bool {
    catch_unwind(AssertUnwindSafe(|| (target.run)(data)))
        .unwrap_or_else(|_| panic!("{} fell over on {what}: {data:?}", target.name))
}

/// One to four edits: bytes set, bits turned, pieces taken out or doubled, the end cut off.
fn changed(seed: &[u8], random: &mut TestRng) -> Vec<u8> {
    let mut data = seed.to_vec();
    for _ in 0..=random.next_u32() % 4 {
        if data.is_empty() {
            return data;
        }
        let at = random.next_u64() as usize % data.len();
        let length = (random.next_u64() as usize % 16).min(data.len() - at);
        match random.next_u32() % 6 {
            0 => data[at] = random.next_u32() as u8,
            1 => data[at] ^= 1 << (random.next_u32() % 8),
            2 => drop(data.drain(at..at + length)),
            3 => drop(data.splice(at..at, seed[at.min(seed.len())..].iter().copied().take(length).collect::<Vec<_>>())),
            4 => data.truncate(at),
            _ => data[at] = [0, 0xff, 0x7f, 0x80, b'"', b'9', b'-', b'{'][random.next_u32() as usize % 8],
        }
    }
    data
}

#[test]
fn no_parser_falls_over_on_its_seeds_or_their_neighbours() {
    for target in TARGETS {
        let seeds = seeds(target);
        let mut taken = 0;
        for (file, seed) in &seeds {
            taken += usize::from(run(target, &file.display().to_string(), seed));
            let mut random = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
            for n in 0..CHANGES {
                run(target, &format!("change {n} of {}", file.display()), &changed(seed, &mut random));
            }
        }
        // Seeds that are all refused at the first byte would teach libFuzzer nothing.
        assert!(taken > 0, "none of the {} seeds of {} is taken", seeds.len(), target.name);
    }
}
