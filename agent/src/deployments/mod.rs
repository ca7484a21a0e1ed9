//! Models that the hub offers for use: judged by the hospital's own keys and stages,
//! served by a Deployment, and taken down when the word changes.
//!
//! Approvals expire, so the ladder is asked on every turn; a model that was allowed
//! yesterday may not be today.

mod apply;
mod decide;
mod objects;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use consilium_crds::{ModelDeployment, ModelReleaseSpec};
use consilium_federation::assignment::{DeployWork, Item, ItemState, Work};
use consilium_federation::report::RolloutReason;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::PodSpec;
use kube::runtime::reflector::Store;
use kube::{Api, ResourceExt as _};
use tokio::sync::Notify;

use crate::Context;
use crate::policy::ReleaseDecision;
use crate::tasks::{ControlError, DeployEntry, follow};
use apply::Writer;
use decide::{Act, Inputs, Plan, Seen, decide, report, status};

/// Longest time between two turns: an approval that expired is noticed by then.
const TURN: Duration = Duration::from_secs(10);

/// Runs the controller until shutdown.
pub async fn run(ctx: Arc<Context>) -> anyhow::Result<()> {
    let news = Arc::new(Notify::new());
    let (client, namespace) = (ctx.kube.clone(), ctx.config.task_namespace.as_str());
    let (signal, shutdown) = (|| Arc::clone(&news), || ctx.shutdown.clone());
    let models = follow(Api::namespaced(client.clone(), namespace), "", signal(), shutdown());
    let deployments = follow(Api::namespaced(client, namespace), objects::LABEL, signal(), shutdown());
    tokio::select! {
        () = ctx.shutdown.cancelled() => return Ok(()),
        ready = async { models.wait_until_ready().await.and(deployments.wait_until_ready().await) } => ready?,
    }
    let writer = Writer::new(Arc::clone(&ctx));
    let controller = Controller { ctx: Arc::clone(&ctx), models, deployments, writer };
    let (mut desired, mut policy) = (ctx.desired.clone(), ctx.policy.clone());
    loop {
        controller.turn().await;
        tokio::select! {
            () = ctx.shutdown.cancelled() => return Ok(()),
            () = news.notified() => {}
            Ok(()) = desired.changed() => {}
            Ok(()) = policy.changed() => {}
            () = tokio::time::sleep(TURN) => {}
        }
    }
}

struct Controller {
    ctx: Arc<Context>,
    models: Store<ModelDeployment>,
    deployments: Store<Deployment>,
    writer: Writer,
}

impl Controller {
    async fn turn(&self) {
        let begun = Instant::now();
        let desired = self.ctx.desired.borrow().clone();
        let models = self.models.state();
        let mut entries = BTreeMap::new();
        for item in &desired.items {
            let Work::Deploy(work) = &item.work else { continue };
            let model = models.iter().find(|m| m.spec.promotion_uid == item.uid && m.spec.model == work.model);
            if let Some(uid) = model.and_then(|m| m.uid()) {
                let entry = DeployEntry { promotion_uid: item.uid.clone(), state: item.state, work: work.clone() };
                entries.insert(uid, entry);
            }
            if let Err(error) = self.reconcile(item, work, &models).await {
                tracing::warn!(uid = item.uid, %error, class = error.class(), "a deployment could not be reconciled; it is looked at again");
                self.ctx.metrics.reconcile_errors.with_label_values(&["deployments", error.class()]).inc();
            }
        }
        self.ctx.desk.set_deployments(entries);
        let seconds = begun.elapsed().as_secs_f64();
        self.ctx.metrics.reconcile_seconds.with_label_values(&["deployments"]).observe(seconds);
    }

    async fn reconcile(
        &self,
        item: &Item,
        work: &DeployWork,
        models: &[Arc<ModelDeployment>],
    ) -> Result<(), ControlError> {
        // A promotion whose release was changed is another deployment; the old one goes.
        let mine = |m: &&Arc<ModelDeployment>| m.spec.promotion_uid == item.uid;
        let fits = |m: &Arc<ModelDeployment>| {
            m.spec.model == work.model && m.spec.release_digest == work.release_digest && m.spec.release == work.release
        };
        for old in models.iter().filter(mine).filter(|m| !fits(m) && m.metadata.deletion_timestamp.is_none()) {
            self.writer.delete(old).await?;
        }
        let model = models.iter().filter(mine).find(|m| fits(m));
        let decision = self.judge(item, work).await?;
        let seen = model.map(|m| self.see(m)).transpose()?;
        let plan = decide(&Inputs { decision: decision.as_ref(), stage: work.stage, seen });
        self.apply(item, work, model, models, &plan).await?;
        match plan.reason {
            Some(reason) => self.ctx.facts.set_deploy(report(&item.uid, work.model, reason)),
            None => self.ctx.facts.drop_deploy(&item.uid),
        }
        let Some(model) = model.filter(|_| !plan.acts.contains(&Act::Delete)) else { return Ok(()) };
        let new = status(model.status.as_ref(), model.metadata.generation, &plan, work.model, self.ctx.now());
        self.writer.status(model, &new).await
    }

    /// The hospital's word now; `None` while the release cannot be fetched.
    async fn judge(&self, item: &Item, work: &DeployWork) -> Result<Option<ReleaseDecision>, ControlError> {
        if item.state == ItemState::Cancelled {
            return Ok(Some(ReleaseDecision::Withdrawn));
        }
        match self.ctx.objects.release(work.release_digest).await {
            Ok((release, _)) => self.word(item, work, &release).map(Some),
            Err(error) if error.is_transient() => {
                tracing::warn!(release = work.release, %error, "the release is not at hand");
                Ok(None)
            }
            Err(error) => Ok(Some(ReleaseDecision::Refused {
                reason: RolloutReason::VerificationFailed,
                message: error.to_string(),
            })),
        }
    }

    fn word(
        &self,
        item: &Item,
        work: &DeployWork,
        release: &ModelReleaseSpec,
    ) -> Result<ReleaseDecision, ControlError> {
        Ok(self.ctx.judge_release(&item.uid, work, item.state, release)?)
    }

    fn see(&self, model: &ModelDeployment) -> Result<Seen, ControlError> {
        let name = model.name_any();
        let uid = model.uid().unwrap_or_default();
        let owned = |d: &&Arc<Deployment>| d.owner_references().iter().any(|o| o.uid == uid);
        let deployments = self.deployments.state();
        let found = deployments.iter().filter(|d| d.name_any() == name).find(owned);
        let status = found.and_then(|d| d.status.as_ref());
        let current = found.is_some_and(|d| {
            status.and_then(|s| s.observed_generation) == d.metadata.generation
                && d.metadata.deletion_timestamp.is_none()
        });
        let ready = status.and_then(|s| s.available_replicas).unwrap_or(0) > 0;
        let wanted = self.writer.wanted(model)?;
        Ok(Seen {
            deleting: model.metadata.deletion_timestamp.is_some(),
            stage: model.spec.stage,
            built: found.is_some_and(|d| same_pod(d, &wanted)),
            ready: current && ready,
        })
    }

    async fn apply(
        &self,
        item: &Item,
        work: &DeployWork,
        model: Option<&Arc<ModelDeployment>>,
        models: &[Arc<ModelDeployment>],
        plan: &Plan,
    ) -> Result<(), ControlError> {
        for act in &plan.acts {
            match (act, model) {
                (Act::Create, _) => {
                    let taken =
                        |name: &str| models.iter().any(|m| m.name_any() == name && m.spec.promotion_uid != item.uid);
                    let name = objects::name_of(&work.release, &item.uid, taken);
                    self.writer.create(&name, &item.uid, work).await?;
                }
                (Act::Build, Some(model)) => self.writer.build(model).await?,
                (Act::SetStage(stage), Some(model)) => self.writer.set_stage(model, *stage).await?,
                (Act::Delete, Some(model)) => self.writer.delete(model).await?,
                // The others are decided only for a ModelDeployment that is there.
                (Act::Build | Act::SetStage(_) | Act::Delete, None) => {}
            }
        }
        Ok(())
    }
}

/// Whether a Deployment runs what it should: images and arguments change with an upgrade of the agent, the credential
/// with its volume.
fn same_pod(found: &Deployment, wanted: &Deployment) -> bool {
    let pod = |d: &'_ Deployment| d.spec.as_ref().and_then(|s| s.template.spec.clone()).unwrap_or_default();
    let containers = |pod: &PodSpec| {
        let all = pod.init_containers.iter().flatten().chain(&pod.containers);
        all.map(|c| (c.name.clone(), c.image.clone(), c.args.clone())).collect::<Vec<_>>()
    };
    let secrets = |pod: &PodSpec| {
        let all = pod.volumes.iter().flatten().filter_map(|v| v.secret.as_ref());
        all.map(|s| s.secret_name.clone()).collect::<Vec<_>>()
    };
    let (found, wanted) = (pod(found), pod(wanted));
    containers(&found) == containers(&wanted) && secrets(&found) == secrets(&wanted)
}
