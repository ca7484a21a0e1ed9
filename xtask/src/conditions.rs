//! `docs/conditions.md`: every reason of every condition, what it means and who does what. Read as text from where the
//! programs decide, so that a reason without a word on it is found.

use std::{collections::BTreeSet, fs};

use serde_yaml_ng::{Mapping, Value};

use crate::{
    error::{Error, IoContext, Result},
    generate,
};

const LIST: &str = "xtask/conditions.yaml";

/// Where reasons are given.
const SOURCES: &[&str] = &[
    "operator/src/controllers/init/decide.rs",
    "operator/src/controllers/models.rs",
    "operator/src/controllers/plan/decide.rs",
    "operator/src/controllers/promotion/decide.rs",
    "operator/src/controllers/release/decide.rs",
    "operator/src/controllers/rosters.rs",
    "operator/src/controllers/round/decide.rs",
    "operator/src/controllers/round/mod.rs",
    "operator/src/controllers/study/accept.rs",
    "operator/src/controllers/study/apply.rs",
    "operator/src/controllers/study/decide.rs",
    "operator/src/controllers/study/end.rs",
    "operator/src/controllers/trust_site/decide.rs",
    "agent/src/deployments/status.rs",
    "agent/src/link/dial.rs",
    "agent/src/link/follow.rs",
    "agent/src/policy/mod.rs",
    "agent/src/site/decide.rs",
    "agent/src/site/trouble.rs",
    "agent/src/tasks/status.rs",
    "agent/src/volume.rs",
    "crds/src/conditions.rs",
    "proto/src/lib.rs",
];

/// Words in them that are no reasons: conditions and kinds are told apart by the list itself.
const NO_REASONS: &[&str] = &["True", "False", "Unknown", "Stalled"];

/// The list: kind, condition, reason, what it means, what to do.
fn list() -> Result<Mapping> {
    let path = generate::root().join(LIST);
    let text = fs::read_to_string(&path).at("read", &path)?;
    serde_yaml_ng::from_str(&text).map_err(|error| Error::Malformed { path, problem: error.to_string() })
}

fn entries(value: &Value) -> impl Iterator<Item = (&str, &Value)> {
    value.as_mapping().into_iter().flatten().filter_map(|(key, value)| Some((key.as_str()?, value)))
}

/// The page.
pub fn page() -> Result<String> {
    let list = Value::Mapping(list()?);
    let mut page = format!(
        "<!-- Written by `cargo xtask generate` from {LIST}. Do not edit. -->\n# Conditions and their reasons\n\n\
         What stands in `status.conditions` of each kind (`kubectl describe`, or `-o wide`), and who does something about \
         it. The message of a condition is about the very object: it names the field, the value and the way out. `Ready` \
         means accepted and under way; `Stalled` is there, with the reason of `Ready`, only while somebody has to act; \
         `Unreadable` stands at any kind.\n"
    );
    for (kind, conditions) in entries(&list) {
        page.push_str(&format!("\n## {kind}\n"));
        page.push_str(if kind == "Events" { "\nTold once, beside the reasons above.\n" } else { "" });
        for (condition, reasons) in entries(conditions) {
            page.push_str(&format!("\n### {condition}\n\n| reason | what it means | what to do |\n|---|---|---|\n"));
            for (reason, words) in entries(reasons) {
                let word = |at: usize| words.get(at).and_then(Value::as_str).unwrap_or_default();
                page.push_str(&format!("| `{reason}` | {} | {} |\n", word(0), linked(word(1))));
            }
        }
    }
    Ok(page)
}

/// `runbook NAME` becomes a link.
fn linked(text: &str) -> String {
    let Some((before, after)) = text.split_once("runbook ") else { return text.to_owned() };
    let end = after.find(|c: char| !c.is_alphanumeric()).unwrap_or(after.len());
    let (name, rest) = after.split_at(end);
    format!("{before}[{name}](runbooks/{name}.md){rest}")
}

/// What the code gives and the list lacks, the other way round, and entries without both sentences.
pub fn faults() -> Result<Vec<String>> {
    let list = Value::Mapping(list()?);
    let (mut told, mut types, mut faults) = (BTreeSet::new(), BTreeSet::new(), Vec::new());
    for (kind, conditions) in entries(&list) {
        types.insert(kind);
        for (condition, reasons) in entries(conditions) {
            types.insert(condition);
            for (reason, words) in entries(reasons) {
                told.insert(reason);
                let word = |at: usize| words.get(at).and_then(Value::as_str).unwrap_or_default();
                if !word(0).ends_with('.') || !word(1).ends_with('.') {
                    faults.push(format!("{LIST}: {kind} {condition} {reason} needs two sentences"));
                }
                let runbook = word(1)
                    .split_once("runbook ")
                    .map(|(_, rest)| rest.split(|c: char| !c.is_alphanumeric()).next().unwrap_or_default());
                if runbook.is_some_and(|name| !generate::root().join(format!("docs/runbooks/{name}.md")).is_file()) {
                    faults.push(format!("{LIST}: {reason} names a runbook that is not there"));
                }
            }
        }
    }
    let mut given = BTreeSet::new();
    for file in SOURCES {
        let path = generate::root().join(file);
        let text = fs::read_to_string(&path).at("read", &path)?;
        let code = text.split("#[cfg(test)]").next().unwrap_or_default();
        for word in literals(code).into_iter().filter(|word| is_reason(word)) {
            if !told.contains(word.as_str()) && !types.contains(word.as_str()) && !NO_REASONS.contains(&word.as_str()) {
                faults.push(format!("{file} gives the reason {word:?}, on which {LIST} has no word"));
            }
            given.insert(word);
        }
    }
    faults.extend(
        told.iter()
            .filter(|word| !given.contains(**word))
            .map(|word| format!("{LIST} has {word:?}, which nothing gives")),
    );
    Ok(faults)
}

fn is_reason(word: &str) -> bool {
    word.starts_with(|c: char| c.is_ascii_uppercase())
        && word.len() > 3
        && word.bytes().all(|b| b.is_ascii_alphanumeric())
}

/// The texts in quotes in some code, comments left out.
fn literals(code: &str) -> Vec<String> {
    let (mut found, mut rest) = (Vec::new(), code);
    while let Some(at) = rest.find(['"', '/']) {
        let (mark, after) = (rest.as_bytes()[at], &rest[at + 1..]);
        if mark == b'/' {
            rest = if after.starts_with('/') { after.split_once('\n').map_or("", |(_, next)| next) } else { after };
            continue;
        }
        if rest[..at].ends_with('\'') && after.starts_with('\'') {
            // The mark itself, as a character.
            rest = &after[1..];
            continue;
        }
        let mut end = 0;
        let bytes = after.as_bytes();
        while bytes.get(end).is_some_and(|byte| *byte != b'"') {
            end += if bytes[end] == b'\\' { 2 } else { 1 };
        }
        found.extend(after.get(..end).map(str::to_owned));
        rest = after.get(end + 1..).unwrap_or_default();
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Somebody who reads a reason in `kubectl describe` finds on the page what to do; nobody has to read the code for it.
    #[test]
    fn every_reason_has_a_word() {
        assert_eq!(faults().unwrap(), Vec::<String>::new());
        assert!(page().unwrap().contains("| `NoRoster` |"));
    }

    /// A reason behind an escaped quote or in a comment must be told from one that is given.
    #[test]
    fn literals_are_found_and_comments_are_not() {
        let code = "// \"Comment\"\nset(A, \"Given\", \"a \\\" b\", x / 2, \"Other\")";
        assert_eq!(literals(code), ["Given", "a \\\" b", "Other"]);
        assert_eq!(literals(code).iter().filter(|word| is_reason(word)).count(), 2);
        assert_eq!(linked("Look (runbook RoundStuck)."), "Look ([RoundStuck](runbooks/RoundStuck.md)).");
    }
}
