//! `consilium`: what needs no cluster.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use consilium_cli::local;

/// Federated studies of medical images.
#[derive(Parser)]
#[command(name = "consilium", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Local(local::Arguments),
}

fn main() -> ExitCode {
    if let Some(code) = local::inner() {
        return code;
    }
    match Arguments::parse().command {
        Command::Local(arguments) => local::run(&arguments),
    }
}
