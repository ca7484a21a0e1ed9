//! One hospital's process: the agent's own link, ladder, volume, task port and task controller, with processes for Jobs.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use clap::Parser as _;
use consilium_agent::link::{Dialer, Link};
use consilium_agent::state::Unrecorded;
use consilium_agent::{
    Clock, Config, Context, Enforcement, Entropy, Facts, Metrics, ObjectCache, State, taskport, tasks as agent_tasks,
};
use consilium_crds::SitePolicy;
use kube::client::Body;
use tokio::net::TcpListener;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use super::runner::{Port, Processes};
use super::setup::Setup;
use super::tasks::Tasks;
use super::{Failure, Result, files};

/// First argument of this program where it is a hospital; the second is its folder.
pub(super) const HOSPITAL: &str = "local-hospital";

/// Bytes of the hub's objects that are kept.
const CACHE: u64 = 8 << 30;

/// Runs until it is ended, or fails.
pub(super) fn run(folder: &Path) -> ExitCode {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "info".into());
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false).init();
    if rustls::crypto::ring::default_provider().install_default().is_err() {
        return ExitCode::FAILURE;
    }
    // One thread: trainers end with the thread that started them.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let ended = runtime.map_err(Failure::file(folder)).and_then(|runtime| runtime.block_on(serve(folder)));
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn part<E: std::fmt::Display>(what: &'static str) -> impl FnOnce(E) -> Failure {
    move |error| Failure::Part(format!("{what}: {error}"))
}

async fn serve(folder: &Path) -> Result<()> {
    let setup: Setup = files::get(&folder.join("hospital.json"))?
        .ok_or_else(|| Failure::Part(format!("{} holds no hospital.json", folder.display())))?;
    let entropy = Entropy::system();
    let dialer = Dialer::new(&setup.gateway, folder.join("tls"), None, None).map_err(part("the gateway"))?;
    let state = State::open(&folder.join("state"), entropy.bytes32()).map_err(part("the volume"))?;
    let metrics = Metrics::new().map_err(part("metrics"))?;
    let link = Link::new(dialer, state.assignment().map_err(part("the volume"))?);
    let objects = ObjectCache::new(folder.join("objects"), CACHE, link.object_source(), metrics.clone());
    // Nothing is ever written to the channel, and it must stay open.
    let (_policy, policy) = watch::channel(Some(Arc::new(SitePolicy::new("default", setup.policy.clone()))));
    let listener = TcpListener::bind("127.0.0.1:0").await.map_err(part("the task port"))?;
    let address = listener.local_addr().map_err(part("the task port"))?;
    let ctx = Arc::new(Context {
        config: config(folder, &setup.gateway)?,
        site: setup.site.clone(),
        state,
        facts: Facts::default(),
        desired: link.desired(),
        policy,
        objects: objects.map_err(part("the cache"))?,
        kube: nowhere(),
        metrics,
        desk: agent_tasks::Desk::default(),
        // There is no network to keep a process of this machine from, which the first lines of the output say.
        enforcement: watch::Sender::new(Enforcement::Enforced),
        unrecorded: Unrecorded::default(),
        hazards: consilium_agent::policy::SeenHazards::default(),
        clock: Clock::system(),
        entropy,
        shutdown: CancellationToken::new(),
    });
    let address = format!("https://{address}");
    let identity = ctx.desk.identity(&ctx.state, &address).map_err(part("the task port"))?;
    let inbox = folder.join("incoming");
    files::remove(&inbox)?;
    files::folder(&inbox)?;
    let port = taskport::Port::new(ctx.state.clone(), ctx.desk.clone(), inbox, ctx.clone());
    let (tasks, news) = (Tasks::open(folder.join("tasks"))?, Arc::new(Notify::new()));
    let reached = Port { address, certificate: identity.certificate.clone() };
    let processes = Processes::new(ctx.clone(), (folder.to_owned(), setup), tasks.clone(), news.clone(), reached);
    tracing::info!(site = %ctx.site, "a hospital begins");
    tokio::select! {
        ended = link.run(ctx.clone(), Arc::new(tasks)) => ended.map_err(part("the link")),
        ended = taskport::serve(listener, &identity, port, ctx.shutdown.clone()) => ended.map_err(part("the task port")),
        () = agent_tasks::carry_out(ctx.clone(), Arc::new(processes), news) => Ok(()),
    }
}

/// The agent's settings; what only a cluster needs is never looked at.
fn config(folder: &Path, gateway: &str) -> Result<Config> {
    let state: PathBuf = folder.join("state");
    let words = ["agent", "--gateway", gateway, "--state"].map(std::ffi::OsString::from).into_iter();
    let images = ["--courier-image", "none", "--evaluator-image", "none", "--inference-image", "none"];
    let words = words.chain([state.into_os_string()]).chain(images.map(Into::into));
    Config::try_parse_from(words).map_err(part("the agent's settings"))
}

/// A client of no cluster: nothing of a hospital on this machine asks one.
fn nowhere() -> kube::Client {
    let service = tower::service_fn(|_: http::Request<Body>| async {
        Err::<http::Response<Body>, _>(std::io::Error::other("there is no cluster here"))
    });
    kube::Client::new(service, "default")
}
