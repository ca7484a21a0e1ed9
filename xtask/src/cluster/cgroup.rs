//! Control groups: every process of a cluster, its pods' too, is in one group, so that `down` finds them all whatever
//! became of whoever started them.
//!
//! There are two groups in fact: components are started in one that lies below the caller's own (with version 1), so that
//! limits set on the caller hold; the kubelet wants one by the same path in every hierarchy, and makes its pods' in that.

use std::{
    fs, io,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use crate::error::{IoContext, Result};

/// Name of the group that holds all clusters.
const GROUP: &str = "consilium";

/// Where our group may be made in each hierarchy that there is.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Hierarchies {
    /// Folders in which `consilium/` is made.
    parents: Vec<PathBuf>,
    /// Mount points of the hierarchies in which a group is made for the kubelet.
    mounts: Vec<PathBuf>,
    /// Mount points of all hierarchies: what an earlier run, or the kubelet, made is looked for there.
    all: Vec<PathBuf>,
}

/// Reads where this machine keeps its groups.
pub(super) fn hierarchies() -> Result<Hierarchies> {
    let read = |path: &str| fs::read_to_string(path).at("read", path);
    Ok(parse(&read("/proc/self/mountinfo")?, &read("/proc/self/cgroup")?))
}

/// With version 2 our group stands at the root, since a group that holds processes (a login session's) cannot hand
/// controllers on. With version 1 it stands below the caller's group in each hierarchy, so that limits set on us hold.
fn parse(mountinfo: &str, own: &str) -> Hierarchies {
    let mounts: Vec<Mount> = mountinfo.lines().filter_map(Mount::parse).collect();
    let of_kind = |kind: &'static str| mounts.iter().filter(move |mount| mount.kind == kind);
    let all = mounts.iter().filter(|mount| mount.kind.starts_with("cgroup")).map(|mount| mount.path.clone()).collect();
    if let Some(Mount { path, .. }) = of_kind("cgroup2").find(|mount| mount.path == Path::new("/sys/fs/cgroup")) {
        return Hierarchies { parents: vec![path.clone()], mounts: vec![path.clone()], all };
    }
    let parents = of_kind("cgroup").map(|mount| mount.path.join(own_group(own, mount))).collect();
    Hierarchies { parents, mounts: of_kind("cgroup").map(|mount| mount.path.clone()).collect(), all }
}

/// What a line of mountinfo says.
struct Mount<'a> {
    /// The group that is seen at the mount point: not `/` in a container.
    root: &'a Path,
    path: PathBuf,
    kind: &'a str,
    /// The controllers, for version 1.
    options: &'a str,
}

impl<'a> Mount<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let (before, after) = line.split_once(" - ")?;
        let (mut before, mut after) = (before.split(' ').skip(3), after.split(' '));
        let (root, path) = (Path::new(before.next()?), before.next()?.into());
        Some(Self { root, path, kind: after.next()?, options: after.nth(1)? })
    }
}

/// The group of this process in a version 1 hierarchy, relative to its mount point.
fn own_group<'a>(own: &'a str, mount: &Mount) -> &'a Path {
    let here = own.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let controllers = fields.next()?;
        let known = controllers.split(',').all(|name| mount.options.split(',').any(|option| option == name));
        (known && !controllers.is_empty()).then(|| fields.next()).flatten()
    });
    // The group of an earlier `up` is not ours to nest in.
    let here = here.unwrap_or("/");
    let here = Path::new(here.split_once("/consilium/").map_or(here, |(above, _)| above));
    // If the mount does not show the group, the top of what it shows must do.
    here.strip_prefix(mount.root).unwrap_or(Path::new(""))
}

/// Makes the group of a cluster's own components in each hierarchy and returns the files to write a process id to.
pub(super) fn create(hierarchies: &Hierarchies, cluster: &str) -> Result<Vec<PathBuf>> {
    let mut joins = Vec::new();
    for parent in &hierarchies.parents {
        let mut folder = parent.clone();
        for part in [GROUP, cluster, "system"] {
            folder.push(part);
            fs::create_dir_all(&folder).at("make cgroup", &folder)?;
            inherit_cpuset(&folder)?;
        }
        joins.push(folder.join("cgroup.procs"));
    }
    for mount in &hierarchies.mounts {
        let top = mount.join(GROUP);
        for folder in [top.clone(), top.join(cluster)] {
            fs::create_dir_all(&folder).at("make cgroup", &folder)?;
            inherit_cpuset(&folder)?;
        }
        hand_on_controllers(mount, &[mount.clone(), top.clone(), top.join(cluster)])?;
    }
    Ok(joins)
}

/// The kubelet's `cgroupRoot`.
pub(super) fn kubelet_root(cluster: &str) -> String {
    format!("/{GROUP}/{cluster}")
}

/// With version 2 a group's children have those controllers only that it hands on.
fn hand_on_controllers(mount: &Path, folders: &[PathBuf]) -> Result<()> {
    let Ok(controllers) = fs::read_to_string(mount.join("cgroup.controllers")) else { return Ok(()) };
    let all: Vec<String> = controllers.split_whitespace().map(|name| format!("+{name}")).collect();
    for folder in folders {
        let file = folder.join("cgroup.subtree_control");
        let mut handed_on = fs::write(&file, all.join(" "));
        // Only the machine's own root may hold processes and hand controllers on. What a container takes for the root
        // is not that one, so what runs in it goes to a group beside ours.
        if handed_on.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::ResourceBusy) && folder == mount {
            move_aside(mount)?;
            handed_on = fs::write(&file, all.join(" "));
        }
        handed_on.at("hand controllers on in", &file)?;
    }
    Ok(())
}

/// Moves the processes of a group into a child of it.
fn move_aside(group: &Path) -> Result<()> {
    let aside = group.join("init");
    fs::create_dir_all(&aside).at("make cgroup", &aside)?;
    for process in processes(&[group.to_owned()]) {
        // One that has ended since, or a thread of the kernel, cannot be moved, and is not in the way either.
        fs::write(aside.join("cgroup.procs"), process.to_string()).ok();
    }
    Ok(())
}

/// A new cpuset of version 1 is empty, and takes no process before it has processors and memory.
fn inherit_cpuset(folder: &Path) -> Result<()> {
    for name in ["cpuset.cpus", "cpuset.mems"] {
        let (file, parent) = (folder.join(name), folder.join("..").join(name));
        let is_v2 = folder.join("cgroup.controllers").exists();
        if is_v2 || !file.exists() || !fs::read_to_string(&file).at("read", &file)?.trim().is_empty() {
            continue;
        }
        let value = fs::read_to_string(&parent).at("read", &parent)?;
        fs::write(&file, value.trim()).at("write", &file)?;
    }
    Ok(())
}

/// All groups of a cluster, wherever an earlier run made them, deepest first.
pub(super) fn groups(hierarchies: &Hierarchies, cluster: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for root in tops(hierarchies) {
        descend(&root.join(cluster), &mut found);
    }
    found.sort_by_key(|path| std::cmp::Reverse(path.components().count()));
    found
}

/// The clusters that have a group.
pub(super) fn clusters(hierarchies: &Hierarchies) -> Vec<String> {
    let tops = tops(hierarchies);
    let children = tops.iter().flat_map(|top| fs::read_dir(top).into_iter().flatten().flatten());
    let folders = children.filter(|entry| entry.path().is_dir());
    folders.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

/// The processes in the groups.
pub(super) fn processes(groups: &[PathBuf]) -> Vec<u32> {
    let lists = groups.iter().filter_map(|group| fs::read_to_string(group.join("cgroup.procs")).ok());
    lists.flat_map(|list| list.lines().filter_map(|pid| pid.parse().ok()).collect::<Vec<u32>>()).collect()
}

/// Removes the groups of a cluster, and the common one when it was the last. Its processes have been killed, but the
/// kernel may need a moment to take the last of them out.
pub(super) fn remove(hierarchies: &Hierarchies, cluster: &str, patience: Duration) -> Result<()> {
    let begin = Instant::now();
    for group in groups(hierarchies, cluster) {
        while let Err(error) = fs::remove_dir(&group) {
            match error.kind() {
                io::ErrorKind::NotFound => break,
                io::ErrorKind::ResourceBusy if begin.elapsed() < patience => thread::sleep(Duration::from_millis(10)),
                _ => return Err(error).at("remove cgroup", &group),
            }
        }
    }
    for top in tops(hierarchies) {
        // Fails while another cluster is in it, which is as it should be.
        fs::remove_dir(top).ok();
    }
    Ok(())
}

/// Our common groups: at the places for new ones and wherever else one is found near the top of a hierarchy.
fn tops(hierarchies: &Hierarchies) -> Vec<PathBuf> {
    let mut tops: Vec<PathBuf> = hierarchies.parents.iter().map(|parent| parent.join(GROUP)).collect();
    for mount in &hierarchies.all {
        find(mount, 4, &mut tops);
    }
    tops.sort();
    tops.dedup();
    tops.retain(|top| top.is_dir());
    tops
}

fn find(folder: &Path, depth: usize, found: &mut Vec<PathBuf>) {
    for child in
        fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).filter(|path| path.is_dir())
    {
        if child.file_name().is_some_and(|name| name == GROUP) {
            found.push(child);
        } else if depth > 1 {
            find(&child, depth - 1, found);
        }
    }
}

fn descend(folder: &Path, found: &mut Vec<PathBuf>) {
    if !folder.is_dir() {
        return;
    }
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        descend(&entry.path(), found);
    }
    found.push(folder.to_owned());
}

#[cfg(test)]
mod tests {
    use super::*;

    const V1: &str = "\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
";

    /// A limit that someone set on this shell must hold for the clusters it starts.
    #[test]
    fn version_1_nests_below_the_callers_group() {
        let own = "9:name=systemd:/user\n4:memory:/session/a\n1:cpu,cpuacct:/\n0::/\n";
        let found = parse(V1, own);
        let expected =
            ["/sys/fs/cgroup/cpu,cpuacct/", "/sys/fs/cgroup/memory/session/a", "/sys/fs/cgroup/systemd/user"];
        assert_eq!(found.parents, expected.map(PathBuf::from));
    }

    /// `up` called from a pod's or a component's group would otherwise nest deeper each time, and never be found again.
    #[test]
    fn version_1_does_not_nest_in_a_cluster() {
        let found = parse(V1, "4:memory:/session/a/consilium/alder/system\n1:cpu,cpuacct:/consilium/hub/system\n");
        assert_eq!(found.parents[0], Path::new("/sys/fs/cgroup/cpu,cpuacct"));
        assert_eq!(found.parents[1], Path::new("/sys/fs/cgroup/memory/session/a"));
    }

    /// A container sees its own group at the mount point; its name from outside leads nowhere in there.
    #[test]
    fn version_1_in_a_container_nests_below_what_is_mounted() {
        let mounts = "35 31 0:32 /docker/abc /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n";
        let parents = |own| parse(mounts, own).parents;
        assert_eq!(parents("4:memory:/docker/abc/job\n"), [PathBuf::from("/sys/fs/cgroup/memory/job")]);
        assert_eq!(parents("4:memory:/docker/abc\n"), [PathBuf::from("/sys/fs/cgroup/memory/")]);
    }

    /// On a systemd machine the caller's own scope holds processes and could not hand controllers to containers.
    #[test]
    fn version_2_stands_at_the_root() {
        let mounts = "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n";
        let found = parse(mounts, "0::/user.slice/user-0.slice/session-1.scope\n");
        assert_eq!(found.parents, [PathBuf::from("/sys/fs/cgroup")]);
    }

    /// A container's group left behind makes its parent impossible to remove.
    #[test]
    fn groups_are_listed_deepest_first_wherever_they_are() {
        let root = tempfile::tempdir().unwrap();
        let container = root.path().join("session/consilium/alder/system/abc");
        fs::create_dir_all(&container).unwrap();
        let hierarchies = Hierarchies { parents: vec![], mounts: vec![], all: vec![root.path().to_owned()] };
        assert_eq!(clusters(&hierarchies), ["alder"]);
        let found = groups(&hierarchies, "alder");
        assert_eq!((found.len(), &found[0]), (3, &container));
    }
}
