//! What is seen of one model: pure, from its Deployment and pods.

use std::collections::BTreeMap;
use std::sync::Arc;

use consilium_crds::ModelDeployment;
use consilium_federation::task::EXIT_INVALID;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ContainerStateTerminated, Pod, PodSpec};
use kube::ResourceExt as _;

use super::decide::{PodSeen, Seen};
use super::objects::{LABEL, REFUSED, SERVER, TEMPLATE};
use crate::tasks::observe::{obstacle, words};

/// Reads one model; `wanted` is its Deployment as it should be.
pub(super) fn see(
    model: &ModelDeployment,
    wanted: &Deployment,
    deployments: &[Arc<Deployment>],
    pods: &[Arc<Pod>],
) -> Seen {
    let (name, uid) = (model.name_any(), model.uid().unwrap_or_default());
    let owned = |d: &&Arc<Deployment>| d.owner_references().iter().any(|o| o.uid == uid);
    let found = deployments.iter().filter(|d| d.name_any() == name).find(owned).map(|d| &**d);
    let template = template_of(wanted);
    let ours = |p: &&Arc<Pod>| p.labels().get(LABEL) == Some(&name) && p.annotations().get(TEMPLATE) == template;
    let pods: Vec<&Pod> = pods.iter().filter(ours).map(|p| &**p).collect();
    // What the server said of another template is forgotten: another image may know the network.
    let stopped = found.filter(|d| template_of(d) == template).and_then(|d| d.annotations().get(REFUSED));
    Seen {
        deleting: model.metadata.deletion_timestamp.is_some(),
        stage: model.spec.stage,
        approved: model.spec.approved.clone(),
        built: found.is_some_and(|d| as_wanted(d, wanted)),
        stopped: stopped.is_some(),
        pod: pod(found, stopped, &pods),
    }
}

fn pod(deployment: Option<&Deployment>, stopped: Option<&String>, pods: &[&Pod]) -> PodSeen {
    if deployment.is_some_and(is_ready) {
        return PodSeen::Ready;
    }
    if let Some(words) = stopped.cloned().or_else(|| pods.iter().find_map(|p| refusal(p))) {
        return PodSeen::Refused(words);
    }
    let by_us = |d: &Deployment| d.annotations().contains_key(REFUSED);
    let at_none = |d: &Deployment| d.spec.as_ref().and_then(|s| s.replicas) == Some(0);
    if deployment.is_some_and(|d| at_none(d) && !by_us(d)) {
        return PodSeen::Starting(Some("its Deployment was scaled to 0 by hand; scale it to 1 to go on".into()));
    }
    let newest = pods.iter().max_by_key(|p| p.creation_timestamp());
    PodSeen::Starting(newest.and_then(|p| obstacle(p)))
}

fn is_ready(deployment: &Deployment) -> bool {
    let status = deployment.status.as_ref();
    let current = status.and_then(|s| s.observed_generation) == deployment.metadata.generation
        && deployment.metadata.deletion_timestamp.is_none();
    current && status.and_then(|s| s.available_replicas).unwrap_or(0) > 0
}

/// The server's words, if it ended with 42 and has not been started again since.
fn refusal(pod: &Pod) -> Option<String> {
    let statuses = pod.status.as_ref()?.container_statuses.as_deref()?;
    let server = statuses.iter().find(|s| s.name == SERVER)?;
    let (state, last) = (server.state.as_ref()?, server.last_state.as_ref());
    let waiting = || state.waiting.as_ref().and_then(|_| last?.terminated.as_ref());
    let end: &ContainerStateTerminated = state.terminated.as_ref().or_else(waiting)?;
    (end.exit_code == EXIT_INVALID).then(|| words(end))
}

fn template_of(deployment: &Deployment) -> Option<&String> {
    template_annotations(deployment)?.get(TEMPLATE)
}

fn template_annotations(deployment: &Deployment) -> Option<&BTreeMap<String, String>> {
    deployment.spec.as_ref()?.template.metadata.as_ref()?.annotations.as_ref()
}

/// Whether a Deployment runs what it should: images and arguments change with an upgrade of the agent, the credential
/// with its volume, GPUs with the policy; and someone may have changed it by hand.
fn as_wanted(found: &Deployment, wanted: &Deployment) -> bool {
    let pod = |d: &'_ Deployment| d.spec.as_ref().and_then(|s| s.template.spec.clone()).unwrap_or_default();
    let containers = |pod: &PodSpec| {
        let all = pod.init_containers.iter().flatten().chain(&pod.containers);
        all.map(|c| (c.name.clone(), c.image.clone(), c.args.clone())).collect::<Vec<_>>()
    };
    let same_template = template_of(found) == template_of(wanted);
    same_template && containers(&pod(found)) == containers(&pod(wanted))
}

#[cfg(test)]
#[path = "read_tests.rs"]
mod tests;
