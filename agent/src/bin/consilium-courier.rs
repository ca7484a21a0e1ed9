//! Carries files between a task pod and the task port.

use std::process::ExitCode;

use clap::Parser as _;
use consilium_agent::courier::{Cli, run};
use tokio::signal::unix::{SignalKind, signal};

fn main() -> ExitCode {
    let cli = Cli::parse();
    if rustls::crypto::ring::default_provider().install_default().is_err() {
        eprintln!("error: another TLS provider is installed");
        return ExitCode::FAILURE;
    }
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(e) => {
            eprintln!("error: no runtime: {e}");
            return ExitCode::FAILURE;
        }
    };
    let code = runtime.block_on(until_done_or_ended(&cli));
    // A reader may still be in a system call; it is not waited for.
    runtime.shutdown_background();
    code
}

/// As the first process of its container it must handle SIGTERM itself, or the pod's end takes its whole grace period.
async fn until_done_or_ended(cli: &Cli) -> ExitCode {
    let mut term = match signal(SignalKind::terminate()) {
        Ok(term) => term,
        Err(e) => {
            eprintln!("error: SIGTERM cannot be handled: {e}");
            return ExitCode::FAILURE;
        }
    };
    tokio::select! {
        result = run(cli) => match result {
            Ok(()) => ExitCode::SUCCESS,
            Err(e) => {
                eprintln!("error: {e}");
                ExitCode::from(e.exit_code())
            }
        },
        _ = term.recv() => ExitCode::from(143),
    }
}
