//! What a node is to look like: the hospitals' have the labels and the capacity that NVIDIA's GPU feature discovery and
//! device plugin give to a DGX-2.

use serde_json::{Value, json};

use super::{Cluster, Role};
use crate::error::{Error, Result};

/// GPUs of a DGX-2.
const GPUS: &str = "16";

const LABELS: &[(&str, &str)] = &[
    ("nvidia.com/gpu.present", "true"),
    ("nvidia.com/gpu.product", "Tesla-V100-SXM3-32GB"),
    ("nvidia.com/gpu.memory", "32768"),
    ("nvidia.com/gpu.count", GPUS),
    ("nvidia.com/gpu.family", "volta"),
    ("nvidia.com/gpu.compute.major", "7"),
    ("nvidia.com/gpu.compute.minor", "0"),
    ("nvidia.com/gpu.machine", "NVIDIA-DGX-2"),
    // A hospital has one node here; a real one would have inference nodes of their own, with these labels on them.
    ("consilium.health/inference-gpu", "Tesla-T4"),
];

/// Gives a hospital's node its labels and capacity, unless it has them: a kubelet that starts anew resets the latter.
pub(super) fn ensure_hardware(cluster: &Cluster, role: Role) -> Result<()> {
    if role == Role::Hub {
        return Ok(());
    }
    let node = cluster.kubectl(&["get", "node", &cluster.name, "-o", "json"])?;
    let node: Value = serde_json::from_str(&node)
        .map_err(|error| Error::Malformed { path: "kubectl get node".into(), problem: error.to_string() })?;
    if let Some(labels) = missing_labels(&node) {
        cluster.kubectl(
            &["label", "--overwrite", "node", &cluster.name]
                .into_iter()
                .map(str::to_owned)
                .chain(labels)
                .collect::<Vec<_>>(),
        )?;
    }
    if !has_gpus(&node) {
        // The kubelet derives the second from the first, and the scheduler should not have to wait for that.
        let patch = json!([
            {"op": "add", "path": "/status/capacity/nvidia.com~1gpu", "value": GPUS},
            {"op": "add", "path": "/status/allocatable/nvidia.com~1gpu", "value": GPUS},
        ]);
        cluster.kubectl(&[
            "patch",
            "node",
            &cluster.name,
            "--subresource=status",
            "--type=json",
            "-p",
            &patch.to_string(),
        ])?;
    }
    Ok(())
}

/// `key=value` of those labels that the node does not have; none if it has them all.
fn missing_labels(node: &Value) -> Option<Vec<String>> {
    let has = |key: &str, value: &str| node["metadata"]["labels"][key] == value;
    let missing: Vec<String> =
        LABELS.iter().filter(|(key, value)| !has(key, value)).map(|(key, value)| format!("{key}={value}")).collect();
    (!missing.is_empty()).then_some(missing)
}

fn has_gpus(node: &Value) -> bool {
    node["status"]["capacity"]["nvidia.com/gpu"] == GPUS && node["status"]["allocatable"]["nvidia.com/gpu"] == GPUS
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A kubelet that was started anew reports its GPUs as gone; a study's Jobs would stay pending.
    #[test]
    fn a_reset_capacity_is_seen() {
        let node = |capacity: &str, allocatable: &str| json!({"status": {"capacity": {"nvidia.com/gpu": capacity}, "allocatable": {"nvidia.com/gpu": allocatable}}});
        assert!(has_gpus(&node("16", "16")));
        assert!(!has_gpus(&node("0", "0")));
        assert!(!has_gpus(&json!({"status": {"capacity": {}}})));
    }

    /// Only what is missing is written, so that a second `up` changes nothing.
    #[test]
    fn only_missing_labels_are_set() {
        let labels: serde_json::Map<String, Value> =
            LABELS.iter().skip(1).map(|(key, value)| ((*key).to_owned(), json!(value))).collect();
        let node = json!({"metadata": {"labels": labels}});
        assert_eq!(missing_labels(&node), Some(vec!["nvidia.com/gpu.present=true".to_owned()]));
    }
}
