//! `charts/*/README.md`: every value of a chart with its default and the words that stand above it in `values.yaml`.

use std::fs;

use crate::{
    error::{IoContext, Result},
    generate,
};

/// The charts that take values of their own, and what each is.
pub const CHARTS: &[(&str, &str)] = &[
    ("consilium-crds", "The kinds. Install it first, and upgrade it first."),
    ("consilium-hub", "The hub: operator, gateway and store."),
    ("consilium-site", "A hospital: its agent, and the namespace of its tasks and models."),
];

/// One value.
#[derive(Debug, PartialEq)]
struct Entry {
    path: String,
    default: String,
    words: String,
}

/// The page of a chart.
pub fn page(chart: &str, about: &str) -> Result<String> {
    let path = generate::root().join("charts").join(chart).join("values.yaml");
    let text = fs::read_to_string(&path).at("read", &path)?;
    let mut page = format!(
        "<!-- Written by `cargo xtask generate` from values.yaml. Do not edit. -->\n# {chart}\n\n{about} How it is installed, \
         says [the platform team's guide](../../docs/guides/platform-team.md). A value that the chart does not know, or of a \
         wrong form, is refused (`values.schema.json`).\n\n| value | default | what it is |\n|---|---|---|\n"
    );
    for Entry { path, default, words } in entries(&text) {
        let plain = |text: &str| text.replace('|', "\\|").replace('<', "&lt;");
        page.push_str(&format!(
            "| `{path}` | {} | {} |\n",
            if default.is_empty() { String::new() } else { format!("`{}`", plain(&default)) },
            plain(&words)
        ));
    }
    Ok(page)
}

/// Every key with what stands above it; a comment below a list is an example of it and no word on the next key.
fn entries(text: &str) -> Vec<Entry> {
    let (mut found, mut words, mut keys): (Vec<Entry>, String, Vec<(usize, String)>) =
        (Vec::new(), String::new(), Vec::new());
    for line in text.lines() {
        let bare = line.trim_start();
        let depth = line.len() - bare.len();
        match (bare.strip_prefix('#'), bare.split_once(':')) {
            _ if bare.is_empty() => words.clear(),
            (Some(comment), _) if !comment.trim_start().starts_with("- ") => {
                words = format!("{words} {}", comment.trim());
            }
            (Some(_), _) => words.clear(),
            (None, Some((key, value))) if !bare.starts_with('-') => {
                keys.retain(|(at, _)| *at < depth);
                keys.push((depth, key.to_owned()));
                let path = keys.iter().map(|(_, key)| key.as_str()).collect::<Vec<_>>().join(".");
                found.push(Entry { path, default: value.trim().to_owned(), words: words.trim().to_owned() });
                words.clear();
            }
            _ => words.clear(),
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Somebody who installs a chart finds each of its values with its words, and no example as a word on another.
    #[test]
    fn every_value_has_its_path_its_default_and_its_words() {
        let text =
            "# Of both.\nimages:\n  # One.\n  # More of it.\n  agent: \"\"\n  to: []\n  # - {a: b}\n\nlog: info\n";
        let found = entries(text);
        let shown: Vec<_> = found.iter().map(|e| (e.path.as_str(), e.default.as_str(), e.words.as_str())).collect();
        let expected = [
            ("images", "", "Of both."),
            ("images.agent", "\"\"", "One. More of it."),
            ("images.to", "[]", ""),
            ("log", "info", ""),
        ];
        assert_eq!(shown, expected);
    }
}
