//! What a kill costs.

use std::time::Duration;

use serde_json::Value;
use xtask::federation::{AGENT, RESEARCH, SYSTEM, TASKS, study, view, wait, wait::Answer};

use crate::harness::{HOSPITALS, Outcome, ROUND, World, ensure};

/// Bytes a second that a hospital's link lets through while an upload is to be caught in the middle.
const SLOW: &str = "add table inet slow; add chain inet slow out { type filter hook forward priority 5; }; \
    add rule inet slow out oifname e0 limit rate over 400 kbytes/second burst 200 kbytes drop";

fn kill(cluster: &xtask::cluster::Cluster, namespace: &str, pods: &[&str]) -> Outcome {
    let mut args = vec!["delete", "pod", "-n", namespace, "--grace-period=0", "--force"];
    args.extend(pods);
    cluster.kubectl(&args)?;
    Ok(())
}

fn reason(round: &Value, site: &str) -> String {
    World::site_entry(round, site)["reason"].as_str().unwrap_or_default().to_owned()
}

/// The hub dies while hospitals train, an agent dies while its update crosses a slow link: nobody trains twice.
pub fn kills(world: &World) -> Outcome {
    let federation = &world.federation;
    let alder = federation.site("alder")?;
    alder.exec(&["nft", SLOW])?;
    let outcome = kills_on_a_slow_link(world);
    alder.exec(&["nft", "delete table inet slow"])?;
    outcome?;
    view::follow(federation, "kills", ROUND)?;
    let rounds = study::rounds(federation, "kills")?;
    let contributors = rounds.first().map(|r| r["status"]["round"]["contributors"].clone()).unwrap_or_default();
    ensure(contributors == 4, || format!("contributors: {contributors}"))?;
    for site in &federation.sites {
        let tasks = wait::list(site, TASKS, "roundtasks")?;
        let mine = tasks.iter().filter(|t| t["spec"]["study"] == format!("{RESEARCH}/kills"));
        for task in mine {
            ensure(task["status"]["try"].as_u64().unwrap_or(1) == 1, || {
                format!("{} trained again: {}", site.name, task["status"])
            })?;
        }
    }
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
        wait::until(hub, what, ROUND, || {
            let rounds = study::rounds(federation, "kills")?;
            let round = rounds.into_iter().next().unwrap_or_default();
            Ok(Answer::of(holds(&round).then(|| round.clone()), view::describe(&round)))
        })
    };
    first("a hospital trains", |round| HOSPITALS.iter().any(|site| reason(round, site) == "Training"))?;
    kill(hub, SYSTEM, &["-l", "app.kubernetes.io/name=consilium-operator"])?;
    first("alder uploads", |round| round["status"]["round"]["protocolStep"] == "Upload")?;
    // In the middle: some chunk has arrived, but not all.
    let store = hub.volume("store")?;
    wait::until(hub, "the first chunk of alder's upload", Duration::from_secs(120), || {
        let found = chunks_of(&store, "alder");
        Ok(Answer::of((found > 0).then_some(found), "none"))
    })?;
    kill(alder, AGENT, &["consilium-agent-0"])?;
    let rounds = study::rounds(federation, "kills")?;
    let done = rounds.first().is_some_and(|round| World::site_entry(round, "alder")["done"] == true);
    ensure(!done, || "the upload was over before the agent could be killed; make the link slower".into())
}

fn chunks_of(folder: &std::path::Path, site: &str) -> usize {
    let Ok(entries) = std::fs::read_dir(folder) else { return 0 };
    entries
        .flatten()
        .map(|entry| {
            let path = entry.path();
            match path.is_dir() {
                true => chunks_of(&path, site),
                false => usize::from(
                    path.components().any(|part| part.as_os_str() == site)
                        && path.components().any(|part| part.as_os_str() == "rounds"),
                ),
            }
        })
        .sum()
}

/// A study that is deleted while hospitals train must take its Jobs, pods and Secrets with it everywhere.
pub fn deletion(world: &World) -> Outcome {
    let federation = &world.federation;
    let plan = world.plan("deletion", 3);
    let accepted = study::apply(federation, &world.object(&plan)?)?;
    world.allow(&HOSPITALS, &[study::opt_in(&accepted)])?;
    let alder = federation.site("alder")?;
    wait::until(alder, "a running task", ROUND, || {
        let pods = wait::list(alder, TASKS, "pods")?;
        let running = pods.iter().any(|pod| {
            pod["metadata"]["name"].as_str().is_some_and(|n| n.starts_with("deletion-"))
                && pod["status"]["phase"] == "Running"
        });
        Ok(Answer::of(running.then_some(()), format!("{} pods", pods.len())))
    })?;
    federation.hub.kubectl(&["delete", "federatedstudy", "-n", RESEARCH, "deletion", "--timeout=60s"])?;
    for site in &federation.sites {
        for kind in ["roundtasks", "jobs", "pods", "secrets"] {
            wait::until(
                site,
                &format!("no {kind} of the deleted study in {}", site.name),
                Duration::from_secs(120),
                || {
                    let objects = wait::list(site, TASKS, kind)?;
                    let name = |object: &&Value| {
                        object["metadata"]["name"].as_str().is_some_and(|n| n.starts_with("deletion-"))
                    };
                    let left: Vec<&Value> = objects.iter().filter(name).collect();
                    Ok(Answer::of(left.is_empty().then_some(()), format!("{} left", left.len())))
                },
            )?;
        }
    }
    wait::until(&federation.hub, "no round of the deleted study", Duration::from_secs(120), || {
        let left = study::rounds(federation, "deletion")?.len();
        Ok(Answer::of((left == 0).then_some(()), format!("{left} left")))
    })?;
    Ok(())
}
