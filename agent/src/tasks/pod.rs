//! Pieces of pods that tasks, the probe and deployments share: everything restricted, no token of the cluster.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    Capabilities, Container, EmptyDirVolumeSource, PersistentVolumeClaimVolumeSource, PodSecurityContext, PodSpec,
    ResourceRequirements, SeccompProfile, SecretVolumeSource, SecurityContext, Volume, VolumeMount,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::Resource;

/// The user of every container: none of the node's.
const USER: i64 = 65_532;
/// Where the task's folder is mounted.
pub const ROOT: &str = "/consilium";
/// Where the task's credential is mounted, in courier containers alone.
pub const CREDENTIAL: &str = "/var/run/consilium";
/// The courier in the agent's image, whose entrypoint is the agent.
const COURIER: &str = "/usr/local/bin/consilium-courier";

/// Labels by which objects of this agent are found.
pub type Labels = BTreeMap<String, String>;

/// Builds labels.
pub fn labels(pairs: &[(&str, &str)]) -> Labels {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

/// Pod Security `restricted`, and a file system that cannot be written to.
pub fn restricted() -> SecurityContext {
    SecurityContext {
        allow_privilege_escalation: Some(false),
        capabilities: Some(Capabilities { drop: Some(vec!["ALL".into()]), add: None }),
        read_only_root_filesystem: Some(true),
        ..Default::default()
    }
}

/// A pod with no token, no service links and no rights; the volume's group is that of the user.
pub fn restricted_pod() -> PodSpec {
    PodSpec {
        automount_service_account_token: Some(false),
        enable_service_links: Some(false),
        security_context: Some(PodSecurityContext {
            run_as_non_root: Some(true),
            run_as_user: Some(USER),
            run_as_group: Some(USER),
            fs_group: Some(USER),
            fs_group_change_policy: Some("OnRootMismatch".into()),
            seccomp_profile: Some(SeccompProfile { type_: "RuntimeDefault".into(), localhost_profile: None }),
            ..Default::default()
        }),
        ..Default::default()
    }
}

/// A container by an image that is pinned by digest; the tail of its log becomes its message when it fails.
pub fn container(name: &str, image: &str, resources: ResourceRequirements) -> Container {
    Container {
        name: name.into(),
        image: Some(image.into()),
        image_pull_policy: Some("IfNotPresent".into()),
        resources: Some(resources),
        security_context: Some(restricted()),
        termination_message_policy: Some("FallbackToLogsOnError".into()),
        ..Default::default()
    }
}

/// A courier's container: small, with the credential.
pub fn courier(image: &str, subcommand: &str, address: &str) -> Container {
    let args = [subcommand, "--root", ROOT, "--server", address, "--credential", CREDENTIAL];
    Container {
        command: Some(vec![COURIER.into()]),
        args: Some(args.map(String::from).to_vec()),
        volume_mounts: Some(vec![mount("credential", CREDENTIAL, true)]),
        ..container(subcommand, image, courier_resources())
    }
}

/// A container of the courier's image that holds no credential.
pub fn courier_alone(name: &str, image: &str, args: Vec<String>) -> Container {
    Container { command: Some(vec![COURIER.into()]), args: Some(args), ..container(name, image, courier_resources()) }
}

fn courier_resources() -> ResourceRequirements {
    requirements(&[("cpu", "20m"), ("memory", "32Mi")], &[("cpu", "1"), ("memory", "128Mi")])
}

/// Requests and limits.
pub fn requirements(requests: &[(&str, &str)], limits: &[(&str, &str)]) -> ResourceRequirements {
    let list = |pairs: &[(&str, &str)]| {
        Some(pairs.iter().map(|(name, value)| ((*name).to_owned(), Quantity((*value).to_owned()))).collect())
    };
    ResourceRequirements { requests: list(requests), limits: list(limits), claims: None }
}

/// A mount of a volume by its name.
pub fn mount(volume: &str, path: &str, read_only: bool) -> VolumeMount {
    VolumeMount {
        name: volume.into(),
        mount_path: path.into(),
        read_only: read_only.then_some(true),
        ..Default::default()
    }
}

/// A claim as a volume.
pub fn claim(name: &str, claim: &str, read_only: bool) -> Volume {
    let source = PersistentVolumeClaimVolumeSource { claim_name: claim.into(), read_only: read_only.then_some(true) };
    Volume { name: name.into(), persistent_volume_claim: Some(source), ..Default::default() }
}

/// A Secret as a volume, readable by the pod's group.
pub fn secret(name: &str, secret: &str) -> Volume {
    let source =
        SecretVolumeSource { secret_name: Some(secret.into()), default_mode: Some(0o440), ..Default::default() };
    Volume { name: name.into(), secret: Some(source), ..Default::default() }
}

/// An empty folder; in memory if `medium` says so.
pub fn empty(name: &str, medium: Option<&str>, limit: Option<&str>) -> Volume {
    let source =
        EmptyDirVolumeSource { medium: medium.map(String::from), size_limit: limit.map(|l| Quantity(l.to_owned())) };
    Volume { name: name.into(), empty_dir: Some(source), ..Default::default() }
}

/// The owner by whose deletion an object goes too. Nothing blocks the owner's deletion.
pub fn owned_by<K: Resource<DynamicType = ()>>(name: &str, uid: &str) -> Vec<OwnerReference> {
    vec![OwnerReference {
        api_version: K::api_version(&()).into_owned(),
        kind: K::kind(&()).into_owned(),
        name: name.into(),
        uid: uid.into(),
        controller: Some(true),
        block_owner_deletion: None,
    }]
}
