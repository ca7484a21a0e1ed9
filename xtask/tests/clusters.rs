//! The clusters themselves, run for real: needs root and a few minutes, and leaves the clusters up.
//! `cargo test -p xtask --test clusters -- --ignored --test-threads 1`

#![allow(clippy::unwrap_used, reason = "a helper that fails is a test that fails")]

use std::{collections::BTreeMap, net::Ipv4Addr, process::Command};

use serde_json::{Value, json};
use xtask::{
    cluster::{self, Cluster, Spec},
    images::{self, Image},
    tools,
};

fn pod(namespace: &str, name: &str, image: &Image, args: &[String]) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "labels": {"app": name}},
        "spec": {
            "restartPolicy": "Never", "terminationGracePeriodSeconds": 0, "enableServiceLinks": false,
            "containers": [{"name": "probe", "image": image.reference(), "imagePullPolicy": "IfNotPresent", "args": args}],
        },
    })
}

fn service(namespace: &str, name: &str, spec: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": namespace}, "spec": spec})
}

fn namespace(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
}

fn serve(ports: &[&str]) -> Vec<String> {
    std::iter::once("serve").chain(ports.iter().copied()).map(str::to_owned).collect()
}

/// Makes the namespaces anew, waits for their service accounts, starts the servers and returns their addresses.
fn servers(
    cluster: &Cluster,
    image: &Image,
    namespaces: &[&str],
    pods: &[(&str, &str, &[&str])],
    services: &[Value],
) -> BTreeMap<String, Ipv4Addr> {
    for name in namespaces {
        cluster.kubectl(&["delete", "namespace", name, "--ignore-not-found"]).unwrap();
    }
    cluster.apply(&namespaces.iter().map(|name| namespace(name)).collect::<Vec<_>>()).unwrap();
    for name in namespaces {
        cluster.kubectl(&["-n", name, "wait", "--for=create", "serviceaccount/default", "--timeout=60s"]).unwrap();
    }
    cluster.apply(services).unwrap();
    cluster
        .apply(&pods.iter().map(|(ns, name, ports)| pod(ns, name, image, &serve(ports))).collect::<Vec<_>>())
        .unwrap();
    pods.iter()
        .map(|(ns, name, _)| {
            let resource = format!("pod/{name}");
            cluster.kubectl(&["-n", ns, "wait", "--for=condition=Ready", &resource, "--timeout=90s"]).unwrap();
            let ip = cluster.kubectl(&["-n", ns, "get", &resource, "-o", "jsonpath={.status.podIP}"]).unwrap();
            ((*name).to_owned(), ip.parse().unwrap())
        })
        .collect()
}

/// Outcome by target, as a pod of the namespace sees it.
fn reach(cluster: &Cluster, image: &Image, namespace: &str, targets: &[String]) -> BTreeMap<String, String> {
    let args: Vec<String> = std::iter::once("reach".to_owned()).chain(targets.iter().cloned()).collect();
    cluster.kubectl(&["-n", namespace, "delete", "pod", "seeker", "--ignore-not-found"]).unwrap();
    cluster.apply(&[pod(namespace, "seeker", image, &args)]).unwrap();
    let wait = ["-n", namespace, "wait", "--for=jsonpath={.status.phase}=Succeeded", "pod/seeker", "--timeout=90s"];
    cluster.kubectl(&wait).unwrap();
    outcomes(&cluster.kubectl(&["-n", namespace, "logs", "seeker"]).unwrap())
}

fn outcomes(log: &str) -> BTreeMap<String, String> {
    log.lines()
        .filter_map(|line| {
            let mut words = line.split(' ');
            Some((words.next()?.to_owned(), words.next()?.to_owned()))
        })
        .collect()
}

/// Outcome by target, from inside a network namespace without a pod.
fn reach_from(command: &mut Command, targets: &[String]) -> BTreeMap<String, String> {
    let output = command.arg("reach").args(targets).output().unwrap();
    outcomes(&String::from_utf8_lossy(&output.stdout))
}

fn expect(who: &str, outcomes: &BTreeMap<String, String>, expected: &[(String, &str)]) {
    for (target, outcome) in expected {
        let found = outcomes.get(target).map(String::as_str);
        assert_eq!(found, Some(*outcome), "{who} → {target}; all: {outcomes:#?}");
    }
}

fn targets(expected: &[(String, &str)]) -> Vec<String> {
    expected.iter().map(|(target, _)| target.clone()).collect()
}

fn tcp(ip: impl ToString, port: u16) -> String {
    format!("tcp={}:{port}", ip.to_string())
}

const SPEC: [&str; 4] = ["alder", "birch", "cedar", "damson"];

fn up() -> (Vec<Cluster>, Image) {
    let clusters = cluster::up(&Spec { hospitals: SPEC.map(str::to_owned).to_vec() }).unwrap();
    let image = images::probe(&tools::ensure().unwrap()).unwrap();
    images::load_all(&clusters, std::slice::from_ref(&image)).unwrap();
    (clusters, image)
}

/// Were one of these lines wrong, scans could leave a hospital, or a task could read the cluster it runs in, and nothing
/// else would notice.
#[test]
#[ignore = "starts clusters: needs root"]
fn the_perimeter_holds() {
    let (clusters, image) = up();
    let (hub, alder) = (&clusters[0], &clusters[1]);
    let gateway = service(
        "consilium-hub",
        "gateway",
        json!({
            "type": "NodePort", "selector": {"app": "gateway"},
            "ports": [{"port": 8443, "nodePort": cluster::GATEWAY_PORT}],
        }),
    );
    let task_service = |namespace: &str, app: &str| {
        service(
            namespace,
            "consilium-agent-tasks",
            json!({
                "clusterIP": cluster::TASK_SERVICE, "selector": {"app": app}, "ports": [{"port": cluster::TASK_PORT}],
            }),
        )
    };
    let hub_pods = servers(
        hub,
        &image,
        &["consilium-hub", "consilium-hub-tasks"],
        &[("consilium-hub", "gateway", &["8443", "8444", "9000"])],
        &[gateway, task_service("consilium-hub", "gateway")],
    );
    let pods = servers(
        alder,
        &image,
        &["consilium-agent", "consilium-tasks", "ward"],
        &[
            ("consilium-agent", "agent", &["8444", "9000"]),
            ("consilium-tasks", "inference", &["8080", "9000"]),
            ("ward", "viewer", &["8080"]),
        ],
        &[task_service("consilium-agent", "agent")],
    );
    let before = alder.counters().unwrap();
    let (agent, inference, viewer) = (pods["agent"], pods["inference"], pods["viewer"]);
    let gateway = tcp(cluster::HUB, cluster::GATEWAY_PORT);
    let task_port = tcp(cluster::TASK_SERVICE, cluster::TASK_PORT);

    let agents = [
        (gateway.clone(), "connected"),
        (tcp("gateway.consilium.local", cluster::GATEWAY_PORT), "connected"),
        (tcp(cluster::HUB, 6443), "refused"),
        (tcp(clusters[2].ip, 6443), "refused"),
        (tcp("10.96.0.1", 443), "connected"),
        (tcp(inference, 8080), "connected"),
    ];
    expect("agent", &reach(alder, &image, "consilium-agent", &targets(&agents)), &agents);

    let tasks = [
        (task_port.clone(), "connected"),
        (tcp(agent, 8444), "refused"),
        (tcp(agent, 9000), "refused"),
        (tcp("10.96.0.1", 443), "refused"),
        (tcp(alder.ip, 6443), "refused"),
        (tcp(alder.ip, 10250), "refused"),
        (tcp("10.88.1.1", 10250), "refused"),
        (tcp(viewer, 8080), "refused"),
        (tcp(inference, 8080), "refused"),
        (tcp("10.96.0.10", 53), "refused"),
        (tcp(cluster::HUB, cluster::GATEWAY_PORT), "refused"),
        (tcp("1.1.1.1", 443), "refused"),
        ("lookup=kubernetes.default.svc.cluster.local".to_owned(), "error"),
    ];
    let seen = reach(alder, &image, "consilium-tasks", &targets(&tasks));
    assert_ne!(seen["lookup=kubernetes.default.svc.cluster.local"], "connected");
    expect("task", &seen, &tasks[..tasks.len() - 1]);

    let others = [
        (tcp(inference, 8080), "connected"),
        (tcp(inference, 9000), "refused"),
        (tcp(agent, 9000), "connected"),
        (gateway.clone(), "refused"),
        (tcp(cluster::HUB, 6443), "refused"),
        ("lookup=kubernetes.default.svc.cluster.local".to_owned(), "connected"),
        ("lookup=gateway.consilium.local".to_owned(), "connected"),
        (tcp("1.1.1.1", 443), "refused"),
    ];
    expect("another pod", &reach(alder, &image, "ward", &targets(&others)), &others);

    let host = [
        (gateway.clone(), "refused"),
        (tcp("10.88.0.254", 80), "refused"),
        (tcp(inference, 8080), "connected"),
        (tcp(alder.ip, 6443), "connected"),
        // The API server reaches webhooks by their Services.
        (tcp("10.96.0.1", 443), "connected"),
        (tcp("10.96.0.10", 53), "connected"),
    ];
    expect("the node", &reach_from(&mut alder.command("probe"), &targets(&host)), &host);

    let outside = [
        (tcp(alder.ip, 6443), "timeout"),
        (tcp(alder.ip, 10250), "timeout"),
        (tcp(alder.ip, 22), "timeout"),
        (tcp(cluster::HUB, 6443), "timeout"),
        (gateway.clone(), "connected"),
    ];
    let mut wan = Command::new("nsenter");
    wan.arg("--net=/run/netns/cons-wan").arg("--").arg(tools::ensure().unwrap().program("probe"));
    expect("outside", &reach_from(&mut wan, &targets(&outside)), &outside);

    let hub_tasks = [
        (task_port, "connected"),
        (tcp(hub_pods["gateway"], 9000), "refused"),
        (tcp("10.96.0.1", 443), "refused"),
        (tcp(hub.ip, 6443), "refused"),
        (tcp(alder.ip, 6443), "refused"),
    ];
    expect("a hub task", &reach(hub, &image, "consilium-hub-tasks", &targets(&hub_tasks)), &hub_tasks);

    let after = alder.counters().unwrap();
    let grown = |name: &str| after[name].packets - before[name].packets;
    assert_eq!(grown("agent_to_hub"), 2, "the agent's two connections and nothing else crossed");
    assert_eq!(grown("task_to_agent"), 1);
    assert_eq!(grown("spoofed_dropped"), 0);
    for name in [
        "pod_to_outside_rejected",
        "host_to_outside_rejected",
        "task_to_other_rejected",
        "task_to_host_rejected",
        "pod_to_task_rejected",
        "outside_to_inside_dropped",
    ] {
        assert!(grown(name) > 0, "{name}: {after:?}");
    }
}

/// Every study's Job is like this one: were the capacity or a label missing, it would wait for ever.
#[test]
#[ignore = "starts clusters: needs root"]
fn a_job_gets_its_gpus_in_every_hospital() {
    let (clusters, image) = up();
    let job = json!({
        "apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "gpus", "namespace": "default"},
        "spec": {"backoffLimit": 0, "template": {"spec": {
            "restartPolicy": "Never", "automountServiceAccountToken": false,
            "nodeSelector": {"nvidia.com/gpu.product": "Tesla-V100-SXM3-32GB", "nvidia.com/gpu.machine": "NVIDIA-DGX-2"},
            "securityContext": {"runAsNonRoot": true, "runAsUser": 65532, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [{
                "name": "main", "image": image.reference(), "args": ["reach", "tcp=127.0.0.1:1"],
                "resources": {"limits": {"nvidia.com/gpu": "8"}},
                "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}, "readOnlyRootFilesystem": true},
            }],
        }}},
    });
    for cluster in &clusters[1..] {
        cluster.kubectl(&["delete", "job", "gpus", "--ignore-not-found"]).unwrap();
        cluster.apply(std::slice::from_ref(&job)).unwrap();
    }
    for cluster in &clusters[1..] {
        cluster.kubectl(&["wait", "--for=condition=Complete", "job/gpus", "--timeout=90s"]).unwrap();
    }
}

/// The agent's ledger and the scans lie on such volumes.
#[test]
#[ignore = "starts clusters: needs root"]
fn a_claim_binds_its_volume_and_a_restricted_pod_writes_to_it() {
    let (clusters, image) = up();
    let alder = &clusters[1];
    let folder = alder.volume("ledger").unwrap();
    let mut pod = pod("default", "writer", &image, &serve(&["8080"]));
    pod["spec"]["securityContext"] = json!({"runAsNonRoot": true, "runAsUser": 65532, "fsGroup": 65532});
    pod["spec"]["volumes"] = json!([{"name": "ledger", "persistentVolumeClaim": {"claimName": "ledger"}}]);
    pod["spec"]["containers"][0]["volumeMounts"] = json!([{"name": "ledger", "mountPath": "/ledger"}]);
    let claim = json!({
        "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "ledger", "namespace": "default"},
        "spec": {"accessModes": ["ReadWriteOncePod"], "storageClassName": "local", "volumeName": "ledger",
            "resources": {"requests": {"storage": "1Gi"}}},
    });
    let volume = cluster::storage::local_pv("ledger", &folder, &alder.name, "1Gi", cluster::storage::Access::OncePod);
    alder.kubectl(&["delete", "pod/writer", "pvc/ledger", "pv/ledger", "--ignore-not-found"]).unwrap();
    alder.apply(&[volume, claim, pod]).unwrap();
    alder.kubectl(&["wait", "--for=condition=Ready", "pod/writer", "--timeout=90s"]).unwrap();
    alder.kubectl(&["delete", "pod/writer", "pvc/ledger", "pv/ledger"]).unwrap();
}

/// What is left of our clusters anywhere on the machine, a line for each thing.
fn remains() -> Vec<String> {
    let shell = |script: &str| {
        let output = Command::new("sh").args(["-c", script]).output().unwrap();
        String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect::<Vec<_>>()
    };
    let state = xtask::cache::root().unwrap().join("state");
    let is_ours = |command: &str| {
        ["/run/consilium", state.to_str().unwrap()].iter().any(|folder| command.contains(folder))
            || ["/pause", "/coredns", "/probe"].iter().any(|program| command.starts_with(program))
    };
    // Zombies have no command line; they are gone when their parent looks.
    let processes = std::fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| {
        let command = std::fs::read_to_string(entry.path().join("cmdline")).ok()?.replace('\0', " ");
        is_ours(&command).then(|| format!("process {} {command}", entry.file_name().display()))
    });
    let elsewhere = [
        "sed -n 's/.*\\(consilium\\|cons-\\).*/mount &/p' /proc/self/mountinfo",
        "ip netns list | sed -n 's/^cons-/namespace &/p'",
        "find /sys/fs/cgroup -type d -name consilium",
        "ls -d /run/consilium /run/containerd /var/lib/cni /var/lib/kubelet /usr/libexec/kubernetes /opt/containerd 2>/dev/null",
        "nft list ruleset; ip -o link | grep veth",
        "find /var/log/containers -lname '*consilium*' 2>/dev/null",
    ];
    processes.chain(elsewhere.into_iter().flat_map(shell)).collect()
}

/// A developer's machine must be as it was, whatever was killed and when: here containerd, a kubelet, a shim and an
/// API server, and `up` itself several times over.
#[test]
#[ignore = "starts clusters: needs root"]
fn what_is_taken_down_leaves_nothing() {
    let (_, _) = up();
    let kill = "for p in $(pgrep -f 'consilium/bin/(containerd |containerd-shim|kube (kubelet|kube-apiserver)).*alder'); do kill -9 $p; done";
    Command::new("sh").args(["-c", kill]).status().unwrap();
    cluster::up(&Spec::default()).expect("what was killed is started again");
    Command::new("sh").args(["-c", kill]).status().unwrap();
    cluster::down().unwrap();
    assert_eq!(remains(), Vec::<String>::new());

    for milliseconds in [300, 1500, 4000, 7000] {
        let mut up =
            Command::new(env!("CARGO_BIN_EXE_xtask")).args(["cluster", "up", "--hospitals", "alder"]).spawn().unwrap();
        std::thread::sleep(std::time::Duration::from_millis(milliseconds));
        up.kill().unwrap();
        up.wait().unwrap();
        cluster::down().unwrap();
        assert_eq!(remains(), Vec::<String>::new(), "after a kill at {milliseconds} ms");
    }
}
