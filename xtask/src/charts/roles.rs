//! Rights of people: what each role of the charts allows, and that a hospital's are given to nobody unless the values say so.

use std::collections::BTreeSet;

use serde_json::{Value, json};

const HUB: &[&str] = &["federatedstudies", "trainingrounds", "modelreleases", "modelpromotions", "clinicalplans"];

/// Values that name somebody for each role of a hospital.
pub(super) fn people() -> Value {
    let group = |name: &str| json!([{"kind": "Group", "name": name, "apiGroup": "rbac.authorization.k8s.io"}]);
    json!({"roles": {"viewers": group("radiology"), "administrators": group("imaging-it")}})
}

/// What a role may do, as `verb resource`.
fn allowed(role: &Value) -> BTreeSet<String> {
    let list = |rule: &Value, field: &str| -> Vec<String> {
        rule[field].as_array().into_iter().flatten().filter_map(|word| word.as_str().map(str::to_owned)).collect()
    };
    let rules = role["rules"].as_array().into_iter().flatten();
    rules
        .flat_map(|rule| {
            list(rule, "verbs")
                .into_iter()
                .flat_map(|verb| list(rule, "resources").into_iter().map(move |what| format!("{verb} {what}")))
        })
        .collect()
}

fn named<'a>(objects: &'a [Value], kind: &str, name: &str) -> impl Iterator<Item = &'a Value> {
    let (kind, name) = (kind.to_owned(), name.to_owned());
    objects.iter().filter(move |o| o["kind"] == kind.as_str() && o["metadata"]["name"] == name.as_str())
}

fn writes(allowed: &BTreeSet<String>) -> BTreeSet<&str> {
    let reading = ["get ", "list ", "watch "];
    allowed
        .iter()
        .filter(|right| !reading.iter().any(|verb| right.starts_with(verb)))
        .filter_map(|right| right.split(' ').nth(1))
        .collect()
}

/// What is wrong with the hub's: who may look, who may bring studies, who may promote, and who says which hospitals belong.
pub(super) fn at_the_hub(objects: &[Value]) -> Vec<String> {
    let mut faults = Vec::new();
    for (name, part_of, may_write) in [
        ("consilium-view", &["view", "edit", "admin"][..], &[][..]),
        ("consilium-edit", &["edit", "admin"], &["federatedstudies", "trainingrounds"]),
        ("consilium-admin", &["admin"], &["clinicalplans", "modelpromotions", "modelreleases"]),
        ("consilium-researcher", &[], &["federatedstudies", "trainingrounds"]),
        ("consilium-hub-administrator", &[], &["trustsites"]),
    ] {
        let Some(role) = named(objects, "ClusterRole", name).next() else {
            faults.push(format!("there is no ClusterRole {name}"));
            continue;
        };
        let labels = role["metadata"]["labels"].as_object().into_iter().flatten();
        let joins: BTreeSet<&str> =
            labels.filter_map(|(label, _)| label.strip_prefix("rbac.authorization.k8s.io/aggregate-to-")).collect();
        if joins != part_of.iter().copied().collect() {
            faults.push(format!("ClusterRole {name} comes with {joins:?}, and not with {part_of:?}"));
        }
        let allowed = allowed(role);
        if writes(&allowed) != may_write.iter().copied().collect() {
            faults.push(format!("ClusterRole {name} may write {:?}, and not {may_write:?}", writes(&allowed)));
        }
        let looks = name == "consilium-view" || part_of.is_empty();
        if looks && HUB.iter().any(|kind| !allowed.contains(&format!("get {kind}"))) {
            faults.push(format!("ClusterRole {name} does not show everything"));
        }
    }
    faults
}

/// What is wrong with a hospital's.
pub(super) fn in_a_hospital(objects: &[Value], given: bool) -> Vec<String> {
    let mut faults = Vec::new();
    for (name, may_write, namespaces, group) in [
        ("consilium-view", &[][..], 2, "radiology"),
        ("consilium-administrator", &["modelhazards", "sitepolicies"], 1, "imaging-it"),
    ] {
        let roles: Vec<_> = named(objects, "Role", name).collect();
        if roles.len() != namespaces {
            faults.push(format!("Role {name} stands in {} namespaces, and not in {namespaces}", roles.len()));
        }
        let wrong = |role: &&&Value| writes(&allowed(role)) != may_write.iter().copied().collect();
        faults.extend(
            roles.iter().filter(wrong).map(|_| format!("Role {name} may write something else than {may_write:?}")),
        );
        let bindings: Vec<_> = named(objects, "RoleBinding", name).collect();
        let right = bindings.len() == if given { namespaces } else { 0 }
            && bindings.iter().all(|b| b["subjects"][0]["name"] == group);
        if !right {
            faults.push(format!("RoleBinding {name} is there for whom the values name, and else not"));
        }
    }
    faults
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A researcher who could promote would put models before patients; a viewer who could write is none.
    #[test]
    fn a_role_that_writes_more_is_found() {
        let role = |name: &str, rules: Value, labels: Value| json!({"kind": "ClusterRole", "metadata": {"name": name, "labels": labels}, "rules": rules});
        let rule = |what: &str, verb: &str| json!({"resources": [what], "verbs": [verb]});
        let wide = role(
            "consilium-researcher",
            json!([rule("modelpromotions", "create"), rule("federatedstudies", "get")]),
            json!({}),
        );
        let faults = at_the_hub(&[wide]);
        assert!(
            faults.iter().any(|fault| fault.contains("consilium-researcher may write {\"modelpromotions\"}")),
            "{faults:?}"
        );
        assert_eq!(in_a_hospital(&[], false).len(), 2);
    }
}
