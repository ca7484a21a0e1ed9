//! `evaluate`: the study's image segments a hospital's evaluation scans. It never sees their labels.

use std::fs;

use consilium_federation::task::{Progress, TaskFile, TaskKind, TaskMetrics};
use consilium_imaging::frame::survey;
use consilium_imaging::msd;
use consilium_imaging::nifti_file::{read_volume, write_mask};
use consilium_imaging::torch::{Segmenter, load_weights};
use consilium_imaging::{Mask, ScanError};
use serde_json::json;

use super::{device, expect_kind, frame_of, log, set_threads, warn};
use crate::cli::DataArgs;
use crate::config::TrainerConfig;
use crate::contract::{Root, write_json};
use crate::engine::Engine;
use crate::error::TrainerError;

/// Tiles that go through the network at once.
pub(super) const TILES_AT_ONCE: usize = 4;

pub(super) fn run(root: &Root, args: &DataArgs, task: &TaskFile) -> Result<(), TrainerError> {
    expect_kind(task, TaskKind::Evaluate)?;
    let config = TrainerConfig::of_task(task)?;
    set_threads(args.threads);
    let folder = msd::unlabelled_cases(&args.data)?;
    let (cases, frame) = (folder.cases, frame_of(task)?);
    warn(&folder.notices);
    warn(&survey(cases.iter().map(|case| &case.image), &frame).notices);
    let device = device();
    let engine = Engine::new(&config, task.seed, device)?;
    load_weights(engine.store(), &root.model())?;
    // Safety of the default: a study's config has a shape.
    let tile = config.shape.unwrap_or_default();
    let segmenter = Segmenter::new(engine.into_net(), &config.network, device, tile, TILES_AT_ONCE)?;
    let folder = root.result("predictions");
    fs::create_dir_all(&folder).map_err(|e| TrainerError::file("made", &folder, e))?;
    let (mut written, mut bad) = (vec!["metrics.json".to_owned()], Vec::new());
    let of = cases.len() as u64;
    for (at, case) in cases.iter().enumerate() {
        let read = read_volume(&case.image).and_then(|volume| {
            let grid = volume.grid.clone();
            Ok((grid, frame.bring(&case.image, volume)?))
        });
        match read {
            Err(e) => bad.push(e),
            // After a bad scan the others are only checked, so that all bad ones are named at once.
            Ok(_) if !bad.is_empty() => {}
            Ok((grid, (volume, turn))) => {
                let seen = segmenter.segment(&volume)?;
                let mask = Mask { labels: turn.back().voxels(seen.labels, seen.grid.shape), grid };
                let name = format!("predictions/{}.nii.gz", case.id);
                write_mask(&root.result(&name), &mask)?;
                written.push(name);
                root.progress(&Progress { step: at as u64 + 1, of, eta_seconds: None })?;
            }
        }
    }
    if let Some(e) = ScanError::fold(bad) {
        return Err(e.into());
    }
    write_json(&root.result("metrics.json"), &TaskMetrics { examples: of, metrics: json!({ "tile": tile }) })?;
    log("evaluated", json!({ "study": task.study, "round": task.round, "cases": of }));
    root.finish(written)
}
