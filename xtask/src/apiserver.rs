//! A bare Kubernetes API server with its etcd, on loopback: enough to ask what the real validation says.
//!
//! Needs no root and no namespace. Both processes are children of this one and end with it; their data lies in a folder
//! that is removed at the end.

use std::{
    fs::{self, File},
    io::{Read, Write},
    net::{Ipv4Addr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use serde_json::json;

use crate::{
    cache,
    error::{Error, IoContext, Result},
    generate, packages, process, tools,
};

/// How long the server may take to be ready; a loaded machine needs its time.
const START: Duration = Duration::from_secs(180);

/// `cargo xtask apiserver -- COMMAND`.
#[derive(clap::Args)]
pub struct Arguments {
    /// The command; without one, the API server's own test.
    #[arg(last = true)]
    command: Vec<String>,
}

/// Runs the command beside a fresh API server.
pub fn run(arguments: &Arguments) -> Result<()> {
    let test = ["cargo", "test", "-q", "-p", "consilium-tests", "--test", "apiserver"].map(str::to_owned);
    let argv = if arguments.command.is_empty() { &test[..] } else { &arguments.command[..] };
    let server = ApiServer::start()?;
    let mut command = Command::new(&argv[0]);
    command.args(&argv[1..]).env("CONSILIUM_APISERVER_KUBECONFIG", server.kubeconfig()).current_dir(generate::root());
    let shown = process::shown(&command);
    let status = command.status().map_err(|source| Error::Spawn { command: shown.clone(), source })?;
    if status.success() { Ok(()) } else { Err(Error::Command { command: shown, status, stderr: String::new() }) }
}

/// A running API server; ends when dropped.
pub struct ApiServer {
    folder: PathBuf,
    children: Vec<Child>,
}

impl ApiServer {
    /// Starts etcd and the API server and waits until `/readyz` says ok.
    pub fn start() -> Result<Self> {
        packages::ensure(packages::SETPRIV)?;
        let kube = tools::ensure()?.program("kube");
        let folder = cache::sub("apiserver")?.join(std::process::id().to_string());
        cache::folder(folder.clone())?;
        let mut server = Self { folder, children: Vec::new() };
        let [etcd, peer, port] = free_ports()?;
        server.spawn("etcd", child_of_ours(&kube).args(etcd_arguments(&server.folder, etcd, peer)))?;
        server.write_credentials(port)?;
        server.spawn("kube-apiserver", child_of_ours(&kube).args(server_arguments(&server.folder, etcd, port)))?;
        server.wait(port)?;
        Ok(server)
    }

    /// A kubeconfig with every right.
    pub fn kubeconfig(&self) -> PathBuf {
        self.folder.join("kubeconfig")
    }

    fn spawn(&mut self, name: &'static str, command: &mut Command) -> Result<()> {
        let log = self.log(name);
        let file = File::create(&log).at("write", &log)?;
        let errors = file.try_clone().at("write", &log)?;
        let child = command.stdin(Stdio::null()).stdout(file).stderr(errors).spawn();
        let child = child.map_err(|source| Error::Spawn { command: name.to_owned(), source })?;
        self.children.push(child);
        Ok(())
    }

    fn log(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}.log"))
    }

    fn write_credentials(&self, port: u16) -> Result<()> {
        let token = random_hex()?;
        self.write("tokens.csv", &format!("{token},admin,admin,system:masters\n"))?;
        // The one certificate that serves is made by the server itself and never leaves this machine.
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "test",
            "clusters": [{"name": "test", "cluster": {"server": format!("https://127.0.0.1:{port}"), "insecure-skip-tls-verify": true}}],
            "users": [{"name": "admin", "user": {"token": token}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "admin"}}],
        });
        self.write("kubeconfig", &config.to_string())?;
        let key =
            rcgen::KeyPair::generate().map_err(|source| Error::Pki { name: "service accounts".into(), source })?;
        self.write("sa.key", &key.serialize_pem())?;
        self.write("sa.pub", &key.public_key_pem())
    }

    fn write(&self, name: &str, content: &str) -> Result<()> {
        use std::os::unix::fs::OpenOptionsExt;
        let path = self.folder.join(name);
        let file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&path);
        file.and_then(|mut file| file.write_all(content.as_bytes())).at("write", &path)
    }

    fn wait(&mut self, port: u16) -> Result<()> {
        let end = Instant::now() + START;
        loop {
            for (child, name) in self.children.iter_mut().zip(["etcd", "kube-apiserver"]) {
                if let Ok(Some(status)) = child.try_wait() {
                    let log = self.folder.join(format!("{name}.log"));
                    let tail = fs::read_to_string(&log).unwrap_or_default();
                    return Err(Error::Step { step: format!("starting {name}"), cause: status.to_string(), log, tail });
                }
            }
            if TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok() && self.ready() {
                return Ok(());
            }
            if Instant::now() > end {
                let logs = self.folder.clone();
                let last = fs::read_to_string(self.log("kube-apiserver")).unwrap_or_default();
                return Err(Error::Timeout { what: "a ready API server".into(), seconds: START.as_secs(), logs, last });
            }
            thread::sleep(Duration::from_millis(300));
        }
    }

    fn ready(&self) -> bool {
        let Ok(tools) = tools::present() else { return false };
        let mut kubectl = Command::new(tools.program("kubectl"));
        let ask = kubectl.arg("--kubeconfig").arg(self.kubeconfig()).args(["get", "--raw", "/readyz"]);
        process::output(ask).is_ok_and(|text| text.trim() == "ok")
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        for child in self.children.iter_mut().rev() {
            // Nothing of it is to be kept, so it need not be asked.
            child.kill().ok();
            child.wait().ok();
        }
        fs::remove_dir_all(&self.folder).ok();
    }
}

/// The kernel ends it when we end, however we do: nothing of it is to be kept, and it serves with every right.
fn child_of_ours(program: &Path) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--"]).arg(program);
    command
}

fn etcd_arguments(folder: &Path, client: u16, peer: u16) -> Vec<String> {
    let (client, peer) = (format!("http://127.0.0.1:{client}"), format!("http://127.0.0.1:{peer}"));
    let mut arguments = vec!["etcd".to_owned()];
    arguments.extend([
        format!("--data-dir={}", folder.join("etcd").display()),
        format!("--listen-client-urls={client}"),
        format!("--advertise-client-urls={client}"),
        format!("--listen-peer-urls={peer}"),
        format!("--initial-advertise-peer-urls={peer}"),
        format!("--initial-cluster=default={peer}"),
        // The data is worth nothing after the run.
        "--unsafe-no-fsync=true".to_owned(),
    ]);
    arguments
}

fn server_arguments(folder: &Path, etcd: u16, port: u16) -> Vec<String> {
    let file = |name: &str| folder.join(name).display().to_string();
    let mut arguments = vec!["kube-apiserver".to_owned()];
    arguments.extend([
        format!("--etcd-servers=http://127.0.0.1:{etcd}"),
        "--bind-address=127.0.0.1".to_owned(),
        format!("--secure-port={port}"),
        format!("--cert-dir={}", file("certs")),
        format!("--token-auth-file={}", file("tokens.csv")),
        "--authorization-mode=RBAC".to_owned(),
        "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
        format!("--service-account-key-file={}", file("sa.pub")),
        format!("--service-account-signing-key-file={}", file("sa.key")),
        "--service-cluster-ip-range=10.96.0.0/16".to_owned(),
        // Nothing makes service accounts here, and no test needs one.
        "--disable-admission-plugins=ServiceAccount".to_owned(),
        "--endpoint-reconciler-type=none".to_owned(),
    ]);
    arguments
}

/// Ports that nobody listens on. They are held together until all are known, so that they differ.
fn free_ports<const N: usize>() -> Result<[u16; N]> {
    let mut held = Vec::new();
    let mut ports = [0; N];
    for port in &mut ports {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).at("listen on", "127.0.0.1:0")?;
        *port = listener.local_addr().at("listen on", "127.0.0.1:0")?.port();
        held.push(listener);
    }
    Ok(ports)
}

fn random_hex() -> Result<String> {
    let mut bytes = [0; 32];
    File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut bytes)).at("read", "/dev/urandom")?;
    Ok(hex::encode(bytes))
}
