//! `cargo xtask simulate`: studies on a simulated clock, under trouble drawn from a seed.

use std::process::Command;

use crate::{
    cargo::{self, Profile},
    error::{Error, Result},
    libtorch, process,
};

/// How many, and which.
#[derive(clap::Args)]
pub struct Arguments {
    /// How many schedules.
    #[arg(long, default_value_t = 2000)]
    schedules: u64,
    /// The number of the first; the others follow it.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Only the schedule of this number, with all that happens told.
    #[arg(long)]
    replay: Option<u64>,
}

/// Schedules that CI runs.
const IN_CI: u64 = 100;

/// Builds the simulator and runs it.
pub fn run(arguments: &Arguments) -> Result<()> {
    let torch = libtorch::ensure()?;
    let mut build = cargo::command(&torch);
    build.arg("build").args(Profile::Dev.selection()).args(["--bin", "consilium-simulation"]);
    let built = cargo::build(&mut build, &[])?;
    let mut simulate = Command::new(cargo::find(&built, "consilium-simulation")?);
    simulate.args(["--schedules", &arguments.schedules.to_string(), "--seed", &arguments.seed.to_string()]);
    simulate.args(arguments.replay.iter().flat_map(|id| ["--replay".to_owned(), id.to_string()]));
    let status = simulate.status().map_err(|source| Error::Spawn { command: process::shown(&simulate), source })?;
    if status.success() {
        return Ok(());
    }
    Err(Error::Command { command: process::shown(&simulate), status, stderr: String::new() })
}

/// Those that CI runs.
pub(crate) fn test() -> Result<()> {
    run(&Arguments { schedules: IN_CI, seed: 1, replay: None })
}
