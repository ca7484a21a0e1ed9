//! The files of the trainer contract (`consilium_federation::task`) on disk.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use consilium_federation::digest::Digest;
use consilium_federation::task::{Failure, OutFile, OutManifest, Progress, TaskFile};
use serde::Serialize;

use crate::error::TrainerError;

/// The contract's folder, `/consilium` in a pod.
#[derive(Debug, Clone)]
pub struct Root(PathBuf);

impl Root {
    /// A root at this path.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }

    /// The base model.
    pub fn model(&self) -> PathBuf {
        self.0.join("model.safetensors")
    }

    /// Where results go.
    pub fn out(&self) -> PathBuf {
        self.0.join("out")
    }

    /// A result by its path relative to `out/`.
    pub fn result(&self, path: &str) -> PathBuf {
        self.out().join(path)
    }

    /// What survives a restart of the pod.
    pub fn checkpoint(&self) -> PathBuf {
        self.0.join("checkpoint")
    }

    /// Reads `task.json`; also its digest, by which a checkpoint knows its task.
    pub fn task(&self) -> Result<(TaskFile, Digest), TrainerError> {
        let file = self.0.join("task.json");
        let bytes = fs::read(&file).map_err(|e| TrainerError::file("read", &file, e))?;
        let task = TaskFile::parse(&bytes).map_err(|e| TrainerError::Config(e.to_string()))?;
        // Of what is understood: an agent that is updated between two tries, and says more than before, asks for the same
        // task, and its checkpoint counts.
        let digest = Digest::of_json(&task);
        Ok((task, digest))
    }

    /// Makes `out/` ready: there, and without a MANIFEST, so that nothing half-done can be delivered.
    pub fn begin(&self) -> Result<(), TrainerError> {
        let out = self.out();
        fs::create_dir_all(&out).map_err(|e| TrainerError::file("made", &out, e))?;
        for name in ["MANIFEST", "failure.json"] {
            let file = self.result(name);
            match fs::remove_file(&file) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(TrainerError::file("removed", &file, e)),
                _ => {}
            }
        }
        Ok(())
    }

    /// Replaces `out/progress.json`.
    pub fn progress(&self, progress: &Progress) -> Result<(), TrainerError> {
        write_json(&self.result("progress.json"), progress)
    }

    /// Writes `out/failure.json`, as far as the folder allows: the exit code says the essential.
    pub fn fail(&self, failure: &Failure) {
        let _ = fs::create_dir_all(self.out());
        let _ = write_json(&self.result("failure.json"), failure);
    }

    /// Writes `out/MANIFEST` over the given results (paths relative to `out/`), which must be complete.
    pub fn finish(&self, mut paths: Vec<String>) -> Result<(), TrainerError> {
        paths.sort();
        let files = paths.into_iter().map(|path| self.entry(path)).collect::<Result<_, _>>()?;
        write_json(&self.result("MANIFEST"), &OutManifest { files })
    }

    fn entry(&self, path: String) -> Result<OutFile, TrainerError> {
        let file = self.result(&path);
        let mut content = Vec::new();
        let read = File::open(&file).and_then(|mut f| {
            f.sync_all()?;
            f.read_to_end(&mut content)
        });
        read.map_err(|e| TrainerError::file("read", &file, e))?;
        Ok(OutFile { path, size: content.len() as u64, digest: Digest::of(&content) })
    }
}

/// Writes JSON so that a reader sees the old content or the new, never a part: beside it, durable, then renamed.
pub fn write_json<T: Serialize>(file: &Path, value: &T) -> Result<(), TrainerError> {
    let fail = |e: io::Error| TrainerError::file("written", file, e);
    let mut text = serde_json::to_vec_pretty(value).map_err(|e| fail(e.into()))?;
    text.push(b'\n');
    let mut name = file.file_name().unwrap_or_default().to_owned();
    name.push(".part");
    let part = file.with_file_name(name);
    let written = File::create(&part).and_then(|mut f| {
        f.write_all(&text)?;
        f.sync_all()
    });
    written.and_then(|()| fs::rename(&part, file)).map_err(fail)
}
