//! `stop --everything` and `start`: a hospital's kill switch that needs no agent.
//!
//! Made of plain objects that anybody can read and undo with kubectl: a ResourceQuota under which no pod is let in,
//! Deployments at 0, Jobs suspended (in Kueue's words too, which would resume them), pods deleted. What there was stands in annotations, so that `start` finds it again.
//! Doing either twice is doing it once.

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::time::Duration;

use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{Pod, ResourceQuota};
use kube::api::{DeleteParams, DynamicObject, ListParams, Patch, PatchParams};
use kube::core::ApiResource;
use kube::error::DiscoveryError;
use kube::{Api, Client, Resource, ResourceExt as _};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::cluster;
use crate::error::{CliError, Result};

/// The quota that lets no pod in.
const QUOTA: &str = "consilium-stopped";
/// How many replicas a Deployment had.
const REPLICAS: &str = "consilium.health/stopped-replicas";
/// A Job that ran.
const RAN: &str = "consilium.health/stopped";
/// Looks at what is left, at most: longer than any pod has to end.
const PASSES: u32 = 30;
/// Between two of them.
const BETWEEN: Duration = Duration::from_secs(2);
/// The look from which on a Job's pods are not left to the Job controller any more.
const IMPATIENT: u32 = 2;
/// What a pod is given to end.
const GRACE_SECONDS: u32 = 5;
const MANAGER: &str = "kubectl-consilium";

/// What to stop.
#[derive(clap::Args)]
pub struct Stop {
    /// Trainings, evaluations, models: every pod of the namespaces. A part of it is stopped by the SitePolicy.
    #[arg(long, required = true)]
    everything: bool,
    #[command(flatten)]
    place: Place,
}

/// Where.
#[derive(clap::Args)]
pub struct Place {
    /// Namespace of tasks and models; may be given more than once.
    #[arg(short, long = "namespace", default_value = "consilium-tasks")]
    namespaces: Vec<String>,
}

/// One change, in the order in which it is made.
#[derive(Clone, Debug, PartialEq)]
enum Step {
    /// Let no pod in.
    Shut,
    /// Let pods in again.
    Open,
    /// Change a Deployment.
    Deployment { name: String, patch: Value },
    /// Change a Job.
    Job { name: String, patch: Value },
    /// Change Kueue's Workload.
    Workload { resource: ApiResource, name: String, patch: Value },
    /// Remove a pod.
    Pod { name: String },
}

/// What there is in a namespace.
#[derive(Default)]
struct Found {
    shut: bool,
    deployments: Vec<Deployment>,
    jobs: Vec<Job>,
    /// What Kueue knows of the Jobs, where there is Kueue.
    workloads: Vec<(ApiResource, DynamicObject)>,
    pods: Vec<Pod>,
}

/// Stops everything, and looks until nothing runs any more.
pub async fn stop(arguments: &Stop) -> Result<String> {
    let client = cluster::client().await?;
    let namespaces = &arguments.place.namespaces;
    let mut log = Log::default();
    // Before anything is read: what cannot be listed must not keep the door open.
    for namespace in namespaces {
        log.take(&client, namespace, &[Step::Shut]).await;
    }
    let mut left = Vec::new();
    for pass in 0..PASSES {
        left.clear();
        for namespace in namespaces {
            let found = find(&client, namespace, &mut log).await;
            log.take(&client, namespace, &stopping(&found, pass >= IMPATIENT)).await;
            left.extend(found.pods.iter().filter(|pod| runs(pod)).map(|pod| format!("{namespace}/{}", pod.name_any())));
        }
        if left.is_empty() {
            break;
        }
        tokio::time::sleep(BETWEEN).await;
    }
    if !left.is_empty() {
        log.failed.insert(format!("still there after {} s: {}", (BETWEEN * PASSES).as_secs(), left.join(", ")));
    }
    log.end("Nothing runs there until: kubectl consilium start\n")
}

/// Lets everything run again that `stop` stopped.
pub async fn start(place: &Place) -> Result<String> {
    let client = cluster::client().await?;
    let mut log = Log::default();
    for namespace in &place.namespaces {
        let found = find(&client, namespace, &mut log).await;
        log.take(&client, namespace, &starting(&found)).await;
    }
    log.end("What the SitePolicy allows runs again\n")
}

/// What was done, and what could not be: each once, however often it was tried.
#[derive(Default)]
struct Log {
    told: String,
    done: BTreeSet<String>,
    failed: BTreeSet<String>,
}

impl Log {
    /// Makes changes. One that cannot be made must not keep the others running.
    async fn take(&mut self, client: &Client, namespace: &str, steps: &[Step]) {
        for step in steps {
            let said = format!("{namespace}: {}", words(step));
            match make(client, namespace, step).await {
                Ok(()) => {
                    self.failed.retain(|failure| !failure.starts_with(&said));
                    if self.done.insert(said.clone()) {
                        self.told.push_str(&format!("{said}\n"));
                    }
                }
                Err(error) => drop(self.failed.insert(format!("{said}: {error}"))),
            }
        }
    }

    fn end(mut self, last: &str) -> Result<String> {
        if self.failed.is_empty() {
            self.told.push_str(last);
            return Ok(self.told);
        }
        let failed = self.failed.into_iter().collect::<Vec<_>>().join("; ");
        Err(CliError::NotAll { done: self.done.len(), failed })
    }
}

/// What is still to be changed, the quota being there.
///
/// A pod of a Job that has just been suspended is left to the Job controller, which takes it without counting a failure;
/// an impatient look takes it all the same.
fn stopping(found: &Found, impatient: bool) -> Vec<Step> {
    let mut steps = Vec::new();
    for deployment in &found.deployments {
        let replicas = deployment.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
        if replicas > 0 {
            let annotations = json!({ (REPLICAS): replicas.to_string() });
            let patch = json!({"metadata": {"annotations": annotations}, "spec": {"replicas": 0}});
            steps.push(Step::Deployment { name: deployment.name_any(), patch });
        }
    }
    // Before the Jobs: a queue that still admits one would resume it.
    for (resource, workload) in found.workloads.iter().filter(|(_, workload)| !is_finished(workload)) {
        if workload.data["spec"]["active"] != false {
            let patch = json!({"metadata": {"annotations": {(RAN): "true"}}, "spec": {"active": false}});
            steps.push(Step::Workload { resource: resource.clone(), name: workload.name_any(), patch });
        }
    }
    for job in found.jobs.iter().filter(|job| !is_over(job)) {
        if job.spec.as_ref().and_then(|spec| spec.suspend) != Some(true) {
            let patch = json!({"metadata": {"annotations": {(RAN): "true"}}, "spec": {"suspend": true}});
            steps.push(Step::Job { name: job.name_any(), patch });
        }
    }
    let of_a_job = |pod: &Pod| pod.owner_references().iter().any(|owner| owner.kind == "Job");
    let going = |pod: &Pod| pod.metadata.deletion_timestamp.is_some();
    let soon = |pod: &Pod| {
        let grace = pod.metadata.deletion_grace_period_seconds.unwrap_or(0);
        going(pod) && grace <= i64::from(GRACE_SECONDS)
    };
    let takes = |pod: &&Pod| runs(pod) && !soon(pod) && (impatient || going(pod) || !of_a_job(pod));
    steps.extend(found.pods.iter().filter(takes).map(|pod| Step::Pod { name: pod.name_any() }));
    steps
}

fn runs(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    !matches!(phase, Some("Succeeded" | "Failed"))
}

/// The quota last: what fails before it leaves everything stopped.
fn starting(found: &Found) -> Vec<Step> {
    let mut steps = Vec::new();
    for deployment in &found.deployments {
        let Some(text) = deployment.annotations().get(REPLICAS) else { continue };
        let replicas: i32 = text.parse().unwrap_or(1);
        let patch = json!({"metadata": {"annotations": {(REPLICAS): null}}, "spec": {"replicas": replicas}});
        steps.push(Step::Deployment { name: deployment.name_any(), patch });
    }
    for job in found.jobs.iter().filter(|job| job.annotations().contains_key(RAN) && !is_over(job)) {
        // A queue resumes its own when it has room for it.
        let mut patch = json!({"metadata": {"annotations": {(RAN): null}}});
        if !found.workloads.iter().any(|(_, workload)| owns(job, workload)) {
            patch["spec"] = json!({"suspend": false});
        }
        steps.push(Step::Job { name: job.name_any(), patch });
    }
    for (resource, workload) in found.workloads.iter().filter(|(_, workload)| workload.annotations().contains_key(RAN))
    {
        let patch = json!({"metadata": {"annotations": {(RAN): null}}, "spec": {"active": true}});
        steps.push(Step::Workload { resource: resource.clone(), name: workload.name_any(), patch });
    }
    if found.shut {
        steps.push(Step::Open);
    }
    steps
}

fn is_over(job: &Job) -> bool {
    let conditions = job.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    conditions.iter().any(|c| matches!(c.type_.as_str(), "Complete" | "Failed") && c.status == "True")
}

fn owns(job: &Job, workload: &DynamicObject) -> bool {
    let uid = job.uid();
    uid.is_some() && workload.owner_references().iter().any(|owner| Some(&owner.uid) == uid.as_ref())
}

fn is_finished(workload: &DynamicObject) -> bool {
    let conditions = workload.data["status"]["conditions"].as_array();
    conditions.into_iter().flatten().any(|c| c["type"] == "Finished" && c["status"] == "True")
}

fn words(step: &Step) -> String {
    match step {
        Step::Shut => format!("ResourceQuota {QUOTA}: no pod is let in"),
        Step::Open => format!("ResourceQuota {QUOTA} removed: pods are let in"),
        Step::Deployment { name, patch } => format!("Deployment {name}: {} replicas", patch["spec"]["replicas"]),
        Step::Job { name, patch } if patch["spec"]["suspend"] == true => format!("Job {name}: suspended"),
        Step::Job { name, patch } if patch["spec"].is_null() => format!("Job {name}: left to its queue"),
        Step::Job { name, .. } => format!("Job {name}: resumed"),
        Step::Workload { name, patch, .. } if patch["spec"]["active"] == false => format!("Workload {name}: held"),
        Step::Workload { name, .. } => format!("Workload {name}: let go"),
        Step::Pod { name } => format!("Pod {name}: deleted"),
    }
}

/// What can be read; a kind that cannot be is said and leaves the others.
async fn find(client: &Client, namespace: &str, log: &mut Log) -> Found {
    let quotas: Api<ResourceQuota> = Api::namespaced(client.clone(), namespace);
    let mut cannot = |what: &str, error: kube::Error| {
        log.failed.insert(format!("{namespace}: {what} cannot be listed: {error}"));
    };
    let mut found = Found::default();
    match quotas.get_opt(QUOTA).await {
        Ok(quota) => found.shut = quota.is_some(),
        Err(error) => cannot("the quota", error),
    }
    match list(client, namespace).await {
        Ok(deployments) => found.deployments = deployments,
        Err(error) => cannot("Deployments", error),
    }
    match list(client, namespace).await {
        Ok(jobs) => found.jobs = jobs,
        Err(error) => cannot("Jobs", error),
    }
    match workloads(client, namespace).await {
        Ok(workloads) => found.workloads = workloads,
        Err(error) => cannot("Kueue's Workloads", error),
    }
    match list(client, namespace).await {
        Ok(pods) => found.pods = pods,
        Err(error) => cannot("pods", error),
    }
    found
}

/// None where there is no Kueue.
async fn workloads(
    client: &Client,
    namespace: &str,
) -> std::result::Result<Vec<(ApiResource, DynamicObject)>, kube::Error> {
    let group = match kube::discovery::group(client, "kueue.x-k8s.io").await {
        Err(kube::Error::Discovery(DiscoveryError::MissingApiGroup(_))) => return Ok(Vec::new()),
        group => group?,
    };
    let Some((resource, _)) = group.recommended_kind("Workload") else { return Ok(Vec::new()) };
    let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), namespace, &resource);
    let found = api.list(&ListParams::default()).await?.items;
    Ok(found.into_iter().map(|workload| (resource.clone(), workload)).collect())
}

async fn list<K>(client: &Client, namespace: &str) -> std::result::Result<Vec<K>, kube::Error>
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + Debug + DeserializeOwned,
{
    Ok(Api::<K>::namespaced(client.clone(), namespace).list(&ListParams::default()).await?.items)
}

async fn make(client: &Client, namespace: &str, step: &Step) -> std::result::Result<(), kube::Error> {
    let merge = PatchParams { field_manager: Some(MANAGER.into()), ..PatchParams::default() };
    match step {
        Step::Shut => {
            let quota = json!({
                "apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": QUOTA}, "spec": {"hard": {"pods": "0"}},
            });
            let api: Api<ResourceQuota> = Api::namespaced(client.clone(), namespace);
            api.patch(QUOTA, &PatchParams::apply(MANAGER).force(), &Patch::Apply(&quota)).await.map(drop)
        }
        Step::Open => {
            let api: Api<ResourceQuota> = Api::namespaced(client.clone(), namespace);
            gone(api.delete(QUOTA, &DeleteParams::default()).await)
        }
        Step::Deployment { name, patch } => {
            let api: Api<Deployment> = Api::namespaced(client.clone(), namespace);
            gone(api.patch(name, &merge, &Patch::Merge(patch)).await)
        }
        Step::Job { name, patch } => {
            let api: Api<Job> = Api::namespaced(client.clone(), namespace);
            gone(api.patch(name, &merge, &Patch::Merge(patch)).await)
        }
        Step::Workload { resource, name, patch } => {
            let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), namespace, resource);
            gone(api.patch(name, &merge, &Patch::Merge(patch)).await)
        }
        Step::Pod { name } => {
            let api: Api<Pod> = Api::namespaced(client.clone(), namespace);
            gone(api.delete(name, &DeleteParams::default().grace_period(GRACE_SECONDS)).await)
        }
    }
}

/// What has gone meanwhile needs no change.
fn gone<T>(result: std::result::Result<T, kube::Error>) -> std::result::Result<(), kube::Error> {
    match result {
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        other => other.map(drop),
    }
}

#[cfg(test)]
#[path = "stop_tests.rs"]
mod tests;
