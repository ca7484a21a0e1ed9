//! The Job and the credential of an Init task, and what a Job says of itself. Pure.

use std::collections::BTreeMap;

use consilium_crds::FederatedStudySpec;
use consilium_federation::{Digest, StudyKey};
use ed25519_dalek::SigningKey;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{ContainerStateTerminated, Pod, Secret};
use kube::ResourceExt;
use serde_json::{Value, json};

use super::decide::{Try, TryState};
use crate::controllers::context::{STUDY_LABEL, Settings};

/// Label on Init Jobs and their pods: what the caches hold.
pub const INIT_LABEL: &str = "consilium.health/init";
/// Label with the study's UID.
pub const UID_LABEL: &str = "consilium.health/study-uid";
const TRY_LABEL: &str = "consilium.health/try";
const DIGEST_ANNOTATION: &str = "consilium.health/spec-digest";
const STUDY_ANNOTATION: &str = "consilium.health/study";
/// Name of the container that runs the study's image.
pub const TRAINER: &str = "trainer";

/// Which study's first model a Job makes.
#[derive(Clone, Debug, PartialEq)]
pub struct Owner {
    /// The study.
    pub study: StudyKey,
    /// Its UID.
    pub uid: String,
    /// The spec that the model is made for.
    pub spec: Digest,
}

/// The Job of one try.
///
/// # Errors
/// Never for a spec that the API server accepted; the text says what does not fit.
pub fn job(owner: &Owner, spec: &FederatedStudySpec, number: u32, settings: &Settings) -> Result<Job, String> {
    let name = format!("init-{}-{}-{number}", owner.uid, &owner.spec.hex()[..8]);
    let labels = json!({
        "app.kubernetes.io/name": "consilium-task",
        "app.kubernetes.io/managed-by": "consilium-operator",
        INIT_LABEL: "true",
        UID_LABEL: owner.uid,
        TRY_LABEL: number.to_string(),
    });
    let value = json!({
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": name,
            "namespace": settings.task_namespace,
            "labels": labels,
            "annotations": {STUDY_ANNOTATION: owner.study.to_string(), DIGEST_ANNOTATION: owner.spec.to_string()},
        },
        "spec": {
            "backoffLimit": 0,
            "completions": 1,
            "activeDeadlineSeconds": 1800,
            "podFailurePolicy": {"rules": [
                {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget"}]},
                {"action": "FailJob", "onExitCodes": {"containerName": TRAINER, "operator": "In", "values": [42]}},
            ]},
            "template": {
                "metadata": {"labels": labels},
                "spec": pod(&name, spec, settings),
            },
        },
    });
    serde_json::from_value(value).map_err(|e| format!("the Init Job does not fit the API: {e}"))
}

fn pod(secret: &str, spec: &FederatedStudySpec, settings: &Settings) -> Value {
    let resources = json!({"requests": {"cpu": "250m", "memory": "256Mi"}, "limits": {"cpu": "2", "memory": "4Gi"}});
    let small = json!({"requests": {"cpu": "10m", "memory": "32Mi"}, "limits": {"memory": "256Mi"}});
    let locked = json!({
        "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "capabilities": {"drop": ["ALL"]}
    });
    let work = json!({"name": "work", "mountPath": "/consilium"});
    let tmp = json!({"name": "tmp", "mountPath": "/tmp"});
    let courier = |step: &str| {
        json!({
            "name": step,
            "image": settings.courier_image,
            "command": ["/usr/local/bin/consilium-courier"],
            "args": [step, "--root", "/consilium", "--server", settings.task_address, "--credential", "/var/run/consilium"],
            "resources": small,
            "securityContext": locked,
            "volumeMounts": [work, tmp, {"name": "credential", "mountPath": "/var/run/consilium", "readOnly": true}],
        })
    };
    json!({
        "restartPolicy": "Never",
        "automountServiceAccountToken": false,
        "enableServiceLinks": false,
        "terminationGracePeriodSeconds": 60,
        "securityContext": {
            "runAsNonRoot": true, "runAsUser": 65532, "runAsGroup": 65532, "fsGroup": 65532,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "initContainers": [courier("fetch")],
        "containers": [
            {
                "name": TRAINER,
                "image": spec.trainer.image,
                "args": ["run", "--root", "/consilium"],
                "env": [{"name": "OMP_NUM_THREADS", "value": "2"}],
                "resources": resources,
                "securityContext": locked,
                "terminationMessagePolicy": "FallbackToLogsOnError",
                "volumeMounts": [work, tmp, {"name": "shm", "mountPath": "/dev/shm"}],
            },
            courier("deliver"),
        ],
        "volumes": [
            {"name": "work", "emptyDir": {}},
            {"name": "tmp", "emptyDir": {}},
            {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "256Mi"}},
            {"name": "credential", "secret": {"secretName": secret, "defaultMode": 288}},
        ],
    })
}

/// The credential of a Job's pod; it goes with the Job.
pub fn credential(job: &Job, token: &str, certificate: &str) -> Secret {
    let text = |value: &str| value.to_owned();
    let mut secret = Secret {
        string_data: Some(BTreeMap::from([(text("token"), text(token)), (text("ca.crt"), text(certificate))])),
        immutable: Some(true),
        ..Secret::default()
    };
    secret.metadata.name = job.metadata.name.clone();
    secret.metadata.namespace = job.metadata.namespace.clone();
    secret.metadata.labels = job.metadata.labels.clone();
    let owner = k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference {
        api_version: "batch/v1".into(),
        kind: "Job".into(),
        name: job.name_any(),
        uid: job.uid().unwrap_or_default(),
        controller: Some(true),
        block_owner_deletion: None,
    };
    secret.metadata.owner_references = Some(vec![owner]);
    secret
}

/// The token of a Job's pod, from the hub's key and the Job's UID (RFC 5869): a restarted hub knows it again, and
/// nobody else can make it.
pub fn token(key: &SigningKey, job_uid: &str) -> String {
    let seed = key.to_bytes();
    let derive = hkdf::Hkdf::<sha2::Sha256>::new(Some(b"consilium/init-token/v1"), &seed);
    let mut bytes = [0; 32];
    // Safety: 32 bytes are far below the bound of 255 hash lengths, the only way that this can fail.
    #[allow(clippy::expect_used)]
    derive.expand(job_uid.as_bytes(), &mut bytes).expect("32 bytes can be derived");
    hex::encode(bytes)
}

/// Whose model a Job makes; `None` for a Job that the operator did not make.
pub fn owner(job: &Job) -> Option<Owner> {
    Some(Owner {
        study: job.annotations().get(STUDY_ANNOTATION)?.parse().ok()?,
        uid: job.labels().get(UID_LABEL)?.clone(),
        spec: job.annotations().get(DIGEST_ANNOTATION)?.parse().ok()?,
    })
}

/// The number of a Job's try.
pub fn number(job: &Job) -> u32 {
    job.labels().get(TRY_LABEL).and_then(|n| n.parse().ok()).unwrap_or(0)
}

/// What a Job and its pod say of a try.
pub fn read(job: &Job, pod: Option<&Pod>) -> Try {
    let conditions = job.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or(&[]);
    let holds = |type_: &str| conditions.iter().find(|c| c.type_ == type_ && c.status == "True");
    let state = if holds("Complete").is_some() {
        TryState::Succeeded
    } else if let Some(failed) = holds("Failed") {
        let said = pod.and_then(ended).filter(|t| t.exit_code != 0);
        let message = said.and_then(|t| t.message.clone()).filter(|m| !m.trim().is_empty());
        let invalid = failed.reason.as_deref() == Some("PodFailurePolicy") || said.is_some_and(|t| t.exit_code == 42);
        let message = message.or_else(|| failed.message.clone()).unwrap_or_else(|| "no message".into());
        TryState::Failed { invalid, message: last_line(&message) }
    } else {
        TryState::Active
    };
    Try { number: number(job), job: job.name_any(), state }
}

/// The end of a log says what went wrong; the lines before it say what went right.
fn last_line(text: &str) -> String {
    let line = text.lines().rev().find(|l| !l.trim().is_empty()).unwrap_or("");
    line.trim().chars().take(400).collect()
}

/// How the trainer's container ended, if it has.
pub fn ended(pod: &Pod) -> Option<&ContainerStateTerminated> {
    let statuses = pod.status.as_ref()?.container_statuses.as_ref()?;
    statuses.iter().find(|c| c.name == TRAINER)?.state.as_ref()?.terminated.as_ref()
}

/// Whether a pod belongs to a Job.
pub fn is_of(pod: &Pod, job: &Job) -> bool {
    let uid = job.uid();
    uid.is_some() && pod.owner_references().iter().any(|o| Some(&o.uid) == uid.as_ref())
}

/// The label that names the study on what the operator makes for it.
pub fn study_label(name: &str) -> BTreeMap<String, String> {
    BTreeMap::from([(STUDY_LABEL.to_owned(), name.to_owned())])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controllers::testing::study_spec;

    fn settings() -> Settings {
        Settings {
            namespace: "default".into(),
            task_namespace: "consilium-hub-tasks".into(),
            task_address: "https://10.96.0.50:8444".into(),
            courier_image: "registry/agent@sha256:0".into(),
            task_certificate: "PEM".into(),
            unnamed_for: std::time::Duration::ZERO,
        }
    }

    fn made() -> Job {
        let owner = Owner {
            study: StudyKey::new("research", "hippocampus"),
            uid: "7f6f2c53-0e8b-4d9d-9a68-0d4c1d1f2a10".into(),
            spec: Digest::of(b"spec"),
        };
        let mut job = job(&owner, &study_spec(), 2, &settings()).unwrap();
        job.metadata.uid = Some("job-uid".into());
        assert_eq!(super::owner(&job), Some(owner));
        job
    }

    fn with_condition(type_: &str, reason: &str) -> Job {
        let mut job = made();
        let status = json!({"conditions": [{"type": type_, "status": "True", "reason": reason, "message": "m"}]});
        job.status = Some(serde_json::from_value(status).unwrap());
        job
    }

    fn pod(exit: i32, message: &str) -> Pod {
        serde_json::from_value(json!({"metadata": {"ownerReferences": [{"apiVersion": "batch/v1", "kind": "Job",
            "name": "j", "uid": "job-uid"}]}, "status": {"containerStatuses": [{"name": "trainer", "ready": false,
            "image": "i", "imageID": "i", "restartCount": 0,
            "state": {"terminated": {"exitCode": exit, "message": message}}}]}}))
        .unwrap()
    }

    /// A study's image that could read the credential could deliver a model in the task's name.
    #[test]
    fn the_study_image_gets_neither_credential_nor_api_token_nor_privileges() {
        let job = made();
        assert!(job.name_any().len() <= 63, "{}", job.name_any());
        let spec = job.spec.unwrap().template.spec.unwrap();
        assert_eq!(spec.automount_service_account_token, Some(false));
        let trainer = spec.containers.iter().find(|c| c.name == TRAINER).unwrap();
        assert!(trainer.volume_mounts.iter().flatten().all(|m| m.name != "credential"));
        let all = spec.containers.iter().chain(spec.init_containers.iter().flatten());
        for container in all {
            let context = container.security_context.as_ref().unwrap();
            assert_eq!(context.read_only_root_filesystem, Some(true), "{}", container.name);
            assert_eq!(context.capabilities.as_ref().unwrap().drop, Some(vec!["ALL".to_owned()]));
        }
    }

    #[test]
    fn a_token_belongs_to_one_job_and_one_hub_key() {
        let (a, b) = (SigningKey::from_bytes(&[1; 32]), SigningKey::from_bytes(&[2; 32]));
        assert_eq!(token(&a, "x"), token(&a, "x"));
        assert_eq!(token(&a, "x").len(), 64);
        assert_ne!(token(&a, "x"), token(&a, "y"));
        assert_ne!(token(&a, "x"), token(&b, "x"));
    }

    #[test]
    fn the_credential_goes_with_its_job() {
        let secret = credential(&made(), "t", "PEM");
        let owner = &secret.metadata.owner_references.unwrap()[0];
        assert_eq!((owner.uid.as_str(), owner.block_owner_deletion), ("job-uid", None));
    }

    #[test]
    fn what_the_job_and_its_pod_say() {
        let failed = |invalid, message: &str| TryState::Failed { invalid, message: message.into() };
        for (job, pod, expected) in [
            (made(), None, TryState::Active),
            (with_condition("Complete", "x"), None, TryState::Succeeded),
            (
                with_condition("Failed", "BackoffLimitExceeded"),
                Some(pod(1, "a\nno space\n")),
                failed(false, "no space"),
            ),
            (with_condition("Failed", "PodFailurePolicy"), Some(pod(42, "width is 0")), failed(true, "width is 0")),
            (with_condition("Failed", "PodFailurePolicy"), None, failed(true, "m")),
            // The trainer was well; something else failed.
            (with_condition("Failed", "DeadlineExceeded"), Some(pod(0, "")), failed(false, "m")),
        ] {
            assert!(pod.as_ref().is_none_or(|p| is_of(p, &job)));
            assert_eq!(read(&job, pod.as_ref()), Try { number: 2, job: job.name_any(), state: expected });
        }
    }
}
