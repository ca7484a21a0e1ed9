//! Lints and renders the charts and checks what comes out: not against a picture of yesterday's output, but against what
//! a hospital's security team would look for.

mod models;
mod placed;
mod roles;
mod stop;

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use serde::Deserialize as _;
use serde_json::{Value, json};

use crate::{
    cache, dashboards,
    error::{Error, IoContext, Result},
    generate, metrics, process, prometheus, tools,
};

/// One way to install a chart.
struct Rendering {
    chart: &'static str,
    namespace: &'static str,
    values: Value,
}

/// `cargo xtask charts`, and a stage of `cargo xtask test`.
pub fn test() -> Result<()> {
    let helm = tools::ensure()?.program("helm");
    let mut faults = Vec::new();
    for rendering in renderings() {
        let label =
            format!("{} {}", rendering.chart, if is_full(&rendering) { "with everything on" } else { "as it comes" });
        match render(&helm, &rendering) {
            Ok(objects) => {
                println!("{label}: {} objects", objects.len());
                let found = check(&rendering, &objects);
                faults.extend(found.into_iter().map(|fault| format!("{label}: {fault}")));
                faults.extend(prometheus::alerts(rendering.chart, &objects)?);
            }
            Err(error) => faults.push(format!("{label}: {error}")),
        }
    }
    for (what, rendering, says) in refused() {
        match render(&helm, &rendering) {
            Ok(_) => faults.push(format!("{what}: was accepted")),
            Err(error) if error.to_string().contains(says) => println!("refused as it should be: {what}"),
            Err(error) => faults.push(format!("{what}: the message does not say {says:?}: {error}")),
        }
    }
    faults.extend(environment()?);
    faults.extend(alerts()?);
    if faults.is_empty() { Ok(()) } else { Err(Error::Charts { faults: faults.join("\n  ") }) }
}

fn image(name: &str) -> String {
    format!("registry.example/{name}@sha256:{}", "a".repeat(64))
}

fn hub() -> Value {
    json!({"images": {"operator": image("operator"), "courier": image("agent")}, "taskPort": {"clusterIP": "10.96.0.50"}})
}

fn site() -> Value {
    json!({
        "images": {"agent": image("agent"), "courier": image("agent"), "evaluator": image("trainer"), "inference": image("inference")},
        "gateway": {"url": "https://hub.example:30443"},
        "taskPort": {"clusterIP": "10.96.0.50"},
    })
}

fn with(mut values: Value, more: &Value) -> Value {
    for (key, value) in more.as_object().into_iter().flatten() {
        match (values.get_mut(key), value) {
            (Some(Value::Object(old)), Value::Object(new)) => old.extend(new.clone()),
            _ => values[key] = value.clone(),
        }
    }
    values
}

fn renderings() -> Vec<Rendering> {
    let everything = json!({
        "monitoring": {"podMonitor": true, "rules": true, "dashboard": true, "labels": {"release": "prometheus"},
            "from": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}]},
        "holdDrains": true,
        "egress": {"apiServer": {"ports": [16443], "to": [{"ipBlock": {"cidr": "10.0.0.10/32"}}]}},
        "pod": placed::settings(),
        "gateway": {"trust": {"configMap": "partners"}},
    });
    let researchers = json!({"models": {"subjects": [{"kind": "Group", "name": "researchers", "apiGroup": "rbac.authorization.k8s.io"}]}});
    // Without a port: 80, as the agent reads it.
    let proxy = json!({
        "gateway": {"httpsProxy": "http://proxy.hospital.example"},
        "stop": {"subjects": [{"kind": "Group", "name": "on-call", "apiGroup": "rbac.authorization.k8s.io"}]},
    });
    let balancer = json!({"gateway": {"service": {"annotations": placed::balancer()}}});
    let (hub_space, site_space) = ("consilium-system", "consilium-agent");
    vec![
        Rendering { chart: "consilium-crds", namespace: hub_space, values: json!({}) },
        Rendering { chart: "consilium-hub", namespace: hub_space, values: hub() },
        Rendering {
            chart: "consilium-hub",
            namespace: hub_space,
            values: with(with(with(hub(), &everything), &balancer), &researchers),
        },
        Rendering { chart: "consilium-site", namespace: site_space, values: site() },
        Rendering {
            chart: "consilium-site",
            namespace: site_space,
            values: with(with(with(site(), &everything), &proxy), &roles::people()),
        },
    ]
}

fn is_full(rendering: &Rendering) -> bool {
    rendering.values.get("holdDrains").is_some()
}

/// Values that must be refused: what is wrong, the values, and what the message must name.
fn refused() -> Vec<(&'static str, Rendering, &'static str)> {
    let hub = |values| Rendering { chart: "consilium-hub", namespace: "consilium-system", values };
    let site = |values| Rendering { chart: "consilium-site", namespace: "consilium-agent", values };
    vec![
        ("no values at all", hub(json!({})), "images"),
        (
            "an image by tag",
            hub(with(self::hub(), &json!({"images": {"operator": "registry.example/operator:v1"}}))),
            "operator",
        ),
        ("a misspelt key", hub(with(self::hub(), &json!({"gatway": {}}))), "gatway"),
        ("no task address", hub(with(self::hub(), &json!({"taskPort": {"clusterIP": ""}}))), "clusterIP"),
        (
            "a gateway without TLS",
            site(with(self::site(), &json!({"gateway": {"url": "http://hub.example:30443"}}))),
            "url",
        ),
        (
            "a gateway with a path",
            site(with(self::site(), &json!({"gateway": {"url": "https://hub.example/x"}}))),
            "url",
        ),
        (
            "a proxy that the agent does not speak to",
            site(with(self::site(), &json!({"gateway": {"httpsProxy": "socks5://proxy.example:1080"}}))),
            "httpsProxy",
        ),
        (
            "trust anchors in two places",
            site(with(self::site(), &json!({"gateway": {"trust": {"configMap": "a", "secret": "b"}}}))),
            "trust",
        ),
        (
            "an address that is none",
            site(with(self::site(), &json!({"taskPort": {"clusterIP": "10.96.0.999"}}))),
            "clusterIP",
        ),
        ("a name that no namespace has", hub(with(self::hub(), &json!({"taskNamespace": "Tasks"}))), "taskNamespace"),
        (
            "an API server without a port",
            hub(with(self::hub(), &json!({"egress": {"apiServer": {"ports": []}}}))),
            "ports",
        ),
    ]
}

/// Lints the chart and returns the objects it makes.
fn render(helm: &Path, rendering: &Rendering) -> Result<Vec<Value>> {
    let chart = generate::root().join("charts").join(rendering.chart);
    let file = cache::sub("charts")?.join(format!("values-{}.json", std::process::id()));
    fs::write(&file, rendering.values.to_string()).at("write", &file)?;
    let run = |verb: &[&str], strict: &[&str]| {
        let mut command = Command::new(helm);
        command.args(verb).arg(&chart).args(["--namespace", rendering.namespace, "--values"]).arg(&file).args(strict);
        process::output(&mut command)
    };
    // Lint says on standard output what is wrong, where it is lost; so it comes second.
    let text = run(&["template", rendering.chart], &["--kube-version", "1.37.2"])
        .and_then(|text| run(&["lint"], &["--strict", "--quiet"]).map(|_| text));
    fs::remove_file(&file).ok();
    let text = text?;
    let malformed = |error: serde_yaml_ng::Error| Error::Malformed { path: chart.clone(), problem: error.to_string() };
    let objects = serde_yaml_ng::Deserializer::from_str(&text)
        .map(|document| Value::deserialize(document).map_err(malformed))
        .collect::<Result<Vec<_>>>()?;
    Ok(objects.into_iter().filter(|object| !object.is_null()).collect())
}

fn check(rendering: &Rendering, objects: &[Value]) -> Vec<String> {
    let mut faults = Vec::new();
    for object in objects {
        let named = format!(
            "{} {}",
            object["kind"].as_str().unwrap_or("?"),
            object["metadata"]["name"].as_str().unwrap_or("?")
        );
        let mut fault = |text: String| faults.push(format!("{named}: {text}"));
        match object["kind"].as_str() {
            Some("Deployment" | "StatefulSet") => pod(&object["spec"]["template"]["spec"], &mut fault),
            Some("Role" | "ClusterRole") => role(rendering, object, &mut fault),
            Some("Namespace") => namespace(object, &mut fault),
            _ => {}
        }
    }
    if rendering.chart != "consilium-crds" {
        faults.extend(undefended(rendering, objects));
        faults.extend(unkept(objects));
        faults.extend(entrances(objects));
        faults.extend(wrong_ways_out(rendering, objects));
    }
    if rendering.chart != "consilium-crds" {
        faults.extend(placed::faults(objects, is_full(rendering)));
    }
    if rendering.chart == "consilium-hub" {
        faults.extend(models::faults(objects, is_full(rendering)));
        faults.extend(roles::at_the_hub(objects));
    }
    if rendering.chart == "consilium-site" {
        faults.extend(stop::faults(objects, is_full(rendering)));
        faults.extend(roles::in_a_hospital(objects, is_full(rendering)));
    }
    if rendering.chart == "consilium-site" && is_full(rendering) {
        faults.extend(unscraped(objects));
    }
    faults
}

/// What serves metrics in a hospital and is asked by no PodMonitor, by the label `app.kubernetes.io/name` of its pods.
fn unscraped(objects: &[Value]) -> Vec<String> {
    let monitors = objects.iter().filter(|o| o["kind"] == "PodMonitor");
    let asked: BTreeSet<&str> =
        monitors.filter_map(|o| o["spec"]["selector"]["matchLabels"]["app.kubernetes.io/name"].as_str()).collect();
    let programs = ["consilium-agent", "consilium-inference"];
    programs.iter().filter(|name| !asked.contains(*name)).map(|name| format!("no PodMonitor asks {name}")).collect()
}

/// Pod Security `restricted`, and beyond it a read-only root and images by digest.
fn pod(spec: &Value, fault: &mut impl FnMut(String)) {
    for host in ["hostNetwork", "hostPID", "hostIPC"] {
        if spec[host] == true {
            fault(format!("{host} is on"));
        }
    }
    if spec["securityContext"]["runAsNonRoot"] != true
        || spec["securityContext"]["seccompProfile"]["type"] != "RuntimeDefault"
    {
        fault("the pod may run as root, or without the default seccomp profile".into());
    }
    let volumes = spec["volumes"].as_array().into_iter().flatten();
    volumes.filter(|v| v.get("hostPath").is_some()).for_each(|v| fault(format!("volume {} is a hostPath", v["name"])));
    let lists = [&spec["initContainers"], &spec["containers"]];
    for container in lists.into_iter().filter_map(Value::as_array).flatten() {
        let name = &container["name"];
        let context = &container["securityContext"];
        if context["allowPrivilegeEscalation"] != false || context["capabilities"]["drop"] != json!(["ALL"]) {
            fault(format!("container {name} keeps privileges"));
        }
        if context["readOnlyRootFilesystem"] != true {
            fault(format!("container {name} may write to its root"));
        }
        if !container["image"].as_str().is_some_and(|image| image.contains("@sha256:")) {
            fault(format!("container {name} has an image without a digest"));
        }
        if container["resources"]["limits"]["memory"].is_null() {
            fault(format!("container {name} has no memory limit"));
        }
    }
}

/// No wildcard, no reading of Secrets, no way into pods; no more of ConfigMaps than reading the hub's own (rosters); and no
/// right over the whole cluster in a hospital.
fn role(rendering: &Rendering, object: &Value, fault: &mut impl FnMut(String)) {
    if rendering.chart == "consilium-site" && object["kind"] == "ClusterRole" {
        fault("a hospital gives no right over its whole cluster".into());
    }
    let own_namespace = object["metadata"]["namespace"].as_str().is_none_or(|n| n == rendering.namespace);
    for rule in object["rules"].as_array().into_iter().flatten() {
        let set = |field: &str| -> BTreeSet<String> {
            rule[field].as_array().into_iter().flatten().filter_map(|v| v.as_str().map(str::to_owned)).collect()
        };
        let (resources, verbs) = (set("resources"), set("verbs"));
        if resources.contains("*") || verbs.contains("*") || set("apiGroups").contains("*") {
            fault("has a wildcard".into());
        }
        if resources.contains("secrets") && (own_namespace || verbs != BTreeSet::from(["create".to_owned()])) {
            fault(format!("may {verbs:?} secrets; only create in the task namespace is needed"));
        }
        let reading = BTreeSet::from(["list", "watch"].map(str::to_owned));
        let rosters = rendering.chart == "consilium-hub" && object["kind"] == "Role" && own_namespace;
        if resources.contains("configmaps") && !(rosters && verbs.is_subset(&reading) && resources.len() == 1) {
            fault(format!("may {verbs:?} configmaps; only reading rosters in the operator's namespace is needed"));
        }
        for dangerous in
            ["pods/exec", "pods/attach", "pods/portforward", "pods/ephemeralcontainers", "serviceaccounts/token"]
        {
            // The door for models lies behind a port-forward, and only for whom the values name.
            let door = rosters && dangerous == "pods/portforward" && object["metadata"]["name"] == models::DOOR;
            if resources.contains(dangerous) && !door {
                fault(format!("may use {dangerous}"));
            }
        }
    }
}

fn namespace(object: &Value, fault: &mut impl FnMut(String)) {
    if object["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] != "restricted" {
        fault("does not enforce Pod Security restricted".into());
    }
    if !is_kept(object) {
        fault("goes with an uninstall, and with it everything that is in it".into());
    }
}

fn is_kept(object: &Value) -> bool {
    object["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"
}

/// Names of the namespaces that an uninstall leaves, with what runs in them.
fn kept_namespaces(objects: &[Value]) -> BTreeSet<&str> {
    let kept = objects.iter().filter(|o| o["kind"] == "Namespace" && is_kept(o));
    kept.filter_map(|o| o["metadata"]["name"].as_str()).collect()
}

/// What defends a kept namespace and goes with an uninstall: whoever runs there would be free of it.
fn unkept(objects: &[Value]) -> Vec<String> {
    let kept = kept_namespaces(objects);
    let defends = |o: &&Value| o["kind"] == "NetworkPolicy" || o["kind"] == "ResourceQuota";
    let lies_there = |o: &&Value| o["metadata"]["namespace"].as_str().is_some_and(|n| kept.contains(n));
    let goes = objects.iter().filter(defends).filter(lies_there).filter(|o| !is_kept(o));
    goes.map(|o| {
        let (kind, name) = (&o["kind"], &o["metadata"]["name"]);
        format!("{kind} {name} goes with an uninstall, and the pods that it holds stay")
    })
    .collect()
}

/// Connections that are let into the namespace of tasks: only models are asked, a trainer with scans by nobody.
fn entrances(objects: &[Value]) -> Vec<String> {
    let kept = kept_namespaces(objects);
    let models = json!({"matchLabels": {"app.kubernetes.io/name": "consilium-inference"}});
    let opens = |o: &&Value| o["spec"]["ingress"].as_array().is_some_and(|rules| !rules.is_empty());
    let policies = objects.iter().filter(|o| o["kind"] == "NetworkPolicy").filter(opens);
    policies
        .filter(|o| o["metadata"]["namespace"].as_str().is_some_and(|n| kept.contains(n)))
        .filter(|o| o["spec"]["podSelector"] != models)
        .map(|o| format!("NetworkPolicy {} lets connections into pods that are no models", o["metadata"]["name"]))
        .collect()
}

/// The policy of the agent or the operator must let it reach its API server and the hub where the values say they are:
/// else it never starts to work, and nothing says why.
fn wrong_ways_out(rendering: &Rendering, objects: &[Value]) -> Option<String> {
    let full = is_full(rendering);
    let dns = json!({"ports": [{"port": 53, "protocol": "UDP"}, {"port": 53, "protocol": "TCP"}]});
    let tcp = |ports: &[u16]| ports.iter().map(|port| json!({"port": port, "protocol": "TCP"})).collect::<Vec<_>>();
    let api_server = match full {
        true => json!({"ports": tcp(&[16443]), "to": [{"ipBlock": {"cidr": "10.0.0.10/32"}}]}),
        false => json!({"ports": tcp(&[443, 6443])}),
    };
    let hub = json!({"ports": tcp(&[if full { 80 } else { 30443 }])});
    let (name, expected) = match rendering.chart {
        "consilium-site" => ("consilium-agent", json!([api_server, hub, dns])),
        _ => ("consilium-operator", json!([api_server, dns])),
    };
    let policy = objects.iter().find(|o| o["kind"] == "NetworkPolicy" && o["metadata"]["name"] == name);
    let found = policy.map_or(&Value::Null, |policy| &policy["spec"]["egress"]);
    (*found != expected).then(|| format!("NetworkPolicy {name} lets out to {found}, and the values say {expected}"))
}

/// Namespaces in which some pod is not denied everything by default.
fn undefended(rendering: &Rendering, objects: &[Value]) -> Vec<String> {
    let of = |object: &Value| object["metadata"]["namespace"].as_str().unwrap_or(rendering.namespace).to_owned();
    let made = objects.iter().filter(|o| o["kind"] == "Namespace").filter_map(|o| o["metadata"]["name"].as_str());
    let mut open: BTreeSet<String> = made.map(str::to_owned).collect();
    open.insert(rendering.namespace.to_owned());
    for policy in objects.iter().filter(|o| o["kind"] == "NetworkPolicy") {
        let everyone = policy["spec"]["podSelector"] == json!({});
        if everyone && policy["spec"]["policyTypes"] == json!(["Ingress", "Egress"]) {
            open.remove(&of(policy));
        }
    }
    open.into_iter().map(|name| format!("namespace {name} has no default-deny NetworkPolicy both ways")).collect()
}

/// Settings that a chart hands to a program which does not know them would be ignored in silence.
fn environment() -> Result<Vec<String>> {
    let mut faults = Vec::new();
    for (chart, template, sources) in [
        ("consilium-hub", "operator.yaml", &["operator/src/main.rs"][..]),
        ("consilium-site", "agent.yaml", &["agent/src/config.rs", "agent/src/main.rs"]),
    ] {
        let read = |path: PathBuf| fs::read_to_string(&path).at("read", path);
        let text = read(generate::root().join("charts").join(chart).join("templates").join(template))?;
        let code = sources.iter().map(|s| read(generate::root().join(s))).collect::<Result<String>>()?;
        let names = text.split("{name: ").filter_map(|rest| rest.split([',', '}']).next());
        for name in names.filter(|name| name.starts_with("CONSILIUM_")) {
            if !code.contains(&format!("env = \"{name}\"")) {
                faults.push(format!("{chart} sets {name}, which {} does not read", sources.join(" and ")));
            }
        }
    }
    Ok(faults)
}

/// An alert without a runbook wakes someone who then knows nothing; one over a metric that nobody exports never fires.
fn alerts() -> Result<Vec<String>> {
    let known: Vec<String> = metrics::all()?.into_iter().map(|metric| metric.name).collect();
    let mut faults = Vec::new();
    for chart in ["consilium-hub", "consilium-site"] {
        let folder = generate::root().join("charts").join(chart);
        let boards = dashboards::all().iter().filter_map(|board| board.file.strip_prefix(chart)?.strip_prefix('/'));
        for file in std::iter::once("alerts.yaml").chain(boards) {
            let path = folder.join(file);
            let text = fs::read_to_string(&path).at("read", &path)?;
            for name in metrics::named_in(&text) {
                let base = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(&name);
                if !known.iter().any(|k| *k == name || k == base) {
                    faults.push(format!("{chart}/{file} asks for {name}, which nothing exports"));
                }
            }
        }
        let path = folder.join("alerts.yaml");
        let text = fs::read_to_string(&path).at("read", &path)?;
        for alert in text.lines().filter(|line| !line.starts_with([' ', '#'])).filter_map(|line| line.strip_suffix(':'))
        {
            if !generate::root().join("docs/runbooks").join(format!("{alert}.md")).is_file() {
                faults.push(format!("{chart}: alert {alert} has no docs/runbooks/{alert}.md"));
            }
        }
    }
    Ok(faults)
}
