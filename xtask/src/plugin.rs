//! The `kubectl-consilium` program of this working tree.

use std::{env, path::PathBuf, process::Command};

use serde_json::Value;

use crate::{
    error::{Error, Result},
    process,
};

/// Builds it and returns where it lies.
pub fn build() -> Result<PathBuf> {
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["build", "--locked", "--package", "consilium-cli", "--message-format=json-render-diagnostics"]);
    let messages = process::output(&mut cargo)?;
    let artifact = |line: &str| {
        let message: Value = serde_json::from_str(line).ok()?;
        (message["target"]["name"] == "kubectl-consilium").then(|| message["executable"].as_str().map(PathBuf::from))?
    };
    messages.lines().find_map(artifact).ok_or_else(|| Error::Malformed {
        path: "consilium-cli".into(),
        problem: "it built no program called kubectl-consilium".into(),
    })
}
