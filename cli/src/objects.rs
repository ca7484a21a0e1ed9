//! Objects from files, as `kubectl get -o yaml` or a Git repository holds them.

use std::{fs, path::Path};

use consilium_crds::{FederatedStudy, ModelRelease, SitePolicy};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::error::{CliError, Result};

/// A FederatedStudy from a file.
pub fn study(path: &Path) -> Result<FederatedStudy> {
    read(path, "FederatedStudy")
}

/// A ModelRelease from a file.
pub fn release(path: &Path) -> Result<ModelRelease> {
    read(path, "ModelRelease")
}

/// A SitePolicy from a file.
pub fn policy(path: &Path) -> Result<SitePolicy> {
    read(path, "SitePolicy")
}

fn read<T: DeserializeOwned>(path: &Path, expected: &'static str) -> Result<T> {
    let text = fs::read_to_string(path).map_err(|source| CliError::Io { path: path.into(), source })?;
    parse(&text, path, expected)
}

fn parse<T: DeserializeOwned>(text: &str, path: &Path, expected: &'static str) -> Result<T> {
    let fault = |problem: String| CliError::Object { path: path.into(), expected, problem };
    // JSON is YAML too.
    let tree: Value = serde_yaml_ng::from_str(text).map_err(|error| fault(error.to_string()))?;
    match tree["kind"].as_str() {
        Some(kind) if kind == expected => {}
        found => {
            let found = found.unwrap_or("document without a kind").to_owned();
            return Err(CliError::Kind { path: path.into(), expected, found });
        }
    }
    serde_json::from_value(tree).map_err(|error| fault(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Signing the wrong file must end with its name and what it holds, not with a signature over something else.
    #[test]
    fn a_file_of_another_kind_is_named() {
        let error = parse::<ModelRelease>("kind: FederatedStudy\n", Path::new("x.yaml"), "ModelRelease").unwrap_err();
        assert_eq!(error.to_string(), "x.yaml holds a FederatedStudy; ModelRelease is needed");
        let error = parse::<ModelRelease>("kind: ModelRelease\n", Path::new("x.yaml"), "ModelRelease").unwrap_err();
        assert!(error.to_string().contains("metadata"), "{error}");
    }
}
