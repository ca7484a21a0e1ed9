//! From the store to the sum, verified, beside reading and hashing the same files.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use consilium_operator::aggregation::{Summer, aggregate};
use consilium_operator::store::BlobStore;

use crate::report::{Budget, Figure, median, time};
use crate::uploads::{ROUND, Shape};

const REPEATS: usize = 7;
const THREADS: usize = 2;
const SHAPE: Shape = Shape { sites: 8, parameters: 10_000_000 };

/// Every body chunk of the round, with the chunk's number.
fn chunk_files(root: &Path) -> Vec<(u32, PathBuf)> {
    let mut files = Vec::new();
    for name in SHAPE.names() {
        let folder = root.join(format!("rounds/{ROUND}/1/upload/{name}"));
        let chunks = std::fs::read_dir(folder).expect("uploads").flatten().find(|e| e.path().is_dir()).expect("chunks");
        files.extend((1..SHAPE.chunks()).map(|chunk| (chunk, chunks.path().join(chunk.to_string()))));
    }
    files.sort();
    files
}

/// Shares work out to two threads.
fn in_parallel(items: usize, work: impl Fn(usize) + Sync) {
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                while let Some(item) = Some(next.fetch_add(1, Ordering::Relaxed)).filter(|&n| n < items) {
                    work(item);
                }
            });
        }
    });
}

/// The limit: what any verified sum must do at least.
fn read_and_hash(files: &[(u32, PathBuf)]) {
    in_parallel(files.len(), |n| {
        let mut file = File::open(&files[n].1).expect("open");
        let (mut hasher, mut tile) = (blake3::Hasher::new(), vec![0u8; 128 << 10]);
        loop {
            match file.read(&mut tile).expect("read") {
                0 => break,
                read => drop(hasher.update(&tile[..read])),
            }
        }
        std::hint::black_box(hasher.finalize());
    });
}

pub(crate) fn run(dir: &Path) {
    let folder = tempfile::tempdir_in(dir).expect("a folder");
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    let store = runtime.block_on(BlobStore::open(folder.path())).expect("a store");
    let base = runtime.block_on(async {
        SHAPE.store_all(&store).await;
        SHAPE.base(&store).await
    });
    let files = chunk_files(folder.path());
    let (job, handle) = (SHAPE.job(base), runtime.handle().clone());
    let names = SHAPE.names();
    // One pass first, so that no one pays for the first read or for writing the result's first copy.
    runtime.block_on(aggregate(&store, &job)).expect("a sum");
    let (mut limit, mut sum, mut whole) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..REPEATS {
        limit.push(time(|| read_and_hash(&files)));
        sum.push(time(|| {
            in_parallel(SHAPE.chunks() as usize - 1, |n| {
                let (chunk, mut summer) = (n as u32 + 1, Summer::new());
                let elements = std::fs::metadata(&files[n * SHAPE.sites].1).expect("size").len() as usize / 4;
                summer.start(elements);
                for name in &names {
                    let key = SHAPE.key(name);
                    let digests = handle.block_on(store.upload_chunks(&key)).expect("begun");
                    let reader = handle.block_on(store.open_chunk(&key, &digests, chunk)).expect("stored");
                    summer.add(reader, digests[chunk as usize]).expect("whole");
                }
                std::hint::black_box(summer.sum());
            });
        }));
        whole.push(time(|| runtime.block_on(aggregate(&store, &job)).expect("a sum")));
    }
    let total = SHAPE.bytes() as f64 / 1e9;
    let (limit, sum, whole) = (total / median(limit), total / median(sum), total / median(whole));
    let against = || format!("reading and hashing (BLAKE3) the same files, 2 threads, {limit:.2} GB/s");
    let case = "8 x 10M, 2 threads, page cache warm";
    let line = |metric, value, budget| {
        Figure { case, metric, value, unit: "GB/s", against: against(), ratio: value / limit, budget }.print();
    };
    line("sum pipeline, store to verified sum", sum, Budget::AtLeast(0.5));
    line("whole aggregation, with base and new model", whole, Budget::None);
}
