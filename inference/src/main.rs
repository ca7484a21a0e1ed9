//! The binary `consilium-inference`; see the library for what belongs here.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use consilium_federation::digest::Digest;
use consilium_imaging::frame::Frame;
use consilium_imaging::torch::Segmenter;
use consilium_inference::ask::{Question, ask};
use consilium_inference::batcher::Batcher;
use consilium_inference::lease::{self, Lease};
use consilium_inference::memory::{Bounds, limit};
use consilium_inference::metrics::Metrics;
use consilium_inference::protocol::Identity;
use consilium_inference::release::{Allowed, ReleaseError, load, verify};
use consilium_inference::room::Room;
use consilium_inference::server::{Served, router};
use consilium_inference::stage::{self, Told};
use tch::Device;
use tokio::signal::unix::{SignalKind, signal};

/// Exit code for a release that must not be served; trying again does not help.
const EXIT_INVALID: u8 = 42;

/// Serves one released model by the Open Inference Protocol v2 (REST).
#[derive(Debug, Parser)]
#[command(name = "consilium-inference", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Check a release against its digests and serve it; exits with 42 if they differ
    Serve(ServeArgs),
    /// Send one scan to a server and print what came back
    Ask(AskArgs),
}

#[derive(Debug, Args)]
struct ServeArgs {
    /// Folder of release.json, manifest.json and model.safetensors
    #[arg(long, default_value = "/consilium")]
    root: PathBuf,
    /// Name that clients call the model by: that of its release
    #[arg(long)]
    name: String,
    /// Digest that release.json must have
    #[arg(long)]
    release_digest: Digest,
    /// Digest that the model must have
    #[arg(long)]
    model_digest: Digest,
    /// Address to listen on
    #[arg(long, default_value = "0.0.0.0:8080")]
    listen: SocketAddr,
    /// CPU threads [default: the cores that this process may use]
    #[arg(long)]
    threads: Option<u16>,
    /// Requests that may wait; more are turned away with 503
    #[arg(long, default_value_t = 32)]
    queue: usize,
    /// The largest volume, in voxels; less where the memory that this process may use holds less
    #[arg(long, default_value_t = 1 << 26)]
    max_voxels: usize,
}

#[derive(Debug, Args)]
struct AskArgs {
    /// The server, http://host:port
    #[arg(long)]
    url: String,
    /// The model's name
    #[arg(long)]
    model: String,
    /// The scan, .nii or .nii.gz
    #[arg(long)]
    image: PathBuf,
    /// The true mask: also print the Dice of each class
    #[arg(long)]
    label: Option<PathBuf>,
    /// Where to write the answer's mask
    #[arg(long)]
    out: Option<PathBuf>,
    /// Print one line of JSON
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    consilium_imaging::torch::wait_without_spinning();
    let cli = Cli::parse();
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime,
        Err(e) => {
            eprintln!("error: the runtime cannot start: {e}");
            return ExitCode::FAILURE;
        }
    };
    match cli.command {
        Command::Serve(args) => {
            tracing_subscriber::fmt().json().with_env_filter(filter()).with_writer(std::io::stderr).init();
            runtime.block_on(serve(&args))
        }
        Command::Ask(args) => runtime.block_on(ask_once(args)),
    }
}

fn filter() -> tracing_subscriber::EnvFilter {
    tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "info".into())
}

async fn serve(args: &ServeArgs) -> ExitCode {
    let lease = Lease::new(std::env::var_os(lease::VARIABLE));
    match granted(args, &lease).await {
        Ok(true) => {}
        Ok(false) => return ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("error: {e}");
            return ExitCode::FAILURE;
        }
    }
    // libtorch counts the machine's cores, unless the environment says better. In a pod it would start a thread for each of
    // them, and all would wait for the two cores that the pod has.
    let cores = || std::thread::available_parallelism().map_or(1, usize::from).try_into().unwrap_or(u16::MAX);
    if args.threads.is_some() || std::env::var_os("OMP_NUM_THREADS").is_none() {
        tch::set_num_threads(i32::from(args.threads.unwrap_or_else(cores).max(1)));
    }
    let allowed = Allowed { root: args.root.clone(), release: args.release_digest, model: args.model_digest };
    let device = Device::cuda_if_available();
    let invalid = |e: ReleaseError| {
        eprintln!("error: {e}");
        ExitCode::from(EXIT_INVALID)
    };
    let release = match verify(&allowed) {
        Ok(release) => release,
        Err(e) => return invalid(e),
    };
    let memory = limit(Path::new("/"));
    let (tile, frame) = match release.tile().and_then(|tile| Ok((tile, release.frame()?))) {
        Ok(both) => both,
        Err(e) => return invalid(e),
    };
    let bounds = match Bounds::of(memory, release.network(), tile, args.max_voxels) {
        Ok(bounds) => bounds,
        Err(e) => {
            eprintln!("error: {e}");
            return ExitCode::FAILURE;
        }
    };
    let segmenter = match load(&allowed, &release, device, bounds.tiles) {
        Ok(segmenter) => segmenter,
        Err(e) => return invalid(e),
    };
    tracing::info!(name = args.name, study = release.study, round = release.round, model = %release.model,
        device = ?device, threads = tch::get_num_threads(), memory, bounds = ?bounds, "verified and loaded");
    match listen(args, segmenter, bounds, frame, lease).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("error: {e}");
            ExitCode::FAILURE
        }
    }
}

/// Waits for the lease before the model takes memory; false when told to end. Until then, and from its end on, nothing
/// is answered.
async fn granted(args: &ServeArgs, lease: &Lease) -> std::io::Result<bool> {
    if lease.holds(jiff::Timestamp::now()) {
        return Ok(true);
    }
    tracing::info!("waiting for the hospital's agent to grant this model's lease");
    let listener = tokio::net::TcpListener::bind(args.listen).await?;
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        held = lease.granted(listener) => held.map(|()| true),
        _ = terminate.recv() => Ok(false),
    }
}

async fn listen(
    args: &ServeArgs,
    segmenter: Segmenter,
    bounds: Bounds,
    frame: Frame,
    lease: Lease,
) -> Result<(), Box<dyn std::error::Error>> {
    let metrics = Metrics::new()?;
    let batcher = Batcher::start(segmenter, args.queue, bounds.canvas_voxels, metrics.clone())?;
    let version: String = args.model_digest.hex().chars().take(12).collect();
    let digest = args.model_digest.to_string();
    let identity = Identity { name: args.name.clone(), version, digest, frame };
    let served = Served { identity, batcher, metrics, bounds, room: Room::new(bounds.room) };
    let listener = tokio::net::TcpListener::bind(args.listen).await?;
    tracing::info!(address = %listener.local_addr()?, "listening");
    let mut terminate = signal(SignalKind::terminate())?;
    let routes = stage::on(router(served), Told::new(std::env::var_os(stage::VARIABLE)));
    let routes = lease::behind(routes, lease.clone());
    let lost = async move {
        lease.lost(lease::NOTICE).await;
    };
    let stop = async move {
        terminate.recv().await;
        tracing::info!("SIGTERM: requests under way are answered, then this process ends");
    };
    tokio::select! {
        ended = axum::serve(listener, routes).with_graceful_shutdown(stop) => Ok(ended?),
        // What is still under way by then is given up with the process.
        () = lost => Ok(()),
    }
}

async fn ask_once(args: AskArgs) -> ExitCode {
    let question = Question { url: args.url, model: args.model, image: args.image, label: args.label, out: args.out };
    match ask(&question).await {
        Ok(said) if args.json => {
            println!("{said}");
            ExitCode::SUCCESS
        }
        Ok(said) => {
            println!("model {} ({})", text(&said["model"]), text(&said["modelDigest"]));
            println!(
                "voxels by class {}, answered in {:.0} ms",
                said["voxels"],
                said["milliseconds"].as_f64().unwrap_or_default()
            );
            if let Some(dice) = said.get("dice") {
                println!("dice by class {dice}");
            }
            ExitCode::SUCCESS
        }
        Err(e) => {
            eprintln!("error: {e}");
            ExitCode::FAILURE
        }
    }
}

fn text(value: &serde_json::Value) -> &str {
    value.as_str().unwrap_or("?")
}
