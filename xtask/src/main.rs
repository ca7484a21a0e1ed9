//! `cargo xtask`: one module per subcommand.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use xtask::{
    apiserver, bench, charts, cluster, demo, error::Result, fuzz, generate, images, local, simulate, test, verify,
};

/// The project's own tasks.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// A hub and four hospitals on this machine train a model, release it, promote it and ask it.
    Demo(demo::Arguments),
    /// A study on this machine, without a cluster: builds `consilium local` and the trainer, and runs them.
    Local(local::Arguments),
    /// Studies on a simulated clock, under trouble that is drawn from a seed.
    Simulate(simulate::Arguments),
    /// Everything that CI runs.
    Test(test::Arguments),
    /// Figures beside their limits.
    Bench(bench::Arguments),
    /// Real Kubernetes clusters on this machine: a hub and hospitals, each in a network namespace of its own.
    #[command(subcommand)]
    Cluster(cluster::cli::Command),
    /// Container images, made without a container engine.
    #[command(subcommand)]
    Images(images::cli::Command),
    /// Writes the files that are made from the code: CRDs and their chart.
    Generate,
    /// Checks generated files, dependency arrows, purity, file lengths, formatting, licences and advisories.
    Verify,
    /// Lints and renders the charts and checks what comes out.
    Charts,
    /// The parsers of what comes from outside under libFuzzer.
    Fuzz(fuzz::Arguments),
    /// Runs a command beside a bare API server, with CONSILIUM_APISERVER_KUBECONFIG set for it.
    Apiserver(apiserver::Arguments),
}

fn run() -> Result<()> {
    match Arguments::parse().task {
        Task::Demo(arguments) => demo::run(&arguments),
        Task::Local(arguments) => local::run(&arguments),
        Task::Simulate(arguments) => simulate::run(&arguments),
        Task::Test(arguments) => test::run(&arguments),
        Task::Bench(arguments) => bench::run(&arguments),
        Task::Cluster(command) => cluster::cli::run(command),
        Task::Images(command) => images::cli::run(command),
        Task::Generate => generate::run(),
        Task::Verify => verify::run(),
        Task::Charts => charts::test(),
        Task::Fuzz(arguments) => fuzz::run(&arguments),
        Task::Apiserver(arguments) => apiserver::run(&arguments),
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
