//! The Debian packages that a step needs: installed when we are root, otherwise named.

use std::{path::Path, process::Command};

use crate::{
    cache,
    error::{Error, Result},
    process,
};

/// How to see that a package is there, and what it is called.
#[derive(Clone, Copy)]
pub struct Need {
    /// A program looked for on the PATH, or a file if it begins with `/`.
    pub probe: &'static str,
    pub package: &'static str,
}

const fn need(probe: &'static str, package: &'static str) -> Need {
    Need { probe, package }
}

/// Network namespaces, their links and their rules. kube-proxy calls `nft` too.
pub const CLUSTER: &[Need] = &[need("ip", "iproute2"), need("nft", "nftables"), need("nsenter", "util-linux")];

/// What ends a bare API server with its parent.
pub const SETPRIV: &[Need] = &[need("setpriv", "util-linux")];

/// runc is C in part, and links libseccomp.
pub const RUNC: &[Need] =
    &[need("gcc", "gcc"), need("pkg-config", "pkg-config"), need("/usr/include/seccomp.h", "libseccomp-dev")];

/// Wheels are fetched by pip and are zip files; tch compiles its C++ shim.
pub const TORCH: &[Need] = &[need("python3", "python3"), need("unzip", "unzip"), need("g++", "g++")];

/// Debian splits these from Python, and other distributions do not: what shows that one is there, and its package.
const PIP: (&[&str], Need) = (&["-m", "pip", "--version"], need("pip", "python3-pip"));
const VENV: (&[&str], Need) = (&["-c", "import ensurepip, venv"], need("venv", "python3-venv"));

/// Sees that everything in `needs` is there.
pub fn ensure(needs: &[Need]) -> Result<()> {
    let missing = missing(needs, is_there);
    if missing.is_empty() {
        return Ok(());
    }
    install(&missing)
}

/// Sees that `python3 -m pip` runs.
pub fn ensure_pip() -> Result<()> {
    ensure(TORCH)?;
    python_part(PIP)
}

/// Sees that `python3 -m venv` makes an environment with pip in it.
pub fn ensure_venv() -> Result<()> {
    ensure_pip()?;
    python_part(VENV)
}

fn python_part((shown_by, part): (&[&str], Need)) -> Result<()> {
    match process::output(Command::new("python3").args(shown_by)) {
        Ok(_) => Ok(()),
        Err(_) => install(&[part]),
    }
}

/// Those of `needs` for which `there` says no.
fn missing(needs: &[Need], there: impl Fn(&str) -> bool) -> Vec<Need> {
    needs.iter().copied().filter(|need| !there(need.probe)).collect()
}

fn is_there(probe: &str) -> bool {
    if probe.starts_with('/') { Path::new(probe).exists() } else { process::on_path(probe) }
}

fn install(missing: &[Need]) -> Result<()> {
    let packages: Vec<&'static str> = missing.iter().map(|need| need.package).collect();
    if !rustix::process::geteuid().is_root() || !process::on_path("apt-get") {
        return Err(Error::MissingPackages { missing: missing.iter().map(|need| need.probe).collect(), packages });
    }
    eprintln!("installing {}", packages.join(" "));
    let log = cache::sub("logs")?.join("apt.log");
    let apt = |args: &[&str]| {
        let mut command = Command::new("apt-get");
        command.env("DEBIAN_FRONTEND", "noninteractive").args(["-q", "-o", "DPkg::Lock::Timeout=120"]).args(args);
        command
    };
    let install = [&["install", "-y", "--no-install-recommends"], packages.as_slice()].concat();
    // A fresh machine has no package lists yet; an older one may have stale ones. One update serves both.
    if process::logged("installing packages", &mut apt(&install), &log).is_ok() {
        return Ok(());
    }
    process::logged("updating package lists", &mut apt(&["update"]), &log)?;
    process::logged("installing packages", &mut apt(&install), &log)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Someone without root must be told every package at once, not one per attempt.
    #[test]
    fn all_that_is_missing_is_named_and_nothing_else() {
        let found = missing(CLUSTER, |probe| probe == "nft");
        let packages: Vec<_> = found.iter().map(|need| need.package).collect();
        assert_eq!(packages, ["iproute2", "util-linux"]);
    }
}
