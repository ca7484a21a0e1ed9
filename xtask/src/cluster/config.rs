//! The configuration files of a cluster's components, as values. Each says why it differs from a default.

use std::path::Path;

use base64::Engine as _;
use serde_json::{Value, json};

use super::{DNS, POD_SUBNETS, Paths};

/// A kubeconfig with everything inline, so that it can be copied anywhere.
pub(super) fn kubeconfig(cluster: &str, server: &str, authority: &str, certificate: &str, key: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": cluster, "cluster": {"server": server, "certificate-authority-data": base64(authority)}}],
        "users": [{"name": cluster, "user": {
            "client-certificate-data": base64(certificate), "client-key-data": base64(key),
        }}],
        "contexts": [{"name": cluster, "context": {"cluster": cluster, "user": cluster}}],
        "current-context": cluster,
    })
}

fn base64(text: &str) -> String {
    base64::engine::general_purpose::STANDARD.encode(text)
}

/// The kubelet's.
pub(super) fn kubelet(paths: &Paths, cgroup_root: &str) -> Value {
    let pki = paths.pki();
    json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        // Version 1 hosts are still in use, and the same settings serve both versions. Everything that a pod runs is
        // below the cluster's own group, by which it is found.
        "failCgroupV1": false,
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": cgroup_root,
        "cgroupsPerQOS": true,
        "enforceNodeAllocatable": [],
        "failSwapOn": false,
        "containerRuntimeEndpoint": format!("unix://{}", paths.containerd_socket().display()),
        "authentication": {
            "anonymous": {"enabled": false},
            "webhook": {"enabled": true},
            "x509": {"clientCAFile": pki.join("ca.crt")},
        },
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": pki.join("kubelet.crt"),
        "tlsPrivateKeyFile": pki.join("kubelet.key"),
        // There is no iptables here, and kube-proxy does without.
        "makeIPTablesUtilChains": false,
        // A process without CAP_SYS_RESOURCE may not lower it.
        "oomScoreAdj": 0,
        // The disk is shared with everything else on the machine, and no image comes from a registry: one that is
        // collected would be lost.
        "evictionHard": {"memory.available": "200Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
        "imageGCHighThresholdPercent": 100,
        "clusterDNS": [DNS],
        "clusterDomain": "cluster.local",
        // Never the machine's own: what it names cannot be reached from here.
        "resolvConf": "",
        "volumePluginDir": paths.state.join("volume-plugins"),
        "podLogsDir": paths.state.join("pod-logs"),
    })
}

/// kube-proxy's. The conntrack limits belong to the machine and cannot be written from a namespace.
pub(super) fn proxy(cluster: &str, kubeconfig: &Path) -> Value {
    json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "nftables",
        "clientConnection": {"kubeconfig": kubeconfig},
        "hostnameOverride": cluster,
        "clusterCIDR": POD_SUBNETS,
        "conntrack": {
            "maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s",
        },
    })
}

/// Name of a cluster's network. libcni remembers pods under it in a folder of the machine's.
pub(super) fn network(cluster: &str) -> String {
    format!("consilium-{cluster}")
}

/// The pods' network: a plugin of ours that chooses the subnet, then `ptp`, in which all traffic between pods passes the
/// node's firewall, as it would not on a bridge.
pub(super) fn cni(cluster: &str, paths: &Paths) -> Value {
    json!({
        "cniVersion": "1.0.0",
        "name": network(cluster),
        "plugins": [{
            "type": "consilium-cni",
            "ipMasq": false,
            "ipam": {
                "type": "host-local",
                // Under /run, so that addresses are free again when a restart of the machine took the pods.
                "dataDir": paths.run.join("ipam/pods"),
                "ranges": [[{"subnet": "10.88.0.0/24"}]],
                "routes": [{"dst": "0.0.0.0/0"}],
            },
        }],
    })
}

/// containerd's. Nothing of it may lie in a place that it shares with another containerd.
pub(super) fn containerd(paths: &Paths, pause_image: &str, cni_bin: &Path) -> String {
    let (state, run) = (paths.state.display(), paths.run.display());
    format!(
        r#"version = 3
root = "{state}/containerd"
state = "{run}/containerd"
disabled_plugins = ["io.containerd.grpc.v1.healthcheck", "io.containerd.tracing.processor.v1.otlp"]

[grpc]
  address = "{socket}"

[ttrpc]
  address = "{socket}.ttrpc"

[plugins."io.containerd.shim.v1.manager"]
  socket_dir = "{run}/s"

[plugins."io.containerd.internal.v1.opt"]
  path = "{state}/opt"

[plugins."io.containerd.nri.v1.nri"]
  disable = true

[plugins."io.containerd.cri.v1.images".pinned_images]
  sandbox = "{pause_image}"

# A container without CAP_SYS_RESOURCE cannot lower its score, and runc then dies without saying why.
[plugins."io.containerd.cri.v1.runtime"]
  restrict_oom_score_adj = true
  netns_mounts_under_state_dir = true
  cdi_spec_dirs = []

[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"

[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
  Root = "{run}/runc"

[plugins."io.containerd.cri.v1.runtime".cni]
  use_internal_loopback = true
  bin_dirs = ["{cni_bin}"]
  conf_dir = "{state}/cni"
"#,
        socket = paths.containerd_socket().display(),
        cni_bin = cni_bin.display(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two containerds that share a folder destroy each other's containers.
    #[test]
    fn nothing_of_containerd_is_shared_between_clusters() {
        let of = |name: &str| {
            let paths = Paths {
                state: format!("/cache/state/{name}").into(),
                logs: "/cache/logs".into(),
                run: format!("/run/consilium/{name}").into(),
            };
            containerd(&paths, "pause", Path::new("/bin"))
        };
        let (alder, birch) = (of("alder"), of("birch"));
        for (a, b) in
            alder.lines().zip(birch.lines()).filter(|(line, _)| line.contains("\"/") && !line.contains("bin_dirs"))
        {
            assert_ne!(a, b);
        }
    }
}
