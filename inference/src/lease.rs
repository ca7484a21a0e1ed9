//! The lease on which a model answers: until when, in a file that the hospital's agent has the node renew.
//!
//! The agent writes the time into an annotation of this pod, and the node shows it here (downward API): no credential,
//! no call, and nothing that a new pod or a container that starts again could inherit. A dead agent renews nothing, so
//! the model stops answering by itself, leaves the Service, and gives back its memory.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use jiff::Timestamp;
use serde_json::json;
use tokio::net::TcpListener;

/// Environment variable with the file's path. Without it no lease is needed: whoever started the server answers for it.
pub const VARIABLE: &str = "CONSILIUM_LEASE";
/// How often the file is looked at.
const LOOK: Duration = Duration::from_secs(1);
/// From the end of the lease to the end of the process: the Service has noticed by then, so that no client meets a
/// closed port where it could have read why.
pub const NOTICE: Duration = Duration::from_secs(15);

/// The lease; a cheap clone of where it stands.
#[derive(Debug, Clone)]
pub struct Lease(Option<PathBuf>);

impl Lease {
    /// The lease at the path that the variable holds.
    pub fn new(path: Option<OsString>) -> Self {
        Self(path.filter(|path| !path.is_empty()).map(PathBuf::from))
    }

    /// Whether it holds at this moment. A file that is missing, empty or not a time is no lease.
    pub fn holds(&self, now: Timestamp) -> bool {
        let Some(path) = &self.0 else { return true };
        std::fs::read_to_string(path).is_ok_and(|text| until(&text).is_some_and(|until| now < until))
    }

    /// Returns when it has not held for `notice`. One that is renewed within it is served again: the agent was late, not
    /// gone, and clients have been sent back by then.
    pub async fn lost(&self, notice: Duration) {
        loop {
            while self.holds(Timestamp::now()) {
                tokio::time::sleep(LOOK).await;
            }
            tracing::error!("the lease has ended: nothing is answered, and this process ends unless it is renewed");
            let renewed = async {
                while !self.holds(Timestamp::now()) {
                    tokio::time::sleep(LOOK).await;
                }
            };
            if tokio::time::timeout(notice, renewed).await.is_err() {
                return;
            }
            tracing::info!("the lease was renewed");
        }
    }

    /// Returns as soon as it holds; answers that there is none until then, so that the node does not take waiting for
    /// being dead.
    pub async fn granted(&self, listener: TcpListener) -> std::io::Result<()> {
        let held = async {
            while !self.holds(Timestamp::now()) {
                tokio::time::sleep(LOOK).await;
            }
        };
        let alive = get(|| async { StatusCode::OK });
        let waiting = Router::new()
            .route("/v2/health/live", alive.clone())
            .route("/livez", alive)
            .fallback(|| async { no_lease() });
        tokio::select! {
            () = held => Ok(()),
            ended = axum::serve(listener, waiting) => ended,
        }
    }
}

fn until(text: &str) -> Option<Timestamp> {
    text.trim().parse().ok()
}

/// The routes, behind the lease: without it only liveness and metrics answer.
pub fn behind(routes: Router, lease: Lease) -> Router {
    routes.layer(from_fn_with_state(lease, answer))
}

async fn answer(State(lease): State<Lease>, request: Request, next: Next) -> Response {
    let always = matches!(request.uri().path(), "/v2/health/live" | "/livez" | "/metrics");
    if always || lease.holds(Timestamp::now()) { next.run(request).await } else { no_lease() }
}

fn no_lease() -> Response {
    let message = "the hospital's agent has not renewed this model's lease, so it does not answer; see \
                   docs/runbooks/AgentAbsent.md";
    let kind = [(header::CONTENT_TYPE, "application/json")];
    (StatusCode::SERVICE_UNAVAILABLE, kind, json!({ "error": message }).to_string()).into_response()
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use tower::ServiceExt as _;

    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn lease(text: Option<&str>) -> (tempfile::TempDir, Lease) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("until");
        if let Some(text) = text {
            std::fs::write(&path, text).unwrap();
        }
        (folder, Lease::new(Some(path.into_os_string())))
    }

    /// A model whose agent died yesterday would still answer on patients, also after its pod was started again.
    #[test]
    fn it_holds_until_the_time_in_the_file_and_never_without_one() {
        let (_folder, held) = lease(Some("2026-06-01T12:00:00Z\n"));
        assert!(held.holds(at("2026-06-01T11:59:59Z")));
        assert!(!held.holds(at("2026-06-01T12:00:00Z")));
        for text in [None, Some(""), Some("soon"), Some("2026-06-01")] {
            let (_folder, lease) = lease(text);
            assert!(!lease.holds(at("2000-01-01T00:00:00Z")), "{text:?}");
        }
        assert!(Lease::new(None).holds(at("2026-06-01T12:00:00Z")), "a server that no agent started needs none");
    }

    async fn status(routes: &Router, path: &str) -> StatusCode {
        let request = Request::builder().uri(path).body(Body::empty()).unwrap();
        routes.clone().oneshot(request).await.unwrap().status()
    }

    /// Out of the Service at once and with a reason, but not killed for being silent, and still to be measured.
    #[tokio::test]
    async fn without_it_nothing_answers_but_liveness_and_metrics() {
        let routes = || {
            let ok = get(|| async { StatusCode::OK });
            let paths = ["/v2/health/live", "/v2/health/ready", "/metrics", "/v2/models/m/infer", "/v2"];
            paths.iter().fold(Router::new(), |routes, path| routes.route(path, ok.clone()))
        };
        let (_folder, gone) = lease(Some("2000-01-01T00:00:00Z"));
        let closed = behind(routes(), gone);
        for path in ["/v2/health/ready", "/v2/models/m/infer", "/v2", "/unknown"] {
            assert_eq!(status(&closed, path).await, StatusCode::SERVICE_UNAVAILABLE, "{path}");
        }
        for path in ["/v2/health/live", "/metrics"] {
            assert_eq!(status(&closed, path).await, StatusCode::OK, "{path}");
        }
        let (_folder, held) = lease(Some("2999-01-01T00:00:00Z"));
        assert_eq!(status(&behind(routes(), held), "/v2/models/m/infer").await, StatusCode::OK);
    }

    /// The node must not restart a server that only waits, nor send it a scan.
    #[tokio::test]
    async fn who_waits_is_alive_and_not_ready_and_goes_on_when_it_is_granted() {
        let (folder, waiting) = lease(None);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let granted = tokio::spawn(async move { waiting.granted(listener).await });
        for (path, line) in [("/v2/health/live", "HTTP/1.1 200"), ("/v2/health/ready", "HTTP/1.1 503")] {
            let said = ask(address, path).await;
            assert!(said.starts_with(line), "{said}");
        }
        std::fs::write(folder.path().join("until"), "2999-01-01T00:00:00Z").unwrap();
        granted.await.unwrap().unwrap();
    }

    /// An API server that was away for a moment longer than the lease would cost every model its process, under the scans
    /// that it had begun to take again.
    #[tokio::test]
    async fn a_lease_that_is_renewed_in_time_ends_nothing() {
        let (folder, late) = lease(Some("2000-01-01T00:00:00Z"));
        let path = folder.path().join("until");
        late.lost(Duration::ZERO).await;
        let notice = LOOK * 3 / 2;
        let mut lost = std::pin::pin!(late.lost(notice));
        assert!(tokio::time::timeout(Duration::from_millis(1), &mut lost).await.is_err(), "clients have their notice");
        std::fs::write(&path, "2999-01-01T00:00:00Z").unwrap();
        assert!(tokio::time::timeout(notice + LOOK, &mut lost).await.is_err(), "it was renewed within the notice");
    }

    async fn ask(address: std::net::SocketAddr, path: &str) -> String {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut said = String::new();
        stream.read_to_string(&mut said).await.unwrap();
        said
    }
}
