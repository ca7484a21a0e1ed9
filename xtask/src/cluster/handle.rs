//! A running cluster, and what can be asked of it.

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fs,
    net::Ipv4Addr,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::Value;

use super::{Counter, Paths, Site, component, firewall, net::Netns};
use crate::{
    cache,
    error::{IoContext, Result},
    process,
};

/// A cluster that runs. Programs are run inside its network namespace, with kubectl and helm on the PATH and KUBECONFIG
/// set.
#[derive(Clone, Debug)]
pub struct Cluster {
    /// Its name, its node's and, with `cons-` before it, its namespace's.
    pub name: String,
    /// Its node's address.
    pub ip: Ipv4Addr,
    /// The administrator's kubeconfig; its address answers inside the namespace only.
    pub kubeconfig: PathBuf,
    /// Name of its network namespace.
    pub netns: String,
    /// Its state folder.
    pub state: PathBuf,
    /// The folder of its components' logs.
    pub logs: PathBuf,
    pub(super) containerd_socket: PathBuf,
    bin: PathBuf,
}

impl Cluster {
    pub(super) fn new(site: &Site, bin: &Path) -> Result<Self> {
        let paths = Paths::of(&site.name)?;
        Ok(Self {
            name: site.name.clone(),
            ip: site.ip,
            kubeconfig: paths.kubeconfig("admin"),
            netns: Netns::of(&site.name).name().to_owned(),
            containerd_socket: paths.containerd_socket(),
            state: paths.state,
            logs: paths.logs,
            bin: bin.to_owned(),
        })
    }

    /// A program to be run inside the cluster's network.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Netns::of(&self.name).command(program);
        command.env("KUBECONFIG", &self.kubeconfig).env("PATH", component::prepend_path(&self.bin));
        // What kubectl and helm remember belongs to this cluster, and goes with it.
        command.env("KUBECACHEDIR", self.state.join("kubectl"));
        for kind in ["CACHE", "CONFIG", "DATA"] {
            command.env(format!("HELM_{kind}_HOME"), self.state.join("helm").join(kind.to_lowercase()));
        }
        command
    }

    /// Runs a program and its arguments; its standard output, or an error with its standard error.
    pub fn exec<S: AsRef<OsStr>>(&self, argv: &[S]) -> Result<String> {
        let (program, arguments) = match argv {
            [program, arguments @ ..] => (program.as_ref(), arguments),
            [] => (OsStr::new("true"), argv),
        };
        process::output(self.command(program).args(arguments))
    }

    /// Runs kubectl.
    pub fn kubectl<S: AsRef<OsStr>>(&self, args: &[S]) -> Result<String> {
        process::output(self.command("kubectl").args(args))
    }

    /// Runs kubectl with something on its standard input.
    pub fn kubectl_stdin<S: AsRef<OsStr>>(&self, args: &[S], input: &str) -> Result<String> {
        process::output_with_input(self.command("kubectl").args(args), input.as_bytes())
    }

    /// Applies objects on the server's side under the field manager `xtask`.
    pub fn apply(&self, objects: &[Value]) -> Result<()> {
        let list = serde_json::json!({"apiVersion": "v1", "kind": "List", "items": objects});
        self.apply_yaml(&list.to_string())
    }

    /// As [`Cluster::apply`], from YAML or JSON text.
    pub fn apply_yaml(&self, text: &str) -> Result<()> {
        let args = ["apply", "--server-side", "--force-conflicts", "--field-manager", "xtask", "-f", "-"];
        self.kubectl_stdin(&args, text).map(drop)
    }

    /// Runs helm.
    pub fn helm<S: AsRef<OsStr>>(&self, args: &[S]) -> Result<String> {
        process::output(self.command("helm").args(args))
    }

    /// Runs containerd's client in the Kubernetes namespace.
    pub fn ctr(&self) -> Command {
        let mut command = self.command("ctr");
        command.arg("--address").arg(&self.containerd_socket).args(["--namespace", "k8s.io"]);
        command
    }

    /// What the firewall has counted, by counter name.
    pub fn counters(&self) -> Result<BTreeMap<String, Counter>> {
        firewall::counters(self.command("nft"))
    }

    /// A folder for a volume, writable by any user of a pod; made if it is not there.
    pub fn volume(&self, name: &str) -> Result<PathBuf> {
        let folder = cache::folder(self.state.join("volumes").join(name))?;
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o777)).at("set permissions of", &folder)?;
        Ok(folder)
    }
}
