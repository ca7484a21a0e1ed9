//! `consilium-agent`: puts the parts together and runs them until SIGTERM.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use clap::Parser as _;
use consilium_agent::link::{Dialer, Link};
use consilium_agent::site::{self, KubeAnnounce};
use consilium_agent::{
    Clock, Config, Context, Enforcement, Entropy, Facts, Metrics, ObjectCache, State, admin, deployments, taskport,
    tasks,
};
use consilium_federation::SiteName;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// How long the parts have to finish after SIGTERM; within the usual grace period of 30 s.
const GRACE: Duration = Duration::from_secs(20);

type Parts = JoinSet<(&'static str, anyhow::Result<()>)>;

fn main() -> anyhow::Result<()> {
    let config = Config::parse();
    let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "info".into());
    tracing_subscriber::fmt().json().with_env_filter(filter).init();
    rustls::crypto::ring::default_provider()
        .install_default()
        .map_err(|_| anyhow::anyhow!("another TLS provider is installed already"))?;
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(run(config))
}

async fn run(config: Config) -> anyhow::Result<()> {
    let (clock, entropy, metrics) = (Clock::system(), Entropy::system(), Metrics::new()?);
    let variable = |name: &str| std::env::var(name).or_else(|_| std::env::var(name.to_lowercase())).ok();
    let (https_proxy, no_proxy) = (variable("HTTPS_PROXY"), variable("NO_PROXY"));
    let dialer = Dialer::new(&config.gateway, config.site_tls.clone(), https_proxy.as_deref(), no_proxy.as_deref())?;
    let site = dialer.identity()?.site;
    let state = State::open(&config.state, entropy.bytes32())?;
    own_volume(&state, &site)?;
    let signing_key = consilium_crds::roster::key_text(&state.site_key(&entropy)?.public());
    tracing::info!(%site, signing_key, version = consilium_agent::VERSION, ledger_head = %state.head()?, "starting");

    let link = Link::new(dialer, state.assignment()?);
    let objects = config.state.join("objects");
    let objects = ObjectCache::new(objects, config.cache_bytes, link.object_source(), metrics.clone())?;
    let kube = kube::Client::try_default().await.context("the hospital's API server cannot be reached")?;
    let (policy_in, policy) = watch::channel(None);
    let (synced_in, synced) = watch::channel(false);
    let ctx = Arc::new(Context {
        config,
        site,
        state,
        facts: Facts::default(),
        desired: link.desired(),
        policy,
        objects,
        kube,
        metrics,
        desk: tasks::Desk::default(),
        enforcement: watch::Sender::new(Enforcement::Unknown),
        clock,
        entropy,
        shutdown: CancellationToken::new(),
    });

    let mut parts = Parts::new();
    let c = || ctx.clone();
    part(&mut parts, "policy", {
        let c = c();
        async move { site::watch(c.kube.clone(), &c.config.namespace, policy_in, synced_in, c.shutdown.clone()).await }
    });
    part(&mut parts, "admin", {
        let c = c();
        admin::run(c.config.admin_listen, c.metrics.clone(), synced.clone(), c.shutdown.clone())
    });
    part(&mut parts, "status", site::run(c(), link.status()));
    part(&mut parts, "taskport", taskport::run(c()));
    let announce = Arc::new(KubeAnnounce::new(ctx.kube.clone(), &ctx.config.task_namespace));
    // Deciding before the policy is known would report refusals that are none.
    for (name, run) in [("tasks", boxed(tasks::run(c()))), ("deployments", boxed(deployments::run(c())))] {
        part(&mut parts, name, after_sync(synced.clone(), ctx.shutdown.clone(), run));
    }
    part(&mut parts, "link", after_sync(synced, ctx.shutdown.clone(), boxed(link.run(c(), announce))));
    finish(parts, &ctx.shutdown).await
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

/// Waits for SIGTERM, SIGINT or the first part that ends, and then for the others.
async fn finish(mut parts: Parts, shutdown: &CancellationToken) -> anyhow::Result<()> {
    let (mut term, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let mut result = tokio::select! {
        _ = term.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
        ended = parts.join_next() => outcome(ended, true),
    };
    tracing::info!("stopping");
    shutdown.cancel();
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
        Some(Ok((name, Ok(())))) if early => anyhow::bail!("{name} ended by itself; the agent restarts"),
        Some(Ok((_, Ok(())))) | None => Ok(()),
        Some(Ok((name, Err(error)))) => Err(error.context(name)),
        Some(Err(panicked)) => Err(panicked.into()),
    }
}
