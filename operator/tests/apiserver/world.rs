//! A hub beside a real API server, with the rights that it has in a cluster and no more.

use std::path::Path;
use std::sync::Arc;

use consilium_crds::roster::{DATA_KEY, LABEL, RosterDocument, RosterSite, key_text};
use consilium_crds::schema;
use consilium_federation::SiteName;
use consilium_operator::controllers::Controllers;
use consilium_operator::controllers::context::{Parts, Settings};
use consilium_operator::hub::Hub;
use consilium_operator::init_port;
use consilium_operator::metrics::Metrics;
use consilium_operator::store::BlobStore;
use consilium_secagg::identity::SiteKey;
use consilium_secagg::roster::Governance;
use ed25519_dalek::SigningKey;
use kube::api::{Api, DynamicObject, Patch, PatchParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::{ApiResource, GroupVersionKind};
use kube::{Client, Config};
use serde_json::{Value, json};

use crate::hospital::key_of;
use crate::progress::{self, until};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

pub const SITES: [&str; 4] = ["alder", "birch", "cedar", "damson"];
pub const SYSTEM: &str = "consilium-system";
pub const TASKS: &str = "consilium-hub-tasks";
const OPERATOR: &str = "system:serviceaccount:consilium-system:consilium-operator";

/// A client with every right, and one with the operator's.
pub async fn clients(kubeconfig: &str) -> (Client, Client) {
    let file = Kubeconfig::read_from(kubeconfig).unwrap();
    let mut config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await.unwrap();
    let admin = Client::try_from(config.clone()).unwrap();
    progress::beside(admin.clone());
    config.auth_info.impersonate = Some(OPERATOR.into());
    (admin, Client::try_from(config).unwrap())
}

/// A running hub.
pub struct Running {
    pub hub: Hub,
    pub port: u16,
    pub context: Arc<consilium_operator::controllers::context::Context>,
    shutdown: CancellationToken,
    task: JoinHandle<()>,
}

impl Running {
    /// Starts a hub on a store, as `main` does.
    pub async fn start(client: Client, folder: &Path) -> Self {
        let store = BlobStore::open(folder).await.unwrap();
        let boot = store.next_boot().await.unwrap();
        let metrics = Metrics::new();
        let hub = Hub::new(store, boot, metrics.clone(), SigningKey::from_bytes(&[5; 32]));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let task_address = format!("https://127.0.0.1:{port}");
        let identity = init_port::identity(&folder.join("task-port"), &task_address).unwrap();
        let settings = Settings {
            namespace: SYSTEM.into(),
            task_namespace: TASKS.into(),
            task_address,
            courier_image: "registry.example/agent@sha256:0".into(),
            task_certificate: identity.certificate.clone(),
            unnamed_for: std::time::Duration::ZERO,
        };
        let key = SigningKey::from_bytes(&[5; 32]);
        let clock: consilium_operator::gateway::Clock = Arc::new(jiff::Timestamp::now);
        let controllers = Controllers::new(Parts { client, hub: hub.clone(), metrics, key, settings, clock });
        let (shutdown, context) = (CancellationToken::new(), controllers.context());
        let served = init_port::serve(listener, identity, context.clone(), shutdown.clone());
        let (synced, ready) = tokio::sync::oneshot::channel();
        let driven = controllers.run(move || synced.send(()).unwrap_or_default(), shutdown.clone());
        let task = tokio::spawn(async move {
            let (served, driven) = tokio::join!(served, driven);
            served.unwrap();
            driven.unwrap();
        });
        ready.await.expect("the caches are synced");
        Self { hub, port, context, shutdown, task }
    }

    /// Ends it and waits for it.
    pub async fn stop(self) {
        self.shutdown.cancel();
        self.task.await.unwrap();
    }
}

/// Creates or changes an object.
pub async fn apply(client: &Client, object: Value) {
    let dynamic: DynamicObject = serde_json::from_value(object).unwrap();
    let types = dynamic.types.clone().unwrap();
    let resource = ApiResource::from_gvk(&GroupVersionKind::try_from(&types).unwrap());
    let resource = match types.kind.as_str() {
        "FederatedStudy" => ApiResource { plural: "federatedstudies".into(), ..resource },
        _ => resource,
    };
    let api: Api<DynamicObject> = match &dynamic.metadata.namespace {
        Some(namespace) => Api::namespaced_with(client.clone(), namespace, &resource),
        None => Api::all_with(client.clone(), &resource),
    };
    let name = dynamic.metadata.name.clone().unwrap();
    api.patch(&name, &PatchParams::apply("test").force(), &Patch::Apply(&dynamic)).await.unwrap();
}

/// Definitions, namespaces, the operator's rights and four hospitals.
pub async fn install(client: &Client) {
    for crd in schema::all() {
        apply(client, serde_json::to_value(crd).unwrap()).await;
    }
    for name in [TASKS, "research", "consilium-system"] {
        apply(client, json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})).await;
    }
    rights(client).await;
    for site in SITES {
        let site: SiteName = site.parse().unwrap();
        let object = json!({"apiVersion": "consilium.health/v1alpha1", "kind": "TrustSite",
            "metadata": {"name": site}, "spec": {"accepted": true, "studyNamespaces": ["research"]}});
        // The definition may not be served yet.
        until("TrustSites are served", async || {
            let api: Api<consilium_crds::TrustSite> = Api::all(client.clone());
            api.list(&Default::default()).await.ok()
        })
        .await;
        apply(client, object).await;
    }
}

async fn rights(client: &Client) {
    let kinds =
        ["trustsites", "federatedstudies", "trainingrounds", "modelreleases", "modelpromotions", "clinicalplans"];
    let ours = |resources: Value, verbs: Value| json!({"apiGroups": ["consilium.health"], "resources": resources, "verbs": verbs});
    let cluster = json!([
        ours(json!(kinds), json!(["get", "list", "watch"])),
        ours(json!(kinds.map(|k| format!("{k}/status"))), json!(["update", "patch"])),
        ours(json!(["trainingrounds"]), json!(["create", "patch", "delete"])),
        ours(json!(["modelreleases"]), json!(["create"])),
        ours(json!(["modelpromotions"]), json!(["patch"])),
        {"apiGroups": ["events.k8s.io"], "resources": ["events"], "verbs": ["create", "patch"]},
        {"apiGroups": ["authentication.k8s.io"], "resources": ["tokenreviews"], "verbs": ["create"]},
        {"apiGroups": ["authorization.k8s.io"], "resources": ["subjectaccessreviews"], "verbs": ["create"]},
    ]);
    let tasks = json!([
        {"apiGroups": ["batch"], "resources": ["jobs"], "verbs": ["list", "watch", "create", "delete"]},
        {"apiGroups": [""], "resources": ["pods"], "verbs": ["list", "watch"]},
        {"apiGroups": [""], "resources": ["secrets"], "verbs": ["create"]},
    ]);
    let rosters = json!([{"apiGroups": [""], "resources": ["configmaps"], "verbs": ["list", "watch"]}]);
    let rbac = "rbac.authorization.k8s.io/v1";
    let subject = json!([{"kind": "ServiceAccount", "name": "consilium-operator", "namespace": "consilium-system"}]);
    let name = "consilium-operator";
    let reference = |kind| json!({"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": name});
    for object in [
        json!({"apiVersion": rbac, "kind": "ClusterRole", "metadata": {"name": name}, "rules": cluster}),
        json!({"apiVersion": rbac, "kind": "ClusterRoleBinding", "metadata": {"name": name},
            "roleRef": reference("ClusterRole"), "subjects": subject}),
        json!({"apiVersion": rbac, "kind": "Role", "metadata": {"name": name, "namespace": TASKS}, "rules": tasks}),
        json!({"apiVersion": rbac, "kind": "RoleBinding", "metadata": {"name": name, "namespace": TASKS},
            "roleRef": reference("Role"), "subjects": subject}),
        json!({"apiVersion": rbac, "kind": "Role", "metadata": {"name": name, "namespace": SYSTEM}, "rules": rosters}),
        json!({"apiVersion": rbac, "kind": "RoleBinding", "metadata": {"name": name, "namespace": SYSTEM},
            "roleRef": reference("Role"), "subjects": subject}),
    ] {
        apply(client, object).await;
    }
}

/// The governance that the hospitals of these tests have pinned.
pub fn governance() -> Governance {
    Governance { federation: "north".into(), keys: vec![governor().public()], required: 1 }
}

fn governor() -> SiteKey {
    SiteKey::from_seed(&[99; 32])
}

/// The ConfigMap of a signed roster.
pub fn roster(version: u64, sites: &[&str]) -> Value {
    let site = |name: &&str| RosterSite { name: name.parse().unwrap(), public_key: key_text(&key_of(name).public()) };
    let sites = sites.iter().map(site).collect();
    let document = RosterDocument { federation: "north".into(), version, sites, signatures: vec![] };
    let mut signed = document.signed().unwrap();
    signed.sign(&governor());
    json!({"apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": format!("roster-{version}"), "namespace": SYSTEM, "labels": {LABEL: "true"}},
        "data": {DATA_KEY: serde_json::to_string(&RosterDocument::of(&signed)).unwrap()}})
}

/// A study of the four hospitals.
pub fn study(name: &str, max: u32, sites: &[&str]) -> Value {
    let sites: Vec<_> = sites.iter().map(|s| json!({"name": s})).collect();
    json!({"apiVersion": "consilium.health/v1alpha1", "kind": "FederatedStudy",
    "metadata": {"name": name, "namespace": "research"},
    "spec": {
        "sites": sites,
        "trainer": {"image": format!("registry.example/trainer@sha256:{}", "a".repeat(64)), "gpus": 1,
            "config": {"network": {"width": 8}}},
        "initialModel": {"seed": 7},
        "aggregation": {"secure": {"minContributors": 3}, "clipNorm": "10"},
        "rounds": {"max": max, "quorum": 3, "deadline": "1h", "stepLimit": "10m", "historyLimit": 1,
            "straggler": {"grace": "1s", "maxMissed": 2}},
        "gate": {"metric": "dice", "min": "0.8", "perSiteMin": "0.7", "minCases": 2},
    }})
}
