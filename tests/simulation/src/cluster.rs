//! A hospital's cluster: its RoundTasks, and its trainers, which train by the clock. It outlives the agent.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use consilium_agent::link::{Announce, AnnounceError, Answer, Recalled};
use consilium_agent::state::{Grant, State};
use consilium_agent::tasks::decide::TaskSeen;
use consilium_agent::tasks::job::{Mode, try_name};
use consilium_agent::tasks::observe::{End, TrySeen, TryState};
use consilium_agent::tasks::status::remembered_end;
use consilium_agent::tasks::{ControlError, Runner, Sight, Started};
use consilium_crds::round_task::Irreversible;
use consilium_crds::{FederatedStudySpec, RoundTask, RoundTaskSpec, RoundTaskStatus};
use consilium_federation::Digest;
use consilium_federation::task::TaskKind;
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::clock::SimClock;
use crate::mutant::Mutant;

/// Where a try is with its work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Wants the base model.
    Fetch,
    /// Trains until then (milliseconds since the beginning).
    Train(i64),
    /// Has a result on the task's volume.
    Deliver,
    /// Has ended.
    Over,
}

/// One try.
#[derive(Clone, Debug)]
pub struct Try {
    pub task_uid: String,
    pub name: String,
    pub number: u32,
    pub mode: Mode,
    pub phase: Phase,
    pub end: Option<End>,
    pub token: String,
    pub kind: TaskKind,
    pub round: u32,
    pub round_uid: String,
    stopped: bool,
}

#[derive(Default)]
struct Inner {
    tasks: BTreeMap<String, Arc<RoundTask>>,
    tries: BTreeMap<String, Try>,
    /// Tasks on whose volume a whole result lies.
    results: BTreeSet<String>,
    made: u32,
    /// Trainings that came to an end, by round and kind: how often.
    trained: BTreeMap<(String, TaskKind), u32>,
}

/// The cluster; a clone is the same one.
#[derive(Clone)]
pub struct Cluster {
    name: &'static str,
    clock: SimClock,
    inner: Arc<Mutex<Inner>>,
    mutant: Option<Mutant>,
}

impl Cluster {
    /// An empty one.
    pub fn new(name: &'static str, clock: SimClock, mutant: Option<Mutant>) -> Self {
        Self { name, clock, inner: Arc::default(), mutant }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// With the agent that runs now.
    pub fn runner(&self, state: State) -> Arc<Jobs> {
        Arc::new(Jobs { cluster: self.clone(), state })
    }

    /// Tries that are under way, by name.
    pub fn tries(&self) -> Vec<Try> {
        self.lock().tries.values().filter(|one| one.phase != Phase::Over && !one.stopped).cloned().collect()
    }

    /// How many tasks there are.
    pub fn tasks(&self) -> usize {
        self.lock().tasks.len()
    }

    /// How often each part was trained to its end.
    pub fn trained(&self) -> BTreeMap<(String, TaskKind), u32> {
        self.lock().trained.clone()
    }

    /// A try goes on.
    pub fn set(&self, name: &str, phase: Phase, end: Option<End>) {
        let mut inner = self.lock();
        let Some(one) = inner.tries.get_mut(name) else { return };
        let trained = matches!(one.phase, Phase::Train(_)) && phase == Phase::Deliver;
        one.phase = phase;
        one.end = end;
        let (part, uid) = ((one.round_uid.clone(), one.kind), one.task_uid.clone());
        if trained {
            inner.results.insert(uid);
            *inner.trained.entry(part).or_default() += 1;
        }
    }

    /// Whether a whole result of a task lies on its volume.
    pub fn has_result(&self, uid: &str) -> bool {
        self.lock().results.contains(uid)
    }

    /// Ends what was stopped, and removes tasks that are to go.
    pub fn sweep(&self) {
        let mut inner = self.lock();
        if self.mutant == Some(Mutant::TasksStay) {
            return;
        }
        for one in inner.tries.values_mut().filter(|one| one.stopped && one.phase != Phase::Over) {
            one.phase = Phase::Over;
            one.end = Some(End::Failed("it was stopped".into()));
        }
        let doomed: Vec<(String, String)> = (inner.tasks.iter())
            .filter(|(_, task)| task.metadata.deletion_timestamp.is_some())
            .map(|(name, task)| (name.clone(), task.metadata.uid.clone().unwrap_or_default()))
            .collect();
        for (name, uid) in doomed {
            inner.tasks.remove(&name);
            inner.tries.retain(|_, one| one.task_uid != uid);
            inner.results.remove(&uid);
        }
    }

    fn change(&self, name: &str, change: impl FnOnce(&mut RoundTask)) -> bool {
        let mut inner = self.lock();
        let Some(known) = inner.tasks.get(name) else { return false };
        let mut task = (**known).clone();
        change(&mut task);
        if task != **known {
            let version: u64 = known.metadata.resource_version.as_deref().and_then(|v| v.parse().ok()).unwrap_or(0);
            task.metadata.resource_version = Some((version + 1).to_string());
            inner.tasks.insert(name.to_owned(), Arc::new(task));
        }
        true
    }
}

/// The cluster as a process of the agent uses it.
pub struct Jobs {
    cluster: Cluster,
    state: State,
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
            state: match (&one.end, one.stopped, one.phase) {
                (Some(end), ..) => TryState::Ended(end.clone()),
                (None, true, _) => TryState::Stopping,
                (None, false, Phase::Fetch) => TryState::Waiting(None),
                (None, false, _) => TryState::Running,
            },
            trainer_ended: one.mode == Mode::Deliver || matches!(one.phase, Phase::Deliver | Phase::Over),
            over: one.end.is_some(),
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

/// What the agent is shown: not what was begun twice.
fn shown(tries: &BTreeMap<String, Try>) -> BTreeMap<String, Try> {
    tries.iter().filter(|(name, _)| !name.ends_with("-again")).map(|(name, one)| (name.clone(), one.clone())).collect()
}

#[tonic::async_trait]
impl Runner for Jobs {
    fn look(&self) -> Box<dyn Sight> {
        let inner = self.cluster.lock();
        Box::new(Seen { tasks: inner.tasks.values().cloned().collect(), tries: shown(&inner.tries) })
    }

    async fn create_task(&self, name: &str, spec: RoundTaskSpec) -> Result<(), ControlError> {
        let now = self.cluster.clock.now();
        let mut inner = self.cluster.lock();
        if inner.tasks.contains_key(name) {
            return Ok(());
        }
        inner.made += 1;
        let mut task = RoundTask::new(name, spec);
        task.metadata.uid = Some(format!("{}-task-{}", self.cluster.name, inner.made));
        task.metadata.generation = Some(1);
        task.metadata.resource_version = Some("1".into());
        task.metadata.creation_timestamp = Some(Time(now));
        inner.tasks.insert(name.to_owned(), Arc::new(task));
        Ok(())
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
        if self.cluster.lock().tries.contains_key(&called) {
            return Ok(());
        }
        let grant = Grant::Task { uid: uid.clone(), name: name.clone(), r#try: number };
        self.state.put_token(Digest::of(token.as_bytes()), &grant)?;
        let one = Try {
            task_uid: uid,
            name: called.clone(),
            number,
            mode,
            phase: if mode == Mode::Deliver { Phase::Deliver } else { Phase::Fetch },
            end: None,
            token: token.to_owned(),
            kind: task.spec.kind,
            round: task.spec.round,
            round_uid: task.spec.round_uid.clone(),
            stopped: false,
        };
        if self.cluster.mutant == Some(Mutant::LostReplyAsLostRequest) {
            let again = Try { name: format!("{called}-again"), ..one.clone() };
            self.cluster.lock().tries.insert(again.name.clone(), again);
        }
        self.cluster.lock().tries.insert(called, one);
        Ok(())
    }

    async fn stop_try(&self, name: &str) -> Result<(), ControlError> {
        if let Some(one) = self.cluster.lock().tries.get_mut(name) {
            one.stopped = true;
        }
        Ok(())
    }

    async fn delete_task(&self, name: &str) -> Result<(), ControlError> {
        let now = self.cluster.clock.now();
        self.cluster.change(name, |task| {
            task.metadata.deletion_timestamp.get_or_insert(Time(now));
        });
        let mut inner = self.cluster.lock();
        let uid = inner.tasks.get(name).and_then(|task| task.metadata.uid.clone());
        for one in inner.tries.values_mut().filter(|one| Some(&one.task_uid) == uid.as_ref()) {
            one.stopped = true;
        }
        Ok(())
    }

    async fn status(&self, task: &RoundTask, new: &RoundTaskStatus) -> Result<(), ControlError> {
        let name = task.metadata.name.as_deref().unwrap_or_default();
        self.cluster.change(name, |task| {
            let irreversible = task.status.take().and_then(|status| status.irreversible);
            task.status = Some(RoundTaskStatus { irreversible, ..new.clone() });
        });
        Ok(())
    }

    async fn clean(&self, _: Timestamp) -> Result<(), ControlError> {
        self.cluster.sweep();
        Ok(())
    }
}

impl Announce for Cluster {
    fn recall<'a>(&'a self, task: &'a str) -> Answer<'a, Result<Recalled, AnnounceError>> {
        let found = self.lock().tasks.get(task).filter(|t| t.metadata.deletion_timestamp.is_none()).cloned();
        Box::pin(async move {
            let found = found.ok_or_else(|| AnnounceError::Gone(task.to_owned()))?;
            let act = found.status.as_ref().and_then(|status| status.irreversible.clone());
            Ok(Recalled { act, version: found.metadata.resource_version.clone().unwrap_or_default() })
        })
    }

    fn announce<'a>(
        &'a self,
        task: &'a str,
        act: &'a Irreversible,
        over: &'a str,
    ) -> Answer<'a, Result<(), AnnounceError>> {
        let mut fits = true;
        let there = self.change(task, |task| {
            fits = task.metadata.resource_version.as_deref() == Some(over);
            if fits {
                task.status.get_or_insert_default().irreversible = Some(act.clone());
            }
        });
        let answer = match (there, fits) {
            (false, _) => Err(AnnounceError::Gone(task.to_owned())),
            (true, false) => Err(AnnounceError::Changed(task.to_owned())),
            (true, true) => Ok(()),
        };
        Box::pin(async move { answer })
    }
}
