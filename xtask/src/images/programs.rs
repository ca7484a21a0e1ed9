//! The programs that go into images, built by cargo.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use super::Variant;
use crate::{
    cache,
    cargo::{self, Profile},
    error::{IoContext, Result},
    process,
};

/// Builds the programs and returns them by name.
///
/// For the CPU everything is built, whichever images are asked for: that is what tests and benches build, so it is there
/// already.
pub(super) fn build(
    packages: &[&str],
    torch: &Path,
    variant: &Variant,
    profile: Profile,
) -> Result<BTreeMap<String, PathBuf>> {
    let mut command = cargo::command(torch);
    command.arg("build");
    if *variant == Variant::Cpu {
        return cargo::build(&mut command, &profile.selection());
    }
    if profile == Profile::Release {
        command.arg("--release");
    }
    for package in packages {
        command.args(["--package", package]);
    }
    // Another libtorch: in the common folder each build would undo the other's.
    command.arg("--target-dir").arg(target_folder().join(variant.suffix().trim_start_matches('-')));
    cargo::build(&mut command, &[])
}

fn target_folder() -> PathBuf {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace.join("target"), PathBuf::from)
}

/// A copy without debug sections: a build for tests is mostly those, and every cluster unpacks the image.
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
