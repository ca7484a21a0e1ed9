//! `score`: the platform's own evaluator. It runs in the platform's image, beside labels that the study's image never
//! sees.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use consilium_federation::output::{OutputKind, OutputSpec};
use consilium_federation::task::{ClassScore, ScoreFile};
use consilium_imaging::ScanError;
use consilium_imaging::frame::shear;
use consilium_imaging::metrics::{CaseScore, ClassSummary, Summary, score, summarise};
use consilium_imaging::msd::{CaseTable, masks_in};
use consilium_imaging::nifti_file::read_mask;
use consilium_imaging::untrusted::UntrustedFolder;
use serde::Serialize;
use serde_json::json;

use super::{log, warn};
use crate::cli::ScoreArgs;
use crate::config::TrainerConfig;
use crate::contract::{Root, write_json};
use crate::error::TrainerError;

/// How often the folder is looked at while waiting.
const WAIT_STEP: std::time::Duration = std::time::Duration::from_millis(50);

/// What `--details` writes; it stays in the hospital.
#[derive(Debug, Serialize)]
struct Details {
    summary: Summary,
    cases: Vec<CaseScore>,
}

/// Scores what a trainer left in `root`. Everything else is `own`, which is the same folder only where nobody else writes
/// to it: what is asked for, how many classes there are, and the score.
pub(super) fn run_under_contract(
    root: &Root,
    own: &Root,
    args: &ScoreArgs,
    stop: &AtomicBool,
) -> Result<(), TrainerError> {
    if args.wait {
        wait_for_predictions(root, own, stop)?;
    }
    let (task, _) = own.task()?;
    let classes = match &task.output {
        Some(output) => values(output)?,
        // Without it only this trainer's own config says how many there are.
        None => TrainerConfig::parse(&task.config)?.network().classes,
    };
    let predictions = UntrustedFolder::open(&root.out()).and_then(|out| out.inner("predictions")).map_err(blame)?;
    let cases = score_folders(&predictions, &args.labels, classes)?;
    let out = own.out();
    fs::create_dir_all(&out).map_err(|e| TrainerError::file("made", &out, e))?;
    write_all(&own.result("score.json"), args.details.as_deref(), cases)?;
    own.finish(vec!["score.json".to_owned()])
}

/// Values of a voxel, of a study that says what its model answers, whatever made the model.
fn values(output: &OutputSpec) -> Result<u8, TrainerError> {
    output.check().map_err(TrainerError::Config)?;
    match output.kind {
        // At most MAX_CLASSES and the background.
        OutputKind::Segmentation => Ok(u8::try_from(output.values()).unwrap_or(u8::MAX)),
        OutputKind::Classification => Err(TrainerError::Config(
            "spec.output.kind is Classification: the platform's evaluator scores segmentations alone; take the gate out of the study".into(),
        )),
    }
}

/// The trainer runs beside this in another container of the pod; its MANIFEST, or the courier's FAILED, ends the wait.
fn wait_for_predictions(root: &Root, own: &Root, stop: &AtomicBool) -> Result<(), TrainerError> {
    let (manifest, failed) = (root.result("MANIFEST"), own.result("FAILED"));
    while !manifest.exists() {
        if failed.exists() {
            return Err(TrainerError::Files(
                "the trainer ended without predictions, so there is nothing to score".into(),
            ));
        }
        if stop.load(Ordering::Relaxed) {
            return Err(TrainerError::Terminated { step: 0 });
        }
        std::thread::sleep(WAIT_STEP);
    }
    Ok(())
}

pub(super) fn run_alone(args: &ScoreArgs) -> Result<(), TrainerError> {
    let (Some(predictions), Some(classes), Some(out)) = (&args.predictions, args.classes, &args.out) else {
        return Err(TrainerError::Config("score needs --root, or --predictions with --classes and --out".into()));
    };
    let predictions = UntrustedFolder::open(predictions).map_err(blame)?;
    write_all(out, args.details.as_deref(), score_folders(&predictions, &args.labels, classes)?)
}

/// A bad prediction is the study image's fault and not the hospital's data.
fn blame(e: ScanError) -> TrainerError {
    TrainerError::Predictions(e.to_string())
}

fn write_all(out: &Path, details: Option<&Path>, cases: Vec<CaseScore>) -> Result<(), TrainerError> {
    let summary = summarise(&cases);
    let score = score_file(&summary);
    write_json(out, &score)?;
    if let Some(details) = details {
        write_json(details, &Details { summary, cases })?;
    }
    log("scored", json!({ "cases": score.cases, "dice": score.mean_dice() }));
    Ok(())
}

/// Scores every labelled case. A case without a prediction is an error and not left out: a model must not do better by
/// keeping silent on hard cases.
fn score_folders(predictions: &UntrustedFolder, labels: &Path, classes: u8) -> Result<Vec<CaseScore>, TrainerError> {
    let table = CaseTable::of_folder(labels)?;
    let truths = masks_in(labels)?;
    if truths.is_empty() {
        let reason = "there are no masks to score against".into();
        return Err(ScanError::BadFolder { folder: labels.to_owned(), reason }.into());
    }
    warn(shear(truths.values()).as_slice());
    let predicted = predictions.masks().map_err(blame)?;
    let missing: Vec<&str> = truths.keys().filter(|id| !predicted.contains_key(*id)).map(String::as_str).collect();
    if let Some(first) = missing.first() {
        return Err(TrainerError::Predictions(format!(
            "{}: no prediction for {} of {} cases (the first: {first}): every evaluation case needs one; \
             check that the trainer segments all scans of its data folder",
            predictions.path().display(),
            missing.len(),
            truths.len()
        )));
    }
    let score_case = |(id, file): (&String, &PathBuf)| -> Result<CaseScore, TrainerError> {
        let (subject, truth) = (table.subject(id)?, read_mask(file, classes)?);
        // Presence was checked for all cases before.
        let name = predicted.get(id).map(String::as_str).unwrap_or_default();
        let prediction = predictions.mask(name, classes, (file, &truth.grid)).map_err(blame)?;
        Ok(CaseScore { case: id.clone(), subject, classes: score(&prediction, &truth, classes) })
    };
    truths.iter().map(score_case).collect()
}

/// The contract's form: means over cases, in label order, of every foreground class that a case has in its truth or its
/// prediction. One that none has says nothing about the model.
fn score_file(summary: &Summary) -> ScoreFile {
    let class = |class: &ClassSummary| ClassScore {
        label: u32::from(class.class),
        dice: class.dice_by_case,
        hd95_mm: class.hd95_mm_by_case,
        assd_mm: class.assd_mm_by_case,
    };
    ScoreFile { cases: summary.cases as u32, classes: summary.classes.iter().map(class).collect() }
}
