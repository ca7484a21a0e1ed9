//! Connections before anyone speaks: TLS, whose they are, and how many there may be.
//!
//! The library that serves calls knows no bound on connections, so they are made here and handed over when the handshake
//! is done. A handshake that does not end makes way for newer ones, so that whoever stalls keeps nobody else out.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use rustls::pki_types::CertificateDer;
use rustls::{
    RootCertStore, ServerConfig, pki_types::PrivateKeyDer, pki_types::pem::PemObject, server::WebPkiClientVerifier,
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::{AbortHandle, JoinSet};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::transport::server::Connected;

/// How many connections a port holds.
#[derive(Clone, Copy)]
pub(crate) struct Bounds {
    /// In their handshake.
    pub(crate) pending: usize,
    /// Open.
    pub(crate) open: usize,
    /// Open, of one peer: whoever shows the same certificate name.
    pub(crate) each: usize,
    /// A handshake that takes longer is given up.
    pub(crate) handshake: Duration,
}

/// Who a connection's certificate names; connections of peers without a name are counted together.
pub(crate) type Name = fn(&[u8]) -> Option<String>;

/// What a call can know of its connection.
#[derive(Clone)]
pub(crate) struct Visitor {
    certificate: Option<CertificateDer<'static>>,
    cut: CancellationToken,
}

impl Visitor {
    /// The certificate that it was opened with, DER.
    pub(crate) fn certificate(&self) -> Option<&[u8]> {
        self.certificate.as_ref().map(AsRef::as_ref)
    }

    /// Ends the connection, and with it whatever its peer does not read.
    pub(crate) fn cut(&self) {
        self.cut.cancel();
    }
}

/// A connection after its handshake.
pub(crate) struct Guest {
    io: TlsStream<TcpStream>,
    visitor: Visitor,
    cut: Pin<Box<WaitForCancellationFutureOwned>>,
    #[allow(dead_code, reason = "held for its Drop")]
    places: (OwnedSemaphorePermit, Place),
}

/// One of a peer's connections.
struct Place {
    of_one: Arc<Mutex<HashMap<String, usize>>>,
    name: String,
}

impl Place {
    fn take(of_one: &Arc<Mutex<HashMap<String, usize>>>, name: String, most: usize) -> Option<Self> {
        let mut counts = of_one.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(name.clone()).or_default();
        (*count < most).then(|| {
            *count += 1;
            Self { of_one: of_one.clone(), name }
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counts = self.of_one.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.name) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                counts.remove(&self.name);
            }
        }
    }
}

/// A server's side of TLS. With `client_ca` nobody gets past the handshake without a certificate of it.
///
/// # Errors
/// What is wrong with the certificates.
pub(crate) fn tls(certificate: &[u8], key: &[u8], client_ca: Option<&[u8]>) -> Result<Arc<ServerConfig>, String> {
    let chain = |pem| CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>();
    let builder = match client_ca {
        None => ServerConfig::builder().with_no_client_auth(),
        Some(pem) => {
            let mut roots = RootCertStore::empty();
            let (added, _) = roots.add_parsable_certificates(chain(pem).map_err(|e| format!("ca.crt: {e}"))?);
            if added == 0 {
                return Err("ca.crt: it holds no certificate".into());
            }
            let verifier = WebPkiClientVerifier::builder(roots.into()).build();
            ServerConfig::builder().with_client_cert_verifier(verifier.map_err(|e| format!("ca.crt: {e}"))?)
        }
    };
    let chain = chain(certificate).map_err(|e| format!("tls.crt: {e}"))?;
    let key = PrivateKeyDer::from_pem_slice(key).map_err(|e| format!("tls.key: {e}"))?;
    let mut config = builder.with_single_cert(chain, key).map_err(|e| format!("tls.crt and tls.key: {e}"))?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Arc::new(config))
}

/// Connections whose handshake is done. They end with the result.
pub(crate) fn open(
    listener: TcpListener,
    tls: Arc<ServerConfig>,
    bounds: Bounds,
    name: Name,
) -> ReceiverStream<io::Result<Guest>> {
    let (made, connections) = mpsc::channel(1);
    tokio::spawn(welcome(listener, TlsAcceptor::from(tls), bounds, name, made));
    ReceiverStream::new(connections)
}

async fn welcome(
    listener: TcpListener,
    tls: TlsAcceptor,
    bounds: Bounds,
    name: Name,
    made: mpsc::Sender<io::Result<Guest>>,
) {
    let open = Arc::new(Semaphore::new(bounds.open));
    let of_one = Arc::default();
    let mut handshakes = JoinSet::new();
    let mut oldest: VecDeque<AbortHandle> = VecDeque::new();
    loop {
        let accepted = tokio::select! {
            () = made.closed() => return,
            Some(_) = handshakes.join_next() => continue,
            accepted = listener.accept() => accepted,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Of one connection, or of a process without file handles, which get free again.
                tracing::warn!(%error, "a connection was not accepted");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        while handshakes.len() >= bounds.pending {
            // Honest ones take milliseconds: what is oldest stalls.
            if let Some(stalled) = oldest.pop_front() {
                stalled.abort();
            }
            handshakes.join_next().await;
        }
        oldest.retain(|handshake| !handshake.is_finished());
        let (tls, open, of_one, made) = (tls.clone(), open.clone(), Arc::clone(&of_one), made.clone());
        let handshake = async move {
            if let Some(guest) = admit(stream, &tls, &open, &of_one, bounds, name).await {
                // Nobody takes it any more: the port closes.
                let _ = made.send(Ok(guest)).await;
            }
        };
        oldest.push_back(handshakes.spawn(handshake));
    }
}

async fn admit(
    stream: TcpStream,
    tls: &TlsAcceptor,
    open: &Arc<Semaphore>,
    of_one: &Arc<Mutex<HashMap<String, usize>>>,
    bounds: Bounds,
    name: Name,
) -> Option<Guest> {
    // Small messages take turns with a hospital's: each would wait 40 ms for the other side's delayed acknowledgement.
    let _ = stream.set_nodelay(true);
    let io = match tokio::time::timeout(bounds.handshake, tls.accept(stream)).await {
        Ok(Ok(io)) => io,
        Ok(Err(error)) => {
            tracing::debug!(%error, "a handshake failed");
            return None;
        }
        Err(_) => return None,
    };
    let certificate =
        io.get_ref().1.peer_certificates().and_then(|chain| chain.first()).map(|leaf| leaf.clone().into_owned());
    let peer = certificate.as_ref().and_then(|leaf| name(leaf.as_ref())).unwrap_or_default();
    let Some(place) = Place::take(of_one, peer.clone(), bounds.each) else {
        tracing::info!(peer, most = bounds.each, "a peer has too many connections open; this one is closed");
        return None;
    };
    let Ok(permit) = open.clone().try_acquire_owned() else {
        tracing::warn!(peer, most = bounds.open, "too many connections are open; this one is closed");
        return None;
    };
    let cut = CancellationToken::new();
    let visitor = Visitor { certificate, cut: cut.clone() };
    Some(Guest { io, visitor, cut: Box::pin(cut.cancelled_owned()), places: (permit, place) })
}

impl Connected for Guest {
    type ConnectInfo = Visitor;

    fn connect_info(&self) -> Visitor {
        self.visitor.clone()
    }
}

fn aborted() -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionAborted, "a call on this connection took too long")
}

impl AsyncRead for Guest {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.visitor.cut.is_cancelled() || self.cut.as_mut().poll(context).is_ready() {
            return Poll::Ready(Err(aborted()));
        }
        Pin::new(&mut self.io).poll_read(context, buffer)
    }
}

impl AsyncWrite for Guest {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(context, buffers)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(context)
    }
}
