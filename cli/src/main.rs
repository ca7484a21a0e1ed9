//! `kubectl consilium`: what people do around the API that `kubectl` alone does not do for them.
//!
//! **Belongs here:** offline signing, rosters, digests, ready-made policy entries, and the views `status`, `explain`, `budget` and `audit`.
//! **Does not belong here:** decisions. Nothing here changes a cluster but `stop`, `start`, `cancel` and `hazard`, which somebody
//! types when there is no time for Git: what else is to be changed is printed, for `kubectl` or for Git.
#![forbid(unsafe_code)]

use std::{path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand};
use consilium_cli::{error, local, objects, text};
use consilium_federation::ladder::Stage;
use jiff::Timestamp;

mod audit;
mod budget;
mod cluster;
mod explain;
mod hazard;
mod keys;
mod models;
mod opt_in;
mod roster;
mod rounds;
mod sign;
mod staged;
mod status;
mod stop;
mod table;

use error::Result;

/// Federated studies and their models, beside kubectl.
#[derive(Parser)]
#[command(name = "kubectl-consilium", bin_name = "kubectl consilium", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Make a signing key: FILE (keep it offline) and FILE.pub (goes into SitePolicy spec.releases.keys, or for a member
    /// of the governance into spec.governance.keys).
    Keygen {
        /// Where the private key goes; must not exist.
        #[arg(long)]
        out: PathBuf,
    },
    /// Sign an approval, offline; prints the entry for spec.approvals of a ModelPromotion, or with --plan the one for
    /// spec.stageApprovals.
    Sign(sign::Arguments),
    /// Make, sign and read the roster: which hospitals belong to the federation, by which keys.
    #[command(subcommand)]
    Roster(roster::Command),
    /// Print the digest of a study's spec: what a hospital opts in to.
    Digest {
        /// File with a FederatedStudy, YAML or JSON.
        #[arg(short = 'f', long = "file")]
        file: PathBuf,
    },
    /// Print the entry by which a hospital opts in to a study, for spec.studies of its SitePolicy.
    OptIn(opt_in::Arguments),
    Local(local::Arguments),
    /// Studies, rounds and hospitals at the hub; policy and tasks in a hospital.
    Status {
        /// Only this namespace.
        #[arg(short, long)]
        namespace: Option<String>,
    },
    /// In a hospital: what its policy allows of everything that can be counted, and what of it is used.
    Budget,
    /// In a hospital: what was decided and what left, as its agent has written it down, and proof that nobody changed it.
    #[command(subcommand)]
    Audit(audit::Command),
    /// In a hospital: stop every training, evaluation and model at once, with or without an agent.
    Stop(stop::Stop),
    /// In a hospital: let run again what `stop --everything` stopped.
    Start(stop::Place),
    /// In a hospital: open, close and list hazards of its models.
    #[command(subcommand)]
    Hazard(hazard::Command),
    /// Models of releases as files, and files as models to start from.
    #[command(subcommand)]
    Model(models::Command),
    /// End a round at the hub, with a reason.
    Cancel(rounds::Cancel),
    /// Print a study that starts from the model of an earlier round, to apply under a new name.
    Rollback(rounds::Rollback),
    /// Say, hospital by hospital, why it is or is not in a round, and who would have to do what.
    Explain {
        /// Name of the FederatedStudy.
        study: String,
        /// Its namespace.
        #[arg(short, long, default_value = "default")]
        namespace: String,
        /// The round; the newest one when left out.
        #[arg(long)]
        round: Option<u32>,
    },
}

fn main() -> ExitCode {
    if let Some(code) = local::inner() {
        return code;
    }
    match Arguments::parse().command {
        Command::Local(arguments) => local::run(&arguments),
        command => say(command),
    }
}

#[tokio::main(flavor = "current_thread")]
async fn say(command: Command) -> ExitCode {
    match run(command).await {
        Ok(text) => {
            print!("{text}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {}", text::visible(&error.to_string()));
            ExitCode::FAILURE
        }
    }
}

/// Runs a command; what it has to say goes to standard output, whole or not at all.
async fn run(command: Command) -> Result<String> {
    match command {
        Command::Keygen { out } => keys::make(&out),
        Command::Roster(command) => roster::run(&command),
        Command::Sign(arguments) => sign::run(&arguments, Timestamp::now()),
        Command::Digest { file } => Ok(format!("{}\n", objects::study(&file)?.spec.digest())),
        Command::OptIn(arguments) => opt_in::run(&arguments).await,
        // It has a runtime of its own.
        Command::Local(_) => Ok(String::new()),
        Command::Status { namespace } => status::run(namespace.as_deref(), Timestamp::now()).await,
        Command::Budget => budget::run().await,
        Command::Audit(command) => audit::run(&command).await,
        Command::Stop(arguments) => stop::stop(&arguments).await,
        Command::Start(place) => stop::start(&place).await,
        Command::Hazard(command) => hazard::run(&command, Timestamp::now()).await,
        Command::Model(command) => models::run(&command).await,
        Command::Cancel(arguments) => rounds::cancel(&arguments).await,
        Command::Rollback(arguments) => rounds::rollback(&arguments).await,
        Command::Explain { study, namespace, round } => explain::run(&namespace, &study, round).await,
    }
}

/// A stage as an argument.
fn stage(text: &str) -> std::result::Result<Stage, String> {
    text.parse()
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    /// A clash between two flags is otherwise found by the first person who uses them.
    #[test]
    fn the_command_line_is_consistent() {
        super::Arguments::command().debug_assert();
    }
}
