//! Licences, sources and forbidden crates, judged by `deny.toml` without cargo-deny.
//!
//! cargo-deny does more: it knows advisories and yanked versions, for which it needs its database. Where it is
//! installed it runs as well; what can be judged from `cargo metadata` alone is judged everywhere.

use serde_json::Value;
use spdx::{Expression, ParseMode};

/// The registry that everything comes from.
const REGISTRY: &str = "registry+https://github.com/rust-lang/crates.io-index";

/// What `deny.toml` says, as far as it is judged here.
struct Rules {
    allowed: Vec<String>,
    forbidden: Vec<String>,
}

/// The quoted strings of a list in a TOML text; the lists of `deny.toml` hold nothing but strings and inline tables of one.
fn strings(text: &str, list: &str) -> Vec<String> {
    let start = format!("\n{list} = [");
    let Some((_, rest)) = text.split_once(&start) else { return Vec::new() };
    let body = rest.split_once(']').map_or(rest, |(body, _)| body);
    body.split('"').skip(1).step_by(2).map(str::to_owned).collect()
}

fn rules(deny: &str) -> Rules {
    Rules { allowed: strings(deny, "allow"), forbidden: strings(deny, "deny") }
}

/// What breaks the rules, one text each.
pub(crate) fn faults(metadata: &Value, deny: &str) -> Vec<String> {
    let rules = rules(deny);
    if rules.allowed.is_empty() {
        return vec!["deny.toml: no list `allow` of licences was found".into()];
    }
    let packages = metadata["packages"].as_array().into_iter().flatten();
    // Our own have no source.
    let foreign = packages.filter(|package| !package["source"].is_null());
    foreign.filter_map(|package| fault(package, &rules)).collect()
}

fn fault(package: &Value, rules: &Rules) -> Option<String> {
    let text = |field: &str| package[field].as_str().unwrap_or_default();
    let (name, version, source) = (text("name"), text("version"), text("source"));
    if source != REGISTRY {
        return Some(format!("{name} {version} comes from {source}; only crates.io is allowed"));
    }
    if rules.forbidden.iter().any(|forbidden| forbidden == name) {
        return Some(format!(
            "{name} {version} is forbidden by deny.toml; find out who needs it with `cargo tree -i {name}`"
        ));
    }
    let licence = text("license");
    if licence.is_empty() {
        return Some(format!("{name} {version} names no licence in its manifest; look at it, and leave it out"));
    }
    match Expression::parse_mode(licence, ParseMode::LAX) {
        Ok(expression) if expression.evaluate(|wanted| rules.allowed.contains(&wanted.to_string())) => None,
        Ok(_) => Some(format!("{name} {version} has the licence {licence:?}, which deny.toml does not allow")),
        Err(error) => Some(format!("{name} {version} has the licence {licence:?}, which is none: {}", error.reason)),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const DENY: &str = "[licenses]\nallow = [\n    \"MIT\",\n    \"Apache-2.0 WITH LLVM-exception\",\n]\n\
                        [bans]\ndeny = [{ crate = \"openssl-sys\" }]\n";

    fn found(name: &str, licence: Option<&str>, source: &str) -> Option<String> {
        let package = json!({"name": name, "version": "1.0.0", "license": licence, "source": source});
        faults(&json!({"packages": [package]}), DENY).pop()
    }

    /// A licence that obliges us to something we do not do must not come in with an update.
    #[test]
    fn a_licence_outside_the_list_a_forbidden_crate_and_another_source_are_named() {
        for licence in ["MIT", "MIT OR GPL-3.0", "MIT/GPL-3.0", "Apache-2.0 WITH LLVM-exception OR GPL-2.0"] {
            assert_eq!(found("a", Some(licence), REGISTRY), None, "{licence}");
        }
        for (name, licence, source, word) in [
            ("a", Some("GPL-3.0-only"), REGISTRY, "does not allow"),
            ("a", Some("MIT AND GPL-3.0-only"), REGISTRY, "does not allow"),
            ("a", Some("Mine"), REGISTRY, "is none"),
            ("a", None, REGISTRY, "no licence"),
            ("openssl-sys", Some("MIT"), REGISTRY, "forbidden"),
            ("a", Some("MIT"), "git+https://example.org/a", "only crates.io"),
        ] {
            assert!(found(name, licence, source).is_some_and(|fault| fault.contains(word)), "{name} {licence:?}");
        }
        let ours = json!({"packages": [{"name": "consilium-agent", "version": "0.1.0", "source": null}]});
        assert!(faults(&ours, DENY).is_empty());
        assert_eq!(faults(&ours, "").len(), 1);
    }

    #[test]
    fn the_lists_of_our_own_file_are_read() {
        let deny = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../deny.toml")).unwrap();
        let rules = rules(&deny);
        assert!(rules.allowed.iter().any(|l| l == "MIT") && rules.allowed.len() > 10);
        assert_eq!(rules.forbidden, ["openssl-sys", "native-tls", "aws-lc-sys"]);
    }
}
