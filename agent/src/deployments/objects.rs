//! The inference pod, its Service and its credential: pure, from the ModelDeployment.

use std::collections::BTreeMap;

use consilium_crds::{ModelDeployment, ModelDeploymentSpec};
use consilium_federation::digest::Digest;
use k8s_openapi::api::apps::v1::{Deployment, DeploymentSpec, DeploymentStrategy};
use k8s_openapi::api::core::v1::{
    Affinity, Container, ContainerPort, DownwardAPIVolumeFile, DownwardAPIVolumeSource, EnvVar, HTTPGetAction,
    NodeAffinity, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, ObjectFieldSelector, PodSpec,
    PodTemplateSpec, PreferredSchedulingTerm, Probe, Secret, Service, ServicePort, ServiceSpec, Volume,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::api::ObjectMeta;

use crate::tasks::job::{credential_data, gpu_toleration};
use crate::tasks::pod::{self, ROOT, labels, mount};

/// Label with the name of the ModelDeployment, on all that it owns.
pub(crate) const LABEL: &str = "consilium.health/deployment";
/// Annotation of a pod with the stage on which its model stands; the guard writes it, so that a model falls and its pod
/// goes on.
pub(crate) const STAGE: &str = "consilium.health/stage";
/// Annotation with the server's words, on a Deployment that runs no pod because the server refused the model.
pub(super) const REFUSED: &str = "consilium.health/refused";
/// Annotation of the pods, by which they are told from those of another ModelDeployment or before a change.
pub(super) const TEMPLATE: &str = "consilium.health/template";
/// Annotation of a pod with the time until which its model answers; the guard renews it.
pub(crate) const LEASE: &str = "consilium.health/lease";
/// Where the node shows both to the server, and how the server knows. An image of before them does not look.
const LEASE_FOLDER: &str = "/lease";
const LEASE_FILE: &str = "until";
const LEASE_VARIABLE: &str = "CONSILIUM_LEASE";
const STAGE_FILE: &str = "stage";
const STAGE_VARIABLE: &str = "CONSILIUM_STAGE";
/// Room for requests under way when a pod is ended. A hospital that takes a model out of use means now.
const GRACE_SECONDS: i64 = 10;
/// The container that serves.
pub(super) const SERVER: &str = "inference";
/// Label of nodes with an accelerator for inference, for example a T4.
const INFERENCE_NODES: &str = "consilium.health/inference-gpu";
const PORT: i32 = 8080;
/// Memory of a server that has no GPU.
const MEMORY: &str = "2Gi";
/// Memory beside a GPU: CUDA's libraries and context take more than a gibibyte of the host's before the first scan.
const GPU_MEMORY: &str = "8Gi";

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
    /// GPUs that the hospital gives to a model: 0 or 1.
    pub(super) gpus: u32,
    /// Certificate of the task port.
    pub(super) certificate: &'a str,
}

/// Name of a ModelDeployment: its release's, and more of the promotion where the name is taken or too long.
///
/// Its Service has the same name, which must begin with a letter (RFC 1035); a release's may begin with a digit.
pub(super) fn name_of(release: &str, promotion_uid: &str, taken: impl Fn(&str) -> bool) -> String {
    let lettered = format!("m-{release}");
    let release = if release.starts_with(|c: char| c.is_ascii_lowercase()) { release } else { &lettered };
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
    let pod = pod_spec(plan);
    let digest = Digest::of_json(&(plan.uid, &pod)).hex();
    let metadata = ObjectMeta {
        labels: Some(own_labels(plan)),
        annotations: Some(labels(&[(TEMPLATE, &digest[..16])])),
        ..ObjectMeta::default()
    };
    let template = PodTemplateSpec { metadata: Some(metadata), spec: Some(pod) };
    let spec = DeploymentSpec {
        replicas: Some(1),
        strategy: Some(DeploymentStrategy { type_: Some("Recreate".into()), rolling_update: None }),
        selector: LabelSelector { match_labels: Some(selector(plan)), match_expressions: None },
        template,
        ..DeploymentSpec::default()
    };
    Deployment { metadata: self::metadata(plan, plan.name), spec: Some(spec), status: None }
}

/// A Deployment that runs no pod any more, with what the server said. Applied without that, it runs again.
pub(super) fn stopped(mut deployment: Deployment, words: &str) -> Deployment {
    deployment.metadata.annotations.get_or_insert_default().insert(REFUSED.into(), words.into());
    deployment.spec.get_or_insert_default().replicas = Some(0);
    deployment
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
            lease_volume(),
        ]),
        affinity: Some(affinity(plan.gpus)),
        tolerations: (plan.gpus > 0).then(gpu_toleration),
        termination_grace_period_seconds: Some(GRACE_SECONDS),
        ..pod::restricted_pod()
    }
}

fn lease_volume() -> Volume {
    let shown = |annotation: &str, file: &str| {
        let field_path = format!("metadata.annotations['{annotation}']");
        let field = ObjectFieldSelector { field_path, api_version: None };
        DownwardAPIVolumeFile { path: file.into(), field_ref: Some(field), ..DownwardAPIVolumeFile::default() }
    };
    let items = vec![shown(LEASE, LEASE_FILE), shown(STAGE, STAGE_FILE)];
    let source = DownwardAPIVolumeSource { items: Some(items), default_mode: None };
    Volume { name: "lease".into(), downward_api: Some(source), ..Volume::default() }
}

/// Nodes that the hospital labelled for inference: with a GPU those alone, so that no model takes one of the machine that
/// trains; without, where there are any.
fn affinity(gpus: u32) -> Affinity {
    let labelled = NodeSelectorRequirement { key: INFERENCE_NODES.into(), operator: "Exists".into(), values: None };
    let term = NodeSelectorTerm { match_expressions: Some(vec![labelled]), match_fields: None };
    let node_affinity = if gpus > 0 {
        let required = NodeSelector { node_selector_terms: vec![term] };
        NodeAffinity { required_during_scheduling_ignored_during_execution: Some(required), ..NodeAffinity::default() }
    } else {
        let preferred = PreferredSchedulingTerm { weight: 100, preference: term };
        NodeAffinity {
            preferred_during_scheduling_ignored_during_execution: Some(vec![preferred]),
            ..NodeAffinity::default()
        }
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
    let gpus = plan.gpus.to_string();
    let gpu = (plan.gpus > 0).then_some(("nvidia.com/gpu", gpus.as_str()));
    let amounts =
        |cpu, memory| [("cpu", cpu), ("memory", memory)].into_iter().chain(gpu).collect::<Vec<(&str, &str)>>();
    let memory = if plan.gpus > 0 { GPU_MEMORY } else { MEMORY };
    let resources = pod::requirements(&amounts("50m", "256Mi"), &amounts("2", memory));
    Container {
        args: Some(args.to_vec()),
        ports: Some(vec![ContainerPort {
            name: Some("http".into()),
            container_port: PORT,
            ..ContainerPort::default()
        }]),
        readiness_probe: Some(http("/v2/health/ready", 3, 3)),
        liveness_probe: Some(http("/v2/health/live", 20, 6)),
        env: Some(vec![file(LEASE_VARIABLE, LEASE_FILE), file(STAGE_VARIABLE, STAGE_FILE)]),
        volume_mounts: Some(vec![
            mount("model", ROOT, true),
            mount("tmp", "/tmp", false),
            mount("lease", LEASE_FOLDER, true),
        ]),
        ..pod::container(SERVER, plan.inference_image, resources)
    }
}

fn file(variable: &str, name: &str) -> EnvVar {
    EnvVar { name: variable.into(), value: Some(format!("{LEASE_FOLDER}/{name}")), value_from: None }
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
pub(super) mod tests {
    use consilium_federation::ladder::Stage;

    use super::*;

    pub(in crate::deployments) fn with_plan<T>(act: impl FnOnce(&ServePlan<'_>) -> T) -> T {
        let spec = ModelDeploymentSpec {
            release: "hippocampus-r5".into(),
            release_digest: Digest::of(b"release"),
            model: Digest::of(b"model"),
            stage: Stage::Shadow,
            promotion_uid: "promotion".into(),
            approved: None,
        };
        act(&ServePlan {
            name: "hippocampus-r5",
            uid: "uid",
            namespace: "consilium-tasks",
            spec: &spec,
            address: "https://10.96.0.50:8444",
            courier_image: "registry.example/agent@sha256:courier",
            inference_image: "registry.example/inference@sha256:inference",
            gpus: 0,
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

    /// A hospital with T4 nodes would pay for them and be served by the CPU, or find its model on the machine that
    /// trains.
    #[test]
    fn with_a_gpu_it_asks_for_one_and_stands_on_the_nodes_for_inference_alone() {
        let pod_of = |gpus| {
            let made = with_plan(|plan| deployment(&ServePlan { gpus, ..plan.clone() }));
            serde_json::to_value(made.spec.unwrap().template.spec.unwrap()).unwrap()
        };
        let (cpu, gpu) = (pod_of(0), pod_of(1));
        let required = "/affinity/nodeAffinity/requiredDuringSchedulingIgnoredDuringExecution/nodeSelectorTerms/0/matchExpressions/0";
        let resources = |pod: &serde_json::Value| pod["containers"][0]["resources"].clone();
        assert!(resources(&cpu)["limits"].get("nvidia.com/gpu").is_none());
        assert!(cpu["tolerations"].is_null() && cpu.pointer(required).is_none());
        assert_eq!(resources(&gpu)["limits"]["nvidia.com/gpu"], "1");
        assert_eq!(resources(&gpu)["requests"]["nvidia.com/gpu"], "1");
        assert_eq!(gpu.pointer(required).unwrap()["key"], INFERENCE_NODES);
        assert_eq!(gpu["tolerations"][0]["key"], "nvidia.com/gpu");
        assert!(gpu["initContainers"][0]["resources"]["limits"].get("nvidia.com/gpu").is_none());
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
        // A study named so is admitted, and its model was then served nowhere: no Service may have such a name.
        assert_eq!(name_of("3d-hippocampus-r5", "u", free), "m-3d-hippocampus-r5");
        let long = name_of(&format!("a.{}", "x".repeat(200)), "u", free);
        assert!(long.len() <= 63 && !long.contains('.'), "{long}");
    }
}
