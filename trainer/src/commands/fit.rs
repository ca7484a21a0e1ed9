//! `fit`: how a researcher tries a configuration on one data set, and how the bar for a federated run is measured.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use consilium_federation::task::Progress;
use consilium_imaging::ScanError;
use consilium_imaging::dataset::Split;
use consilium_imaging::frame::{Frame, survey};
use consilium_imaging::metrics::{CaseScore, ClassSummary, Summary, score, summarise};
use consilium_imaging::msd::{Case, Folder, labelled_cases};
use consilium_imaging::split::{hold_back, subjects};
use consilium_imaging::torch::{Segmenter, named_parameters, save_weights};
use serde::Serialize;
use serde_json::json;

use super::evaluate::TILES_AT_ONCE;
use super::{device, log, set_threads, warn, warn_without_table};
use crate::cli::FitArgs;
use crate::config::TrainerConfig;
use crate::contract::write_json;
use crate::data::{Examples, check, placed};
use crate::engine::{Engine, Job};
use crate::error::TrainerError;
use crate::ranks::Alone;

/// `fit.json`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Report<'a> {
    config: &'a TrainerConfig,
    /// The axes that scans were brought to; none where no scan says how it lies, and all were taken as they are stored.
    orientation: Option<String>,
    rounds: u32,
    seed: u64,
    train_cases: usize,
    train_subjects: usize,
    held_back_subjects: Vec<String>,
    steps: u64,
    epoch_losses: Vec<f64>,
    train_seconds: f64,
    evaluate_seconds: f64,
    summary: Summary,
    by_regime: Vec<(String, Summary)>,
    cases: Vec<CaseScore>,
}

pub(super) fn run(args: &FitArgs, stop: &Arc<AtomicBool>) -> Result<(), TrainerError> {
    let mut config = read_config(args.config.as_deref())?;
    set_threads(args.threads);
    fs::create_dir_all(&args.out).map_err(|e| TrainerError::file("made", &args.out, e))?;
    let classes = config.network().classes;
    warn_without_table(&args.data)?;
    let folder = labelled_cases(&args.data)?;
    warn(&folder.notices);
    folder.check_classes(classes)?;
    let frame = frame_for(&folder.cases);
    let (train, held_back) = split(&folder, args)?;
    // Now, and not after an hour of training.
    check(&held_back, classes, &frame)?;
    let began = Instant::now();
    let examples = Examples::read(&train, &config, &frame)?;
    // Into the report with it: a study must fix the shape.
    config.shape = Some(examples.shape());
    let mut engine = Engine::new(&config, args.seed, device())?;
    let (steps, epoch_losses) = train_all(&mut engine, &examples, &config, args, stop)?;
    let train_seconds = began.elapsed().as_secs_f64();
    save_weights(&named_parameters(engine.store()), &args.out.join("model.safetensors"))?;
    let began = Instant::now();
    let segmenter = Segmenter::new(engine.into_net(), &config.network, device(), examples.shape(), TILES_AT_ONCE)?;
    let cases = score_all(&segmenter, &held_back, classes, &frame)?;
    let report = Report {
        config: &config,
        orientation: frame.known_axes().map(|axes| axes.to_string()),
        rounds: args.rounds,
        seed: args.seed,
        train_cases: train.len(),
        train_subjects: subjects(&train).len(),
        held_back_subjects: subjects(&held_back),
        steps,
        epoch_losses,
        train_seconds,
        evaluate_seconds: began.elapsed().as_secs_f64(),
        summary: summarise(&cases),
        by_regime: by_regime(&held_back, &cases),
        cases,
    };
    write_json(&args.out.join("fit.json"), &report)?;
    print(&report);
    Ok(())
}

/// Where the scans are brought to. A folder none of whose scans says how it lies can only be taken as it is stored; with
/// some that say it, the others are refused.
fn frame_for(cases: &[Case]) -> Frame {
    let frame = Frame::default();
    let found = survey(cases.iter().map(|case| &case.image), &frame);
    warn(&found.notices);
    if found.none_placed { frame.taking_unknown_as_stored() } else { frame }
}

/// Cases to train on and to hold back: by the first fold of `splits_final.json` where there is one, else by person.
fn split(folder: &Folder, args: &FitArgs) -> Result<(Vec<Case>, Vec<Case>), TrainerError> {
    let (train, held_back) = match Split::of_folder(&args.data)? {
        Some(split) => by_fold(&folder.cases, &split)?,
        None => hold_back(&folder.cases, args.hold_back as usize, None),
    };
    if train.is_empty() || held_back.is_empty() {
        return Err(TrainerError::Config(format!(
            "{}: {} cases to train on and {} held back: both must be at least 1; lower --hold-back or add cases",
            args.data.display(),
            train.len(),
            held_back.len()
        )));
    }
    Ok((train, held_back))
}

fn by_fold(cases: &[Case], split: &Split) -> Result<(Vec<Case>, Vec<Case>), ScanError> {
    let bad = |reason: String| ScanError::BadDataset { file: split.file.clone(), reason };
    let (mut train, mut held_back, mut errors) = (Vec::new(), Vec::new(), Vec::new());
    for case in cases {
        match (split.train.contains(&case.id), split.held_back.contains(&case.id)) {
            (true, false) => train.push(case.clone()),
            (false, true) => held_back.push(case.clone()),
            (in_both, _) => errors.push(bad(format!(
                "case {} stands in {} of the first fold's train and val; put it into one of them",
                case.id,
                if in_both { "both" } else { "neither" }
            ))),
        }
    }
    let trained = subjects(&train);
    errors.extend(subjects(&held_back).into_iter().filter(|person| trained.contains(person)).map(|person| {
        bad(format!(
            "the first fold has scans of person {person} in train and in val, which makes every figure too good; keep a \
             person's scans together, or take the file away and the split is made by person"
        ))
    }));
    ScanError::fold(errors).map_or(Ok((train, held_back)), Err)
}

pub(super) fn read_config(file: Option<&Path>) -> Result<TrainerConfig, TrainerError> {
    let Some(file) = file else {
        return TrainerConfig::parse(&json!({ "network": { "kind": "UNet3D", "classes": 3 } }));
    };
    // No file is called so: what begins with a brace is the configuration itself.
    let (what, bytes) = match file.to_str().filter(|text| text.trim_start().starts_with('{')) {
        Some(text) => ("--config".into(), text.as_bytes().to_vec()),
        None => (file.display().to_string(), fs::read(file).map_err(|e| TrainerError::file("read", file, e))?),
    };
    let value = serde_json::from_slice(&bytes).map_err(|e| TrainerError::Config(format!("{what}: not JSON: {e}")))?;
    TrainerConfig::parse(&value)
}

/// All rounds in one go: one Adam and one cosine over all of them, as a study has without its interruptions.
fn train_all(
    engine: &mut Engine,
    examples: &Examples,
    config: &TrainerConfig,
    args: &FitArgs,
    stop: &Arc<AtomicBool>,
) -> Result<(u64, Vec<f64>), TrainerError> {
    let epochs_per_round = config.epochs_per_round * args.rounds.max(1);
    // There is no base to be held near.
    let config = TrainerConfig { epochs_per_round, proximal: 0.0, ..config.clone() };
    let job = Job { examples, config: &config, data_seed: args.seed, round: 1, rounds: 1, checkpoints: None };
    let mut tell = |progress: &Progress, loss: f64| {
        if progress.step.is_multiple_of(50) {
            log(
                "step",
                json!({ "step": progress.step, "of": progress.of, "loss": loss, "etaSeconds": progress.eta_seconds }),
            );
        }
        Ok(())
    };
    let outcome = engine.run(&job, stop, &mut tell, &mut Alone)?;
    Ok((outcome.steps, outcome.epoch_losses))
}

pub(super) fn score_all(
    segmenter: &Segmenter,
    cases: &[Case],
    classes: u8,
    frame: &Frame,
) -> Result<Vec<CaseScore>, TrainerError> {
    cases
        .iter()
        .map(|case| {
            let (volume, truth) = placed(case, classes, frame)?;
            let classes = score(&segmenter.segment(&volume)?, &truth, classes);
            Ok(CaseScore { case: case.id.clone(), subject: case.subject.clone(), classes })
        })
        .collect()
}

fn by_regime(cases: &[Case], scores: &[CaseScore]) -> Vec<(String, Summary)> {
    let mut regimes: Vec<&str> = cases.iter().filter_map(|case| case.regime.as_deref()).collect();
    regimes.sort_unstable();
    regimes.dedup();
    let of = |regime: &str| -> Vec<CaseScore> {
        let chosen = cases.iter().zip(scores).filter(|(case, _)| case.regime.as_deref() == Some(regime));
        chosen.map(|(_, score)| score.clone()).collect()
    };
    regimes.into_iter().map(|regime| (regime.to_owned(), summarise(&of(regime)))).collect()
}

/// One line of Dice and distances per class.
pub(super) fn line(name: &str, summary: &Summary) {
    let mm = |value: Option<f64>| value.map_or("-".into(), |v| format!("{v:.2}"));
    let class = |c: &ClassSummary| {
        format!(
            "class {}: dice {:.4} (worst {:.3}, by case {:.4}), HD95 {} mm, ASSD {} mm, missed {}",
            c.class,
            c.dice,
            c.worst_dice,
            c.dice_by_case,
            mm(c.hd95_mm),
            mm(c.assd_mm),
            c.missed
        )
    };
    let classes: Vec<String> = summary.classes.iter().map(class).collect();
    println!("{name}: {} cases of {} persons; {}", summary.cases, summary.subjects, classes.join("; "));
}

fn print(report: &Report<'_>) {
    println!(
        "trained on {} cases of {} persons, {} steps in {:.0} s; seed {}",
        report.train_cases, report.train_subjects, report.steps, report.train_seconds, report.seed
    );
    line("held back", &report.summary);
    for (regime, summary) in &report.by_regime {
        line(&format!("  regime {regime}"), summary);
    }
}
