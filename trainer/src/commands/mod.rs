//! The subcommands, a file each.

mod bench;
mod evaluate;
mod federate;
mod fit;
mod hospitals;
mod init;
mod reference;
mod score;
mod train;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use consilium_federation::task::{TaskFile, TaskKind};
use consilium_imaging::frame::Frame;
use consilium_imaging::msd::CaseTable;
use consilium_imaging::place::Axes;
use serde_json::json;
use tch::Device;

use crate::cli::{Command, TrainArgs};
use crate::contract::Root;
use crate::error::TrainerError;
use crate::ranks::launch;

/// Runs a subcommand. `stop` is set when the process is asked to end.
pub fn run(command: &Command, stop: &Arc<AtomicBool>) -> Result<(), TrainerError> {
    match command {
        Command::Init(args) => reporting(&Root::new(&args.root), |root| init::run(root, &root.task()?.0)),
        Command::Train(args) => trained(args, stop, |root| train::run(root, args, root.task()?, stop)),
        Command::Evaluate(args) => {
            reporting(&Root::new(&args.contract.root), |root| evaluate::run(root, args, &root.task()?.0))
        }
        Command::Run(args) => trained(args, stop, |root| by_kind(root, args, stop)),
        Command::Score(args) => match &args.root {
            Some(root) => {
                let own = Root::new(args.results.as_ref().unwrap_or(root));
                reporting_without_reset(&own, |own| score::run_under_contract(&Root::new(root), own, args, stop))
            }
            None => score::run_alone(args),
        },
        Command::Fit(args) => fit::run(args, stop),
        Command::Federate(args) => federate::run(args, stop),
        Command::Reference(args) => reference::run(args),
        Command::Phantom(args) => hospitals::phantom(args),
        Command::Shard(args) => hospitals::shard(args),
        Command::BenchStep(args) => bench::run(args),
    }
}

fn root_of(args: &TrainArgs) -> Root {
    Root::new(&args.data.contract.root)
}

fn by_kind(root: &Root, args: &TrainArgs, stop: &Arc<AtomicBool>) -> Result<(), TrainerError> {
    let (task, digest) = root.task()?;
    match task.kind {
        TaskKind::Init => init::run(root, &task),
        TaskKind::Train => train::run(root, args, (task, digest), stop),
        TaskKind::Evaluate => evaluate::run(root, &args.data, &task),
    }
}

/// Runs a task that may be a training: by itself, by starting ranks, or as one of them.
fn trained(
    args: &TrainArgs,
    stop: &Arc<AtomicBool>,
    task: impl FnOnce(&Root) -> Result<(), TrainerError>,
) -> Result<(), TrainerError> {
    let root = root_of(args);
    if launch::is_rank() {
        launch::follow(stop);
        let result = task(&root);
        // That another rank is gone is what that rank's own end says better.
        if let Err(e) = &result
            && !matches!(e, TrainerError::Ranks(_))
        {
            root.fail(&e.failure());
        }
        return result;
    }
    let alone = args.ranks == 1 || root.task().is_ok_and(|(task, _)| task.kind != TaskKind::Train);
    if alone {
        return reporting(&root, task);
    }
    let result = root.begin().and_then(|()| launch::run(args.ranks as usize, stop));
    if let Err(e) = &result
        && !root.result("failure.json").exists()
    {
        root.fail(&e.failure());
    }
    result
}

/// Runs a task under the contract: clears `out/` of what marks an end, and leaves `failure.json` when it fails.
fn reporting(root: &Root, task: impl FnOnce(&Root) -> Result<(), TrainerError>) -> Result<(), TrainerError> {
    reporting_without_reset(root, |root| root.begin().and_then(|()| task(root)))
}

fn reporting_without_reset(
    root: &Root,
    task: impl FnOnce(&Root) -> Result<(), TrainerError>,
) -> Result<(), TrainerError> {
    let result = task(root);
    if let Err(e) = &result {
        root.fail(&e.failure());
    }
    result
}

/// The GPU if libtorch sees one; a rank's own where there are several.
fn device() -> Device {
    let own = std::env::var("LOCAL_RANK").ok().and_then(|rank| rank.parse::<usize>().ok()).unwrap_or_default();
    match Device::cuda_if_available() {
        Device::Cuda(_) => Device::Cuda(own % usize::try_from(tch::Cuda::device_count()).unwrap_or(1).max(1)),
        other => other,
    }
}

fn device_name(device: Device) -> &'static str {
    if device.is_cuda() { "cuda" } else { "cpu" }
}

/// Sets torch's threads; without a number, here or in the environment that the agent gives a task, the cores that this
/// process may use. libtorch by itself counts the machine's, and in a pod would start a thread for each of them that waits
/// for the few which the pod has.
fn set_threads(threads: Option<u32>) {
    if threads.is_none() && std::env::var_os("OMP_NUM_THREADS").is_some() {
        return;
    }
    let cores = || std::thread::available_parallelism().map_or(1, usize::from).try_into().unwrap_or(u32::MAX);
    let threads = threads.unwrap_or_else(cores).max(1);
    tch::set_num_threads(i32::try_from(threads).unwrap_or(i32::MAX));
}

fn expect_kind(task: &TaskFile, kind: TaskKind) -> Result<(), TrainerError> {
    if task.kind == kind {
        return Ok(());
    }
    Err(TrainerError::Config(format!(
        "task.json: kind is {}, this subcommand does {}; use `consilium-trainer run`, which does what the task says",
        task.kind.as_str(),
        kind.as_str()
    )))
}

/// Says that a split cannot be by person where a folder does not tell who is who.
fn warn_without_table(data: &Path) -> Result<(), TrainerError> {
    if !CaseTable::of_folder(data)?.knows_persons() {
        eprintln!(
            "warning: {}: no subjects.csv or cases.csv, so every scan counts as a person of its own; two scans of one \
             person can land on both sides of the split and make every figure too good",
            data.display()
        );
    }
    Ok(())
}

/// Where a study's scans are brought to: what its `spec.output` says, and `RAS` where it names no orientation.
fn frame_of(task: &TaskFile) -> Result<Frame, TrainerError> {
    let Some(output) = &task.output else { return Ok(Frame::default()) };
    let axes = output.orientation.as_ref().map(|orientation| orientation.as_str().parse::<Axes>()).transpose();
    let spacing = output.spacing_mm().map(|sides| sides.map(|side| side as f32));
    Ok(Frame::new(axes.map_err(|e| TrainerError::Config(format!("spec.output.{e}")))?, spacing))
}

/// Says what a person should know of a folder that is used all the same.
fn warn(notices: &[String]) {
    for message in notices {
        log("warning", json!({ "message": message }));
    }
}

/// A line of JSON on standard error: what happened, for the pod's log.
pub(crate) fn log(event: &str, fields: serde_json::Value) {
    let mut line = json!({ "event": event });
    if let (Some(line), serde_json::Value::Object(fields)) = (line.as_object_mut(), fields) {
        line.extend(fields);
    }
    eprintln!("{line}");
}
