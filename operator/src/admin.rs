//! The operator's own HTTP port: metrics, probes, and how its logs look.
//!
//! Plain HTTP inside the cluster, nothing about patients or models on it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

use crate::metrics::Metrics;

/// Whether the operator can do its work; a clone is the same switch.
#[derive(Clone, Default)]
pub struct Health(Arc<AtomicBool>);

impl Health {
    /// Says whether the operator can do its work: the store is open, the caches are synced, the gateway listens.
    pub fn set_ready(&self, ready: bool) {
        self.0.store(ready, Ordering::Relaxed);
    }

    fn is_ready(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Serves `/metrics`, `/livez` and `/readyz` until `shutdown`.
///
/// # Errors
/// When the listener fails.
pub async fn serve(
    listener: TcpListener,
    metrics: Metrics,
    health: Health,
    shutdown: CancellationToken,
) -> std::io::Result<()> {
    axum::serve(listener, router(metrics, health)).with_graceful_shutdown(shutdown.cancelled_owned()).await
}

fn router(metrics: Metrics, health: Health) -> Router {
    let text = |State((metrics, _)): State<(Metrics, Health)>| async move {
        ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], metrics.text())
    };
    let ready = |State((_, health)): State<(Metrics, Health)>| async move {
        if health.is_ready() {
            (StatusCode::OK, "ok").into_response()
        } else {
            (StatusCode::SERVICE_UNAVAILABLE, "the caches are not synced yet").into_response()
        }
    };
    Router::new()
        .route("/metrics", get(text))
        .route("/readyz", get(ready))
        // That this answers at all is what the probe wants to know.
        .route("/livez", get(|| async { "ok" }))
        .with_state((metrics, health))
}

/// Sends logs to the standard output, one JSON object a line. `filter` is a directive such as `info,kube=warn`;
/// a wrong one falls back to `info`.
pub fn init_logs(filter: &str) {
    let filter = EnvFilter::try_new(filter).unwrap_or_else(|_| EnvFilter::new("info"));
    // A second call (in tests) keeps the first subscriber, which is as good.
    let _ = tracing_subscriber::fmt().json().flatten_event(true).with_env_filter(filter).try_init();
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use axum::http::Request;
    use tower::ServiceExt;

    use super::*;

    async fn get(router: &Router, path: &str) -> (StatusCode, String) {
        let request = Request::get(path).body(Body::empty()).unwrap();
        let response = router.clone().oneshot(request).await.unwrap();
        let status = response.status();
        let body = axum::body::to_bytes(response.into_body(), 1 << 20).await.unwrap();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    /// A Service must not send hospitals to an operator whose caches are empty.
    #[tokio::test]
    async fn it_is_alive_at_once_and_ready_when_told() {
        let health = Health::default();
        let router = router(Metrics::new(), health.clone());
        assert_eq!(get(&router, "/livez").await.0, StatusCode::OK);
        assert_eq!(get(&router, "/readyz").await.0, StatusCode::SERVICE_UNAVAILABLE);
        health.set_ready(true);
        assert_eq!(get(&router, "/readyz").await.0, StatusCode::OK);
        let (status, text) = get(&router, "/metrics").await;
        assert_eq!(status, StatusCode::OK);
        assert!(text.contains("consilium_build_info{component=\"operator\",version="), "{text}");
    }
}
