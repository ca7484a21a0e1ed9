//! A hospital's RoundTasks as files, and what is shown on them before it happens.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use consilium_agent::link::{Announce, AnnounceError, Answer, Recalled};
use consilium_crds::round_task::Irreversible;
use consilium_crds::{RoundTask, RoundTaskSpec, RoundTaskStatus};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::{Result, files};

/// The tasks of a folder; a clone is the same set. This process alone writes there.
#[derive(Clone)]
pub(super) struct Tasks(Arc<Inner>);

struct Inner {
    folder: PathBuf,
    tasks: Mutex<BTreeMap<String, Arc<RoundTask>>>,
}

impl Tasks {
    /// Reads what is there.
    pub(super) fn open(folder: PathBuf) -> Result<Self> {
        let tasks = files::all::<RoundTask>(&folder)?;
        let named = |task: RoundTask| (task.metadata.name.clone().unwrap_or_default(), Arc::new(task));
        let tasks = Mutex::new(tasks.into_iter().map(named).collect());
        Ok(Self(Arc::new(Inner { folder, tasks })))
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Arc<RoundTask>>> {
        self.0.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.folder.join(format!("{name}.json"))
    }

    /// All of them.
    pub(super) fn all(&self) -> Vec<Arc<RoundTask>> {
        self.lock().values().cloned().collect()
    }

    /// Writes a new one, unless it is there.
    pub(super) fn create(&self, name: &str, spec: RoundTaskSpec, uid: String, now: Timestamp) -> Result<()> {
        let mut tasks = self.lock();
        if tasks.contains_key(name) {
            return Ok(());
        }
        let mut task = RoundTask::new(name, spec);
        task.metadata.uid = Some(uid);
        task.metadata.generation = Some(1);
        task.metadata.resource_version = Some("1".into());
        task.metadata.creation_timestamp = Some(Time(now));
        files::put(&self.file(name), &task)?;
        tasks.insert(name.to_owned(), Arc::new(task));
        Ok(())
    }

    /// Writes a changed one; `false` when it is not there.
    fn change(&self, name: &str, change: impl FnOnce(&mut RoundTask)) -> Result<bool> {
        let mut tasks = self.lock();
        let Some(known) = tasks.get(name) else { return Ok(false) };
        let mut task = (**known).clone();
        change(&mut task);
        if task == **known {
            return Ok(true);
        }
        let version = known.metadata.resource_version.as_deref().and_then(|v| v.parse::<u64>().ok()).unwrap_or(0);
        task.metadata.resource_version = Some((version + 1).to_string());
        files::put(&self.file(name), &task)?;
        tasks.insert(name.to_owned(), Arc::new(task));
        Ok(true)
    }

    /// Replaces the status but for its irreversible act.
    pub(super) fn status(&self, name: &str, new: &RoundTaskStatus) -> Result<()> {
        let change = |task: &mut RoundTask| {
            let irreversible = task.status.take().and_then(|status| status.irreversible);
            task.status = Some(RoundTaskStatus { irreversible, ..new.clone() });
        };
        self.change(name, change).map(drop)
    }

    /// Marks one as to be removed.
    pub(super) fn doom(&self, name: &str, now: Timestamp) -> Result<()> {
        self.change(name, |task| {
            task.metadata.deletion_timestamp.get_or_insert(Time(now));
        })
        .map(drop)
    }

    /// Removes one.
    pub(super) fn remove(&self, name: &str) -> Result<()> {
        let mut tasks = self.lock();
        files::remove(&self.file(name))?;
        tasks.remove(name);
        Ok(())
    }
}

impl Announce for Tasks {
    fn recall<'a>(&'a self, task: &'a str) -> Answer<'a, Result<Recalled, AnnounceError>> {
        let found = self.lock().get(task).filter(|t| t.metadata.deletion_timestamp.is_none()).cloned();
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
        let written = self.change(task, |task| {
            fits = task.metadata.resource_version.as_deref() == Some(over);
            if fits {
                task.status.get_or_insert_default().irreversible = Some(act.clone());
            }
        });
        let answer = match (written, fits) {
            (Err(error), _) => Err(AnnounceError::Api { task: task.to_owned(), why: error.to_string() }),
            (Ok(false), _) => Err(AnnounceError::Gone(task.to_owned())),
            (Ok(true), false) => Err(AnnounceError::Changed(task.to_owned())),
            (Ok(true), true) => Ok(()),
        };
        Box::pin(async move { answer })
    }
}
