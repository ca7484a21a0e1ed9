//! The right to use the kill switch: what `kubectl consilium stop` and `start` do, and no more.

use serde_json::{Value, json};

/// Its name, in the task namespace.
const NAME: &str = "consilium-stop";

/// What `cli/src/stop.rs` calls.
fn rules() -> Value {
    json!([
        {"apiGroups": [""], "resources": ["resourcequotas"], "verbs": ["create"]},
        {"apiGroups": [""], "resources": ["resourcequotas"], "resourceNames": ["consilium-stopped"],
            "verbs": ["get", "patch", "delete"]},
        {"apiGroups": ["apps"], "resources": ["deployments"], "verbs": ["list", "patch"]},
        {"apiGroups": ["batch"], "resources": ["jobs"], "verbs": ["list", "patch"]},
        {"apiGroups": [""], "resources": ["pods"], "verbs": ["list", "delete"]},
        {"apiGroups": ["kueue.x-k8s.io"], "resources": ["workloads"], "verbs": ["list", "patch"]},
    ])
}

/// What is wrong with it. `given`: the values name somebody who has it.
pub fn faults(objects: &[Value], given: bool) -> Vec<String> {
    let named = |kind: &str| {
        objects
            .iter()
            .find(|o| o["kind"] == kind && o["metadata"]["name"] == NAME && !o["metadata"]["namespace"].is_null())
    };
    let mut faults = Vec::new();
    match named("Role") {
        None => faults.push(format!("there is no Role {NAME} for whoever may stop everything")),
        Some(role) if role["rules"] != rules() => {
            faults.push(format!("Role {NAME} allows other things than the kill switch does"));
        }
        Some(_) => {}
    }
    match (named("RoleBinding"), given) {
        (Some(_), false) => faults.push(format!("RoleBinding {NAME} gives it to nobody")),
        (None, true) => faults.push(format!("stop.subjects is set and there is no RoleBinding {NAME}")),
        (Some(binding), true) if binding["subjects"][0]["name"] != "on-call" => {
            faults.push(format!("RoleBinding {NAME} does not name stop.subjects"));
        }
        _ => {}
    }
    faults
}

#[cfg(test)]
mod tests {
    use super::*;

    /// At night whoever is on call types the command, and it fails half-way for a verb that the Role lacks; or the Role
    /// gives them all of the namespace.
    #[test]
    fn a_role_with_another_rule_is_found() {
        let metadata = json!({"name": NAME, "namespace": "consilium-tasks"});
        let role = |rules: Value| json!({"kind": "Role", "metadata": metadata, "rules": rules});
        assert!(faults(&[role(rules())], false).is_empty());
        let mut wider = rules();
        wider[4]["verbs"] = json!(["list", "delete", "create"]);
        assert_eq!(faults(&[role(wider)], false).len(), 1);
        assert_eq!(faults(&[role(rules())], true).len(), 1, "nobody has it");
        assert_eq!(faults(&[], false).len(), 1);
    }
}
