//! A real API server with the definitions, and the parts that play what stands behind one: kubelet, garbage collector and
//! Job controller.

use std::fmt::Debug;

use consilium_crds::round_task::RoundTaskStatus;
use consilium_crds::{RoundTask, schema};
use consilium_federation::round::SiteReason;
use k8s_openapi::api::admissionregistration::v1::{ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{Namespace, Pod};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::{Api, Client, ResourceExt as _};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::NAMESPACE;
use crate::progress::until;

pub(crate) struct Cluster {
    pub(crate) client: Client,
}

impl Cluster {
    pub(crate) fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>,
    {
        Api::namespaced(self.client.clone(), NAMESPACE)
    }

    pub(crate) async fn install(&self) {
        let namespaces: Api<Namespace> = Api::all(self.client.clone());
        let namespace = serde_json::from_value(json!({"metadata": {"name": NAMESPACE,
            "labels": {"pod-security.kubernetes.io/enforce": "restricted"}}}));
        namespaces.create(&PostParams::default(), &namespace.unwrap()).await.unwrap();
        let definitions: Api<CustomResourceDefinition> = Api::all(self.client.clone());
        for definition in schema::all() {
            definitions.create(&PostParams::default(), &definition).await.unwrap();
        }
        until("RoundTasks are served", || async {
            self.api::<RoundTask>().list(&kube::api::ListParams::default()).await.ok().map(|_| ())
        })
        .await;
    }

    pub(crate) async fn tasks(&self) -> Vec<RoundTask> {
        self.api::<RoundTask>().list(&kube::api::ListParams::default()).await.unwrap().items
    }

    pub(crate) async fn get<K>(&self, name: &str) -> Option<K>
    where
        K: kube::Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
            + Clone
            + Debug
            + DeserializeOwned,
    {
        self.api::<K>().get_opt(name).await.unwrap()
    }

    /// Plays the kubelet: the pod of a Job with its trainer in this state.
    pub(crate) async fn pod(&self, job: &Job, phase: &str, trainer: Value) {
        let name = format!("{}-pod", job.name_any());
        let pods: Api<Pod> = self.api();
        if self.get::<Pod>(&name).await.is_none() {
            let template = job.spec.clone().unwrap().template;
            let mut pod = Pod { metadata: template.metadata.unwrap_or_default(), spec: template.spec, status: None };
            pod.metadata.name = Some(name.clone());
            let owner = json!({"apiVersion": "batch/v1", "kind": "Job", "name": job.name_any(), "uid": job.uid()});
            pod.metadata.owner_references = Some(vec![serde_json::from_value(owner).unwrap()]);
            pods.create(&PostParams::default(), &pod).await.unwrap();
        }
        let status = json!({"name": "trainer", "state": trainer, "image": "i", "imageID": "i", "ready": false, "restartCount": 0});
        let patch = json!({"status": {"phase": phase, "containerStatuses": [status]}});
        pods.patch_status(&name, &PatchParams::default(), &Patch::Merge(&patch)).await.unwrap();
    }

    /// Plays the garbage collector, which ends a Job's pods before the Job goes.
    pub(crate) async fn collect(&self, job: &str) {
        let pods: Api<Pod> = self.api();
        let now = DeleteParams::default().grace_period(0);
        let _ = pods.delete(&format!("{job}-pod"), &now).await;
        let patch = json!({"metadata": {"finalizers": null}});
        self.api::<Job>().patch(job, &PatchParams::default(), &Patch::Merge(&patch)).await.unwrap();
    }

    /// An admission policy of the hospital that lets nobody make this kind of object, with these words.
    pub(crate) async fn forbid(&self, name: &str, (group, resource): (&str, &str), message: &str) {
        let policy: ValidatingAdmissionPolicy = serde_json::from_value(json!({
            "metadata": {"name": name},
            "spec": {
                "failurePolicy": "Fail",
                "matchConstraints": {"resourceRules": [{
                    "apiGroups": [group], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": [resource],
                }]},
                "validations": [{"expression": "false", "message": message, "reason": "Forbidden"}],
            },
        }))
        .unwrap();
        let binding: ValidatingAdmissionPolicyBinding = serde_json::from_value(json!({
            "metadata": {"name": name}, "spec": {"policyName": name, "validationActions": ["Deny"]},
        }))
        .unwrap();
        let (policies, bindings) = self.admission();
        policies.create(&PostParams::default(), &policy).await.unwrap();
        bindings.create(&PostParams::default(), &binding).await.unwrap();
    }

    /// Takes it back.
    pub(crate) async fn allow(&self, name: &str) {
        let (policies, bindings) = self.admission();
        bindings.delete(name, &DeleteParams::default()).await.unwrap();
        policies.delete(name, &DeleteParams::default()).await.unwrap();
    }

    fn admission(&self) -> (Api<ValidatingAdmissionPolicy>, Api<ValidatingAdmissionPolicyBinding>) {
        (Api::all(self.client.clone()), Api::all(self.client.clone()))
    }

    /// Plays the Job controller: a Job that came to a good end.
    pub(crate) async fn complete(&self, job: &str) {
        let condition =
            |type_: &str| json!({"type": type_, "status": "True", "lastTransitionTime": "2026-01-01T00:00:01Z"});
        let patch = json!({"status": {
            "startTime": "2026-01-01T00:00:00Z", "completionTime": "2026-01-01T00:00:01Z", "succeeded": 1,
            "conditions": [condition("SuccessCriteriaMet"), condition("Complete")],
        }});
        self.api::<Job>().patch_status(job, &PatchParams::default(), &Patch::Merge(&patch)).await.unwrap();
    }

    /// Waits until a task's status has this reason. It must not have it before the step under test: where it may, wait for
    /// [`Cluster::of_try`].
    pub(crate) async fn reason(&self, task: &str, reason: SiteReason) -> RoundTask {
        self.status(task, &format!("is {reason:?}"), |status| status.reason == Some(reason)).await
    }

    /// Waits until a task's status speaks of this try and has this reason.
    pub(crate) async fn of_try(&self, task: &str, number: u32, reason: SiteReason) -> RoundTask {
        let what = format!("is {reason:?} in try {number}");
        self.status(task, &what, |status| (status.r#try, status.reason) == (Some(number), Some(reason))).await
    }

    async fn status(&self, task: &str, what: &str, holds: impl Fn(&RoundTaskStatus) -> bool) -> RoundTask {
        until(&format!("{task} {what}"), async || {
            let task: Option<RoundTask> = self.get(task).await;
            task.filter(|t| t.status.as_ref().is_some_and(&holds))
        })
        .await
    }
}
