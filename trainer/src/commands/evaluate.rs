//! `evaluate`: the study's image segments a hospital's evaluation scans. It never sees their labels.

use std::fs;

use consilium_federation::task::{Progress, TaskFile, TaskKind, TaskMetrics};
use consilium_imaging::ScanError;
use consilium_imaging::msd::{self, Orientation};
use consilium_imaging::nifti_file::{read_volume, write_mask};
use consilium_imaging::torch::{Segmenter, load_weights};
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
    let config = TrainerConfig::of_study(&task.config)?;
    set_threads(args.threads);
    let cases = msd::unlabelled_cases(&args.data)?;
    let device = device();
    let engine = Engine::new(&config, task.seed, device)?;
    load_weights(engine.store(), &root.model())?;
    let tile = shape_for(&config, &cases)?;
    let segmenter = Segmenter::new(engine.into_net(), device, tile, TILES_AT_ONCE, config.network().classes)?;
    let folder = root.result("predictions");
    fs::create_dir_all(&folder).map_err(|e| TrainerError::file("made", &folder, e))?;
    let (mut written, mut bad) = (vec!["metrics.json".to_owned()], Vec::new());
    let (mut orientation, of) = (Orientation::default(), cases.len() as u64);
    for (at, case) in cases.iter().enumerate() {
        let volume = match read_volume(&case.image) {
            Ok(volume) => volume,
            Err(e) => {
                bad.push(e);
                continue;
            }
        };
        bad.extend(orientation.check(&case.image, &volume.grid).err());
        // After a bad scan the others are only checked, so that all bad ones are named at once.
        if bad.is_empty() {
            let name = format!("predictions/{}.nii.gz", case.id);
            write_mask(&root.result(&name), &segmenter.segment(&volume)?)?;
            written.push(name);
            root.progress(&Progress { step: at as u64 + 1, of, eta_seconds: None })?;
        }
    }
    if let Some(e) = ScanError::fold(bad) {
        return Err(e.into());
    }
    write_json(&root.result("metrics.json"), &TaskMetrics { examples: of, metrics: json!({ "tile": tile }) })?;
    log("evaluated", json!({ "study": task.study, "round": task.round, "cases": of }));
    root.finish(written)
}
