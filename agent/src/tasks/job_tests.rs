use consilium_crds::site_policy::{
    AggregationPolicy, Dataset, Participation, ReleasePolicy, StudyApproval, TaskResources,
};
use serde_json::{Value, json};

use super::*;

fn policy() -> SitePolicySpec {
    let opt_in = StudyOptIn {
        study: "research/hippocampus".parse().unwrap(),
        uid: "study-uid".into(),
        spec_digest: Digest::of(b"spec"),
        earlier: vec![],
        approval: StudyApproval::Automatic,
        approved_through_round: None,
        dataset: Dataset {
            train_claim: "hippocampus-train".into(),
            evaluate_claim: "hippocampus-eval".into(),
            labels_claim: "hippocampus-labels".into(),
        },
        publish_metrics: false,
        weight_bucket: 10,
        resume_after_round: None,
    };
    let v100 = |memory: &str, product: &str| Hardware {
        product: product.into(),
        compute_capability: "7.0".into(),
        memory: memory.into(),
        count: 16,
    };
    SitePolicySpec {
        participation: Participation::Enabled,
        suspend: None,
        audit: None,
        retention: None,
        limits: None,
        hardware: vec![v100("16Gi", "Tesla-V100-SXM2-16GB"), v100("32Gi", "Tesla-V100-SXM3-32GB")],
        max_gpus: 8,
        registries: vec!["registry.example/".into()],
        image_digests: vec![],
        queue_name: None,
        resources: TaskResources { cpu: "1500m".into(), memory: "4Gi".into(), work_claim: "work".into() },
        studies: vec![opt_in],
        aggregation: AggregationPolicy {
            min_contributors: 3,
            colluders: 1,
            survivor_difference: None,
            allow_plaintext_updates: true,
        },
        governance: None,
        releases: ReleasePolicy::default(),
    }
}

fn trainer() -> Trainer {
    Trainer {
        image: format!("registry.example/trainer@{}", Digest::of(b"image")),
        gpus: 8,
        min_gpu_memory: Some("32Gi".into()),
        min_compute_capability: Some("7.0".into()),
        config: serde_json::Map::new(),
    }
}

fn job(kind: TaskKind, mode: Mode, edit: impl FnOnce(&mut SitePolicySpec, &mut Trainer)) -> Value {
    let (mut policy, mut trainer) = (policy(), trainer());
    edit(&mut policy, &mut trainer);
    let plan = JobPlan {
        task: "hippocampus-r3-train",
        task_uid: "task-uid",
        namespace: "consilium-tasks",
        number: 2,
        mode,
        kind,
        trainer: &trainer,
        policy: &policy,
        opt_in: &policy.studies[0],
        seconds_left: 3600,
        address: "https://10.96.0.50:8444",
        courier_image: "registry.example/agent@sha256:courier",
        evaluator_image: "registry.example/evaluator@sha256:evaluator",
    };
    serde_json::to_value(build(&plan)).unwrap()
}

fn unchanged(_: &mut SitePolicySpec, _: &mut Trainer) {}

fn containers(job: &Value) -> Vec<Value> {
    let pod = &job["spec"]["template"]["spec"];
    let list = |key: &str| pod[key].as_array().cloned().unwrap_or_default();
    [list("initContainers"), list("containers")].concat()
}

fn volume_of(job: &Value, container: &str, path: &str) -> Option<Value> {
    let container = containers(job).into_iter().find(|c| c["name"] == container)?;
    let mount = container["volumeMounts"].as_array()?.iter().find(|m| m["mountPath"] == path)?.clone();
    let volumes = job["spec"]["template"]["spec"]["volumes"].as_array()?;
    volumes.iter().find(|v| v["name"] == mount["name"]).cloned()
}

/// The whole Job, so that a change of what runs in a hospital is seen in review.
#[test]
fn train_snapshot() {
    insta::assert_json_snapshot!(job(TaskKind::Train, Mode::Full, unchanged));
}

#[test]
fn evaluate_snapshot() {
    insta::assert_json_snapshot!(job(TaskKind::Evaluate, Mode::Full, unchanged));
}

#[test]
fn deliver_only_snapshot() {
    insta::assert_json_snapshot!(job(TaskKind::Train, Mode::Deliver, unchanged));
}

/// Pod Security admission `restricted` would reject anything else, and a hospital relies on it.
#[test]
fn every_container_is_restricted_and_has_no_token() {
    for (kind, mode) in
        [(TaskKind::Train, Mode::Full), (TaskKind::Evaluate, Mode::Full), (TaskKind::Train, Mode::Deliver)]
    {
        let job = job(kind, mode, unchanged);
        let pod = &job["spec"]["template"]["spec"];
        assert_eq!(pod["automountServiceAccountToken"], false);
        assert_eq!(pod["enableServiceLinks"], false);
        assert_eq!(pod["securityContext"]["runAsNonRoot"], true);
        assert_eq!(pod["securityContext"]["seccompProfile"]["type"], "RuntimeDefault");
        for container in containers(&job) {
            let security = &container["securityContext"];
            assert_eq!(security["allowPrivilegeEscalation"], false, "{container}");
            assert_eq!(security["capabilities"]["drop"], json!(["ALL"]));
            assert_eq!(security["readOnlyRootFilesystem"], true);
            assert!(container["resources"]["limits"]["memory"].is_string());
        }
    }
}

/// The study's image must never see the labels that it is scored against, nor any image but the courier the credential.
#[test]
fn labels_and_credential_are_kept_from_the_study() {
    for kind in [TaskKind::Train, TaskKind::Evaluate] {
        let job = job(kind, Mode::Full, unchanged);
        for container in containers(&job) {
            let name = container["name"].as_str().unwrap();
            let mounts: Vec<_> =
                container["volumeMounts"].as_array().unwrap().iter().map(|m| m["name"].as_str().unwrap()).collect();
            assert_eq!(mounts.contains(&"credential"), matches!(name, "fetch" | "deliver"), "{name}");
            assert_eq!(mounts.contains(&"labels"), name == EVALUATOR, "{name}");
        }
    }
    let evaluate = job(TaskKind::Evaluate, Mode::Full, unchanged);
    let data = volume_of(&evaluate, TRAINER, "/data").unwrap();
    assert_eq!(data["persistentVolumeClaim"], json!({"claimName": "hippocampus-eval", "readOnly": true}));
    let labels = volume_of(&evaluate, EVALUATOR, "/labels").unwrap();
    assert_eq!(labels["persistentVolumeClaim"]["claimName"], "hippocampus-labels");
    let train = job(TaskKind::Train, Mode::Full, unchanged);
    assert_eq!(volume_of(&train, TRAINER, "/data").unwrap()["persistentVolumeClaim"]["claimName"], "hippocampus-train");
}

/// A study's image that could write its own score would pass its own gate and vote for its hospital.
#[test]
fn the_study_has_no_way_into_the_evaluators_folder() {
    for mode in [Mode::Full, Mode::Deliver] {
        let job = job(TaskKind::Evaluate, mode, unchanged);
        for container in containers(&job) {
            let name = container["name"].as_str().unwrap();
            let mounts = container["volumeMounts"].as_array().unwrap();
            let of = |sub_path: &str| mounts.iter().find(|m| m["subPath"] == sub_path);
            let results = of("task-uid-results");
            assert_eq!(results.is_some(), name != TRAINER, "{name}");
            let args = container["args"].to_string();
            assert_eq!(args.contains("\"--results\",\"/results\""), name != TRAINER, "{name}: {args}");
            // The evaluator reads beside a trainer that runs, and writes nothing there.
            assert_eq!(of("task-uid").unwrap()["readOnly"] == true, name == EVALUATOR, "{name}");
        }
        let shared = |name: &str| volume_of(&job, name, "/tmp").map(|v| v["name"].clone());
        assert!(mode == Mode::Deliver || shared(TRAINER) != shared(EVALUATOR), "what the study lays there is read");
    }
}

/// A study's image must not be able to fill the disk of a node that others work on.
#[test]
fn what_a_pod_writes_to_its_node_is_bounded() {
    for kind in [TaskKind::Train, TaskKind::Evaluate] {
        let job = job(kind, Mode::Full, unchanged);
        for container in containers(&job) {
            let resources = &container["resources"];
            assert!(resources["limits"]["ephemeral-storage"].is_string(), "{container}");
            assert_eq!(resources["requests"]["ephemeral-storage"], "0");
        }
        for volume in job["spec"]["template"]["spec"]["volumes"].as_array().unwrap() {
            assert!(volume["emptyDir"].is_null() || volume["emptyDir"]["sizeLimit"].is_string(), "{volume}");
        }
    }
}

/// A task that asks for 32 GiB must not land on a 16 GiB card; without GPUs any node will do.
#[test]
fn gpus_select_nodes_by_what_the_study_needs() {
    let job_with = job(TaskKind::Train, Mode::Full, unchanged);
    let pod = &job_with["spec"]["template"]["spec"];
    let affinity = pod["affinity"].to_string();
    assert!(affinity.contains("V100-SXM3-32GB") && !affinity.contains("16GB"), "{affinity}");
    let without = job(TaskKind::Train, Mode::Full, |_, trainer| trainer.gpus = 0);
    let pod = &without["spec"]["template"]["spec"];
    assert!(pod["affinity"].is_null() && pod["tolerations"].is_null());
    assert!(!without.to_string().contains("nvidia.com/gpu"));
}

#[test]
fn a_queue_of_the_policy_is_named_on_the_job_alone() {
    let job = job(TaskKind::Train, Mode::Full, |policy, _| policy.queue_name = Some("research".into()));
    assert_eq!(job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"], "research");
    assert!(job["spec"]["template"]["metadata"]["labels"].get("kueue.x-k8s.io/queue-name").is_none());
}

#[test]
fn names_fit_a_label_and_differ() {
    assert_eq!(try_name("hippocampus-r3-train", 2), "hippocampus-r3-train-2");
    let long = |tail: &str| try_name(&format!("{}{tail}", "x".repeat(60)), 12);
    assert!(long("-a").len() <= 63 && long("-a") != long("-b"));
}

#[test]
fn threads_follow_the_cpu_limit() {
    for (cpu, threads) in [("1500m", 2), ("2", 2), ("0.5", 1), ("100m", 1), ("48", 48)] {
        assert_eq!(whole_cpus(cpu), threads, "{cpu}");
    }
}
