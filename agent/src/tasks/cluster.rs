//! The hospital's cluster as a runner: RoundTasks at its API server, a Job for each try.

use std::collections::BTreeSet;
use std::collections::btree_map::Entry;
use std::sync::Arc;

use consilium_crds::{FederatedStudySpec, RoundTask, RoundTaskSpec, RoundTaskStatus};
use jiff::Timestamp;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;

use super::Stores;
use super::apply::Writer;
use super::clean::{self, Folder, History};
use super::decide::TaskSeen;
use super::error::ControlError;
use super::gpus;
use super::job::Mode;
use super::read::{Started, holds, see};
use super::runner::{Runner, Sight};
use crate::Context;

/// The cluster.
pub(super) struct Cluster {
    ctx: Arc<Context>,
    stores: Stores,
    writer: Writer,
}

impl Cluster {
    pub(super) fn new(ctx: Arc<Context>, stores: Stores) -> Self {
        let writer = Writer::new(Arc::clone(&ctx));
        Self { ctx, stores, writer }
    }
}

struct Seen {
    tasks: Vec<Arc<RoundTask>>,
    jobs: Vec<Arc<Job>>,
    pods: Vec<Arc<Pod>>,
}

impl Sight for Seen {
    fn tasks(&self) -> &[Arc<RoundTask>] {
        &self.tasks
    }

    fn see(&self, task: &RoundTask, started: Option<Started>, now: Timestamp) -> TaskSeen {
        see(task, &self.jobs, &self.pods, started, now)
    }

    fn has_try(&self, name: &str) -> bool {
        self.jobs.iter().any(|job| job.name_any() == name)
    }
}

#[tonic::async_trait]
impl Runner for Cluster {
    fn look(&self) -> Box<dyn Sight> {
        let Stores { tasks, jobs, pods } = &self.stores;
        Box::new(Seen { tasks: tasks.state(), jobs: jobs.state(), pods: pods.state() })
    }

    async fn create_task(&self, name: &str, spec: RoundTaskSpec) -> Result<(), ControlError> {
        self.writer.create_task(name, spec).await
    }

    async fn start_try(
        &self,
        task: &RoundTask,
        study: &FederatedStudySpec,
        which: (u32, Mode),
        token: &str,
    ) -> Result<(), ControlError> {
        self.writer.start_try(task, study, which, token).await
    }

    async fn stop_try(&self, name: &str) -> Result<(), ControlError> {
        self.writer.stop_try(name).await
    }

    async fn delete_task(&self, name: &str) -> Result<(), ControlError> {
        self.writer.delete_task(name).await
    }

    async fn status(&self, task: &RoundTask, new: &RoundTaskStatus) -> Result<(), ControlError> {
        self.writer.status(task, new).await
    }

    fn count(&self, now: Timestamp) -> Result<(), ControlError> {
        Ok(gpus::record(&self.ctx.state, self.stores.pods.state().iter(), now)?)
    }

    /// Writes down where tasks have folders, and removes those of tasks that are gone.
    async fn clean(&self, now: Timestamp) -> Result<(), ControlError> {
        let Stores { tasks, jobs, pods } = &self.stores;
        let (jobs, pods) = (jobs.state(), pods.state());
        let mut known = clean::known(&self.ctx.state)?;
        let tasks = tasks.state();
        let uids: BTreeSet<String> = tasks.iter().filter_map(|t| t.uid()).collect();
        let policy = self.ctx.site_policy();
        if let Some(policy) = &policy {
            for task_uid in &uids {
                let folder = Folder { task_uid: task_uid.clone(), claim: policy.spec.resources.work_claim.clone() };
                if let Entry::Vacant(unknown) = known.entry(folder) {
                    clean::remember(&self.ctx.state, unknown.key(), &History::default())?;
                    unknown.insert(History::default());
                }
            }
        }
        // One that cannot end (a finalizer, a node that is gone) needs its folder no more, and is told of too.
        let needs = |t: &Arc<RoundTask>| t.metadata.deletion_timestamp.is_none();
        let needed: BTreeSet<String> = tasks.iter().filter(|t| needs(t)).filter_map(|t| t.uid()).collect();
        for (folder, history) in &mut known {
            let since = if needed.contains(&folder.task_uid) { None } else { history.since.or(Some(now)) };
            if history.since != since {
                history.since = since;
                clean::remember(&self.ctx.state, folder, history)?;
            }
        }
        let within = policy.as_ref().and_then(|policy| policy.spec.erased_within());
        self.ctx.facts.set_overdue(clean::overdue(&known, within.map_or(clean::OVERDUE, |within| within / 2), now));
        let in_use = |uid: &str| uids.contains(uid) || pods.iter().any(|pod| holds(pod, uid, now));
        let mut outcome = Ok(());
        for act in clean::decide(&known, in_use, &clean::see(&jobs), now) {
            // A claim whose Job the API server refuses holds up no other.
            outcome = outcome.and(self.writer.clean(&act).await);
        }
        outcome
    }
}
