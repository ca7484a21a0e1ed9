//! What can go wrong while building and running things, each with what to do about it.

use std::{fmt, io, path::PathBuf};

/// Result of everything in this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A failed step. Every variant names what it was about, and the log or the way out where there is one.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{action} {}: {source}", path.display())]
    Io { action: &'static str, path: PathBuf, source: io::Error },
    #[error("`{command}` could not be started: {source}")]
    Spawn { command: String, source: io::Error },
    #[error("`{command}` ended with {status}{}", Tail(stderr))]
    Command { command: String, status: std::process::ExitStatus, stderr: String },
    #[error("{step} failed ({cause}); its log is {}{}", log.display(), Tail(tail))]
    Step { step: String, cause: String, log: PathBuf, tail: String },
    #[error("{what} did not happen within {seconds} s; the logs are in {}{}", logs.display(), Tail(last))]
    Timeout { what: String, seconds: u64, logs: PathBuf, last: String },
    #[error("clusters need network namespaces, mounts and cgroups: run this as root (sudo -E cargo xtask …)")]
    NotRoot,
    #[error("missing: {}. Install them with `apt-get install {}`, or run this as root on Debian, which does it", missing.join(", "), packages.join(" "))]
    MissingPackages { missing: Vec<&'static str>, packages: Vec<&'static str> },
    #[error("{what} is needed and was not found: {way_out}")]
    MissingTool { what: &'static str, way_out: &'static str },
    #[error("cluster name `{name}`: {rule}")]
    ClusterName { name: String, rule: &'static str },
    #[error(
        "cluster `{name}` is not up; `cargo xtask cluster up` starts it, `cargo xtask cluster list` shows what runs"
    )]
    NotUp { name: String },
    #[error("another `cargo xtask cluster` is at work (it holds {}); wait for it, or end it", lock.display())]
    Busy { lock: PathBuf },
    #[error("{} is not what it should be: {problem}", path.display())]
    Malformed { path: PathBuf, problem: String },
    #[error(
        "the torch wheel {} is not there; the CUDA 12.6 build (cu126) is not on PyPI: download \
         torch-2.13.0+cu126 from https://download.pytorch.org/whl/cu126 and name it with --torch-wheel",
        path.display()
    )]
    TorchWheel { path: PathBuf },
    #[error(
        "--set cu126 needs --torch-wheel FILE: the CUDA 12.6 build of torch 2.13.0 is not on PyPI; download it from https://download.pytorch.org/whl/cu126"
    )]
    TorchWheelMissing,
    #[error("`cargo xtask verify` found faults: {failed}. Each line above says what and where")]
    Verify { failed: String },
    #[error("the charts are not as they should be:\n  {faults}")]
    Charts { faults: String },
    #[error("these figures miss their budgets:\n  {figures}\nRun the bench again on a machine that does nothing else")]
    Missed { figures: String },
    #[error("certificate for `{name}`: {source}")]
    Pki { name: String, source: rcgen::Error },
}

/// The end of some output, on lines of its own; nothing when there was none.
struct Tail<'a>(&'a str);

impl fmt::Display for Tail<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines: Vec<&str> = self.0.trim_end().lines().collect();
        let skip = lines.len().saturating_sub(15);
        lines[skip..].iter().try_for_each(|line| write!(f, "\n    {line}"))
    }
}

/// Puts the action and the path to an `io::Error`.
pub trait IoContext<T> {
    fn at(self, action: &'static str, path: impl Into<PathBuf>) -> Result<T>;
}

impl<T> IoContext<T> for io::Result<T> {
    fn at(self, action: &'static str, path: impl Into<PathBuf>) -> Result<T> {
        self.map_err(|source| Error::Io { action, path: path.into(), source })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A log of a thousand lines must not bury the line that says what to do.
    #[test]
    fn only_the_end_of_a_log_is_shown() {
        let log: String = (0..100).map(|i| format!("line {i}\n")).collect();
        let shown = Tail(&log).to_string();
        assert_eq!(shown.lines().filter(|l| !l.is_empty()).count(), 15);
        assert!(shown.ends_with("line 99"));
    }
}
