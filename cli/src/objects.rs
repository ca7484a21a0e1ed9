//! Objects from files, as `kubectl get -o yaml` or a Git repository holds them.

use std::{fs, path::Path};

use consilium_crds::{FederatedStudy, ModelRelease, SitePolicy};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::error::{CliError, Result};

/// A FederatedStudy from a file. Words that kubectl would read otherwise are pointed out on standard error: the hub would
/// have another digest.
pub fn study(path: &Path) -> Result<FederatedStudy> {
    let text = text(path)?;
    for (line, word) in ambiguous(&text) {
        eprintln!(
            "note: {}, line {line}: {word} without quotes is a truth value to kubectl, Argo CD and Flux, and a text here, so \
             that the digest at the hub can be another: write \"{word}\", or true or false",
            path.display()
        );
    }
    parse(&text, path, "FederatedStudy")
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
    parse(&text(path)?, path, expected)
}

fn text(path: &Path) -> Result<String> {
    fs::read_to_string(path).map_err(|source| CliError::Io { path: path.into(), source })
}

/// Plain words that YAML 1.1 reads as true or false, and YAML 1.2 as text, with their lines. A look at the text and no
/// parser: it can find one too many in a text of several lines.
fn ambiguous(text: &str) -> Vec<(usize, &str)> {
    let mut found = Vec::new();
    for (n, line) in text.lines().enumerate().filter(|(_, line)| !line.trim_start().starts_with('#')) {
        let code = line.split(" #").next().unwrap_or(line);
        for piece in code.split([',', '[', ']', '{', '}']).flat_map(|piece| piece.split(": ")) {
            let word = piece.trim().trim_start_matches("- ").trim_end_matches(':').trim();
            if matches!(word.to_lowercase().as_str(), "y" | "n" | "yes" | "no" | "on" | "off") {
                found.push((n + 1, word));
            }
        }
    }
    found
}

/// Whole numbers as the API server stores them: `1.0` reaches the hub as `1`.
fn store_like(tree: &mut Value) {
    match tree {
        Value::Number(number) if number.is_f64() => {
            let whole = number.as_f64().filter(|x| x.fract() == 0.0 && x.abs() < 9.2e18);
            if let Some(whole) = whole {
                *tree = Value::from(whole as i64);
            }
        }
        Value::Array(items) => items.iter_mut().for_each(store_like),
        Value::Object(fields) => fields.values_mut().for_each(store_like),
        _ => {}
    }
}

fn parse<T: DeserializeOwned>(text: &str, path: &Path, expected: &'static str) -> Result<T> {
    let fault = |problem: String| CliError::Object { path: path.into(), expected, problem };
    // JSON is YAML too.
    let mut tree: Value = serde_yaml_ng::from_str(text).map_err(|error| fault(error.to_string()))?;
    store_like(&mut tree);
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
        assert_eq!(
            error.to_string(),
            "x.yaml holds a FederatedStudy; name a file that holds one ModelRelease, as `kubectl get modelrelease NAME -o yaml` \
             prints it"
        );
        let error = parse::<ModelRelease>("kind: ModelRelease\n", Path::new("x.yaml"), "ModelRelease").unwrap_err();
        assert!(error.to_string().contains("metadata"), "{error}");
    }

    /// A hospital that computes the digest from the researcher's file must get the hub's.
    #[test]
    fn a_study_has_the_digest_that_the_hub_gives_it() {
        let text = include_str!("../../examples/hippocampus/study.yaml");
        let digest = |rate: &str| {
            let text = text.replace("\"0.002\"", rate);
            parse::<FederatedStudy>(&text, Path::new("x.yaml"), "FederatedStudy").unwrap().spec.digest()
        };
        assert_eq!(digest("1.0"), digest("1"));
        assert_ne!(digest("1.5"), digest("1"));
    }

    /// `mirror: [x, y]` reaches the hub as `["x", true]`; who computes the digest of the file is told.
    #[test]
    fn words_that_kubectl_reads_otherwise_are_found() {
        let text = "# y: no\nmirror: [x, y]\nquoted: [\"y\", 'no']\non: Off # yes\n- No\ntext: turn on\nname: yes\n";
        assert_eq!(ambiguous(text), [(2, "y"), (4, "on"), (4, "Off"), (5, "No"), (7, "yes")]);
    }
}
