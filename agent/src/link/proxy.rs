//! The hospital's way out: straight, or through a proxy with CONNECT.
//!
//! `HTTPS_PROXY` and `NO_PROXY` are read as curl reads them. The tunnel carries our
//! own TLS, so the proxy sees the hub's address and nothing else.

use std::net::IpAddr;

use base64::Engine as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// A proxy for one destination.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proxy {
    /// `host:port` of the proxy.
    pub address: String,
    /// Value of `Proxy-Authorization`, if the URL holds a user.
    authorization: Option<String>,
}

/// The way through the proxy is not open.
#[derive(Debug, thiserror::Error)]
pub enum ProxyError {
    /// The variable.
    #[error("HTTPS_PROXY is {value:?}: {rule}")]
    Url {
        /// What it holds.
        value: String,
        /// What it should hold.
        rule: &'static str,
    },
    /// The proxy cannot be reached or hung up.
    #[error("proxy {address}: {source}; check HTTPS_PROXY, or NO_PROXY if the hub is reached without")]
    Io {
        /// Of the proxy.
        address: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// The proxy said no.
    #[error("proxy {address} refuses to connect to {target}: {status:?}; have the proxy allow CONNECT to it")]
    Refused {
        /// Of the proxy.
        address: String,
        /// The hub.
        target: String,
        /// Its status line.
        status: String,
    },
}

impl Proxy {
    /// The proxy for `host` by these variables, if any.
    pub fn for_host(host: &str, https_proxy: Option<&str>, no_proxy: Option<&str>) -> Result<Option<Self>, ProxyError> {
        match https_proxy.map(str::trim).filter(|url| !url.is_empty()) {
            Some(_) if no_proxy.is_some_and(|list| excepted(host, list)) => Ok(None),
            Some(url) => Self::parse(url).map(Some),
            None => Ok(None),
        }
    }

    fn parse(url: &str) -> Result<Self, ProxyError> {
        let bad = |rule| ProxyError::Url { value: redact(url), rule };
        let rest = match url.split_once("://") {
            None => url,
            Some(("http", rest)) => rest,
            Some(_) => {
                return Err(bad("only http:// proxies are supported; the tunnel through them is encrypted by us"));
            }
        };
        let rest = rest.split('/').next().unwrap_or(rest);
        let (user, address) = match rest.rsplit_once('@') {
            Some((user, address)) => (Some(user), address),
            None => (None, rest),
        };
        let port = address.rsplit_once(':').map(|(_, port)| port);
        if address.is_empty() || port.is_some_and(|port| !port.ends_with(']') && port.parse::<u16>().is_err()) {
            return Err(bad("write http://host:port"));
        }
        let has_port = port.is_some_and(|port| !port.ends_with(']'));
        let address = if has_port { address.to_owned() } else { format!("{address}:80") };
        let encode = |user| base64::engine::general_purpose::STANDARD.encode(percent_decode(user));
        Ok(Self { address, authorization: user.map(|user| format!("Basic {}", encode(user))) })
    }

    /// Opens a tunnel to `target` (`host:port`).
    pub async fn connect(&self, target: &str) -> Result<TcpStream, ProxyError> {
        let io = |source| ProxyError::Io { address: self.address.clone(), source };
        let mut stream = TcpStream::connect(&self.address).await.map_err(io)?;
        stream.set_nodelay(true).map_err(io)?;
        let mut request = format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n");
        if let Some(authorization) = &self.authorization {
            request.push_str(&format!("Proxy-Authorization: {authorization}\r\n"));
        }
        request.push_str("\r\n");
        stream.write_all(request.as_bytes()).await.map_err(io)?;
        let answer = read_head(&mut stream).await.map_err(io)?;
        let status = answer.lines().next().unwrap_or_default();
        if status.starts_with("HTTP/1.") && status.split(' ').nth(1).is_some_and(|code| code.starts_with('2')) {
            return Ok(stream);
        }
        let status = status.chars().take(100).collect();
        Err(ProxyError::Refused { address: self.address.clone(), target: target.to_owned(), status })
    }
}

/// Reads up to the empty line and no byte further: what follows is TLS.
async fn read_head(stream: &mut TcpStream) -> std::io::Result<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        if head.len() > 16 << 10 {
            return Err(std::io::Error::other("its answer to CONNECT is longer than 16 KiB"));
        }
        head.push(stream.read_u8().await?);
    }
    Ok(String::from_utf8_lossy(&head).into_owned())
}

/// `NO_PROXY`: names with their subdomains, addresses, networks, or `*`.
fn excepted(host: &str, list: &str) -> bool {
    let host = host.trim_matches(['[', ']']).to_ascii_lowercase();
    let address: Option<IpAddr> = host.parse().ok();
    list.split(',').map(|entry| entry.trim().to_ascii_lowercase()).filter(|entry| !entry.is_empty()).any(|entry| {
        if entry == "*" || entry == host {
            return true;
        }
        if let Some((network, bits)) = entry.split_once('/') {
            return address.is_some_and(|address| in_network(address, network, bits));
        }
        let domain = entry.trim_start_matches('.');
        address.is_none() && host.strip_suffix(domain).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
    })
}

fn in_network(address: IpAddr, network: &str, bits: &str) -> bool {
    let (Ok(network), Ok(bits)) = (network.parse::<IpAddr>(), bits.parse::<u32>()) else { return false };
    let same = |a: u128, b: u128, width: u32| bits <= width && (bits == 0 || (a ^ b) >> (width - bits) == 0);
    match (address, network) {
        (IpAddr::V4(a), IpAddr::V4(b)) => same(a.to_bits().into(), b.to_bits().into(), 32),
        (IpAddr::V6(a), IpAddr::V6(b)) => same(a.to_bits(), b.to_bits(), 128),
        _ => false,
    }
}

/// A proxy's URL may hold a password; logs and conditions must not.
fn redact(url: &str) -> String {
    match url.rsplit_once('@') {
        Some((_, address)) => format!("…@{address}"),
        None => url.to_owned(),
    }
}

fn percent_decode(text: &str) -> Vec<u8> {
    let bytes = text.as_bytes();
    let (mut out, mut at) = (Vec::with_capacity(bytes.len()), 0);
    while at < bytes.len() {
        let code = (bytes[at] == b'%').then(|| text.get(at + 1..at + 3)).flatten();
        match code.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(byte) => {
                out.push(byte);
                at += 3;
            }
            None => {
                out.push(bytes[at]);
                at += 1;
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proxy(url: &str) -> Option<Proxy> {
        Proxy::for_host("hub.example", Some(url), None).unwrap()
    }

    #[test]
    fn the_proxy_url_is_read_as_curl_reads_it() {
        assert_eq!(proxy("http://proxy:3128/").unwrap().address, "proxy:3128");
        assert_eq!(proxy("proxy").unwrap().address, "proxy:80");
        assert_eq!(proxy("http://[::1]").unwrap().address, "[::1]:80");
        assert_eq!(proxy(""), None);
        // RFC 7617: base64 of user:password, here "a:b@c".
        let with_user = proxy("http://a:b%40c@proxy:8080").unwrap();
        assert_eq!(with_user.authorization.as_deref(), Some("Basic YTpiQGM="));
    }

    /// A password in the proxy's URL must not end up in a condition that anyone may read.
    #[test]
    fn a_bad_url_is_refused_without_showing_the_password() {
        for url in ["https://me:secret@proxy:1", "http://me:secret@proxy:port", "socks5://me:secret@proxy"] {
            let error = Proxy::for_host("hub", Some(url), None).unwrap_err().to_string();
            assert!(!error.contains("secret") && error.contains("HTTPS_PROXY"), "{error}");
        }
    }

    #[test]
    fn no_proxy_names_what_goes_straight() {
        for (host, list, straight) in [
            ("hub.example", "hub.example", true),
            ("a.hub.example", ".hub.example", true),
            ("a.hub.example", "x, hub.example", true),
            ("evilhub.example", "hub.example", false),
            ("10.1.2.3", "10.0.0.0/8", true),
            ("11.1.2.3", "10.0.0.0/8", false),
            ("10.1.2.3", "2.3", false),
            ("hub", "*", true),
            ("hub", "", false),
        ] {
            let found = Proxy::for_host(host, Some("http://p:1"), Some(list)).unwrap();
            assert_eq!(found.is_none(), straight, "{host} with {list:?}");
        }
    }
}
