//! Running other programs: output captured, or kept in a log that the error names.

use std::{
    fs::{self, File},
    io::Write,
    path::Path,
    process::{Command, Stdio},
};

use crate::error::{Error, IoContext, Result};

/// The command as a person would type it, for messages.
pub fn shown(command: &Command) -> String {
    std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|arg| arg.to_string_lossy().into_owned())
        .collect::<Vec<_>>()
        .join(" ")
}

/// Runs `command` to its end and returns its standard output; a non-zero exit is an error with its standard error.
pub fn output(command: &mut Command) -> Result<String> {
    output_with_input(command, &[])
}

/// As [`output`], with `input` on standard input.
pub fn output_with_input(command: &mut Command, input: &[u8]) -> Result<String> {
    let stdin = if input.is_empty() { Stdio::null() } else { Stdio::piped() };
    let mut child = command
        .stdin(stdin)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|source| Error::Spawn { command: shown(command), source })?;
    // The writer is a thread, so that a child that fills its output before it has read everything does not block us.
    let output = std::thread::scope(|scope| {
        if let Some(mut stdin) = child.stdin.take() {
            // A child that ends early closes the pipe; its exit status says more than the write error would.
            scope.spawn(move || stdin.write_all(input).ok());
        }
        child.wait_with_output()
    })
    .map_err(|source| Error::Spawn { command: shown(command), source })?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(Error::Command {
        command: shown(command),
        status: output.status,
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}

/// Runs `command` to its end with all its output in `log`, which the error names if it fails.
pub fn logged(step: &str, command: &mut Command, log: &Path) -> Result<()> {
    if let Some(parent) = log.parent() {
        fs::create_dir_all(parent).at("make folder", parent)?;
    }
    let file = File::create(log).at("write", log)?;
    let errors = file.try_clone().at("write", log)?;
    let status = command
        .stdin(Stdio::null())
        .stdout(file)
        .stderr(errors)
        .status()
        .map_err(|source| Error::Spawn { command: shown(command), source })?;
    if status.success() {
        return Ok(());
    }
    Err(Error::Step {
        step: step.to_owned(),
        cause: format!("`{}` ended with {status}", shown(command)),
        log: log.to_owned(),
        tail: fs::read_to_string(log).unwrap_or_default(),
    })
}

/// Whether a program of this name is on the PATH.
pub fn on_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let sbin = ["/usr/sbin".into(), "/sbin".into()];
    std::env::split_paths(&path).chain(sbin).any(|dir| dir.join(program).is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A failed step without its log leaves a person with nothing to look at.
    #[test]
    fn a_failed_step_names_its_log_and_shows_its_end() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("logs/step.log");
        let error = logged("build X", Command::new("sh").args(["-c", "echo what went wrong >&2; exit 3"]), &log)
            .unwrap_err()
            .to_string();
        assert!(error.contains(log.to_str().unwrap()) && error.contains("what went wrong"), "{error}");
    }

    /// `kubectl apply -f -` with more input than a pipe holds must not hang.
    #[test]
    fn large_input_is_echoed_back() {
        let input = vec![b'x'; 1 << 20];
        let output = output_with_input(&mut Command::new("cat"), &input).unwrap();
        assert_eq!(output.len(), input.len());
    }
}
