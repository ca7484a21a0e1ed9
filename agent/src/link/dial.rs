//! Dials the hub: TCP or CONNECT, then mutual TLS, then HTTP/2.

use std::error::Error as StdError;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tonic::Status;
use tonic::codegen::http::Uri;
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint, Identity as TlsIdentity};

use super::calls::{Connection, Dial, Grpc};
use super::identity::{Identity, IdentityError};
use super::proxy::{Proxy, ProxyError};

/// How often the connection is probed when nothing else is sent, and how long an answer may take.
const KEEPALIVE: Duration = Duration::from_secs(10);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Where the hub is and who dials it.
#[derive(Clone, Debug)]
pub struct Dialer {
    gateway: Uri,
    host: String,
    target: String,
    identity: PathBuf,
    proxy: Option<Proxy>,
}

/// The hub was not reached. [`DialError::reason`] goes into the condition `Connected`.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// The flag.
    #[error("--gateway is {value:?}: {rule}")]
    Gateway {
        /// What it holds.
        value: String,
        /// What it should hold.
        rule: &'static str,
    },
    /// The hospital's certificate.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The proxy's settings.
    #[error(transparent)]
    Proxy(#[from] ProxyError),
    /// TLS was broken open on the way.
    #[error(
        "what answered for {target} through the proxy showed a certificate that ca.crt does not vouch for ({detail}): the proxy breaks TLS open; have {target} excepted from inspection, since the hub knows this hospital by its certificate"
    )]
    ProxyIntercepts {
        /// The hub.
        target: String,
        /// What TLS said.
        detail: String,
    },
    /// Another certificate without a proxy between.
    #[error(
        "what answers at {target} shows a certificate that ca.crt does not vouch for ({detail}); check --gateway and ca.crt, and whether something on the way breaks TLS open"
    )]
    UntrustedGateway {
        /// The hub.
        target: String,
        /// What TLS said.
        detail: String,
    },
    /// The hub does not take this hospital's certificate.
    #[error(
        "the hub refuses this hospital's certificate ({0}); check that it has not expired and that the hub's authority signed it"
    )]
    CertificateRefused(String),
    /// Nothing answers.
    #[error("{target} cannot be reached: {detail}; check the address, the firewall and HTTPS_PROXY")]
    Unreachable {
        /// The hub.
        target: String,
        /// What was seen.
        detail: String,
    },
}

impl DialError {
    /// CamelCase, for the condition.
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Gateway { .. } => "InvalidGateway",
            Self::Identity(_) => "InvalidIdentity",
            Self::Proxy(_) => "ProxyFailed",
            Self::ProxyIntercepts { .. } => "ProxyIntercepts",
            Self::UntrustedGateway { .. } => "UntrustedGateway",
            Self::CertificateRefused(_) => "CertificateRefused",
            Self::Unreachable { .. } => "Unreachable",
        }
    }
}

impl Dialer {
    /// Parses the gateway's address and chooses the way; `identity` is the folder of the certificate.
    pub fn new(
        gateway: &str,
        identity: PathBuf,
        https_proxy: Option<&str>,
        no_proxy: Option<&str>,
    ) -> Result<Self, DialError> {
        let bad = |rule| DialError::Gateway { value: gateway.to_owned(), rule };
        let uri: Uri = gateway.parse().map_err(|_| bad("write https://host:port"))?;
        if uri.scheme_str() != Some("https") {
            return Err(bad("the hub is reached over TLS only; write https://host:port"));
        }
        let host = uri.host().ok_or_else(|| bad("write https://host:port"))?.to_owned();
        let target = format!("{host}:{}", uri.port_u16().unwrap_or(443));
        let proxy = Proxy::for_host(&host, https_proxy, no_proxy)?;
        Ok(Self { gateway: uri, host, target, identity, proxy })
    }

    /// What a failed connection means for the people here.
    fn describe(&self, error: &(dyn StdError + 'static)) -> DialError {
        let (target, through_proxy) = (self.target.clone(), self.proxy.is_some());
        for cause in causes(error) {
            if let Some(proxy) = find::<ProxyError>(cause) {
                return DialError::Proxy(copy(proxy));
            }
            match find::<rustls::Error>(cause) {
                Some(rustls::Error::InvalidCertificate(why)) if through_proxy => {
                    return DialError::ProxyIntercepts { target, detail: why.to_string() };
                }
                Some(rustls::Error::InvalidCertificate(why)) => {
                    return DialError::UntrustedGateway { target, detail: why.to_string() };
                }
                Some(rustls::Error::AlertReceived(alert)) => {
                    return DialError::CertificateRefused(format!("{alert:?}"));
                }
                _ => {}
            }
        }
        let detail = causes(error).last().map(ToString::to_string).unwrap_or_default();
        DialError::Unreachable { target, detail }
    }
}

#[tonic::async_trait]
impl Dial for Dialer {
    /// From its files, which may have been renewed.
    fn identity(&self) -> Result<Identity, IdentityError> {
        Identity::read(&self.identity)
    }

    async fn dial(&self, identity: &Identity) -> Result<Connection, DialError> {
        let tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(&identity.authority))
            .identity(TlsIdentity::from_pem(&identity.certificate, &identity.key))
            .domain_name(self.host.trim_matches(['[', ']']));
        let endpoint = Endpoint::from(self.gateway.clone())
            .tls_config(tls)
            .map_err(|e| self.describe(&e))?
            .connect_timeout(CONNECT_TIMEOUT)
            .http2_keep_alive_interval(KEEPALIVE)
            .keep_alive_timeout(KEEPALIVE)
            .keep_alive_while_idle(true)
            .initial_stream_window_size(4 << 20)
            .initial_connection_window_size(16 << 20);
        let (proxy, target) = (self.proxy.clone(), self.target.clone());
        let connector = tower::service_fn(move |_: Uri| {
            let (proxy, target) = (proxy.clone(), target.clone());
            async move { open(proxy.as_ref(), &target).await.map(TokioIo::new) }
        });
        let channel = endpoint.connect_with_connector(connector).await.map_err(|e| self.describe(&e))?;
        Ok(Arc::new(Grpc::new(channel)))
    }

    fn explain(&self, status: &Status) -> DialError {
        self.describe(status)
    }
}

async fn open(proxy: Option<&Proxy>, target: &str) -> std::io::Result<TcpStream> {
    match proxy {
        Some(proxy) => proxy.connect(target).await.map_err(std::io::Error::other),
        None => {
            let stream = TcpStream::connect(target).await?;
            stream.set_nodelay(true)?;
            Ok(stream)
        }
    }
}

fn causes<'a>(error: &'a (dyn StdError + 'static)) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    let mut next = Some(error);
    std::iter::from_fn(move || {
        let this = next?;
        next = this.source();
        Some(this)
    })
}

/// An error of this type, also inside an I/O error, which hides what it wraps from `source`.
fn find<'a, E: StdError + 'static>(error: &'a (dyn StdError + 'static)) -> Option<&'a E> {
    let wrapped = error.downcast_ref::<std::io::Error>().and_then(|io| io.get_ref());
    error.downcast_ref::<E>().or_else(|| wrapped?.downcast_ref::<E>())
}

fn copy(error: &ProxyError) -> ProxyError {
    match error {
        ProxyError::Url { value, rule } => ProxyError::Url { value: value.clone(), rule },
        ProxyError::Io { address, source } => {
            ProxyError::Io { address: address.clone(), source: std::io::Error::new(source.kind(), source.to_string()) }
        }
        ProxyError::Refused { address, target, status } => {
            ProxyError::Refused { address: address.clone(), target: target.clone(), status: status.clone() }
        }
    }
}
