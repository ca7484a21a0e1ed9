//! `federate`: a study's rounds over simulated hospitals in one process: training, the mean of the models, no masks. How
//! a researcher sees what a configuration brings where hospitals differ, in minutes and before anybody is asked.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use consilium_imaging::ScanError;
use consilium_imaging::frame::Frame;
use consilium_imaging::metrics::{CaseScore, Summary, summarise};
use consilium_imaging::msd::{Case, labelled_cases, masks_in, unlabelled_cases};
use consilium_imaging::torch::{Segmenter, named_parameters, save_weights};
use serde::Serialize;
use serde_json::json;
use tch::{TchError, Tensor, no_grad};

use super::evaluate::TILES_AT_ONCE;
use super::fit::{line, read_config, score_all};
use super::{device, log, set_threads};
use crate::cli::FederateArgs;
use crate::config::TrainerConfig;
use crate::contract::write_json;
use crate::data::{Examples, check};
use crate::engine::{Engine, Job};
use crate::error::TrainerError;
use crate::ranks::Alone;

/// One simulated hospital.
struct Hospital {
    name: String,
    examples: Examples,
    held_back: Vec<Case>,
}

/// `federate.json`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Report<'a> {
    note: &'static str,
    config: &'a TrainerConfig,
    rounds: u32,
    seed: u64,
    train_seconds: f64,
    hospitals: Vec<Figures>,
    all: Summary,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Figures {
    name: String,
    train_cases: usize,
    summary: Summary,
}

pub(super) fn run(args: &FederateArgs, stop: &Arc<AtomicBool>) -> Result<(), TrainerError> {
    let config = read_config(args.config.as_deref())?.shaped()?;
    set_threads(args.threads);
    fs::create_dir_all(&args.out).map_err(|e| TrainerError::file("made", &args.out, e))?;
    let hospitals = hospitals(&args.data, &config)?;
    let began = Instant::now();
    let model = train(&hospitals, &config, args, stop)?;
    let train_seconds = began.elapsed().as_secs_f64();
    save_weights(&model, &args.out.join("model.safetensors"))?;
    let report = judge(&hospitals, &config, &model, args, train_seconds)?;
    write_json(&args.out.join("federate.json"), &report)?;
    println!(
        "{} hospitals (simulated), {} rounds in {train_seconds:.0} s; seed {}",
        hospitals.len(),
        args.rounds,
        args.seed
    );
    for hospital in &report.hospitals {
        line(&format!("  {} ({} scans)", hospital.name, hospital.train_cases), &hospital.summary);
    }
    line("all", &report.all);
    Ok(())
}

/// The folders that `shard` and `phantom` write, in the order of their names.
fn hospitals(data: &Path, config: &TrainerConfig) -> Result<Vec<Hospital>, TrainerError> {
    let (frame, classes) = (Frame::default(), config.network().classes);
    let mut folders: Vec<_> = fs::read_dir(data)
        .map_err(|e| TrainerError::file("read", data, e))?
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .filter(|path| path.join("train").is_dir())
        .collect();
    folders.sort();
    if folders.is_empty() {
        let reason = "no folder in it has a folder train; make some with `consilium-trainer shard` or `phantom`".into();
        return Err(ScanError::BadFolder { folder: data.to_owned(), reason }.into());
    }
    let read = |folder: &std::path::PathBuf| -> Result<Hospital, TrainerError> {
        let name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let masks = masks_in(&folder.join("labels"))?;
        let mut held_back = unlabelled_cases(&folder.join("eval"))?.cases;
        for case in &mut held_back {
            case.mask = masks.get(&case.id).cloned();
            // Persons are numbered in each hospital anew.
            case.subject = format!("{name}/{}", case.subject);
        }
        check(&held_back, classes, &frame)?;
        let examples = Examples::read(&labelled_cases(&folder.join("train"))?.cases, config, &frame)?;
        Ok(Hospital { name, examples, held_back })
    };
    folders.iter().map(read).collect()
}

/// All rounds; gives the last model.
fn train(
    hospitals: &[Hospital],
    config: &TrainerConfig,
    args: &FederateArgs,
    stop: &Arc<AtomicBool>,
) -> Result<Vec<(String, Tensor)>, TrainerError> {
    let mut model = copied(&Engine::new(config, args.seed, device())?)?;
    for round in 1..=args.rounds {
        let (mut sum, mut losses) = (Vec::new(), Vec::new());
        let all: usize = hospitals.iter().map(|hospital| hospital.examples.len()).sum();
        for (at, hospital) in hospitals.iter().enumerate() {
            let mut engine = Engine::new(config, args.seed, device())?;
            put(&engine, &model)?;
            let job = Job {
                examples: &hospital.examples,
                config,
                data_seed: args.seed.wrapping_mul(1000).wrapping_add(at as u64),
                round,
                rounds: args.rounds,
                checkpoints: None,
            };
            losses.extend(engine.run(&job, stop, &mut |_, _| Ok(()), &mut Alone)?.epoch_losses.last().copied());
            let share = hospital.examples.len() as f64 / all as f64;
            add(&mut sum, copied(&engine)?, share)?;
        }
        model = sum;
        log("round", json!({ "round": round, "of": args.rounds, "losses": losses }));
    }
    Ok(model)
}

fn copied(engine: &Engine) -> Result<Vec<(String, Tensor)>, TchError> {
    let detached = |(name, tensor): (String, Tensor)| Ok((name, tensor.f_detach_copy()?));
    named_parameters(engine.store()).into_iter().map(detached).collect()
}

fn put(engine: &Engine, model: &[(String, Tensor)]) -> Result<(), TchError> {
    for ((_, mut parameter), (_, tensor)) in named_parameters(engine.store()).into_iter().zip(model) {
        no_grad(|| parameter.f_copy_(tensor))?;
    }
    Ok(())
}

/// Adds a share of a model; both in the order of their names.
fn add(sum: &mut Vec<(String, Tensor)>, model: Vec<(String, Tensor)>, share: f64) -> Result<(), TchError> {
    let mut shares = Vec::with_capacity(model.len());
    for (at, (name, tensor)) in model.into_iter().enumerate() {
        let part = tensor.f_mul_scalar(share)?;
        shares.push((
            name,
            match sum.get(at) {
                Some((_, so_far)) => so_far.f_add(&part)?,
                None => part,
            },
        ));
    }
    *sum = shares;
    Ok(())
}

fn judge<'a>(
    hospitals: &[Hospital],
    config: &'a TrainerConfig,
    model: &[(String, Tensor)],
    args: &FederateArgs,
    train_seconds: f64,
) -> Result<Report<'a>, TrainerError> {
    let engine = Engine::new(config, args.seed, device())?;
    put(&engine, model)?;
    // Safety of the default: the config was asked for its shape.
    let tile = config.shape.unwrap_or_default();
    let segmenter = Segmenter::new(engine.into_net(), &config.network, device(), tile, TILES_AT_ONCE)?;
    let (mut figures, mut all): (Vec<Figures>, Vec<CaseScore>) = (Vec::new(), Vec::new());
    for hospital in hospitals {
        let cases = score_all(&segmenter, &hospital.held_back, config.network().classes, &Frame::default())?;
        let (name, train_cases) = (hospital.name.clone(), hospital.examples.len());
        figures.push(Figures { name, train_cases, summary: summarise(&cases) });
        all.extend(cases);
    }
    let note = "simulated hospitals, one process, no masks";
    let (rounds, seed) = (args.rounds, args.seed);
    Ok(Report { note, config, rounds, seed, train_seconds, hospitals: figures, all: summarise(&all) })
}
