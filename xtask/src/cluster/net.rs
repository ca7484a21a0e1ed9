//! Network namespaces: one per cluster, joined by a bridge that stands in one of its own, so that nothing of it touches
//! the machine's own network.

use std::{
    net::Ipv4Addr,
    path::{Path, PathBuf},
    process::Command,
};

use super::POD_SUBNETS;
use crate::{error::Result, process};

/// Where `ip netns` keeps its namespaces.
pub(super) const NETNS_FOLDER: &str = "/run/netns";

/// Every namespace of ours begins with this.
pub(super) const PREFIX: &str = "cons-";

const WAN: &str = "cons-wan";

/// Address of the wide-area bridge; the clusters' addresses lie in its /24.
const WAN_ADDRESS: &str = "172.31.77.254";

/// A network namespace by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Netns {
    name: String,
}

impl Netns {
    /// The namespace of a cluster.
    pub(super) fn of(cluster: &str) -> Self {
        Self { name: format!("{PREFIX}{cluster}") }
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn path(&self) -> PathBuf {
        Path::new(NETNS_FOLDER).join(&self.name)
    }

    /// A command that will run inside the namespace, and otherwise as outside: `ip netns exec` would remount /sys and
    /// hide the cgroups from a kubelet.
    pub(super) fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.path().display())).arg("--").arg(program);
        command
    }

    fn exists(&self) -> bool {
        // A file is left where a mount was lost; a namespace is only there if it can be entered.
        self.path().exists() && process::output(self.command("true").args::<_, &str>([])).is_ok()
    }
}

/// Whether a cluster's namespace is there and joined to the others'.
pub(super) fn is_joined(cluster: &str) -> bool {
    let netns = Netns::of(cluster);
    netns.exists() && process::output(netns.command("ip").args(["link", "show", "e0"])).is_ok()
}

/// Makes the namespace that joins the others.
pub(super) fn ensure_wan() -> Result<()> {
    let wan = Netns { name: WAN.to_owned() };
    let bridged = || process::output(wan.command("ip").args(["-br", "addr", "show", "br0"]));
    if wan.exists() && bridged().is_ok_and(|bridge| bridge.contains(WAN_ADDRESS)) {
        return Ok(());
    }
    if !wan.exists() {
        std::fs::remove_file(wan.path()).ok();
        ip(&["netns", "add", WAN])?;
    }
    process::output(wan.command("ip").args(["link", "del", "br0"])).ok();
    ip(&["-n", WAN, "link", "set", "lo", "up"])?;
    ip(&["-n", WAN, "link", "add", "br0", "type", "bridge"])?;
    ip(&["-n", WAN, "addr", "add", &format!("{WAN_ADDRESS}/24"), "dev", "br0"])?;
    ip(&["-n", WAN, "link", "set", "br0", "up"])
}

/// Makes a cluster's namespace with its uplink `e0`; to be called when it is not there or not complete.
pub(super) fn create(cluster: &str, address: Ipv4Addr) -> Result<Netns> {
    let netns = Netns::of(cluster);
    let (name, uplink) = (netns.name(), format!("v-{cluster}"));
    std::fs::remove_file(netns.path()).ok();
    process::output(Command::new("ip").args(["-n", WAN, "link", "del", &uplink])).ok();
    ip(&["netns", "add", name])?;
    ip(&["-n", name, "link", "set", "lo", "up"])?;
    for setting in ["net/ipv4/ip_forward=1", "net/ipv6/conf/all/disable_ipv6=1", "net/ipv6/conf/default/disable_ipv6=1"]
    {
        let write = r#"[ ! -e "/proc/sys/${1%=*}" ] || echo "${1#*=}" > "/proc/sys/${1%=*}""#;
        process::output(netns.command("sh").args(["-c", write, "sh", setting]))?;
    }
    ip(&["-n", WAN, "link", "add", &uplink, "type", "veth", "peer", "name", "e0", "netns", name])?;
    ip(&["-n", WAN, "link", "set", &uplink, "master", "br0", "up"])?;
    ip(&["-n", name, "addr", "add", &format!("{address}/24"), "dev", "e0"])?;
    ip(&["-n", name, "link", "set", "e0", "up"])?;
    // Components look for the default route's address; and what asks for an address outside is refused by a rule that
    // counts, not by a missing route.
    ip(&["-n", name, "route", "add", "default", "via", WAN_ADDRESS])?;
    Ok(netns)
}

/// An address of a pod that is gone leads nowhere, and never out by the default route.
pub(super) fn ensure_routes(cluster: &str) -> Result<()> {
    let netns = Netns::of(cluster);
    ip(&["-n", netns.name(), "route", "replace", "unreachable", POD_SUBNETS])
}

/// Takes a namespace away, and with it its links and rules. Quiet when it is not there.
pub(super) fn delete(name: &str) -> Result<()> {
    if !Path::new(NETNS_FOLDER).join(name).exists() {
        return Ok(());
    }
    ip(&["netns", "delete", name])
}

/// The namespaces of ours that there are, the wide-area one too.
pub(super) fn existing() -> Vec<String> {
    let entries = std::fs::read_dir(NETNS_FOLDER).into_iter().flatten().flatten();
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.filter(|name| name.starts_with(PREFIX)).collect()
}

fn ip(args: &[&str]) -> Result<()> {
    process::output(Command::new("ip").args(args)).map(drop)
}
