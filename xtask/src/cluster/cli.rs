//! `cargo xtask cluster …`.

use std::{ffi::OsString, os::unix::process::CommandExt};

use super::{HUB_NAME, Role, Spec, down, net, open, recorded, start, up};
use crate::{
    error::{Error, Result},
    tools,
};

/// What to do with clusters.
#[derive(clap::Subcommand)]
pub enum Command {
    /// Start the hub and the hospitals; what runs already is left alone.
    Up {
        /// Names of the hospitals.
        #[arg(long, value_delimiter = ',', default_values_t = Spec::default().hospitals)]
        hospitals: Vec<String>,
    },
    /// End everything and delete its state.
    Down,
    /// Show which clusters there are and whether they are well.
    List,
    /// Run a program inside a cluster's network, with kubectl and helm on the PATH and KUBECONFIG set.
    Exec {
        /// Name of the cluster.
        name: String,
        /// The program and its arguments, after `--`.
        #[arg(last = true, required = true)]
        argv: Vec<OsString>,
    },
}

/// Does what the command line says.
pub fn run(command: Command) -> Result<()> {
    match command {
        Command::Up { hospitals } => {
            let begin = std::time::Instant::now();
            for cluster in up(&Spec { hospitals })? {
                println!("{:<10} {:<14} {}", cluster.name, cluster.ip, cluster.kubeconfig.display());
            }
            println!("ready after {:.1} s", begin.elapsed().as_secs_f64());
            Ok(())
        }
        Command::Down => down(),
        Command::List => list(),
        Command::Exec { name, argv } => {
            let cluster = open(&name)?;
            let (program, arguments) =
                argv.split_first().map_or((OsString::from("true"), [].as_slice()), |(p, a)| (p.clone(), a));
            // Become the program, so that signals, the terminal and the exit status are its own.
            let source = cluster.command(&program).args(arguments).exec();
            Err(Error::Spawn { command: program.to_string_lossy().into_owned(), source })
        }
    }
}

fn list() -> Result<()> {
    let sites = recorded()?;
    if sites.is_empty() {
        println!("no clusters; `cargo xtask cluster up` starts some");
        return Ok(());
    }
    let tools = tools::present()?;
    for site in sites {
        let role = if site.role == Role::Hub { HUB_NAME } else { "hospital" };
        let stopped = start::stopped(&site, &tools)?;
        let state = if !net::is_joined(&site.name) {
            "down (no network namespace)".to_owned()
        } else if !stopped.is_empty() {
            format!("not running: {}", stopped.join(", "))
        } else if start::health(&site, &tools).is_err() {
            "the API server is not ready".to_owned()
        } else {
            "ready".to_owned()
        };
        println!("{:<10} {:<9} {:<14} {state}", site.name, role, site.ip.to_string());
    }
    Ok(())
}
