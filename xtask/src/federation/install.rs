//! Installs the charts: the hub's and each hospital's, with their Secrets and volumes, as a platform team would.

use std::{
    io::Read as _,
    path::{Path, PathBuf},
    thread,
};

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use serde_json::{Value, json};

use super::{AGENT, Federation, RESEARCH, SYSTEM, TASKS, data, pki, wait};
use crate::{
    cluster::{
        Cluster, GATEWAY_PORT,
        storage::{self, Access},
    },
    error::{IoContext, Result},
};

/// The one address that task pods may reach, in every cluster.
const TASK_ADDRESS: &str = "10.96.0.50";
/// Installs the hub and all hospitals; returns when each agent is connected.
pub fn all(federation: &Federation, data: &Path) -> Result<()> {
    let gateway_authority = pki::Authority::new("consilium-gateway-ca")?;
    let site_authority = pki::Authority::new("consilium-site-ca")?;
    hub(federation, &gateway_authority, &site_authority)?;
    trust_sites(federation)?;
    thread::scope(|scope| {
        let installing: Vec<_> = federation
            .sites
            .iter()
            .map(|cluster| {
                let pair = site_authority.site(&cluster.name);
                let authority = gateway_authority.certificate();
                scope.spawn(move || site(federation, cluster, &pair?, &authority, data))
            })
            .collect();
        installing.into_iter().try_for_each(|thread| match thread.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        })
    })?;
    federation.sites.iter().try_for_each(|site| connected(federation, &site.name))
}

fn connected(federation: &Federation, site: &str) -> Result<()> {
    wait::for_condition(&federation.hub, ("default", "trustsite", site), ("Connected", "True")).map(drop)
}

fn charts() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../charts")
}

fn helm_install(cluster: &Cluster, release: &str, namespace: &str, values: &Value) -> Result<()> {
    let file = cluster.state.join(format!("values-{release}.json"));
    std::fs::write(&file, values.to_string()).at("write", &file)?;
    let chart = charts().join(release).to_string_lossy().into_owned();
    let file = file.to_string_lossy().into_owned();
    let args =
        ["upgrade", "--install", release, &chart, "--namespace", namespace, "--create-namespace", "--values", &file];
    cluster.helm(&args).map(drop)
}

fn namespace(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
}

fn secret(namespace: &str, name: &str, data: &[(&str, &str)]) -> Value {
    let data: serde_json::Map<String, Value> =
        data.iter().map(|(key, text)| ((*key).to_owned(), BASE64.encode(text).into())).collect();
    json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name, "namespace": namespace}, "data": data})
}

fn tls_secret(namespace: &str, name: &str, pair: &pki::Pair, authority: &str) -> Value {
    secret(namespace, name, &[("tls.crt", &pair.certificate), ("tls.key", &pair.key), ("ca.crt", authority)])
}

fn random_seed() -> Result<String> {
    let mut seed = [0; 32];
    std::fs::File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut seed)).at("read", "/dev/urandom")?;
    Ok(BASE64.encode(seed))
}

fn hub(federation: &Federation, gateway: &pki::Authority, sites: &pki::Authority) -> Result<()> {
    let hub = &federation.hub;
    let pair = gateway.gateway(hub.ip)?;
    hub.apply(&[
        namespace(SYSTEM),
        namespace(RESEARCH),
        storage::local_pv("consilium-store", &hub.volume("store")?, &hub.name, "20Gi", Access::OncePod),
        tls_secret(SYSTEM, "consilium-gateway-tls", &pair, &sites.certificate()),
        secret(SYSTEM, "consilium-hub-key", &[("key", &random_seed()?)]),
    ])?;
    helm_install(hub, "consilium-crds", SYSTEM, &json!({}))?;
    let values = json!({
        "images": {
            "operator": federation.image("consilium-operator")?,
            "courier": federation.image("consilium-agent")?,
        },
        "store": {"storageClassName": "local", "size": "20Gi"},
        "gateway": {"service": {"type": "NodePort", "nodePort": GATEWAY_PORT}},
        "taskPort": {"clusterIP": TASK_ADDRESS},
    });
    helm_install(hub, "consilium-hub", SYSTEM, &values)?;
    wait::rollout(hub, SYSTEM, "deployment/consilium-operator")
}

fn trust_sites(federation: &Federation) -> Result<()> {
    let site = |cluster: &Cluster| {
        json!({
            "apiVersion": "consilium.health/v1alpha1", "kind": "TrustSite", "metadata": {"name": cluster.name},
            "spec": {"displayName": format!("{} (simulated)", cluster.name), "accepted": true, "studyNamespaces": [RESEARCH]},
        })
    };
    federation.hub.apply(&federation.sites.iter().map(site).collect::<Vec<_>>())
}

fn site(federation: &Federation, cluster: &Cluster, pair: &pki::Pair, authority: &str, data: &Path) -> Result<()> {
    let folder = data::hospital(data, &cluster.name);
    let mut objects = vec![
        namespace(AGENT),
        storage::local_pv("agent-state", &cluster.volume("agent")?, &cluster.name, "10Gi", Access::OncePod),
        tls_secret(AGENT, "consilium-site-tls", pair, authority),
    ];
    let claims = [
        ("train", folder.join("train")),
        ("evaluate", folder.join("eval")),
        ("labels", folder.join("labels")),
        ("work", cluster.volume("work")?),
    ];
    for (name, path) in &claims {
        objects.push(storage::local_pv(name, path, &cluster.name, "10Gi", Access::Shared));
    }
    cluster.apply(&objects)?;
    helm_install(cluster, "consilium-crds", AGENT, &json!({}))?;
    let values = json!({
        "images": {
            "agent": federation.image("consilium-agent")?,
            "courier": federation.image("consilium-agent")?,
            "evaluator": federation.image("consilium-trainer")?,
            "inference": federation.image("consilium-inference")?,
        },
        "gateway": {"url": format!("https://{}:{GATEWAY_PORT}", pki::GATEWAY)},
        "state": {"storageClassName": "local", "size": "10Gi"},
        "taskPort": {"clusterIP": TASK_ADDRESS},
    });
    helm_install(cluster, "consilium-site", AGENT, &values)?;
    // The hospital's own claims: the chart knows nothing of its scans.
    cluster.apply(&claims.iter().map(|(name, _)| claim(name)).collect::<Vec<_>>())?;
    wait::rollout(cluster, AGENT, "statefulset/consilium-agent")
}

fn claim(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name, "namespace": TASKS},
        "spec": {
            "accessModes": ["ReadWriteMany"],
            "storageClassName": "local",
            "selector": {"matchLabels": {"consilium.health/volume": name}},
            "resources": {"requests": {"storage": "1Gi"}},
        },
    })
}
