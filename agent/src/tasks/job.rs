//! One try of a task as a Job: pure, from the approved spec and the hospital's policy.
//!
//! The trainer sees the task's folder and its own claim, read-only, and nothing else:
//! no credential, no token, and of an Evaluate task no labels. The evaluator (the
//! platform's image) sees the labels; it reads predictions from the task's folder and
//! writes into one of its own, from which alone `deliver` takes a score. Only `fetch`
//! and `deliver` can speak with the agent.

use std::collections::BTreeMap;

use consilium_crds::RoundTask;
use consilium_crds::site_policy::{Hardware, SitePolicySpec, StudyOptIn};
use consilium_crds::study::Trainer;
use consilium_crds::values::{compute_capability, mebibytes};
use consilium_federation::digest::Digest;
use consilium_federation::task::{EXIT_INVALID, TaskKind};
use k8s_openapi::ByteString;
use k8s_openapi::api::batch::v1::{
    Job, JobSpec, PodFailurePolicy, PodFailurePolicyOnExitCodesRequirement, PodFailurePolicyOnPodConditionsPattern,
    PodFailurePolicyRule,
};
use k8s_openapi::api::core::v1::{
    Affinity, Container, EnvVar, NodeAffinity, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, PodSpec,
    PodTemplateSpec, Secret, Toleration, Volume, VolumeMount,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::api::ObjectMeta;

use super::pod::{self, Labels, ROOT, labels, mount};

/// Label with the task's name, on its Jobs and pods.
pub const TASK_LABEL: &str = "consilium.health/task";
/// Label with the number of the try.
pub const TRY_LABEL: &str = "consilium.health/try";
/// Label with the mode of the try.
pub const MODE_LABEL: &str = "consilium.health/mode";
/// Name of the container that runs the study's image.
pub const TRAINER: &str = "trainer";
/// Name of the container that scores predictions.
pub const EVALUATOR: &str = "evaluator";
/// Name of the container that brings the task's files.
pub const FETCH: &str = "fetch";
/// Name of the container that hands the result over.
pub const DELIVER: &str = "deliver";
/// Where the folder of the platform's own part in an evaluation is mounted. The study's image has no mount of it.
const RESULTS: &str = "/results";
/// Where the evaluator leaves the scores of each case for the hospital.
const SCORES: &str = "/scores";
/// Most that a study's image may write to `/tmp`, which is on the node's disk, and with its log on top of it.
const SCRATCH: [&str; 2] = ["10Gi", "11Gi"];
/// Likewise for the platform's own containers.
const SMALL_SCRATCH: [&str; 2] = ["1Gi", "2Gi"];
/// Room for a checkpoint when a pod is ended.
const GRACE_SECONDS: i64 = 60;

/// What a try does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Fetch, train or predict, deliver.
    Full,
    /// Only deliver the result that lies on the volume.
    Deliver,
}

impl Mode {
    /// As it stands in the label.
    pub const fn as_str(self) -> &'static str {
        match self {
            Mode::Full => "full",
            Mode::Deliver => "deliver",
        }
    }
}

/// Everything that one try's Job is made of.
#[derive(Clone, Debug)]
pub struct JobPlan<'a> {
    /// Name of the RoundTask.
    pub task: &'a str,
    /// Its UID.
    pub task_uid: &'a str,
    /// Its namespace.
    pub namespace: &'a str,
    /// From 1.
    pub number: u32,
    /// What the try does.
    pub mode: Mode,
    /// Train or Evaluate.
    pub kind: TaskKind,
    /// The study's trainer.
    pub trainer: &'a Trainer,
    /// What the hospital allows.
    pub policy: &'a SitePolicySpec,
    /// The hospital's word on the study: which claims.
    pub opt_in: &'a StudyOptIn,
    /// Seconds until the task's time is over, at least 1.
    pub seconds_left: i64,
    /// The task port.
    pub address: &'a str,
    /// Image of the courier.
    pub courier_image: &'a str,
    /// The platform's trainer image.
    pub evaluator_image: &'a str,
}

/// Name of a try's Job and Secret: `<task>-<number>`, shortened with a digest where that is longer than a label.
pub fn try_name(task: &str, number: u32) -> String {
    let name = format!("{task}-{number}");
    if name.len() <= 63 {
        return name;
    }
    let tail = format!("-{}-{number}", &Digest::of(task.as_bytes()).hex()[..6]);
    format!("{}{tail}", &task[..63 - tail.len()])
}

/// The Job of one try.
pub fn build(plan: &JobPlan<'_>) -> Job {
    let metadata = metadata(plan);
    let spec = JobSpec {
        backoff_limit: Some(0),
        completions: Some(1),
        parallelism: Some(1),
        active_deadline_seconds: Some(plan.seconds_left.max(1)),
        pod_failure_policy: Some(failure_policy(plan.mode)),
        template: PodTemplateSpec {
            metadata: Some(ObjectMeta { labels: metadata.labels.clone(), ..Default::default() }),
            spec: Some(pod_spec(plan)),
        },
        ..Default::default()
    };
    let mut job = Job { metadata, spec: Some(spec), status: None };
    if let Some(queue) = &plan.policy.queue_name {
        let labels = job.metadata.labels.get_or_insert_default();
        labels.insert("kueue.x-k8s.io/queue-name".into(), queue.clone());
    }
    job
}

/// The Secret of one try: the bearer token and the certificate of the task port.
pub fn credential(plan: &JobPlan<'_>, token: &str, certificate: &str) -> Secret {
    Secret { metadata: metadata(plan), ..credential_data(token, certificate) }
}

/// The content of a credential.
pub fn credential_data(token: &str, certificate: &str) -> Secret {
    let data = [("token", token), ("ca.crt", certificate)];
    let data: BTreeMap<String, ByteString> =
        data.into_iter().map(|(name, text)| (name.to_owned(), ByteString(text.as_bytes().to_vec()))).collect();
    Secret { data: Some(data), type_: Some("Opaque".into()), immutable: Some(true), ..Default::default() }
}

fn metadata(plan: &JobPlan<'_>) -> ObjectMeta {
    let number = plan.number.to_string();
    let labels: Labels = labels(&[
        ("app.kubernetes.io/name", "consilium-task"),
        ("app.kubernetes.io/managed-by", "consilium-agent"),
        (TASK_LABEL, plan.task),
        (TRY_LABEL, &number),
        (MODE_LABEL, plan.mode.as_str()),
    ]);
    ObjectMeta {
        name: Some(try_name(plan.task, plan.number)),
        namespace: Some(plan.namespace.into()),
        labels: Some(labels),
        owner_references: Some(pod::owned_by::<RoundTask>(plan.task, plan.task_uid)),
        ..Default::default()
    }
}

/// A disruption replaces the pod within the try; bad data or config ends it at once. Everything else the agent decides.
fn failure_policy(mode: Mode) -> PodFailurePolicy {
    let disruption = PodFailurePolicyOnPodConditionsPattern { type_: "DisruptionTarget".into(), status: "True".into() };
    let mut rules = vec![PodFailurePolicyRule {
        action: "Ignore".into(),
        on_pod_conditions: Some(vec![disruption]),
        on_exit_codes: None,
    }];
    if mode == Mode::Full {
        let invalid = PodFailurePolicyOnExitCodesRequirement {
            container_name: Some(TRAINER.into()),
            operator: "In".into(),
            values: vec![EXIT_INVALID],
        };
        rules.push(PodFailurePolicyRule {
            action: "FailJob".into(),
            on_exit_codes: Some(invalid),
            on_pod_conditions: None,
        });
    }
    PodFailurePolicy { rules }
}

fn pod_spec(plan: &JobPlan<'_>) -> PodSpec {
    let full = plan.mode == Mode::Full;
    let evaluate = full && plan.kind == TaskKind::Evaluate;
    let mut containers = Vec::new();
    if full {
        containers.push(trainer(plan));
    }
    if evaluate {
        containers.push(evaluator(plan));
    }
    containers.push(courier(plan, DELIVER));
    let fetch = full.then(|| vec![courier(plan, FETCH)]);
    PodSpec {
        restart_policy: Some("Never".into()),
        termination_grace_period_seconds: Some(GRACE_SECONDS),
        init_containers: fetch,
        containers,
        volumes: Some(volumes(plan)),
        affinity: (full && plan.trainer.gpus > 0).then(|| affinity(plan)),
        tolerations: (full && plan.trainer.gpus > 0).then(gpu_toleration),
        ..pod::restricted_pod()
    }
}

fn courier(plan: &JobPlan<'_>, subcommand: &str) -> Container {
    let mut container = pod::courier(plan.courier_image, subcommand, plan.address);
    if plan.kind == TaskKind::Evaluate {
        container.args.get_or_insert_default().extend(["--results", RESULTS].map(String::from));
        container.volume_mounts.get_or_insert_default().insert(0, results(plan));
    }
    capped(with_work(plan, container, false), SMALL_SCRATCH[0])
}

fn trainer(plan: &JobPlan<'_>) -> Container {
    let (cpu, memory) = (plan.policy.resources.cpu.as_str(), plan.policy.resources.memory.as_str());
    let gpus = plan.trainer.gpus.to_string();
    let mut amounts = vec![("cpu", cpu), ("memory", memory)];
    if plan.trainer.gpus > 0 {
        amounts.push(("nvidia.com/gpu", gpus.as_str()));
    }
    let args = ["run", "--root", ROOT, "--data", "/data"];
    let container = Container {
        args: Some(args.map(String::from).to_vec()),
        env: Some(vec![env("OMP_NUM_THREADS", &whole_cpus(cpu).to_string()), env("HOME", "/tmp")]),
        volume_mounts: Some(vec![
            mount("data", "/data", true),
            mount("shm", "/dev/shm", false),
            mount("tmp", "/tmp", false),
        ]),
        ..pod::container(TRAINER, &plan.trainer.image, pod::requirements(&amounts, &amounts))
    };
    capped(with_work(plan, container, false), SCRATCH[1])
}

/// Waits beside the trainer, so it asks for little and may use as much.
fn evaluator(plan: &JobPlan<'_>) -> Container {
    let (cpu, memory) = (plan.policy.resources.cpu.as_str(), plan.policy.resources.memory.as_str());
    let resources = pod::requirements(&[("cpu", "20m"), ("memory", "64Mi")], &[("cpu", cpu), ("memory", memory)]);
    let details = format!("{SCORES}/{}.json", plan.task);
    let args = ["score", "--root", ROOT, "--results", RESULTS, "--labels", "/labels", "--details", &details, "--wait"];
    let scores = VolumeMount { sub_path: Some("scores".into()), ..mount("work", SCORES, false) };
    let mounts = vec![results(plan), scores, mount("labels", "/labels", true), mount("evaluator-tmp", "/tmp", false)];
    let container = Container {
        args: Some(args.map(String::from).to_vec()),
        env: Some(vec![env("OMP_NUM_THREADS", &whole_cpus(cpu).to_string()), env("HOME", "/tmp")]),
        volume_mounts: Some(mounts),
        ..pod::container(EVALUATOR, plan.evaluator_image, resources)
    };
    capped(with_work(plan, container, true), SMALL_SCRATCH[1])
}

/// The folders of a task on the work claim: its own, and that of the platform's part in an evaluation.
pub fn folders(task_uid: &str) -> [String; 2] {
    [task_uid.to_owned(), format!("{task_uid}-results")]
}

fn results(plan: &JobPlan<'_>) -> VolumeMount {
    let [_, folder] = folders(plan.task_uid);
    VolumeMount { sub_path: Some(folder), ..mount("work", RESULTS, false) }
}

/// Mounts the task's own folder of the work claim, which outlives the pod.
fn with_work(plan: &JobPlan<'_>, mut container: Container, read_only: bool) -> Container {
    let [folder, _] = folders(plan.task_uid);
    let work = VolumeMount { sub_path: Some(folder), ..mount("work", ROOT, read_only) };
    container.volume_mounts.get_or_insert_default().insert(0, work);
    container
}

/// Bounds what a container writes to the node's disk. It asks for nothing: this is a bound and no need.
fn capped(mut container: Container, most: &str) -> Container {
    let resources = container.resources.get_or_insert_default();
    for (amounts, amount) in [(&mut resources.limits, most), (&mut resources.requests, "0")] {
        amounts.get_or_insert_default().insert("ephemeral-storage".into(), Quantity(amount.into()));
    }
    container
}

fn volumes(plan: &JobPlan<'_>) -> Vec<Volume> {
    let data = &plan.opt_in.dataset;
    let mut volumes = vec![
        pod::claim("work", &plan.policy.resources.work_claim, false),
        pod::secret("credential", &try_name(plan.task, plan.number)),
    ];
    if plan.mode == Mode::Deliver {
        return volumes;
    }
    // What lies in memory counts against the container's limit too; this only says so before the kernel does.
    volumes.push(pod::empty("shm", Some("Memory"), Some(&plan.policy.resources.memory)));
    volumes.push(pod::empty("tmp", None, Some(SCRATCH[0])));
    if plan.kind == TaskKind::Evaluate {
        // The study's image must not lay anything before the evaluator.
        volumes.push(pod::empty("evaluator-tmp", None, Some(SMALL_SCRATCH[0])));
        volumes.push(pod::claim("data", &data.evaluate_claim, true));
        volumes.push(pod::claim("labels", &data.labels_claim, true));
    } else {
        volumes.push(pod::claim("data", &data.train_claim, true));
    }
    volumes
}

fn env(name: &str, value: &str) -> EnvVar {
    EnvVar { name: name.into(), value: Some(value.into()), value_from: None }
}

/// Threads for a CPU quantity: rounded up, at least 1.
fn whole_cpus(quantity: &str) -> u32 {
    let cpus = match quantity.strip_suffix('m') {
        Some(milli) => milli.parse::<f64>().map(|m| m / 1000.0),
        None => quantity.parse(),
    };
    cpus.map_or(1, |cpus| cpus.ceil().max(1.0) as u32)
}

/// The hospital's accelerators that meet what the study asks for, by product.
pub fn compatible_products(trainer: &Trainer, hardware: &[Hardware]) -> Vec<String> {
    let memory = |text: &str| mebibytes("memory", text).ok();
    let capability = |text: &str| compute_capability("computeCapability", text).ok();
    let enough = |h: &&Hardware| {
        let wanted = (
            trainer.min_gpu_memory.as_deref().and_then(memory),
            trainer.min_compute_capability.as_deref().and_then(capability),
        );
        let memory_fits = wanted.0.is_none_or(|least| memory(&h.memory) >= Some(least));
        let capability_fits = wanted.1.is_none_or(|least| capability(&h.compute_capability) >= Some(least));
        memory_fits && capability_fits && h.count >= trainer.gpus
    };
    hardware.iter().filter(enough).map(|h| h.product.clone()).collect()
}

/// Nodes with one of the products, by the labels of GPU feature discovery.
fn affinity(plan: &JobPlan<'_>) -> Affinity {
    let product = NodeSelectorRequirement {
        key: "nvidia.com/gpu.product".into(),
        operator: "In".into(),
        values: Some(compatible_products(plan.trainer, &plan.policy.hardware)),
    };
    let term = NodeSelectorTerm { match_expressions: Some(vec![product]), match_fields: None };
    let node_affinity = NodeAffinity {
        required_during_scheduling_ignored_during_execution: Some(NodeSelector { node_selector_terms: vec![term] }),
        ..Default::default()
    };
    Affinity { node_affinity: Some(node_affinity), ..Default::default() }
}

/// The taint that GPU nodes usually have.
pub(crate) fn gpu_toleration() -> Vec<Toleration> {
    vec![Toleration {
        key: Some("nvidia.com/gpu".into()),
        operator: Some("Exists".into()),
        effect: Some("NoSchedule".into()),
        ..Default::default()
    }]
}

#[cfg(test)]
#[path = "job_tests.rs"]
mod tests;
