//! `model`: releases as files that people can take home, and files as models that a study can start from.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use consilium_cli::model::door::Door;
use consilium_cli::model::{self, beside, file};
use consilium_crds::conditions::{READY, status_of};
use consilium_crds::{FederatedStudy, ModelRelease, Watched};
use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{Pod, ServiceAccount};
use kube::api::{ListParams, PostParams};
use kube::{Api, Client, ResourceExt as _};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command as Program};

use crate::cluster;
use crate::error::{CliError, Result};
use crate::objects;
use crate::table;

/// Whom the token is for.
const AUDIENCE: &str = consilium_operator::models::AUDIENCE;
/// The shortest life that a token can have.
const TOKEN_SECONDS: i64 = 600;
/// Port of the door inside the operator's pod.
const PORT: u16 = 8445;
const SELECTOR: &str = "app.kubernetes.io/name=consilium-operator";
/// kubectl has to have forwarded within so long.
const PATIENCE: Duration = Duration::from_secs(30);

#[derive(clap::Subcommand)]
pub enum Command {
    /// The releases of a namespace, with the digest of each model.
    List {
        /// Namespace of the releases.
        #[arg(short, long, default_value = "default")]
        namespace: String,
    },
    /// Take the model of a release into a file, checked by its digest, with its release, its output spec and its card beside
    /// it. What an earlier try has left is gone on with.
    Pull(Pull),
    /// Bring a model (safetensors) into the hub's store: studies of the namespace may start from it.
    Push(Push),
    /// Say, without a cluster, whether a file is the model of the release that lies beside it.
    Verify(Verify),
}

#[derive(clap::Args)]
pub struct Pull {
    /// Name of the ModelRelease.
    release: String,
    /// The file: NAME.safetensors. NAME.release.json, NAME.output.json and NAME.card.md are written beside it.
    #[arg(short, long)]
    out: PathBuf,
    /// The hub's public key, base64: the attestation must be by it.
    #[arg(long, value_parser = key)]
    hub_key: Option<ed25519_dalek::VerifyingKey>,
    #[command(flatten)]
    way: Way,
}

#[derive(clap::Args)]
pub struct Push {
    /// The file. Half precision is widened to F32, integers are left out.
    file: PathBuf,
    #[command(flatten)]
    way: Way,
}

#[derive(clap::Args)]
pub struct Verify {
    /// The model.
    file: PathBuf,
    /// The release [default: the .release.json beside it].
    #[arg(long)]
    release: Option<PathBuf>,
    /// The hub's public key, base64: the attestation must be by it.
    #[arg(long, value_parser = key)]
    hub_key: Option<ed25519_dalek::VerifyingKey>,
}

/// The way to the hub's door, and who goes there.
#[derive(clap::Args)]
pub struct Way {
    /// Namespace of the release, or of the studies that may start from what is pushed.
    #[arg(short, long, default_value = "default")]
    namespace: String,
    /// ServiceAccount of the namespace that has the right to it: a token of ten minutes is made for it, which opens nothing
    /// but this door.
    #[arg(long = "as-account", required_unless_present = "token_file")]
    account: Option<String>,
    /// File with such a token, as a pod gets it from a projected volume with the audience consilium.health/models.
    #[arg(long, conflicts_with = "account")]
    token_file: Option<PathBuf>,
    /// Namespace of the operator; the door is reached by a port-forward to its pod.
    #[arg(long, default_value = "consilium-system")]
    hub_namespace: String,
    /// HOST:PORT that leads to the door, where one was forwarded already.
    #[arg(long)]
    door: Option<String>,
}

fn key(text: &str) -> std::result::Result<ed25519_dalek::VerifyingKey, String> {
    beside::hub_key(text)
}

/// Runs a command.
pub async fn run(command: &Command) -> Result<String> {
    match command {
        Command::List { namespace } => {
            let found = cluster::list::<ModelRelease>(&cluster::client().await?, Some(namespace)).await?;
            Ok(listed(found.unwrap_or_default()))
        }
        Command::Pull(arguments) => pull(arguments).await,
        Command::Push(arguments) => push(arguments).await,
        Command::Verify(arguments) => verify(arguments),
    }
}

fn listed(mut releases: Vec<ModelRelease>) -> String {
    releases.sort_by_key(|release| (release.spec.study.name.clone(), release.spec.round));
    let row = |release: &ModelRelease| {
        let conditions = release.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
        vec![
            release.name_any(),
            release.spec.study.name.clone(),
            release.spec.round.to_string(),
            release.spec.dice.clone(),
            status_of(conditions, READY).unwrap_or("-").to_owned(),
            release.spec.model.to_string(),
        ]
    };
    table::lay_out(
        &["RELEASE", "STUDY", "ROUND", "DICE", "READY", "MODEL"],
        &releases.iter().map(row).collect::<Vec<_>>(),
    )
}

fn model_error(error: impl Into<model::ModelError>) -> CliError {
    CliError::Model(error.into().to_string())
}

async fn pull(arguments: &Pull) -> Result<String> {
    let Pull { release: name, out, hub_key, way } = arguments;
    if out.extension().is_none_or(|ending| ending != "safetensors") {
        let value = out.display().to_string();
        return Err(CliError::Argument { field: "--out", value, rule: "name a file that ends in .safetensors" });
    }
    let client = cluster::client().await?;
    let api: Api<ModelRelease> = Api::namespaced(client.clone(), &way.namespace);
    let release = api.get_opt(name).await?.ok_or_else(|| CliError::Missing {
        what: "ModelRelease",
        name: format!("{}/{name}", way.namespace),
        way_out: "`kubectl consilium model list -n NAMESPACE` has those that there are",
    })?;
    if let Some(key) = hub_key {
        beside::attested(&release.spec, key).map_err(CliError::Model)?;
    }
    let (door, _forward) = way.open(&client).await?;
    let manifest = model::pull(&door, &release, out).await.map_err(model_error)?;
    let studies: Api<Watched<FederatedStudy>> = Api::namespaced(client, &release.spec.study.namespace);
    // The card says less without it.
    let study = studies.get_opt(&release.spec.study.name).await.ok().flatten().and_then(|study| study.0.ok());
    let written = beside::write(out, &release, study.as_ref()).map_err(model_error)?;
    let names: Vec<_> = written.iter().map(|path| path.display().to_string()).collect();
    Ok(format!(
        "{} is {}: {} tensors, {} parameters, each of its {} chunks verified\nbeside it: {}\n{}\n",
        out.display(),
        release.spec.model,
        manifest.tensors.0.len(),
        manifest.elements(),
        manifest.chunks.len(),
        names.join(", "),
        attestation(hub_key.is_some()),
    ))
}

fn attestation(checked: bool) -> &'static str {
    if checked {
        "the hub's signature is over this release"
    } else {
        "the hub's signature was not checked: name its public key by --hub-key (the operator logs it at its start)"
    }
}

async fn push(arguments: &Push) -> Result<String> {
    let Push { file, way } = arguments;
    let client = cluster::client().await?;
    let (door, _forward) = way.open(&client).await?;
    let model = door.push(&way.namespace, file).await.map_err(model_error)?;
    Ok(format!(
        "{} is {model} at the hub.\nA study of namespace {} may start from it:\n\n  initialModel:\n    digest: {model}\n\n\
         It is kept for store.unnamedModelsFor (24h unless the hub says otherwise) until a study names it.\n",
        file.display(),
        way.namespace
    ))
}

fn verify(arguments: &Verify) -> Result<String> {
    let beside = arguments.release.clone().unwrap_or_else(|| beside::named(&arguments.file, "release.json"));
    let release = objects::release(&beside)?;
    let found = file::digest(&arguments.file).map_err(model_error)?;
    if found != release.spec.model {
        let (file, named) = (arguments.file.display(), release.spec.model);
        return Err(CliError::Model(format!(
            "{file} is {found}, but {} is of {named}: pull it again",
            beside.display()
        )));
    }
    if let Some(key) = &arguments.hub_key {
        beside::attested(&release.spec, key).map_err(CliError::Model)?;
    }
    Ok(format!(
        "{} is {found}, the model of {}\n{}\n",
        arguments.file.display(),
        beside.display(),
        attestation(arguments.hub_key.is_some())
    ))
}

/// Holds a forwarded port open.
struct Forward {
    /// It ends with its holder.
    _kubectl: Child,
}

impl Way {
    async fn open(&self, client: &Client) -> Result<(Door, Option<Forward>)> {
        let token = match (&self.token_file, &self.account) {
            (Some(path), _) => token_in(path)?,
            (None, Some(account)) => token_of(client, &self.namespace, account).await?,
            // clap asks for one of them.
            (None, None) => String::new(),
        };
        match &self.door {
            Some(address) => Ok((Door { address: address.clone(), token }, None)),
            None => {
                let (address, forward) = forward(client, &self.hub_namespace).await?;
                Ok((Door { address, token }, Some(forward)))
            }
        }
    }
}

fn token_in(path: &Path) -> Result<String> {
    let text = std::fs::read_to_string(path).map_err(|source| CliError::Io { path: path.into(), source })?;
    Ok(text.trim().to_owned())
}

async fn token_of(client: &Client, namespace: &str, account: &str) -> Result<String> {
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), namespace);
    let spec = TokenRequestSpec {
        audiences: vec![AUDIENCE.into()],
        expiration_seconds: Some(TOKEN_SECONDS),
        bound_object_ref: None,
    };
    let request = TokenRequest { spec, ..TokenRequest::default() };
    let made = accounts.create_token_request(account, &PostParams::default(), &request).await.map_err(|error| {
        CliError::Model(format!(
            "no token for ServiceAccount {namespace}/{account}: {error}; whoever may create serviceaccounts/token of it there \
             can have one"
        ))
    })?;
    made.status.map(|status| status.token).ok_or_else(|| CliError::Model("the API server made no token".into()))
}

/// Has kubectl forward a port to the door: who may is a matter of the cluster's roles.
async fn forward(client: &Client, namespace: &str) -> Result<(String, Forward)> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let found = pods.list(&ListParams::default().labels(SELECTOR)).await?.items;
    let pod = found.first().map(|pod| pod.name_any()).ok_or(CliError::Missing {
        what: "Pod",
        name: SELECTOR.into(),
        way_out: "name the operator's namespace with --hub-namespace",
    })?;
    let arguments =
        ["port-forward", "--address", "127.0.0.1", "-n", namespace, &format!("pod/{pod}"), &format!(":{PORT}")];
    let failed = |why: String| CliError::Model(format!("kubectl {}: {why}", arguments.join(" ")));
    let mut program = Program::new("kubectl");
    program.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = program.spawn().map_err(|error| failed(error.to_string()))?;
    let mut lines = BufReader::new(child.stdout.take().ok_or_else(|| failed("it says nothing".into()))?).lines();
    let said = tokio::time::timeout(PATIENCE, lines.next_line()).await.map_err(|late| failed(late.to_string()))?;
    let Ok(Some(line)) = said else {
        let ended = child.wait_with_output().await.map_err(|error| failed(error.to_string()))?;
        return Err(failed(String::from_utf8_lossy(&ended.stderr).trim().to_owned()));
    };
    // A pipe that nobody reads would stop it in the end.
    tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
    let address = forwarded(&line).ok_or_else(|| failed(format!("it says {line:?}")))?;
    Ok((address, Forward { _kubectl: child }))
}

/// The address in kubectl's first line.
fn forwarded(line: &str) -> Option<String> {
    let address = line.strip_prefix("Forwarding from ")?.split(" -> ").next()?;
    address.parse::<std::net::SocketAddr>().ok().map(|address| address.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The port is kubectl's choice, and stands in a sentence of its own.
    #[test]
    fn the_forwarded_port_is_read_from_what_kubectl_says() {
        assert_eq!(forwarded("Forwarding from 127.0.0.1:40237 -> 8445").as_deref(), Some("127.0.0.1:40237"));
        assert_eq!(forwarded("error: unable to forward"), None);
    }

    /// An unreadable key must not pass for one that nothing was checked by.
    #[test]
    fn a_key_that_is_none_is_refused() {
        assert!(key("AAAA").unwrap_err().contains("3 bytes"));
        assert!(key("?").is_err());
    }
}
