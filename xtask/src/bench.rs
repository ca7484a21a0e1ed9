//! `cargo xtask bench [NAME…] [--json]`: figures beside their limits, taken in one run.
//!
//! Each bench is a program of the package that it measures, built as what images ship is built; it prints one JSON object
//! a line: `{bench, case, metric, value, unit, against, ratio, budget, met}`. This module builds, runs and shows them.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::{Value, json};

use crate::{
    cache,
    cargo::{self, Profile},
    error::{Error, Result},
    libtorch, process,
};

/// What to measure.
#[derive(clap::Args)]
pub struct Arguments {
    /// Names: aggregate, inference, round, secagg, train. All of them if none is given.
    names: Vec<String>,
    /// One JSON object a line instead of a table.
    #[arg(long)]
    json: bool,
    /// Also what takes long or much disk.
    #[arg(long)]
    long: bool,
}

/// Least ratio of the training step beside PyTorch eager (DESIGN, "Budgets").
const TRAIN_BUDGET: f64 = 0.97;
/// A scan by itself may take so many times what it takes in a batch of two.
const ALONE_BUDGET: f64 = 1.1;

/// Runs a bench and returns its figures.
type Bench = fn(&Arguments) -> Result<Vec<Value>>;

const BENCHES: &[(&str, Bench)] = &[
    ("aggregate", |arguments| example("bench_aggregate", &[], arguments)),
    ("inference", inference),
    ("round", round),
    ("secagg", |arguments| example("bench", &["all"], arguments)),
    ("train", train),
];

/// Runs the benches asked for and prints their figures.
pub fn run(arguments: &Arguments) -> Result<()> {
    for name in &arguments.names {
        if BENCHES.iter().all(|(bench, _)| bench != name) {
            let problem =
                format!("there is no bench {name:?}; the benches are aggregate, inference, round, secagg, train");
            return Err(Error::Malformed { path: "cargo xtask bench".into(), problem });
        }
    }
    let mut missed = Vec::new();
    for (name, bench) in BENCHES {
        if arguments.names.is_empty() || arguments.names.iter().any(|wanted| wanted == name) {
            let figures = bench(arguments)?;
            figures.iter().for_each(|figure| show(figure, arguments.json));
            if figures.is_empty() {
                missed.push(format!("{name}: no figures"));
            }
            missed.extend(
                figures.iter().filter(|f| f["met"] == false).map(|f| format!("{name}: {} {}", f["case"], f["metric"])),
            );
        }
    }
    if missed.is_empty() { Ok(()) } else { Err(Error::Missed { figures: missed.join("\n  ") }) }
}

fn show(figure: &Value, json: bool) {
    if json {
        println!("{figure}");
        return;
    }
    let text = |key: &str| figure[key].as_str().unwrap_or_default().to_owned();
    let number = |key: &str| figure[key].as_f64().map(|n| format!("{n:.3}")).unwrap_or_default();
    let met = match figure["met"].as_bool() {
        Some(true) => "met",
        Some(false) => "MISSED",
        None => "",
    };
    println!(
        "{:10} {:16} {:28} {:>12} {:8} {:>8} of {:32} budget {:>6} {met}",
        text("bench"),
        text("case"),
        text("metric"),
        number("value"),
        text("unit"),
        number("ratio"),
        text("against"),
        number("budget"),
    );
}

fn build(target: &[&str]) -> Result<PathBuf> {
    let mut command = cargo::command(&libtorch::ensure()?);
    // The same selection as that of the images: what is measured is what is shipped.
    command.arg("build").args(target);
    cargo::find(&cargo::build(&mut command, &Profile::Release.selection())?, target.last().copied().unwrap_or_default())
}

/// A whole round without training: the operator's own program beside an API server, and a process for each hospital.
fn round(arguments: &Arguments) -> Result<Vec<Value>> {
    let mut command = cargo::command(&libtorch::ensure()?);
    command.args(["build", "--release", "--package", "consilium-tests", "--example", "bench_round"]);
    let mut bench = Command::new(cargo::find(&cargo::build(&mut command, &[])?, "bench_round")?);
    bench.env("CONSILIUM_OPERATOR", build(&["--bin", "consilium-operator"])?);
    if arguments.long {
        bench.arg("--long");
    }
    Ok(figures(&process::output(&mut bench)?))
}

/// One released model served by the program itself, asked over HTTP.
fn inference(arguments: &Arguments) -> Result<Vec<Value>> {
    let mut bench = Command::new(build(&["--example", "bench_serving"])?);
    bench.env("CONSILIUM_INFERENCE", build(&["--bin", "consilium-inference"])?);
    bench.envs(libtorch::environment(&libtorch::ensure()?));
    if arguments.long {
        bench.arg("--long");
    }
    Ok(figures(&process::output(&mut bench)?))
}

fn example(name: &str, fixed: &[&str], arguments: &Arguments) -> Result<Vec<Value>> {
    let mut command = Command::new(build(&["--example", name])?);
    command.args(fixed);
    if arguments.long {
        command.arg("--long");
    }
    Ok(figures(&process::output(&mut command)?))
}

fn figures(text: &str) -> Vec<Value> {
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).filter(Value::is_object).collect()
}

/// The training step beside PyTorch eager: same network, weights, batch and threads, taken in turns.
fn train(_: &Arguments) -> Result<Vec<Value>> {
    let trainer = build(&["--bin", "consilium-trainer"])?;
    // PyPI's build holds CUDA as well; its CPU part is the same libtorch that we link.
    let python = cache::python("eager", &["torch==2.13.0", "numpy", "safetensors"])?;
    let folder = cache::sub("bench")?;
    let exported = folder.join("step.safetensors");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../trainer/bench/eager.py");
    let (mut ours, mut theirs, mut alone) = (Vec::new(), Vec::new(), Vec::new());
    // Each has the cores to itself. PyTorch's threads spin between two loops unless told otherwise; ours sleep, since
    // tasks of several studies share a node. The same for both, so that it is the step that is compared.
    let spin = ("OMP_WAIT_POLICY", "ACTIVE");
    for _ in 0..3 {
        let step = |more: &[&str]| -> Result<Vec<Value>> {
            let mut rust = Command::new(&trainer);
            rust.envs([spin]).envs(libtorch::environment(&libtorch::ensure()?));
            rust.args(["bench-step", "--steps", "20", "--threads", "2", "--export"]).arg(&exported).args(more);
            Ok(figures(&process::output(&mut rust)?))
        };
        alone.extend(step(&["--batch", "1"])?);
        // The last export is the one that PyTorch reads.
        ours.extend(step(&["--batch", "2"])?);
        let mut eager = Command::new(&python);
        eager.envs([spin]).arg(&script).arg(&exported).args(["--steps", "20", "--threads", "2"]);
        theirs.extend(figures(&process::output(&mut eager)?));
    }
    let (rust, eager) = (median(&ours, "secondsPerStep"), median(&theirs, "secondsPerStep"));
    let apart = ours.first().zip(theirs.first()).map_or(f64::NAN, |(a, b)| furthest(&a["losses"], &b["losses"]));
    let ratio = eager / rust;
    let (one, of_two) = (median(&alone, "secondsPerStep"), rust / 2.0);
    Ok(vec![
        json!({"bench": "train", "case": "unet3d-w8", "metric": "training step, batch of one", "value": one, "unit": "s",
            "against": "a scan in a batch of two", "ratio": of_two / one, "budget": 1.0 / ALONE_BUDGET,
            "met": one <= ALONE_BUDGET * of_two}),
        json!({"bench": "train", "case": "unet3d-w8", "metric": "training step", "value": rust, "unit": "s",
            "against": "PyTorch eager", "ratio": ratio, "budget": TRAIN_BUDGET, "met": ratio >= TRAIN_BUDGET}),
        json!({"bench": "train", "case": "unet3d-w8", "metric": "largest difference of 20 losses", "value": apart,
            "unit": "", "against": "PyTorch eager", "ratio": apart / 1e-4, "budget": 1.0, "met": apart <= 1e-4}),
    ])
}

fn median(runs: &[Value], key: &str) -> f64 {
    let mut values: Vec<f64> = runs.iter().filter_map(|run| run[key].as_f64()).collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

fn furthest(a: &Value, b: &Value) -> f64 {
    let list = |v: &Value| v.as_array().into_iter().flatten().filter_map(Value::as_f64).collect::<Vec<_>>();
    let (a, b) = (list(a), list(b));
    if a.is_empty() || a.len() != b.len() {
        return f64::INFINITY;
    }
    a.iter().zip(&b).map(|(x, y)| (x - y).abs()).fold(0.0, f64::max)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A loss that is missing must not look like agreement.
    #[test]
    fn losses_of_another_length_are_infinitely_far_apart() {
        assert_eq!(furthest(&json!([1.0, 2.0]), &json!([1.0])), f64::INFINITY);
        assert_eq!(furthest(&json!([1.0, 2.0]), &json!([1.0, 2.5])), 0.5);
    }
}
