//! `docs/metrics.md`, from the places where the programs register their metrics.
//!
//! Read as text: linking the programs into this one would make every newcomer build libtorch before `cargo xtask` runs.

use std::fs;

use crate::{
    error::{IoContext, Result},
    generate,
};

/// One metric.
#[derive(Debug, PartialEq)]
pub struct Metric {
    /// Full name.
    pub name: String,
    /// Labels, in order.
    pub labels: Vec<String>,
    /// What it says.
    pub help: String,
}

/// Component, file, and what the file puts before the names it registers that are not whole.
const SOURCES: &[(&str, &[&str], &str)] = &[
    ("operator", &["operator/src/metrics.rs", "operator/src/metrics/studies.rs"], ""),
    ("agent", &["agent/src/metrics.rs"], "consilium_agent_"),
    ("inference", &["inference/src/metrics.rs"], ""),
];

/// All metrics of all programs.
pub fn all() -> Result<Vec<Metric>> {
    Ok(by_component()?.into_iter().flat_map(|(_, metrics)| metrics).collect())
}

fn by_component() -> Result<Vec<(&'static str, Vec<Metric>)>> {
    let read = |(component, files, prefix): &(&'static str, &[&str], &str)| {
        let mut found = Vec::new();
        for file in *files {
            let path = generate::root().join(file);
            let text = fs::read_to_string(&path).at("read", &path)?;
            found.extend(registered(text.split("#[cfg(test)]").next().unwrap_or_default(), prefix));
        }
        found.sort_by(|a: &Metric, b| a.name.cmp(&b.name));
        Ok((*component, found))
    };
    SOURCES.iter().map(read).collect()
}

/// The page.
pub fn page() -> Result<String> {
    let mut page = "<!-- Written by `cargo xtask generate`. Do not edit. -->\n# Metrics\n\n\
        Every component serves `/metrics` on its admin port (8080; a model's own port for inference). Labels are closed \
        sets, or the name of a hospital that is let in or of a study that there is, and go with it; never a round or a pod. \
        Operator and agent also have the `process_*` metrics that every program has (memory, CPU time, open files).\n"
        .to_owned();
    for (component, metrics) in by_component()? {
        page.push_str(&format!("\n## {component}\n\n| name | labels | meaning |\n|---|---|---|\n"));
        for metric in metrics {
            let labels: Vec<String> = metric.labels.iter().map(|label| format!("`{label}`")).collect();
            page.push_str(&format!("| `{}` | {} | {} |\n", metric.name, labels.join(", "), metric.help));
        }
    }
    Ok(page)
}

/// Names of metrics in some text.
pub fn named_in(text: &str) -> Vec<String> {
    let words = text.split(|c: char| !(c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_'));
    let mut names: Vec<String> = words.filter(|w| w.starts_with("consilium_")).map(str::to_owned).collect();
    names.sort();
    names.dedup();
    names
}

/// Calls of the form `…("name", …labels…, "Help.")`: the first literal is the name, the last one ends with a full stop.
fn registered(code: &str, prefix: &str) -> Vec<Metric> {
    let mut found: Vec<Metric> = Vec::new();
    let mut rest = code;
    while let Some(open) = rest.find('(') {
        rest = &rest[open + 1..];
        let Some(call) = rest.trim_start().strip_prefix('"') else { continue };
        let Some((name, tail)) = call.split_once('"') else { break };
        let full = if name.starts_with("consilium_") { name.to_owned() } else { format!("{prefix}{name}") };
        let named = name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_') && full.starts_with("consilium_");
        let Some(arguments) = tail.get(..end_of_call(tail)).filter(|_| named) else { continue };
        let mut literals: Vec<&str> = arguments.split('"').skip(1).step_by(2).collect();
        let Some(help) = literals.iter().position(|text| text.ends_with('.')) else { continue };
        let help = literals.drain(help..).next().unwrap_or_default().to_owned();
        // Labels that stand before the call, as `site` does, or after it in a closure.
        let mut labels: Vec<String> = literals.into_iter().map(str::to_owned).collect();
        if labels.is_empty() && arguments.trim_start_matches(',').trim_start().starts_with("site,") {
            labels.push("site".to_owned());
        }
        // `Opts::new("name", "Help."), &["label"]`.
        let after = tail[arguments.len()..].trim_start_matches(')').trim_start_matches(',').trim_start();
        if let Some((list, _)) = after.strip_prefix("&[").filter(|_| labels.is_empty()).and_then(|l| l.split_once(']'))
        {
            labels = list.split('"').skip(1).step_by(2).map(str::to_owned).collect();
        }
        found.push(Metric { name: full, labels, help });
    }
    found.sort_by(|a, b| a.name.cmp(&b.name));
    found.dedup_by(|a, b| a.name == b.name);
    found
}

/// Where the parenthesis that is open at the start of `text` closes.
fn end_of_call(text: &str) -> usize {
    let (mut depth, mut quoted) = (1usize, false);
    for (at, c) in text.char_indices() {
        match c {
            '"' => quoted = !quoted,
            '(' if !quoted => depth += 1,
            ')' if !quoted => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return at;
        }
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A metric that the page leaves out is one that nobody will ever look at.
    #[test]
    fn registrations_are_found_in_every_style_in_use() {
        let code = r#"
            connected: b.int_gauge("consilium_site_connected", site, "1 while a watch (one) is open."),
            requests: b.counter("consilium_requests_total", &["method", "code"], "Calls."),
            let x = IntCounterVec::new(Opts::new("consilium_answers_total", "Answers."), &["result"])?;
            let other = m.add("not a metric", 1);
            accepted: b.add("gauge", IntGauge::new("consilium_sites_accepted", "Hospitals.")),
            reconciles: b.counter(&["controller"], "Reconciles."),
        "#;
        let found = registered(code, "");
        let shown: Vec<_> = found.iter().map(|m| (m.name.as_str(), m.labels.join(","), m.help.as_str())).collect();
        assert_eq!(
            shown,
            [
                ("consilium_answers_total", "result".to_owned(), "Answers."),
                ("consilium_requests_total", "method,code".to_owned(), "Calls."),
                ("consilium_site_connected", "site".to_owned(), "1 while a watch (one) is open."),
                ("consilium_sites_accepted", String::new(), "Hospitals."),
            ]
        );
    }

    /// The page holds what the programs register today; which version runs where is asked of all of them at once.
    #[test]
    fn every_program_has_metrics() {
        for (component, metrics) in by_component().unwrap() {
            assert!(metrics.len() >= 5, "{component}: {metrics:?}");
            let build = metrics.iter().find(|m| m.name == "consilium_build_info");
            assert_eq!(build.unwrap_or_else(|| panic!("{component}")).labels, ["component", "version"], "{component}");
        }
    }
}
