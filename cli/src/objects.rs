//! Objects from files, as `kubectl get -o yaml` or a Git repository holds them.

use std::{fs, path::Path};

use consilium_crds::{ClinicalPlan, FederatedStudy, Kind as _, ModelRelease, SitePolicy};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::error::{CliError, Result};
use crate::yaml;

/// A FederatedStudy from a file, as kubectl sends it: its digest is the hub's.
pub fn study(path: &Path) -> Result<FederatedStudy> {
    parse_study(&text(path)?, path)
}

fn parse_study(text: &str, path: &Path) -> Result<FederatedStudy> {
    const EXPECTED: &str = "FederatedStudy";
    let fault = |problem: String| CliError::Object { path: path.into(), expected: EXPECTED, problem };
    let mut tree = yaml::as_sent(text).map_err(fault)?;
    kind(&tree, path, EXPECTED)?;
    if let Some(fields) = tree.as_object_mut() {
        // What the hub says of it is not asked for here, and may be of a later version.
        fields.remove("status");
    }
    FederatedStudy::read(tree).map_err(|unreadable| fault(unreadable.to_string()))
}

/// A ModelRelease from a file.
pub fn release(path: &Path) -> Result<ModelRelease> {
    read(path, "ModelRelease")
}

/// A ClinicalPlan from a file.
pub fn clinical_plan(path: &Path) -> Result<ClinicalPlan> {
    read(path, "ClinicalPlan")
}

/// A SitePolicy from a file.
pub fn policy(path: &Path) -> Result<SitePolicy> {
    read(path, "SitePolicy")
}

fn read<T: DeserializeOwned>(path: &Path, expected: &'static str) -> Result<T> {
    parse(&text(path)?, path, expected)
}

fn text(path: &Path) -> Result<String> {
    fs::read_to_string(path).map_err(|source| CliError::Io { path: path.into(), source })
}

fn parse<T: DeserializeOwned>(text: &str, path: &Path, expected: &'static str) -> Result<T> {
    let fault = |problem: String| CliError::Object { path: path.into(), expected, problem };
    // JSON is YAML too.
    let tree: Value = serde_yaml_ng::from_str(text).map_err(|error| fault(error.to_string()))?;
    kind(&tree, path, expected)?;
    serde_json::from_value(tree).map_err(|error| fault(error.to_string()))
}

fn kind(tree: &Value, path: &Path, expected: &'static str) -> Result<()> {
    match tree["kind"].as_str() {
        Some(kind) if kind == expected => Ok(()),
        found => {
            let found = found.unwrap_or("document without a kind").to_owned();
            Err(CliError::Kind { path: path.into(), expected, found })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Signing the wrong file must end with its name and what it holds, not with a signature over something else.
    #[test]
    fn a_file_of_another_kind_is_named() {
        let error = parse::<ModelRelease>("kind: FederatedStudy\n", Path::new("x.yaml"), "ModelRelease").unwrap_err();
        assert_eq!(
            error.to_string(),
            "x.yaml holds a FederatedStudy; name a file that holds one ModelRelease, as `kubectl get modelrelease NAME -o yaml` \
             prints it"
        );
        let error = parse::<ModelRelease>("kind: ModelRelease\n", Path::new("x.yaml"), "ModelRelease").unwrap_err();
        assert!(error.to_string().contains("metadata"), "{error}");
    }

    /// A hospital that computes the digest from the researcher's file must get the hub's, whatever was left out.
    #[test]
    fn a_study_has_the_digest_that_the_hub_gives_it() {
        let text = include_str!("../../examples/hippocampus/study.yaml");
        let parse = |text: &str| parse_study(text, Path::new("x.yaml"));
        let digest = |rate: &str| parse(&text.replace("\"0.002\"", rate)).unwrap().spec.digest();
        assert_eq!(digest("1.0"), digest("1"));
        assert_ne!(digest("1.5"), digest("1"));
        let sites = text.replace("    - name: alder\n", "    - name: alder\n      required: false\n");
        assert_eq!(parse(&sites).unwrap().spec.digest(), parse(text).unwrap().spec.digest());
    }

    /// The hub has one digest of a word, and a hospital that is given another never takes part: so there is none.
    #[test]
    fn what_is_read_in_two_ways_is_refused_with_its_line() {
        let text = include_str!("../../examples/hippocampus/study.yaml").replace("\"0.002\"", "010");
        let line = 1 + text.lines().position(|line| line.contains("010")).unwrap();
        let error = parse_study(&text, Path::new("x.yaml")).unwrap_err().to_string();
        assert!(error.contains(&format!("line {line}: 010 without quotes")), "{error}");
        let later = include_str!("../../examples/hippocampus/study.yaml")
            .replace("  initialModel:", "  privacy: {}\n  initialModel:");
        let error = parse_study(&later, Path::new("x.yaml")).unwrap_err().to_string();
        assert!(error.contains("spec.privacy") && error.contains("update"), "{error}");
    }
}
