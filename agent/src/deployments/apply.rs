//! Does what was decided about a model: the only place of this controller that writes to the API server.

use std::sync::Arc;

use consilium_crds::model_deployment::Approved;
use consilium_crds::{ModelDeployment, ModelDeploymentSpec, ModelDeploymentStatus};
use consilium_federation::assignment::DeployWork;
use consilium_federation::digest::Digest;
use consilium_federation::ladder::Stage;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Secret, Service};
use kube::api::{DeleteParams, ObjectMeta, Patch, PatchParams, PostParams};
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::{Api, Resource as _, ResourceExt as _};
use serde_json::json;

use super::objects::{self, ServePlan};
use super::status::Note;
use crate::Context;
use crate::state::Grant;
use crate::tasks::pod::labels;
use crate::tasks::{ControlError, MANAGER, admitted, gone};

/// Clients for what the controller writes.
#[derive(Clone)]
pub(super) struct Writer {
    ctx: Arc<Context>,
    models: Api<ModelDeployment>,
    deployments: Api<Deployment>,
    services: Api<Service>,
    secrets: Api<Secret>,
    recorder: Recorder,
}

impl Writer {
    pub(super) fn new(ctx: Arc<Context>) -> Self {
        let (client, namespace) = (ctx.kube.clone(), ctx.config.task_namespace.as_str());
        Self {
            models: Api::namespaced(client.clone(), namespace),
            deployments: Api::namespaced(client.clone(), namespace),
            services: Api::namespaced(client.clone(), namespace),
            secrets: Api::namespaced(client.clone(), namespace),
            recorder: Recorder::new(client, Reporter { controller: MANAGER.into(), instance: None }),
            ctx,
        }
    }

    pub(super) async fn create(
        &self,
        name: &str,
        promotion_uid: &str,
        work: &DeployWork,
        approved: &Approved,
    ) -> Result<(), ControlError> {
        let metadata = ObjectMeta {
            name: Some(name.to_owned()),
            namespace: Some(self.ctx.config.task_namespace.clone()),
            labels: Some(labels(&[("app.kubernetes.io/managed-by", MANAGER)])),
            ..ObjectMeta::default()
        };
        let spec = ModelDeploymentSpec {
            release: work.release.clone(),
            release_digest: work.release_digest,
            model: work.model,
            stage: work.stage,
            promotion_uid: promotion_uid.to_owned(),
            approved: Some(approved.clone()),
        };
        tracing::info!(deployment = name, stage = %work.stage, model = %work.model, "model deployed");
        let model = ModelDeployment { metadata, spec, status: None };
        admitted(format!("ModelDeployment {name}"), self.models.create(&params(), &model).await).map(drop)
    }

    /// Makes what is missing of Secret, Service and Deployment. The credential is made once and never read back: its
    /// token is known before anything can show it, and one that was made before keeps its own.
    pub(super) async fn build(&self, model: &ModelDeployment) -> Result<(), ControlError> {
        let (own, certificate) = (Own::of(model), self.certificate()?);
        let plan = self.plan(model, &own, &certificate);
        let token = hex::encode(self.ctx.entropy.bytes32());
        let grant = Grant::Deployment { uid: own.uid.clone(), name: own.name.clone() };
        let hash = Digest::of(token.as_bytes());
        self.ctx.state.put_token(hash, &grant)?;
        let credential = self.secrets.create(&params(), &objects::credential(&plan, &token)).await;
        let made = admitted(format!("the Secret of {}", own.name), credential);
        // After any other error it may have been made all the same.
        if matches!(made, Ok(false) | Err(ControlError::Refused { .. })) {
            self.ctx.state.delete_token(hash)?;
        }
        made?;
        let service = self.services.patch(&own.name, &apply(), &Patch::Apply(objects::service(&plan))).await;
        admitted(format!("Service {}", own.name), service)?;
        self.put(&own.name, &objects::deployment(&plan)).await
    }

    /// Lets the Deployment run no pod, and keeps the server's words on it.
    pub(super) async fn stop(&self, model: &ModelDeployment, words: &str) -> Result<(), ControlError> {
        let name = model.name_any();
        tracing::error!(deployment = name, words, "the server refuses the model; it is not started again");
        let stopped = objects::stopped(self.wanted(model)?, words);
        self.put(&name, &stopped).await
    }

    async fn put(&self, name: &str, deployment: &Deployment) -> Result<(), ControlError> {
        let answer = self.deployments.patch(name, &apply(), &Patch::Apply(deployment)).await;
        admitted(format!("Deployment {name}"), answer).map(drop)
    }

    /// The Deployment as it should be.
    pub(super) fn wanted(&self, model: &ModelDeployment) -> Result<Deployment, ControlError> {
        Ok(objects::deployment(&self.plan(model, &Own::of(model), &self.certificate()?)))
    }

    fn certificate(&self) -> Result<String, ControlError> {
        Ok(self.ctx.desk.identity(&self.ctx.state, &self.ctx.config.task_address)?.certificate)
    }

    fn plan<'a>(&'a self, model: &'a ModelDeployment, own: &'a Own, certificate: &'a str) -> ServePlan<'a> {
        let config = &self.ctx.config;
        ServePlan {
            name: &own.name,
            uid: &own.uid,
            namespace: &config.task_namespace,
            spec: &model.spec,
            address: &config.task_address,
            courier_image: &config.courier_image,
            inference_image: &config.inference_image,
            gpus: self.ctx.site_policy().map_or(0, |policy| policy.spec.releases.gpus),
            certificate,
        }
    }

    pub(super) async fn restate(
        &self,
        model: &ModelDeployment,
        stage: Stage,
        approved: &Approved,
    ) -> Result<(), ControlError> {
        let name = model.name_any();
        tracing::info!(deployment = name, %stage, approvals = approved.approvals.len(), "stage or approvals changed");
        let patch = json!({"spec": {"stage": stage, "approved": approved}});
        let answer = self.models.patch(&name, &PatchParams::default(), &Patch::Merge(&patch)).await;
        // An API server drops the fields that its definitions do not have, and says nothing of it.
        let kept = answer.as_ref().is_ok_and(|kept| kept.spec.approved.as_ref() == Some(approved));
        admitted(format!("ModelDeployment {name}"), answer)?;
        kept.then_some(()).ok_or(ControlError::OldKinds)
    }

    /// Removes the model with all that it owns, and says why: after that only the Event does.
    pub(super) async fn delete(&self, model: &ModelDeployment, why: &Note) -> Result<(), ControlError> {
        let name = model.name_any();
        tracing::info!(deployment = name, reason = why.reason, message = why.message, "model taken down");
        gone(self.models.delete(&name, &DeleteParams::background()).await)?;
        self.event(model, why).await;
        Ok(self.ctx.state.delete_tokens(&model.uid().unwrap_or_default())?)
    }

    /// Writes the status if it changed, then an Event if there is news.
    pub(super) async fn status(
        &self,
        model: &ModelDeployment,
        new: &ModelDeploymentStatus,
        news: &[Note],
    ) -> Result<(), ControlError> {
        if model.status.as_ref() == Some(new) {
            return Ok(());
        }
        let name = model.name_any();
        let patch = json!({
            "apiVersion": ModelDeployment::api_version(&()), "kind": ModelDeployment::kind(&()),
            "metadata": {"name": name}, "status": new,
        });
        gone(self.models.patch_status(&name, &apply(), &Patch::Apply(&patch)).await)?;
        for note in news {
            self.event(model, note).await;
        }
        Ok(())
    }

    async fn event(&self, model: &ModelDeployment, note: &Note) {
        let event = Event {
            type_: if note.warning { EventType::Warning } else { EventType::Normal },
            reason: note.reason.into(),
            // The API's bound on a note is 1,024 bytes.
            note: Some(note.message.chars().take(250).collect()),
            action: "Serve".into(),
            secondary: None,
        };
        // An Event is for people who happen to look; the status and the log hold the same.
        if let Err(error) = self.recorder.publish(&event, &model.object_ref(&())).await {
            tracing::warn!(%error, "an event on a ModelDeployment could not be written");
        }
    }
}

/// Name and UID of a ModelDeployment.
struct Own {
    name: String,
    uid: String,
}

impl Own {
    fn of(model: &ModelDeployment) -> Self {
        Self { name: model.name_any(), uid: model.uid().unwrap_or_default() }
    }
}

fn params() -> PostParams {
    PostParams { field_manager: Some(MANAGER.into()), ..PostParams::default() }
}

fn apply() -> PatchParams {
    PatchParams::apply(MANAGER).force()
}
