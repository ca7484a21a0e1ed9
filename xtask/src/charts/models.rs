//! The rights to models: what `kubectl consilium model` needs, for whom the values name, and no more.

use serde_json::{Value, json};

/// The Role, and its binding, by which people reach the operator's door for models.
pub(super) const DOOR: &str = "consilium-models-door";

/// What is wrong with them. `given`: the values name somebody who may come to the door.
pub(super) fn faults(objects: &[Value], given: bool) -> Vec<String> {
    let named = |kind: &str, name: &str| objects.iter().find(|o| o["kind"] == kind && o["metadata"]["name"] == name);
    let mut faults = Vec::new();
    for verb in ["pull", "push"] {
        let name = format!("consilium-models-{verb}");
        let rules = json!([{"apiGroups": ["consilium.health"], "resources": ["modelreleases"], "verbs": [verb]}]);
        if named("ClusterRole", &name).is_none_or(|role| role["rules"] != rules) {
            faults.push(format!("ClusterRole {name} is not the right to {verb} models alone"));
        }
    }
    let rules = json!([
        {"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list"]},
        {"apiGroups": [""], "resources": ["pods/portforward"], "verbs": ["get", "create"]},
    ]);
    match (named("Role", DOOR), named("RoleBinding", DOOR), given) {
        (None, None, false) => {}
        (Some(role), Some(binding), true) => {
            if role["rules"] != rules {
                faults.push(format!("Role {DOOR} allows other things than a port-forward"));
            }
            if binding["subjects"][0]["name"] != "researchers" {
                faults.push(format!("RoleBinding {DOOR} does not name models.subjects"));
            }
        }
        _ => faults.push(format!("Role {DOOR} and its binding are there for whom models.subjects names, and else not")),
    }
    faults
}
