//! Runs schedules by number, and prints the shortest form of the first that fails as a test.

use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use consilium_simulation::mutant::Mutant;
use consilium_simulation::schedule::Schedule;
use consilium_simulation::{run, run_with, shrink};

/// Studies on a simulated clock, under trouble that is drawn from a seed.
#[derive(Parser)]
struct Arguments {
    /// How many.
    #[arg(long, default_value_t = 2000)]
    schedules: u64,
    /// Where their numbers begin: seed S runs the numbers S, S + 1, …
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Says for each fault that is put in on purpose which schedule finds it first.
    #[arg(long)]
    mutants: bool,
    /// With --mutants: only this one, by its name.
    #[arg(long)]
    only: Option<String>,
    /// After so many that do not hold no more are run.
    #[arg(long, default_value_t = 1)]
    most: u64,
    /// Only this number, with all that happens told.
    #[arg(long)]
    replay: Option<u64>,
}

/// A fault that no schedule finds is one that the simulator would not find in the product.
fn mutants(from: u64, count: u64, only: Option<&str>) -> ExitCode {
    let mut escaped = 0;
    for mutant in Mutant::ALL.into_iter().filter(|mutant| only.is_none_or(|only| format!("{mutant:?}") == only)) {
        let found = (from..from + count).find_map(|id| {
            let schedule = Schedule::draw(id);
            if !mutant.shows_in(&schedule) {
                return None;
            }
            let violation = run_with(&schedule, Some(mutant)).err()?;
            Some((id, violation.rule))
        });
        match found {
            Some((id, rule)) => println!("(Mutant::{mutant:?}, {id}, {rule:?}),"),
            None => {
                escaped += 1;
                println!("{mutant:?}: not found");
            }
        }
    }
    if escaped == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let (from, count) = arguments.replay.map_or((arguments.seed, arguments.schedules), |id| (id, 1));
    let filter = if arguments.replay.is_some() { "debug,hyper=off,h2=off" } else { "off" };
    let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| filter.into());
    tracing_subscriber::fmt().with_env_filter(filter).without_time().with_writer(std::io::stderr).init();
    if arguments.mutants {
        return mutants(from, count, arguments.only.as_deref());
    }
    let (begun, mut sums, mut failed, mut fell) = (Instant::now(), 0, 0, 0);
    for id in from..from + count {
        let schedule = Schedule::draw(id);
        let violation = match run(&schedule) {
            Ok(told) => {
                (sums, failed) = (sums + told.sums, failed + told.failed);
                continue;
            }
            Err(violation) => violation,
        };
        fell += 1;
        println!("schedule {id}: {violation}\n");
        if arguments.replay.is_none() {
            let least = shrink::shrink(&schedule, violation.rule, run);
            println!("{}", least.to_test(id));
        }
        println!("again: cargo xtask simulate --replay {id}\n");
        if fell >= arguments.most {
            return ExitCode::FAILURE;
        }
    }
    let seconds = begun.elapsed().as_secs_f64();
    println!(
        "{count} schedules from {from}: all held; {sums} sums looked at, {failed} rounds without one; {seconds:.1} s"
    );
    if fell == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
