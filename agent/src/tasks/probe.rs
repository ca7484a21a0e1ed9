//! The probe: a pod like a task's that must reach the task port and nothing else.
//! Until one has succeeded no task starts, and one that fails stops them.
//!
//! A finding is kept on the volume for a day, so that a restart of the agent does
//! not stop what runs.

use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{ContainerStateTerminated, Pod, PodSpec};
use kube::api::{DeleteParams, ListParams, ObjectMeta, PostParams};
use kube::{Api, ResourceExt as _};
use serde::{Deserialize, Serialize};

use super::error::{ControlError, gone};
use super::pod::{self, labels};
use crate::{Context, Enforcement};

const LABEL: &str = "consilium.health/probe";
const BLOB: &str = "tasks/probe";
/// How long a finding holds.
const DAY: SignedDuration = SignedDuration::from_hours(24);
/// Between two looks at the pod.
const LOOK: Duration = Duration::from_secs(1);
/// Until a pod that does not end is given up.
const PATIENCE: u32 = 180;
/// After a probe that failed or did not run.
const AGAIN: Duration = Duration::from_secs(20);

/// What a probe found, as kept on the volume.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Finding {
    at: Timestamp,
    /// The failure's words; none when the network is as it must be.
    reached: Option<String>,
}

impl Finding {
    fn enforcement(&self) -> Enforcement {
        self.reached.clone().map_or(Enforcement::Enforced, Enforcement::NotEnforced)
    }

    fn is_fresh(&self, now: Timestamp) -> bool {
        now.duration_since(self.at) < DAY
    }
}

/// Takes up the finding of before the restart, if it is fresh.
pub(super) fn restore(ctx: &Context) -> Result<(), ControlError> {
    let Some(bytes) = ctx.state.blob(BLOB)? else { return Ok(()) };
    // One that cannot be read is made anew in a moment.
    let Ok(finding) = serde_json::from_slice::<Finding>(&bytes) else { return Ok(()) };
    if finding.is_fresh(ctx.now()) {
        publish(ctx, finding.enforcement());
    }
    Ok(())
}

/// What was found holds for its day; after it nothing is known, and no task starts.
fn expire(ctx: &Context) -> Result<(), ControlError> {
    let found = ctx.state.blob(BLOB)?.and_then(|bytes| serde_json::from_slice::<Finding>(&bytes).ok());
    if found.is_none_or(|finding| !finding.is_fresh(ctx.now())) {
        publish(ctx, Enforcement::Unknown);
    }
    Ok(())
}

/// Probes at the start and every day, and more often while it fails.
pub(super) async fn run(ctx: Arc<Context>) {
    loop {
        let found = once(&ctx).await.unwrap_or_else(|error| {
            tracing::warn!(%error, class = error.class(), "the network could not be probed; it is tried again");
            ctx.metrics.reconcile_errors.with_label_values(&["probe", error.class()]).inc();
            None
        });
        let told = match &found {
            Some(finding) => {
                publish(&ctx, finding.enforcement());
                keep(&ctx, finding)
            }
            None => expire(&ctx),
        };
        if let Err(error) = told {
            tracing::error!(%error, "the probe's finding could not be kept, or the last one not be read");
        }
        let holds = found.is_some_and(|finding| finding.reached.is_none());
        let wait = if holds { Duration::from_secs(24 * 3600) } else { AGAIN };
        tokio::select! {
            () = ctx.shutdown.cancelled() => return,
            () = tokio::time::sleep(wait) => {}
        }
    }
}

fn keep(ctx: &Context, finding: &Finding) -> Result<(), ControlError> {
    let bytes = serde_json::to_vec(finding).unwrap_or_default();
    Ok(ctx.state.put_blob(BLOB, &bytes)?)
}

fn publish(ctx: &Context, found: Enforcement) {
    ctx.metrics.network_enforced.set(i64::from(found == Enforcement::Enforced));
    if let Enforcement::NotEnforced(message) = &found {
        tracing::error!(message, "task pods are not kept from the network; no task starts");
    }
    ctx.enforcement.send_if_modified(|known| {
        let changed = *known != found;
        *known = found;
        changed
    });
}

/// Runs one pod to its end; `None` when it did not come to one.
async fn once(ctx: &Context) -> Result<Option<Finding>, ControlError> {
    let pods: Api<Pod> = Api::namespaced(ctx.kube.clone(), &ctx.config.task_namespace);
    for old in pods.list(&ListParams::default().labels(LABEL)).await?.items {
        gone(pods.delete(&old.name_any(), &DeleteParams::default().grace_period(0)).await)?;
    }
    let name = format!("consilium-probe-{}", hex::encode(&ctx.entropy.bytes32()[..4]));
    let plan = ProbePlan {
        name: &name,
        namespace: &ctx.config.task_namespace,
        image: &ctx.config.courier_image,
        task_address: &ctx.config.task_address,
        api_server: &api_server(),
    };
    pods.create(&PostParams::default(), &build(&plan)).await?;
    let end = wait(ctx, &pods, &name).await;
    gone(pods.delete(&name, &DeleteParams::default().grace_period(0)).await)?;
    Ok(end?.and_then(|end| read(&end, ctx.now())))
}

async fn wait(ctx: &Context, pods: &Api<Pod>, name: &str) -> Result<Option<ContainerStateTerminated>, ControlError> {
    for _ in 0..PATIENCE {
        if ctx.shutdown.is_cancelled() {
            return Ok(None);
        }
        let Some(pod) = pods.get_opt(name).await? else { return Ok(None) };
        let statuses = pod.status.and_then(|s| s.container_statuses).unwrap_or_default();
        if let Some(end) = statuses.into_iter().find_map(|s| s.state.and_then(|s| s.terminated)) {
            return Ok(Some(end));
        }
        tokio::time::sleep(LOOK).await;
    }
    tracing::warn!(pod = name, "the probe pod did not end; it is made anew");
    Ok(None)
}

/// What the pod's end says. Only a pod that reached what it must not is a finding against the network: one that could
/// not reach the task port, or was ended, says nothing, and another is made.
fn read(end: &ContainerStateTerminated, at: Timestamp) -> Option<Finding> {
    let text = end.message.as_deref().unwrap_or_default();
    let said = text.lines().rev().find_map(|line| line.strip_prefix("error: ")).unwrap_or(text.trim());
    let said: String = said.chars().take(500).collect();
    match end.exit_code {
        0 => Some(Finding { at, reached: None }),
        1 => Some(Finding { at, reached: Some(said) }),
        code => {
            tracing::warn!(code, said, "the probe pod could not tell; no task starts before one can");
            None
        }
    }
}

/// The cluster's API server as pods know it.
fn api_server() -> String {
    let of = |name: &str| std::env::var(name).ok();
    match (of("KUBERNETES_SERVICE_HOST"), of("KUBERNETES_SERVICE_PORT")) {
        (Some(host), Some(port)) => format!("https://{host}:{port}"),
        _ => "https://10.96.0.1:443".to_owned(),
    }
}

struct ProbePlan<'a> {
    name: &'a str,
    namespace: &'a str,
    image: &'a str,
    task_address: &'a str,
    api_server: &'a str,
}

/// A pod with the labels of a task's pod, so that the same NetworkPolicies hold for it.
fn build(plan: &ProbePlan<'_>) -> Pod {
    let args = ["probe", "--expect-reachable", plan.task_address, "--must-fail", plan.api_server, "--must-fail-dns"];
    let metadata = ObjectMeta {
        name: Some(plan.name.to_owned()),
        namespace: Some(plan.namespace.to_owned()),
        labels: Some(labels(&[
            ("app.kubernetes.io/name", "consilium-task"),
            ("app.kubernetes.io/managed-by", "consilium-agent"),
            (LABEL, "true"),
        ])),
        ..ObjectMeta::default()
    };
    let spec = PodSpec {
        containers: vec![pod::courier_alone("probe", plan.image, args.map(String::from).to_vec())],
        restart_policy: Some("Never".into()),
        active_deadline_seconds: Some(i64::from(PATIENCE)),
        termination_grace_period_seconds: Some(1),
        ..pod::restricted_pod()
    };
    Pod { metadata, spec: Some(spec), status: None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probe_snapshot() {
        let plan = ProbePlan {
            name: "consilium-probe-00000000",
            namespace: "consilium-tasks",
            image: "registry.example/agent@sha256:courier",
            task_address: "https://10.96.0.50:8444",
            api_server: "https://10.96.0.1:443",
        };
        insta::assert_json_snapshot!(build(&plan));
    }

    /// An administrator must read what was reached, and a slow start of the agent must not look like an open network.
    #[test]
    fn only_a_pod_that_reached_something_is_held_against_the_network() {
        let at: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let end = |exit_code, message: &str| {
            let end = ContainerStateTerminated { exit_code, message: Some(message.into()), ..Default::default() };
            read(&end, at).map(|f| f.enforcement())
        };
        assert_eq!(end(0, ""), Some(Enforcement::Enforced));
        let said = "reached https://10.96.0.1:443";
        assert_eq!(end(1, &format!("x\nerror: {said}\n")), Some(Enforcement::NotEnforced(said.into())));
        assert_eq!((end(2, "error: no task port"), end(143, "")), (None, None));
    }

    #[test]
    fn a_finding_holds_for_a_day() {
        let at: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let finding = Finding { at, reached: None };
        assert!(finding.is_fresh(at + SignedDuration::from_hours(23)));
        assert!(!finding.is_fresh(at + SignedDuration::from_hours(25)));
    }
}
