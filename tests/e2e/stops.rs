//! A hospital says stop, and needs nobody for it.

use std::{
    ffi::OsStr,
    time::{Duration, Instant},
};

use serde_json::Value;
use xtask::{
    cluster::Cluster,
    federation::{AGENT, RESEARCH, SYSTEM, TASKS, study, wait, wait::Answer},
};

use crate::harness::{HOSPITALS, Outcome, World, ensure};

/// What a hospital's stop may take, from its word to the last pod (DESIGN §12).
const NOW: Duration = Duration::from_secs(15);
/// The shortest lease of a model that a policy can name.
const LEASE: &str = "1m";
/// That lease, and what a node takes to notice.
const LEASE_OVER: Duration = Duration::from_secs(60 + 45);

const TASK: &str = "consilium.health/task";
const MODEL: &str = "consilium.health/deployment";

/// A hospital writes `Disabled` while it trains, serves a model and cannot reach the hub: both are gone at once. Then its
/// kill switch, with the agent gone; and a model that nobody stopped ends by its lease.
pub fn stops(world: &World) -> Outcome {
    let federation = &world.federation;
    let (hub, damson) = (&federation.hub, federation.site("damson")?);
    let mut plan = world.plan("stops", 1);
    // Long enough to be caught in the middle.
    plan.epochs = 500;
    let accepted = study::apply(federation, &world.object(&plan)?)?;
    world.allow(&HOSPITALS, &[study::opt_in(&accepted)])?;
    both_run(damson)?;
    hub.kubectl(&["scale", "deployment/consilium-operator", "-n", SYSTEM, "--replicas=0"])?;
    let outcome = disabled(damson).and_then(|()| both_run(damson)).and_then(|()| without_an_agent(world, damson));
    // The scenarios after this one need all of it, however this one ended.
    damson.kubectl(&["scale", "statefulset/consilium-agent", "-n", AGENT, "--replicas=1"])?;
    hub.kubectl(&["scale", "deployment/consilium-operator", "-n", SYSTEM, "--replicas=1"])?;
    wait::rollout(hub, SYSTEM, "deployment/consilium-operator")?;
    wait::rollout(damson, AGENT, "statefulset/consilium-agent")?;
    outcome?;
    hub.kubectl(&["delete", "federatedstudy", "-n", RESEARCH, "stops", "--timeout=60s"])?;
    serves(damson, true)
}

fn disabled(damson: &Cluster) -> Outcome {
    policy(damson, r#"{"spec":{"participation":"Disabled"}}"#)?;
    all_gone(damson)?;
    policy(damson, r#"{"spec":{"participation":"Enabled"}}"#)
}

fn without_an_agent(world: &World, damson: &Cluster) -> Outcome {
    let lease = || -> xtask::error::Result<String> {
        let pods = labelled(damson, MODEL)?;
        let until = pods.first().and_then(|pod| pod["metadata"]["annotations"]["consilium.health/lease"].as_str());
        Ok(until.unwrap_or_default().to_owned())
    };
    let before = lease()?;
    policy(damson, &format!(r#"{{"spec":{{"limits":{{"modelLease":"{LEASE}"}}}}}}"#))?;
    // Times in UTC are in order as text.
    wait::until(damson, "the shorter lease stands", || {
        let now = lease()?;
        Ok(Answer::of((!now.is_empty() && now < before).then_some(()), format!("{now:?}, before {before:?}")))
    })?;
    damson.kubectl(&["scale", "statefulset/consilium-agent", "-n", AGENT, "--replicas=0"])?;
    within(LEASE_OVER, "the model ends by its lease", || serves(damson, false))?;
    let plugin = world.plugin.as_os_str();
    damson.exec(&[plugin, OsStr::new("stop"), OsStr::new("--everything")])?;
    all_gone(damson)?;
    damson.exec(&[plugin, OsStr::new("start")])?;
    Ok(())
}

fn policy(site: &Cluster, patch: &str) -> Outcome {
    site.kubectl(&["patch", "sitepolicy", "default", "-n", AGENT, "--type=merge", "-p", patch])?;
    Ok(())
}

/// The pods with a label, without those that clear folders.
fn labelled(site: &Cluster, label: &str) -> xtask::error::Result<Vec<Value>> {
    let pods = wait::list(site, TASKS, "pods")?;
    let of = |pod: &Value| pod["metadata"]["labels"][label].as_str().is_some_and(|name| name != "consilium-clean");
    Ok(pods.into_iter().filter(of).collect())
}

/// Does something that a person waits for, and fails if it takes longer than they were promised.
fn within(limit: Duration, what: &str, act: impl FnOnce() -> Outcome) -> Outcome {
    let begun = Instant::now();
    act()?;
    let took = begun.elapsed();
    ensure(took <= limit, || format!("{what}: {:.0} s, and {} s are promised", took.as_secs_f64(), limit.as_secs()))
}

fn none_left(site: &Cluster, label: &str) -> Outcome {
    wait::until(site, &format!("no pod with {label} is left in {}", site.name), || {
        let left = labelled(site, label)?;
        let over = |pod: &Value| matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed"));
        let names: Vec<&str> =
            left.iter().filter(|pod| !over(pod)).filter_map(|pod| pod["metadata"]["name"].as_str()).collect();
        Ok(Answer::of(names.is_empty().then_some(()), format!("{names:?}")))
    })?;
    Ok(())
}

/// Returns when neither a training nor a model is left; fails if that took longer than a stop may.
fn all_gone(site: &Cluster) -> Outcome {
    within(NOW, "everything is stopped", || [TASK, MODEL].iter().try_for_each(|label| none_left(site, label)))
}

/// Waits until a training runs and a model answers.
fn both_run(site: &Cluster) -> Outcome {
    wait::until(site, &format!("a training runs in {}", site.name), || {
        let pods = labelled(site, TASK)?;
        let running = pods.iter().any(|pod| pod["status"]["phase"] == "Running");
        Ok(Answer::of(running.then_some(()), format!("{} pods", pods.len())))
    })?;
    serves(site, true)
}

/// Waits until a model is in its Service, or is not.
fn serves(site: &Cluster, wanted: bool) -> Outcome {
    let what = if wanted { "a model answers" } else { "no model answers" };
    wait::until(site, &format!("{what} in {}", site.name), || {
        let ready = |pod: &Value| wait::condition(pod, "Ready").is_some_and(|(status, ..)| status == "True");
        let pods = labelled(site, MODEL)?;
        let holds = pods.iter().any(ready) == wanted;
        Ok(Answer::of(holds.then_some(()), format!("{} pods of models", pods.len())))
    })?;
    Ok(())
}
