//! `score`: the platform's own evaluator. It runs in the platform's image, beside labels that the study's image never
//! sees.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use consilium_federation::task::{ClassScore, ScoreFile};
use consilium_imaging::ScanError;
use consilium_imaging::metrics::{CaseScore, Summary, score, summarise};
use consilium_imaging::msd::{CaseTable, masks_in};
use consilium_imaging::nifti_file::{check_pair, read_mask};
use serde::Serialize;
use serde_json::json;

use super::log;
use crate::cli::ScoreArgs;
use crate::config::TrainerConfig;
use crate::contract::{Root, write_json};
use crate::error::TrainerError;

/// How often the folder is looked at while waiting.
const WAIT_STEP: std::time::Duration = std::time::Duration::from_millis(250);

/// What `--details` writes; it stays in the hospital.
#[derive(Debug, Serialize)]
struct Details {
    summary: Summary,
    cases: Vec<CaseScore>,
}

pub(super) fn run_under_contract(root: &Root, args: &ScoreArgs, stop: &AtomicBool) -> Result<(), TrainerError> {
    if args.wait {
        wait_for_predictions(root, stop)?;
    }
    let (task, _) = root.task()?;
    let classes = TrainerConfig::parse(&task.config)?.network().classes;
    let cases = score_folders(&root.result("predictions"), &args.labels, classes)?;
    write_all(&root.result("score.json"), args.details.as_deref(), cases, classes)?;
    root.finish(results_in(root)?)
}

/// The trainer runs beside this in another container of the pod; its MANIFEST, or the courier's FAILED, ends the wait.
fn wait_for_predictions(root: &Root, stop: &AtomicBool) -> Result<(), TrainerError> {
    let (manifest, failed) = (root.result("MANIFEST"), root.result("FAILED"));
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
    write_all(out, args.details.as_deref(), score_folders(predictions, &args.labels, classes)?, classes)
}

fn write_all(out: &Path, details: Option<&Path>, cases: Vec<CaseScore>, classes: u8) -> Result<(), TrainerError> {
    let summary = summarise(&cases);
    let score = score_file(&summary, classes);
    write_json(out, &score)?;
    if let Some(details) = details {
        write_json(details, &Details { summary, cases })?;
    }
    log("scored", json!({ "cases": score.cases, "dice": score.mean_dice() }));
    Ok(())
}

/// Files for the MANIFEST: the score beside what the trainer wrote.
fn results_in(root: &Root) -> Result<Vec<String>, TrainerError> {
    let mut paths = vec!["score.json".to_owned()];
    if root.result("metrics.json").exists() {
        paths.push("metrics.json".into());
    }
    for file in masks_in(&root.result("predictions"))?.values() {
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        paths.push(format!("predictions/{name}"));
    }
    Ok(paths)
}

/// Scores every labelled case. A case without a prediction is an error and not left out: a model must not do better by
/// keeping silent on hard cases.
fn score_folders(predictions: &Path, labels: &Path, classes: u8) -> Result<Vec<CaseScore>, TrainerError> {
    let table = CaseTable::of_folder(labels)?;
    let truths = masks_in(labels)?;
    if truths.is_empty() {
        let reason = "there are no masks to score against".into();
        return Err(ScanError::BadFolder { folder: labels.to_owned(), reason }.into());
    }
    let predicted = masks_in(predictions)?;
    let missing: Vec<&str> = truths.keys().filter(|id| !predicted.contains_key(*id)).map(String::as_str).collect();
    if let Some(first) = missing.first() {
        return Err(TrainerError::Predictions(format!(
            "{}: no prediction for {} of {} cases (the first: {first}): every evaluation case needs one; \
             check that the trainer segments all scans of its data folder",
            predictions.display(),
            missing.len(),
            truths.len()
        )));
    }
    truths.iter().map(|(id, truth)| score_case(id, &table, &predicted, truth, classes)).collect()
}

fn score_case(
    id: &str,
    table: &CaseTable,
    predicted: &BTreeMap<String, PathBuf>,
    truth_file: &Path,
    classes: u8,
) -> Result<CaseScore, TrainerError> {
    let truth = read_mask(truth_file, classes)?;
    // Presence was checked for all cases before.
    let file = predicted.get(id).cloned().unwrap_or_default();
    // A bad prediction is the study image's fault and not the hospital's data.
    let blame = |e: ScanError| TrainerError::Predictions(e.to_string());
    let prediction = read_mask(&file, classes).map_err(blame)?;
    check_pair(truth_file, &truth.grid, &file, &prediction.grid).map_err(blame)?;
    Ok(CaseScore { case: id.to_owned(), subject: table.subject(id), classes: score(&prediction, &truth, classes) })
}

/// The contract's form: means over cases, every foreground class in label order. A class that no case has counts as 0.
fn score_file(summary: &Summary, classes: u8) -> ScoreFile {
    let of = |label: u8| summary.classes.iter().find(|class| class.class == label);
    ScoreFile {
        cases: summary.cases as u32,
        classes: (1..classes)
            .map(|label| ClassScore {
                label: u32::from(label),
                dice: of(label).map_or(0.0, |class| class.dice_by_case),
                hd95_mm: of(label).and_then(|class| class.hd95_mm),
                assd_mm: of(label).and_then(|class| class.assd_mm),
            })
            .collect(),
    }
}
