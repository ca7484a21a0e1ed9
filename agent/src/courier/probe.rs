//! `probe`: run in a pod like a task's, it must reach the task port and nothing else.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

use super::{CourierError, ProbeArgs};

/// How long an address is given to answer.
const PATIENCE: Duration = Duration::from_secs(3);
/// How often the task port is tried: rules and endpoints of a new pod may take some seconds.
const TRIES: u32 = 15;

pub(super) async fn run(args: &ProbeArgs) -> Result<(), CourierError> {
    if !answers_in_time(&authority(&args.expect_reachable)?).await {
        let message = format!(
            "a task pod cannot reach the task port {}: check the Service consilium-agent-tasks and the NetworkPolicies \
             of both namespaces",
            args.expect_reachable
        );
        return Err(CourierError::Probe { code: 2, message });
    }
    let mut reached = Vec::new();
    for address in &args.must_fail {
        if connects(&authority(address)?).await {
            reached.push(address.clone());
        }
    }
    if args.must_fail_dns {
        let resolv = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
        for server in name_servers(&resolv) {
            if resolves(server).await {
                reached.push(format!("the name server {server}"));
            }
        }
    }
    if reached.is_empty() {
        return Ok(());
    }
    let message = format!(
        "a task pod could reach {}: the cluster does not enforce the NetworkPolicy of the task namespace; install a \
         network plugin that does",
        reached.join(", ")
    );
    Err(CourierError::Probe { code: 1, message })
}

/// `host:port` of `https://host:port`.
fn authority(url: &str) -> Result<String, CourierError> {
    let bad = || CourierError::Setup(format!("{url:?}: expected https://host:port"));
    let rest = url.strip_prefix("https://").ok_or_else(bad)?;
    let (host, port) = rest.trim_end_matches('/').rsplit_once(':').ok_or_else(bad)?;
    let port: u16 = port.parse().map_err(|_| bad())?;
    if host.is_empty() { Err(bad()) } else { Ok(format!("{host}:{port}")) }
}

async fn answers_in_time(address: &str) -> bool {
    for _ in 0..TRIES {
        if connects(address).await {
            return true;
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    false
}

async fn connects(address: &str) -> bool {
    matches!(timeout(PATIENCE, TcpStream::connect(address)).await, Ok(Ok(_)))
}

/// Any answer counts, an error answer too.
async fn resolves(server: IpAddr) -> bool {
    let ask = async {
        let local: SocketAddr = if server.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0u16; 8], 0).into() };
        let socket = UdpSocket::bind(local).await?;
        socket.connect((server, 53)).await?;
        socket.send(&question("kubernetes.default.svc.cluster.local")).await?;
        socket.recv(&mut [0; 512]).await
    };
    matches!(timeout(PATIENCE, ask).await, Ok(Ok(_)))
}

/// A DNS question for an A record (RFC 1035 §4.1).
fn question(name: &str) -> Vec<u8> {
    let mut packet = vec![0x43, 0x53, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        // Safety: labels of our one name are shorter than 64 bytes.
        packet.push(label.len() as u8);
        packet.extend(label.as_bytes());
    }
    packet.extend([0, 0, 1, 0, 1]);
    packet
}

fn name_servers(resolv: &str) -> Vec<IpAddr> {
    let servers = resolv.lines().filter_map(|line| line.trim().strip_prefix("nameserver"));
    servers.filter_map(|rest| rest.trim().parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_and_name_servers_are_read() {
        assert_eq!(authority("https://10.96.0.1:443").unwrap(), "10.96.0.1:443");
        for bad in ["10.96.0.1:443", "https://10.96.0.1", "https://:443", "https://x:99999"] {
            assert!(authority(bad).is_err(), "{bad}");
        }
        assert_eq!(name_servers("search x\nnameserver 10.96.0.10\n"), ["10.96.0.10".parse::<IpAddr>().unwrap()]);
    }

    #[test]
    fn the_question_is_well_formed() {
        let packet = question("a.bc");
        assert_eq!(&packet[12..], [1, b'a', 2, b'b', b'c', 0, 0, 1, 0, 1]);
    }

    /// A cluster that lets task pods through must be told apart from one that does not, and from one where even the
    /// agent cannot be reached.
    #[tokio::test]
    async fn what_answers_is_named() {
        let port = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let open = format!("https://{}", port.local_addr().unwrap());
        let shut = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let closed = format!("https://{}", shut.local_addr().unwrap());
        drop(shut);
        let args = |must_fail: &str| ProbeArgs {
            expect_reachable: open.clone(),
            must_fail: vec![must_fail.to_owned()],
            must_fail_dns: false,
        };
        run(&args(&closed)).await.unwrap();
        let error = run(&args(&open)).await.unwrap_err();
        assert!(error.exit_code() == 1 && error.to_string().contains(&open), "{error}");
    }
}
