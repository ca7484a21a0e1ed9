//! The way back to nothing: no process, mount, namespace, control group or file of a cluster is left, whatever state it
//! was in. Nothing here relies on records alone, since what wrote them may have been killed.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use rustix::mount::{UnmountFlags, unmount};

use super::{Paths, RUN, cgroup, config, lock, net, proc};
use crate::{
    cache,
    error::{Error, IoContext, Result},
    process,
};

const LIMIT: Duration = Duration::from_secs(60);

/// Takes down every cluster there is any trace of, and deletes its state.
pub fn down() -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        return Err(Error::NotRoot);
    }
    let _lock = lock()?;
    let hierarchies = cgroup::hierarchies()?;
    let bin = cache::sub("bin")?;
    for cluster in traces(&hierarchies)? {
        let paths = Paths::of(&cluster)?;
        halt(&cluster, &paths, &bin, &hierarchies)?;
        remove_folder(&paths.state)?;
    }
    for netns in net::existing() {
        net::delete(&netns)?;
    }
    forget_netns_folder();
    forget_device_plugins();
    forget_log_links()?;
    remove_if_empty(&[Path::new(RUN)]);
    Ok(())
}

/// Ends a cluster and everything of it that is not on disk: processes, mounts, control groups, its namespace with links
/// and rules, and its folder under /run. Its state is kept.
pub(super) fn halt(cluster: &str, paths: &Paths, bin: &Path, hierarchies: &cgroup::Hierarchies) -> Result<()> {
    let search = proc::Search { cluster, paths, bin, hierarchies };
    search.kill_all(LIMIT)?;
    unmount_all(paths)?;
    cgroup::remove(hierarchies, cluster, LIMIT)?;
    net::delete(net::Netns::of(cluster).name())?;
    forget_pods(cluster)?;
    remove_folder(&paths.run)
}

/// libcni keeps what it told a pod in one folder for all networks, which containerd cannot move.
fn forget_pods(cluster: &str) -> Result<()> {
    let folder = Path::new("/var/lib/cni/results");
    let prefix = format!("{}-", config::network(cluster));
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(&prefix) {
            fs::remove_file(entry.path()).at("remove", entry.path())?;
        }
    }
    remove_if_empty(&[folder, Path::new("/var/lib/cni")]);
    Ok(())
}

/// Every kubelet of a machine uses one socket for device plugins. If nobody answers there, ours was the last.
fn forget_device_plugins() {
    let folder = Path::new("/var/lib/kubelet/device-plugins");
    let socket = folder.join("kubelet.sock");
    if socket.exists() && UnixStream::connect(&socket).is_err() {
        fs::remove_file(&socket).ok();
    }
    remove_if_empty(&[folder, Path::new("/var/lib/kubelet")]);
}

/// A kubelet links every container's log into one folder, whatever it is told about logs. With a cluster's state its links
/// lead nowhere.
fn forget_log_links() -> Result<()> {
    let (folder, state) = (Path::new("/var/log/containers"), cache::root()?.join("state"));
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if fs::read_link(entry.path()).is_ok_and(|target| target.starts_with(&state)) {
            fs::remove_file(entry.path()).at("remove", entry.path())?;
        }
    }
    remove_if_empty(&[folder]);
    Ok(())
}

/// Removing a folder that holds something fails, which is as it should be: it is not ours alone.
fn remove_if_empty(folders: &[&Path]) {
    folders.iter().for_each(|folder| drop(fs::remove_dir(folder)));
}

/// Names of all clusters that left anything anywhere.
fn traces(hierarchies: &cgroup::Hierarchies) -> Result<BTreeSet<String>> {
    let mut names: BTreeSet<String> = cgroup::clusters(hierarchies).into_iter().collect();
    for folder in [cache::root()?.join("state"), PathBuf::from(RUN)] {
        let entries = fs::read_dir(folder).into_iter().flatten().flatten().filter(|entry| entry.path().is_dir());
        names.extend(entries.map(|entry| entry.file_name().to_string_lossy().into_owned()));
    }
    let spaces = net::existing();
    names.extend(
        spaces
            .iter()
            .filter_map(|name| name.strip_prefix(net::PREFIX))
            .filter(|name| *name != "wan")
            .map(str::to_owned),
    );
    Ok(names)
}

/// Mounts may be stacked; what is found is taken off until nothing is.
fn unmount_all(paths: &Paths) -> Result<()> {
    loop {
        let mountinfo = fs::read_to_string("/proc/self/mountinfo").at("read", "/proc/self/mountinfo")?;
        let mounts = proc::mounts_below(&mountinfo, &[&paths.state, &paths.run]);
        if mounts.is_empty() {
            return Ok(());
        }
        for mount in mounts {
            unmount(&mount, UnmountFlags::DETACH).map_err(std::io::Error::from).at("unmount", &mount)?;
        }
    }
}

/// `ip netns` mounts its folder upon itself when it makes the first namespace; with the last one gone it is as before.
fn forget_netns_folder() {
    let folder = Path::new(net::NETNS_FOLDER);
    if fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_none()) {
        unmount(folder, UnmountFlags::DETACH).ok();
        fs::remove_dir(folder).ok();
    }
}

fn remove_folder(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        // A pod may have set a file immutable or left something odd; rm says what it is.
        Err(_) => process::output(Command::new("rm").arg("-rf").arg(path)).map(drop),
    }
}
