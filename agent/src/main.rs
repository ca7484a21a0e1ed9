//! `consilium-agent`: puts the parts together and runs them until SIGTERM.
//!
//! On a thread of its own runs what must go on whatever becomes of the volume and the hub: the SitePolicy is watched,
//! what it does not allow is stopped, probes are answered. All other parts need the volume; they are begun anew in this
//! process when it fails them, so that nobody is left without the first for it.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use axum::http::Response;
use clap::Parser as _;
use consilium_agent::edge::{ServerTime, steady};
use consilium_agent::guard::{self, Guard};
use consilium_agent::link::{Backoff, Dial as _, Dialer, Link};
use consilium_agent::policy::SeenHazards;
use consilium_agent::site::{self, KubeAnnounce};
use consilium_agent::state::Unrecorded;
use consilium_agent::volume::{self, Trouble};
use consilium_agent::{
    Clock, Config, Context, Enforcement, Entropy, Facts, Metrics, ObjectCache, State, admin, audit, deployments,
    taskport, tasks,
};
use consilium_crds::SitePolicy;
use consilium_federation::SiteName;
use kube::client::{ClientBuilder, DynBody};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tower::util::MapResponseLayer;

/// How long the parts have to finish after SIGTERM; within the usual grace period of 30 s.
const GRACE: Duration = Duration::from_secs(20);

const NO_CLUSTER: &str = "the hospital's API server cannot be reached";
const PANICKED: &str = "the thread that stops things panicked";
/// Where the guard's connections to the API server are silent for so long they are dead. Its watches begin anew within
/// 10 s, and its calls wait for 5 s at most.
const SILENT_WATCH: Duration = Duration::from_secs(15);
const SILENT_CALL: Duration = Duration::from_secs(5);

type Parts = JoinSet<(&'static str, anyhow::Result<()>)>;

fn main() -> anyhow::Result<()> {
    if std::env::args_os().nth(1).is_some_and(|word| word == audit::WORD) {
        return audit::command(audit::Arguments::parse_from(std::env::args_os().skip(1)));
    }
    let config = Config::parse();
    let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "info".into());
    tracing_subscriber::fmt().json().with_env_filter(filter).init();
    rustls::crypto::ring::default_provider()
        .install_default()
        .map_err(|_| anyhow::anyhow!("another TLS provider is installed already"))?;
    let (shared, safe) = Shared::new(config)?;
    let mut ended = start(shared.clone(), safe)?;
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(async move {
        let result = tokio::select! {
            result = supervise(&shared) => result,
            ended = &mut ended => return ended.context(PANICKED)?,
        };
        // It has a last look, at which models get the whole of their leases; the process must not end before that.
        shared.shutdown.cancel();
        result.and(ended.await.context(PANICKED)?)
    })
}

/// What both threads work with.
#[derive(Clone)]
struct Shared {
    config: Config,
    metrics: Metrics,
    server_time: ServerTime,
    clock: Clock,
    entropy: Entropy,
    policy: watch::Receiver<Option<Arc<SitePolicy>>>,
    synced: site::Synced,
    enforcement: watch::Sender<Enforcement>,
    trouble: watch::Sender<Option<Trouble>>,
    unrecorded: Unrecorded,
    hazards: SeenHazards,
    shutdown: CancellationToken,
}

/// What the thread writes that stops things.
struct Safe {
    policy: watch::Sender<Option<Arc<SitePolicy>>>,
    synced: watch::Sender<bool>,
}

impl Shared {
    fn new(config: Config) -> anyhow::Result<(Self, Safe)> {
        let (policy_in, policy) = watch::channel(None);
        let (synced_in, synced) = watch::channel(false);
        let server_time = ServerTime::default();
        let shared = Self {
            config,
            metrics: Metrics::new()?,
            clock: Clock::of_server(server_time.clone()),
            server_time,
            entropy: Entropy::system(),
            policy,
            synced,
            enforcement: watch::Sender::new(Enforcement::Unknown),
            trouble: watch::Sender::new(Some(Trouble::starting())),
            unrecorded: Unrecorded::default(),
            hazards: SeenHazards::default(),
            shutdown: CancellationToken::new(),
        };
        Ok((shared, Safe { policy: policy_in, synced: synced_in }))
    }

    fn heard(&self) -> Heard {
        (self.server_time.clone(), self.metrics.clone())
    }
}

/// Starts the thread that stops things. No write to the volume can hold it up: it makes none, and shares no thread with
/// those that do.
fn start(shared: Shared, safe: Safe) -> anyhow::Result<oneshot::Receiver<anyhow::Result<()>>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (tell, ended) = oneshot::channel();
    std::thread::Builder::new().name("guard".into()).spawn(move || {
        let result = runtime.block_on(stop_things(shared, safe));
        // Nobody listens any more when the process is at its end.
        let _ = tell.send(result);
    })?;
    Ok(ended)
}

/// A client that gives up on a connection over which nothing has come for so long, if it is told how long. What the
/// server's answers say of its clock is heard.
fn client(cluster: &kube::Config, silent: Option<Duration>, heard: &Heard) -> Result<kube::Client, kube::Error> {
    let mut cluster = cluster.clone();
    (cluster.connect_timeout, cluster.read_timeout) = (Some(SILENT_CALL), silent);
    let (time, metrics) = heard.clone();
    let hear = MapResponseLayer::new(move |answer: Response<Box<DynBody>>| {
        if let Some(ahead) = time.hear(answer.headers(), steady()) {
            metrics.server_clock_ahead.set(ahead.as_secs_f64());
        }
        answer
    });
    Ok(ClientBuilder::try_from(cluster)?.with_layer(&hear).build())
}

/// Where a server's clock is noted.
type Heard = (ServerTime, Metrics);

async fn stop_things(shared: Shared, safe: Safe) -> anyhow::Result<()> {
    let cluster = kube::Config::infer().await.context(NO_CLUSTER)?;
    let (heard, kube) = (shared.heard(), client(&cluster, Some(SILENT_CALL), &shared.heard())?);
    let (config, stop) = (&shared.config, || shared.shutdown.clone());
    let mut parts = Parts::new();
    part(&mut parts, "policy", {
        let (cluster, namespace, stop) = (cluster.clone(), config.namespace.clone(), stop());
        let (heard, clock) = (heard.clone(), shared.clock.clone());
        let connect = move || client(&cluster, None, &heard);
        async move { site::watch((connect, site::Pace::default(), clock), &namespace, safe.policy, safe.synced, stop).await }
    });
    let (synced, trouble) = (shared.synced.clone(), shared.trouble.subscribe());
    part(&mut parts, "admin", admin::run(config.admin_listen, shared.metrics.clone(), (synced, trouble), stop()));
    let of_trouble = site::Troubled {
        kube: kube.clone(),
        namespace: config.namespace.clone(),
        policy: shared.policy.clone(),
        trouble: shared.trouble.subscribe(),
        clock: shared.clock.clone(),
        shutdown: stop(),
    };
    part(&mut parts, "trouble", site::tell_trouble(of_trouble));
    let guard = Guard {
        watches: client(&cluster, Some(SILENT_WATCH), &heard)?,
        calls: kube,
        namespace: config.task_namespace.clone(),
        own_namespace: config.namespace.clone(),
        policy: shared.policy.clone(),
        synced: shared.synced.clone(),
        enforcement: shared.enforcement.subscribe(),
        unrecorded: shared.unrecorded.clone(),
        hazards: shared.hazards.clone(),
        image: config.serving_image(),
        metrics: shared.metrics.clone(),
        clock: shared.clock.clone(),
        shutdown: stop(),
    };
    part(&mut parts, "guard", guard::run(guard));
    let (mut term, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let first = tokio::select! {
        _ = term.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
        ended = parts.join_next() => outcome(ended, true),
    };
    let rest = finish(parts, &shared.shutdown).await;
    first.and(rest)
}

/// Runs the parts that need the volume, and begins them anew when one of them fails.
async fn supervise(shared: &Shared) -> anyhow::Result<()> {
    let kube = kube::Client::try_default().await.context(NO_CLUSTER)?;
    let mut backoff = Backoff::default();
    loop {
        let begun = std::time::Instant::now();
        let ended = attempt(shared, kube.clone()).await;
        if shared.shutdown.is_cancelled() {
            return ended;
        }
        let error = ended.err().unwrap_or_else(|| anyhow::anyhow!("all parts ended by themselves"));
        if begun.elapsed() > GRACE {
            backoff.reset();
        }
        let wait = backoff.wait(shared.entropy.fraction());
        tracing::error!(
            error = format!("{error:#}"),
            wait_ms = wait.as_millis() as u64,
            "begun anew; what the SitePolicy does not allow is stopped meanwhile"
        );
        volume::tell(&shared.metrics, &shared.trouble, Some(Trouble::of(&error)));
        tokio::select! {
            () = shared.shutdown.cancelled() => return Ok(()),
            () = tokio::time::sleep(wait) => {}
        }
    }
}

async fn attempt(shared: &Shared, kube: kube::Client) -> anyhow::Result<()> {
    let variable = |name: &str| std::env::var(name).or_else(|_| std::env::var(name.to_lowercase())).ok();
    let (https_proxy, no_proxy) = (variable("HTTPS_PROXY"), variable("NO_PROXY"));
    let config = shared.config.clone();
    let dialer = Dialer::new(&config.gateway, config.site_tls.clone(), https_proxy.as_deref(), no_proxy.as_deref())?;
    let site = dialer.identity()?.site;
    let (folder, secret) = (config.state.clone(), shared.entropy.bytes32());
    // The whole ledger is verified, which may take its time.
    let state = tokio::task::spawn_blocking(move || State::open(&folder, secret)).await??;
    own_volume(&state, &site)?;
    let signing_key = consilium_crds::roster::key_text(&state.site_key(&shared.entropy)?.public());
    let instance = consilium_agent::edge::instance();
    tracing::info!(%site, instance, signing_key, version = consilium_agent::VERSION, ledger_head = %state.head()?, "starting");
    volume::tell(&shared.metrics, &shared.trouble, None);

    let link = Link::new(dialer, state.assignment()?);
    let objects = config.state.join("objects");
    let objects = ObjectCache::new(objects, config.cache_bytes, link.object_source(), shared.metrics.clone())?;
    let ctx = Arc::new(Context {
        config,
        site,
        state,
        facts: Facts::default(),
        desired: link.desired(),
        policy: shared.policy.clone(),
        objects,
        kube,
        metrics: shared.metrics.clone(),
        desk: tasks::Desk::default(),
        enforcement: shared.enforcement.clone(),
        unrecorded: shared.unrecorded.clone(),
        hazards: shared.hazards.clone(),
        clock: shared.clock.clone(),
        entropy: shared.entropy.clone(),
        shutdown: shared.shutdown.child_token(),
    });
    let mut parts = run(&ctx, link, shared);
    let first = tokio::select! {
        () = shared.shutdown.cancelled() => Ok(()),
        ended = parts.join_next() => outcome(ended, true),
    };
    let rest = finish(parts, &ctx.shutdown).await;
    first.and(rest)
}

fn run(ctx: &Arc<Context>, link: Link, shared: &Shared) -> Parts {
    let mut parts = Parts::new();
    let (c, synced) = (|| Arc::clone(ctx), || shared.synced.clone());
    part(&mut parts, "volume", volume::watch(c(), shared.trouble.clone()));
    part(&mut parts, "status", site::run(c(), link.status(), shared.trouble.subscribe()));
    part(&mut parts, "taskport", taskport::run(c()));
    part(&mut parts, "audit", audit::run(c()));
    let announce = Arc::new(KubeAnnounce::new(ctx.kube.clone(), &ctx.config.task_namespace));
    // Deciding before the policy is known would report refusals that are none.
    for (name, run) in [("tasks", boxed(tasks::run(c()))), ("deployments", boxed(deployments::run(c())))] {
        part(&mut parts, name, after_sync(synced(), ctx.shutdown.clone(), run));
    }
    part(&mut parts, "link", after_sync(synced(), ctx.shutdown.clone(), boxed(link.run(c(), announce))));
    parts
}

/// A volume belongs to one hospital: another one's updates must not leave under its name.
fn own_volume(state: &State, site: &SiteName) -> anyhow::Result<()> {
    match state.blob("site")? {
        Some(owner) if owner == site.as_str().as_bytes() => Ok(()),
        Some(owner) => anyhow::bail!(
            "the volume holds the state of {:?} and the certificate is that of {site}; restore the certificate, or give {site} a volume of its own",
            String::from_utf8_lossy(&owner)
        ),
        None => Ok(state.put_blob("site", site.as_str().as_bytes())?),
    }
}

fn part(parts: &mut Parts, name: &'static str, run: impl Future<Output = anyhow::Result<()>> + Send + 'static) {
    parts.spawn(async move { (name, run.await) });
}

type Boxed = futures::future::BoxFuture<'static, anyhow::Result<()>>;

fn boxed(run: impl Future<Output = anyhow::Result<()>> + Send + 'static) -> Boxed {
    Box::pin(run)
}

async fn after_sync(mut synced: site::Synced, shutdown: CancellationToken, run: Boxed) -> anyhow::Result<()> {
    tokio::select! {
        () = shutdown.cancelled() => return Ok(()),
        known = synced.wait_for(|known| *known) => { known.context("the watch on the SitePolicy ended")?; }
    }
    run.await
}

/// Ends the parts, and waits for them.
async fn finish(mut parts: Parts, shutdown: &CancellationToken) -> anyhow::Result<()> {
    tracing::info!("stopping");
    shutdown.cancel();
    let mut result = Ok(());
    let rest = async {
        while let Some(ended) = parts.join_next().await {
            result = std::mem::replace(&mut result, Ok(())).and(outcome(Some(ended), false));
        }
    };
    if tokio::time::timeout(GRACE, rest).await.is_err() {
        tracing::warn!("some parts did not stop in time; what they did is resumed at the next start");
    }
    result
}

type Ended = Result<(&'static str, anyhow::Result<()>), tokio::task::JoinError>;

fn outcome(ended: Option<Ended>, early: bool) -> anyhow::Result<()> {
    match ended {
        Some(Ok((name, Ok(())))) if early => anyhow::bail!("{name} ended by itself"),
        Some(Ok((_, Ok(())))) | None => Ok(()),
        Some(Ok((name, Err(error)))) => Err(error.context(name)),
        Some(Err(panicked)) => Err(panicked.into()),
    }
}
