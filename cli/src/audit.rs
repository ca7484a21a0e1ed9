//! `audit`: the hospital's ledger, fetched from its agent, checked, and shown.

use std::path::{Path, PathBuf};
use std::process::{Command as Program, Stdio};

use consilium_agent::audit::{List, Verify};
use consilium_crds::{RoundTask, SitePolicy};
use consilium_federation::Digest;
use kube::api::ListParams;
use kube::{Api, Client, ResourceExt as _};

use crate::cluster;
use crate::error::{CliError, Result};

/// Where the agent's program lies in its image.
const AGENT: &str = "/usr/local/bin/consilium-agent";
const SELECTOR: &str = "app.kubernetes.io/name=consilium-agent";

#[derive(clap::Subcommand)]
pub enum Command {
    /// Write the whole ledger into a file, which anybody can check without a cluster.
    Export {
        /// The file; must not exist.
        #[arg(long)]
        out: PathBuf,
        #[command(flatten)]
        place: Place,
    },
    /// Say whether a ledger is whole, unchanged and in order, and where it is not. Without a file: that of the cluster, also
    /// against the heads that the SitePolicy and the RoundTasks have, and by the hub's key that the SitePolicy names.
    Verify(From),
    /// Print the entries, a line each, after checking them.
    List {
        #[command(flatten)]
        from: From,
        /// Only what left the hospital.
        #[arg(long)]
        left: bool,
    },
}

/// Where the agent is.
#[derive(clap::Args)]
pub struct Place {
    /// Namespace of the agent.
    #[arg(short, long, default_value = "consilium-agent")]
    namespace: String,
}

/// A file, or the agent.
#[derive(clap::Args)]
pub struct From {
    /// A file that `export` wrote; without one the agent is asked.
    file: Option<PathBuf>,
    /// The hub's public key, base64: countersignatures must be by it.
    #[arg(long)]
    hub_key: Option<String>,
    /// A head of this ledger that was noted elsewhere: it must hold it. May be given more than once.
    #[arg(long = "seen")]
    seen: Vec<Digest>,
    #[command(flatten)]
    place: Place,
}

/// Runs a command.
pub async fn run(command: &Command) -> Result<String> {
    match command {
        Command::Export { out, place } => {
            export(&cluster::client().await?, place, out).await?;
            Ok(format!("{} is written; check it with: kubectl consilium audit verify {0}\n", out.display()))
        }
        Command::Verify(from) => {
            let (verify, _kept) = from.resolve().await?;
            verify.run(|_| Ok(())).map(|said| format!("{said}\n")).map_err(broken)
        }
        Command::List { from, left } => {
            let (verify, _kept) = from.resolve().await?;
            let mut out = Vec::new();
            List { verify, left: *left }.run(&mut out).map_err(broken)?;
            Ok(String::from_utf8_lossy(&out).into_owned())
        }
    }
}

fn broken(error: impl std::fmt::Display) -> CliError {
    CliError::Ledger(format!("{error:#}"))
}

/// A file that goes with its holder.
struct Kept(PathBuf);

impl Drop for Kept {
    fn drop(&mut self) {
        // It lies in the folder for such files; who cannot remove it there cannot use it either.
        let _ = std::fs::remove_file(&self.0);
    }
}

impl From {
    /// What to check, by all that is known of it here.
    async fn resolve(&self) -> Result<(Verify, Option<Kept>)> {
        let (hub_key, mut seen) = (self.hub_key.clone(), self.seen.clone());
        if let Some(file) = &self.file {
            return Ok((Verify { file: file.clone(), hub_key, seen }, None));
        }
        let client = cluster::client().await?;
        // Heads first: what is noted after the file was written is not in it.
        let policies = cluster::list::<SitePolicy>(&client, Some(&self.place.namespace)).await?.unwrap_or_default();
        let tasks = cluster::list::<RoundTask>(&client, None).await?.unwrap_or_default();
        seen.extend(heads(&policies, &tasks));
        let pinned = policies.first().and_then(|policy| policy.spec.audit.as_ref()).map(|audit| audit.hub_key.clone());
        let kept = Kept(std::env::temp_dir().join(format!("consilium-ledger-{}", std::process::id())));
        export(&client, &self.place, &kept.0).await?;
        Ok((Verify { file: kept.0.clone(), hub_key: hub_key.or(pinned), seen }, Some(kept)))
    }
}

/// The heads that objects of the hospital's cluster have noted.
fn heads(policies: &[SitePolicy], tasks: &[RoundTask]) -> Vec<Digest> {
    let of_policies = policies.iter().filter_map(|policy| policy.status.as_ref()?.ledger.as_ref()).map(|end| end.head);
    let acts = tasks.iter().filter_map(|task| task.status.as_ref()?.irreversible.as_ref());
    of_policies.chain(acts.map(|act| act.ledger_head)).collect()
}

/// Has the agent write its ledger. It goes through `kubectl exec`: who may do that is a matter of the cluster's roles.
async fn export(client: &Client, place: &Place, out: &Path) -> Result<()> {
    let pods: Api<k8s_openapi::api::core::v1::Pod> = Api::namespaced(client.clone(), &place.namespace);
    let found = pods.list(&ListParams::default().labels(SELECTOR)).await?.items;
    let pod = found.first().map(|pod| pod.name_any()).ok_or(CliError::Missing {
        what: "Pod",
        name: SELECTOR.into(),
        way_out: "name the agent's namespace with -n; a volume without an agent is read by `consilium-agent audit export --state FOLDER` in a pod that mounts it",
    })?;
    let io = |source| CliError::Io { path: out.to_owned(), source };
    let file = std::fs::File::options().write(true).create_new(true).open(out).map_err(io)?;
    let arguments = ["exec", "-n", &place.namespace, &pod, "-c", "agent", "--", AGENT, "audit", "export"];
    let mut program = Program::new("kubectl");
    program.args(arguments).stdin(Stdio::null()).stdout(file).stderr(Stdio::piped());
    let ended = program.spawn().and_then(std::process::Child::wait_with_output);
    let why = match ended {
        Ok(ended) if ended.status.success() => return Ok(()),
        Ok(ended) => String::from_utf8_lossy(&ended.stderr).trim().to_owned(),
        Err(error) => error.to_string(),
    };
    // Half a ledger is none.
    let _ = std::fs::remove_file(out);
    Err(CliError::Ledger(format!("kubectl {}: {why}", arguments.join(" "))))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// A volume whose end was cut off, or that was written anew, is found by what the hospital's own objects have noted.
    #[test]
    fn what_the_cluster_has_noted_of_the_ledger_is_looked_for() {
        let text = include_str!("../../examples/hippocampus/site-policy.yaml");
        let mut policy: SitePolicy = serde_yaml_ng::from_str(text).unwrap();
        let (first, second) = (Digest::of(b"policy"), Digest::of(b"task"));
        policy.status = serde_json::from_value(json!({"ledger": {"entries": 3, "head": first}})).unwrap();
        let digest = format!("sha256:{}", "0".repeat(64));
        let task = |status: serde_json::Value| -> RoundTask {
            serde_json::from_value(json!({
                "apiVersion": "consilium.health/v1alpha1", "kind": "RoundTask", "metadata": {"name": "t"},
                "spec": {"study": "a/b", "studyUID": "u", "specDigest": digest, "roundUID": "r", "round": 1, "kind": "Train",
                    "model": digest, "image": format!("r.example/t@{digest}"), "gpus": 8, "deadline": "2026-06-01T00:00:00Z"},
                "status": status,
            }))
            .unwrap()
        };
        let act = json!({"irreversible": {"attempt": 1, "step": "Upload", "ledgerHead": second}});
        assert_eq!(heads(&[policy], &[task(json!({})), task(act)]), [first, second]);
    }
}
