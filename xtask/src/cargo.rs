//! The one way in which cargo is called from here.
//!
//! Every call sees the same environment and, but for benches, the same selection of packages: cargo resolves features for
//! what is selected, and a dependency with other features, or a build script that sees another variable, is built anew.
//! One environment and one selection mean that a bare machine builds each dependency once.

use std::{
    collections::BTreeMap,
    env,
    ffi::OsString,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::Value;

use crate::{
    error::{Error, Result},
    libtorch, process,
};

/// The packages that are built together: all but the tests that need clusters. Nobody depends on those, and they use
/// nothing that the others do not, so that building them as well changes no feature.
pub(crate) const EVERYTHING: [&str; 3] = ["--workspace", "--exclude", "consilium-tests"];

/// What images are made from: as [`EVERYTHING`], without this program and the simulator.
const SHIPPED: [&str; 7] =
    ["--workspace", "--exclude", "consilium-tests", "--exclude", "consilium-simulation", "--exclude", "xtask"];

/// How programs are compiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Profile {
    /// As hospitals run them and as benches measure them.
    Release,
    /// As tests build them anyway: quick to have, slow to run.
    Dev,
}

impl Profile {
    /// What `cargo build` is told, so that every caller makes the same build.
    pub(crate) fn selection(self) -> Vec<&'static str> {
        match self {
            Self::Release => [&["--release"], &SHIPPED[..]].concat(),
            Self::Dev => EVERYTHING.to_vec(),
        }
    }
}

/// Cargo in this workspace, with libtorch in its environment and without what the cargo that runs this has set.
pub(crate) fn command(libtorch: &Path) -> Command {
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(".."));
    // What a cargo that called us has set is about us, not about what is built.
    let ours = |name: &str| {
        let named = ["CARGO_CRATE_NAME", "CARGO_BIN_NAME", "CARGO_PRIMARY_PACKAGE"].contains(&name);
        named || ["CARGO_MANIFEST_", "CARGO_PKG_"].iter().any(|prefix| name.starts_with(prefix))
    };
    for (name, _) in env::vars_os().filter(|(name, _)| name.to_str().is_some_and(ours)) {
        cargo.env_remove(name);
    }
    cargo.envs(libtorch::environment(libtorch));
    cargo
}

/// Runs cargo with our output as its own.
pub(crate) fn run(arguments: &[&str], variables: &[(&str, OsString)]) -> Result<()> {
    let mut cargo = command(&libtorch::ensure()?);
    cargo.args(arguments).envs(variables.iter().map(|(key, value)| (*key, value)));
    let status = cargo.status().map_err(|source| Error::Spawn { command: process::shown(&cargo), source })?;
    if status.success() {
        return Ok(());
    }
    Err(Error::Command { command: process::shown(&cargo), status, stderr: String::new() })
}

/// Runs a build (`cargo build …`), and answers the programs that came of it, by name.
pub(crate) fn build(cargo: &mut Command, arguments: &[&str]) -> Result<BTreeMap<String, PathBuf>> {
    cargo.args(["--locked", "--message-format=json-render-diagnostics"]).args(arguments);
    Ok(parse(&process::output(cargo)?))
}

/// Reads cargo's messages: one JSON object a line, of which those about an artifact may name an executable.
fn parse(messages: &str) -> BTreeMap<String, PathBuf> {
    let messages = messages.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    messages
        .filter_map(|message| {
            let name = message["target"]["name"].as_str()?.to_owned();
            Some((name, PathBuf::from(message["executable"].as_str()?)))
        })
        .collect()
}

/// One of the programs that were built.
pub(crate) fn find(built: &BTreeMap<String, PathBuf>, name: &str) -> Result<PathBuf> {
    built
        .get(name)
        .cloned()
        .ok_or_else(|| Error::Malformed { path: name.into(), problem: "cargo built no program of this name".into() })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The target folder may be anywhere; only cargo knows where a program came to lie.
    #[test]
    fn programs_are_where_cargo_says() {
        let messages = r#"{"reason":"compiler-artifact","target":{"name":"consilium_agent","kind":["lib"]},"executable":null}
not json
{"reason":"compiler-artifact","target":{"name":"consilium-courier","kind":["bin"]},"executable":"/t/consilium-courier"}"#;
        let built = parse(messages);
        assert_eq!(find(&built, "consilium-courier").unwrap(), Path::new("/t/consilium-courier"));
        assert!(find(&built, "consilium-agent").unwrap_err().to_string().contains("consilium-agent"));
    }
}
