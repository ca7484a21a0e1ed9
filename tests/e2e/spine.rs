//! The way from a study to an answer, and the wall around a hospital.

use std::time::Duration;

use serde_json::Value;
use xtask::federation::{AGENT, RESEARCH, TASKS, promote, study, view, wait};

use crate::harness::{HOSPITALS, Outcome, ROUND, World, ensure};

/// If a port of a hospital answered from outside, or a task pod could reach more than the agent, the promise that scans
/// stay inside would rest on good behaviour.
pub fn firewall(world: &World) -> Outcome {
    let (hub, alder) = (&world.federation.hub, world.federation.site("alder")?);
    for port in [6443, 10250, 10256, 2379, 8080, 8444, 30443] {
        let dial =
            format!("timeout 2 bash -c 'exec 3<>/dev/tcp/{}/{port}' 2>/dev/null && echo open || echo shut", alder.ip);
        let seen = hub.exec(&["bash", "-c", &dial])?;
        ensure(seen.trim() == "shut", || format!("port {port} of {} answers from outside", alder.name))?;
    }
    for site in &world.federation.sites {
        let counters = site.counters()?;
        let packets = |name: &str| counters.get(name).map_or(0, |counter| counter.packets);
        ensure(packets("agent_to_hub") > 0, || {
            format!("{}: no packet of the agent has crossed: {counters:?}", site.name)
        })?;
        ensure(packets("task_to_agent") > 0, || format!("{}: the probe pod has not reached the agent", site.name))?;
        // The probe pod tries what it must not reach; the wall has seen it and said no.
        let refused = packets("task_to_pod_rejected") + packets("task_to_host_rejected");
        ensure(refused > 0, || {
            format!("{}: the probe pod's forbidden dials were not refused: {counters:?}", site.name)
        })?;
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
    view::follow(federation, &plan.name, 2 * ROUND)?;
    let done = study::finished(federation, &plan.name, Duration::from_secs(30))?;
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
    let approval = world.signer.sign(&release, "Shadow")?;
    let sites = HOSPITALS.map(str::to_owned);
    federation.hub.apply(&[promote::promotion("spine-shadow", &release, "Shadow", &sites, &[approval])])?;
    promote::rolled_out(federation, "spine-shadow")?;
    for site in &federation.sites {
        let served = promote::ask(site, &world.data)?;
        ensure(served.dice.len() == 2, || format!("{served:?}"))?;
        // Of this study's Jobs, each ran once.
        let tasks = wait::list(site, TASKS, "roundtasks")?;
        let again = tasks.iter().find(|task| task["status"]["try"].as_u64().unwrap_or(1) > 1);
        ensure(again.is_none(), || format!("{}: {}", site.name, again.unwrap_or(&release)))?;
    }
    let unsigned = promote::promotion("spine-unsigned", &release, "Shadow", &sites[..1], &[]);
    federation.hub.apply(&[unsigned])?;
    wait::until(&federation.hub, "an unsigned promotion is denied", Duration::from_secs(60), || {
        let promotion = wait::get(&federation.hub, RESEARCH, "modelpromotion", "spine-unsigned")?;
        let entry = promotion["status"]["sites"][0].clone();
        Ok(wait::Answer::of((entry["reason"] == "DeniedByPolicy").then_some(()), entry))
    })?;
    Ok(())
}
