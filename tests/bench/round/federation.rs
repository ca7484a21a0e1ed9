//! One federation from its keys to its last round, with a clock on the rounds.

use std::fs;
use std::io::Write as _;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use consilium_agent::{Entropy, State};
use consilium_crds::roster::{DATA_KEY, LABEL, RosterDocument, RosterSite, key_text};
use consilium_crds::site_policy::SitePolicySpec;
use consilium_crds::{FederatedStudy, ModelReleaseSpec, TrainingRound, schema};
use consilium_federation::SiteName;
use consilium_federation::model::ModelManifest;
use consilium_operator::controllers::release::cut;
use consilium_secagg::identity::SiteKey;
use futures::StreamExt as _;
use kube::api::{Api, DynamicObject, Patch, PatchParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::{ApiResource, GroupVersionKind};
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Client, Config, ResourceExt as _};
use serde_json::{Value, json};
use xtask::apiserver::ApiServer;
use xtask::federation::pki::Authority;

use crate::hospital::Setup;
use crate::hub::{self, Process};

/// Longest that anything here may take.
const PATIENCE: Duration = Duration::from_secs(900);
const NAMESPACE: &str = "research";
const STUDY: &str = "bench";
const IMAGE: &str = "registry.example/trainer@sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";

/// How large.
#[derive(Clone, Copy)]
pub(crate) struct Shape {
    pub(crate) sites: usize,
    /// Millions of parameters.
    pub(crate) millions: usize,
    /// Rounds whose median counts; one more goes before them.
    pub(crate) rounds: u32,
}

impl Shape {
    fn names(&self) -> Vec<SiteName> {
        (0..self.sites).map(|n| format!("site-{n:03}").parse().expect("a label")).collect()
    }
}

/// What was found.
pub(crate) struct Found {
    /// Median time from the end of one round to the end of the next, seconds.
    pub(crate) seconds: f64,
    pub(crate) hub_mb: f64,
    /// Of the hospital that needed most.
    pub(crate) hospital_mb: f64,
}

pub(crate) struct Federation {
    shape: Shape,
    folder: tempfile::TempDir,
    server: ApiServer,
}

impl Federation {
    pub(crate) fn new(shape: Shape) -> Self {
        // The cache and not /tmp, which is memory on many machines.
        let folder = xtask::cache::sub("bench").expect("a cache");
        let folder = tempfile::tempdir_in(folder).expect("a folder");
        Self { shape, folder, server: ApiServer::start().expect("an API server") }
    }

    pub(crate) fn measure(&self) -> Found {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
        runtime.block_on(self.run())
    }

    async fn run(&self) -> Found {
        let (folder, kubeconfig) = (self.folder.path(), self.server.kubeconfig());
        let file = Kubeconfig::read_from(&kubeconfig).expect("a kubeconfig");
        let config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await.expect("a config");
        let client = Client::try_from(config).expect("a client");
        let kubeconfig = kubeconfig.to_string_lossy().into_owned();

        let manifest = hub::store_model(&folder.join("store"), self.shape.millions * 1_000_000).await;
        write_update(&folder.join("update.safetensors"), &manifest);
        let (gateways, sites) = (authority("gateways"), authority("sites"));
        let pair = gateways.gateway(std::net::Ipv4Addr::LOCALHOST).expect("a certificate");
        hub::tls_folder(&folder.join("gateway-tls"), &pair, &sites.certificate());
        let governor = SiteKey::from_seed(&[99; 32]);
        install(&client).await;
        for name in self.shape.names() {
            let at = folder.join(name.as_str());
            let pair = sites.site(name.as_str()).expect("a certificate");
            hub::tls_folder(&at.join("tls"), &pair, &gateways.certificate());
            apply(&client, &trust_site(&name)).await;
            apply(&client, &namespace(name.as_str())).await;
        }
        apply(&client, &self.roster(&governor)).await;

        let (operator, port) = hub::start(folder, &kubeconfig);
        apply(&client, &release(&manifest)).await;
        apply(&client, &self.study(&manifest)).await;
        let policy = policy(&accepted(&client).await, &governor);
        let gateway = format!("https://127.0.0.1:{port}");
        let hospitals: Vec<Process> =
            (self.shape.names().into_iter()).map(|site| self.hospital(site, &gateway, &policy, &kubeconfig)).collect();
        let mut ends = tokio::time::timeout(PATIENCE, self.ends(&client)).await.unwrap_or_else(|_| {
            panic!(
                "the rounds did not end; hub's log: {}",
                fs::read_to_string(folder.join("hub.log")).unwrap_or_default()
            )
        });
        ends.sort();
        let mut took: Vec<f64> = ends.windows(2).map(|pair| (pair[1] - pair[0]).as_secs_f64()).collect();
        took.sort_by(f64::total_cmp);
        let hospital_mb = hospitals.iter().map(Process::peak_mb).fold(0.0, f64::max);
        Found { seconds: took[took.len() / 2], hub_mb: operator.peak_mb(), hospital_mb }
    }

    /// When each round ended with all hospitals in its sum.
    async fn ends(&self, client: &Client) -> Vec<Instant> {
        let rounds: Api<TrainingRound> = Api::namespaced(client.clone(), NAMESPACE);
        let mut seen = std::pin::pin!(watcher(rounds, watcher::Config::default()).applied_objects());
        let mut ended = std::collections::BTreeMap::new();
        while ended.len() <= self.shape.rounds as usize {
            let round = seen.next().await.expect("the watch goes on").expect("the API server");
            let Some(state) = round.status.as_ref().and_then(|status| status.round.as_ref()) else { continue };
            if state.is_over() {
                assert_eq!(state.contributors as usize, self.shape.sites, "{:?} {:?}", state.outcome, state.message);
                ended.entry(round.name_any()).or_insert_with(Instant::now);
            }
        }
        ended.into_values().collect()
    }

    fn hospital(&self, site: SiteName, gateway: &str, policy: &SitePolicySpec, kubeconfig: &str) -> Process {
        let folder = self.folder.path().join(site.as_str());
        let setup = Setup {
            namespace: site.to_string(),
            site,
            gateway: gateway.to_owned(),
            update: self.folder.path().join("update.safetensors"),
            policy: policy.clone(),
        };
        fs::write(folder.join("hospital.json"), serde_json::to_string(&setup).expect("JSON")).expect("written");
        let child = Command::new(std::env::current_exe().expect("this program"))
            .arg("hospital")
            .arg(&folder)
            .env("KUBECONFIG", kubeconfig)
            .stdin(Stdio::null())
            // Figures go to our output alone.
            .stdout(fs::File::create(folder.join("log")).expect("a log"))
            .spawn();
        Process(child.expect("a hospital starts"))
    }

    fn roster(&self, governor: &SiteKey) -> Value {
        let key = |name: &SiteName| {
            let state = State::open(&self.folder.path().join(name.as_str()).join("state"), Entropy::system().bytes32());
            state.and_then(|state| state.site_key(&Entropy::system())).expect("a volume").public()
        };
        let site = |name: SiteName| RosterSite { public_key: key_text(&key(&name)), name };
        let sites = self.shape.names().into_iter().map(site).collect();
        let document = RosterDocument { federation: "bench".into(), version: 1, sites, signatures: vec![] };
        let mut signed = document.signed().expect("a roster");
        signed.sign(governor);
        json!({"apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": "roster-1", "namespace": "default", "labels": {LABEL: "true"}},
            "data": {DATA_KEY: serde_json::to_string(&RosterDocument::of(&signed)).expect("JSON")}})
    }

    fn study(&self, manifest: &ModelManifest) -> Value {
        let sites: Vec<_> = self.shape.names().iter().map(|name| json!({"name": name})).collect();
        json!({"apiVersion": "consilium.health/v1alpha1", "kind": "FederatedStudy",
        "metadata": {"name": STUDY, "namespace": NAMESPACE},
        "spec": {
            "sites": sites,
            "trainer": {"image": IMAGE, "gpus": 0},
            "initialModel": {"digest": manifest.digest()},
            "aggregation": {"secure": {"minContributors": 3, "colluders": 0}, "clipNorm": "10"},
            // All are waited for, so that every round is the same.
            "rounds": {"max": self.shape.rounds + 1, "quorum": 3, "deadline": "1h", "stepLimit": "30m",
                "historyLimit": 100, "straggler": {"grace": "30m", "maxMissed": 2}},
        }})
    }
}

fn authority(name: &str) -> Authority {
    Authority::new(name).expect("an authority")
}

/// An update of small numbers, written as a trainer would, a piece at a time.
fn write_update(path: &std::path::Path, manifest: &ModelManifest) {
    let mut file = std::io::BufWriter::new(fs::File::create(path).expect("a file"));
    file.write_all(&manifest.safetensors_header()).expect("written");
    for i in 0..manifest.elements() {
        let value = ((i % 1000) as f32 - 500.0) * 1e-6;
        file.write_all(&value.to_le_bytes()).expect("written");
    }
    file.into_inner().expect("written").sync_all().expect("on disk");
}

fn namespace(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
}

fn trust_site(name: &SiteName) -> Value {
    json!({"apiVersion": "consilium.health/v1alpha1", "kind": "TrustSite", "metadata": {"name": name},
        "spec": {"accepted": true, "studyNamespaces": [NAMESPACE]}})
}

/// What a hospital that takes part in the study allows.
fn policy(study: &FederatedStudy, governor: &SiteKey) -> SitePolicySpec {
    let digest = study.status.as_ref().and_then(|status| status.spec_digest);
    let policy = json!({
        "participation": "Enabled",
        "hardware": [],
        "maxGPUs": 0,
        "registries": ["registry.example/"],
        "imageDigests": [],
        "resources": {"cpu": "1", "memory": "1Gi", "workClaim": "work"},
        "governance": {"federation": "bench", "required": 1,
            "keys": [{"id": "chair", "publicKey": key_text(&governor.public())}]},
        "studies": [{
            "study": format!("{NAMESPACE}/{STUDY}"), "uid": study.uid(), "specDigest": digest, "approval": "Automatic",
            "dataset": {"trainClaim": "train", "evaluateClaim": "evaluate", "labelsClaim": "labels"}
        }],
        "aggregation": {"minContributors": 3, "colluders": 0, "survivorDifference": "Allow"}
    });
    serde_json::from_value(policy).expect("a policy")
}

/// A release with the model that the study starts from: a study starts from nothing that its namespace has not.
fn release(manifest: &ModelManifest) -> Value {
    let key = ed25519_dalek::SigningKey::from_bytes(&hub::KEY);
    let digest = "sha256:".to_owned() + &"0".repeat(64);
    let spec = json!({
        "study": format!("{NAMESPACE}/earlier"), "studyUID": "1", "round": 1, "model": manifest.digest(),
        "specDigest": digest, "baseModel": digest, "trainerImage": IMAGE, "contributors": ["site-000"],
        "dice": "1.0000", "evidence": [],
        "attestation": {"keyID": cut::key_id(&key.verifying_key()), "signature": ""}
    });
    let mut spec: ModelReleaseSpec = serde_json::from_value(spec).expect("a release");
    cut::attest(&mut spec, &key);
    json!({"apiVersion": "consilium.health/v1alpha1", "kind": "ModelRelease",
        "metadata": {"name": "earlier-r1", "namespace": NAMESPACE}, "spec": spec})
}

/// Definitions and namespaces; returns when TrustSites are served.
async fn install(client: &Client) {
    for definition in schema::all() {
        apply(client, &serde_json::to_value(definition).expect("JSON")).await;
    }
    for name in [NAMESPACE, "consilium-hub-tasks"] {
        apply(client, &namespace(name)).await;
    }
    eventually("the kinds are served", async || {
        Api::<consilium_crds::RoundTask>::all(client.clone()).list(&Default::default()).await.ok()?;
        Api::<consilium_crds::TrustSite>::all(client.clone()).list(&Default::default()).await.ok()
    })
    .await;
}

/// The study, once it is accepted.
async fn accepted(client: &Client) -> FederatedStudy {
    let studies: Api<FederatedStudy> = Api::namespaced(client.clone(), NAMESPACE);
    eventually("the study is accepted", async || {
        let study = studies.get(STUDY).await.ok()?;
        let conditions = &study.status.as_ref()?.conditions;
        let accepted = conditions.iter().any(|c| c.type_ == "Accepted" && c.status == "True");
        accepted.then_some(study)
    })
    .await
}

async fn eventually<T>(what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    for _ in 0..1200 {
        if let Some(answer) = ask().await {
            return answer;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("within a minute not: {what}");
}

async fn apply(client: &Client, object: &Value) {
    let dynamic: DynamicObject = serde_json::from_value(object.clone()).expect("an object");
    let types = dynamic.types.clone().expect("types");
    let mut resource = ApiResource::from_gvk(&GroupVersionKind::try_from(&types).expect("a kind"));
    if types.kind == "FederatedStudy" {
        resource.plural = "federatedstudies".into();
    }
    let api: Api<DynamicObject> = match &dynamic.metadata.namespace {
        Some(namespace) => Api::namespaced_with(client.clone(), namespace, &resource),
        None => Api::all_with(client.clone(), &resource),
    };
    let name = dynamic.metadata.name.clone().expect("a name");
    api.patch(&name, &PatchParams::apply("bench").force(), &Patch::Apply(&dynamic)).await.expect("applied");
}
