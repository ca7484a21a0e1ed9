//! `evaluate`: the study's image segments a hospital's evaluation scans. It never sees their labels.

use std::fs;

use consilium_federation::task::{Progress, TaskFile, TaskKind, TaskMetrics};
use consilium_imaging::nifti_file::{read_volume, write_mask};
use consilium_imaging::torch::{Segmenter, load_weights};
use consilium_imaging::{ScanError, msd};
use serde_json::json;

use super::{device, expect_kind, log, set_threads};
use crate::cli::DataArgs;
use crate::config::TrainerConfig;
use crate::contract::{Root, write_json};
use crate::data::shape_for;
use crate::engine::Engine;
use crate::error::TrainerError;

/// Tiles that go through the network at once.
pub(super) const TILES_AT_ONCE: usize = 4;

pub(super) fn run(root: &Root, args: &DataArgs, task: &TaskFile) -> Result<(), TrainerError> {
    expect_kind(task, TaskKind::Evaluate)?;
    let config = TrainerConfig::parse(&task.config)?;
    set_threads(args.threads);
    let (mut scans, mut bad) = (Vec::new(), Vec::new());
    for case in msd::unlabelled_cases(&args.data)? {
        match read_volume(&case.image) {
            Ok(volume) => scans.push((case, volume)),
            Err(e) => bad.push(e),
        }
    }
    if let Some(e) = ScanError::fold(bad) {
        return Err(e.into());
    }
    let device = device();
    let engine = Engine::new(&config, task.seed, device)?;
    load_weights(engine.store(), &root.model())?;
    let tile = shape_for(&config, scans.iter().map(|(_, volume)| volume.grid.shape));
    let segmenter = Segmenter::new(engine.into_net(), device, tile, TILES_AT_ONCE, config.network().classes)?;
    let folder = root.result("predictions");
    fs::create_dir_all(&folder).map_err(|e| TrainerError::file("made", &folder, e))?;
    let (mut written, of) = (vec!["metrics.json".to_owned()], scans.len() as u64);
    for (at, (case, volume)) in scans.iter().enumerate() {
        let name = format!("predictions/{}.nii.gz", case.id);
        write_mask(&root.result(&name), &segmenter.segment(volume)?)?;
        written.push(name);
        root.progress(&Progress { step: at as u64 + 1, of, eta_seconds: None })?;
    }
    write_json(&root.result("metrics.json"), &TaskMetrics { examples: of, metrics: json!({ "tile": tile }) })?;
    log("evaluated", json!({ "study": task.study, "round": task.round, "cases": of }));
    root.finish(written)
}
