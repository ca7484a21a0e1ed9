//! The way from a study to an answer, and the wall around a hospital.

use std::error::Error;

use serde_json::Value;
use xtask::{
    cluster::{self, Cluster},
    federation::{AGENT, RESEARCH, promote, study, view, wait},
};

use crate::{
    faults::trained_once,
    harness::{HOSPITALS, Outcome, World, ensure},
};

/// What a hospital's wall has counted under a name that it must know.
fn packets(site: &Cluster, name: &str) -> Result<u64, Box<dyn Error>> {
    let counters = site.counters()?;
    let counter = counters.get(name).ok_or_else(|| format!("the wall of {} has no counter {name}", site.name))?;
    Ok(counter.packets)
}

/// Whether a port of a cluster's node answers someone outside of every cluster.
fn answers(site: &Cluster, port: u16) -> Result<bool, Box<dyn Error>> {
    let dial = format!("timeout 2 bash -c 'exec 3<>/dev/tcp/{}/{port}' 2>/dev/null && echo open || echo shut", site.ip);
    let seen = xtask::process::output(cluster::outside("bash").args(["-c", &dial]))?;
    Ok(seen.trim() == "open")
}

/// If a port of a hospital answered from outside, or a task pod could reach more than the agent, the promise that scans
/// stay inside would rest on good behaviour.
pub fn firewall(world: &World) -> Outcome {
    let (hub, alder) = (&world.federation.hub, world.federation.site("alder")?);
    // From the network between the clusters, which has no rules of its own: that the hub's gateway answers from there shows
    // that silence elsewhere is the hospital's doing.
    ensure(answers(hub, cluster::GATEWAY_PORT)?, || "the hub's gateway does not answer from outside".into())?;
    let dropped = |site: &Cluster| packets(site, "outside_to_inside_dropped");
    let before = dropped(alder)?;
    for port in [6443, 10250, 10256, 2379, 8080, 8444, cluster::GATEWAY_PORT] {
        ensure(!answers(alder, port)?, || format!("port {port} of {} answers from outside", alder.name))?;
    }
    ensure(dropped(alder)? > before, || format!("the wall of {} has not seen what was dialled", alder.name))?;
    for site in &world.federation.sites {
        for (counter, meaning) in [
            ("agent_to_hub", "no packet of the agent has crossed"),
            ("task_to_agent", "no task pod has reached the agent"),
            // The probe pod tries what it must not reach; the wall has seen it and said no.
            ("task_to_other_rejected", "no forbidden dial of the probe pod was refused"),
        ] {
            ensure(packets(site, counter)? > 0, || format!("{}: {meaning} ({counter} is 0)", site.name))?;
        }
        let policy = wait::get(site, AGENT, "sitepolicy", "default")?;
        let seen = wait::condition(&policy, "Enforced");
        ensure(seen.as_ref().is_some_and(|(status, ..)| status == "True"), || format!("{}: {seen:?}", site.name))?;
    }
    Ok(())
}

/// The global figure comes out of a sum in which no hospital's part can be read. These hospitals also publish their own
/// numbers, so that the sum can be checked: if masks or weights did not cancel, it would be noise.
fn masked_figure(round: &Value) -> Outcome {
    let state = &round["status"]["round"];
    ensure(state["evaluation"].is_null(), || format!("plain sums have left hospitals: {}", state["evaluation"]))?;
    let number = |value: &Value| value.as_str().and_then(|text| text.parse::<f64>().ok()).unwrap_or(f64::NAN);
    let (mut cases, mut dice) = (0.0, 0.0);
    for site in state["sites"].as_array().into_iter().flatten() {
        let classes: Vec<f64> = site["dice"].as_array().into_iter().flatten().map(number).collect();
        let weight = site["cases"].as_f64().unwrap_or_default();
        cases += weight;
        dice += weight * classes.iter().sum::<f64>() / classes.len() as f64;
    }
    let global = number(&state["gate"]["global"]);
    ensure(state["total"]["cases"].as_f64() == Some(cases), || format!("{cases} cases, but {}", state["total"]))?;
    // Both are rounded to some decimals on their way.
    ensure((global - dice / cases).abs() < 1e-3, || format!("the sum says {global}, hospitals say {}", dice / cases))
}

/// The whole spine; if this fails, nobody gets a model.
pub fn train_release_promote_ask(world: &World) -> Outcome {
    let federation = &world.federation;
    let plan = world.plan("spine", 2);
    let accepted = study::apply(federation, &world.object(&plan)?)?;
    world.allow(&HOSPITALS, &[study::opt_in(&accepted)])?;
    trained_once(world, &plan.name, 1, &HOSPITALS)?;
    view::follow(federation, &plan.name, wait::STILL)?;
    let done = study::finished(federation, &plan.name)?;
    let rounds = study::rounds(federation, &plan.name)?;
    ensure(rounds.len() == 2, || format!("{} rounds instead of 2", rounds.len()))?;
    for round in &rounds {
        let contributors = round["status"]["contributors"].as_array().map_or(0, Vec::len);
        ensure(contributors == 4, || format!("{}: {contributors} contributors", view::describe(round)))?;
        for site in HOSPITALS {
            let entry = World::site_entry(round, site);
            ensure(entry["vote"] == "Pass" && entry["dice"][0].is_string(), || format!("{site}: {entry}"))?;
        }
        masked_figure(round)?;
    }
    let release = promote::release(federation, &done)?;
    ensure(release["spec"]["round"] == 2, || format!("the newest release is of another round: {}", release["spec"]))?;
    let approval = world.signer.sign(&release, "Shadow")?;
    let sites = HOSPITALS.map(str::to_owned);
    federation.hub.apply(&[promote::promotion("spine-shadow", &release, "Shadow", &sites, &[approval])])?;
    promote::rolled_out(federation, "spine-shadow")?;
    for site in &federation.sites {
        let served = promote::ask(site, &world.data)?;
        ensure(served.dice.len() == 2, || format!("{served:?}"))?;
    }
    let unsigned = promote::promotion("spine-unsigned", &release, "Shadow", &sites[..1], &[]);
    federation.hub.apply(&[unsigned])?;
    wait::until(&federation.hub, "an unsigned promotion is denied", || {
        let promotion = wait::get(&federation.hub, RESEARCH, "modelpromotion", "spine-unsigned")?;
        let entry = promotion["status"]["sites"][0].clone();
        Ok(wait::Answer::of((entry["reason"] == "DeniedByPolicy").then_some(()), entry))
    })?;
    Ok(())
}
