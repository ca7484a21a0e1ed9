//! Probes and metrics over plain HTTP, inside the cluster.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::State as Shared;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::Metrics;
use crate::site::Synced;
use crate::volume::Trouble;

struct Admin {
    metrics: Metrics,
    synced: Synced,
    trouble: watch::Receiver<Option<Trouble>>,
}

/// What readiness depends on: the policy is known, and the parts that need the volume run.
type Readiness = (Synced, watch::Receiver<Option<Trouble>>);

/// Serves `/livez`, `/readyz` and `/metrics` until shutdown.
///
/// Ready means that the policy is known and the volume can be used: a hub that is away must not take the task port away
/// from pods that deliver. Alive is whoever answers: a restart mends no volume, and stops nothing that must stop.
pub async fn run(
    listen: SocketAddr,
    metrics: Metrics,
    readiness: Readiness,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let listener = tokio::net::TcpListener::bind(listen).await?;
    serve(listener, metrics, readiness, stop).await
}

async fn serve(
    listener: tokio::net::TcpListener,
    metrics: Metrics,
    (synced, trouble): Readiness,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let router = Router::new()
        .route("/livez", get(async || "ok\n"))
        .route("/readyz", get(readyz))
        .route("/metrics", get(expose))
        .with_state(Arc::new(Admin { metrics, synced, trouble }));
    let stopped = async move { stop.cancelled().await };
    Ok(axum::serve(listener, router).with_graceful_shutdown(stopped).await?)
}

async fn readyz(Shared(admin): Shared<Arc<Admin>>) -> impl IntoResponse {
    let trouble = admin.trouble.borrow().as_ref().map(|trouble| format!("{}: {}\n", trouble.reason, trouble.message));
    match (*admin.synced.borrow(), trouble) {
        (true, None) => (StatusCode::OK, "ok\n".to_owned()),
        (false, _) => (StatusCode::SERVICE_UNAVAILABLE, "the SitePolicy is not known yet\n".to_owned()),
        (true, Some(trouble)) => (StatusCode::SERVICE_UNAVAILABLE, trouble),
    }
}

async fn expose(Shared(admin): Shared<Arc<Admin>>) -> impl IntoResponse {
    match admin.metrics.render() {
        Ok(text) => ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}
