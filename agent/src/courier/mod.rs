//! What runs in a task pod beside the trainer: brings the base model in, takes the
//! result out, and tries what must be impossible.
//!
//! The pod reaches one address, the task port. A courier outlives a restart of the
//! agent behind it: it waits and tries again until the pod is ended, and a result
//! stays on the volume until its delivery was acknowledged.

mod clean;
mod deliver;
mod fetch;
mod files;
mod probe;

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use consilium_proto::MAX_MESSAGE_BYTES;
use consilium_proto::v1::task_port_client::TaskPortClient;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};
use tonic::{Code, Request, Status};

/// Exit code of `deliver`: there is no whole result, and none will come.
pub const EXIT_NO_RESULT: u8 = 3;
/// Exit code of `fetch`: an earlier pod had left a whole result, which has been handed over; there is nothing to start.
pub const EXIT_DELIVERED: u8 = 4;

/// Carries files between a task pod and the agent's task port. Exit codes: 0 done, 1 failed, 2 (probe) the task port
/// itself cannot be reached, 3 (deliver) there is no whole result, 4 (fetch) an earlier pod's result was handed over.
#[derive(Debug, Parser)]
#[command(name = "consilium-courier", version)]
pub struct Cli {
    /// What to do
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Bring the task's files: task.json and the base model
    Fetch(PortArgs),
    /// Wait for the trainer's result and hand it over
    Deliver(PortArgs),
    /// Check from inside a task pod that nothing but the task port can be reached
    Probe(ProbeArgs),
    /// Remove the folders of tasks that are gone
    Clean(CleanArgs),
}

/// Where the files lie, and how to reach the task port.
#[derive(Clone, Debug, Args)]
pub struct PortArgs {
    /// The contract's folder
    #[arg(long, default_value = "/consilium")]
    pub root: PathBuf,
    /// Of a task with an evaluator: its folder, which the study's image cannot write. It gets a task.json of its own, and
    /// the result is taken from its out/ alone
    #[arg(long)]
    pub results: Option<PathBuf>,
    /// The task port, https://ip:port
    #[arg(long)]
    pub server: String,
    /// Folder with `token` and `ca.crt`
    #[arg(long, default_value = "/var/run/consilium")]
    pub credential: PathBuf,
}

impl PortArgs {
    /// The folder with the result and the task that it is for.
    fn results(&self) -> &Path {
        self.results.as_deref().unwrap_or(&self.root)
    }

    /// Removes everything of the task: its result is with the agent, and the volume has other tasks to hold.
    fn clear(&self) -> Result<(), CourierError> {
        files::empty(&self.root)?;
        files::empty(self.results())
    }
}

/// What is removed.
#[derive(Clone, Debug, Args)]
pub struct CleanArgs {
    /// Where the claim is mounted
    #[arg(long)]
    pub claim: PathBuf,
    /// Folders of the claim
    pub folders: Vec<String>,
}

/// What the probe tries.
#[derive(Clone, Debug, Args)]
pub struct ProbeArgs {
    /// Address that must answer, https://host:port
    #[arg(long)]
    pub expect_reachable: String,
    /// Addresses that must not answer, https://host:port
    #[arg(long)]
    pub must_fail: Vec<String>,
    /// The name servers of /etc/resolv.conf must not answer either
    #[arg(long)]
    pub must_fail_dns: bool,
}

/// Why a courier gave up. Everything that may pass is waited for instead.
#[derive(Debug, thiserror::Error)]
pub enum CourierError {
    /// A file of the task.
    #[error("{file} cannot be {verb}: {source}")]
    File {
        /// Which.
        file: PathBuf,
        /// What was tried.
        verb: &'static str,
        /// Why not.
        source: std::io::Error,
    },
    /// The arguments or the credential make no sense.
    #[error("{0}")]
    Setup(String),
    /// The agent said no, for good.
    #[error("the agent refused: {0}")]
    Refused(String),
    /// The agent sent something that is not a task.
    #[error("the agent sent {0}; agent and courier must be of one version")]
    Protocol(String),
    /// The trainer ended without a result.
    #[error("the trainer ended without a result; see the logs of the container trainer")]
    NoResult,
    /// An earlier pod's result was found and handed over.
    #[error("an earlier pod had left a whole result; the agent has it now, and nothing is started")]
    Delivered,
    /// The result is not what its manifest says.
    #[error("{file} differs from out/MANIFEST ({why}); the result is not delivered and must be made again")]
    Damaged {
        /// Which file.
        file: String,
        /// What differs.
        why: String,
    },
    /// The probe's finding.
    #[error("{message}")]
    Probe {
        /// Exit code: 1 something answered that must not, 2 the task port did not answer.
        code: u8,
        /// What was found.
        message: String,
    },
}

impl CourierError {
    pub(crate) fn file(verb: &'static str, file: &Path, source: std::io::Error) -> Self {
        Self::File { file: file.to_owned(), verb, source }
    }

    /// The exit code of the process.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Probe { code, .. } => *code,
            Self::NoResult | Self::Damaged { .. } => EXIT_NO_RESULT,
            Self::Delivered => EXIT_DELIVERED,
            _ => 1,
        }
    }
}

/// Runs a subcommand to its end.
pub async fn run(cli: &Cli) -> Result<(), CourierError> {
    match &cli.command {
        Command::Fetch(args) => fetch::run(args, &Pace::default()).await,
        Command::Deliver(args) => deliver::run(args, &Pace::default()).await,
        Command::Probe(args) => probe::run(args).await,
        Command::Clean(args) => clean::run(args),
    }
}

/// How long the courier waits between two looks and two tries; shorter in tests.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Between two looks for the trainer's result: a round waits for it.
    pub look: Duration,
    /// Between two words with the agent about the trainer.
    pub poll: Duration,
    /// After the first failed call.
    pub first: Duration,
    /// Between later calls, at most.
    pub longest: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            look: Duration::from_millis(50),
            poll: Duration::from_secs(2),
            first: Duration::from_millis(500),
            longest: Duration::from_secs(15),
        }
    }
}

impl Pace {
    /// The wait after the given number of failed calls in a row.
    fn after(&self, failures: u32) -> Duration {
        self.first.saturating_mul(1 << failures.min(10)).min(self.longest)
    }
}

pub use deliver::run as deliver;
pub use fetch::run as fetch;

/// The agent's word on a call that failed.
enum Verdict {
    /// It may pass: the agent restarts, the network is not there yet, the policy may change.
    Wait,
    /// It will not.
    GiveUp,
}

/// A refusal by policy is waited for too: the agent ends the pod if it stays, and an approval lets it go on.
fn verdict(status: &Status) -> Verdict {
    match status.code() {
        Code::InvalidArgument
        | Code::FailedPrecondition
        | Code::Unauthenticated
        | Code::AlreadyExists
        | Code::NotFound
        | Code::Unimplemented
        | Code::OutOfRange => Verdict::GiveUp,
        _ => Verdict::Wait,
    }
}

/// A client of the task port with this task's credential.
#[derive(Clone)]
pub(crate) struct Port {
    client: TaskPortClient<Channel>,
    token: MetadataValue<Ascii>,
}

impl Port {
    /// Sets the connection up; it is dialled with the first call, and again after it was lost.
    pub(crate) fn new(args: &PortArgs) -> Result<Self, CourierError> {
        let read = |name: &str| {
            let file = args.credential.join(name);
            std::fs::read_to_string(&file).map_err(|e| CourierError::file("read", &file, e))
        };
        let (token, ca) = (read("token")?, read("ca.crt")?);
        let token = format!("Bearer {}", token.trim());
        let mut token: MetadataValue<Ascii> =
            token.parse().map_err(|_| CourierError::Setup("the token is not ASCII".into()))?;
        token.set_sensitive(true);
        let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(ca));
        let bad = |e: tonic::transport::Error| CourierError::Setup(format!("--server {:?}: {e:?}", args.server));
        let channel = Endpoint::from_shared(args.server.clone())
            .map_err(bad)?
            .tls_config(tls)
            .map_err(bad)?
            .connect_timeout(Duration::from_secs(5))
            .http2_keep_alive_interval(Duration::from_secs(10))
            .keep_alive_timeout(Duration::from_secs(20))
            .connect_lazy();
        let client = TaskPortClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES);
        Ok(Self { client, token })
    }

    pub(crate) fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.metadata_mut().insert("authorization", self.token.clone());
        request
    }
}

/// Waits after a failed call, or gives up with the agent's words.
async fn wait_or_give_up(what: &str, status: &Status, failures: &mut u32, pace: &Pace) -> Result<(), CourierError> {
    match verdict(status) {
        Verdict::GiveUp => Err(CourierError::Refused(status.message().to_owned())),
        Verdict::Wait => {
            eprintln!("{what}: {:?}: {}; trying again", status.code(), status.message());
            tokio::time::sleep(pace.after(*failures)).await;
            *failures = failures.saturating_add(1);
            Ok(())
        }
    }
}
