//! `cargo xtask local STUDY …`: `consilium local` of this working tree, with the trainer beside it.

use std::ffi::OsString;
use std::fs;
use std::process::Command;

use serde_json::Value;

use crate::{
    cache,
    cargo::{self, Profile},
    error::{Error, IoContext as _, Result},
    generate, libtorch, process,
};

/// What `consilium local` is given.
#[derive(clap::Args)]
pub struct Arguments {
    /// Everything as for `consilium local`; `cargo xtask local -- --help` lists it.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
    words: Vec<OsString>,
}

/// No more than it needs: not the clusters' programs, not this one again.
const NEEDED: [&str; 8] = [
    "--package",
    "consilium-cli",
    "--bin",
    "consilium",
    "--package",
    "consilium-trainer",
    "--bin",
    "consilium-trainer",
];

/// Builds and runs it.
pub fn run(arguments: &Arguments) -> Result<()> {
    let mut local = command(&NEEDED)?;
    local.args(&arguments.words);
    let status = local.status().map_err(|source| Error::Spawn { command: process::shown(&local), source })?;
    if status.success() {
        return Ok(());
    }
    Err(Error::Command { command: process::shown(&local), status, stderr: String::new() })
}

fn command(selection: &[&str]) -> Result<Command> {
    let torch = libtorch::ensure()?;
    let built = cargo::build(cargo::command(&torch).arg("build"), selection)?;
    let mut local = Command::new(cargo::find(&built, "consilium")?);
    local.arg("local").envs(libtorch::environment(&torch));
    local.env("CONSILIUM_TRAINER", cargo::find(&built, "consilium-trainer")?);
    Ok(local)
}

/// A tiny study with the real trainer: what the tests of `consilium-cli` leave out are networks, scans, votes and the gate.
pub(crate) fn test() -> Result<()> {
    let out = cache::sub("local")?.join("tiny");
    if out.exists() {
        fs::remove_dir_all(&out).at("remove", &out)?;
    }
    // As everything else is built for tests, so that nothing is built twice.
    let mut local = command(&Profile::Dev.selection())?;
    local.arg(generate::root().join("cli/testdata/tiny.yaml")).args(["--json", "--cases", "5", "--out"]).arg(&out);
    let told = process::output(&mut local)?;
    let events: Vec<Value> = told.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let released = events.iter().filter(|event| event["event"] == "round" && event["released"] == true).count();
    let last = events.last().cloned().unwrap_or_default();
    if released == 2 && last["succeeded"] == true && out.join("report.html").is_file() {
        println!("two rounds, two releases, {}", last["model"]);
        return Ok(());
    }
    Err(Error::Malformed {
        path: out.join("events.jsonl"),
        problem: format!("{released} of 2 rounds released; the end: {last}"),
    })
}
