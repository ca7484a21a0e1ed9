//! The hub as a process of its own: hospitals upload to it over mutual TLS, it sums, and says how much memory it
//! ever had.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use bytes::Bytes;
use consilium_proto::v1;
use consilium_proto::v1::hub_client::HubClient;
use consilium_secagg::upload::chunk_digest;
use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, SanType};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};

use crate::report::{Budget, Figure};
use crate::uploads::{ROUND, Shape};

/// Megabytes that the hub may need.
const BUDGET_MB: f64 = 150.0;

/// Files of the hub's folder: certificates, the shape, the store.
struct Pki {
    ca: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Pki {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        let ca = params.self_signed(&key).expect("signed").pem();
        Self { ca, issuer: Issuer::new(params, key) }
    }

    fn issue(&self, name: SanType, usage: ExtendedKeyUsagePurpose) -> (String, String) {
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.subject_alt_names = vec![name];
        params.extended_key_usages = vec![usage];
        let key = KeyPair::generate().expect("a key");
        (params.signed_by(&key, &self.issuer).expect("signed").pem(), key.serialize_pem())
    }

    fn client(&self, site: &str, address: &str) -> HubClient<Channel> {
        let uri = format!("spiffe://consilium/site/{site}");
        let name = SanType::URI(uri.as_str().try_into().expect("ASCII"));
        let (certificate, key) = self.issue(name, ExtendedKeyUsagePurpose::ClientAuth);
        let tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(&self.ca))
            .domain_name("localhost")
            .identity(Identity::from_pem(certificate, key));
        let endpoint = Endpoint::from_shared(format!("https://{address}")).expect("an address");
        HubClient::new(endpoint.tls_config(tls).expect("certificates").connect_lazy())
    }
}

/// The hub's process, ended when this goes.
struct Hub {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Hub {
    fn start(folder: &Path) -> Self {
        let mut child = Command::new(std::env::current_exe().expect("this program"))
            .arg("hub")
            .arg(folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the hub starts");
        let input = child.stdin.take().expect("piped");
        let output = BufReader::new(child.stdout.take().expect("piped"));
        Self { child, input, output }
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).expect("the hub answers");
        line.trim().to_owned()
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Makes chunks off the threads that speak to the hub.
async fn made<T: Send + 'static>(make: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(make).await.expect("made")
}

async fn upload(mut client: HubClient<Channel>, shape: Shape, site: usize) {
    let digest = move |chunk| Bytes::copy_from_slice(&chunk_digest(&shape.chunk(site, chunk)).0);
    let chunks = made(move || (0..shape.chunks()).map(digest).collect()).await;
    let begin = v1::BeginUploadRequest { round_uid: ROUND.into(), attempt: 1, chunks, manifest: Bytes::new() };
    let missing = client.begin_upload(begin).await.expect("begun").into_inner().missing;
    let mut complete = false;
    for index in missing {
        let content = made(move || shape.chunk(site, index)).await;
        let put = v1::PutChunkRequest { round_uid: ROUND.into(), attempt: 1, index, content };
        complete = client.put_chunk(put).await.expect("stored").into_inner().complete;
    }
    assert!(complete, "site {site} is not complete");
}

/// Peak resident memory of a hub that takes these uploads and sums them, in MB: after the uploads, and at the end.
fn peak(dir: &Path, shape: Shape) -> (f64, f64) {
    let folder = tempfile::tempdir_in(dir).expect("a folder");
    let pki = Pki::new();
    let dns = SanType::DnsName("localhost".try_into().expect("ASCII"));
    let (certificate, key) = pki.issue(dns, ExtendedKeyUsagePurpose::ServerAuth);
    for (name, text) in [
        ("tls.crt", certificate),
        ("tls.key", key),
        ("ca.crt", pki.ca.clone()),
        ("shape.json", serde_json::to_string(&shape).expect("JSON")),
    ] {
        std::fs::write(folder.path().join(name), text).expect("written");
    }
    let mut hub = Hub::start(folder.path());
    let address = hub.line();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let uploads: Vec<_> = (shape.names().iter().enumerate())
            .map(|(site, name)| tokio::spawn(upload(pki.client(name.as_str(), &address), shape, site)))
            .collect();
        for upload in uploads {
            upload.await.expect("uploaded");
        }
    });
    let mut megabytes = |say: &str| {
        writeln!(hub.input, "{say}").expect("the hub listens");
        hub.line().parse::<f64>().expect("kB") * 1024.0 / 1e6
    };
    (megabytes("peak"), megabytes("sum"))
}

pub(crate) fn run(dir: &Path, long: bool) {
    let mut cases = vec![("8 x 10M", Shape { sites: 8, parameters: 10_000_000 })];
    cases.push(("200 x 1M", Shape { sites: 200, parameters: 1_000_000 }));
    if long {
        cases.push(("8 x 100M", Shape { sites: 8, parameters: 100_000_000 }));
    }
    for (case, shape) in cases {
        let (uploaded, summed) = peak(dir, shape);
        let line = |metric, value: f64, budget| {
            let against = format!("{BUDGET_MB} MB");
            Figure { case, metric, value, unit: "MB", against, ratio: value / BUDGET_MB, budget }.print();
        };
        line("hub peak memory (VmHWM), uploads over mTLS", uploaded, Budget::None);
        line("hub peak memory (VmHWM), uploads over mTLS, then the sum", summed, Budget::AtMost(1.0));
    }
}
