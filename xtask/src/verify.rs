//! `cargo xtask verify`: what a reviewer should not have to look for by hand.

use std::{collections::BTreeSet, fs, path::Path, process::Command};

use serde_json::Value;

use crate::{
    conditions,
    error::{Error, IoContext, Result},
    generate, licences, process,
};

/// Lines that a source file may have at most (DESIGN §13).
const FILE_CAP: usize = 500;

/// Who may depend on which of our own packages (DESIGN §2). A package that is not here may depend on none of ours.
const ARROWS: &[(&str, &[&str])] = &[
    ("consilium-federation", &[]),
    ("consilium-secagg", &[]),
    ("consilium-clinical", &["consilium-federation", "consilium-secagg"]),
    ("consilium-imaging", &[]),
    ("consilium-crds", &["consilium-clinical", "consilium-federation", "consilium-secagg"]),
    ("consilium-proto", &["consilium-federation", "consilium-secagg"]),
    ("consilium-operator", &["consilium-crds", "consilium-proto", "consilium-federation", "consilium-secagg"]),
    (
        "consilium-agent",
        &["consilium-clinical", "consilium-crds", "consilium-proto", "consilium-federation", "consilium-secagg"],
    ),
    ("consilium-trainer", &["consilium-imaging", "consilium-federation"]),
    ("consilium-inference", &["consilium-imaging", "consilium-federation"]),
    (
        "consilium-cli",
        &[
            "consilium-clinical",
            "consilium-crds",
            "consilium-proto",
            "consilium-federation",
            "consilium-secagg",
            "consilium-operator",
            "consilium-agent",
        ],
    ),
];

/// Packages of the project's own tests and tasks, which may use everything.
const UNBOUND: &[&str] = &["consilium-fuzz", "consilium-tests", "xtask", "consilium-simulation"];

/// Pure packages, and what must not be anywhere below them.
const PURE: &[&str] = &["consilium-federation", "consilium-secagg", "consilium-clinical"];
const IMPURE: &[&str] = &["kube", "k8s-openapi", "tonic", "tokio", "tch"];

/// One check: its name and the faults it found, or why it could not run.
struct Check {
    name: &'static str,
    faults: Vec<String>,
    skipped: Option<&'static str>,
}

/// Runs every check, prints a line for each, and fails if one found a fault.
pub fn run() -> Result<()> {
    let metadata = metadata()?;
    let checks = [
        checked("generated files", generate::differences()?),
        checked("reasons of conditions", conditions::faults()?),
        checked("dependency arrows", arrows(&metadata)),
        checked("purity", purity(&metadata)),
        checked("rooms without Kubernetes", clusterless()?),
        checked("file length", long_files()?),
        checked("formatting", formatting()),
        licences(&metadata)?,
        advisories(),
    ];
    for check in &checks {
        match (&check.skipped, check.faults.len()) {
            (Some(why), _) => println!("skipped  {}: {why}", check.name),
            (None, 0) => println!("ok       {}", check.name),
            (None, count) => println!("FAILED   {} ({count})", check.name),
        }
        check.faults.iter().for_each(|fault| println!("           {fault}"));
    }
    let failed: Vec<&str> = checks.iter().filter(|c| !c.faults.is_empty()).map(|c| c.name).collect();
    if failed.is_empty() { Ok(()) } else { Err(Error::Verify { failed: failed.join(", ") }) }
}

fn checked(name: &'static str, faults: Vec<String>) -> Check {
    Check { name, faults, skipped: None }
}

fn metadata() -> Result<Value> {
    let text = process::output(
        Command::new("cargo").args(["metadata", "--format-version", "1", "--locked"]).current_dir(generate::root()),
    )?;
    serde_json::from_str(&text)
        .map_err(|error| Error::Malformed { path: "cargo metadata".into(), problem: error.to_string() })
}

/// Our own packages: name, and the names of what they are built from (tests may use more).
fn dependencies(metadata: &Value) -> Vec<(&str, Vec<&str>)> {
    let list = |value: &'static str, of: &Value| of[value].as_array().cloned().unwrap_or_default();
    let members: BTreeSet<String> =
        list("workspace_members", metadata).iter().filter_map(|id| id.as_str().map(str::to_owned)).collect();
    let packages = metadata["packages"].as_array().map(Vec::as_slice).unwrap_or_default();
    let ours = packages.iter().filter(|p| p["id"].as_str().is_some_and(|id| members.contains(id)));
    ours.filter_map(|package| {
        let direct = package["dependencies"].as_array()?.iter();
        // Kind null is what goes into the product; "dev" and "build" do not.
        let built = direct.filter(|d| d["kind"].is_null()).filter_map(|d| d["name"].as_str()).collect();
        Some((package["name"].as_str()?, built))
    })
    .collect()
}

fn arrows(metadata: &Value) -> Vec<String> {
    let all = dependencies(metadata);
    let ours: BTreeSet<&str> = all.iter().map(|(name, _)| *name).collect();
    let mut faults = Vec::new();
    for (name, direct) in all.iter().filter(|(name, _)| !UNBOUND.contains(name)) {
        let allowed = ARROWS.iter().find(|(from, _)| from == name).map_or(&[][..], |(_, to)| to);
        for to in direct.iter().filter(|to| ours.contains(*to) && !allowed.contains(to)) {
            faults.push(format!("{name} depends on {to}, which DESIGN §2 does not allow"));
        }
    }
    faults
}

fn purity(metadata: &Value) -> Vec<String> {
    let nodes = metadata["resolve"]["nodes"].as_array().map(Vec::as_slice).unwrap_or_default();
    let mut faults = Vec::new();
    for pure in PURE {
        let mut seen: BTreeSet<&str> = BTreeSet::new();
        let start = nodes.iter().filter_map(|n| n["id"].as_str()).find(|id| package_name(id) == *pure);
        let mut open: Vec<&str> = start.into_iter().collect();
        while let Some(id) = open.pop() {
            if !seen.insert(id) {
                continue;
            }
            let Some(node) = nodes.iter().find(|n| n["id"] == id) else { continue };
            let deps = node["deps"].as_array().map(Vec::as_slice).unwrap_or_default();
            let built = deps
                .iter()
                .filter(|d| d["dep_kinds"].as_array().is_some_and(|kinds| kinds.iter().any(|k| k["kind"].is_null())));
            open.extend(built.filter_map(|d| d["pkg"].as_str()));
        }
        let names: BTreeSet<&str> = seen.into_iter().map(package_name).collect();
        let found = IMPURE.iter().filter(|impure| names.contains(*impure));
        faults.extend(found.map(|impure| format!("{pure} is to be pure and pulls in {impure}")));
    }
    faults
}

/// Folders that know of no cluster: what they hold runs on files and simulated stores too.
const CLUSTERLESS: &[&str] = &["operator/src/driver"];

fn clusterless() -> Result<Vec<String>> {
    let root = generate::root();
    let mut faults = Vec::new();
    for file in listed(&root, CLUSTERLESS)? {
        let path = root.join(&file);
        let text = fs::read_to_string(&path).at("read", &path)?;
        if text.contains("kube::") {
            faults.push(format!("{file} speaks to Kubernetes; that is for the controllers, or a port of the driver"));
        }
    }
    Ok(faults)
}

/// Files of the working tree, new ones included.
fn listed(root: &Path, patterns: &[&str]) -> Result<Vec<String>> {
    let command = &mut Command::new("git");
    command.args(["ls-files", "--cached", "--others", "--exclude-standard", "--"]).args(patterns).current_dir(root);
    let found = process::output(command)?;
    Ok(found.lines().filter(|file| root.join(file).is_file()).map(str::to_owned).collect())
}

/// The name in a package id: `registry+https://…#name@1.2.3`, `path+file:///…/folder#name@0.1.0` or `…/name#0.1.0`.
fn package_name(id: &str) -> &str {
    let (place, spec) = id.rsplit_once('#').unwrap_or(("", id));
    match spec.split_once('@') {
        Some((name, _)) => name,
        None => place.rsplit('/').next().unwrap_or(place),
    }
}

fn long_files() -> Result<Vec<String>> {
    let root = generate::root();
    let mut faults = Vec::new();
    for file in listed(&root, &["*.rs", "*.py", "*.go"])? {
        let path = root.join(&file);
        let lines = fs::read_to_string(&path).at("read", &path)?.lines().count();
        if lines > FILE_CAP {
            faults.push(format!("{file} has {lines} lines, {FILE_CAP} are allowed: split it by what it is about"));
        }
    }
    Ok(faults)
}

fn formatting() -> Vec<String> {
    let mut command = Command::new("cargo");
    command.args(["fmt", "--all", "--check", "--", "--files-with-diff"]).current_dir(generate::root());
    match command.output() {
        Ok(output) if output.status.success() => Vec::new(),
        Ok(output) => {
            let mut files: Vec<String> = String::from_utf8_lossy(&output.stdout).lines().map(relative).collect();
            files.sort();
            files.dedup();
            files.push("run `cargo fmt`".to_owned());
            files
        }
        Err(error) => vec![format!("`cargo fmt` could not be started: {error}")],
    }
}

fn relative(path: &str) -> String {
    let root = fs::canonicalize(generate::root()).unwrap_or_default();
    Path::new(path).strip_prefix(&root).unwrap_or(Path::new(path)).display().to_string()
}

fn licences(metadata: &Value) -> Result<Check> {
    let path = generate::root().join("deny.toml");
    let deny = fs::read_to_string(&path).at("read", &path)?;
    Ok(checked("licences and sources", licences::faults(metadata, &deny)))
}

fn advisories() -> Check {
    let name = "advisories";
    if !process::on_path("cargo-deny") {
        let why = "cargo-deny is not installed (`cargo install --locked cargo-deny`)";
        return Check { name, faults: Vec::new(), skipped: Some(why) };
    }
    let result = process::output(Command::new("cargo").args(["deny", "check"]).current_dir(generate::root()));
    checked(name, result.err().map(|error| error.to_string()).into_iter().collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn tree(dependencies: Value) -> Value {
        let crds =
            json!({"id": "path+file:///w/crds#consilium-crds@0.1.0", "name": "consilium-crds", "dependencies": []});
        let federation = json!({
            "id": "path+file:///w/federation#consilium-federation@0.1.0", "name": "consilium-federation",
            "dependencies": dependencies
        });
        json!({"packages": [crds, federation],
            "workspace_members": ["path+file:///w/crds#consilium-crds@0.1.0", "path+file:///w/federation#consilium-federation@0.1.0"]})
    }

    /// An arrow from the pure rules to the API would tie every test of the rules to Kubernetes.
    #[test]
    fn an_arrow_against_the_design_is_found_and_a_test_only_one_is_not() {
        let built = tree(json!([{"name": "consilium-crds", "kind": null}]));
        assert_eq!(arrows(&built), ["consilium-federation depends on consilium-crds, which DESIGN §2 does not allow"]);
        let tested = tree(json!([{"name": "consilium-crds", "kind": "dev"}]));
        assert!(arrows(&tested).is_empty());
    }

    /// A runtime three crates down is as bad as one named in Cargo.toml.
    #[test]
    fn impurity_is_found_through_other_crates() {
        let node = |id: &str, to: &str| json!({"id": id, "deps": [{"pkg": to, "dep_kinds": [{"kind": null}]}]});
        let resolve = json!({"resolve": {"nodes": [
            node("path+file:///w/secagg#consilium-secagg@0.1.0", "registry+x#helper@1.0.0"),
            node("registry+x#helper@1.0.0", "registry+x#tokio@1.0.0"),
            {"id": "registry+x#tokio@1.0.0", "deps": []},
        ]}});
        assert_eq!(purity(&resolve), ["consilium-secagg is to be pure and pulls in tokio"]);
    }

    /// Cargo writes ids in three ways.
    #[test]
    fn package_names_are_read_from_every_form_of_id() {
        for id in
            ["registry+https://x/index#tokio@1.2.3", "path+file:///work/tokio#0.1.0", "path+file:///w/t#tokio@1.0.0"]
        {
            assert_eq!(package_name(id), "tokio");
        }
    }
}
