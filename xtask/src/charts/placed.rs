//! Where a cluster lets pods run and what it wants on them: registries that ask for a password, tainted nodes, labels for
//! the bill. A chart that cannot say so is patched by each platform team, and breaks at the next upgrade.

use serde_json::{Value, json};

/// The value `pod`, everything set.
pub(super) fn settings() -> Value {
    json!({
        "imagePullSecrets": [{"name": "registry"}],
        "nodeSelector": {"pool": "platform"},
        "tolerations": [{"key": "platform", "operator": "Exists"}],
        "affinity": {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": []}},
        "priorityClassName": "platform",
        // The second is the chart's own: its selector must go on finding the pod.
        "labels": {"cost-centre": "radiology", "app.kubernetes.io/name": "mine"},
        "annotations": {"example.org/scan": "yes"},
    })
}

/// What a load balancer is told.
pub(super) fn balancer() -> Value {
    json!({"example.org/internal": "true"})
}

/// What a rendering makes of the settings; without them, no trace of them.
pub(super) fn faults(objects: &[Value], set: bool) -> Vec<String> {
    let workloads = objects.iter().filter(|o| o["kind"] == "Deployment" || o["kind"] == "StatefulSet");
    let mut faults: Vec<String> = workloads.flat_map(|workload| of_workload(workload, set)).collect();
    let gateway = objects.iter().find(|o| o["kind"] == "Service" && o["metadata"]["name"] == "consilium-gateway");
    if gateway.is_some_and(|service| (service["metadata"]["annotations"] == balancer()) != set) {
        faults.push("Service consilium-gateway: the annotations are not those of the values".into());
    }
    faults
}

fn of_workload(workload: &Value, set: bool) -> Vec<String> {
    let (template, wanted) = (&workload["spec"]["template"], settings());
    let mut faults = Vec::new();
    for field in ["imagePullSecrets", "nodeSelector", "tolerations", "affinity", "priorityClassName"] {
        let expected = if set { &wanted[field] } else { &Value::Null };
        if template["spec"][field] != *expected {
            faults.push(format!("{field} is {}, and the values say {expected}", template["spec"][field]));
        }
    }
    let labels = &template["metadata"]["labels"];
    if (labels["cost-centre"] == "radiology") != set {
        faults.push(format!("the pod's labels are {labels}"));
    }
    for (label, value) in workload["spec"]["selector"]["matchLabels"].as_object().into_iter().flatten() {
        if labels[label] != *value {
            faults.push(format!("the selector wants {label}={value}, and the pod has {}", labels[label]));
        }
    }
    if (template["metadata"]["annotations"]["example.org/scan"] == "yes") != set {
        faults.push("the pod's annotations are not those of the values".into());
    }
    faults.extend(trust(&template["spec"]["volumes"], set));
    faults
}

/// The other side's authority must lie beside the key, once: from its own ConfigMap if there is one.
fn trust(volumes: &Value, apart: bool) -> Option<String> {
    let sources = volumes.as_array().into_iter().flatten().flat_map(|v| v["projected"]["sources"].as_array()).flatten();
    let from = |source: &Value| {
        let (kind, body) = source.as_object()?.iter().next()?;
        let anchors = body["items"].as_array()?.iter().any(|item| item["path"] == "ca.crt");
        anchors.then(|| kind.clone())
    };
    let found: Vec<String> = sources.filter_map(from).collect();
    let expected = if apart { "configMap" } else { "secret" };
    (found != [expected]).then(|| format!("ca.crt comes from {found:?}, and the values say {expected}"))
}
