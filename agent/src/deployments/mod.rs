//! Models that the hub offers for use: judged by the hospital's own keys and stages,
//! served by a Deployment, and taken down when the word changes.
//!
//! Approvals expire, so the ladder is asked on every turn; a model that was allowed
//! yesterday may not be today.

mod apply;
mod decide;
mod hazards;
mod objects;
mod read;
mod status;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use consilium_clinical::plan::ClinicalPlan;
use consilium_crds::ModelDeployment;
use consilium_federation::assignment::{DeployWork, Item, ItemState, Work};
use consilium_federation::ladder::Stage;
use consilium_federation::report::RolloutReason;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Pod;
use kube::runtime::reflector::Store;
use kube::{Api, ResourceExt as _};
use tokio::sync::Notify;

use crate::Context;
use crate::policy::{self, Place, ReleaseDecision, Room};
use crate::state::StateError;
use crate::tasks::{ControlError, DeployEntry, follow, in_turn};
use apply::Writer;
use decide::{Act, Inputs, Plan, decide, own, report, said, strays, written};
use hazards::Hazards;
pub(crate) use objects::{LABEL, LEASE, STAGE};
pub(crate) use status::rollout_name;
use status::{Note, Told, news, status};

/// Longest time between two turns: an approval that expired is noticed by then.
const TURN: Duration = Duration::from_secs(10);

/// Runs the controller until shutdown.
pub async fn run(ctx: Arc<Context>) -> anyhow::Result<()> {
    let news = Arc::new(Notify::new());
    let (client, namespace) = (ctx.kube.clone(), ctx.config.task_namespace.as_str());
    let (signal, shutdown) = (|| Arc::clone(&news), || ctx.shutdown.clone());
    let models = follow(Api::namespaced(client.clone(), namespace), "", signal(), shutdown());
    let deployments = follow(Api::namespaced(client.clone(), namespace), objects::LABEL, signal(), shutdown());
    let pods = follow(Api::namespaced(client, namespace), objects::LABEL, signal(), shutdown());
    let writer = Writer::new(Arc::clone(&ctx));
    let hazards = Hazards::follow(Arc::clone(&ctx), signal());
    let controller =
        Controller { ctx: Arc::clone(&ctx), models, deployments, pods, writer, hazards, turns: AtomicUsize::new(0) };
    tokio::select! {
        () = ctx.shutdown.cancelled() => return Ok(()),
        ready = controller.ready() => ready?,
    }
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
    pods: Store<Pod>,
    writer: Writer,
    hazards: Hazards,
    /// How many there have been.
    turns: AtomicUsize,
}

impl Controller {
    async fn ready(&self) -> anyhow::Result<()> {
        self.models.wait_until_ready().await?;
        self.deployments.wait_until_ready().await?;
        self.pods.wait_until_ready().await?;
        self.hazards.begin().await?;
        Ok(())
    }

    async fn turn(&self) {
        let begun = Instant::now();
        let desired = self.ctx.desired.borrow().clone();
        let models = self.models.state();
        for stray in strays(&models, &desired) {
            let offered = desired.items.iter().any(|item| item.uid == stray.spec.promotion_uid);
            if let Err(error) = self.writer.delete(stray, &Note::stray(offered)).await {
                self.failed(&error, &stray.spec.promotion_uid);
            }
        }
        let site_policy = self.ctx.site_policy();
        self.hazards.turn().await;
        let hazards = self.ctx.hazards.known();
        let places = policy::places(&models, &self.ctx.hospital(site_policy.as_deref(), Some(&*hazards)));
        let mut entries = BTreeMap::new();
        let here = |item: &Item| models.iter().any(|model| model.spec.promotion_uid == item.uid);
        let (here, new) = in_turn(&desired.items, here, self.turns.fetch_add(1, Ordering::Relaxed));
        let known = here.len();
        for (n, item) in here.into_iter().chain(new).enumerate() {
            let Work::Deploy(work) = &item.work else { continue };
            if n >= known && begun.elapsed() > TURN {
                break;
            }
            let place = own(&models, item, work).and_then(|m| m.uid()).and_then(|uid| places.get(&uid));
            if let Some(uid) = own(&models, item, work).and_then(|m| m.uid()) {
                let entry = DeployEntry { promotion_uid: item.uid.clone(), state: item.state, work: work.clone() };
                entries.insert(uid, entry);
            }
            if let Err(error) = self.reconcile(item, work, &models, place).await {
                self.failed(&error, &item.uid);
            }
        }
        self.ctx.desk.set_deployments(entries);
        let here = models.iter().map(|model| model.spec.promotion_uid.as_str());
        let newest = self.ctx.desired.borrow().clone();
        let asked = desired.items.iter().chain(&newest.items).map(|item| item.uid.as_str());
        let known: BTreeSet<&str> = asked.chain(here).collect();
        self.ctx.facts.retain_models(|uid| known.contains(uid));
        self.ctx.metrics.set_models(&self.ctx.facts.snapshot().1);
        let seconds = begun.elapsed().as_secs_f64();
        self.ctx.metrics.reconcile_seconds.with_label_values(&["deployments"]).observe(seconds);
    }

    fn failed(&self, error: &ControlError, uid: &str) {
        tracing::warn!(uid, %error, class = error.class(), "a deployment could not be reconciled; it is looked at again");
        self.ctx.metrics.reconcile_errors.with_label_values(&["deployments", error.class()]).inc();
    }

    async fn reconcile(
        &self,
        item: &Item,
        work: &DeployWork,
        models: &[Arc<ModelDeployment>],
        place: Option<&Place>,
    ) -> Result<(), ControlError> {
        let model = own(models, item, work);
        let decision = self.judge(item, work, model.is_some()).await?;
        let (deployments, pods) = (self.deployments.state(), self.pods.state());
        let see = |m: &Arc<ModelDeployment>| {
            Ok::<_, ControlError>(read::see(m, &self.writer.wanted(m)?, &deployments, &pods))
        };
        let seen = model.map(see).transpose()?;
        let withdrawn = place.and_then(policy::withdrawn);
        let mut plan = decide(&Inputs { decision: decision.as_ref(), stage: work.stage, withdrawn, seen });
        let refused = match self.apply(item, work, model, models, &plan).await {
            Err(error @ ControlError::Refused { .. }) => Some(error),
            other => other.map(|()| None)?,
        };
        if let Some(error) = &refused {
            self.failed(error, &item.uid);
            plan = plan.refused(error.to_string());
        }
        let before = model.and_then(|m| m.status.as_ref()?.stage);
        let because_of = |stage: Stage| policy::because(place?, model?.spec.stage, stage);
        let gone = model.is_none() || plan.acts.contains(&Act::Delete);
        let asked = place.and_then(|place| written(place, before, self.room()));
        let recorded = match asked.filter(|_| !gone) {
            Some(after) => self.moved(&item.uid, &work.release, before, after, because_of(after).as_deref()),
            None => Ok(()),
        };
        let stage = said(asked, before, recorded.is_ok());
        match plan.reason {
            Some(reason) => {
                self.ctx.facts.set_deploy(report(&item.uid, work.model, reason, stage, refused.is_none()));
            }
            None => self.ctx.facts.drop_deploy(&item.uid),
        }
        recorded?;
        let Some(model) = model.filter(|_| !gone) else { return Ok(()) };
        let old = model.status.as_ref();
        let because = stage.and_then(because_of);
        let site_policy = self.ctx.site_policy();
        let pipeline = site_policy
            .as_deref()
            .and_then(|policy| policy::pipeline_of(&model.spec, &policy.spec, self.ctx.config.serving_image()));
        let new = status(&Told {
            outlook: place.map(policy::outlook),
            pipeline,
            old,
            generation: model.metadata.generation,
            decision: decision.as_ref(),
            plan: &plan,
            model: work.model,
            stage,
            because,
            now: self.ctx.now(),
        });
        self.writer.status(model, &new, &news(old, &plan, &new)).await
    }

    /// Writes down that a model stands on another stage than the ledger last said, or, before it said anything in this
    /// life of the agent, than its status: a status that cannot be written must not bring an entry a turn.
    fn moved(
        &self,
        uid: &str,
        release: &str,
        status: Option<Stage>,
        after: Stage,
        because: Option<&str>,
    ) -> Result<(), StateError> {
        let before = self.ctx.facts.stage(uid).or(status);
        if before != Some(after) {
            self.ctx.record_stage(uid, release, before, after, because)?;
        }
        self.ctx.facts.set_stage(uid, after);
        Ok(())
    }

    /// What of models there may be here now.
    fn room(&self) -> Room {
        let policy = self.ctx.site_policy();
        policy.map_or(Room::Closed("there is none"), |policy| policy::models(&policy.spec))
    }

    /// The hospital's word now; `None` while the release cannot be fetched.
    async fn judge(
        &self,
        item: &Item,
        work: &DeployWork,
        in_use: bool,
    ) -> Result<Option<ReleaseDecision>, ControlError> {
        if item.state == ItemState::Cancelled {
            return Ok(Some(ReleaseDecision::Withdrawn));
        }
        if let Some(refused) = self.ctx.judge_room(&item.uid, work, in_use)? {
            return Ok(Some(refused));
        }
        match self.ctx.objects.release(work.release_digest).await {
            Ok((release, _)) => {
                let Some(plan) = self.plan(work).await else { return Ok(None) };
                let named = (&*release, plan.as_ref());
                Ok(Some(self.ctx.judge_release(&item.uid, work, item.state, named, in_use)?))
            }
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

    /// The plan that the promotion names; `None` while it cannot be fetched. One that cannot be read is none.
    async fn plan(&self, work: &DeployWork) -> Option<Option<ClinicalPlan>> {
        let Some(digest) = work.plan else { return Some(None) };
        match self.ctx.objects.plan(digest).await {
            Ok(plan) => Some(Some(plan)),
            Err(error) if error.is_transient() => {
                tracing::warn!(release = work.release, %error, "the plan is not at hand");
                None
            }
            Err(error) => {
                tracing::error!(release = work.release, %error, "the model stands on Shadow: its plan cannot be used");
                Some(None)
            }
        }
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
                (Act::Create(approved), _) => {
                    let taken =
                        |name: &str| models.iter().any(|m| m.name_any() == name && m.spec.promotion_uid != item.uid);
                    let name = objects::name_of(&work.release, &item.uid, taken);
                    self.writer.create(&name, &item.uid, work, approved).await?;
                }
                (Act::Build, Some(model)) => self.writer.build(model).await?,
                (Act::Stop(words), Some(model)) => self.writer.stop(model, words).await?,
                (Act::Restate(stage, approved), Some(model)) => self.writer.restate(model, *stage, approved).await?,
                (Act::Delete, Some(model)) => self.writer.delete(model, &Note::of(plan)).await?,
                // The others are decided only for a ModelDeployment that is there.
                (Act::Build | Act::Stop(_) | Act::Restate(..) | Act::Delete, None) => {}
            }
        }
        Ok(())
    }
}
