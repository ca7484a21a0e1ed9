//! A trainer that moves every parameter by a half and counts its runs; while it is told to hold, it waits.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use consilium_federation::Digest;
use consilium_federation::task::{OutFile, OutManifest, TaskFile, TaskKind};
use serde_json::json;

/// Names the folder of runs and holds; by it this program knows that it is the trainer.
pub const MARK: &str = "CONSILIUM_TEST_TRAINER";
pub const PARAMETERS: usize = 3000;

pub fn run() {
    let arguments: Vec<String> = std::env::args().collect();
    let after = |flag: &str| PathBuf::from(&arguments[1 + arguments.iter().position(|a| a == flag).unwrap()]);
    let (root, data) = (after("--root"), after("--data"));
    let task = TaskFile::parse(&fs::read(root.join("task.json")).unwrap()).unwrap();
    let out = root.join("out");
    fs::create_dir_all(&out).unwrap();
    match task.kind {
        TaskKind::Init => finish(&out, &[("model.safetensors", tensors(0.0))]),
        TaskKind::Train => {
            let site = data.parent().unwrap().file_name().unwrap().to_string_lossy().into_owned();
            let shared = PathBuf::from(std::env::var_os(MARK).unwrap());
            let runs = shared.join("runs").join(&site);
            fs::create_dir_all(&runs).unwrap();
            fs::write(runs.join(format!("{}-{}", task.round, std::process::id())), "").unwrap();
            while shared.join("hold").join(&site).exists() {
                std::thread::sleep(Duration::from_millis(20));
            }
            let metrics = json!({"examples": 50_000}).to_string().into_bytes();
            finish(&out, &[("update.safetensors", tensors(0.5)), ("metrics.json", metrics)]);
        }
        TaskKind::Evaluate => panic!("the study has no gate"),
    }
}

fn tensors(value: f32) -> Vec<u8> {
    let header = json!({"w": {"dtype": "F32", "shape": [PARAMETERS], "data_offsets": [0, PARAMETERS * 4]}}).to_string();
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.into_bytes());
    file.extend((0..PARAMETERS).flat_map(|_| value.to_le_bytes()));
    file
}

fn finish(out: &Path, files: &[(&str, Vec<u8>)]) {
    let entry = |(name, bytes): &(&str, Vec<u8>)| {
        fs::write(out.join(name), bytes).unwrap();
        OutFile { path: (*name).to_owned(), size: bytes.len() as u64, digest: Digest::of(bytes) }
    };
    let manifest = OutManifest { files: files.iter().map(entry).collect() };
    fs::write(out.join("part"), serde_json::to_vec(&manifest).unwrap()).unwrap();
    fs::rename(out.join("part"), out.join("MANIFEST")).unwrap();
}
