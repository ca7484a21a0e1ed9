//! What must stop now: pure, over the objects that are here.

use std::collections::BTreeMap;
use std::sync::Arc;

use consilium_crds::site_policy::SitePolicySpec;
use consilium_crds::{ModelDeployment, RoundTask};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Pod;
use kube::{Resource, ResourceExt as _};

use crate::Enforcement;
use crate::deployments::LABEL as MODEL_LABEL;
use crate::policy::{self, Place, Room, Told, task_must_stop, withdrawn};
use crate::tasks::clean::is_clean;
use crate::tasks::observe::is_over;

/// Watches lag behind each other: what an object belongs to counts as gone only when the object is older than this.
const WATCH_LAG: SignedDuration = SignedDuration::from_secs(30);
/// What a pod is given to end. Shorter than its own grace: a hospital that says stop means now.
pub(super) const GRACE_SECONDS: u32 = 5;

/// Everything that the decision depends on.
pub(super) struct Seen<'a> {
    pub(super) policy: Option<&'a SitePolicySpec>,
    pub(super) enforcement: &'a Enforcement,
    /// `None` while they cannot be read: then only what holds for all of them decides.
    pub(super) tasks: Option<&'a [Arc<RoundTask>]>,
    /// As with `tasks`: a pod whose Job has not been read yet is no orphan.
    pub(super) jobs: Option<&'a [Arc<Job>]>,
    pub(super) task_pods: &'a [Arc<Pod>],
    /// As with `tasks`.
    pub(super) models: Option<&'a [Arc<ModelDeployment>]>,
    /// What is said of each of them, by its UID.
    pub(super) places: &'a BTreeMap<String, Place>,
    pub(super) deployments: &'a [Arc<Deployment>],
    pub(super) model_pods: &'a [Arc<Pod>],
    pub(super) now: Timestamp,
}

/// What an object is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    Job,
    ModelDeployment,
    Deployment,
    Pod,
}

impl Kind {
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Kind::Job => "Job",
            Kind::ModelDeployment => "ModelDeployment",
            Kind::Deployment => "Deployment",
            Kind::Pod => "Pod",
        }
    }
}

/// One object that must go, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Stop {
    pub(super) kind: Kind,
    pub(super) name: String,
    pub(super) uid: String,
    pub(super) why: String,
    /// It goes because these are gone, which a watch says that may be behind: they are asked for once more before.
    pub(super) behind: Vec<Behind>,
}

/// What stands behind an object, or stood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Behind {
    /// `RoundTask`, `Job` or `ModelDeployment`.
    pub(super) kind: String,
    pub(super) name: String,
    /// Unknown where the object knows the name alone.
    pub(super) uid: Option<String>,
}

/// Why an object must go.
#[derive(Clone, Debug)]
struct Because {
    why: String,
    behind: Vec<Behind>,
}

impl From<String> for Because {
    fn from(why: String) -> Self {
        Self { why, behind: Vec::new() }
    }
}

/// Why something must go; none if it may stay.
type Why = Option<Because>;

/// Decides. What makes pods comes before the pods.
pub(super) fn decide(seen: &Seen<'_>) -> Vec<Stop> {
    let (mut stops, pods) = tasks(seen);
    let (models, model_pods) = models(seen);
    stops.extend(models);
    stops.extend(pods);
    stops.extend(model_pods);
    stops
}

fn closed(seen: &Seen<'_>, room: fn(&SitePolicySpec) -> Room) -> Why {
    let Some(policy) = seen.policy else {
        return Some("there is no SitePolicy \"default\" that can be read, so nothing is allowed".to_owned().into());
    };
    match room(policy) {
        Room::Closed(field) => Some(format!("SitePolicy {field}").into()),
        Room::Open | Room::Kept(_) => None,
    }
}

fn tasks(seen: &Seen<'_>) -> (Vec<Stop>, Vec<Stop>) {
    let all = closed(seen, policy::tasks);
    let verdicts: Option<BTreeMap<String, Why>> = seen.tasks.map(|tasks| {
        let judged = |task: &Arc<RoundTask>| {
            let since = task.metadata.creation_timestamp.as_ref().map(|at| at.0);
            let why = task_must_stop(&task.spec, since, seen.policy, seen.enforcement, seen.now);
            (task.uid().unwrap_or_default(), why.map(Because::from))
        };
        tasks.iter().map(judged).collect()
    });
    let of_job = |job: &Job| -> Why {
        if is_clean(job) {
            return None;
        }
        let task = job.owner_references().iter().find_map(|owner| verdicts.as_ref()?.get(&owner.uid));
        let gone = || verdicts.is_some() && is_old(job, seen.now);
        let orphan = || gone().then(|| orphan("RoundTask", owners(job, "RoundTask")));
        all.clone().or_else(|| task.cloned().unwrap_or_else(orphan))
    };
    let known = seen.jobs.unwrap_or_default();
    let jobs: BTreeMap<String, Why> = known.iter().map(|job| (job.uid().unwrap_or_default(), of_job(job))).collect();
    let of_pod = |pod: &Pod| -> Why {
        let job = pod.owner_references().iter().find_map(|owner| jobs.get(&owner.uid));
        let gone = || seen.jobs.is_some() && is_old(pod, seen.now);
        let orphan = || gone().then(|| orphan("Job", owners(pod, "Job")));
        job.cloned().unwrap_or_else(|| all.clone().or_else(orphan))
    };
    let runs = |job: &&Arc<Job>| !is_over(job) && job.metadata.deletion_timestamp.is_none();
    let stops = known.iter().filter(runs).filter_map(|job| stop(Kind::Job, &**job, jobs[&job.uid()?].clone()));
    (stops.collect(), pods(seen.task_pods, of_pod))
}

fn models(seen: &Seen<'_>) -> (Vec<Stop>, Vec<Stop>) {
    let all = closed(seen, policy::models);
    let place = |model: &ModelDeployment| seen.places.get(&model.uid().unwrap_or_default());
    let refused = |model: &ModelDeployment| match place(model) {
        Some(Place::Refused(why)) => Some(why.clone().into()),
        Some(Place::Unsaid | Place::Stands(_) | Place::Withdrawn(_)) | None => None,
    };
    let goes = |model: &ModelDeployment| all.clone().or_else(|| refused(model));
    let why = |model: &ModelDeployment| goes(model).or_else(|| place(model).and_then(withdrawn).map(Because::from));
    let found = |fits: &dyn Fn(&ModelDeployment) -> bool, old: bool, behind: Vec<Behind>| -> Why {
        let model = seen.models.and_then(|models| models.iter().find(|model| fits(model)));
        let gone = seen.models.is_some() && old;
        let orphan = || gone.then(|| orphan("ModelDeployment", behind));
        match model {
            Some(model) => why(model),
            None => all.clone().or_else(orphan),
        }
    };
    let of_deployment = |deployment: &Deployment| {
        let owner = |model: &ModelDeployment| {
            let uid = model.uid();
            deployment.owner_references().iter().any(|owner| Some(&owner.uid) == uid.as_ref())
        };
        found(&owner, is_old(deployment, seen.now), owners(deployment, "ModelDeployment"))
    };
    let of_pod = |pod: &Pod| {
        let name = pod.labels().get(MODEL_LABEL);
        let named = |name: &String| Behind { kind: "ModelDeployment".into(), name: name.clone(), uid: None };
        let behind = name.map(named).into_iter().collect();
        found(&|model| model.metadata.name.as_ref() == name, is_old(pod, seen.now), behind)
    };
    let live = |meta: &kube::core::ObjectMeta| meta.deletion_timestamp.is_none();
    let mut stops: Vec<Stop> = Vec::new();
    for model in seen.models.unwrap_or_default().iter().filter(|model| live(&model.metadata)) {
        stops.extend(stop(Kind::ModelDeployment, &**model, goes(model)));
    }
    for deployment in seen.deployments.iter().filter(|deployment| live(&deployment.metadata)) {
        stops.extend(stop(Kind::Deployment, &**deployment, of_deployment(deployment)));
    }
    (stops, pods(seen.model_pods, of_pod))
}

/// What a pod is told of its model; none where nobody can say.
pub(super) fn told(pod: &Pod, models: &[Arc<ModelDeployment>], places: &BTreeMap<String, Place>) -> Option<Told> {
    let name = pod.labels().get(MODEL_LABEL);
    let model = models.iter().find(|model| model.metadata.name.as_ref() == name)?;
    places.get(&model.uid()?)?.told(model.status.as_ref().and_then(|status| status.stage))
}

/// The pods that run and must go, unless they are going as fast already.
fn pods(pods: &[Arc<Pod>], why: impl Fn(&Pod) -> Why) -> Vec<Stop> {
    let ended = |pod: &Pod| {
        let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
        matches!(phase, Some("Succeeded" | "Failed"))
    };
    let going = |pod: &Pod| {
        let grace = pod.metadata.deletion_grace_period_seconds.unwrap_or(0);
        pod.metadata.deletion_timestamp.is_some() && grace <= i64::from(GRACE_SECONDS)
    };
    let left = pods.iter().filter(|pod| !ended(pod) && !going(pod));
    left.filter_map(|pod| stop(Kind::Pod, &**pod, why(pod))).collect()
}

fn stop(kind: Kind, object: &impl Resource, why: Why) -> Option<Stop> {
    let Because { why, behind } = why?;
    Some(Stop { kind, name: object.name_any(), uid: object.uid().unwrap_or_default(), why, behind })
}

fn orphan(kind: &str, behind: Vec<Behind>) -> Because {
    Because { why: format!("its {kind} is gone, so nothing stands behind it"), behind }
}

fn owners(object: &impl Resource, kind: &str) -> Vec<Behind> {
    let of = object.owner_references().iter().filter(|owner| owner.kind == kind);
    of.map(|owner| Behind { kind: kind.to_owned(), name: owner.name.clone(), uid: Some(owner.uid.clone()) }).collect()
}

fn is_old(object: &impl Resource, now: Timestamp) -> bool {
    object.creation_timestamp().is_some_and(|made| now.duration_since(made.0) > WATCH_LAG)
}

#[cfg(test)]
#[path = "decide_tests.rs"]
mod tests;
