//! Processes as a hospital's runner: each try is the contract's folder, a trainer, for an evaluation the platform's
//! evaluator, and the courier between them and the task port. What is decided about tries is the agent's own.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use consilium_agent::courier::{self, CourierError, Pace, PortArgs};
use consilium_agent::state::Grant;
use consilium_agent::tasks::decide::TaskSeen;
use consilium_agent::tasks::job::{Mode, try_name};
use consilium_agent::tasks::observe::{End, TrySeen, TryState};
use consilium_agent::tasks::status::remembered_end;
use consilium_agent::tasks::{ControlError, Runner, Sight, Started};
use consilium_agent::{Context, Entropy};
use consilium_crds::{FederatedStudySpec, RoundTask, RoundTaskSpec, RoundTaskStatus};
use consilium_federation::Digest;
use consilium_federation::task::{EXIT_INVALID, Failure as Reported, TaskKind};
use jiff::Timestamp;
use tokio::process::Child;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::setup::Setup;
use super::tasks::Tasks;
use super::{Failure, Result, files, process};

/// The processes of one hospital; a clone is the same set.
#[derive(Clone)]
pub(super) struct Processes(Arc<Inner>);

struct Inner {
    ctx: Arc<Context>,
    folder: PathBuf,
    setup: Setup,
    tasks: Tasks,
    tries: Mutex<BTreeMap<String, Try>>,
    news: Arc<Notify>,
    port: Port,
}

/// How the task port is reached.
pub(super) struct Port {
    pub(super) address: String,
    pub(super) certificate: String,
}

#[derive(Clone)]
struct Try {
    task_uid: String,
    number: u32,
    mode: Mode,
    state: TryState,
    trainer_ended: bool,
    stop: CancellationToken,
}

impl Try {
    fn runs(&self) -> bool {
        !matches!(self.state, TryState::Ended(_))
    }
}

struct Seen {
    tasks: Vec<Arc<RoundTask>>,
    tries: BTreeMap<String, Try>,
}

impl Sight for Seen {
    fn tasks(&self) -> &[Arc<RoundTask>] {
        &self.tasks
    }

    fn see(&self, task: &RoundTask, _: Option<Started>, _: Timestamp) -> TaskSeen {
        let uid = task.metadata.uid.as_deref().unwrap_or_default();
        let seen = |(name, one): (&String, &Try)| TrySeen {
            number: one.number,
            mode: one.mode,
            job: name.clone(),
            state: match one.stop.is_cancelled() && one.runs() {
                true => TryState::Stopping,
                false => one.state.clone(),
            },
            trainer_ended: one.trainer_ended || !one.runs(),
            over: !one.runs(),
        };
        let mut tries: Vec<TrySeen> = self.tries.iter().filter(|(_, one)| one.task_uid == uid).map(seen).collect();
        tries.sort_by_key(|one| one.number);
        TaskSeen {
            deleting: task.metadata.deletion_timestamp.is_some(),
            last_try: task.status.as_ref().and_then(|status| status.r#try).unwrap_or(0),
            tries,
            ended: remembered_end(task.status.as_ref()),
        }
    }

    fn has_try(&self, name: &str) -> bool {
        self.tries.contains_key(name)
    }
}

fn unable(what: &str) -> impl FnOnce(Failure) -> ControlError {
    let what = what.to_owned();
    move |error| ControlError::Files { what, source: std::io::Error::other(error.to_string()) }
}

#[tonic::async_trait]
impl Runner for Processes {
    fn look(&self) -> Box<dyn Sight> {
        Box::new(Seen { tasks: self.0.tasks.all(), tries: self.tries().clone() })
    }

    async fn create_task(&self, name: &str, spec: RoundTaskSpec) -> Result<(), ControlError> {
        let uid = hex::encode(&Entropy::system().bytes32()[..16]);
        let made = self.0.tasks.create(name, spec, uid, self.0.ctx.now());
        self.0.news.notify_one();
        made.map_err(unable("writing a task"))
    }

    async fn start_try(
        &self,
        task: &RoundTask,
        _: &FederatedStudySpec,
        (number, mode): (u32, Mode),
        token: &str,
    ) -> Result<(), ControlError> {
        let name = task.metadata.name.clone().unwrap_or_default();
        let (uid, called) = (task.metadata.uid.clone().unwrap_or_default(), try_name(&name, number));
        if self.tries().contains_key(&called) {
            return Ok(());
        }
        let work = Work { kind: task.spec.kind, mode, task: name.clone(), uid: uid.clone(), called: called.clone() };
        let grant = Grant::Task { uid: uid.clone(), name, r#try: number };
        self.0.ctx.state.put_token(Digest::of(token.as_bytes()), &grant)?;
        self.credential(&work, token).map_err(unable("writing a credential"))?;
        let stop = self.0.ctx.shutdown.child_token();
        let one = Try {
            task_uid: uid,
            number,
            mode,
            state: TryState::Waiting(None),
            trainer_ended: mode == Mode::Deliver,
            stop: stop.clone(),
        };
        self.tries().insert(called, one);
        let processes = self.clone();
        // Spawned onto the one thread of this process, with which its children end.
        tokio::spawn(async move {
            let end = tokio::select! {
                end = processes.run(&work) => end,
                () = stop.cancelled() => End::Failed("it was stopped".into()),
            };
            processes.change(&work.called, |one| one.state = TryState::Ended(end));
            processes.sweep();
        });
        Ok(())
    }

    async fn stop_try(&self, name: &str) -> Result<(), ControlError> {
        if let Some(one) = self.tries().get(name) {
            one.stop.cancel();
        }
        Ok(())
    }

    async fn delete_task(&self, name: &str) -> Result<(), ControlError> {
        let uid = self
            .0
            .tasks
            .all()
            .iter()
            .find(|t| t.metadata.name.as_deref() == Some(name))
            .map(|t| t.metadata.uid.clone());
        self.0.tasks.doom(name, self.0.ctx.now()).map_err(unable("removing a task"))?;
        if let Some(Some(uid)) = uid {
            self.tries().values().filter(|one| one.task_uid == uid).for_each(|one| one.stop.cancel());
        }
        self.sweep();
        Ok(())
    }

    async fn status(&self, task: &RoundTask, new: &RoundTaskStatus) -> Result<(), ControlError> {
        let name = task.metadata.name.as_deref().unwrap_or_default();
        self.0.tasks.status(name, new).map_err(unable("writing the status of a task"))
    }

    async fn clean(&self, _: Timestamp) -> Result<(), ControlError> {
        self.sweep();
        Ok(())
    }
}

/// One try.
struct Work {
    kind: TaskKind,
    mode: Mode,
    task: String,
    uid: String,
    called: String,
}

impl Processes {
    pub(super) fn new(
        ctx: Arc<Context>,
        (folder, setup): (PathBuf, Setup),
        tasks: Tasks,
        news: Arc<Notify>,
        port: Port,
    ) -> Self {
        Self(Arc::new(Inner { ctx, folder, setup, tasks, tries: Mutex::default(), news, port }))
    }

    fn tries(&self) -> MutexGuard<'_, BTreeMap<String, Try>> {
        self.0.tries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, name: &str, change: impl FnOnce(&mut Try)) {
        if let Some(one) = self.tries().get_mut(name) {
            change(one);
        }
        self.0.news.notify_one();
    }

    fn work(&self, uid: &str) -> PathBuf {
        self.0.folder.join("work").join(uid)
    }

    /// Removes tasks that are to go, once nothing of them runs, with all that they left.
    fn sweep(&self) {
        for task in self.0.tasks.all() {
            let uid = task.metadata.uid.as_deref().unwrap_or_default();
            let runs = self.tries().values().any(|one| one.task_uid == uid && one.runs());
            if runs || task.metadata.deletion_timestamp.is_none() {
                continue;
            }
            let gone = files::remove(&self.work(uid))
                .and_then(|()| self.0.tasks.remove(task.metadata.name.as_deref().unwrap_or_default()));
            match gone {
                Ok(()) => self.tries().retain(|_, one| one.task_uid != uid),
                Err(error) => tracing::warn!(%error, "a task could not be removed; it is tried again"),
            }
        }
    }

    fn port_args(&self, work: &Work) -> PortArgs {
        let folder = self.work(&work.uid);
        PortArgs {
            root: folder.join("consilium"),
            results: (work.kind == TaskKind::Evaluate).then(|| folder.join("results")),
            server: self.0.port.address.clone(),
            credential: folder.join(&work.called),
        }
    }

    fn credential(&self, work: &Work, token: &str) -> Result<()> {
        let folder = self.port_args(work).credential;
        files::put_bytes(&folder.join("token"), token.as_bytes())?;
        files::put_bytes(&folder.join("ca.crt"), self.0.port.certificate.as_bytes())
    }

    /// Runs a try to its end; dropped, its processes are killed.
    async fn run(&self, work: &Work) -> End {
        let (args, pace) = (self.port_args(work), Pace::default());
        if work.mode == Mode::Deliver {
            self.change(&work.called, |one| one.state = TryState::Running);
            return delivered(courier::deliver(&args, &pace).await);
        }
        for folder in [Some(&args.root), args.results.as_ref()].into_iter().flatten() {
            if let Err(error) = files::folder(folder) {
                return End::Failed(error.to_string());
            }
        }
        match courier::fetch(&args, &pace).await {
            Ok(()) => {}
            Err(CourierError::Delivered) => return End::Complete,
            Err(error) => return End::Failed(format!("fetch: {error}")),
        }
        let started = self.trainer(work, &args).and_then(|trainer| Ok((trainer, self.evaluator(work, &args)?)));
        let (mut trainer, mut evaluator) = match started {
            Ok(started) => started,
            Err(error) => return End::Failed(error.to_string()),
        };
        self.change(&work.called, |one| one.state = TryState::Running);
        let made = async {
            let first = ended(&mut trainer.0, "trainer", &args.root.join("out")).await;
            let last = match (&first, &mut evaluator) {
                (None, Some(child)) => ended(&mut child.0, "evaluator", &args.root.join("none")).await,
                _ => first,
            };
            // Whoever waits for a result learns that no more will come.
            self.change(&work.called, |one| one.trainer_ended = true);
            last
        };
        let (blame, handed_over) = tokio::join!(made, courier::deliver(&args, &pace));
        match (blame, handed_over) {
            (_, Ok(())) => End::Complete,
            (Some(blame), _) => blame,
            (None, failed) => delivered(failed),
        }
    }

    fn trainer(&self, work: &Work, args: &PortArgs) -> Result<Group> {
        let part = if work.kind == TaskKind::Evaluate { "eval" } else { "train" };
        let data = self.0.setup.data.join(part);
        let (root, data) = (path(&args.root), path(&data));
        let rest = ["run", "--root", &root, "--data", &data].map(String::from);
        self.start(work, "trainer", [self.0.setup.trainer.clone(), rest.to_vec()].concat())
    }

    fn evaluator(&self, work: &Work, args: &PortArgs) -> Result<Option<Group>> {
        let Some(results) = &args.results else { return Ok(None) };
        let Some(evaluator) = &self.0.setup.evaluator else {
            return Err(Failure::Part("the platform's evaluator, consilium-trainer, was not found".into()));
        };
        let details = self.0.folder.join("scores");
        files::folder(&details)?;
        let (root, results, labels) = (path(&args.root), path(results), path(&self.0.setup.data.join("labels")));
        let details = path(&details.join(format!("{}.json", work.task)));
        let rest =
            ["score", "--root", &root, "--results", &results, "--labels", &labels, "--details", &details, "--wait"];
        let words = evaluator.iter().cloned().chain(rest.map(String::from)).collect();
        self.start(work, "evaluator", words).map(Some)
    }

    fn start(&self, work: &Work, what: &str, words: Vec<String>) -> Result<Group> {
        let logs = self.0.folder.join("logs");
        files::folder(&logs)?;
        let file = logs.join(format!("{}.{what}.log", work.called));
        let log = File::create(&file).map_err(Failure::file(&file))?;
        let mut command = process::command(&words)?;
        command.env("OMP_NUM_THREADS", self.0.setup.threads.to_string());
        let errors = log.try_clone().map_err(Failure::file(&file))?;
        let child = command.stdout(log).stderr(errors).spawn();
        child.map(Group).map_err(Failure::file(Path::new(&words[0])))
    }
}

/// A process and all that it starts: they end when this goes.
struct Group(Child);

impl Drop for Group {
    fn drop(&mut self) {
        process::kill(&mut self.0);
    }
}

fn path(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

fn delivered(result: std::result::Result<(), CourierError>) -> End {
    match result {
        Ok(()) => End::Complete,
        Err(CourierError::NoResult | CourierError::Damaged { .. }) => End::NoResult,
        Err(error) => {
            tracing::warn!(%error, "a result was not delivered");
            End::Undelivered
        }
    }
}

/// Waits for a process; why it is to blame, if it did not end well.
async fn ended(child: &mut Child, what: &str, out: &Path) -> Option<End> {
    match child.wait().await {
        Ok(status) if status.success() => None,
        Ok(status) => Some(blame(status, what, out)),
        Err(error) => Some(End::Failed(format!("{what}: {error}"))),
    }
}

fn blame(status: ExitStatus, what: &str, out: &Path) -> End {
    let said: Option<Reported> =
        fs::read(out.join("failure.json")).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
    let words = |said: Option<Reported>| said.map_or_else(|| format!("{what}: {status}; see its log"), |s| s.message);
    if said.as_ref().is_some_and(|said| said.reason == "OutOfMemory") {
        return End::OutOfMemory(words(said));
    }
    match status.code() {
        Some(EXIT_INVALID) => End::Invalid(words(said)),
        _ => End::Failed(words(said)),
    }
}
