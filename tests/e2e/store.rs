//! What lies on the hub's volume of one hospital's upload, asked of the files themselves.

use std::{fs, path::PathBuf};

use serde_json::Value;

use crate::harness::World;

/// One hospital's upload in the open (or last) attempt of a round.
pub struct Upload {
    folder: PathBuf,
}

impl Upload {
    /// The upload of `site` in this round as it stands.
    pub fn of(world: &World, round: &Value, site: &str) -> xtask::error::Result<Self> {
        let uid = round["metadata"]["uid"].as_str().unwrap_or_default();
        let attempt = round["status"]["round"]["attempt"].to_string();
        let store = world.federation.hub.volume("store")?;
        Ok(Self { folder: store.join("rounds").join(uid).join(attempt).join("upload").join(site) })
    }

    /// Chunks that have arrived: files with a number for a name, under the digest of what was announced.
    pub fn chunks(&self) -> usize {
        let folders = fs::read_dir(&self.folder).into_iter().flatten().flatten();
        let files = folders.filter_map(|folder| fs::read_dir(folder.path()).ok()).flatten().flatten();
        files.filter(|file| file.file_name().to_string_lossy().parse::<u32>().is_ok()).count()
    }

    /// The hub has it all, durably.
    pub fn is_complete(&self) -> bool {
        self.folder.join("complete").is_file()
    }
}
