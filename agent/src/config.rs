//! The command line, with environment fallbacks.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Parser;
use consilium_federation::Digest;

/// The hospital's agent: one connection out to the hub, and the hospital's own word on what it asks for.
#[derive(Clone, Debug, Parser)]
#[command(
    name = "consilium-agent",
    version,
    after_help = "`consilium-agent audit --help`: the hospital's ledger as a file, and whether such a file holds together."
)]
pub struct Config {
    /// Address of the hub's gateway, `https://host:port`.
    #[arg(long, env = "CONSILIUM_GATEWAY")]
    pub gateway: String,
    /// Folder with tls.crt, tls.key (this hospital's identity) and ca.crt (who signs the gateway's certificate).
    #[arg(long, env = "CONSILIUM_SITE_TLS", default_value = "/etc/consilium/site")]
    pub site_tls: PathBuf,
    /// The agent's own volume.
    #[arg(long, env = "CONSILIUM_STATE", default_value = "/var/lib/consilium")]
    pub state: PathBuf,
    /// Most bytes of the hub's objects kept on the volume; the least recently used go first.
    #[arg(long, env = "CONSILIUM_CACHE_BYTES", default_value_t = 8 << 30)]
    pub cache_bytes: u64,
    /// Where task pods dial in.
    #[arg(long, env = "CONSILIUM_TASKS_LISTEN", default_value = "0.0.0.0:8444")]
    pub tasks_listen: SocketAddr,
    /// Metrics and probes, plain HTTP.
    #[arg(long, env = "CONSILIUM_ADMIN_LISTEN", default_value = "0.0.0.0:8080")]
    pub admin_listen: SocketAddr,
    /// Namespace of the SitePolicy.
    #[arg(long, env = "CONSILIUM_NAMESPACE", default_value = "consilium-agent")]
    pub namespace: String,
    /// Namespace of tasks, deployments and datasets.
    #[arg(long, env = "CONSILIUM_TASK_NAMESPACE", default_value = "consilium-tasks")]
    pub task_namespace: String,
    /// The address that task pods dial, `https://ip:port`: the agent's task port as its Service shows it.
    #[arg(long, env = "CONSILIUM_TASK_ADDRESS", default_value = "https://10.96.0.50:8444")]
    pub task_address: String,
    /// Image with consilium-courier, by digest.
    #[arg(long, env = "CONSILIUM_COURIER_IMAGE")]
    pub courier_image: String,
    /// The platform's own trainer image, which scores predictions, by digest.
    #[arg(long, env = "CONSILIUM_EVALUATOR_IMAGE")]
    pub evaluator_image: String,
    /// The image that serves models, by digest.
    #[arg(long, env = "CONSILIUM_INFERENCE_IMAGE")]
    pub inference_image: String,
}

impl Config {
    /// Digest of the image that serves models; none where it is not named by one.
    pub fn serving_image(&self) -> Option<Digest> {
        self.inference_image.split_once('@')?.1.parse().ok()
    }
}
