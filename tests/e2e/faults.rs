//! What a kill costs.

use std::{error::Error, path::PathBuf};

use serde_json::Value;
use xtask::{
    cluster::Cluster,
    federation::{AGENT, RESEARCH, SYSTEM, TASKS, study, view, wait, wait::Answer},
};

use crate::{
    harness::{HOSPITALS, Outcome, World, ensure},
    store::Upload,
};

/// Bytes a second that a hospital's link lets through while an upload is to be caught in the middle: an update of these
/// studies (width 16) is well over a megabyte, and takes longer than it takes to see it and to end a pod.
const SLOW: &str = "add table inet slow; add chain inet slow out { type filter hook forward priority 5; }; \
    add rule inet slow out oifname e0 limit rate over 120 kbytes/second burst 120 kbytes drop";

/// Takes the limit off, whether there is one or not.
const FAST: &str = "add table inet slow; delete table inet slow";

/// Ends a hospital's agent and returns when its process is gone, which a forced deletion does not wait for.
pub fn kill_agent(cluster: &Cluster) -> Outcome {
    let pod = ["consilium-agent-0", "-n", AGENT, "--ignore-not-found"];
    cluster.kubectl(&[&["delete", "pod"], &pod[..], &["--grace-period=1", "--wait", "--timeout=60s"]].concat())?;
    Ok(())
}

/// Does something while a hospital's link is slow.
pub fn on_a_slow_link(cluster: &Cluster, what: impl FnOnce() -> Outcome) -> Outcome {
    // Whoever ran before may have ended in the middle.
    cluster.exec(&["nft", FAST])?;
    cluster.exec(&["nft", SLOW])?;
    let outcome = what();
    unslow(cluster)?;
    outcome
}

/// Gives a hospital its link back.
pub fn unslow(cluster: &Cluster) -> Outcome {
    cluster.exec(&["nft", FAST])?;
    Ok(())
}

/// Waits until a round's model stands and is scored, which is when the tasks that made it can still be asked: each of these
/// hospitals has one, and started it once. With the round they go.
pub fn trained_once(world: &World, study: &str, round: u64, hospitals: &[&str]) -> Result<Value, Box<dyn Error>> {
    let scored = |seen: &Value| seen["status"]["round"]["step"] == "Evaluating";
    let summed = world.until_round(study, round, &format!("round {round} of {study} is scored"), scored)?;
    for name in hospitals {
        let tasks = wait::list(world.federation.site(name)?, TASKS, "roundtasks")?;
        let of_round = |task: &&Value| {
            let spec = &task["spec"];
            spec["study"] == format!("{RESEARCH}/{study}") && spec["round"] == round && spec["kind"] == "Train"
        };
        let tries: Vec<&Value> = tasks.iter().filter(of_round).map(|task| &task["status"]["try"]).collect();
        ensure(tries == [&Value::from(1)], || format!("{name}: the tries of round {round}'s training are {tries:?}"))?;
    }
    Ok(summed)
}

fn reason(round: &Value, site: &str) -> String {
    World::site_entry(round, site)["reason"].as_str().unwrap_or_default().to_owned()
}

/// The hub dies while hospitals train, an agent dies while its update crosses a slow link: nobody trains twice.
pub fn kills(world: &World) -> Outcome {
    let federation = &world.federation;
    on_a_slow_link(federation.site("alder")?, || kills_on_a_slow_link(world))?;
    let summed = trained_once(world, "kills", 1, &HOSPITALS)?;
    ensure(World::contributors(&summed) == HOSPITALS, || view::describe(&summed))?;
    view::follow(federation, "kills", wait::STILL)?;
    Ok(())
}

fn kills_on_a_slow_link(world: &World) -> Outcome {
    let federation = &world.federation;
    let (hub, alder) = (&federation.hub, federation.site("alder")?);
    let mut plan = world.plan("kills", 1);
    // A model of some chunks, so that an upload has a middle.
    plan.width = 16;
    let accepted = study::apply(federation, &world.object(&plan)?)?;
    world.allow(&HOSPITALS, &[study::opt_in(&accepted)])?;
    let first = |what: &'static str, holds: fn(&Value) -> bool| {
        wait::until(hub, what, || {
            let rounds = study::rounds(federation, "kills")?;
            let round = rounds.into_iter().next().unwrap_or_default();
            Ok(Answer::of(holds(&round).then(|| round.clone()), view::describe(&round)))
        })
    };
    first("a hospital trains", |round| HOSPITALS.iter().any(|site| reason(round, site) == "Training"))?;
    let operator = ["-l", "app.kubernetes.io/name=consilium-operator", "-n", SYSTEM];
    hub.kubectl(&[&["delete", "pod", "--grace-period=0", "--force"], &operator[..]].concat())?;
    let round = first("alder uploads", |round| round["status"]["round"]["protocolStep"] == "Upload")?;
    // In the middle: some chunk has arrived, but not all. The store knows before any status does.
    let upload = Upload::of(world, &round, "alder")?;
    wait::until(hub, "the first chunk of alder's upload", || {
        Ok(Answer::of((upload.chunks() > 0).then_some(()), "none"))
    })?;
    kill_agent(alder)?;
    ensure(!upload.is_complete(), || {
        "the upload was over before the agent could be killed; make the link slower".into()
    })
}

/// A study that is deleted while hospitals train must take its Jobs, pods and Secrets with it everywhere, and what its
/// tasks wrote: checkpoints and segmentations of patients.
pub fn deletion(world: &World) -> Outcome {
    let federation = &world.federation;
    let plan = world.plan("deletion", 3);
    let accepted = study::apply(federation, &world.object(&plan)?)?;
    world.allow(&HOSPITALS, &[study::opt_in(&accepted)])?;
    let alder = federation.site("alder")?;
    wait::until(alder, "a running task", || {
        let pods = wait::list(alder, TASKS, "pods")?;
        let running = pods.iter().any(|pod| {
            pod["metadata"]["name"].as_str().is_some_and(|n| n.starts_with("deletion-"))
                && pod["status"]["phase"] == "Running"
        });
        Ok(Answer::of(running.then_some(()), format!("{} pods", pods.len())))
    })?;
    let folders = task_folders(world, "deletion-")?;
    ensure(folders.iter().any(|folder| folder.is_dir()), || format!("none of {folders:?} is there while a task runs"))?;
    federation.hub.kubectl(&["delete", "federatedstudy", "-n", RESEARCH, "deletion", "--timeout=60s"])?;
    for site in &federation.sites {
        for kind in ["roundtasks", "jobs", "pods", "secrets"] {
            wait::until(site, &format!("no {kind} of the deleted study in {}", site.name), || {
                let objects = wait::list(site, TASKS, kind)?;
                let name =
                    |object: &&Value| object["metadata"]["name"].as_str().is_some_and(|n| n.starts_with("deletion-"));
                let left: Vec<&Value> = objects.iter().filter(name).collect();
                Ok(Answer::of(left.is_empty().then_some(()), format!("{} left", left.len())))
            })?;
        }
    }
    wait::until(alder, "no folder of a task of the deleted study", || {
        let left: Vec<_> = folders.iter().filter(|folder| folder.exists()).collect();
        Ok(Answer::of(left.is_empty().then_some(()), format!("{left:?} left")))
    })?;
    wait::until(&federation.hub, "no round of the deleted study", || {
        let left = study::rounds(federation, "deletion")?.len();
        Ok(Answer::of((left == 0).then_some(()), format!("{left} left")))
    })?;
    Ok(())
}

/// The folders of these tasks in all hospitals' work claims, as this machine sees them.
fn task_folders(world: &World, prefix: &str) -> Result<Vec<PathBuf>, Box<dyn std::error::Error>> {
    let mut folders = Vec::new();
    for site in &world.federation.sites {
        let claim = site.volume("work")?;
        for task in wait::list(site, TASKS, "roundtasks")? {
            let uid = task["metadata"]["uid"].as_str().unwrap_or_default();
            if task["metadata"]["name"].as_str().is_some_and(|name| name.starts_with(prefix)) {
                folders.extend([claim.join(uid), claim.join(format!("{uid}-results"))]);
            }
        }
    }
    Ok(folders)
}
