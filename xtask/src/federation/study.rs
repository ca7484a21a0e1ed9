//! A study from `kubectl apply` to its last round, and what each hospital has to say for it to run there.

use std::{fs, path::Path};

use serde_json::{Value, json};

use super::{
    AGENT, Federation, RESEARCH, view,
    wait::{self, Answer},
};
use crate::{
    cluster::Cluster,
    error::{Error, IoContext, Result},
};

/// A study to run, on top of `examples/hippocampus/study.yaml`.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Its name in the namespace `research`.
    pub name: String,
    /// Hospitals by name.
    pub sites: Vec<String>,
    /// Rounds.
    pub rounds: u32,
    /// Width of the network.
    pub width: u32,
    /// Shape that volumes are brought to.
    pub shape: [u32; 3],
    /// Passes over the data in each round.
    pub epochs: u32,
    /// Scans in one step of the optimiser.
    pub batch_size: u32,
    /// Learning rate of the first round.
    pub learning_rate: String,
    /// Global and per-hospital floor of the gate.
    pub gate: (String, String),
    /// Longest time for training.
    pub deadline: String,
    /// How long stragglers are waited for.
    pub grace: String,
    /// GPUs asked for.
    pub gpus: u32,
}

/// The study as an object: the example, with the plan's numbers and this machine's trainer image.
pub fn object(plan: &Plan, image: &str) -> Result<Value> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/hippocampus/study.yaml");
    let text = fs::read_to_string(&path).at("read", &path)?;
    let mut study: Value = serde_yaml_ng::from_str(&text)
        .map_err(|error| Error::Malformed { path: path.clone(), problem: error.to_string() })?;
    study["metadata"]["name"] = json!(plan.name);
    study["metadata"]["namespace"] = json!(RESEARCH);
    let spec = &mut study["spec"];
    spec["sites"] = plan.sites.iter().map(|name| json!({"name": name})).collect();
    spec["trainer"]["image"] = json!(image);
    spec["trainer"]["gpus"] = json!(plan.gpus);
    let config = &mut spec["trainer"]["config"];
    config["network"]["width"] = json!(plan.width);
    config["shape"] = json!(plan.shape);
    config["epochsPerRound"] = json!(plan.epochs);
    config["batchSize"] = json!(plan.batch_size);
    config["learningRate"] = json!(plan.learning_rate);
    let rounds = &mut spec["rounds"];
    rounds["max"] = json!(plan.rounds);
    rounds["deadline"] = json!(plan.deadline);
    rounds["straggler"]["grace"] = json!(plan.grace);
    spec["gate"]["min"] = json!(plan.gate.0);
    spec["gate"]["perSiteMin"] = json!(plan.gate.1);
    spec["gate"]["minCases"] = json!(1);
    Ok(study)
}

/// Applies the study and waits until the hub has accepted it; returns it with its UID and spec digest.
pub fn apply(federation: &Federation, study: &Value) -> Result<Value> {
    federation.hub.apply(std::slice::from_ref(study))?;
    accepted(federation, study["metadata"]["name"].as_str().unwrap_or_default())
}

/// Waits until the hub has accepted the newest generation of a study.
pub fn accepted(federation: &Federation, name: &str) -> Result<Value> {
    wait::until(&federation.hub, &format!("study {name} accepted"), || {
        let study = wait::get(&federation.hub, RESEARCH, "federatedstudy", name)?;
        let seen = wait::condition(&study, "Accepted");
        let current = study["status"]["observedGeneration"] == study["metadata"]["generation"];
        let holds = current && seen.as_ref().is_some_and(|(status, ..)| status == "True");
        Ok(Answer::of(holds.then_some(study), format!("{seen:?}")))
    })
}

/// The entry by which a hospital opts in to a study as it stands.
pub fn opt_in(study: &Value) -> Value {
    json!({
        "study": format!("{RESEARCH}/{}", study["metadata"]["name"].as_str().unwrap_or_default()),
        "uid": study["metadata"]["uid"],
        "specDigest": study["status"]["specDigest"],
        "approval": "Automatic",
        "dataset": {"trainClaim": "train", "evaluateClaim": "evaluate", "labelsClaim": "labels"},
        "publishMetrics": true,
    })
}

/// Whose word counts in a hospital, for [`policy`]; nothing of it comes from the hub.
pub struct Pins {
    /// `spec.governance`: who signs rosters.
    pub governance: Value,
    /// `spec.releases.keys`, `[{id, role, publicKey}]`: who signs approvals of models.
    pub keys: Value,
}

/// A hospital's policy: it takes part in these studies with this trainer, and serves models in the shadow.
pub fn policy(federation: &Federation, studies: &[Value], pins: &Pins) -> Result<Value> {
    let trainer = federation.image("consilium-trainer")?;
    let registry = trainer.split('@').next().unwrap_or_default().to_owned();
    Ok(json!({
        "apiVersion": "consilium.health/v1alpha1", "kind": "SitePolicy",
        "metadata": {"name": "default", "namespace": AGENT},
        "spec": {
            "participation": "Enabled",
            "hardware": [{"product": "Tesla-V100-SXM3-32GB", "computeCapability": "7.0", "memory": "32Gi", "count": 16}],
            "maxGPUs": 16,
            "registries": [registry],
            "resources": {"cpu": "1", "memory": "4Gi", "workClaim": "work"},
            "studies": studies,
            "governance": pins.governance,
            "aggregation": {"minContributors": 3},
            "releases": {
                "keys": pins.keys,
                "require": [{"stage": "Shadow", "approvals": 1, "roles": ["clinical-safety-officer"]}],
                "maxStage": "Shadow",
            },
        },
    }))
}

/// Applies a policy in one hospital, as its administrator.
pub fn apply_policy(site: &Cluster, policy: &Value) -> Result<()> {
    site.apply(std::slice::from_ref(policy))
}

/// Waits until the study has succeeded; fails at once when it ends otherwise.
pub fn finished(federation: &Federation, name: &str) -> Result<Value> {
    wait::until(&federation.hub, &format!("study {name} finished"), || {
        let study = wait::get(&federation.hub, RESEARCH, "federatedstudy", name)?;
        let seen = wait::condition(&study, "Succeeded");
        let over = seen.as_ref().is_some_and(|(status, ..)| status != "Unknown");
        let rounds: Vec<String> = rounds(federation, name)?.iter().map(view::describe).collect();
        Ok(Answer::of(over.then_some(study), format!("{seen:?}; {}", rounds.join("; "))))
    })
    .and_then(|study| match wait::condition(&study, "Succeeded") {
        Some((status, ..)) if status == "True" => Ok(study),
        otherwise => {
            Err(Error::Malformed { path: format!("study {name}").into(), problem: format!("Succeeded: {otherwise:?}") })
        }
    })
}

/// The rounds of a study, oldest first.
pub fn rounds(federation: &Federation, study: &str) -> Result<Vec<Value>> {
    let mut rounds = wait::list(&federation.hub, RESEARCH, "trainingrounds")?;
    rounds.retain(|round| round["spec"]["study"] == study);
    rounds.sort_by_key(|round| round["spec"]["number"].as_u64());
    Ok(rounds)
}
