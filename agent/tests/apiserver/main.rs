//! The task controller against a real API server: what it makes is accepted, what it writes is taken, and every word of
//! the policy shows.
//!
//! Needs a server: `cargo xtask apiserver -- cargo test -p consilium-agent --test apiserver`. There are no kubelets
//! behind it, so the test plays the pods.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a helper that fails is a test that fails")]

mod cluster;
mod models;
#[path = "../../../tests/support/progress.rs"]
mod progress;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use clap::Parser as _;
use cluster::Cluster;
use consilium_agent::link::{Announce as _, AnnounceError, ObjectError, ObjectSource};
use consilium_agent::site::KubeAnnounce;
use consilium_agent::{
    Clock, Config, Context, Enforcement, Entropy, Facts, Metrics, ObjectCache, State, deployments, tasks,
};
use consilium_crds::round_task::Irreversible;
use consilium_crds::{FederatedStudySpec, RoundTask, SitePolicy};
use consilium_federation::Digest;
use consilium_federation::assignment::{Assignment, Item, ItemState, RoundWork, Work};
use consilium_federation::digest::canonical_json;
use consilium_federation::round::SiteReason;
use consilium_federation::task::TaskKind;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{Pod, Secret};
use kube::api::{DeleteParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, ResourceExt as _};
use progress::until;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

const KUBECONFIG: &str = "CONSILIUM_APISERVER_KUBECONFIG";
const NAMESPACE: &str = "consilium-tasks";
/// How the name of a Job begins that removes folders of tasks that are gone.
const CLEAN: &str = "consilium-clean";

/// The hub's objects, in memory.
struct Objects(BTreeMap<Digest, Bytes>);

impl ObjectSource for Objects {
    fn fetch(&self, digest: Digest) -> futures::future::BoxFuture<'_, Result<Bytes, ObjectError>> {
        let found = self.0.get(&digest).cloned();
        let none = ObjectError::Unavailable { digest, why: "the test has no such object".into() };
        Box::pin(async move { found.ok_or(none) })
    }
}

fn spec() -> FederatedStudySpec {
    let sites: Vec<Value> = ["alder", "birch", "cedar"].iter().map(|name| json!({"name": name})).collect();
    serde_json::from_value(json!({
        "sites": sites,
        "trainer": {"image": format!("registry.example/trainer@{}", Digest::of(b"image")), "gpus": 0},
        "initialModel": {"seed": 7},
        "aggregation": {"secure": {"protocol": "None", "minContributors": 3}, "clipNorm": "10"},
        "rounds": {"max": 5, "quorum": 3, "deadline": "1h"},
    }))
    .unwrap()
}

fn policy(approval: &str) -> Arc<SitePolicy> {
    let study = json!({
        "study": "research/hippocampus", "uid": "study", "specDigest": spec().digest(), "approval": approval,
        "dataset": {"trainClaim": "train", "evaluateClaim": "evaluate", "labelsClaim": "labels"},
    });
    let spec = json!({
        "participation": "Enabled", "maxGPUs": 0, "registries": ["registry.example/"],
        "resources": {"cpu": "1", "memory": "1Gi", "workClaim": "work"},
        "studies": [study],
        "aggregation": {"minContributors": 3, "allowPlaintextUpdates": true},
        "releases": {"maxStage": "Shadow", "require": [{"stage": "Shadow", "approvals": 0}]},
    });
    let policy = json!({"apiVersion": "consilium.health/v1alpha1", "kind": "SitePolicy", "metadata": {"name": "default"}, "spec": spec});
    Arc::new(serde_json::from_value(policy).unwrap())
}

fn item(uid: &str, round: u32, state: ItemState, clock: &Clock) -> Item {
    let work = RoundWork {
        study: "research/hippocampus".parse().unwrap(),
        study_uid: "study".into(),
        spec_digest: spec().digest(),
        round,
        kind: TaskKind::Train,
        model: Digest::of(b"model"),
        schema: Digest::of(b"schema"),
        roster_size: 3,
        attempt: 0,
        step: None,
        roster: None,
        inputs: None,
        deadline: clock.now() + jiff::SignedDuration::from_hours(1),
    };
    Item { uid: uid.into(), state, work: Work::Round(work) }
}

/// A context whose desired state and policy the test sets.
struct Agent {
    ctx: Arc<Context>,
    desired: watch::Sender<Arc<Assignment>>,
    policy: watch::Sender<Option<Arc<SitePolicy>>>,
    revision: u64,
}

impl Agent {
    fn new(client: Client, folder: &Path) -> Self {
        let digest = Digest::of(b"x");
        let config = Config::parse_from([
            "consilium-agent".to_owned(),
            "--gateway=https://hub:30443".to_owned(),
            format!("--courier-image=registry.example/agent@{digest}"),
            format!("--evaluator-image=registry.example/trainer@{digest}"),
            format!("--inference-image=registry.example/inference@{digest}"),
        ]);
        let (desired, wanted) =
            watch::channel(Arc::new(Assignment { hub_epoch: "e".into(), revision: 0, rosters: vec![], items: vec![] }));
        let (policy_in, policy_out) = watch::channel(Some(policy("Automatic")));
        let metrics = Metrics::new().unwrap();
        let release = models::release();
        let source = Objects(BTreeMap::from([
            (spec().digest(), canonical_json(&spec()).into()),
            (release.digest(), canonical_json(&release).into()),
        ]));
        let state = State::open(&folder.join("state"), [7; 32]).unwrap();
        let now = Clock::system().now();
        state.put_blob("tasks/probe", &serde_json::to_vec(&json!({"at": now, "reached": null})).unwrap()).unwrap();
        let ctx = Context {
            config,
            site: "alder".parse().unwrap(),
            state,
            facts: Facts::default(),
            desired: wanted,
            policy: policy_out,
            objects: ObjectCache::new(folder.join("objects"), 1 << 30, Arc::new(source), metrics.clone()).unwrap(),
            kube: client,
            metrics,
            desk: tasks::Desk::default(),
            enforcement: watch::Sender::new(Enforcement::Unknown),
            unrecorded: consilium_agent::state::Unrecorded::default(),
            hazards: consilium_agent::policy::SeenHazards::default(),
            clock: Clock::system(),
            entropy: Entropy::system(),
            shutdown: CancellationToken::new(),
        };
        Self { ctx: Arc::new(ctx), desired, policy: policy_in, revision: 0 }
    }

    fn want(&mut self, items: Vec<Item>) {
        self.revision += 1;
        self.desired.send_replace(Arc::new(Assignment {
            hub_epoch: "e".into(),
            revision: self.revision,
            rosters: vec![],
            items,
        }));
    }

    fn fact(&self, uid: &str) -> Option<SiteReason> {
        self.ctx.facts.round(uid, TaskKind::Train).map(|fact| fact.reason)
    }
}

#[tokio::test]
async fn rounds_come_and_go_on_a_real_api_server() {
    let Ok(path) = std::env::var(KUBECONFIG) else {
        println!("not run, since {KUBECONFIG} is not set; see the head of this file");
        return;
    };
    if std::env::var("CONSILIUM_APISERVER_SUITE").is_ok_and(|suite| suite != "hospital") {
        return;
    }
    let _ = rustls::crypto::ring::default_provider().install_default();
    let kubeconfig = Kubeconfig::read_from(path).unwrap();
    let config = kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
    let cluster = Cluster { client: Client::try_from(config).unwrap() };
    progress::beside(cluster.client.clone());
    cluster.install().await;
    let folder = tempfile::tempdir().unwrap();
    let mut agent = Agent::new(cluster.client.clone(), folder.path());
    let running = tokio::spawn(tasks::run(Arc::clone(&agent.ctx)));
    let serving = tokio::spawn(deployments::run(Arc::clone(&agent.ctx)));

    of_two_writers_one_goes_on(&cluster).await;
    bad_data_is_reported_once(&cluster, &mut agent).await;
    a_veto_stops_and_an_approval_goes_on(&cluster, &mut agent).await;
    a_removed_job_and_a_stored_update(&cluster, &agent).await;
    another_round_under_a_known_uid_is_refused(&cluster, &mut agent).await;
    an_admission_policy_is_heard(&cluster, &mut agent).await;
    a_straggler_is_stopped_when_the_round_evaluates(&cluster, &mut agent).await;
    a_clock_that_is_off_ends_no_task(&cluster, &mut agent).await;
    figures(&agent);
    a_tombstone_leaves_nothing(&cluster, &mut agent).await;
    models::what_the_api_server_refuses_stands_on_the_model_and_at_the_hub(&cluster, &mut agent).await;
    models::a_model_that_is_asked_too_high_stands_where_the_hospital_says(&cluster, &mut agent).await;
    models::a_hazard_withdraws_a_model_until_it_is_closed(&cluster, &mut agent).await;
    models::a_definition_that_goes_first_takes_all_along(&cluster, &mut agent).await;

    agent.ctx.shutdown.cancel();
    running.await.unwrap().unwrap();
    serving.await.unwrap().unwrap();
}

/// What Prometheus would read now, for the check that asks it every panel.
fn figures(agent: &Agent) {
    if let Some(folder) = std::env::var_os("CONSILIUM_FIGURES") {
        std::fs::write(Path::new(&folder).join("agent.txt"), agent.ctx.metrics.render().unwrap()).unwrap();
    }
}

/// Two agents on two copies of a volume see one RoundTask: the API server itself must let only one act through.
async fn of_two_writers_one_goes_on(cluster: &Cluster) {
    let digest = Digest::of(b"x");
    let task: RoundTask = serde_json::from_value(json!({
        "apiVersion": "consilium.health/v1alpha1", "kind": "RoundTask", "metadata": {"name": "shown"},
        "spec": {
            "study": "research/hippocampus", "studyUID": "study", "specDigest": digest, "roundUID": "round-0",
            "round": 1, "kind": "Train", "model": digest, "image": format!("registry.example/trainer@{digest}"),
            "gpus": 0, "deadline": "2199-01-01T00:00:00Z",
        },
    }))
    .unwrap();
    let tasks: Api<RoundTask> = cluster.api();
    tasks.create(&PostParams::default(), &task).await.unwrap();
    let announce = KubeAnnounce::new(cluster.client.clone(), NAMESPACE);
    let act = |attempt| Irreversible { attempt, step: "Share".into(), ledger_head: digest };
    let (first, second) = (announce.recall("shown").await.unwrap(), announce.recall("shown").await.unwrap());
    assert_eq!((first.act.clone(), &first), (None, &second));
    announce.announce("shown", &act(1), &first.version).await.unwrap();
    let lost = announce.announce("shown", &act(2), &second.version).await;
    assert!(matches!(lost, Err(AnnounceError::Changed(_))), "{lost:?}");
    assert_eq!(announce.recall("shown").await.unwrap().act, Some(act(1)));
    tasks.delete("shown", &DeleteParams::default()).await.unwrap();
    let gone = announce.recall("shown").await;
    assert!(matches!(gone, Err(AnnounceError::Gone(_))), "{gone:?}");
}

async fn bad_data_is_reported_once(cluster: &Cluster, agent: &mut Agent) {
    agent.want(vec![item("round-1", 1, ItemState::Active, &agent.ctx.clock)]);
    let name = "hippocampus-r1-train";
    let job: Job = until("the Job of try 1", || cluster.get("hippocampus-r1-train-1")).await;
    let secret: Secret = cluster.get("hippocampus-r1-train-1").await.expect("the credential comes before the Job");
    assert_eq!(secret.data.unwrap().keys().collect::<Vec<_>>(), ["ca.crt", "token"]);
    cluster.reason(name, SiteReason::Queued).await;
    cluster.pod(&job, "Running", json!({"running": {"startedAt": agent.ctx.now()}})).await;
    cluster.reason(name, SiteReason::Training).await;
    let log = "error: scan.nii.gz: truncated";
    cluster.pod(&job, "Running", json!({"terminated": {"exitCode": 42, "reason": "Error", "message": log}})).await;
    let task = cluster.reason(name, SiteReason::InvalidData).await;
    let conditions = task.status.unwrap().conditions;
    let succeeded = conditions.iter().find(|c| c.type_ == "Succeeded").unwrap();
    assert_eq!((succeeded.status.as_str(), succeeded.message.as_str()), ("False", "scan.nii.gz: truncated"));
    assert_eq!(agent.fact("round-1"), Some(SiteReason::InvalidData));
    assert!(cluster.get::<Job>("hippocampus-r1-train-2").await.is_none(), "bad data is not tried again");
}

async fn a_veto_stops_and_an_approval_goes_on(cluster: &Cluster, agent: &mut Agent) {
    agent.policy.send_replace(Some(policy("Denied")));
    let (first, second) = ("round-1", "round-2");
    let clock = agent.ctx.clock.clone();
    agent.want(vec![item(first, 1, ItemState::Active, &clock), item(second, 2, ItemState::Active, &clock)]);
    until("the refusal", || async { (agent.fact(second) == Some(SiteReason::DeniedByPolicy)).then_some(()) }).await;
    assert!(cluster.get::<RoundTask>("hippocampus-r2-train").await.is_none(), "a refused round leaves no object");

    agent.policy.send_replace(Some(policy("Automatic")));
    let job: Job = until("the Job of try 1", || cluster.get("hippocampus-r2-train-1")).await;
    cluster.pod(&job, "Running", json!({"running": {"startedAt": agent.ctx.now()}})).await;
    cluster.reason("hippocampus-r2-train", SiteReason::Training).await;

    agent.policy.send_replace(Some(policy("Denied")));
    let task = cluster.reason("hippocampus-r2-train", SiteReason::DeniedByPolicy).await;
    let approved = task.status.unwrap().conditions.into_iter().find(|c| c.type_ == "Approved").unwrap();
    assert!(approved.status == "False" && approved.message.contains("approval is Denied"), "{approved:?}");
    until("the Job is being removed", || async {
        let job: Job = cluster.get("hippocampus-r2-train-1").await.expect("it is there until its pod has ended");
        job.metadata.deletion_timestamp.map(drop)
    })
    .await;

    // Both would work in one folder.
    agent.policy.send_replace(Some(policy("Automatic")));
    cluster.reason("hippocampus-r2-train", SiteReason::Queued).await;
    assert!(cluster.get::<Job>("hippocampus-r2-train-2").await.is_none(), "a try beside the pod of the one before");
    cluster.collect("hippocampus-r2-train-1").await;
    let job: Job = until("the Job of try 2", || cluster.get("hippocampus-r2-train-2")).await;
    assert_eq!(job.labels()["consilium.health/mode"], "deliver", "what try 1 left is looked for");
}

/// The agent's service account under an admission policy of the hospital: the last rung, and a no like any other.
async fn an_admission_policy_is_heard(cluster: &Cluster, agent: &mut Agent) {
    let (clock, uid) = (agent.ctx.clock.clone(), "round-3");
    let name = "no-tasks";
    cluster.forbid(name, ("batch", "jobs"), "no GPUs at night").await;
    let probe: Job = serde_json::from_value(json!({
        "metadata": {"name": "probe"},
        "spec": {"template": {"spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "i"}]}}},
    }))
    .unwrap();
    let dry = PostParams { dry_run: true, ..PostParams::default() };
    let let_in = || async { cluster.api::<Job>().create(&dry, &probe).await.is_ok() };
    until("the admission policy is in force", || async { (!let_in().await).then_some(()) }).await;

    agent.want(vec![item(uid, 3, ItemState::Active, &clock)]);
    let task = cluster.reason("hippocampus-r3-train", SiteReason::DeniedByPolicy).await;
    let told = task.status.unwrap().conditions.into_iter().find(|c| c.type_ == "Succeeded").unwrap().message;
    assert!(told.contains("no GPUs at night"), "{told}");
    assert_eq!(agent.fact(uid), Some(SiteReason::DeniedByPolicy));
    let words = agent.ctx.facts.refusal(uid, TaskKind::Train, SiteReason::DeniedByPolicy);
    assert!(words.is_some_and(|words| words.contains("no GPUs at night")), "the SitePolicy says it too");
    cluster.allow(name).await;
    until("the admission policy is gone", || async { let_in().await.then_some(()) }).await;
    // A changed SitePolicy is a reason to ask again at once.
    let mut changed = policy("Automatic");
    Arc::make_mut(&mut changed).metadata.generation = Some(2);
    agent.policy.send_replace(Some(changed));
    let _: Job = until("the Job once it is let in", || cluster.get("hippocampus-r3-train-1")).await;
}

/// The round evaluates while this hospital still trains: what trains must not keep its GPUs.
async fn a_straggler_is_stopped_when_the_round_evaluates(cluster: &Cluster, agent: &mut Agent) {
    let mut evaluate = item("round-3", 3, ItemState::Active, &agent.ctx.clock);
    let Work::Round(work) = &mut evaluate.work else { panic!("not a round") };
    work.kind = TaskKind::Evaluate;
    agent.want(vec![evaluate]);
    until("the straggler's Job is being removed", || async {
        let job: Option<Job> = cluster.get("hippocampus-r3-train-1").await;
        job?.metadata.deletion_timestamp.map(drop)
    })
    .await;
    cluster.reason("hippocampus-r3-train", SiteReason::Missed).await;
    cluster.collect("hippocampus-r3-train-1").await;
}

/// The node's clock is five hours ahead of the hub's, and the hub's deadline four hours past by it: the training begins all
/// the same, and its Job has the hour that is left.
async fn a_clock_that_is_off_ends_no_task(cluster: &Cluster, agent: &mut Agent) {
    let now = agent.ctx.now();
    let hours = jiff::SignedDuration::from_hours;
    agent.ctx.heard_clock(Some(now - hours(5)), now);
    let mut late = item("round-5", 5, ItemState::Active, &agent.ctx.clock);
    let Work::Round(work) = &mut late.work else { panic!("not a round") };
    work.deadline = now - hours(4);
    agent.want(vec![late]);
    let job: Job = until("the Job of try 1", || cluster.get("hippocampus-r5-train-1")).await;
    let seconds = job.spec.unwrap().active_deadline_seconds.unwrap();
    assert!((3000..=3600).contains(&seconds), "{seconds}");
    agent.ctx.heard_clock(Some(now), now);
}

async fn a_removed_job_and_a_stored_update(cluster: &Cluster, agent: &Agent) {
    let name = "hippocampus-r2-train";
    // It was queued with try 1 already.
    let task = cluster.of_try(name, 2, SiteReason::Queued).await;
    assert_eq!(task.status.clone().unwrap().job_name.as_deref(), Some("hippocampus-r2-train-2"));
    let mut writer = agent.ctx.state.begin_update("round-2").unwrap();
    writer.put_chunk(&[0; 64]).unwrap();
    let meta = consilium_agent::state::UpdateMeta {
        task_uid: task.uid().unwrap(),
        task_name: name.into(),
        study: "research/hippocampus".parse().unwrap(),
        spec_digest: spec().digest(),
        round: 2,
        base: Digest::of(b"model"),
        roster_size: 3,
        examples: 10,
        norm: "1.0".into(),
        clipped: false,
        delivered: agent.ctx.now(),
    };
    let stored = writer.finish(meta).unwrap();
    agent.ctx.desk.delivered();
    let status = cluster.reason(name, SiteReason::Ready).await.status.unwrap();
    assert_eq!(status.update_digest, Some(stored.digest()));
    assert!(status.conditions.iter().all(|c| c.status == "True"), "{:?}", status.conditions);
    assert_eq!(agent.fact("round-2"), Some(SiteReason::Ready));
}

/// The task and its result go by the UID: another study's image would run on this one's scans.
async fn another_round_under_a_known_uid_is_refused(cluster: &Cluster, agent: &mut Agent) {
    let (clock, uid) = (agent.ctx.clock.clone(), "round-2");
    agent.want(vec![item(uid, 4, ItemState::Active, &clock)]);
    until("the refusal", || async { (agent.fact(uid) == Some(SiteReason::DeniedByPolicy)).then_some(()) }).await;
    let words = agent.ctx.facts.refusal(uid, TaskKind::Train, SiteReason::DeniedByPolicy).unwrap();
    assert!(words.contains("round 4") && words.contains(uid), "{words}");
    assert!(cluster.tasks().await.iter().all(|task| task.spec.round != 4));
    agent.want(vec![item(uid, 2, ItemState::Active, &clock)]);
    until("its own round goes on", || async { (agent.fact(uid) == Some(SiteReason::Ready)).then_some(()) }).await;
}

async fn a_tombstone_leaves_nothing(cluster: &Cluster, agent: &mut Agent) {
    let clock = agent.ctx.clock.clone();
    let uids: Vec<String> = cluster.tasks().await.iter().filter_map(|task| task.uid()).collect();
    let cancelled = |uid: &str, round| item(uid, round, ItemState::Cancelled, &clock);
    let all = [("round-1", 1), ("round-2", 2), ("round-3", 3), ("round-5", 5)];
    agent.want(all.map(|(uid, round)| cancelled(uid, round)).to_vec());
    until("the tasks are gone", || async { cluster.tasks().await.is_empty().then_some(()) }).await;
    until("the rounds are acknowledged", || async {
        (agent.fact("round-1").is_none() && agent.fact("round-2").is_none()).then_some(())
    })
    .await;
    assert!(agent.ctx.state.updates().unwrap().is_empty());
    // A real cluster's garbage collector takes the Jobs; here they only must be owned.
    let jobs = cluster.api::<Job>().list(&kube::api::ListParams::default()).await.unwrap();
    assert!(jobs.items.iter().all(|job| job.name_any().starts_with(CLEAN) || !job.owner_references().is_empty()));
    cluster
        .api::<Pod>()
        .delete_collection(&DeleteParams::default().grace_period(0), &kube::api::ListParams::default())
        .await
        .unwrap();
    // Segmentations of patients lie in the folders; the last thing that is done is to remove them, in one Job or several.
    let mut removed = BTreeSet::new();
    while removed.len() < 2 * uids.len() {
        let clean = |jobs: Vec<Job>| jobs.into_iter().find(|job| job.name_any().starts_with(CLEAN));
        let job: Job = until("the Job that removes folders", || async {
            clean(cluster.api::<Job>().list(&kube::api::ListParams::default()).await.ok()?.items)
        })
        .await;
        let name = job.name_any();
        let args = job.spec.unwrap().template.spec.unwrap().containers.remove(0).args.unwrap();
        removed.extend(args.into_iter().filter(|arg| uids.iter().any(|uid| arg.starts_with(uid.as_str()))));
        cluster.complete(&name).await;
        until("the Job is being removed", || async {
            let job: Job = cluster.get(&name).await.expect("its finalizer is the test's to take");
            job.metadata.deletion_timestamp.map(drop)
        })
        .await;
        cluster.collect(&name).await;
    }
    until("no folder is known any more", || async {
        agent.ctx.state.blobs("tasks/folders/").unwrap().is_empty().then_some(())
    })
    .await;
}
