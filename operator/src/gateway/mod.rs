//! The only door to the hub: gRPC over mutual TLS, one service.
//!
//! Who calls is read from the client certificate and from nothing else; whether it may call is asked again on every
//! call, and what it may read or send follows from the work that it was given.

pub(crate) mod door;
mod gate;
mod identity;
mod objects;
mod scales;
mod service;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use consilium_federation::SiteName;
use consilium_proto::v1::hub_server::HubServer;
use consilium_proto::{CHUNKS_IN_FLIGHT, MAX_MESSAGE_BYTES, REFUSAL, TWO_AGENTS};
use jiff::Timestamp;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::codegen::http::{HeaderMap, HeaderName, HeaderValue};
use tonic::metadata::MetadataMap;
use tonic::transport::Server;
use tonic::{Code, Status};

use crate::hub::Hub;
use crate::metrics::{Metrics, Refusal};
use door::Bounds;

pub use identity::{Caller, IdentityError, SPIFFE_PREFIX};
pub use service::Gateway;

/// Tells the time.
pub type Clock = Arc<dyn Fn() -> Timestamp + Send + Sync>;

/// How often the gateway asks a silent connection whether it still lives.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
/// How long it waits for the answer: with the interval, a killed hospital is noticed within 20 s (the budget is 30).
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// Connections of hospitals: an agent has one, and others that are not given up yet.
const CONNECTIONS: Bounds = Bounds { pending: 256, open: 2048, each: 8, handshake: Duration::from_secs(15) };
/// Bytes that a hospital may send ahead of being read, in one call: bounds memory with 200 hospitals sending.
const CALL_WINDOW: u32 = 128 << 10;
/// The same, in a connection. Chunks that wait for their place leave room in it for one that is being read, or nobody's
/// chunks would move until calls time out.
const CONNECTION_WINDOW: u32 = CALL_WINDOW * (CHUNKS_IN_FLIGHT as u32 + 1);
/// Calls that one hospital may have open at a time.
const MAX_STREAMS: u32 = 32;

/// The gateway's certificate and key, and the CA that signs the hospitals' certificates, all PEM.
#[derive(Clone)]
pub struct GatewayTls {
    /// Certificate chain of the gateway.
    pub certificate: Vec<u8>,
    /// Its key.
    pub key: Vec<u8>,
    /// CA of the hospitals' certificates.
    pub client_ca: Vec<u8>,
}

/// The gateway cannot serve.
#[derive(Debug, thiserror::Error)]
pub enum GatewayError {
    /// A file of the TLS folder.
    #[error("{} cannot be read: {cause}; the Secret consilium-gateway-tls must hold tls.crt, tls.key and ca.crt", file.display())]
    File {
        /// Which file.
        file: PathBuf,
        /// What the system said.
        cause: std::io::Error,
    },
    /// Certificates or key.
    #[error("the gateway cannot serve: {0}; check tls.crt, tls.key and ca.crt of the gateway")]
    Tls(String),
    /// The listener.
    #[error("the gateway cannot serve: {}", describe(.0))]
    Transport(#[from] tonic::transport::Error),
}

/// An error with what caused it, because tonic's own text says only "transport error".
fn describe(error: &tonic::transport::Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    text
}

impl GatewayTls {
    /// Reads `tls.crt`, `tls.key` and `ca.crt` of a folder.
    ///
    /// # Errors
    /// [`GatewayError::File`] naming the one that cannot be read.
    pub fn read(folder: &Path) -> Result<Self, GatewayError> {
        let read = |name: &str| {
            let file = folder.join(name);
            std::fs::read(&file).map_err(|cause| GatewayError::File { file, cause })
        };
        Ok(Self { certificate: read("tls.crt")?, key: read("tls.key")?, client_ca: read("ca.crt")? })
    }

    /// When the certificate ends (Unix time, seconds); none when it cannot be read, which TLS will say.
    pub fn ends(&self) -> Option<i64> {
        let (_, pem) = x509_parser::pem::parse_x509_pem(&self.certificate).ok()?;
        Some(pem.parse_x509().ok()?.validity().not_after.timestamp())
    }
}

/// Why a hospital may not call, counted.
fn not_accepted(hub: &Hub, metrics: &Metrics, site: &SiteName) -> Status {
    if let Some(words) = hub.two_agents(site) {
        metrics.refused(Refusal::TwoAgents);
        let kind = MetadataMap::from_headers(HeaderMap::from_iter([(
            HeaderName::from_static(REFUSAL),
            HeaderValue::from_static(TWO_AGENTS),
        )]));
        return Status::with_metadata(Code::PermissionDenied, words, kind);
    }
    metrics.refused(Refusal::NotAccepted);
    Status::permission_denied(format!(
        "{site} is not accepted at this hub; its administrators set spec.accepted of the TrustSite {site}"
    ))
}

/// An object that the hospital's work leads to, whole: for callers that hold it in memory anyway.
///
/// # Errors
/// What the hospital is told.
pub async fn object(hub: &Hub, metrics: &Metrics, site: &SiteName, digest: &str) -> Result<Bytes, Status> {
    let found = service::find_object(hub, metrics, site, digest).await?;
    let mut object = service::open_object(hub, found).await?;
    let failed = |error: std::io::Error| Status::unavailable(error.to_string());
    object.read(object.length()).map_err(failed)
}

/// Serves hospitals until `shutdown`; open watches are closed then.
///
/// # Errors
/// [`GatewayError::Transport`] when the certificates cannot be used or the listener fails.
pub async fn serve(
    listener: TcpListener,
    tls: GatewayTls,
    hub: Hub,
    metrics: Metrics,
    clock: Clock,
    shutdown: CancellationToken,
) -> Result<(), GatewayError> {
    // A client without a certificate of this CA does not get past the handshake.
    let tls = door::tls(&tls.certificate, &tls.key, Some(&tls.client_ca)).map_err(GatewayError::Tls)?;
    let named = |leaf: &[u8]| identity::caller(leaf).ok().map(|caller| caller.site.to_string());
    let incoming = door::open(listener, tls, CONNECTIONS, named);
    let gate = gate::Gate::new(hub.clone(), metrics.clone(), clock.clone());
    let service = HubServer::new(service::Gateway::new(hub, metrics, clock, shutdown.clone()))
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES);
    Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .initial_stream_window_size(CALL_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_concurrent_streams(MAX_STREAMS)
        .layer(gate)
        .add_service(service)
        .serve_with_incoming_shutdown(incoming, shutdown.cancelled_owned())
        .await?;
    Ok(())
}

#[cfg(test)]
mod tests;
