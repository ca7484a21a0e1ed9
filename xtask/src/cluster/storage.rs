//! Volumes: folders of a cluster's state that pods mount as `local` PersistentVolumes.

use std::path::Path;

use serde_json::{Value, json};

/// Who may mount a volume. The API server refuses a volume that offers both.
#[derive(Clone, Copy, Debug)]
pub enum Access {
    /// Any pod of the node: scans, a task's working folder.
    Shared,
    /// One pod at a time: the agent's own state.
    OncePod,
}

/// A PersistentVolume of class `local` for a folder on `node`. Claims select it by the label
/// `consilium.health/volume: NAME`, and it is kept when its claim goes: what is in it is the hospital's.
pub fn local_pv(name: &str, path: &Path, node: &str, capacity: &str, access: Access) -> Value {
    let modes: &[&str] = match access {
        Access::Shared => &["ReadWriteOnce", "ReadOnlyMany", "ReadWriteMany"],
        Access::OncePod => &["ReadWriteOncePod"],
    };
    json!({
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": name, "labels": {"consilium.health/volume": name}},
        "spec": {
            "capacity": {"storage": capacity},
            "accessModes": modes,
            "persistentVolumeReclaimPolicy": "Retain",
            "storageClassName": "local",
            "volumeMode": "Filesystem",
            "local": {"path": path},
            "nodeAffinity": {"required": {"nodeSelectorTerms": [
                {"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": [node]}]}
            ]}},
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Without the affinity the API server refuses a `local` volume; with the wrong class no claim binds it.
    #[test]
    fn a_local_volume_is_tied_to_its_node_and_class() {
        let volume = local_pv("scans", Path::new("/state/alder/volumes/scans"), "alder", "1Gi", Access::OncePod);
        assert_eq!(volume["spec"]["local"]["path"], "/state/alder/volumes/scans");
        assert_eq!(volume["spec"]["storageClassName"], "local");
        assert_eq!(volume["spec"]["accessModes"], json!(["ReadWriteOncePod"]));
        let terms = &volume["spec"]["nodeAffinity"]["required"]["nodeSelectorTerms"][0];
        assert_eq!(terms["matchExpressions"][0]["values"][0], "alder");
    }
}
