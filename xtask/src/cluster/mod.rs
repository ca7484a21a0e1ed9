//! Real Kubernetes clusters on this machine: one hub and any number of hospitals, each with its own control plane, node,
//! network namespace and firewall. `docs/guides/clusters.md` tells what is where.
//!
//! Everything of a cluster is found again by its name: state in the cache folder, what a restart of the machine may lose
//! in `/run/consilium`, its namespace, its control group.

pub mod cli;
pub mod storage;

mod cgroup;
mod component;
mod config;
mod down;
mod firewall;
mod handle;
mod net;
mod node;
mod pki;
mod proc;
mod start;

use std::{
    fs,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    thread,
};

use serde::{Deserialize, Serialize};

pub use down::down;
pub use firewall::Counter;
pub use handle::Cluster;

use crate::{
    cache,
    error::{Error, IoContext, Result},
    images, packages, tools,
};

/// The hub's name and its node's.
pub const HUB_NAME: &str = "hub";
/// The hub's address, in the clusters' common network.
pub const HUB: Ipv4Addr = Ipv4Addr::new(172, 31, 77, 1);
/// NodePort of the gateway: the only port that a hospital's agent can reach outside.
pub const GATEWAY_PORT: u16 = 30443;
/// Address of the Service that task pods can reach, and they reach no other.
pub const TASK_SERVICE: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 50);
/// Port of that Service.
pub const TASK_PORT: u16 = 8444;

const SERVICES: &str = "10.96.0.0/16";
const API_SERVICE: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 1);
const DNS: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);
/// All pods of a cluster: ordinary ones in the first /24, tasks in the second, the agent in the third (`consilium-cni`).
const POD_SUBNETS: &str = "10.88.0.0/22";
const TASK_SUBNET: &str = "10.88.1.0/24";
const AGENT_SUBNET: &str = "10.88.2.0/24";

/// Which clusters there shall be, beside the hub.
#[derive(Clone, Debug)]
pub struct Spec {
    /// Names of the hospitals' clusters.
    pub hospitals: Vec<String>,
}

impl Default for Spec {
    fn default() -> Self {
        Self { hospitals: ["alder", "birch", "cedar", "damson"].map(str::to_owned).to_vec() }
    }
}

/// What kind of cluster it is: it decides the firewall and the node's labels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Role {
    /// Where studies are kept and updates summed.
    Hub,
    /// Where scans are.
    Hospital,
}

/// What a cluster is, kept in its state folder for the next run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Site {
    name: String,
    ip: Ipv4Addr,
    role: Role,
}

/// The folders of one cluster.
#[derive(Clone, Debug)]
struct Paths {
    /// What outlives a restart of the machine.
    state: PathBuf,
    /// Logs of components. They outlive the cluster, since whoever is told to read one does so when it is down.
    logs: PathBuf,
    /// Sockets, records of processes, containers.
    run: PathBuf,
}

const RUN: &str = "/run/consilium";

impl Paths {
    fn of(cluster: &str) -> Result<Self> {
        let cache = cache::root()?;
        let (state, logs) = (cache.join("state").join(cluster), cache.join("logs").join(cluster));
        Ok(Self { state, logs, run: Path::new(RUN).join(cluster) })
    }

    fn pki(&self) -> PathBuf {
        self.state.join("pki")
    }

    fn log(&self, component: &str) -> PathBuf {
        self.logs.join(format!("{component}.log"))
    }

    fn kubeconfig(&self, user: &str) -> PathBuf {
        self.state.join(format!("{user}.kubeconfig"))
    }

    fn containerd_socket(&self) -> PathBuf {
        self.run.join("containerd.sock")
    }

    fn site(&self) -> PathBuf {
        self.state.join("cluster.json")
    }
}

/// Ends every process that this one has started, directly or not. The clusters themselves are nobody's children.
pub fn end_what_we_started() {
    proc::end_descendants(std::process::id());
}

/// Starts what is not running, all clusters at once, and returns when every node is ready and every name resolves. The
/// hub comes first in the answer, then the hospitals in the order asked for.
pub fn up(spec: &Spec) -> Result<Vec<Cluster>> {
    if !rustix::process::geteuid().is_root() {
        return Err(Error::NotRoot);
    }
    packages::ensure(packages::CLUSTER)?;
    let tools = tools::ensure()?;
    let images = images::system(&tools)?;
    let _lock = lock()?;
    let sites = plan(&spec.hospitals, &recorded()?)?;
    raise_watch_limit();
    net::ensure_wan()?;
    let hierarchies = cgroup::hierarchies()?;
    // One at a time, since a namespace's folder is shared; it takes milliseconds.
    for site in &sites {
        start::prepare(site, &tools, &hierarchies)?;
    }
    thread::scope(|scope| {
        let starting: Vec<_> =
            sites.iter().map(|site| scope.spawn(|| start::start(site, &tools, &images, &hierarchies))).collect();
        starting.into_iter().map(join).collect()
    })
}

/// Whether clusters of these names could be started here.
pub fn check(hospitals: &[String]) -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        return Err(Error::NotRoot);
    }
    tools::check()?;
    plan(hospitals, &[]).map(drop)
}

/// A cluster that is up.
pub fn open(name: &str) -> Result<Cluster> {
    let site = recorded()?.into_iter().find(|site| site.name == name && net::is_joined(&site.name));
    let site = site.ok_or_else(|| Error::NotUp { name: name.to_owned() })?;
    Cluster::new(&site, &cache::sub("bin")?)
}

/// All clusters that have a network, the hub first.
pub fn running() -> Result<Vec<Cluster>> {
    let bin = cache::sub("bin")?;
    recorded()?.iter().filter(|site| net::is_joined(&site.name)).map(|site| Cluster::new(site, &bin)).collect()
}

/// A program to be run in the network that lies between the clusters: outside of all of them, and behind no wall.
pub fn outside(program: impl AsRef<std::ffi::OsStr>) -> std::process::Command {
    net::Netns::of("wan").command(program)
}

/// The result of a thread; its panic is ours.
pub(crate) fn join<T>(thread: thread::ScopedJoinHandle<'_, T>) -> T {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

fn lock() -> Result<cache::Lock> {
    cache::Lock::take(&cache::sub("state")?.join(".lock"))
}

/// The clusters that have state, by name.
fn recorded() -> Result<Vec<Site>> {
    let folder = cache::sub("state")?;
    let mut sites = Vec::new();
    for entry in fs::read_dir(&folder).at("list", &folder)? {
        let file = entry.at("list", &folder)?.path().join("cluster.json");
        let Ok(json) = fs::read(&file) else { continue };
        let site = serde_json::from_slice(&json)
            .map_err(|error| Error::Malformed { path: file, problem: error.to_string() })?;
        sites.push(site);
    }
    sites.sort_by_key(|site: &Site| site.ip);
    Ok(sites)
}

/// What to start: names are checked, and a cluster keeps the address it had.
fn plan(hospitals: &[String], recorded: &[Site]) -> Result<Vec<Site>> {
    let mut sites = vec![Site { name: HUB_NAME.to_owned(), ip: HUB, role: Role::Hub }];
    for name in hospitals {
        let refuse = |rule| Err(Error::ClusterName { name: name.clone(), rule });
        if !is_name(name) {
            return refuse(
                "use 1 to 10 lower-case letters and digits, a letter first (it becomes part of a link's name)",
            );
        }
        if matches!(name.as_str(), HUB_NAME | "wan") {
            return refuse("`hub` and `wan` are taken; name the hospital otherwise");
        }
        if sites.iter().any(|site| site.name == *name) {
            return refuse("it is there twice; name each hospital once");
        }
        let known = recorded.iter().find(|site| site.name == *name).map(|site| site.ip);
        let is_free = |ip: &Ipv4Addr| sites.iter().chain(recorded).all(|site| site.ip != *ip);
        let ip = known.or_else(|| (2..250).map(|host| Ipv4Addr::new(172, 31, 77, host)).find(is_free));
        let Some(ip) = ip else { return refuse("there are 248 hospitals already; `cargo xtask cluster down` first") };
        sites.push(Site { name: name.clone(), ip, role: Role::Hospital });
    }
    Ok(sites)
}

fn is_name(name: &str) -> bool {
    let mut letters = name.bytes();
    (1..=10).contains(&name.len())
        && letters.next().is_some_and(|first| first.is_ascii_lowercase())
        && letters.all(|letter| letter.is_ascii_lowercase() || letter.is_ascii_digit())
}

/// Each component watches files; the kernel's default of 128 watchers per user does not serve several clusters. What
/// cannot be raised shows in the component's log.
fn raise_watch_limit() {
    let file = "/proc/sys/fs/inotify/max_user_instances";
    let limit: u32 = fs::read_to_string(file).ok().and_then(|limit| limit.trim().parse().ok()).unwrap_or(u32::MAX);
    if limit < 1024 {
        fs::write(file, "1024").ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    /// Certificates carry the address: a cluster that came back with another one would be unusable.
    #[test]
    fn a_cluster_keeps_its_address() {
        let first = plan(&names(&["alder", "birch"]), &[]).unwrap();
        let second = plan(&names(&["cedar", "birch"]), &first).unwrap();
        assert_eq!(second[2], first[2]);
        assert_eq!(second[1].ip, Ipv4Addr::new(172, 31, 77, 4), "a new one takes what is free");
    }

    /// Interface names hold 15 bytes, and shells, paths and patterns see these names too.
    #[test]
    fn names_that_cannot_work_are_refused_with_the_rule() {
        for name in ["", "Alder", "2nd", "st-thomas", "averylongname", "hub", "wan"] {
            let error = plan(&names(&[name]), &[]).unwrap_err().to_string();
            assert!(error.contains(&format!("`{name}`")), "{error}");
        }
        assert!(plan(&names(&["alder", "alder"]), &[]).is_err());
    }
}
