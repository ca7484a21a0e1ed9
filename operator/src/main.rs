//! `consilium-operator`: puts the hub together and keeps it running.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use base64::Engine as _;
use clap::Parser;
use consilium_operator::admin::{self, Health};
use consilium_operator::controllers::Controllers;
use consilium_operator::controllers::context::{Parts, Settings};
use consilium_operator::controllers::models::Rights;
use consilium_operator::gateway::{self, Clock, GatewayTls};
use consilium_operator::hub::Hub;
use consilium_operator::init_port;
use consilium_operator::metrics::Metrics;
use consilium_operator::models;
use consilium_operator::store::BlobStore;
use ed25519_dalek::SigningKey;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// The hub of a federation: controllers, gateway, aggregation and blob store.
#[derive(Parser)]
#[command(name = "consilium-operator", version)]
struct Arguments {
    /// Where hospitals connect (mutual TLS, gRPC).
    #[arg(long, env = "CONSILIUM_GATEWAY_LISTEN", default_value = "0.0.0.0:8443")]
    gateway_listen: SocketAddr,
    /// Where Init tasks fetch and deliver (TLS, gRPC).
    #[arg(long, env = "CONSILIUM_TASKS_LISTEN", default_value = "0.0.0.0:8444")]
    tasks_listen: SocketAddr,
    /// Where probes and Prometheus come (HTTP).
    #[arg(long, env = "CONSILIUM_ADMIN_LISTEN", default_value = "0.0.0.0:8080")]
    admin_listen: SocketAddr,
    /// Where `kubectl consilium model` comes, through a port-forward: the pod's loopback, for it is plain HTTP.
    #[arg(long, env = "CONSILIUM_MODELS_LISTEN", default_value = "127.0.0.1:8445")]
    models_listen: SocketAddr,
    /// Folder of the blob store, on a volume of its own.
    #[arg(long, env = "CONSILIUM_STORE", default_value = "/var/lib/consilium")]
    store: PathBuf,
    /// Folder with tls.crt, tls.key and ca.crt (the CA that signs the hospitals' certificates).
    #[arg(long, env = "CONSILIUM_GATEWAY_TLS", default_value = "/etc/consilium/gateway")]
    gateway_tls: PathBuf,
    /// File with the hub's Ed25519 seed, 32 bytes in base64.
    #[arg(long, env = "CONSILIUM_HUB_KEY", default_value = "/etc/consilium/hub-key/key")]
    hub_key: PathBuf,
    /// Namespace of Init tasks.
    #[arg(long, env = "CONSILIUM_TASK_NAMESPACE", default_value = "consilium-hub-tasks")]
    task_namespace: String,
    /// Address that Init tasks dial: https://, the IP of the task Service, its port.
    #[arg(long, env = "CONSILIUM_TASK_ADDRESS", default_value = "https://10.96.0.50:8444")]
    task_address: String,
    /// Image with consilium-courier, by digest.
    #[arg(long, env = "CONSILIUM_COURIER_IMAGE")]
    courier_image: String,
    /// How long a model that no study, round, release or promotion names stays in the store, for example 24h.
    #[arg(long, env = "CONSILIUM_UNNAMED_MODELS_FOR", default_value = "24h")]
    unnamed_models_for: jiff::SignedDuration,
    /// What is logged, for example info,consilium_operator=debug.
    #[arg(long, env = "CONSILIUM_LOG", default_value = "info")]
    log: String,
}

/// Why the operator ended. The text is the whole message for the person who reads the log.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Failure(String);

fn failure<E: std::fmt::Display>(what: &str) -> impl FnOnce(E) -> Failure {
    let what = what.to_owned();
    move |error| Failure(format!("{what}: {error}"))
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    admin::init_logs(&arguments.log);
    if rustls::crypto::ring::default_provider().install_default().is_err() {
        tracing::error!("another TLS provider was installed before ring");
        return ExitCode::FAILURE;
    }
    match run(arguments).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(%error, "the operator ends");
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: Arguments) -> Result<(), Failure> {
    let key = read_key(&arguments.hub_key)?;
    // What hospitals pin in spec.audit.hubKey.
    let public = base64::engine::general_purpose::STANDARD.encode(key.verifying_key().to_bytes());
    tracing::info!(hub_key = public, "the hub's public key");
    let tls = GatewayTls::read(&arguments.gateway_tls).map_err(failure("--gateway-tls"))?;
    let store = BlobStore::open(&arguments.store).await.map_err(failure("--store"))?;
    let boot = store.next_boot().await.map_err(failure("--store"))?;
    let identity = init_port::identity(&arguments.store.join("task-port"), &arguments.task_address)
        .map_err(failure("the task port"))?;
    let metrics = Metrics::new();
    tls.ends().into_iter().for_each(|at| metrics.gateway_certificate(at));
    let (metrics_of_store, hub) = (metrics.clone(), Hub::new(store.clone(), boot, metrics.clone(), key.clone()));
    // The edge: the one place where the operator reads the clock.
    let clock: Clock = Arc::new(jiff::Timestamp::now);
    let client = kube::Client::try_default().await.map_err(failure("finding the Kubernetes API"))?;
    let settings = settings(&arguments, client.default_namespace(), &identity.certificate);
    let parts = Parts { client, hub: hub.clone(), metrics: metrics.clone(), key, settings, clock: clock.clone() };
    let controllers = Controllers::new(parts);

    let shutdown = CancellationToken::new();
    let health = Health::default();
    let mut tasks = JoinSet::new();
    let listener = listen("--admin-listen", arguments.admin_listen).await?;
    let served = admin::serve(listener, metrics.clone(), health.clone(), shutdown.clone());
    tasks.spawn(async move { served.await.map_err(failure("the admin port")) });
    let listener = listen("--tasks-listen", arguments.tasks_listen).await?;
    let served = init_port::serve(listener, identity, controllers.context(), shutdown.clone());
    tasks.spawn(async move { served.await.map_err(failure("the task port")) });
    let listener = listen_on_loopback(arguments.models_listen).await?;
    let rights = Arc::new(Rights(controllers.context()));
    let served = models::serve(listener, store.clone(), rights, shutdown.clone());
    tasks.spawn(async move { served.await.map_err(failure("the door for models")) });
    let listener = listen("--gateway-listen", arguments.gateway_listen).await?;
    let served = gateway::serve(listener, tls, hub, metrics, clock, shutdown.clone());
    tasks.spawn(async move { served.await.map_err(failure("the gateway")) });
    let driven = {
        let (health, shutdown) = (health.clone(), shutdown.clone());
        // The gateway listens already: with the caches synced, hospitals can be sent here.
        async move { controllers.run(|| health.set_ready(true), shutdown).await }
    };
    tasks.spawn(async move { driven.await.map_err(failure("the controllers")) });
    tasks.spawn(measure_store(store, metrics_of_store, shutdown.clone()));
    tracing::info!(boot, gateway = %arguments.gateway_listen, "the operator runs");

    let ended = wait(&mut tasks, &shutdown).await;
    health.set_ready(false);
    shutdown.cancel();
    while let Some(result) = tasks.join_next().await {
        if let Ok(Err(error)) = result {
            tracing::warn!(%error, "while shutting down");
        }
    }
    ended
}

fn settings(arguments: &Arguments, namespace: &str, certificate: &str) -> Settings {
    Settings {
        namespace: namespace.to_owned(),
        task_namespace: arguments.task_namespace.clone(),
        task_address: arguments.task_address.clone(),
        courier_image: arguments.courier_image.clone(),
        task_certificate: certificate.to_owned(),
        unnamed_for: arguments.unnamed_models_for.unsigned_abs(),
    }
}

/// Keeps the figures of the store's space current.
async fn measure_store(store: BlobStore, metrics: Metrics, shutdown: CancellationToken) -> Result<(), Failure> {
    let mut ticks = tokio::time::interval(std::time::Duration::from_secs(15));
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            _ = ticks.tick() => {}
        }
        if let Ok(Some(bytes)) = store.volume() {
            metrics.store_volume(bytes);
        }
        match store.space() {
            Ok((free, promised)) => metrics.store_space(free, promised),
            Err(error) => tracing::warn!(%error, "the store's space was not measured"),
        }
    }
}

/// Waits for a signal, or for a part that ends and should not.
async fn wait(tasks: &mut JoinSet<Result<(), Failure>>, shutdown: &CancellationToken) -> Result<(), Failure> {
    let mut terminate = signal(SignalKind::terminate()).map_err(failure("SIGTERM cannot be listened for"))?;
    let ended = tokio::select! {
        _ = terminate.recv() => None,
        _ = tokio::signal::ctrl_c() => None,
        ended = tasks.join_next() => ended,
    };
    match ended {
        None => {
            tracing::info!("asked to end; work under way is finished");
            shutdown.cancel();
            Ok(())
        }
        Some(Ok(Ok(()))) => Err(Failure("a part of the operator ended by itself".into())),
        Some(Ok(Err(error))) => Err(error),
        Some(Err(panic)) => Err(Failure(format!("a part of the operator failed: {panic}"))),
    }
}

async fn listen(flag: &str, address: SocketAddr) -> Result<TcpListener, Failure> {
    TcpListener::bind(address).await.map_err(failure(&format!("{flag} {address}")))
}

/// What is plain HTTP and carries tokens stays inside the pod.
async fn listen_on_loopback(address: SocketAddr) -> Result<TcpListener, Failure> {
    if !address.ip().is_loopback() {
        return Err(Failure(format!(
            "--models-listen {address}: it is plain HTTP; name an address of the loopback, 127.0.0.1"
        )));
    }
    listen("--models-listen", address).await
}

fn read_key(file: &std::path::Path) -> Result<SigningKey, Failure> {
    let name = format!("--hub-key {}", file.display());
    let text = std::fs::read_to_string(file).map_err(failure(&name))?;
    let raw = base64::engine::general_purpose::STANDARD.decode(text.trim()).map_err(failure(&name))?;
    let seed: [u8; 32] = raw.try_into().map_err(|raw: Vec<u8>| {
        Failure(format!("{name}: the file holds {} bytes in base64, but an Ed25519 seed has 32", raw.len()))
    })?;
    Ok(SigningKey::from_bytes(&seed))
}
