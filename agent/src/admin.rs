//! Probes and metrics over plain HTTP, inside the cluster.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::State as Shared;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use tokio_util::sync::CancellationToken;

use crate::Metrics;
use crate::site::Synced;

struct Admin {
    metrics: Metrics,
    synced: Synced,
}

/// Serves `/livez`, `/readyz` and `/metrics` until shutdown.
///
/// Ready means that the policy is known: a hub that is away must not take the task port away from pods that deliver.
pub async fn run(listen: SocketAddr, metrics: Metrics, synced: Synced, stop: CancellationToken) -> anyhow::Result<()> {
    let listener = tokio::net::TcpListener::bind(listen).await?;
    serve(listener, metrics, synced, stop).await
}

async fn serve(
    listener: tokio::net::TcpListener,
    metrics: Metrics,
    synced: Synced,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let router = Router::new()
        .route("/livez", get(async || "ok\n"))
        .route("/readyz", get(readyz))
        .route("/metrics", get(expose))
        .with_state(Arc::new(Admin { metrics, synced }));
    let stopped = async move { stop.cancelled().await };
    Ok(axum::serve(listener, router).with_graceful_shutdown(stopped).await?)
}

async fn readyz(Shared(admin): Shared<Arc<Admin>>) -> impl IntoResponse {
    if *admin.synced.borrow() {
        (StatusCode::OK, "ok\n")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "the SitePolicy is not known yet\n")
    }
}

async fn expose(Shared(admin): Shared<Arc<Admin>>) -> impl IntoResponse {
    match admin.metrics.render() {
        Ok(text) => ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}
