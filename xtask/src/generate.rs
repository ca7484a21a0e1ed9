//! Files that are written from the code and committed: CRDs, the chart that installs them, dashboards, reference pages.
//!
//! [`files`] makes them all in memory; `generate` writes them and `verify` compares them, so both look at the same list.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use consilium_crds::schema;
use serde_json::{Value, json};

use crate::{
    api, conditions, dashboards,
    error::{Error, IoContext, Result},
    metrics, values,
};

/// Folders in which everything is generated; a file there that nothing makes any more is removed.
const OWNED: &[&str] = &[
    "crds/generated",
    "charts/consilium-crds/templates",
    "charts/consilium-hub/dashboards",
    "charts/consilium-site/dashboards",
];

/// Kinds that only a hospital's cluster needs; the others are the hub's.
const HOSPITAL_KINDS: &[&str] = &["SitePolicy", "RoundTask", "ModelDeployment", "ModelHazard"];

/// The root of the source tree.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Every generated file by its path from the root.
pub fn files() -> Result<BTreeMap<PathBuf, String>> {
    let mut files = BTreeMap::new();
    for crd in schema::all() {
        let file = format!("{}.yaml", crd.spec.names.plural);
        let yaml = schema::yaml(&crd).map_err(|error| malformed(&file, &error.to_string()))?;
        let chart = chart_template(&crd.spec.names.kind, &serde_json::to_value(&crd).unwrap_or_default())
            .map_err(|problem| malformed(&file, &problem))?;
        files.insert(Path::new("crds/generated").join(&file), yaml);
        files.insert(Path::new("charts/consilium-crds/templates").join(&file), chart);
    }
    files.insert("docs/metrics.md".into(), metrics::page()?);
    files.insert("docs/conditions.md".into(), conditions::page()?);
    files.insert("docs/api.md".into(), api::page());
    for (chart, about) in values::CHARTS {
        files.insert(Path::new("charts").join(chart).join("README.md"), values::page(chart, about)?);
    }
    for board in dashboards::all() {
        files.insert(Path::new("charts").join(board.file), board.json());
    }
    Ok(files)
}

fn malformed(file: &str, problem: &str) -> Error {
    Error::Malformed { path: file.into(), problem: problem.to_owned() }
}

/// The definition as a chart template: kept on uninstall (else Helm would delete every study with it), and left out of
/// clusters that do not need it.
fn chart_template(kind: &str, crd: &Value) -> Result<String, String> {
    let mut crd = crd.clone();
    crd["metadata"]["annotations"] = json!({"helm.sh/resource-policy": "keep"});
    let yaml = serde_yaml_ng::to_string(&crd).map_err(|error| error.to_string())?;
    if yaml.contains("{{") {
        return Err(format!("the schema of {kind} holds \"{{{{\", which Helm would read as a template"));
    }
    let side = if HOSPITAL_KINDS.contains(&kind) { "site" } else { "hub" };
    Ok(format!(
        "# Written by `cargo xtask generate`. Do not edit.\n{{{{- if .Values.{side} }}}}\n{yaml}{{{{- end }}}}\n"
    ))
}

/// `cargo xtask generate`.
pub fn run() -> Result<()> {
    let changed = write()?;
    changed.iter().for_each(|path| println!("wrote {}", path.display()));
    if changed.is_empty() {
        println!("everything is as generated");
    }
    Ok(())
}

/// Writes what differs and removes what is left over; returns the paths that changed.
pub fn write() -> Result<Vec<PathBuf>> {
    let files = files()?;
    let mut changed = Vec::new();
    for (path, content) in &files {
        let target = root().join(path);
        if fs::read_to_string(&target).is_ok_and(|old| old == *content) {
            continue;
        }
        if let Some(parent) = target.parent() {
            fs::create_dir_all(parent).at("make folder", parent)?;
        }
        fs::write(&target, content).at("write", &target)?;
        changed.push(path.clone());
    }
    for path in leftovers(&files)? {
        let target = root().join(&path);
        fs::remove_file(&target).at("remove", &target)?;
        changed.push(path);
    }
    Ok(changed)
}

/// What differs from what would be written, one line for each file.
pub fn differences() -> Result<Vec<String>> {
    let files = files()?;
    let mut lines = Vec::new();
    for (path, content) in &files {
        match fs::read_to_string(root().join(path)) {
            Ok(old) if old == *content => {}
            Ok(old) => lines.push(format!("{} {}", path.display(), first_difference(&old, content))),
            Err(_) => lines.push(format!("{} is missing", path.display())),
        }
    }
    lines.extend(leftovers(&files)?.iter().map(|path| format!("{} is left over", path.display())));
    Ok(lines)
}

fn first_difference(old: &str, new: &str) -> String {
    let line = old.lines().zip(new.lines()).take_while(|(a, b)| a == b).count();
    let at = |text: &str| text.lines().nth(line).unwrap_or("(end)").trim().to_owned();
    format!("differs from line {}: has {:?}, should have {:?}", line + 1, at(old), at(new))
}

fn leftovers(files: &BTreeMap<PathBuf, String>) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for folder in OWNED {
        let path = root().join(folder);
        let Ok(entries) = fs::read_dir(&path) else { continue };
        for entry in entries {
            let name = entry.at("read", &path)?.file_name();
            let relative = Path::new(folder).join(name);
            if !files.contains_key(&relative) {
                found.push(relative);
            }
        }
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An uninstall of the chart without the annotation deletes every study and every policy of the cluster.
    #[test]
    fn every_definition_is_kept_on_uninstall_and_belongs_to_one_side() {
        let files = files().unwrap();
        let charts: Vec<_> =
            files.iter().filter(|(path, _)| path.starts_with("charts/consilium-crds/templates")).collect();
        assert_eq!(charts.len(), 10);
        for (path, text) in charts {
            assert!(text.contains("helm.sh/resource-policy: keep"), "{}", path.display());
            assert_eq!(text.matches("{{-").count(), 2, "{}", path.display());
        }
    }

    /// A person who forgot to generate is told the line, not only that something differs.
    #[test]
    fn a_difference_names_its_line() {
        assert_eq!(first_difference("a\nb\n", "a\nc\n"), "differs from line 2: has \"b\", should have \"c\"");
        assert!(first_difference("a\n", "a\nb\n").contains("line 2: has \"(end)\""));
    }
}
