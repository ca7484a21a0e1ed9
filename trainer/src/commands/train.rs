//! `train`: one round in one hospital.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use consilium_federation::digest::Digest;
use consilium_federation::task::{Progress, TaskFile, TaskKind, TaskMetrics};
use consilium_imaging::frame::survey;
use consilium_imaging::msd::labelled_cases;
use consilium_imaging::torch::{load_weights, named_parameters, save_weights};
use serde_json::json;
use tch::{Device, TchError, Tensor};

use super::{device, device_name, expect_kind, frame_of, log, set_threads, warn};
use crate::cli::TrainArgs;
use crate::config::TrainerConfig;
use crate::contract::{Root, write_json};
use crate::data::Examples;
use crate::engine::{Checkpoints, Engine, Job, Outcome};
use crate::error::TrainerError;
use crate::ranks;

/// How often `progress.json` is replaced.
const TELL_EVERY: Duration = Duration::from_secs(1);

pub(super) fn run(
    root: &Root,
    args: &TrainArgs,
    (task, digest): (TaskFile, Digest),
    stop: &Arc<AtomicBool>,
) -> Result<(), TrainerError> {
    expect_kind(&task, TaskKind::Train)?;
    let config = TrainerConfig::of_task(&task)?;
    set_threads(args.data.threads);
    let began = Instant::now();
    let mut ranks = ranks::of_environment()?;
    let first = ranks.rank() == 0;
    let (folder, frame) = (labelled_cases(&args.data.data)?, frame_of(&task)?);
    warn(&folder.notices);
    warn(&survey(folder.cases.iter().map(|case| &case.image), &frame).notices);
    folder.check_classes(config.network().classes)?;
    let examples = Examples::read(&folder.cases, &config, &frame)?;
    let device = device();
    let mut engine = Engine::new(&config, task.seed, device)?;
    load_weights(engine.store(), &root.model())?;
    log(
        "training",
        json!({ "study": task.study, "round": task.round, "examples": examples.len(), "shape": examples.shape(),
            "orientation": frame.axes().to_string(), "device": device_name(device), "threads": tch::get_num_threads() }),
    );
    let job = Job {
        examples: &examples,
        config: &config,
        data_seed: task.data_seed,
        round: task.round,
        rounds: task.rounds,
        checkpoints: Some(Checkpoints { folder: root.checkpoint(), every: args.checkpoint_every, task: digest }),
    };
    let mut told = Instant::now();
    let mut tell = |progress: &Progress, _loss: f64| {
        // The file is made durable each time; once a second is as often as anyone looks.
        if !first || progress.step < progress.of && progress.step > 1 && told.elapsed() < TELL_EVERY {
            return Ok(());
        }
        told = Instant::now();
        root.progress(progress)
    };
    let outcome = engine.run(&job, stop, &mut tell, ranks.as_mut())?;
    if !first {
        return Ok(());
    }
    let seconds = began.elapsed().as_secs_f64();
    write_results(root, &engine, &examples, &outcome, seconds)?;
    log(
        "trained",
        json!({ "round": task.round, "steps": outcome.steps, "epochLosses": outcome.epoch_losses,
        "seconds": seconds }),
    );
    root.finish(vec!["update.safetensors".into(), "metrics.json".into()])
}

fn write_results(
    root: &Root,
    engine: &Engine,
    examples: &Examples,
    outcome: &Outcome,
    seconds: f64,
) -> Result<(), TrainerError> {
    let base = Tensor::read_safetensors(root.model())?;
    save_weights(&difference(&named_parameters(engine.store()), &base)?, &root.result("update.safetensors"))?;
    let metrics = json!({ "steps": outcome.steps, "resumedAt": outcome.resumed_at, "seconds": seconds,
        "epochLosses": outcome.epoch_losses, "shape": examples.shape() });
    write_json(&root.result("metrics.json"), &TaskMetrics { examples: examples.len() as u64, metrics })
}

/// New minus base, tensor by tensor.
fn difference(new: &[(String, Tensor)], base: &[(String, Tensor)]) -> Result<Vec<(String, Tensor)>, TchError> {
    new.iter()
        .map(|(name, tensor)| {
            let (_, before) = base
                .iter()
                .find(|(known, _)| known == name)
                .ok_or_else(|| TchError::TensorNameNotFound(name.clone(), "model.safetensors".into()))?;
            let after = tensor.f_detach()?.f_to_device(Device::Cpu)?;
            Ok((name.clone(), after.f_sub(before)?))
        })
        .collect()
}
