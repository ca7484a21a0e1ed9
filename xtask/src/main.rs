//! `cargo xtask`: one module per subcommand.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use xtask::{cluster, error::Result, images};

/// The project's own tasks.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Real Kubernetes clusters on this machine: a hub and hospitals, each in a network namespace of its own.
    #[command(subcommand)]
    Cluster(cluster::cli::Command),
    /// Container images, made without a container engine.
    #[command(subcommand)]
    Images(images::cli::Command),
}

fn run() -> Result<()> {
    match Arguments::parse().task {
        Task::Cluster(command) => cluster::cli::run(command),
        Task::Images(command) => images::cli::run(command),
    }
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
