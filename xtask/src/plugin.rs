//! The `kubectl-consilium` program of this working tree.

use std::path::PathBuf;

use crate::{
    cargo::{self, Profile},
    error::Result,
    libtorch,
};

/// Builds it and returns where it lies.
pub fn build(profile: Profile) -> Result<PathBuf> {
    let mut command = cargo::command(&libtorch::ensure()?);
    command.arg("build");
    cargo::find(&cargo::build(&mut command, &profile.selection())?, "kubectl-consilium")
}
