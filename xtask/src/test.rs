//! `cargo xtask test`: everything that CI runs, with a table of what each stage took.

use std::{
    ffi::OsString,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use crate::{
    apiserver::ApiServer,
    cache, cargo, charts, cluster,
    error::{Error, IoContext as _, Result},
    interrupt, libtorch, local, packages, process, prometheus, simulate, verify,
};

/// What the tests can be told.
#[derive(clap::Args)]
pub struct Arguments {
    /// Also what takes hours or much to fetch: more cases in every property test, 2,000 drawn objects of each kind beside an
    /// API server, KServe's own client.
    #[arg(long)]
    long: bool,
    /// Only these stages, by name.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Leave the clusters of the end-to-end stage running, to look at them.
    #[arg(long)]
    keep: bool,
}

type Run = fn(&Arguments) -> Result<()>;

/// The stages in order: what is quick and tells most comes first.
const STAGES: &[(&str, &str, Run)] = &[
    ("verify", "formatting, generated files, dependency arrows, licences", |_| verify::run()),
    ("lint", "clippy over everything; what the lint table denies fails", lint),
    ("unit", "unit, property and in-process API tests of every package", unit),
    ("local", "a study on this machine, with the real trainer, votes and gate", |_| local::test()),
    ("simulate", "studies on a simulated clock, under trouble drawn from a seed", |_| simulate::test()),
    ("vectors", "the public transcripts of secure aggregation, checked by a second implementation", vectors),
    ("clients", "the served model, asked by Triton's client and in the form of KServe's; a model taken home", clients),
    ("charts", "lint, render and judge the charts", |_| charts::test()),
    (
        "apiserver",
        "every rule of the API, and the controllers of hub and hospital, against a real API server",
        apiserver,
    ),
    ("clusters", "the wall around a cluster, its GPUs and volumes, and the way down after any kill", clusters),
    ("e2e", "a hub and four hospital clusters on phantoms", e2e),
];

/// Runs the stages; stops at the first that fails, and prints the table either way.
pub fn run(arguments: &Arguments) -> Result<()> {
    if let Some(unknown) = arguments.only.iter().find(|name| STAGES.iter().all(|(stage, ..)| stage != name)) {
        let known: Vec<&str> = STAGES.iter().map(|(name, ..)| *name).collect();
        let problem = format!("there is no stage {unknown:?}; the stages are {}", known.join(", "));
        return Err(Error::Malformed { path: "--only".into(), problem });
    }
    let mut table = Vec::new();
    let mut outcome = Ok(());
    for (name, about, stage) in STAGES {
        if !arguments.only.is_empty() && !arguments.only.iter().any(|only| only == name) {
            continue;
        }
        println!("\n=== {name}: {about}");
        let start = Instant::now();
        outcome = stage(arguments);
        table.push((*name, start.elapsed(), outcome.is_ok()));
        if outcome.is_err() {
            break;
        }
    }
    print_table(&table);
    outcome
}

fn print_table(table: &[(&str, Duration, bool)]) {
    println!("\n{:<12} {:>9}  result", "stage", "seconds");
    for (name, took, passed) in table {
        println!("{name:<12} {:>9.1}  {}", took.as_secs_f64(), if *passed { "passed" } else { "FAILED" });
    }
    let all: Duration = table.iter().map(|(_, took, _)| *took).sum();
    println!("{:<12} {:>9.1}", "all", all.as_secs_f64());
}

fn lint(_: &Arguments) -> Result<()> {
    packages::ensure_pip()?;
    cargo::run(&["clippy", "--workspace", "--all-targets", "--locked", "--quiet"], &[])
}

fn unit(arguments: &Arguments) -> Result<()> {
    let long: Vec<(&str, OsString)> = if arguments.long { vec![("CONSILIUM_LONG", "1".into())] } else { Vec::new() };
    cargo::run(&[&["test", "--locked"], &cargo::EVERYTHING[..]].concat(), &long)
}

fn apiserver(arguments: &Arguments) -> Result<()> {
    let figures = cache::sub("state")?.join(format!("figures-{}", std::process::id()));
    std::fs::create_dir_all(&figures).at("make folder", &figures)?;
    let result = suites(arguments, &figures).and_then(|()| prometheus::panels(&figures));
    std::fs::remove_dir_all(&figures).ok();
    result
}

/// The suites; what operator and agent then serve as `/metrics` lies in `figures`.
fn suites(arguments: &Arguments, figures: &Path) -> Result<()> {
    ["api", "hub", "hospital"].iter().try_for_each(|suite| {
        // Each its own server: the cases of the first leave objects that the others would act on. Which of the programs
        // runs is said by a variable, for another selection of packages would be another build.
        let server = ApiServer::start()?;
        let mut variables = vec![
            ("CONSILIUM_APISERVER_KUBECONFIG", server.kubeconfig().into_os_string()),
            ("CONSILIUM_APISERVER_SUITE", suite.into()),
            ("CONSILIUM_FIGURES", figures.into()),
        ];
        if arguments.long {
            variables.push(("CONSILIUM_LONG", "1".into()));
        }
        cargo::run(&["test", "--locked", "--workspace", "--test", "apiserver"], &variables)
    })
}

fn vectors(_: &Arguments) -> Result<()> {
    let python = cache::python("vectors", &["cryptography"])?;
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../secagg/vectors/check.py");
    print!("{}", process::output(Command::new(python).arg(script))?);
    Ok(())
}

/// Clients of others against the server's own program, and a model that was taken home in the libraries that researchers
/// have: what they make of ours, no test of ours can tell.
fn clients(arguments: &Arguments) -> Result<()> {
    let (triton, safetensors) = ("tritonclient[http]==2.73.0", "safetensors==0.8.0");
    // KServe's package is 340 MB for a client of a few lines, and torch's with CUDA is gigabytes.
    let python = match arguments.long {
        true => cache::python("clients-long", &[triton, safetensors, "kserve==0.21.0", "torch==2.13.0"])?,
        false => cache::python("clients", &[triton, safetensors])?,
    };
    let mut command = cargo::command(&libtorch::ensure()?);
    command.arg("build").args(cargo::EVERYTHING);
    command.args(["--bin", "consilium-inference", "--example", "phantom_release", "--example", "take_home"]);
    let built = cargo::build(&mut command, &[])?;
    let program = |name: &str| cargo::find(&built, name);
    let (server, maker, home) = (program("consilium-inference")?, program("phantom_release")?, program("take_home")?);
    for (script, programs) in [
        ("inference/clients/check.py", &[&server, &maker][..]),
        ("sdk/python/tests/home.py", &[&server, &maker, &home]),
    ] {
        let mut check = Command::new(&python);
        check.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(script)).args(programs);
        check.envs(libtorch::environment(&libtorch::ensure()?));
        print!("{}", process::output(&mut check)?);
    }
    Ok(())
}

/// The tests that the unit stage leaves out: they start clusters as root, or wait for real time.
fn clusters(_: &Arguments) -> Result<()> {
    interrupt::takes_clusters_down();
    // What an interrupted run left would be taken for ours, with its Services and its volumes.
    cluster::down()?;
    let ignored = ["--lib", "--bins", "--tests", "--", "--ignored", "--test-threads=1"];
    cargo::run(&[&["test", "--locked"], &cargo::EVERYTHING[..], &ignored].concat(), &[]).and(cluster::down())
}

fn e2e(arguments: &Arguments) -> Result<()> {
    if !arguments.keep {
        interrupt::takes_clusters_down();
    }
    let result = cargo::run(&["test", "--locked", "--workspace", "--test", "e2e"], &[]);
    if arguments.keep { result } else { result.and(cluster::down()) }
}
