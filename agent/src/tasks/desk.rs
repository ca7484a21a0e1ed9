//! What the task controllers tell the task port, and the other way round.
//!
//! The controllers put an entry on the desk for every task and deployment that
//! exists; the task port reads it on each call, and leaves progress and refusals
//! there. Nothing here survives a restart: until the controllers have looked at
//! the cluster again, the task port asks couriers to wait.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use consilium_crds::FederatedStudySpec;
use consilium_federation::assignment::{DeployWork, ItemState, RoundWork};
use consilium_federation::task::Progress;
use tokio::sync::Notify;
use tokio::sync::futures::Notified;

use crate::state::State;
use crate::taskport::{Identity, IdentityError, load_or_make};

/// A task as the task port needs to know it.
#[derive(Clone, Debug)]
pub struct TaskEntry {
    /// UID of the TrainingRound.
    pub round_uid: String,
    /// What the hub asks for.
    pub work: RoundWork,
    /// The approved spec.
    pub spec: Arc<FederatedStudySpec>,
    /// Example counts are rounded to multiples of this.
    pub weight_bucket: u32,
    /// The try whose trainer has ended, or that has none.
    pub ended_try: Option<u32>,
}

/// A deployment as the task port needs to know it.
#[derive(Clone, Debug)]
pub struct DeployEntry {
    /// UID of the ModelPromotion.
    pub promotion_uid: String,
    /// Whether the hub still asks for it.
    pub state: ItemState,
    /// What the hub asks for.
    pub work: DeployWork,
}

#[derive(Default)]
struct Inner {
    tasks: BTreeMap<String, TaskEntry>,
    deployments: BTreeMap<String, DeployEntry>,
    progress: BTreeMap<String, Progress>,
    rejected: BTreeMap<String, String>,
}

/// The desk; a cheap clone of one shared set.
#[derive(Clone, Default)]
pub struct Desk {
    inner: Arc<Mutex<Inner>>,
    news: Arc<Notify>,
    identity: Arc<Mutex<Option<Identity>>>,
}

impl Desk {
    /// Sets the tasks that exist, by UID of their RoundTask; what is known of others goes.
    pub fn set_tasks(&self, tasks: BTreeMap<String, TaskEntry>) {
        let mut inner = self.lock();
        inner.progress.retain(|uid, _| tasks.contains_key(uid));
        inner.rejected.retain(|uid, _| tasks.contains_key(uid));
        inner.tasks = tasks;
    }

    /// Sets the deployments that exist, by UID of their ModelDeployment.
    pub fn set_deployments(&self, deployments: BTreeMap<String, DeployEntry>) {
        self.lock().deployments = deployments;
    }

    /// A task by UID.
    pub fn task(&self, uid: &str) -> Option<TaskEntry> {
        self.lock().tasks.get(uid).cloned()
    }

    /// A deployment by UID.
    pub fn deployment(&self, uid: &str) -> Option<DeployEntry> {
        self.lock().deployments.get(uid).cloned()
    }

    /// How far a trainer says it is. Shown on the controller's next turn; wakes nobody.
    pub fn set_progress(&self, uid: &str, progress: Progress) {
        self.lock().progress.insert(uid.to_owned(), progress);
    }

    /// The last progress of a task.
    pub fn progress(&self, uid: &str) -> Option<Progress> {
        self.lock().progress.get(uid).cloned()
    }

    /// A task's result was refused for good.
    pub fn set_rejected(&self, uid: &str, why: String) {
        self.lock().rejected.insert(uid.to_owned(), why);
        self.news.notify_one();
    }

    /// Why a task's result was refused.
    pub fn rejected(&self, uid: &str) -> Option<String> {
        self.lock().rejected.get(uid).cloned()
    }

    /// A result was stored.
    pub fn delivered(&self) {
        self.news.notify_one();
    }

    /// The task port's certificate and key, made once.
    pub fn identity(&self, state: &State, address: &str) -> Result<Identity, IdentityError> {
        let mut known = self.identity.lock().unwrap_or_else(PoisonError::into_inner);
        let identity = match known.take() {
            Some(identity) => identity,
            None => load_or_make(state, address)?,
        };
        Ok(known.insert(identity).clone())
    }

    /// Waits for something that the task controller should look at.
    pub fn news(&self) -> Notified<'_> {
        self.news.notified()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // A panic between two map operations leaves maps that are still whole.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
