//! How libtorch's threads wait.

use std::env;
use std::os::unix::process::CommandExt;
use std::process::Command;

const POLICY: &str = "OMP_WAIT_POLICY";

/// Makes idle OpenMP threads sleep instead of spin; call it before anything else is done, and only where the machine is
/// shared.
///
/// By default they burn their core between two operations. On a machine that the process has to itself that makes a step
/// about a quarter faster; on one that it shares, the spinning takes the core from whoever holds the others up, and a training step
/// on two contended cores was seen to take two to five times as long and three to ten times the CPU time. libgomp reads
/// its environment when it is loaded, before `main`, so that the process replaces itself once, keeping its id and
/// arguments. A value that is set already is left alone.
pub fn wait_without_spinning() {
    if env::var_os(POLICY).is_some() {
        return;
    }
    let Ok(program) = env::current_exe() else { return };
    let mut arguments = env::args_os();
    let mut again = Command::new(program);
    if let Some(name) = arguments.next() {
        again.arg0(name);
    }
    // Comes back only when it fails; then the process works on as it is, a little less considerate.
    let error = again.args(arguments).env(POLICY, "passive").exec();
    eprintln!("warning: {POLICY} could not be set: {error}");
}
