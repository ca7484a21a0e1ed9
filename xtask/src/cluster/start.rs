//! The way from nothing to a cluster that is ready: each step looks first whether it has been done.

use std::{fs, path::PathBuf, time::Duration};

use serde_json::Value;

use super::{
    API_SERVICE, Cluster, DNS, HUB, Paths, SERVICES, Site, cgroup,
    component::{self, Component, wait_for},
    config, down, firewall,
    net::{self, Netns},
    node, pki,
};
use crate::{
    cache,
    error::{Error, IoContext, Result},
    images::{self, Image},
    tools::{self, Tools},
};

/// Five clusters that start at once on two cores, beside a compiler, take their time.
const PATIENCE: Duration = Duration::from_secs(300);

const COREDNS: &str = include_str!("../../../tests/cluster/coredns.yaml");

/// The cluster's folders, namespace and firewall. What is left of one that lost its namespace (the machine was restarted)
/// is ended first: nothing in it could reach anything any more.
pub(super) fn prepare(site: &Site, tools: &Tools, hierarchies: &cgroup::Hierarchies) -> Result<()> {
    let paths = Paths::of(&site.name)?;
    if !net::is_joined(&site.name) {
        down::halt(&site.name, &paths, tools.bin(), hierarchies)?;
        net::create(&site.name, site.ip)?;
    }
    for folder in [&paths.run, &paths.state, &paths.logs, &paths.state.join("cni"), &paths.state.join("volumes")] {
        cache::folder(folder.clone())?;
    }
    let json = serde_json::to_vec_pretty(site).unwrap_or_default();
    cache::write_atomically(&paths.site(), &json)?;
    net::ensure_routes(&site.name)?;
    firewall::ensure(&Netns::of(&site.name), site, &paths.run.join("rules.nft"))
}

/// Starts what does not run and returns when the node and DNS are ready.
pub(super) fn start(
    site: &Site,
    tools: &Tools,
    system: &[Image],
    hierarchies: &cgroup::Hierarchies,
) -> Result<Cluster> {
    let paths = Paths::of(&site.name)?;
    let netns = Netns::of(&site.name);
    let groups = cgroup::create(hierarchies, &site.name)?;
    pki::ensure(&paths.pki(), &site.name, &pki::subjects(&site.name, site.ip, API_SERVICE))?;
    write_configuration(site, &paths, tools, system)?;
    let cluster = Cluster::new(site, tools.bin())?;

    let components = components(site, &paths, tools);
    let (first, rest): (Vec<_>, Vec<_>) = components.iter().partition(|component| FIRST.contains(&component.name));
    let alive = |of: &[&Component]| of.iter().try_for_each(|component| component.check(&paths));
    for component in &first {
        component.ensure(&paths, &netns, &groups)?;
    }
    let what = |what: &str| format!("{what} of cluster {}", site.name);
    wait_for(
        &what("the container runtime"),
        PATIENCE,
        &paths,
        || alive(&first),
        || crate::process::output(cluster.ctr().arg("version")),
    )?;
    images::load(&cluster, system)?;
    wait_for(
        &what("the API server's readiness"),
        PATIENCE,
        &paths,
        || alive(&first),
        || cluster.kubectl(&["get", "--raw", "/readyz"]),
    )?;
    for component in &rest {
        component.ensure(&paths, &netns, &groups)?;
    }
    let all: Vec<&Component> = components.iter().collect();
    let node = format!("node/{}", site.name);
    wait_for(
        &what("the node's readiness"),
        PATIENCE,
        &paths,
        || alive(&all),
        || cluster.kubectl(&["wait", "--for=condition=Ready", &node, "--timeout=3s"]),
    )?;
    // The condition may be one from before a restart; that the kubelet answers now is not.
    let kubelet = format!("/api/v1/nodes/{}/proxy/healthz", site.name);
    wait_for(&what("the kubelet"), PATIENCE, &paths, || alive(&all), || cluster.kubectl(&["get", "--raw", &kubelet]))?;
    node::ensure_hardware(&cluster, site.role)?;
    ensure_dns(&cluster, system)?;
    wait_for(&what("cluster DNS"), PATIENCE, &paths, || alive(&all), || dns(&cluster, &netns, tools))?;
    Ok(cluster)
}

/// Started before there is an API to talk to.
const FIRST: [&str; 3] = ["etcd", "kube-apiserver", "containerd"];

fn components(site: &Site, paths: &Paths, tools: &Tools) -> Vec<Component> {
    let kube = tools.program("kube").display().to_string();
    let component = |name: &'static str, argv: Vec<String>, inputs: Vec<PathBuf>| Component {
        name,
        argv,
        inputs,
        path: tools.bin().to_owned(),
    };
    let of_kube = |name: &'static str, flags: Vec<String>, inputs: Vec<PathBuf>| {
        let argv = [kube.clone(), name.to_owned()].into_iter().chain(flags).collect();
        component(name, argv, inputs)
    };
    let state = |file: &str| paths.state.join(file);
    let containerd = state("containerd.toml");
    let containerd_argv =
        [tools.program("containerd").display().to_string(), "--config".to_owned(), containerd.display().to_string()];
    vec![
        of_kube("etcd", etcd_flags(paths), vec![]),
        of_kube("kube-apiserver", apiserver_flags(site, paths), vec![]),
        component("containerd", containerd_argv.to_vec(), vec![containerd]),
        of_kube("kube-controller-manager", controller_manager_flags(paths), vec![]),
        of_kube("kube-scheduler", scheduler_flags(paths), vec![]),
        of_kube("kubelet", kubelet_flags(site, paths), vec![state("kubelet.json")]),
        of_kube("kube-proxy", vec![flag("config", state("proxy.json").display())], vec![state("proxy.json")]),
    ]
}

fn flag(name: &str, value: impl std::fmt::Display) -> String {
    format!("--{name}={value}")
}

fn etcd_flags(paths: &Paths) -> Vec<String> {
    vec![
        flag("data-dir", paths.state.join("etcd").display()),
        // What is in a test cluster may be lost with the machine's power, and five of these share one disk.
        "--unsafe-no-fsync".to_owned(),
        flag("listen-client-urls", "http://127.0.0.1:2379"),
        flag("advertise-client-urls", "http://127.0.0.1:2379"),
        flag("listen-peer-urls", "http://127.0.0.1:2380"),
        flag("log-level", "warn"),
    ]
}

fn apiserver_flags(site: &Site, paths: &Paths) -> Vec<String> {
    let pki = |file: &str| paths.pki().join(file).display().to_string();
    vec![
        flag("etcd-servers", "http://127.0.0.1:2379"),
        flag("tls-cert-file", pki("apiserver.crt")),
        flag("tls-private-key-file", pki("apiserver.key")),
        flag("client-ca-file", pki("ca.crt")),
        flag("service-account-issuer", "https://kubernetes.default.svc"),
        flag("service-account-key-file", pki("service-accounts.pub")),
        flag("service-account-signing-key-file", pki("service-accounts.key")),
        flag("authorization-mode", "Node,RBAC"),
        flag("enable-admission-plugins", "NodeRestriction"),
        flag("service-cluster-ip-range", SERVICES),
        flag("kubelet-client-certificate", pki("apiserver-kubelet-client.crt")),
        flag("kubelet-client-key", pki("apiserver-kubelet-client.key")),
        flag("kubelet-certificate-authority", pki("ca.crt")),
        // No DNS knows a node's name.
        flag("kubelet-preferred-address-types", "InternalIP"),
        flag("advertise-address", site.ip),
        flag("allow-privileged", true),
    ]
}

fn controller_manager_flags(paths: &Paths) -> Vec<String> {
    let pki = |file: &str| paths.pki().join(file).display().to_string();
    vec![
        flag("kubeconfig", paths.kubeconfig("controller-manager").display()),
        flag("service-account-private-key-file", pki("service-accounts.key")),
        flag("root-ca-file", pki("ca.crt")),
        flag("cluster-signing-cert-file", pki("ca.crt")),
        flag("cluster-signing-key-file", pki("ca.key")),
        "--use-service-account-credentials".to_owned(),
        // It would be made in /usr.
        flag("flex-volume-plugin-dir", paths.state.join("volume-plugins").display()),
        flag("leader-elect", false),
    ]
}

fn scheduler_flags(paths: &Paths) -> Vec<String> {
    vec![flag("kubeconfig", paths.kubeconfig("scheduler").display()), flag("leader-elect", false)]
}

fn kubelet_flags(site: &Site, paths: &Paths) -> Vec<String> {
    vec![
        flag("config", paths.state.join("kubelet.json").display()),
        flag("kubeconfig", paths.kubeconfig("kubelet").display()),
        flag("hostname-override", &site.name),
        flag("node-ip", site.ip),
        flag("root-dir", paths.state.join("kubelet").display()),
        flag("cert-dir", paths.pki().display()),
    ]
}

/// Writes every configuration file whose content is not there already.
fn write_configuration(site: &Site, paths: &Paths, tools: &Tools, system: &[Image]) -> Result<()> {
    let read = |file: String| {
        let path = paths.pki().join(file);
        fs::read_to_string(&path).at("read", &path)
    };
    let (authority, server) = (read("ca.crt".to_owned())?, format!("https://{}:6443", site.ip));
    for user in ["admin", "controller-manager", "scheduler", "kubelet", "proxy"] {
        let (certificate, key) = (read(format!("{user}.crt"))?, read(format!("{user}.key"))?);
        let kubeconfig = config::kubeconfig(&site.name, &server, &authority, &certificate, &key);
        write_json(&paths.kubeconfig(user), &kubeconfig)?;
    }
    let cni = tools::module_folder().join("consilium-cni");
    let plugin = tools.program("consilium-cni");
    write_changed(&plugin, &fs::read(&cni).at("read", &cni)?)?;
    let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(&plugin, executable).at("set permissions of", &plugin)?;
    write_json(&paths.state.join("kubelet.json"), &config::kubelet(paths, &cgroup::kubelet_root(&site.name)))?;
    write_json(&paths.state.join("proxy.json"), &config::proxy(&site.name, &paths.kubeconfig("proxy")))?;
    write_json(&paths.state.join("cni/10-consilium.conflist"), &config::cni(&site.name, paths))?;
    let containerd = config::containerd(paths, &reference(system, "pause"), tools.bin());
    write_changed(&paths.state.join("containerd.toml"), containerd.as_bytes())
}

fn reference(images: &[Image], name: &str) -> String {
    images.iter().find(|image| image.name == name).map(Image::reference).unwrap_or_default()
}

fn ensure_dns(cluster: &Cluster, system: &[Image]) -> Result<()> {
    let manifest = COREDNS.replace("image: IMAGE", &format!("image: {}", reference(system, "coredns")));
    let manifest = manifest.replace("HUB gateway", &format!("{HUB} gateway"));
    let applied = cluster.state.join("coredns.yaml");
    if fs::read_to_string(&applied).is_ok_and(|last| last == manifest) {
        return Ok(());
    }
    cluster.apply_yaml(&manifest)?;
    cache::write_atomically(&applied, manifest.as_bytes())
}

/// Asks whether DNS is up and whether the node's proxy leads to it: the first may be a condition from before a restart.
fn dns(cluster: &Cluster, netns: &Netns, tools: &Tools) -> Result<String> {
    let wait = ["-n", "kube-system", "wait", "--for=condition=Available", "deployment/coredns", "--timeout=3s"];
    cluster.kubectl(&wait)?;
    let answer = component::ask(netns, &tools.program("probe"), &["reach", &format!("tcp={DNS}:53")])?;
    if answer.contains(" connected ") {
        return Ok(answer);
    }
    Err(Error::Malformed {
        path: format!("the address of cluster DNS, {DNS}").into(),
        problem: answer.trim().to_owned(),
    })
}

fn write_json(path: &std::path::Path, value: &Value) -> Result<()> {
    write_changed(path, value.to_string().as_bytes())
}

fn write_changed(path: &std::path::Path, content: &[u8]) -> Result<()> {
    if fs::read(path).is_ok_and(|found| found == content) {
        return Ok(());
    }
    cache::write_atomically(path, content)
}

/// Asks the components of a cluster whether they run, for `cluster list`.
pub(super) fn stopped(site: &Site, tools: &Tools) -> Result<Vec<&'static str>> {
    let paths = Paths::of(&site.name)?;
    let components = components(site, &paths, tools);
    Ok(components.iter().filter(|component| component.check(&paths).is_err()).map(|component| component.name).collect())
}

/// Runs kubectl's health question, for `cluster list`.
pub(super) fn health(site: &Site, tools: &Tools) -> Result<String> {
    let kubeconfig = Paths::of(&site.name)?.kubeconfig("admin").display().to_string();
    component::ask(
        &Netns::of(&site.name),
        &tools.program("kubectl"),
        &["--kubeconfig", &kubeconfig, "get", "--raw", "/readyz"],
    )
}
