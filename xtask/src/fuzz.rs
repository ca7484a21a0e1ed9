//! `cargo xtask fuzz`: the parsers of what comes from outside under libFuzzer, from the seeds in `fuzz/corpus`.
//!
//! The compiler that the project pins marks every edge and comparison; no other toolchain is needed. What is found new
//! goes to the cache folder and not into the tree; an input that makes a parser fall over is named at the end, to be made
//! small and kept as a seed.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use crate::{
    cache, cargo,
    error::{Error, Result},
    generate, libtorch, process,
};

/// Which parsers, and for how long.
#[derive(clap::Args)]
pub struct Arguments {
    /// The parser; without one, all of them, one after the other.
    target: Option<String>,
    /// How long each is run.
    #[arg(long, default_value_t = 60)]
    seconds: u32,
}

/// Edges and comparisons, as libFuzzer reads them. Only for what runs under it: the compilation's own programs are spared.
const COVERAGE: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
                        -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
                        -Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares";
/// An input that takes longer is a fault.
const SECONDS_EACH: u32 = 10;
/// So is one that takes more memory, in MiB.
const MEMORY: u32 = 1024;
/// Longest input.
const BYTES: u32 = 16 << 10;

/// Builds the program, and runs the parsers.
pub fn run(arguments: &Arguments) -> Result<()> {
    let corpus = generate::root().join("fuzz/corpus");
    let known = targets(&corpus)?;
    let chosen: Vec<&String> = match &arguments.target {
        None => known.iter().collect(),
        Some(name) if known.contains(name) => vec![name],
        Some(name) => {
            let problem = format!("there is no target {name:?}; the targets are {}", known.join(", "));
            return Err(Error::Malformed { path: "TARGET".into(), problem });
        }
    };
    let program = build()?;
    for name in chosen {
        let grown = cache::sub(&format!("fuzz/corpus/{name}"))?;
        let found = cache::sub(&format!("fuzz/found/{name}"))?;
        println!("\n=== {name}: {} s", arguments.seconds);
        let mut command = Command::new(&program);
        command.arg(&grown).arg(corpus.join(name)).env("CONSILIUM_FUZZ_TARGET", name).args([
            format!("-max_total_time={}", arguments.seconds),
            format!("-timeout={SECONDS_EACH}"),
            format!("-rss_limit_mb={MEMORY}"),
            format!("-max_len={BYTES}"),
            format!("-artifact_prefix={}/", found.display()),
            "-print_final_stats=1".to_owned(),
            "-verbosity=0".to_owned(),
        ]);
        command.envs(libtorch::environment(&libtorch::ensure()?));
        let status = command.status().map_err(|source| Error::Spawn { command: process::shown(&command), source })?;
        if !status.success() {
            return Err(Error::Command { command: process::shown(&command), status, stderr: String::new() });
        }
    }
    Ok(())
}

/// The targets are the folders of seeds; that each has some, a test checks.
fn targets(corpus: &Path) -> Result<Vec<String>> {
    use crate::error::IoContext as _;
    let mut names = Vec::new();
    for entry in std::fs::read_dir(corpus).at("read", corpus)? {
        names.push(entry.at("read", corpus)?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

/// In a folder of its own: with these flags every dependency is another.
fn build() -> Result<PathBuf> {
    let target = "x86_64-unknown-linux-gnu";
    let mut command = cargo::command(&libtorch::ensure()?);
    command.env("RUSTFLAGS", COVERAGE).env("CARGO_TARGET_DIR", cache::sub("fuzz/target")?);
    command.args([
        "build",
        "-p",
        "consilium-fuzz",
        "--features",
        "libfuzzer",
        "--bin",
        "consilium-fuzz",
        "--target",
        target,
    ]);
    let built = cargo::build(&mut command, &[])?;
    cargo::find(&built, "consilium-fuzz")
}
