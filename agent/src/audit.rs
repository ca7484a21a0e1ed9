//! The ledger as a file for others, and the reading of such a file with no cluster.
//!
//! The agent alone has its volume open, so it gives the file out itself, on a socket that has no place in the file system
//! and that only processes of its own user in its own pod reach: `kubectl exec` is the way to it, and who may do that is a
//! matter of the cluster's roles. A volume whose agent is not there, or cannot open it, is read directly.

use std::fs::File;
use std::io::{self, BufRead as _, BufReader, BufWriter, Read, Write};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use consilium_federation::approval::parse_public_key;
use consilium_federation::ids::NameError;
use consilium_federation::ledger::{Break, FORM, Header, LONGEST_LINE, Mark, Reading, Verified};
use consilium_federation::report::LedgerEnd;
use consilium_federation::{Digest, SiteName};
use serde::Serialize;
use serde_json::Value;

use crate::{Context, State, StateError};

/// The word that begins these commands.
pub const WORD: &str = "audit";
/// Name of the socket.
const SOCKET: &[u8] = b"consilium-agent/audit";
/// Entries that are read at a time.
const AT_ONCE: u64 = 500;
/// A reader that takes nothing for so long is gone.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long the socket is waited for, where its name is taken.
const AGAIN: Duration = Duration::from_secs(60);

/// `consilium-agent audit`.
#[derive(Parser)]
#[command(name = "consilium-agent audit")]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Write the ledger, whole, to standard output: from the agent of this pod, or from a volume that no agent uses.
    Export {
        /// The agent's volume.
        #[arg(long, env = "CONSILIUM_STATE", default_value = "/var/lib/consilium")]
        state: PathBuf,
    },
    /// Say whether a file that `export` wrote is whole, unchanged and in order, and where it is not.
    Verify(Verify),
    /// Print the entries of such a file, a line each, after checking it.
    List(List),
}

/// What to check, and by what.
#[derive(clap::Args, Clone, Debug)]
pub struct Verify {
    /// The file; `-` for standard input.
    pub file: PathBuf,
    /// The hub's public key (base64): countersignatures must be by it.
    #[arg(long)]
    pub hub_key: Option<String>,
    /// A head of this ledger that was noted elsewhere, `sha256:…`: the file must hold it. May be given more than once.
    #[arg(long = "seen")]
    pub seen: Vec<Digest>,
}

/// What to print.
#[derive(clap::Args, Clone, Debug)]
pub struct List {
    /// What to check first.
    #[command(flatten)]
    pub verify: Verify,
    /// Only what left the hospital.
    #[arg(long)]
    pub left: bool,
}

/// Runs a command.
pub fn command(arguments: Arguments) -> anyhow::Result<()> {
    let mut out = BufWriter::new(io::stdout().lock());
    match arguments.command {
        Command::Export { state } => fetch(&state, &mut out)?,
        Command::Verify(verify) => writeln!(out, "{}", verify.run(|_| Ok(()))?)?,
        Command::List(list) => list.run(&mut out)?,
    }
    Ok(out.flush()?)
}

fn address() -> io::Result<SocketAddr> {
    SocketAddr::from_abstract_name(SOCKET)
}

/// From the agent, or from a volume without one.
fn fetch(state: &Path, out: &mut impl Write) -> anyhow::Result<()> {
    if let Ok(mut agent) = address().and_then(|address| UnixStream::connect_addr(&address)) {
        io::copy(&mut agent, out).context("the agent stopped giving out its ledger; run this again")?;
        return Ok(());
    }
    export(&State::open_ledger(state)?, out)?;
    Ok(())
}

/// Gives the ledger out until shutdown. That it cannot be given out ends nothing else.
pub async fn run(ctx: Arc<Context>) -> anyhow::Result<()> {
    loop {
        let bound = address().and_then(|address| UnixListener::bind_addr(&address));
        let listener = bound.and_then(|listener| {
            listener.set_nonblocking(true)?;
            tokio::net::UnixListener::from_std(listener)
        });
        let error = match listener {
            Ok(listener) => tokio::select! {
                () = ctx.shutdown.cancelled() => return Ok(()),
                error = serve(&ctx.state, &listener) => error,
            },
            Err(error) => error,
        };
        tracing::warn!(%error, "the ledger is not given out to `audit export`; it is tried again in a minute");
        tokio::select! {
            () = ctx.shutdown.cancelled() => return Ok(()),
            () = tokio::time::sleep(AGAIN) => {}
        }
    }
}

/// One reader at a time: a second one waits.
async fn serve(state: &State, listener: &tokio::net::UnixListener) -> io::Error {
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => return error,
        };
        let ours = rustix::process::geteuid().as_raw();
        let allowed = stream.peer_cred().is_ok_and(|peer| peer.uid() == ours);
        let given = match stream.into_std() {
            Ok(stream) if allowed => give(state.clone(), stream).await,
            Ok(_) => Err(io::Error::from(io::ErrorKind::PermissionDenied)),
            Err(error) => Err(error),
        };
        match given {
            Ok(()) => tracing::info!("the ledger was given out"),
            Err(error) => tracing::warn!(%error, "the ledger was asked for and not given out whole"),
        }
    }
}

async fn give(state: State, stream: UnixStream) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let write = move || export(&state, &mut BufWriter::new(stream)).map_err(io::Error::other);
    tokio::task::spawn_blocking(write).await.map_err(io::Error::other)?
}

#[derive(Debug, thiserror::Error)]
enum ExportError {
    #[error(transparent)]
    State(#[from] StateError),
    #[error("{0}")]
    Write(#[from] io::Error),
}

/// Writes the ledger as it stands now. It judges nothing: a broken one is shown as it is.
fn export(state: &State, out: &mut impl Write) -> Result<(), ExportError> {
    let end = state.ledger_end()?;
    let name = state.blob("site")?.ok_or_else(|| StateError::Missing("hospital's name".into()))?;
    let site: SiteName = String::from_utf8_lossy(&name).parse().map_err(|error: NameError| StateError::Damaged {
        what: "the hospital's name".into(),
        why: error.to_string(),
    })?;
    let before = LedgerEnd { entries: 0, head: consilium_federation::ledger::genesis() };
    line(out, &Header { form: FORM.to_owned(), site, before })?;
    let mut next = 1;
    while next <= end.entries {
        let last = end.entries.min(next + AT_ONCE - 1);
        let signed = state.countersignatures(next, AT_ONCE as usize)?;
        for (seq, bytes) in
            state.ledger_lines(next, (last - next + 1) as usize)?.into_iter().filter(|(n, _)| *n <= last)
        {
            out.write_all(&bytes)?;
            out.write_all(b"\n")?;
            if let Some(signed) = signed.iter().find(|signed| signed.end.entries == seq) {
                line(out, &Mark::Countersigned(signed.clone()))?;
            }
        }
        next = last + 1;
    }
    line(out, &Mark::End(end))?;
    Ok(out.flush()?)
}

fn line<T: Serialize>(out: &mut impl Write, value: &T) -> io::Result<()> {
    serde_json::to_writer(&mut *out, value)?;
    out.write_all(b"\n")
}

impl Verify {
    /// Checks the file; hands on each entry as it is read, before what follows it is known to hold.
    pub fn run(&self, mut entry: impl FnMut(&[u8]) -> anyhow::Result<()>) -> anyhow::Result<String> {
        let key = self.hub_key.as_deref().map(parse_public_key).transpose();
        let key = key.map_err(|why| anyhow::anyhow!("--hub-key: {why}"))?;
        let mut reading = Reading::new(key, self.seen.clone());
        let name = self.file.display();
        let input: Box<dyn Read> = match self.file.as_os_str() == "-" {
            true => Box::new(io::stdin()),
            false => Box::new(File::open(&self.file).with_context(|| format!("{name}"))?),
        };
        let mut input = BufReader::new(input);
        let (mut bytes, mut number) = (Vec::new(), 0_u64);
        let broken = |number: u64, why: &Break| anyhow::anyhow!("{name}, line {number}: {why}");
        loop {
            bytes.clear();
            let limit = LONGEST_LINE as u64 + 2;
            if input.by_ref().take(limit).read_until(b'\n', &mut bytes)? == 0 {
                break;
            }
            number += 1;
            let text = bytes.strip_suffix(b"\n").unwrap_or(&bytes);
            if reading.line(text).map_err(|why| broken(number, &why))? {
                entry(text)?;
            }
        }
        Ok(words(&reading.finish().map_err(|why| broken(number, &why))?))
    }
}

fn words(found: &Verified) -> String {
    let Verified { site, before, end, countersignatures, newest, checked } = found;
    let first = match before.entries {
        0 => String::new(),
        removed => format!(" The first {removed} entries were removed by the hospital's own rule."),
    };
    let by_hub = match (newest, checked) {
        (None, _) => "the hub has countersigned none of it".to_owned(),
        (Some(newest), true) => {
            format!(
                "the hub has countersigned {countersignatures} ends of it by the key that was given, the last with entry {} at {}",
                newest.end.entries, newest.at
            )
        }
        (Some(newest), false) => {
            format!(
                "{countersignatures} countersignatures, the last with entry {}, were not checked: give the hub's key with --hub-key",
                newest.end.entries
            )
        }
    };
    let end = format!("ends with entry {}, head {}", end.entries, end.head);
    format!("The ledger of {site} is whole, unchanged and in order; it {end}; {by_hub}.{first}")
}

impl List {
    /// Prints the entries.
    pub fn run(&self, out: &mut impl Write) -> anyhow::Result<()> {
        writeln!(out, "ENTRY  TIME  POLICY  EVENT  TO  WHAT")?;
        let verdict = self.verify.run(|bytes| {
            let record: Value = serde_json::from_slice(bytes)?;
            if !self.left || !record["to"].is_null() {
                writeln!(out, "{}", shown(&record))?;
            }
            Ok(())
        })?;
        Ok(writeln!(out, "{verdict}")?)
    }
}

/// One entry in a line; also one of a kind that this version does not know.
fn shown(record: &Value) -> String {
    let text = |value: &Value| match value {
        Value::String(text) => text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect(),
        Value::Null => "-".to_owned(),
        other => other.to_string(),
    };
    let entry = &record["entry"];
    let fields = entry.as_object().into_iter().flatten().filter(|(name, _)| *name != "event" && *name != "spec");
    let what: Vec<String> = fields.map(|(name, value)| format!("{name}={}", text(value))).collect();
    let column = |name: &str| text(&record[name]);
    let (seq, time, policy, to) = (column("seq"), column("time"), column("policy"), column("to"));
    format!("{seq}  {time}  {policy}  {}  {to}  {}", text(&entry["event"]), what.join(" "))
}

#[cfg(test)]
#[path = "audit_tests.rs"]
mod tests;
