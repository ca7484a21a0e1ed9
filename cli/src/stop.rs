//! `stop --everything` and `start`: a hospital's kill switch that needs no agent.
//!
//! Made of plain objects that anybody can read and undo with kubectl: a ResourceQuota under which no pod is let in,
//! Deployments at 0, Jobs suspended, pods deleted. What there was stands in annotations, so that `start` finds it again.
//! Doing either twice is doing it once.

use std::fmt::Debug;

use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{Pod, ResourceQuota};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams};
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
    /// Remove a pod.
    Pod { name: String },
}

/// What there is in a namespace.
#[derive(Default)]
struct Found {
    shut: bool,
    deployments: Vec<Deployment>,
    jobs: Vec<Job>,
    pods: Vec<Pod>,
}

/// Stops everything.
pub async fn stop(arguments: &Stop) -> Result<String> {
    let mut told = every(&arguments.place, stopping).await?;
    told.push_str("Nothing runs there until: kubectl consilium start\n");
    Ok(told)
}

/// Lets everything run again that `stop` stopped.
pub async fn start(place: &Place) -> Result<String> {
    let mut told = every(place, starting).await?;
    told.push_str("What the SitePolicy allows runs again\n");
    Ok(told)
}

async fn every(place: &Place, plan: fn(&Found) -> Vec<Step>) -> Result<String> {
    let client = cluster::client().await?;
    let (mut told, mut failed) = (String::new(), Vec::new());
    for namespace in &place.namespaces {
        let found = find(&client, namespace).await?;
        for step in plan(&found) {
            // One that cannot be changed must not keep the others running.
            match make(&client, namespace, &step).await {
                Ok(()) => told.push_str(&format!("{namespace}: {}\n", words(&step))),
                Err(error) => failed.push(format!("{namespace}: {}: {error}", words(&step))),
            }
        }
    }
    if failed.is_empty() {
        Ok(told)
    } else {
        Err(CliError::NotAll { done: told.lines().count(), failed: failed.join("; ") })
    }
}

/// The quota first: whatever would be made anew meanwhile is not let in.
fn stopping(found: &Found) -> Vec<Step> {
    let mut steps = vec![Step::Shut];
    for deployment in &found.deployments {
        let replicas = deployment.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
        if replicas > 0 {
            let annotations = json!({ (REPLICAS): replicas.to_string() });
            let patch = json!({"metadata": {"annotations": annotations}, "spec": {"replicas": 0}});
            steps.push(Step::Deployment { name: deployment.name_any(), patch });
        }
    }
    for job in found.jobs.iter().filter(|job| !is_over(job)) {
        if job.spec.as_ref().and_then(|spec| spec.suspend) != Some(true) {
            let patch = json!({"metadata": {"annotations": {(RAN): "true"}}, "spec": {"suspend": true}});
            steps.push(Step::Job { name: job.name_any(), patch });
        }
    }
    let ended = |pod: &&Pod| {
        let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
        matches!(phase, Some("Succeeded" | "Failed"))
    };
    steps.extend(found.pods.iter().filter(|pod| !ended(pod)).map(|pod| Step::Pod { name: pod.name_any() }));
    steps
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
    for job in found.jobs.iter().filter(|job| job.annotations().contains_key(RAN)) {
        let patch = json!({"metadata": {"annotations": {(RAN): null}}, "spec": {"suspend": false}});
        steps.push(Step::Job { name: job.name_any(), patch });
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

fn words(step: &Step) -> String {
    match step {
        Step::Shut => format!("ResourceQuota {QUOTA}: no pod is let in"),
        Step::Open => format!("ResourceQuota {QUOTA} removed: pods are let in"),
        Step::Deployment { name, patch } => format!("Deployment {name}: {} replicas", patch["spec"]["replicas"]),
        Step::Job { name, patch } if patch["spec"]["suspend"] == true => format!("Job {name}: suspended"),
        Step::Job { name, .. } => format!("Job {name}: resumed"),
        Step::Pod { name } => format!("Pod {name}: deleted"),
    }
}

async fn find(client: &Client, namespace: &str) -> Result<Found> {
    let quotas: Api<ResourceQuota> = Api::namespaced(client.clone(), namespace);
    Ok(Found {
        shut: quotas.get_opt(QUOTA).await?.is_some(),
        deployments: list(client, namespace).await?,
        jobs: list(client, namespace).await?,
        pods: list(client, namespace).await?,
    })
}

async fn list<K>(client: &Client, namespace: &str) -> Result<Vec<K>>
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
mod tests {
    use super::*;

    fn object<T: DeserializeOwned>(value: Value) -> T {
        serde_json::from_value(value).unwrap()
    }

    fn running() -> Found {
        Found {
            shut: false,
            deployments: vec![object(json!({"metadata": {"name": "model"}, "spec": {
                "replicas": 1, "selector": {}, "template": {},
            }}))],
            jobs: vec![
                object(json!({"metadata": {"name": "task"}, "spec": {"template": {}}})),
                object(json!({"metadata": {"name": "queued"}, "spec": {"suspend": true, "template": {}}})),
                object(json!({"metadata": {"name": "over"}, "spec": {"template": {}},
                    "status": {"conditions": [{"type": "Complete", "status": "True"}]}})),
            ],
            pods: vec![
                object(json!({"metadata": {"name": "pod"}, "status": {"phase": "Running"}})),
                object(json!({"metadata": {"name": "ended"}, "status": {"phase": "Succeeded"}})),
            ],
        }
    }

    /// As the API server would do it.
    fn applied(found: &mut Found, steps: &[Step]) {
        let merge = |object: Value, patch: &Value| {
            let mut object = object;
            json_merge(&mut object, patch);
            object
        };
        for step in steps {
            match step {
                Step::Shut => found.shut = true,
                Step::Open => found.shut = false,
                Step::Deployment { name, patch } => {
                    let one = found.deployments.iter_mut().find(|d| d.name_any() == *name).unwrap();
                    *one = object(merge(serde_json::to_value(&*one).unwrap(), patch));
                }
                Step::Job { name, patch } => {
                    let one = found.jobs.iter_mut().find(|j| j.name_any() == *name).unwrap();
                    *one = object(merge(serde_json::to_value(&*one).unwrap(), patch));
                }
                Step::Pod { name } => found.pods.retain(|pod| pod.name_any() != *name),
            }
        }
    }

    /// RFC 7386.
    fn json_merge(target: &mut Value, patch: &Value) {
        let Value::Object(patch) = patch else { return target.clone_from(patch) };
        for (key, value) in patch {
            match value {
                Value::Null => drop(target.as_object_mut().unwrap().remove(key)),
                _ => {
                    let map = target.as_object_mut().unwrap();
                    json_merge(map.entry(key.clone()).or_insert_with(|| json!({})), value);
                }
            }
        }
    }

    /// At night somebody types it twice. Everything that runs stops, what did not run is not touched, and the second time
    /// must not forget how it was.
    #[test]
    fn stopping_twice_and_starting_leaves_it_as_it_was() {
        let mut found = running();
        let steps = stopping(&found);
        assert_eq!(steps[0], Step::Shut, "nothing is made anew meanwhile");
        let told: Vec<String> = steps.iter().map(words).collect();
        assert_eq!(told[1..], ["Deployment model: 0 replicas", "Job task: suspended", "Pod pod: deleted"]);
        applied(&mut found, &steps);
        assert_eq!(stopping(&found), [Step::Shut], "the second time there is nothing left");
        let steps = starting(&found);
        assert_eq!(steps.last(), Some(&Step::Open), "a start that fails half-way leaves it stopped");
        applied(&mut found, &steps);
        let before = running();
        assert_eq!((found.shut, found.jobs[1..].to_vec()), (false, before.jobs[1..].to_vec()));
        assert_eq!(found.deployments[0].spec, before.deployments[0].spec);
        assert!(!found.deployments[0].annotations().contains_key(REPLICAS));
        assert_eq!(found.jobs[0].spec.as_ref().unwrap().suspend, Some(false));
        assert_eq!(starting(&found), []);
    }
}
