//! Does what was decided: the only place of this controller that writes to the API server.

use std::sync::Arc;

use consilium_crds::{FederatedStudySpec, RoundTask, RoundTaskSpec, RoundTaskStatus};
use consilium_federation::digest::Digest;
use consilium_federation::round::SiteReason;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{DeleteParams, ObjectMeta, Patch, PatchParams, PostParams};
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::{Api, Resource as _, ResourceExt as _};
use serde_json::json;

use super::clean::{self, Folder};
use super::error::{ControlError, admitted, gone, made};
use super::job::{self, JobPlan, Mode};
use super::pod::labels;
use crate::Context;
use crate::policy::{ends, opt_in, reason_name};
use crate::state::{Entry, Grant};

/// Field manager of everything that the agent writes.
pub const MANAGER: &str = "consilium-agent";

/// Clients for what the controller writes.
#[derive(Clone)]
pub struct Writer {
    ctx: Arc<Context>,
    tasks: Api<RoundTask>,
    jobs: Api<Job>,
    secrets: Api<Secret>,
    recorder: Recorder,
}

impl Writer {
    /// Clients in the task namespace.
    pub fn new(ctx: Arc<Context>) -> Self {
        let (client, namespace) = (ctx.kube.clone(), ctx.config.task_namespace.as_str());
        let reporter = Reporter { controller: "consilium-agent".into(), instance: None };
        Self {
            tasks: Api::namespaced(client.clone(), namespace),
            jobs: Api::namespaced(client.clone(), namespace),
            secrets: Api::namespaced(client.clone(), namespace),
            recorder: Recorder::new(client, reporter),
            ctx,
        }
    }

    /// Makes the RoundTask.
    pub async fn create_task(&self, name: &str, spec: RoundTaskSpec) -> Result<(), ControlError> {
        let metadata = ObjectMeta {
            name: Some(name.to_owned()),
            namespace: Some(self.ctx.config.task_namespace.clone()),
            labels: Some(labels(&[("app.kubernetes.io/managed-by", MANAGER)])),
            ..ObjectMeta::default()
        };
        let task = RoundTask { metadata, spec, status: None };
        admitted(format!("RoundTask {name}"), self.tasks.create(&creating(), &task).await).map(drop)
    }

    /// Makes the credential and the Job of a try. The token is known before anything can show it; a later try's token
    /// takes the right to deliver from all before it. Asked again for one try, it must be given the same token: the
    /// credential that holds it may be there already.
    pub async fn start_try(
        &self,
        task: &RoundTask,
        study: &FederatedStudySpec,
        (number, mode): (u32, Mode),
        token: &str,
    ) -> Result<(), ControlError> {
        let Some(policy) = self.ctx.site_policy() else { return Ok(()) };
        // The ladder has just allowed the task, so the entry is there; if it went in between, the next turn refuses.
        let Some(entry) = opt_in(&policy.spec, &task.spec.study) else { return Ok(()) };
        let (name, uid) = (task.name_any(), task.uid().unwrap_or_default());
        let config = &self.ctx.config;
        // The Job ends by itself then, also where no agent is there to end it.
        let since = task.creation_timestamp().map(|at| at.0);
        let ends = ends(self.ctx.hub_clock().on_ours(task.spec.deadline), since, Some(&policy.spec));
        let plan = JobPlan {
            task: &name,
            task_uid: &uid,
            namespace: &config.task_namespace,
            number,
            mode,
            kind: task.spec.kind,
            trainer: &study.trainer,
            policy: &policy.spec,
            opt_in: entry,
            seconds_left: ends.duration_since(self.ctx.now()).as_secs(),
            address: &config.task_address,
            courier_image: &config.courier_image,
            evaluator_image: &config.evaluator_image,
        };
        let identity = self.ctx.desk.identity(&self.ctx.state, &config.task_address)?;
        let grant = Grant::Task { uid: uid.clone(), name: name.clone(), r#try: number };
        self.ctx.state.put_token(Digest::of(token.as_bytes()), &grant)?;
        let (secret, job) = (job::credential(&plan, token, &identity.certificate), job::build(&plan));
        let called = job.name_any();
        admitted(format!("Secret {called}"), self.secrets.create(&creating(), &secret).await)?;
        admitted(format!("Job {called}"), self.jobs.create(&creating(), &job).await)?;
        tracing::info!(task = name, number, mode = mode.as_str(), "try started");
        Ok(())
    }

    /// Removes a Job and its pods. The Job is there until its pods have ended: the next try must not begin beside them.
    pub async fn stop_try(&self, job: &str) -> Result<(), ControlError> {
        tracing::info!(job, "try stopped");
        gone(self.jobs.delete(job, &DeleteParams::foreground()).await)
    }

    /// Does what was decided about folders of tasks that are gone.
    pub async fn clean(&self, act: &clean::Act) -> Result<(), ControlError> {
        match act {
            clean::Act::Start { folders, without_queue } => {
                let policy = self.ctx.site_policy();
                let queue = policy.as_ref().and_then(|p| p.spec.queue_name.as_deref()).filter(|_| !without_queue);
                let job = clean::build(&self.ctx.config.task_namespace, &self.ctx.config.courier_image, queue, folders);
                made(self.jobs.create(&creating(), &job).await)?;
                tracing::info!(tasks = folders.len(), "folders of tasks that are gone are being removed");
                Ok(())
            }
            clean::Act::Finish { job, folders } => {
                let uids: Vec<String> = folders.iter().map(|folder| folder.task_uid.clone()).collect();
                let known = clean::known(&self.ctx.state)?;
                if folders.iter().any(|folder| known.contains_key(folder)) {
                    let what = "folders of tasks on the work claim".to_owned();
                    let erased = Entry::Erased { what, uids, why: "the tasks are gone".into() };
                    self.ctx.state.append(erased, self.ctx.now())?;
                }
                folders.iter().try_for_each(|folder: &Folder| clean::forget(&self.ctx.state, folder))?;
                gone(self.jobs.delete(job, &DeleteParams::foreground()).await)
            }
            clean::Act::Again { job, noted } => {
                tracing::warn!(
                    job,
                    tasks = noted.len(),
                    "folders of tasks that are gone could not be removed; they are tried again"
                );
                noted.iter().try_for_each(|(folder, history)| clean::remember(&self.ctx.state, folder, history))?;
                gone(self.jobs.delete(job, &DeleteParams::foreground()).await)
            }
        }
    }

    /// Removes a RoundTask and all that it owns.
    pub async fn delete_task(&self, name: &str) -> Result<(), ControlError> {
        tracing::info!(task = name, "task removed");
        gone(self.tasks.delete(name, &DeleteParams::background()).await)
    }

    /// Writes the status if it changed, then an Event if the reason did.
    pub async fn status(&self, task: &RoundTask, new: &RoundTaskStatus) -> Result<(), ControlError> {
        let mut old = task.status.clone().unwrap_or_default();
        old.irreversible = None;
        if old == *new {
            return Ok(());
        }
        let name = task.name_any();
        let patch = json!({
            "apiVersion": RoundTask::api_version(&()), "kind": RoundTask::kind(&()),
            "metadata": {"name": name}, "status": new,
        });
        let result = self.tasks.patch_status(&name, &PatchParams::apply(MANAGER).force(), &Patch::Apply(&patch)).await;
        gone(result)?;
        if old.reason != new.reason {
            self.event(task, new).await;
        }
        Ok(())
    }

    async fn event(&self, task: &RoundTask, status: &RoundTaskStatus) {
        let Some(reason) = status.reason else { return };
        let bad = reason.is_out() || reason == SiteReason::OutOfMemory;
        let message = status.conditions.iter().find(|c| !c.message.is_empty() && c.status != "True");
        let event = Event {
            type_: if bad { EventType::Warning } else { EventType::Normal },
            reason: reason_name(reason).into(),
            note: message.map(|c| c.message.clone()),
            action: "Reconcile".into(),
            secondary: None,
        };
        // An Event is for people who happen to look; the status holds the same.
        if let Err(error) = self.recorder.publish(&event, &task.object_ref(&())).await {
            tracing::debug!(%error, "event not written");
        }
    }
}

fn creating() -> PostParams {
    PostParams { field_manager: Some(MANAGER.into()), ..PostParams::default() }
}
