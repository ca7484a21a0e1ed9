//! The inference pod, its Service and its credential: pure, from the ModelDeployment.

use std::collections::BTreeMap;

use consilium_crds::{ModelDeployment, ModelDeploymentSpec};
use consilium_federation::digest::Digest;
use k8s_openapi::api::apps::v1::{Deployment, DeploymentSpec, DeploymentStrategy};
use k8s_openapi::api::core::v1::{
    Affinity, Container, ContainerPort, HTTPGetAction, NodeAffinity, NodeSelectorRequirement, NodeSelectorTerm,
    PodSpec, PodTemplateSpec, PreferredSchedulingTerm, Probe, Secret, Service, ServicePort, ServiceSpec,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::api::ObjectMeta;

use crate::tasks::job::credential_data;
use crate::tasks::pod::{self, ROOT, labels, mount};

/// Label with the name of the ModelDeployment, on all that it owns.
pub(super) const LABEL: &str = "consilium.health/deployment";
/// Annotation with the stage, so that whoever looks at the Deployment sees what it is trusted with.
const STAGE: &str = "consilium.health/stage";
/// Label of nodes with an accelerator for inference, for example a T4.
const INFERENCE_NODES: &str = "consilium.health/inference-gpu";
const PORT: i32 = 8080;

/// Everything that the objects are made of.
#[derive(Clone, Debug)]
pub(super) struct ServePlan<'a> {
    /// Name of the ModelDeployment.
    pub(super) name: &'a str,
    /// Its UID.
    pub(super) uid: &'a str,
    /// Its namespace.
    pub(super) namespace: &'a str,
    /// What is served.
    pub(super) spec: &'a ModelDeploymentSpec,
    /// The task port.
    pub(super) address: &'a str,
    /// Image of the courier.
    pub(super) courier_image: &'a str,
    /// Image of the server.
    pub(super) inference_image: &'a str,
    /// Certificate of the task port.
    pub(super) certificate: &'a str,
}

/// Name of a ModelDeployment: its release's, and more of the promotion where the name is taken or too long.
pub(super) fn name_of(release: &str, promotion_uid: &str, taken: impl Fn(&str) -> bool) -> String {
    let plain = release.len() <= 52 && !release.contains('.');
    if plain && !taken(release) {
        return release.to_owned();
    }
    let short: String = release.replace('.', "-").chars().take(52).collect();
    format!("{}-{}", short.trim_end_matches('-'), &Digest::of(promotion_uid.as_bytes()).hex()[..6])
}

/// Name of the credential's Secret: an agent that lost its volume has another certificate, and makes another Secret.
fn credential_name(plan: &ServePlan<'_>) -> String {
    format!("{}-{}", plan.name, &Digest::of(plan.certificate.as_bytes()).hex()[..8])
}

fn metadata(plan: &ServePlan<'_>, name: &str) -> ObjectMeta {
    ObjectMeta {
        name: Some(name.to_owned()),
        namespace: Some(plan.namespace.to_owned()),
        labels: Some(own_labels(plan)),
        owner_references: Some(pod::owned_by::<ModelDeployment>(plan.name, plan.uid)),
        ..ObjectMeta::default()
    }
}

fn own_labels(plan: &ServePlan<'_>) -> BTreeMap<String, String> {
    labels(&[
        ("app.kubernetes.io/name", "consilium-inference"),
        ("app.kubernetes.io/managed-by", "consilium-agent"),
        (LABEL, plan.name),
    ])
}

fn selector(plan: &ServePlan<'_>) -> BTreeMap<String, String> {
    labels(&[(LABEL, plan.name)])
}

/// The Secret with which the pod fetches its model.
pub(super) fn credential(plan: &ServePlan<'_>, token: &str) -> Secret {
    Secret { metadata: metadata(plan, &credential_name(plan)), ..credential_data(token, plan.certificate) }
}

/// The Service by which the model is asked.
pub(super) fn service(plan: &ServePlan<'_>) -> Service {
    let port = ServicePort {
        name: Some("http".into()),
        port: PORT,
        target_port: Some(IntOrString::String("http".into())),
        ..ServicePort::default()
    };
    let spec = ServiceSpec { selector: Some(selector(plan)), ports: Some(vec![port]), ..ServiceSpec::default() };
    Service { metadata: metadata(plan, plan.name), spec: Some(spec), status: None }
}

/// The Deployment: one pod that fetches the model, checks it again and serves it.
pub(super) fn deployment(plan: &ServePlan<'_>) -> Deployment {
    let mut meta = metadata(plan, plan.name);
    meta.annotations = Some(labels(&[(STAGE, plan.spec.stage.as_str())]));
    let template = PodTemplateSpec {
        metadata: Some(ObjectMeta { labels: Some(own_labels(plan)), ..ObjectMeta::default() }),
        spec: Some(pod_spec(plan)),
    };
    let spec = DeploymentSpec {
        replicas: Some(1),
        strategy: Some(DeploymentStrategy { type_: Some("Recreate".into()), rolling_update: None }),
        selector: LabelSelector { match_labels: Some(selector(plan)), match_expressions: None },
        template,
        ..DeploymentSpec::default()
    };
    Deployment { metadata: meta, spec: Some(spec), status: None }
}

fn pod_spec(plan: &ServePlan<'_>) -> PodSpec {
    let mut fetch = pod::courier(plan.courier_image, "fetch", plan.address);
    fetch.volume_mounts.get_or_insert_default().push(mount("model", ROOT, false));
    PodSpec {
        init_containers: Some(vec![fetch]),
        containers: vec![server(plan)],
        volumes: Some(vec![
            pod::secret("credential", &credential_name(plan)),
            pod::empty("model", None, None),
            pod::empty("tmp", None, None),
        ]),
        affinity: Some(affinity()),
        termination_grace_period_seconds: Some(30),
        ..pod::restricted_pod()
    }
}

/// Nodes that the hospital labelled for inference, where it has any.
fn affinity() -> Affinity {
    let labelled = NodeSelectorRequirement { key: INFERENCE_NODES.into(), operator: "Exists".into(), values: None };
    let preference = NodeSelectorTerm { match_expressions: Some(vec![labelled]), match_fields: None };
    let node_affinity = NodeAffinity {
        preferred_during_scheduling_ignored_during_execution: Some(vec![PreferredSchedulingTerm {
            weight: 100,
            preference,
        }]),
        ..NodeAffinity::default()
    };
    Affinity { node_affinity: Some(node_affinity), ..Affinity::default() }
}

fn server(plan: &ServePlan<'_>) -> Container {
    let args = [
        "serve".to_owned(),
        "--root".to_owned(),
        ROOT.to_owned(),
        "--name".to_owned(),
        plan.spec.release.clone(),
        "--release-digest".to_owned(),
        plan.spec.release_digest.to_string(),
        "--model-digest".to_owned(),
        plan.spec.model.to_string(),
        "--listen".to_owned(),
        format!("0.0.0.0:{PORT}"),
    ];
    let resources = pod::requirements(&[("cpu", "50m"), ("memory", "256Mi")], &[("cpu", "2"), ("memory", "2Gi")]);
    Container {
        args: Some(args.to_vec()),
        ports: Some(vec![ContainerPort {
            name: Some("http".into()),
            container_port: PORT,
            ..ContainerPort::default()
        }]),
        readiness_probe: Some(http("/v2/health/ready", 3, 3)),
        liveness_probe: Some(http("/v2/health/live", 20, 6)),
        volume_mounts: Some(vec![mount("model", ROOT, true), mount("tmp", "/tmp", false)]),
        ..pod::container("inference", plan.inference_image, resources)
    }
}

fn http(path: &str, period: i32, failures: i32) -> Probe {
    let get = HTTPGetAction {
        path: Some(path.to_owned()),
        port: IntOrString::String("http".into()),
        ..HTTPGetAction::default()
    };
    Probe {
        http_get: Some(get),
        period_seconds: Some(period),
        failure_threshold: Some(failures),
        timeout_seconds: Some(5),
        ..Probe::default()
    }
}

#[cfg(test)]
mod tests {
    use consilium_federation::ladder::Stage;

    use super::*;

    fn with_plan<T>(act: impl FnOnce(&ServePlan<'_>) -> T) -> T {
        let spec = ModelDeploymentSpec {
            release: "hippocampus-r5".into(),
            release_digest: Digest::of(b"release"),
            model: Digest::of(b"model"),
            stage: Stage::Shadow,
            promotion_uid: "promotion".into(),
        };
        act(&ServePlan {
            name: "hippocampus-r5",
            uid: "uid",
            namespace: "consilium-tasks",
            spec: &spec,
            address: "https://10.96.0.50:8444",
            courier_image: "registry.example/agent@sha256:courier",
            inference_image: "registry.example/inference@sha256:inference",
            certificate: "certificate",
        })
    }

    #[test]
    fn deployment_snapshot() {
        insta::assert_json_snapshot!(with_plan(deployment));
    }

    #[test]
    fn service_snapshot() {
        insta::assert_json_snapshot!(with_plan(service));
    }

    /// The server must not hold the credential: it is reached from other pods of the hospital.
    #[test]
    fn only_fetch_holds_the_credential() {
        let pod = with_plan(deployment).spec.unwrap().template.spec.unwrap();
        let holds = |c: &Container| c.volume_mounts.iter().flatten().any(|m| m.name == "credential");
        assert!(pod.init_containers.unwrap().iter().all(holds));
        assert!(!pod.containers.iter().any(holds));
    }

    #[test]
    fn names_are_labels_and_do_not_collide() {
        let free = |_: &str| false;
        assert_eq!(name_of("hippocampus-r5", "u", free), "hippocampus-r5");
        let other = name_of("hippocampus-r5", "u", |name| name == "hippocampus-r5");
        assert!(other.starts_with("hippocampus-r5-") && other != name_of("hippocampus-r5", "v", |_| true));
        let long = name_of(&format!("a.{}", "x".repeat(200)), "u", free);
        assert!(long.len() <= 63 && !long.contains('.'), "{long}");
    }
}
