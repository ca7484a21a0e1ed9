//! The binary `consilium-trainer`; see the library for what belongs here.

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use clap::Parser;
use consilium_trainer::cli::{Cli, Command};
use consilium_trainer::commands;

fn main() -> ExitCode {
    let cli = Cli::parse();
    // A researcher's machine, and one on which steps are timed, are not shared; a node of a hospital is.
    if !matches!(cli.command, Command::Fit(_) | Command::Federate(_) | Command::BenchStep(_)) {
        consilium_imaging::torch::wait_without_spinning();
    }
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGTERM, signal_hook::consts::SIGINT] {
        if let Err(e) = signal_hook::flag::register(signal, Arc::clone(&stop)) {
            eprintln!("error: signal {signal} cannot be handled: {e}");
            return ExitCode::FAILURE;
        }
    }
    match commands::run(&cli.command, &stop) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("error: {e}");
            // Safety: all exit codes are below 256.
            ExitCode::from(u8::try_from(e.exit_code()).unwrap_or(1))
        }
    }
}
