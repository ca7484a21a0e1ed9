//! Takes away what must go: the only place of the guard that writes to the API server.

use std::collections::BTreeMap;
use std::time::Duration;

use consilium_crds::{ModelDeployment, RoundTask, Watched};
use futures::StreamExt as _;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{ObjectReference, Pod};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, Preconditions};
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::{Api, Resource, ResourceExt as _};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::decide::{Behind, GRACE_SECONDS};
use super::lease::Lease;
use super::{Guard, Kind, Stop};
use crate::deployments::{LEASE, STAGE};
use crate::state::{Entry, Unrecorded};
use crate::tasks::{ControlError, MANAGER, gone};
use crate::{Clock, Metrics};

/// A call that takes longer is made again.
const CALL: Duration = Duration::from_secs(5);
/// Calls at a time.
const AT_ONCE: usize = 16;

/// Events that may wait.
const EVENTS: usize = 256;

/// Writes Events, one after the other, until the guard ends.
async fn publish(recorder: Recorder, mut waiting: mpsc::Receiver<(Event, ObjectReference)>) {
    while let Some((event, about)) = waiting.recv().await {
        match tokio::time::timeout(CALL, recorder.publish(&event, &about)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "an event on what was stopped could not be written"),
            Err(_) => tracing::warn!("an event on what was stopped could not be written in time"),
        }
    }
}

/// What became of a stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Done {
    /// It goes.
    Stopped,
    /// What stands behind it is there after all: a watch was behind.
    Kept,
}

/// Clients for what is taken away.
pub(super) struct Stopper {
    tasks: Api<Watched<RoundTask>>,
    watched: Api<Watched<ModelDeployment>>,
    jobs: Api<Job>,
    pods: Api<Pod>,
    models: Api<ModelDeployment>,
    deployments: Api<Deployment>,
    events: mpsc::Sender<(Event, ObjectReference)>,
    namespace: String,
    unrecorded: Unrecorded,
    metrics: Metrics,
    clock: Clock,
}

impl Stopper {
    pub(super) fn new(guard: &Guard) -> Self {
        let reporter = Reporter { controller: MANAGER.into(), instance: None };
        let (events, waiting) = mpsc::channel(EVENTS);
        tokio::spawn(publish(Recorder::new(guard.calls.clone(), reporter), waiting));
        let (calls, namespace) = (|| guard.calls.clone(), guard.namespace.as_str());
        Self {
            tasks: Api::namespaced(calls(), namespace),
            watched: Api::namespaced(calls(), namespace),
            jobs: Api::namespaced(calls(), namespace),
            pods: Api::namespaced(calls(), namespace),
            models: Api::namespaced(calls(), namespace),
            deployments: Api::namespaced(calls(), namespace),
            events,
            namespace: guard.namespace.clone(),
            unrecorded: guard.unrecorded.clone(),
            metrics: guard.metrics.clone(),
            clock: guard.clock.clone(),
        }
    }

    /// Takes all of it away; one that does not answer does not keep the others.
    pub(super) async fn all(&self, stops: Vec<Stop>) -> Vec<(Stop, Result<Done, ControlError>)> {
        let calls = stops.into_iter().map(|stop| async {
            let result = match tokio::time::timeout(CALL, self.one(&stop)).await {
                Ok(result) => result,
                Err(_) => Err(ControlError::Slow { seconds: CALL.as_secs() }),
            };
            (stop, result)
        });
        futures::stream::iter(calls).buffered(AT_ONCE).collect().await
    }

    async fn one(&self, stop: &Stop) -> Result<Done, ControlError> {
        for behind in &stop.behind {
            if self.is_there(behind).await? {
                return Ok(Done::Kept);
            }
        }
        let (name, this) = (stop.name.as_str(), Preconditions { uid: Some(stop.uid.clone()), resource_version: None });
        let params = |how: DeleteParams| DeleteParams { preconditions: Some(this.clone()), ..how };
        let result = match stop.kind {
            // The Job is there until its pods have ended, so that no other try begins beside them.
            Kind::Job => gone(self.jobs.delete(name, &params(DeleteParams::foreground())).await),
            Kind::ModelDeployment => gone(self.models.delete(name, &params(DeleteParams::background())).await),
            Kind::Deployment => gone(self.deployments.delete(name, &params(DeleteParams::background())).await),
            Kind::Pod => {
                let soon = DeleteParams::default().grace_period(GRACE_SECONDS);
                gone(self.pods.delete(name, &params(soon)).await)
            }
        };
        match result {
            // Another one has its name by now; that one is judged by itself.
            Err(ControlError::Kube(kube::Error::Api(status))) if status.code == 409 => Ok(Done::Stopped),
            other => other.map(|()| Done::Stopped),
        }
    }

    /// Whether what an object belongs to is there after all, and can be judged: one that cannot be read is judged by nobody,
    /// and what belongs to it goes.
    async fn is_there(&self, behind: &Behind) -> Result<bool, ControlError> {
        let Behind { name, uid, .. } = behind;
        let same = |found: Option<String>| uid.is_none() || *uid == found;
        // A list of one, since that is the right that the agent has.
        let one = ListParams::default().fields(&format!("metadata.name={name}"));
        Ok(match behind.kind.as_str() {
            "RoundTask" => {
                self.tasks.list(&one).await?.items.into_iter().any(|found| found.0.is_ok_and(|it| same(it.uid())))
            }
            "ModelDeployment" => {
                self.watched.list(&one).await?.items.into_iter().any(|found| found.0.is_ok_and(|it| same(it.uid())))
            }
            "Job" => self.jobs.list(&one).await?.items.into_iter().any(|found| same(found.uid())),
            _ => false,
        })
    }

    /// Writes leases; what fails is written at the next look, long before the old one ends.
    pub(super) async fn renew(&self, leases: Vec<Lease>, metrics: &Metrics) {
        let calls = leases.into_iter().map(|lease| async move {
            let until = lease.until.map(|until| (LEASE, json!(until.to_string())));
            let stage = lease.stage.map(|stage| (STAGE, json!(stage)));
            let annotations: BTreeMap<&str, Value> = until.into_iter().chain(stage).collect();
            let patch = json!({"metadata": {"annotations": annotations}});
            let params = PatchParams { field_manager: Some(MANAGER.into()), ..PatchParams::default() };
            let call = async { gone(self.pods.patch(&lease.pod, &params, &Patch::Merge(&patch)).await) };
            let result = match tokio::time::timeout(CALL, call).await {
                Ok(result) => result,
                Err(_) => Err(ControlError::Slow { seconds: CALL.as_secs() }),
            };
            (lease, result)
        });
        let mut calls = futures::stream::iter(calls).buffer_unordered(AT_ONCE);
        while let Some((lease, result)) = calls.next().await {
            if let Err(error) = result {
                tracing::error!(pod = lease.pod, %error, "a model's lease could not be renewed; it is tried again");
                metrics.reconcile_errors.with_label_values(&["guard", error.class()]).inc();
            }
        }
    }

    /// Says what was stopped: in the log, an Event, the metrics and, as soon as that can be written, the ledger.
    ///
    /// It waits for none of them: an API server that takes stops and no Events must not hold up the next stop.
    pub(super) fn tell(&self, stop: &Stop) {
        let kind = stop.kind.as_str();
        tracing::warn!(kind, name = stop.name, why = stop.why, "stopped");
        self.metrics.stops.with_label_values(&[kind]).inc();
        let entry = Entry::Stopped {
            kind: kind.to_owned(),
            name: stop.name.clone(),
            uid: stop.uid.clone(),
            why: stop.why.clone(),
        };
        self.unrecorded.push(entry, self.clock.now());
        self.metrics.unrecorded.set(self.unrecorded.len());
        let event = Event {
            type_: EventType::Warning,
            reason: "Stopped".into(),
            note: Some(stop.why.chars().take(250).collect()),
            action: "Stop".into(),
            secondary: None,
        };
        // An Event is for people who happen to look; the log and the ledger hold the same.
        if self.events.try_send((event, self.reference(stop))).is_err() {
            tracing::warn!(kind, name = stop.name, "too many events wait; this stop gets none");
        }
    }

    fn reference(&self, stop: &Stop) -> ObjectReference {
        let version = match stop.kind {
            Kind::Job => Job::api_version(&()),
            Kind::Pod => Pod::api_version(&()),
            Kind::Deployment => Deployment::api_version(&()),
            Kind::ModelDeployment => ModelDeployment::api_version(&()),
        };
        ObjectReference {
            api_version: Some(version.into_owned()),
            kind: Some(stop.kind.as_str().into()),
            name: Some(stop.name.clone()),
            namespace: Some(self.namespace.clone()),
            uid: Some(stop.uid.clone()),
            ..ObjectReference::default()
        }
    }
}

#[cfg(test)]
#[path = "apply_tests.rs"]
mod tests;
