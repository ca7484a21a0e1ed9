//! A hospital: the agent's own link, ladder, volume, ledger, task controller and task port, on a folder in memory.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context as _;
use clap::Parser as _;
use consilium_agent::link::{Link, Stepwise};
use consilium_agent::state::Unrecorded;
use consilium_agent::tasks::observe::End;
use consilium_agent::tasks::{Controller, Desk};
use consilium_agent::{Config, Context, Enforcement, Facts, Metrics, ObjectCache, State, taskport};
use consilium_crds::SitePolicy;
use consilium_federation::task::TaskKind;
use consilium_proto::v1::file_part::Part;
use consilium_proto::v1::task_port_server::TaskPort as _;
use consilium_proto::v1::{Assignment, FetchRequest, FilePart, FileStart};
use consilium_secagg::ids::PublicKey;
use kube::client::Body;
use serde_json::json;
use tokio::sync::{mpsc, watch};
use tokio_stream::StreamExt as _;
use tokio_util::sync::CancellationToken;
use tonic::metadata::{MetadataMap, MetadataValue};
use tonic::{Code, Request};

use crate::clock::{Dice, SimClock};
use crate::cluster::{Cluster, Phase, Try};
use crate::mutant::Mutant;
use crate::schedule::Fate;
use crate::study;
use crate::wire::{NoDial, Packet, Wire};

/// One process of the agent.
pub struct Agent {
    /// What all its parts work with.
    pub ctx: Arc<Context>,
    /// The link.
    pub link: Stepwise,
    /// The tasks.
    pub controller: Controller,
    /// The task port.
    pub port: taskport::Port<Arc<Context>>,
}

/// A hospital.
pub struct Hospital {
    pub index: usize,
    /// Its disk.
    pub folder: PathBuf,
    /// Its people's word.
    pub policy: watch::Sender<Option<Arc<SitePolicy>>>,
    /// Its cluster.
    pub cluster: Cluster,
    /// Its agent, while one runs.
    pub agent: Option<Agent>,
    /// Its link is up.
    pub up: bool,
    /// It says no.
    pub refuses: bool,
    /// Seconds that a training takes.
    pub trains: u32,
    /// What becomes of its next calls.
    pub fates: Vec<(u8, Fate)>,
    /// Assignments that came, newest last.
    pub heard: Vec<Assignment>,
    /// Reports that it lies in, and how.
    pub lies: Option<u8>,
    /// A copy of its volume is there.
    pub backup: bool,
    /// Its disk does not work.
    pub full: bool,
    /// Its volume was set back.
    pub restored: bool,
    key: Option<PublicKey>,
    dice: Dice,
    clock: SimClock,
    out: mpsc::UnboundedSender<Packet>,
}

/// A client of no cluster.
fn nowhere() -> kube::Client {
    let service = tower::service_fn(|_: http::Request<Body>| async {
        Err::<http::Response<Body>, _>(std::io::Error::other("there is no cluster here"))
    });
    kube::Client::new(service, "default")
}

fn config() -> anyhow::Result<Config> {
    let words = ["agent", "--gateway", "https://hub:443", "--state", "/nonexistent"];
    let images = ["--courier-image", "none", "--evaluator-image", "none", "--inference-image", "none"];
    Ok(Config::try_parse_from(words.into_iter().chain(images))?)
}

impl Hospital {
    /// A new one, whose agent does not run yet.
    pub fn new(
        index: usize,
        folder: &Path,
        policy: Arc<SitePolicy>,
        (clock, mutant): (&SimClock, Option<Mutant>),
        out: mpsc::UnboundedSender<Packet>,
    ) -> Self {
        let name = crate::schedule::NAMES[index];
        Self {
            index,
            folder: folder.join(name),
            policy: watch::Sender::new(Some(policy)),
            cluster: Cluster::new(name, clock.clone(), mutant),
            agent: None,
            up: true,
            refuses: false,
            trains: 10,
            fates: Vec::new(),
            heard: Vec::new(),
            lies: None,
            backup: false,
            full: false,
            restored: false,
            key: None,
            dice: Dice::new(name),
            clock: clock.clone(),
            out,
        }
    }

    /// Opens the volume; one whose process has just been killed is free a moment later.
    async fn open(&self) -> anyhow::Result<State> {
        for _ in 0..2000 {
            match State::open(&self.folder.join("state"), self.dice.entropy().bytes32()) {
                Err(consilium_agent::StateError::InUse(_)) => {
                    tokio::time::sleep(std::time::Duration::from_millis(1)).await;
                }
                opened => return opened.context("the volume"),
            }
        }
        anyhow::bail!("the volume of {} stays in use", self.index)
    }

    /// The key of the hospital, made on its volume.
    pub async fn key(&mut self) -> anyhow::Result<PublicKey> {
        match self.key {
            Some(key) => Ok(key),
            None => Ok(*self.key.insert(self.open().await?.site_key(&self.dice.entropy())?.public())),
        }
    }

    /// Its agent begins.
    pub async fn begin(&mut self) -> anyhow::Result<()> {
        let (state, metrics) = (self.open().await?, Metrics::new()?);
        let link = Link::new(NoDial, state.assignment()?);
        let objects = ObjectCache::new(self.folder.join("objects"), 1 << 30, link.object_source(), metrics.clone())?;
        let clock = self.clock.clone();
        let ctx = Arc::new(Context {
            config: config()?,
            site: study::site(self.index),
            state: state.clone(),
            facts: Facts::default(),
            desired: link.desired(),
            policy: self.policy.subscribe(),
            objects,
            kube: nowhere(),
            metrics,
            desk: Desk::default(),
            enforcement: watch::Sender::new(Enforcement::Enforced),
            unrecorded: Unrecorded::default(),
            hazards: consilium_agent::policy::SeenHazards::default(),
            clock: consilium_agent::Clock::from_fn(move || clock.now()),
            entropy: self.dice.entropy(),
            shutdown: CancellationToken::new(),
        });
        let mut link = Stepwise::begin(ctx.clone(), link, Arc::new(self.cluster.clone()))?;
        link.connect(self.wire());
        let controller = Controller::new(ctx.clone(), self.cluster.runner(state.clone()));
        let port = taskport::Port::new(state, ctx.desk.clone(), self.folder.join("incoming"), ctx.clone());
        self.agent = Some(Agent { ctx, link, controller, port });
        Ok(())
    }

    /// A connection of this hospital.
    pub fn wire(&self) -> Arc<Wire> {
        Arc::new(Wire { site: self.index, out: self.out.clone() })
    }

    /// Its agent is killed.
    pub fn kill(&mut self) {
        self.agent = None;
    }

    /// Where a copy of the volume lies.
    fn copy(&self) -> PathBuf {
        self.folder.with_extension("backup")
    }

    /// Copies the volume as it is, under a running agent.
    pub fn snapshot(&mut self) -> std::io::Result<()> {
        let copy = self.copy();
        if copy.exists() {
            std::fs::remove_dir_all(&copy)?;
        }
        self.backup = true;
        copy_tree(&self.folder.join("state"), &copy)
    }

    /// Copies the volume, or puts the copy in its place; the agent does not run.
    pub async fn swap(&mut self, restore: bool) -> anyhow::Result<()> {
        drop(self.open().await?);
        let (state, copy) = (self.folder.join("state"), self.copy());
        let (from, to) = if restore { (&copy, &state) } else { (&state, &copy) };
        if to.exists() {
            std::fs::remove_dir_all(to)?;
        }
        copy_tree(from, to)?;
        self.backup = true;
        Ok(())
    }

    /// The disk takes no vector any more: a file lies where their folder would be made.
    pub fn set_full(&mut self, full: bool) -> std::io::Result<()> {
        self.full = full;
        for name in ["masked", "incoming"] {
            let root = if name == "masked" { self.folder.join("state") } else { self.folder.clone() };
            let (path, aside) = (root.join(name), root.join(format!("{name}-aside")));
            if full && !path.is_file() {
                if path.is_dir() {
                    std::fs::rename(&path, &aside)?;
                }
                std::fs::create_dir_all(&root)?;
                std::fs::write(&path, b"full")?;
            } else if !full && path.is_file() {
                std::fs::remove_file(&path)?;
                if aside.is_dir() {
                    std::fs::rename(&aside, &path)?;
                }
            }
        }
        Ok(())
    }
}

fn copy_tree(from: &Path, to: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_tree(&entry.path(), &target)?;
        } else {
            std::fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}

fn metadata(token: &str) -> MetadataMap {
    let mut metadata = MetadataMap::new();
    if let Ok(value) = MetadataValue::try_from(format!("Bearer {token}")) {
        metadata.insert("authorization", value);
    }
    metadata
}

fn file(path: &str, content: Vec<u8>) -> [FilePart; 2] {
    let start = FileStart { path: path.into(), size: content.len() as u64 };
    [Part::Start(start), Part::Data(content.into())].map(|part| FilePart { part: Some(part) })
}

fn result(index: usize, one: &Try, mutant: Option<Mutant>) -> Vec<FilePart> {
    match one.kind {
        TaskKind::Evaluate => {
            let class = json!({"label": 1, "dice": 0.8, "hd95Mm": null, "assdMm": null});
            file("score.json", json!({"cases": 10, "classes": [class]}).to_string().into_bytes()).into()
        }
        _ => {
            let times = if mutant == Some(Mutant::DoubleCount) && index == 1 { 2 } else { 1 };
            let of = if mutant == Some(Mutant::OldUpdate) { one.round.saturating_sub(1).max(1) } else { one.round };
            let examples = times * study::examples(index);
            let metrics = json!({"examples": examples, "metrics": {}}).to_string().into_bytes();
            [file("update.safetensors", study::update(index, of)), file("metrics.json", metrics)].concat()
        }
    }
}

/// What a try does next; the phase that it is in then, or its end. `None`: nothing for now.
pub async fn work(
    agent: &Agent,
    one: &Try,
    (index, mutant): (usize, Option<Mutant>),
    (trains, left): (u32, bool),
    now: i64,
) -> Option<(Phase, Option<End>)> {
    match one.phase {
        Phase::Fetch => {
            let mut request = Request::new(FetchRequest::default());
            *request.metadata_mut() = metadata(&one.token);
            let mut failed = match agent.port.fetch(request).await {
                Ok(stream) => {
                    let mut stream = stream.into_inner();
                    let mut failed = None;
                    while let Some(part) = stream.next().await {
                        failed = failed.or(part.err());
                    }
                    failed
                }
                Err(status) => Some(status),
            };
            match failed.take() {
                // As the courier does: a result that an earlier try left is handed over.
                None if left => Some((Phase::Deliver, None)),
                None => Some((Phase::Train(now + i64::from(trains) * 1000), None)),
                Some(status) if status.code() == Code::Unavailable => None,
                Some(status) => Some((Phase::Over, Some(End::Failed(format!("fetch: {}", status.message()))))),
            }
        }
        Phase::Train(until) => (now >= until).then_some((Phase::Deliver, None)),
        Phase::Deliver => {
            let parts = tokio_stream::iter(result(index, one, mutant).into_iter().map(Ok));
            match agent.port.take(&metadata(&one.token), parts).await {
                Ok(()) => Some((Phase::Over, Some(End::Complete))),
                Err(status) if status.code() == Code::Unavailable => None,
                Err(status) => {
                    tracing::debug!(index, %status, "a result was not taken");
                    Some((Phase::Over, Some(End::Undelivered)))
                }
            }
        }
        Phase::Over => None,
    }
}
