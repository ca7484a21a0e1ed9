use consilium_crds::site_policy::SitePolicySpec;
use consilium_federation::ladder::Stage;
use k8s_openapi::Metadata;
use serde_json::{Value, json};

use super::*;
use crate::policy::hazards_tests::{hazard, none as no_hazards};
use crate::policy::release_tests::{EXPIRY, approved, releases};
use crate::policy::tests::{policy, spec};
use crate::policy::{Hospital, places};
use crate::tasks::clean::CLEAN;
use crate::tasks::job::TASK_LABEL;

const NOW: &str = "2026-06-01T12:00:00Z";
const OLD: &str = "2026-06-01T11:00:00Z";
const NEW: &str = "2026-06-01T11:59:50Z";

fn object<T: serde::de::DeserializeOwned>(value: Value) -> Arc<T> {
    Arc::new(serde_json::from_value(value).unwrap())
}

fn owner(kind: &str, uid: &str) -> Value {
    json!([{"apiVersion": "v1", "kind": kind, "name": "n", "uid": uid}])
}

/// One of each, as the agent makes them.
struct Cluster {
    tasks: Vec<Arc<RoundTask>>,
    jobs: Vec<Arc<Job>>,
    task_pods: Vec<Arc<Pod>>,
    models: Vec<Arc<ModelDeployment>>,
    deployments: Vec<Arc<Deployment>>,
    model_pods: Vec<Arc<Pod>>,
}

impl Cluster {
    fn running() -> Self {
        let digest = consilium_federation::Digest::of(b"m");
        let task = json!({
            "apiVersion": "consilium.health/v1alpha1", "kind": "RoundTask",
            "metadata": {"name": "task", "uid": "task-uid", "creationTimestamp": OLD},
            "spec": {
                "study": "research/hippocampus", "studyUID": "uid-1", "specDigest": spec().digest(), "roundUID": "r",
                "round": 3, "kind": "Train", "model": digest, "image": spec().trainer.image, "gpus": 8,
                "deadline": "2199-01-01T00:00:00Z",
            },
        });
        let model = json!({
            "apiVersion": "consilium.health/v1alpha1", "kind": "ModelDeployment",
            "metadata": {"name": "model", "uid": "model-uid", "creationTimestamp": OLD},
            "spec": {
                "release": "r", "releaseDigest": digest, "model": consilium_federation::Digest::of(b"model"),
                "stage": "Shadow", "promotionUID": "p", "approved": approved(Stage::Shadow),
            },
        });
        Self {
            tasks: vec![object(task)],
            jobs: vec![job("job", "task-uid", OLD)],
            task_pods: vec![pod("job-pod", json!({}), owner("Job", "job-uid"), OLD)],
            models: vec![object(model)],
            deployments: vec![deployment("model", "model-uid", OLD)],
            model_pods: vec![pod("model-pod", json!({(MODEL_LABEL): "model"}), owner("ReplicaSet", "rs"), OLD)],
        }
    }

    fn stops(&self, policy: Option<&SitePolicySpec>) -> Vec<(Kind, String)> {
        self.judge(policy, true)
    }

    fn judge(&self, policy: Option<&SitePolicySpec>, readable: bool) -> Vec<(Kind, String)> {
        self.judge_with(policy, readable, Some(&self.jobs))
    }

    fn judge_with(
        &self,
        policy: Option<&SitePolicySpec>,
        readable: bool,
        jobs: Option<&[Arc<Job>]>,
    ) -> Vec<(Kind, String)> {
        self.find(policy, readable, jobs).into_iter().map(|stop| (stop.kind, stop.name)).collect()
    }

    fn all(&self, policy: Option<&SitePolicySpec>) -> Vec<Stop> {
        self.find(policy, true, Some(&self.jobs))
    }

    /// What the model's pod is told.
    fn told(&self, policy: &SitePolicySpec) -> Option<Told> {
        let hospital =
            Hospital { policy: Some(policy), hazards: Some(no_hazards()), image: None, now: NOW.parse().unwrap() };
        super::told(&self.model_pods[0], &self.models, &places(&self.models, &hospital))
    }

    fn decided(&self, policy: Option<&SitePolicySpec>, places: &BTreeMap<String, Place>) -> Vec<(Kind, String)> {
        let stops = self.find_with(policy, true, Some(&self.jobs), places);
        stops.into_iter().map(|stop| (stop.kind, stop.name)).collect()
    }

    fn find(&self, policy: Option<&SitePolicySpec>, readable: bool, jobs: Option<&[Arc<Job>]>) -> Vec<Stop> {
        let places = places(
            &self.models,
            &Hospital { policy, hazards: Some(no_hazards()), image: None, now: NOW.parse().unwrap() },
        );
        self.find_with(policy, readable, jobs, &places)
    }

    fn find_with(
        &self,
        policy: Option<&SitePolicySpec>,
        readable: bool,
        jobs: Option<&[Arc<Job>]>,
        places: &BTreeMap<String, Place>,
    ) -> Vec<Stop> {
        decide(&Seen {
            policy,
            enforcement: &Enforcement::Enforced,
            tasks: readable.then_some(&self.tasks),
            jobs,
            task_pods: &self.task_pods,
            models: readable.then_some(&self.models),
            places,
            deployments: &self.deployments,
            model_pods: &self.model_pods,
            now: NOW.parse().unwrap(),
        })
    }
}

fn job(name: &str, owner_uid: &str, made: &str) -> Arc<Job> {
    let owners = owner("RoundTask", owner_uid);
    let uid = format!("{name}-uid");
    object(json!({"metadata": {"name": name, "uid": uid, "creationTimestamp": made, "ownerReferences": owners}}))
}

fn deployment(name: &str, owner_uid: &str, made: &str) -> Arc<Deployment> {
    let owners = owner("ModelDeployment", owner_uid);
    let uid = format!("{name}-d");
    object(json!({"metadata": {"name": name, "uid": uid, "creationTimestamp": made, "ownerReferences": owners}}))
}

fn pod(name: &str, labels: Value, owners: Value, made: &str) -> Arc<Pod> {
    let metadata = json!({
        "name": name, "uid": name, "labels": labels, "creationTimestamp": made, "ownerReferences": owners,
    });
    object(json!({"metadata": metadata, "status": {"phase": "Running"}}))
}

fn with(changes: &[(&str, Value)]) -> SitePolicySpec {
    let mut all = vec![("/releases", releases(Some("Shadow")))];
    all.extend_from_slice(changes);
    policy(&all)
}

fn names(kinds: &[(Kind, &str)]) -> Vec<(Kind, String)> {
    kinds.iter().map(|(kind, name)| (*kind, (*name).to_owned())).collect()
}

const TASK: [(Kind, &str); 2] = [(Kind::Job, "job"), (Kind::Pod, "job-pod")];
const MODEL: [(Kind, &str); 3] =
    [(Kind::ModelDeployment, "model"), (Kind::Deployment, "model"), (Kind::Pod, "model-pod")];
const ALL: [(Kind, &str); 5] = [TASK[0], MODEL[0], MODEL[1], TASK[1], MODEL[2]];

/// "Stop now" must mean the trainings and the models, without a word from the hub; and each alone where that is what
/// the hospital wrote.
#[test]
fn each_word_of_the_policy_stops_what_it_names_and_nothing_else() {
    let cluster = Cluster::running();
    assert_eq!(cluster.stops(Some(&with(&[]))), []);
    assert_eq!(cluster.stops(Some(&with(&[("/participation", json!("Drain"))]))), []);
    assert_eq!(cluster.stops(Some(&with(&[("/participation", json!("Disabled"))]))), names(&ALL));
    assert_eq!(cluster.stops(Some(&with(&[("/suspend", json!({"tasks": true}))]))), names(&TASK));
    assert_eq!(cluster.stops(Some(&with(&[("/suspend", json!({"models": true}))]))), names(&MODEL));
    assert_eq!(cluster.stops(Some(&with(&[("/studies", json!([]))]))), names(&TASK));
    assert_eq!(cluster.stops(Some(&with(&[("/releases", json!({}))]))), names(&MODEL));
    assert_eq!(cluster.stops(None), names(&ALL));
}

/// The ledger is broken, or the volume new and the hub away, so the controller that usually judges approvals does not run.
/// A hospital removes the key of somebody who signed: the model goes, and nothing else does.
#[test]
fn a_model_whose_signers_no_longer_suffice_goes() {
    let cluster = Cluster::running();
    assert_eq!(cluster.stops(Some(&with(&[("/releases/keys", json!([]))]))), names(&MODEL));
    assert_eq!(cluster.stops(Some(&with(&[("/releases/require", json!([]))]))), names(&MODEL));
    let told = |policy: &SitePolicySpec| cluster.told(policy);
    assert_eq!(told(&with(&[])), Some(Told { stage: Stage::Shadow, until: Some(Timestamp::MAX) }));
    // Where the hospital says so, no lease reaches beyond the approvals.
    let withdraw = with(&[("/releases/onExpiry", json!("Withdraw"))]);
    assert_eq!(told(&withdraw), Some(Told { stage: Stage::Shadow, until: Some(EXPIRY.parse().unwrap()) }));
    assert_eq!(told(&with(&[("/releases/keys", json!([]))])), None);
    assert_eq!(super::told(&cluster.model_pods[0], &[], &BTreeMap::new()), None);
}

/// A model that a hazard withdraws has no pod from this look on; its object stays, or nobody could read why, and another
/// model of its line would rise for it.
#[test]
fn a_hazard_that_withdraws_ends_the_pod_and_keeps_the_object() {
    let cluster = Cluster::running();
    let policy = with(&[]);
    let mut hazards = crate::policy::Hazards::default();
    hazards.take(&[hazard("plane", "Withdraw", &[])]);
    let places = places(
        &cluster.models,
        &Hospital { policy: Some(&policy), hazards: Some(&hazards), image: None, now: NOW.parse().unwrap() },
    );
    let stops = cluster.decided(Some(&policy), &places);
    assert_eq!(stops, names(&[MODEL[1], MODEL[2]]));
}

/// The first looks of a new agent, before its controller has told the objects of the old one whose word they stand on: no
/// model is taken from clinicians for an upgrade, and none goes on for ever unvouched for.
#[test]
fn a_model_of_an_agent_of_before_is_left_on_what_it_has() {
    let mut cluster = Cluster::running();
    Arc::make_mut(&mut cluster.models[0]).spec.approved = None;
    assert_eq!(cluster.stops(Some(&with(&[]))), []);
    assert_eq!(cluster.stops(Some(&with(&[("/releases/keys", json!([]))]))), []);
    assert_eq!(cluster.told(&with(&[])), Some(Told { stage: Stage::Shadow, until: None }));
    assert_eq!(cluster.stops(Some(&with(&[("/suspend", json!({"models": true}))]))), names(&MODEL));
}

/// Somebody removes a RoundTask or a ModelDeployment by hand, leaving what it owns: nobody would ever judge that again.
#[test]
fn what_nothing_stands_behind_goes_once_the_watches_must_have_caught_up() {
    let mut cluster = Cluster::running();
    let allowed = with(&[]);
    cluster.tasks.clear();
    cluster.models.clear();
    assert_eq!(cluster.stops(Some(&allowed)), names(&[TASK[0], MODEL[1], TASK[1], MODEL[2]]));
    // Each of them is asked for by name before anything is stopped for its absence.
    let behind: Vec<(String, String, Option<String>)> = cluster
        .all(Some(&allowed))
        .into_iter()
        .flat_map(|stop| stop.behind.into_iter().map(|behind| (behind.kind, behind.name, behind.uid)))
        .collect();
    let task = ("RoundTask".to_owned(), "n".to_owned(), Some("task-uid".to_owned()));
    let model = ("ModelDeployment".to_owned(), "n".to_owned(), Some("model-uid".to_owned()));
    let named = ("ModelDeployment".to_owned(), "model".to_owned(), None);
    assert_eq!(behind, [task.clone(), model, task, named]);
    // What the policy forbids waits for no answer.
    let shut = with(&[("/participation", json!("Disabled"))]);
    assert!(cluster.all(Some(&shut)).iter().all(|stop| stop.behind.is_empty()));
    // The watch on RoundTasks is behind that on Jobs, or cannot be read at all: no word that they are gone.
    assert_eq!(cluster.judge(Some(&allowed), false), []);
    cluster.jobs = vec![job("job", "task-uid", NEW)];
    cluster.deployments = vec![deployment("model", "model-uid", NEW)];
    cluster.task_pods = vec![pod("job-pod", json!({}), owner("Job", "job-uid"), NEW)];
    cluster.model_pods = vec![pod("model-pod", json!({(MODEL_LABEL): "model"}), owner("ReplicaSet", "rs"), NEW)];
    assert_eq!(cluster.stops(Some(&allowed)), []);
    // A Job that was removed without its pod.
    cluster = Cluster::running();
    cluster.jobs.clear();
    assert_eq!(cluster.stops(Some(&allowed)), names(&[TASK[1]]));
}

/// A RoundTask that a newer version wrote cannot be read by this one: that must not keep anything running.
#[test]
fn what_holds_for_all_needs_no_readable_object() {
    let cluster = Cluster::running();
    let disabled = with(&[("/participation", json!("Disabled"))]);
    let expected = names(&[TASK[0], MODEL[1], TASK[1], MODEL[2]]);
    assert_eq!(cluster.judge(Some(&disabled), false), expected);
    assert_eq!(cluster.judge(Some(&with(&[])), false), []);
}

/// What has ended or is ending costs no call at every look; a pod that takes its minute is told to hurry.
#[test]
fn what_is_going_is_left_alone_unless_it_takes_its_time() {
    let mut cluster = Cluster::running();
    let disabled = with(&[("/participation", json!("Disabled"))]);
    cluster.models.clear();
    cluster.deployments.clear();
    cluster.model_pods.clear();
    let edit = |job: &mut Arc<Job>| Arc::make_mut(job).metadata_mut().deletion_timestamp = Some(time(NOW));
    edit(&mut cluster.jobs[0]);
    assert_eq!(cluster.stops(Some(&disabled)), names(&[TASK[1]]));
    let pod = Arc::make_mut(&mut cluster.task_pods[0]);
    pod.metadata.deletion_timestamp = Some(time(NOW));
    pod.metadata.deletion_grace_period_seconds = Some(60);
    assert_eq!(cluster.stops(Some(&disabled)), names(&[TASK[1]]));
    Arc::make_mut(&mut cluster.task_pods[0]).metadata.deletion_grace_period_seconds = Some(5);
    assert_eq!(cluster.stops(Some(&disabled)), []);
}

fn time(text: &str) -> k8s_openapi::apimachinery::pkg::apis::meta::v1::Time {
    k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(text.parse().unwrap())
}

/// The folders of tasks that are gone hold segmentations of patients: that they are removed is no training.
#[test]
fn clean_up_goes_on_whatever_is_stopped() {
    let mut cluster = Cluster::running();
    cluster.tasks.clear();
    cluster.jobs = vec![object(
        json!({"metadata": {"name": "consilium-clean-0a1b2c3d", "labels": {TASK_LABEL: CLEAN}, "uid": "clean-uid", "creationTimestamp": OLD}}),
    )];
    cluster.task_pods = vec![pod("clean-pod", json!({}), owner("Job", "clean-uid"), OLD)];
    let disabled = with(&[("/participation", json!("Disabled"))]);
    assert_eq!(cluster.stops(Some(&disabled)), names(&MODEL));
}

/// The agent starts anew, and its list of pods is there before its list of Jobs: a training of six days would be ended for
/// having no Job.
#[test]
fn a_pod_whose_job_has_not_been_read_is_no_orphan() {
    let cluster = Cluster::running();
    let (open, shut) = (with(&[]), with(&[("/participation", json!("Disabled"))]));
    assert_eq!(cluster.judge_with(Some(&open), true, None), []);
    let stopped = cluster.judge_with(Some(&shut), true, None);
    assert!(stopped.contains(&(Kind::Pod, "job-pod".to_owned())), "{stopped:?}");
    assert_eq!(cluster.judge_with(Some(&open), true, Some(&[])), [(Kind::Pod, "job-pod".to_owned())]);
}
