//! Processes by what /proc says of them: recorded ones by id and start time, forgotten ones by their group, namespace,
//! or a program of ours that was told to work on a cluster's folders.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal};
use serde::{Deserialize, Serialize};

use super::{Paths, cgroup, net::Netns};
use crate::error::{Error, Result};

/// A process that cannot be mistaken for a later one with the same number.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Identity {
    pid: u32,
    /// Clock ticks between boot and the process's start (proc(5), field 22).
    start: u64,
    boot: String,
}

impl Identity {
    /// The identity of a process that runs now.
    pub(super) fn of(pid: u32) -> Option<Self> {
        Some(Self { pid, start: start_time(pid)?, boot: boot()? })
    }

    pub(super) fn pid(&self) -> u32 {
        self.pid
    }

    /// Whether this very process still runs.
    pub(super) fn is_alive(&self) -> bool {
        Self::of(self.pid).as_ref() == Some(self)
    }
}

fn boot() -> Option<String> {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").ok().map(|id| id.trim().to_owned())
}

/// Start time of a process that is not a zombie: a zombie holds nothing and cannot be ended any further.
fn start_time(pid: u32) -> Option<u64> {
    parse_stat(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

fn parse_stat(stat: &str) -> Option<u64> {
    // The name in parentheses may hold anything, spaces and parentheses too.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?;
    (!matches!(state, "Z" | "X")).then(|| fields.nth(18)?.parse().ok()).flatten()
}

/// Where a cluster's processes are looked for.
pub(super) struct Search<'a> {
    pub(super) cluster: &'a str,
    pub(super) paths: &'a Paths,
    pub(super) bin: &'a Path,
    pub(super) hierarchies: &'a cgroup::Hierarchies,
}

impl Search<'_> {
    /// Every process of the cluster, never this one or what it was started by.
    pub(super) fn all(&self) -> Vec<u32> {
        let mut found: BTreeSet<u32> =
            cgroup::processes(&cgroup::groups(self.hierarchies, self.cluster)).into_iter().collect();
        let netns = fs::metadata(Netns::of(self.cluster).path()).map(|meta| (meta.dev(), meta.ino())).ok();
        for pid in pids() {
            let in_netns = fs::metadata(format!("/proc/{pid}/ns/net")).map(|meta| (meta.dev(), meta.ino())).ok();
            if (netns.is_some() && in_netns == netns) || self.is_told_of_it(pid) {
                found.insert(pid);
            }
        }
        for pid in lineage() {
            found.remove(&pid);
        }
        found.into_iter().filter(|pid| start_time(*pid).is_some()).collect()
    }

    /// A program of ours that was given the cluster's folders: a shim that lost its group and its parent, say. An editor
    /// open on a log is none of ours.
    fn is_told_of_it(&self, pid: u32) -> bool {
        let Ok(exe) = fs::read_link(format!("/proc/{pid}/exe")) else { return false };
        if !exe.starts_with(self.bin) {
            return false;
        }
        let arguments = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let arguments = String::from_utf8_lossy(&arguments);
        [&self.paths.state, &self.paths.run].iter().any(|folder| mentions(&arguments, folder))
    }

    /// Ends every process of the cluster and returns when none is left. What is found is killed at once: a cluster that is
    /// taken down has nothing to save.
    pub(super) fn kill_all(&self, limit: Duration) -> Result<()> {
        let deadline = Instant::now() + limit;
        loop {
            let left = self.all();
            if left.is_empty() {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(Error::Timeout {
                    what: format!("the end of processes {left:?} of cluster {}", self.cluster),
                    seconds: limit.as_secs(),
                    logs: self.paths.logs.clone(),
                    last: String::new(),
                });
            }
            left.iter().for_each(|pid| kill(*pid));
            thread::sleep(Duration::from_millis(50));
        }
    }
}

/// Whether an argument names the folder or something in it, and not merely a longer name that begins alike.
fn mentions(arguments: &str, folder: &Path) -> bool {
    let folder = folder.to_string_lossy();
    let is_end = |rest: &str| rest.chars().next().is_none_or(|next| !next.is_alphanumeric() && next != '-');
    arguments.match_indices(folder.as_ref()).any(|(at, found)| is_end(&arguments[at + found.len()..]))
}

/// The processes listed in `procs` (a cgroup's) that were started with exactly these arguments.
pub(super) fn with_arguments(procs: &Path, argv: &[String]) -> Vec<Identity> {
    let wanted: String = argv.iter().flat_map(|argument| [argument, "\0"]).collect();
    let list = fs::read_to_string(procs).unwrap_or_default();
    let pids = list.lines().filter_map(|pid| pid.parse().ok());
    let same = |pid: &u32| fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|found| found == wanted.as_bytes());
    pids.filter(same).filter_map(Identity::of).collect()
}

/// Ends a process; one that has ended already is as wished.
pub(super) fn kill(pid: u32) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        rustix::process::kill_process(pid, Signal::KILL).ok();
    }
}

/// Ends whatever the process has started, directly or not, and is still its descendant.
pub(super) fn end_descendants(of: u32) {
    let is_mine = |pid: &u32| std::iter::successors(parent(*pid), |pid| parent(*pid)).any(|above| above == of);
    // All are found before the first ends: an orphan has another parent.
    let found: Vec<u32> = pids().into_iter().filter(is_mine).collect();
    found.into_iter().for_each(kill);
}

fn pids() -> Vec<u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// This process and those it descends from.
fn lineage() -> Vec<u32> {
    let mut line = vec![std::process::id()];
    while let Some(parent) = line.last().and_then(|pid| parent(*pid)).filter(|pid| *pid > 1) {
        line.push(parent);
    }
    line.push(1);
    line
}

fn parent(pid: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
}

/// What is mounted at or below one of `folders`, innermost first.
pub(super) fn mounts_below(mountinfo: &str, folders: &[&Path]) -> Vec<PathBuf> {
    let points = mountinfo.lines().filter_map(|line| line.split(' ').nth(4)).map(unescape);
    let mut found: Vec<PathBuf> =
        points.filter(|point| folders.iter().any(|folder| point.starts_with(folder))).collect();
    // Later mounts lie over earlier ones.
    found.reverse();
    found.sort_by_key(|point| std::cmp::Reverse(point.components().count()));
    found
}

/// mountinfo writes space, tab, newline and backslash as octal.
fn unescape(field: &str) -> PathBuf {
    [(r"\040", " "), (r"\011", "\t"), (r"\012", "\n"), (r"\134", "\\")]
        .iter()
        .fold(field.to_owned(), |text, (escaped, plain)| text.replace(escaped, plain))
        .into()
}

#[cfg(test)]
mod tests {
    use std::{
        io::{BufRead, BufReader},
        process::{Command, Stdio},
    };

    use super::*;

    /// A process may be called `a) Z (b`; read naively its state is `Z` and `down` would pass it over.
    #[test]
    fn stat_is_read_behind_the_name() {
        let tail = "1 1 1 0 -1 4194560 0 0 0 0 0 0 0 0 20 0 1 0 4711 0 0";
        assert_eq!(parse_stat(&format!("42 (a) Z (b) S {tail}")), Some(4711));
        assert_eq!(parse_stat(&format!("42 (sh) Z {tail}")), None);
    }

    /// A run that was ended goes on otherwise: its tests hold the clusters and their lock, and the next run finds both.
    #[test]
    fn what_was_started_ends_with_its_children() {
        let mut shell =
            Command::new("sh").args(["-c", "sleep 1000 & echo $!; wait"]).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(shell.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let sleeper = Identity::of(line.trim().parse().unwrap()).unwrap();
        end_descendants(shell.id());
        shell.wait().unwrap();
        // Were it passed over, this would never end.
        while sleeper.is_alive() {
            thread::yield_now();
        }
    }

    /// After a restart of the machine another program may have a recorded number; it must not be killed.
    #[test]
    fn identity_is_more_than_a_number() {
        let mine = Identity::of(std::process::id()).unwrap();
        assert!(mine.is_alive());
        assert!(!Identity { start: mine.start + 1, ..mine.clone() }.is_alive());
        assert!(!Identity { boot: "another".into(), ..mine }.is_alive());
    }

    /// `down` of alder must not end a cluster called alder2.
    #[test]
    fn a_folder_is_not_its_longer_neighbour() {
        let folder = Path::new("/cache/state/alder");
        assert!(mentions("containerd\0-c\0/cache/state/alder/containerd.toml\0", folder));
        assert!(mentions("etcd\0--data-dir=/cache/state/alder\0", folder));
        assert!(!mentions("etcd\0--data-dir\0/cache/state/alder2/etcd\0", folder));
    }

    /// A pod's volume is mounted inside another mount: the outer one is busy until the inner one is gone.
    #[test]
    fn inner_mounts_come_first() {
        let mountinfo = "1 0 0:1 / / rw - ext4 d rw\n2 1 0:2 / /s/alder rw - tmpfs t rw\n\
                         3 2 0:3 / /s/alder/a\\040b/c rw - tmpfs t rw\n4 1 0:4 / /s/alder2 rw - tmpfs t rw\n";
        let found = mounts_below(mountinfo, &[Path::new("/s/alder")]);
        assert_eq!(found, [PathBuf::from("/s/alder/a b/c"), PathBuf::from("/s/alder")]);
    }
}
