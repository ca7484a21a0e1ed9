//! The programs that a cluster is made of, built from Go modules into the cache.
//!
//! Kubernetes and etcd are one binary (`tests/cluster/kube`), the rest is installed by module version. A tool is built
//! again only when its version, its flags or its source here change.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{
    cache::{self, Stamp},
    error::{Error, IoContext, Result},
    packages, process,
};

const KUBERNETES: &str = "v1.37.2";

/// The folder of built programs.
#[derive(Clone, Debug)]
pub struct Tools {
    bin: PathBuf,
}

impl Tools {
    /// The folder to put on a PATH: kubectl, helm, ctr and the rest.
    pub fn bin(&self) -> &Path {
        &self.bin
    }

    /// One program's path.
    pub fn program(&self, name: &str) -> PathBuf {
        self.bin.join(name)
    }
}

/// Where a tool's source comes from.
enum Source {
    /// A package of `tests/cluster`, and the files in it that the binary is made from.
    Here { package: &'static str, source: &'static str },
    /// Packages of a published module.
    Module { module: &'static str, version: &'static str, packages: &'static [&'static str] },
}

struct Tool {
    name: &'static str,
    source: Source,
    tags: &'static str,
    cgo: bool,
}

const TOOLS: &[Tool] = &[
    Tool { name: "kube", source: Source::Here { package: "./kube", source: "kube/main.go" }, tags: "", cgo: false },
    Tool { name: "pause", source: Source::Here { package: "./pause", source: "pause/main.go" }, tags: "", cgo: false },
    Tool { name: "probe", source: Source::Here { package: "./probe", source: "probe/main.go" }, tags: "", cgo: false },
    Tool {
        name: "containerd",
        source: Source::Module {
            module: "github.com/containerd/containerd/v2",
            version: "v2.4.2",
            packages: &["cmd/containerd", "cmd/containerd-shim-runc-v2", "cmd/ctr"],
        },
        tags: "no_btrfs,no_zfs,no_aufs,no_devmapper",
        cgo: false,
    },
    Tool {
        name: "cni",
        source: Source::Module {
            module: "github.com/containernetworking/plugins",
            version: "v1.9.1",
            packages: &["plugins/main/ptp", "plugins/ipam/host-local"],
        },
        tags: "",
        cgo: false,
    },
    Tool {
        name: "runc",
        source: Source::Module { module: "github.com/opencontainers/runc", version: "v1.5.2", packages: &[""] },
        tags: "seccomp",
        cgo: true,
    },
    Tool {
        name: "coredns",
        source: Source::Module { module: "github.com/coredns/coredns", version: "v1.15.0", packages: &[""] },
        tags: "",
        cgo: false,
    },
    Tool {
        name: "helm",
        source: Source::Module { module: "helm.sh/helm/v4", version: "v4.3.1", packages: &["cmd/helm"] },
        tags: "",
        cgo: false,
    },
];

/// Builds what is missing and returns the folder.
pub fn ensure() -> Result<Tools> {
    let bin = cache::sub("bin")?;
    let _lock = cache::Lock::wait(&bin.join(".lock"))?;
    let module = module_folder();
    for tool in TOOLS {
        let stamp = Stamp::new(&bin, tool.name, tool.fingerprint(&module)?);
        if stamp.is_current() && tool.binaries().iter().all(|name| bin.join(name).is_file()) {
            continue;
        }
        if tool.cgo {
            packages::ensure(packages::RUNC)?;
        }
        if !process::on_path("go") {
            return Err(go_is_missing());
        }
        eprintln!("building {}", tool.name);
        let log = cache::sub("logs")?.join(format!("build-{}.log", tool.name));
        process::logged(&format!("building {}", tool.name), &mut tool.command(&module, &bin)?, &log)?;
        stamp.write()?;
    }
    link_kubectl(&bin)?;
    Ok(Tools { bin })
}

/// Whether [`ensure`] could build what is missing.
pub fn check() -> Result<()> {
    if process::on_path("go") || present()?.program("kube").is_file() { Ok(()) } else { Err(go_is_missing()) }
}

fn go_is_missing() -> Error {
    Error::MissingTool {
        what: "Go 1.21 or newer",
        way_out: "install it from https://go.dev/dl and put its bin folder on the PATH; it fetches the Go 1.26 that \
                  Kubernetes is built with, unless GOTOOLCHAIN=local forbids it: then install that",
    }
}

/// The folder as it is, with nothing built: for what only looks.
pub fn present() -> Result<Tools> {
    Ok(Tools { bin: cache::sub("bin")? })
}

/// `tests/cluster`, which holds the Go module and the templates.
pub fn module_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/cluster")
}

/// kube knows by its name which component it is.
fn link_kubectl(bin: &Path) -> Result<()> {
    let link = bin.join("kubectl");
    if fs::read_link(&link).is_ok_and(|target| target == Path::new("kube")) {
        return Ok(());
    }
    fs::remove_file(&link).ok();
    std::os::unix::fs::symlink("kube", &link).at("link", &link)
}

impl Tool {
    /// What the linker puts into the binary. Without its version a Kubernetes API server calls itself v0.0.0, and Helm
    /// refuses charts that ask for a version.
    fn linker_flags(&self) -> String {
        let mut flags = "-s -w".to_owned();
        if self.name == "kube" {
            let mut parts = KUBERNETES.trim_start_matches('v').split('.');
            let (major, minor) = (parts.next().unwrap_or("0"), parts.next().unwrap_or("0"));
            let values = [
                ("gitVersion", KUBERNETES),
                ("gitMajor", major),
                ("gitMinor", minor),
                ("gitCommit", "consilium"),
                ("gitTreeState", "clean"),
            ];
            for (key, value) in values {
                flags.push_str(&format!(" -X k8s.io/component-base/version.{key}={value}"));
            }
        }
        flags
    }

    fn fingerprint(&self, module: &Path) -> Result<String> {
        let mut parts = vec![self.tags.as_bytes().to_vec(), self.linker_flags().into_bytes(), vec![self.cgo.into()]];
        match &self.source {
            Source::Here { package, source } => {
                parts.push(package.as_bytes().to_vec());
                for file in ["go.mod", "go.sum", source] {
                    let path = module.join(file);
                    parts.push(fs::read(&path).at("read", &path)?);
                }
            }
            Source::Module { module, version, packages } => {
                parts.extend([module, version].map(|part| part.as_bytes().to_vec()));
                parts.extend(packages.iter().map(|package| package.as_bytes().to_vec()));
            }
        }
        Ok(cache::fingerprint(parts.iter().map(Vec::as_slice)))
    }

    /// The names `go` gives to what it builds: the last part of the package's path, or of the module's without `/vN`.
    fn binaries(&self) -> Vec<&'static str> {
        match &self.source {
            Source::Here { .. } => vec![self.name],
            Source::Module { packages, .. } => packages
                .iter()
                .map(|package| package.rsplit('/').next().filter(|name| !name.is_empty()).unwrap_or(self.name))
                .collect(),
        }
    }

    fn command(&self, module_folder: &Path, bin: &Path) -> Result<Command> {
        let mut go = Command::new("go");
        go.env("GOCACHE", cache::sub("go-build")?)
            .env("GOMODCACHE", cache::sub("go-mod")?)
            .env("GOBIN", bin)
            .env("GOFLAGS", "-modcacherw")
            .env("CGO_ENABLED", if self.cgo { "1" } else { "0" });
        let verb = match self.source {
            Source::Here { .. } => "build",
            Source::Module { .. } => "install",
        };
        go.args([verb, "-trimpath", "-ldflags", &self.linker_flags()]);
        if !self.tags.is_empty() {
            go.args(["-tags", self.tags]);
        }
        match &self.source {
            Source::Here { package, .. } => {
                go.current_dir(module_folder).arg("-o").arg(bin.join(self.name)).arg(package);
            }
            Source::Module { module, version, packages } => {
                // Away from any go.mod: the module's own versions count.
                go.current_dir("/").args(packages.iter().map(|package| match *package {
                    "" => format!("{module}@{version}"),
                    package => format!("{module}/{package}@{version}"),
                }));
            }
        }
        Ok(go)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A wrong guess of a binary's name would build Go programs for minutes on every run.
    #[test]
    fn binaries_are_called_as_go_calls_them() {
        let names: Vec<_> = TOOLS.iter().flat_map(Tool::binaries).collect();
        for name in ["kube", "pause", "containerd-shim-runc-v2", "ctr", "ptp", "host-local", "runc", "helm"] {
            assert!(names.contains(&name), "{name} is not among {names:?}");
        }
    }

    /// Helm's `kubeVersion` checks read these.
    #[test]
    fn kube_carries_its_version() {
        let flags = TOOLS[0].linker_flags();
        assert!(flags.contains("version.gitVersion=v1.37.2"), "{flags}");
        assert!(flags.contains("version.gitMinor=37 "), "{flags}");
    }
}
