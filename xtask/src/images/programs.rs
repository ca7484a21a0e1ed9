//! The programs that go into images, built by cargo.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::Value;

use super::Variant;
use crate::{
    cache,
    error::{Error, IoContext, Result},
    libtorch, process,
};

/// Builds packages with the dev profile, which tests use too, and returns their programs by name.
pub(super) fn build(packages: &[&str], torch: Option<&Path>, variant: &Variant) -> Result<BTreeMap<String, PathBuf>> {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(workspace()).args(["build", "--locked", "--message-format=json-render-diagnostics"]);
    for package in packages {
        cargo.args(["--package", package]);
    }
    if let Some(torch) = torch {
        cargo.envs(libtorch::environment(torch));
    }
    if *variant != Variant::Cpu {
        // Another libtorch: in the common folder each build would undo the other's.
        cargo.arg("--target-dir").arg(target_folder().join(variant.suffix().trim_start_matches('-')));
    }
    // What a cargo that called us has set is about us, not about what is built.
    for name in ["CARGO_MANIFEST_DIR", "CARGO_PKG_NAME", "CARGO_PKG_VERSION"] {
        cargo.env_remove(name);
    }
    Ok(parse(&process::output(&mut cargo)?))
}

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn target_folder() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace().join("target"), PathBuf::from)
}

/// Reads cargo's messages: one JSON object a line, of which those about an artifact may name an executable.
fn parse(messages: &str) -> BTreeMap<String, PathBuf> {
    let messages = messages.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    messages
        .filter_map(|message| {
            let name = message["target"]["name"].as_str()?.to_owned();
            Some((name, PathBuf::from(message["executable"].as_str()?)))
        })
        .collect()
}

/// One of the programs that were built.
pub(super) fn find(built: &BTreeMap<String, PathBuf>, name: &str) -> Result<PathBuf> {
    built.get(name).cloned().ok_or_else(|| Error::Malformed {
        path: workspace(),
        problem: format!("no package built a program called {name}: give it one under [[bin]]"),
    })
}

/// A copy without debug sections: a dev build is mostly those, and every cluster unpacks the image.
pub(super) fn stripped(program: &Path) -> Result<PathBuf> {
    let folder = cache::sub("images/programs")?;
    let name = program.file_name().unwrap_or_default();
    let (out, meta) = (folder.join(name), program.metadata().at("read", program)?);
    let fingerprint =
        cache::fingerprint([format!("{} {:?} {}", program.display(), meta.modified().ok(), meta.len()).as_bytes()]);
    let stamp = cache::Stamp::new(&folder, &name.to_string_lossy(), fingerprint);
    if !stamp.is_current() || !out.exists() {
        if process::on_path("strip") {
            process::output(Command::new("strip").args(["--strip-debug", "-o"]).arg(&out).arg(program))?;
        } else {
            fs::copy(program, &out).at("copy", program)?;
        }
        stamp.write()?;
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The target folder may be anywhere; only cargo knows where a program came to lie.
    #[test]
    fn programs_are_where_cargo_says() {
        let messages = r#"{"reason":"compiler-artifact","target":{"name":"consilium_agent","kind":["lib"]},"executable":null}
not json
{"reason":"compiler-artifact","target":{"name":"consilium-courier","kind":["bin"]},"executable":"/t/consilium-courier"}"#;
        let built = parse(messages);
        assert_eq!(find(&built, "consilium-courier").unwrap(), Path::new("/t/consilium-courier"));
        assert!(find(&built, "consilium-agent").unwrap_err().to_string().contains("consilium-agent"));
    }
}
