//! What survives a restart: parameters, Adam's moments, and where the task stands. The order of the data is a function
//! of seed and epoch, so the step alone restores the random state, and a resumed run on a CPU ends with the same bits as
//! one that was never stopped.

use std::fs;
use std::path::{Path, PathBuf};

use consilium_federation::digest::Digest;
use serde::{Deserialize, Serialize};
use tch::Tensor;

use consilium_imaging::torch::save_weights;

use crate::error::TrainerError;

/// `checkpoint/state.json`; it names the tensors' file, and is replaced after that is complete.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Position {
    /// Digest of the task that it belongs to; another task's checkpoint is not resumed.
    pub task: Digest,
    /// Steps done.
    pub step: u64,
    /// Updates made by Adam (fewer than steps when half precision overflowed).
    pub adam_steps: u64,
    /// Scale of the loss in half precision.
    pub loss_scale: f64,
    /// Mean losses of the finished epochs.
    pub epoch_losses: Vec<f64>,
    /// Sum of the losses of the epoch under way.
    pub loss_sum: f64,
    /// The tensors' file, in the same folder.
    pub tensors: String,
}

fn state_file(folder: &Path) -> PathBuf {
    folder.join("state.json")
}

/// Writes a checkpoint; a kill at any moment leaves either the one before or this one.
pub fn save(folder: &Path, position: &Position, tensors: &[(String, Tensor)]) -> Result<(), TrainerError> {
    fs::create_dir_all(folder).map_err(|e| TrainerError::file("made", folder, e))?;
    let file = folder.join(&position.tensors);
    save_weights(tensors, &file)?;
    let synced = fs::File::open(&file).and_then(|f| f.sync_all());
    synced.map_err(|e| TrainerError::file("made durable", &file, e))?;
    let before = load_position(folder)?;
    crate::contract::write_json(&state_file(folder), position)?;
    if let Some(before) = before.filter(|before| before.tensors != position.tensors) {
        // What cannot be removed costs only space.
        let _ = fs::remove_file(folder.join(before.tensors));
    }
    Ok(())
}

fn load_position(folder: &Path) -> Result<Option<Position>, TrainerError> {
    let file = state_file(folder);
    match fs::read(&file) {
        Ok(bytes) => Ok(serde_json::from_slice(&bytes).ok()),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(TrainerError::file("read", &file, e)),
    }
}

/// What a checkpoint holds: where training stood, and every tensor by name.
pub type Saved = (Position, Vec<(String, Tensor)>);

/// The checkpoint of this task, if there is a whole one.
pub fn load(folder: &Path, task: Digest) -> Result<Option<Saved>, TrainerError> {
    let Some(position) = load_position(folder)?.filter(|position| position.task == task) else { return Ok(None) };
    match Tensor::read_safetensors(folder.join(&position.tensors)) {
        Ok(tensors) => Ok(Some((position, tensors))),
        // Torn or gone: the task begins again, which costs time and nothing else.
        Err(_) => Ok(None),
    }
}
