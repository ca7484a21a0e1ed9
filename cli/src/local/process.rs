//! Processes that end with the one that started them, however that one ends.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{ExitCode, Stdio};

use tokio::process::{Child, Command};

use super::{Failure, Result};

/// First argument of this program where it only becomes another one.
pub(super) const GUARDED: &str = "local-guarded";

/// A command whose process is killed when this one ends, also by kill -9. Start it from the main thread: on Linux it ends
/// with the thread that started it.
pub(super) fn command(words: &[impl AsRef<OsStr>]) -> Result<Command> {
    let program = std::env::current_exe().map_err(Failure::file(Path::new("this program")))?;
    let mut command = Command::new(program);
    command.arg(GUARDED).arg(std::process::id().to_string()).args(words);
    // A group of its own: Ctrl-C on the terminal is for the first process alone, which ends the others.
    command.stdin(Stdio::null()).kill_on_drop(true).process_group(0);
    Ok(command)
}

/// Becomes the program that the arguments name: the parent's process id, the program, what it is given.
pub(super) fn become_program(mut arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let parent = arguments.next();
    let Some(program) = arguments.next() else { return ExitCode::from(2) };
    if let Err(why) = end_with_parent(parent.as_deref()) {
        eprintln!("error: {why}");
        return ExitCode::FAILURE;
    }
    let error = std::process::Command::new(&program).args(arguments).exec();
    eprintln!("error: {} cannot be started: {error}", program.display());
    ExitCode::from(127)
}

#[cfg(target_os = "linux")]
fn end_with_parent(parent: Option<&OsStr>) -> io::Result<()> {
    use rustix::process::{Signal, getppid, set_parent_process_death_signal};
    set_parent_process_death_signal(Some(Signal::KILL))?;
    let now = getppid().map(|pid| pid.as_raw_nonzero().to_string());
    match now.as_deref().map(OsStr::new) == parent {
        true => Ok(()),
        false => Err(io::Error::other("the process that started this one has ended")),
    }
}

#[cfg(not(target_os = "linux"))]
fn end_with_parent(_: Option<&OsStr>) -> io::Result<()> {
    Ok(())
}

/// Kills a process and all that it started.
pub(super) fn kill(child: &mut Child) {
    use rustix::process::{Pid, Signal, kill_process_group};
    let group = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
    if let Some(group) = group {
        // One that is gone needs no killing.
        let _ = kill_process_group(group, Signal::KILL);
    }
}
