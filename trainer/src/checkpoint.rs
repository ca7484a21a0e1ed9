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
    /// Good steps since the scale was changed.
    pub good_steps: u64,
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
    // Beside it first: a task that is stopped again before its next step writes the file that `state.json` names.
    let part = folder.join(format!("{}.part", position.tensors));
    save_weights(tensors, &part)?;
    let synced = fs::File::open(&part).and_then(|f| f.sync_all()).and_then(|()| fs::rename(&part, &file));
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

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    /// A node is drained, the task comes back and is drained again before its next step. If the file that `state.json`
    /// names were opened for writing then, a kill in the middle would lose a day of training.
    #[test]
    fn a_checkpoint_is_replaced_and_never_written_over() {
        let dir = tempfile::TempDir::new().unwrap();
        let task = Digest::of(b"task");
        let position = Position {
            task,
            step: 3,
            adam_steps: 2,
            loss_scale: 1024.0,
            good_steps: 17,
            epoch_losses: vec![0.5],
            loss_sum: 0.25,
            tensors: "step-3.safetensors".into(),
        };
        let tensors = [("a".to_owned(), Tensor::from_slice(&[1.0_f32, 2.0]))];
        let inode = || fs::metadata(dir.path().join(&position.tensors)).unwrap().ino();
        save(dir.path(), &position, &tensors).unwrap();
        // Held open, so that its inode number is not given to the next file.
        let _first = fs::File::open(dir.path().join(&position.tensors)).unwrap();
        let before = inode();
        save(dir.path(), &position, &tensors).unwrap();
        assert_ne!(inode(), before, "the file was written in place");
        let (found, loaded) = load(dir.path(), task).unwrap().unwrap();
        assert_eq!((found, loaded.len()), (position.clone(), 1));
        assert!(!dir.path().join("step-3.safetensors.part").exists());
    }
}
