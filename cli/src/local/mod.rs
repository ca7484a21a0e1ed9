//! `local`: a study on one machine, without Kubernetes, root or network, and with the same code.
//!
//! The first process is the hub: its gateway, its store, the driver of its rounds and its rules for studies. Each hospital
//! is a process with the agent's link, policy, volume and task port, over mutual TLS on loopback, and runs its trainer and
//! the platform's evaluator as processes under the trainer contract. All that either side knows is in files below one
//! folder; after a kill -9 of anything, the same command carries on.

mod begun;
mod center;
mod data;
mod events;
mod files;
mod first;
mod hospital;
mod model;
mod pki;
mod process;
mod report;
mod runner;
mod setup;
mod sites;
mod tasks;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use clap::Args;
use consilium_agent::Entropy;
use consilium_operator::driver::{DriveError, Driver, rosters};
use consilium_operator::gateway::{self, GatewayTls};
use consilium_operator::hub::Hub;
use consilium_operator::metrics::Metrics;
use consilium_operator::store::BlobStore;
use ed25519_dalek::SigningKey;
use jiff::Timestamp;
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use center::{Center, End};
use events::{Event, Events};
use setup::Plan;
use sites::Hospitals;

/// How often it is looked where the hospitals' tasks are.
const LOOK: std::time::Duration = std::time::Duration::from_millis(250);

/// Runs a study on this machine: hospitals as processes, the same rounds, masks, votes and gate as in a cluster. The same
/// command carries on what was interrupted.
#[derive(Debug, Args)]
pub struct Arguments {
    /// File with a FederatedStudy, YAML or JSON.
    pub study: PathBuf,
    /// Folder of one data set (imagesTr, labelsTr), cut into hospitals by person [default: phantoms].
    #[arg(long, conflicts_with = "shards")]
    pub data: Option<PathBuf>,
    /// Folder with a folder for each hospital, with train, eval and labels in it.
    #[arg(long)]
    pub shards: Option<PathBuf>,
    /// Hospitals, the first of those that the study names [default: all of them].
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    pub hospitals: Option<u32>,
    /// Command that keeps the trainer contract, in place of the built-in trainer; it gets `run --root DIR --data DIR`.
    #[arg(long)]
    pub trainer: Option<String>,
    /// Scans of each hospital, where they are phantoms.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(5..))]
    pub cases: u32,
    /// Where everything is kept [default: ./consilium-local/NAME].
    #[arg(long)]
    pub out: Option<PathBuf>,
    /// One JSON object a line in place of text.
    #[arg(long)]
    pub json: bool,
}

/// Why it did not come to an end. The text is the whole message.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("{}: {source}", path.display())]
    File { path: PathBuf, source: std::io::Error },
    /// What was asked for cannot be.
    #[error("{0}")]
    Refused(String),
    /// It may pass.
    #[error("{0}")]
    Passing(String),
    #[error("{0}")]
    Part(String),
}

type Result<T, E = Failure> = std::result::Result<T, E>;

impl Failure {
    fn file(path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::File { path, source }
    }
}

impl From<DriveError> for Failure {
    fn from(error: DriveError) -> Self {
        if error.is_final() { Self::Part(error.to_string()) } else { Self::Passing(error.to_string()) }
    }
}

/// Runs what this program is when it is one of the study's own processes; `None` when somebody typed its arguments.
pub fn inner() -> Option<ExitCode> {
    let mut arguments = std::env::args_os().skip(1);
    let first = arguments.next()?;
    if first == process::GUARDED {
        return Some(process::become_program(arguments));
    }
    (first == hospital::HOSPITAL).then(|| hospital::run(Path::new(&arguments.next().unwrap_or_default())))
}

/// Runs a study to its end.
pub fn run(arguments: &Arguments) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let ended = runtime.map_err(Failure::file(Path::new("a runtime"))).and_then(|runtime| {
        let ended = runtime.block_on(study(arguments));
        runtime.shutdown_background();
        ended
    });
    match ended {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Whether the study succeeded.
async fn study(arguments: &Arguments) -> Result<bool> {
    let begun = Instant::now();
    let mut plan = Plan::read(arguments)?;
    files::folder(&plan.out)?;
    plan.out = std::path::absolute(&plan.out).map_err(Failure::file(&plan.out))?;
    let _lock = lock(&plan.out)?;
    let resumed = begun::claim(&plan, arguments)?;
    logs(&plan.out)?;
    // Any provider does that was installed first.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let events = Events::open(&plan.out.join("events.jsonl"), arguments.json)?;
    events.tell(&Event::Started {
        study: plan.key.to_string(),
        spec: plan.digest,
        hospitals: plan.sites.clone(),
        trainer: arguments.trainer.clone().unwrap_or_else(|| plan.trainer.join(" ")),
        image: plan.study.spec.trainer.image.clone(),
        resumed,
        out: plan.out.display().to_string(),
    });
    let data = data::prepare(&plan, arguments).await?;
    let wake = Arc::new(Notify::new());
    let shutdown = CancellationToken::new();
    let (center, gateway) = open(&plan, &events, &wake, &shutdown).await?;
    let mut hospitals = Hospitals::start(&plan, &data, &gateway)?;
    let (end, center) = drive(center, &mut hospitals, &events, &wake).await?;
    shutdown.cancel();
    hospitals.end();
    let Some(end) = end else {
        return Err(Failure::Part("interrupted; the same command carries on from here".into()));
    };
    let file = model::export(center.hub().store(), &plan, end.model).await?;
    let seconds = begun.elapsed().as_secs_f64();
    let report = report::write(&plan, &center, &end, &file)?;
    events.tell(&Event::Finished {
        succeeded: end.succeeded,
        message: end.message,
        model: end.model,
        file: file.display().to_string(),
        report: report.display().to_string(),
        seconds,
    });
    Ok(end.succeeded)
}

/// Until the study ends; `None` when somebody interrupts it.
async fn drive<'a>(
    mut center: Center<'a>,
    hospitals: &mut Hospitals<'_>,
    events: &Events,
    wake: &Notify,
) -> Result<(Option<End>, Center<'a>)> {
    let mut changes = center.hub().changes();
    let mut looks = tokio::time::interval(LOOK);
    looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    loop {
        let pause = match center.turn().await? {
            Ok(pause) => pause,
            Err(end) => return Ok((Some(end), center)),
        };
        let due = tokio::time::sleep(pause);
        tokio::pin!(due);
        // A look at the tasks is no reason for a turn.
        loop {
            tokio::select! {
                () = wake.notified() => break,
                () = &mut due => break,
                ended = center.first().ended() => {
                    let store = center.hub().store().clone();
                    center.first().take(&store, ended?).await?;
                    break;
                }
                changed = changes.recv() => {
                    match changed {
                        Ok((site, _)) => center.hear(&site),
                        Err(_) => hospitals.names().for_each(|site| center.hear(site)),
                    }
                    break;
                }
                _ = looks.tick() => hospitals.look(events)?,
                _ = tokio::signal::ctrl_c() => return Ok((None, center)),
            }
        }
    }
}

/// The hub: its gateway, and what it knows of the study.
async fn open<'a>(
    plan: &'a Plan,
    events: &'a Events,
    wake: &Arc<Notify>,
    shutdown: &CancellationToken,
) -> Result<(Center<'a>, String)> {
    let failed =
        |what: &'static str| move |e: consilium_operator::store::StoreError| Failure::Part(format!("{what}: {e}"));
    let key = SigningKey::from_bytes(&secret(&plan.out.join("hub.key"))?);
    let store = BlobStore::open(&plan.out.join("store")).await.map_err(failed("the store"))?;
    let boot = store.next_boot().await.map_err(failed("the store"))?;
    let metrics = Metrics::new();
    let hub = Hub::new(store.clone(), boot, metrics.clone(), key.clone());
    hub.set_accepted(plan.sites.iter().cloned().collect());
    let woken = wake.clone();
    let driver = Driver::new(hub.clone(), Timestamp::now(), Arc::new(move |_| woken.notify_one()));
    let roster = sites::roster(plan)?;
    driver.set_rosters(vec![rosters::keep(&store, &roster).await.map_err(failed("the roster"))?]);
    sites::certificates(plan)?;
    let listener = TcpListener::bind("127.0.0.1:0").await.map_err(Failure::file(Path::new("127.0.0.1")))?;
    let address = listener.local_addr().map_err(Failure::file(Path::new("127.0.0.1")))?;
    let tls = GatewayTls::read(&plan.out.join("gateway")).map_err(|e| Failure::Part(e.to_string()))?;
    let served = gateway::serve(listener, tls, hub.clone(), metrics, Arc::new(Timestamp::now), shutdown.clone());
    tokio::spawn(async move {
        if let Err(error) = served.await {
            tracing::error!(%error, "the gateway ended");
        }
    });
    let center = Center::open((plan, events), (hub, driver), key).await?;
    Ok((center, format!("https://{address}")))
}

/// Held while a process works in the folder.
const LOCK: &str = ".consilium-lock";

/// Takes the folder for this process alone, until it ends.
fn lock(out: &Path) -> Result<File> {
    let path = out.join(LOCK);
    let file = File::options().create(true).truncate(false).write(true).open(&path).map_err(Failure::file(&path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => Err(Failure::Refused(format!(
            "{} is in use by another process: wait for it, end it, or name another folder by --out",
            out.display()
        ))),
        Err(std::fs::TryLockError::Error(error)) => Err(Failure::file(&path)(error)),
    }
}

/// The hub's log; what is told goes to standard output.
fn logs(out: &Path) -> Result<()> {
    let path = out.join("hub.log");
    let file = File::options().create(true).append(true).open(&path).map_err(Failure::file(&path))?;
    let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "info".into());
    let log =
        tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false).with_writer(std::sync::Mutex::new(file));
    // One that is there already, as in a test, is as good.
    let _ = log.try_init();
    Ok(())
}

/// A secret of this folder, made once.
fn secret(path: &Path) -> Result<[u8; 32]> {
    if let Some(known) = files::get::<[u8; 32]>(path)? {
        return Ok(known);
    }
    let fresh = Entropy::system().bytes32();
    files::put(path, &fresh)?;
    Ok(fresh)
}
