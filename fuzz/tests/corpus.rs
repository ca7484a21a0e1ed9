//! The seeds of every target, and changes of each: what libFuzzer does for hours, for a moment and the same each time.
//! A parser that falls over would take an agent, a hub or a trainer with it.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a helper that fails is a test that fails")]

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

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

/// Without a guide, but with the build that is there: changes of changes of the seeds, for so many seconds a target.
#[test]
#[ignore = "takes CONSILIUM_FUZZ_SECONDS for each target; `cargo xtask fuzz` finds more in the same time"]
fn for_a_while() {
    let seconds = std::env::var("CONSILIUM_FUZZ_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(5);
    let only = std::env::var("CONSILIUM_FUZZ_TARGET").ok();
    for target in TARGETS.iter().filter(|target| only.as_deref().is_none_or(|only| only == target.name)) {
        let seeds = seeds(target);
        let mut random = TestRng::from_seed(RngAlgorithm::ChaCha, &[3; 32]);
        let (began, mut runs, mut taken) = (Instant::now(), 0_u64, 0_u64);
        while began.elapsed() < Duration::from_secs(seconds) {
            for (file, seed) in &seeds {
                let mut data = changed(seed, &mut random);
                for _ in 0..4 {
                    taken += u64::from(run(target, &format!("a change of {}", file.display()), &data));
                    runs += 1;
                    data = changed(&data, &mut random);
                }
            }
        }
        println!("{}: {runs} runs in {} s, {taken} taken, none fell over", target.name, began.elapsed().as_secs());
    }
}
