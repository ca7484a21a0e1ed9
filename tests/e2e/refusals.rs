//! What is refused, and in which words.

use std::fs;

use serde_json::{Value, json};
use xtask::{
    cluster::Cluster,
    federation::{AGENT, RESEARCH, TASKS, study, view, wait, wait::Answer},
};

use crate::{
    faults::trained_once,
    harness::{HOSPITALS, Outcome, World, ensure},
};

/// A typing error in a study must be told in its status, not found in a log.
pub fn bad_reference(world: &World) -> Outcome {
    let hub = &world.federation.hub;
    let mut plan = world.plan("bad-reference", 1);
    plan.sites.push("ghost".into());
    hub.apply(&[world.object(&plan)?])?;
    let study = wait::for_condition(hub, (RESEARCH, "federatedstudy", &plan.name), ("Accepted", "False"))?;
    let (_, reason, message) = wait::condition(&study, "Accepted").unwrap_or_default();
    ensure(reason == "InvalidReference" && message.contains("ghost") && message.contains("spec.sites"), || {
        format!("{reason}: {message}")
    })?;
    hub.kubectl(&["delete", "federatedstudy", "-n", RESEARCH, &plan.name])?;
    Ok(())
}

fn reason_of(world: &World, study: &str, round: usize, site: &str, wanted: &str) -> Result<Value, xtask::error::Error> {
    wait::until(&world.federation.hub, &format!("{site} {wanted} in round {round} of {study}"), || {
        let rounds = study::rounds(&world.federation, study)?;
        let Some(found) = rounds.get(round - 1) else { return Ok(Answer::NotYet("no such round".into())) };
        let entry = World::site_entry(found, site).clone();
        let holds = entry["reason"] == wanted;
        Ok(Answer::of(holds.then(|| found.clone()), entry))
    })
}

/// A hospital says no and the others go on; a hospital that approved an earlier text of the study does not run the new one.
pub fn refusal_and_edit(world: &World) -> Outcome {
    let federation = &world.federation;
    let mut plan = world.plan("refusal", 1);
    plan.grace = "2s".into();
    let first = study::apply(federation, &world.object(&plan)?)?;
    // Everybody approves this text; then the study is edited before anyone trains.
    let old = study::opt_in(&first);
    plan.rounds = 2;
    let edited = study::apply(federation, &world.object(&plan)?)?;
    let edited = wait::until(&federation.hub, "the edited digest", || {
        let now = study::accepted(federation, &plan.name)?;
        let changed =
            now["status"]["specDigest"] != edited["metadata"]["x"] && now["status"]["specDigest"] != old["specDigest"];
        Ok(Answer::of(changed.then_some(now), "the old digest"))
    })?;
    world.allow(&["damson"], &[])?;
    world.allow(&["cedar"], std::slice::from_ref(&old))?;
    world.allow(&["alder", "birch"], &[study::opt_in(&edited)])?;
    // The round that was made before the edit runs the old text, which cedar approved; the next one does not.
    reason_of(world, &plan.name, 1, "damson", "DeniedByPolicy")?;
    let rounds = study::rounds(federation, &plan.name)?;
    let digest = rounds.first().map(|r| r["spec"]["specDigest"].clone()).unwrap_or_default();
    let (stale, fresh) = if digest == old["specDigest"] { ("alder", &old) } else { ("cedar", &study::opt_in(&edited)) };
    reason_of(world, &plan.name, 1, stale, "SpecChanged")?;
    // Approved again: the same round goes on, at quorum, without damson.
    let others: Vec<&str> = HOSPITALS.into_iter().filter(|site| *site != "damson").collect();
    world.allow(&others, std::slice::from_ref(fresh))?;
    let done = wait::until(&federation.hub, "round 1 without damson", || {
        let rounds = study::rounds(federation, &plan.name)?;
        let state = rounds.first().map(|r| r["status"]["round"].clone()).unwrap_or_default();
        Ok(Answer::of((state["step"] == "Succeeded").then_some(state.clone()), state["step"].clone()))
    })?;
    ensure(done["contributors"] == 3, || format!("contributors: {}", done["contributors"]))?;
    let tasks = wait::list(federation.site("damson")?, TASKS, "roundtasks")?;
    ensure(tasks.is_empty(), || "a hospital that refused has a task".into())?;
    federation.hub.kubectl(&["delete", "federatedstudy", "-n", RESEARCH, &plan.name])?;
    Ok(())
}

/// Without masks the hub reads every update, so a hospital must have said that it may: the others run, and this one is
/// told in its own cluster what it would have to write.
pub fn plaintext(world: &World) -> Outcome {
    let federation = &world.federation;
    let plan = world.plan("plaintext", 1);
    let mut object = world.object(&plan)?;
    object["spec"]["aggregation"]["secure"]["protocol"] = json!("None");
    let accepted = study::apply(federation, &object)?;
    let opt_ins = [study::opt_in(&accepted)];
    let damson = federation.site("damson")?;
    world.allow(&["damson"], &opt_ins)?;
    let entry = decided(damson, &plan.name, "DeniedByPolicy")?;
    let told = entry["message"].as_str().unwrap_or_default();
    let says = told.contains("protocol None") && told.contains("spec.aggregation.allowPlaintextUpdates");
    ensure(says, || format!("damson's administrator is told {told:?}"))?;
    world.allow_plaintext(&["alder", "birch", "cedar"], &opt_ins)?;
    reason_of(world, &plan.name, 1, "damson", "DeniedByPolicy")?;
    study::finished(federation, &plan.name)?;
    let rounds = study::rounds(federation, &plan.name)?;
    let round = rounds.first().ok_or("no round")?;
    ensure(World::contributors(round) == ["alder", "birch", "cedar"], || view::describe(round))?;
    let sums = round["status"]["round"]["evaluation"].as_array().map_or(0, Vec::len);
    ensure(sums == 3, || format!("sums of {sums} hospitals instead of 3: {}", round["status"]["round"]))?;
    let tasks = wait::list(damson, TASKS, "roundtasks")?;
    let task = tasks.iter().find(|task| task["spec"]["study"] == format!("{RESEARCH}/{}", plan.name));
    ensure(task.is_none(), || "a hospital that refused has a task".into())
}

/// Waits until a hospital's policy shows this decision on a study.
fn decided(site: &Cluster, study: &str, wanted: &str) -> Result<Value, Box<dyn std::error::Error>> {
    let shown = wait::until(site, &format!("{wanted} on {study} in {}", site.name), || {
        let policy = wait::get(site, AGENT, "sitepolicy", "default")?;
        let studies = policy["status"]["studies"].as_array().cloned().unwrap_or_default();
        let entry = studies.into_iter().find(|entry| entry["study"] == format!("{RESEARCH}/{study}"));
        let entry = entry.unwrap_or_default();
        let matched = (entry["reason"] == wanted).then(|| entry.clone());
        Ok(Answer::of(matched, entry))
    })?;
    Ok(shown)
}

/// A promotion that names another digest than its release must not reach any hospital.
pub fn wrong_digest(world: &World) -> Outcome {
    let hub = &world.federation.hub;
    let study = wait::get(hub, RESEARCH, "federatedstudy", "spine")?;
    let digest = format!("sha256:{}", "0".repeat(64));
    hub.apply(&[json!({
        "apiVersion": "consilium.health/v1alpha1", "kind": "ModelPromotion",
        "metadata": {"name": "wrong-digest", "namespace": RESEARCH},
        "spec": {"release": {"name": study["status"]["latestRelease"], "digest": digest},
            "stage": "Shadow", "sites": ["alder"], "approvals": []},
    })])?;
    let object = (RESEARCH, "modelpromotion", "wrong-digest");
    let promotion = wait::for_condition(hub, object, ("Accepted", "False"))?;
    let (_, reason, message) = wait::condition(&promotion, "Accepted").unwrap_or_default();
    ensure(message.contains("digest"), || format!("{reason}: {message}"))
}

/// Exit 42: the hospital is told which file and why, once; the round goes on without it.
pub fn broken_data(world: &World) -> Outcome {
    let federation = &world.federation;
    let damson = federation.site("damson")?;
    let scans = world.data.join("damson/train/imagesTr");
    let victim = fs::read_dir(&scans)?.next().ok_or("no scan")??.path();
    let whole = fs::read(&victim)?;
    fs::write(&victim, &whole[..whole.len() / 2])?;
    let mut plan = world.plan("broken", 1);
    plan.grace = "2s".into();
    let accepted = study::apply(federation, &world.object(&plan)?)?;
    world.allow(&HOSPITALS, &[study::opt_in(&accepted)])?;
    let outcome = broken_data_told(world, &plan.name, &victim);
    fs::write(&victim, whole)?;
    outcome?;
    // The others have trained, summed and are scoring: time enough for a second try, if there were one.
    trained_once(world, &plan.name, 1, &["alder", "birch", "cedar"])?;
    let tasks = wait::list(damson, TASKS, "roundtasks")?;
    let of_round = |task: &&Value| {
        let spec = &task["spec"];
        spec["study"] == format!("{RESEARCH}/{}", plan.name) && spec["kind"] == "Train"
    };
    let tries: Vec<&Value> = tasks.iter().filter(of_round).map(|task| &task["status"]["try"]).collect();
    ensure(tries == [&Value::from(1)], || format!("tries of data that cannot be read: {tries:?}"))?;
    study::finished(federation, &plan.name)?;
    let rounds = study::rounds(federation, &plan.name)?;
    let contributors = rounds.first().map(|r| r["status"]["round"]["contributors"].clone()).unwrap_or_default();
    ensure(contributors == 3, || format!("contributors: {contributors}"))
}

fn broken_data_told(world: &World, study: &str, victim: &std::path::Path) -> Outcome {
    reason_of(world, study, 1, "damson", "InvalidData")?;
    let damson = world.federation.site("damson")?;
    let tasks = wait::list(damson, TASKS, "roundtasks")?;
    let task = tasks.iter().find(|task| task["spec"]["study"] == format!("{RESEARCH}/{study}")).ok_or("no task")?;
    let (_, reason, message) = wait::condition(task, "Succeeded").unwrap_or_default();
    let file = victim.file_name().unwrap_or_default().to_string_lossy().into_owned();
    ensure(reason == "InvalidData" && message.contains(&file), || format!("{reason}: {message} (file {file})"))
}
