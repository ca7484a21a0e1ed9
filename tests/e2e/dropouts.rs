//! Who vanishes in the middle of a masked sum, and what it costs: the others nothing, and nobody a second training.

use std::time::Duration;

use serde_json::{Value, json};
use xtask::federation::{AGENT, study, view, wait, wait::Answer};

use crate::{
    faults::{kill_agent, on_a_slow_link, trained_once, unslow},
    harness::{HOSPITALS, Outcome, ROUND, World, ensure},
    store::Upload,
};

const STUDY: &str = "dropouts";
/// Longest time for a step of an attempt: what a hospital that is gone costs the others.
const STEP: &str = "30s";
/// Longest time for training, and for an evaluation that waits for a hospital that is gone.
const DEADLINE: &str = "2m";

/// In round 1 a hospital dies between its shares and its upload and stays away: the round succeeds with the other three.
/// In round 2 one dies between its upload and its signature and comes back: its update is in the sum.
pub fn dropouts(world: &World) -> Outcome {
    let federation = &world.federation;
    let damson = federation.site("damson")?;
    let mut plan = world.plan(STUDY, 2);
    // A model of some chunks, so that an upload over a slow link takes a while.
    plan.width = 16;
    plan.deadline = DEADLINE.into();
    let mut object = world.object(&plan)?;
    object["spec"]["rounds"]["stepLimit"] = json!(STEP);
    let accepted = study::apply(federation, &object)?;
    let lost = on_a_slow_link(damson, || {
        world.allow(&HOSPITALS, &[study::opt_in(&accepted)])?;
        lost_before_its_upload(world)
    });
    // Whatever came of it, the hospital is there for the scenarios after this one.
    damson.kubectl(&["scale", "statefulset/consilium-agent", "-n", AGENT, "--replicas=1"])?;
    lost?;
    on_a_slow_link(federation.site("alder")?, || killed_after_its_upload(world))?;
    // While the model is scored, the tasks that made it are still there to be asked.
    let summed = until(world, 2, "round 2 is summed", is_summed)?;
    trained_once(world, STUDY)?;
    ensure(World::contributors(&summed) == HOSPITALS, || view::describe(&summed))?;
    view::follow(federation, STUDY, ROUND)?;
    wait::rollout(damson, AGENT, "statefulset/consilium-agent", Duration::from_secs(120))?;
    study::finished(federation, STUDY, Duration::from_secs(30))?;
    trained_once(world, STUDY)
}

/// A round of the study as it stands; `Null` while it is not there.
fn number(world: &World, number: u64) -> xtask::error::Result<Value> {
    let rounds = study::rounds(&world.federation, STUDY)?;
    Ok(rounds.into_iter().find(|round| round["spec"]["number"] == number).unwrap_or_default())
}

/// Waits until a round is as it should be; fails at once when it has failed.
fn until(
    world: &World,
    round: u64,
    what: &str,
    holds: impl Fn(&Value) -> bool,
) -> Result<Value, Box<dyn std::error::Error>> {
    let seen = wait::until(&world.federation.hub, what, ROUND, || {
        let seen = number(world, round)?;
        let over = holds(&seen) || seen["status"]["round"]["step"] == "Failed";
        Ok(Answer::of(over.then(|| seen.clone()), view::describe(&seen)))
    })?;
    ensure(holds(&seen), || format!("{what}: {}: {}", view::describe(&seen), seen["status"]["round"]["message"]))?;
    Ok(seen)
}

fn is_uploading(round: &Value) -> bool {
    round["status"]["round"]["step"] == "Aggregating" && round["status"]["round"]["protocolStep"] == "Upload"
}

fn is_summed(round: &Value) -> bool {
    matches!(round["status"]["round"]["step"].as_str(), Some("Evaluating" | "Succeeded"))
}

/// The hospital has dealt its shares, its masks are in everybody's sums, and its upload never comes.
fn lost_before_its_upload(world: &World) -> Outcome {
    let damson = world.federation.site("damson")?;
    let open = until(world, 1, "round 1 asks for uploads", is_uploading)?;
    ensure(World::site_entry(&open, "damson")["member"] == true, || {
        format!("damson was not in the attempt: {}", view::describe(&open))
    })?;
    damson.kubectl(&["scale", "statefulset/consilium-agent", "-n", AGENT, "--replicas=0"])?;
    kill_agent(damson)?;
    ensure(!Upload::of(world, &open, "damson")?.is_complete(), || {
        "damson's upload was over before its agent could be killed; make the link slower".into()
    })?;
    // The sum is made; the evaluation now waits for the hospital that is gone, until its deadline.
    let summed = until(world, 1, "round 1 is summed", is_summed)?;
    let others = ["alder", "birch", "cedar"];
    ensure(World::contributors(&summed) == others, || view::describe(&summed))?;
    // An attempt over the evaluation that has opened since begins anew with who drops out.
    let attempt = &summed["status"]["round"]["attempt"];
    let dropped = &World::site_entry(&summed, "damson")["dropped"];
    ensure(*attempt != 1 || *dropped == "Upload", || format!("damson fell out at {dropped}"))?;
    trained_once(world, STUDY)?;
    let done = until(world, 1, "round 1 succeeds", |round| round["status"]["round"]["step"] == "Succeeded")?;
    ensure(done["status"]["round"]["total"]["cases"].as_u64() > Some(0), || {
        format!("no masked figure: {}", done["status"]["round"])
    })
}

/// The hub has the whole upload and the hospital dies before it has signed who survived. The slow link of another one
/// keeps the step open for so long.
fn killed_after_its_upload(world: &World) -> Outcome {
    let federation = &world.federation;
    let (alder, damson) = (federation.site("alder")?, federation.site("damson")?);
    let uploaded = until(world, 2, "damson has uploaded in round 2 and alder has not", |round| {
        is_uploading(round)
            && World::site_entry(round, "damson")["done"] == true
            && World::site_entry(round, "alder")["done"] != true
    })?;
    ensure(Upload::of(world, &uploaded, "damson")?.is_complete(), || "damson's upload is not in the store".into())?;
    kill_agent(damson)?;
    let after = number(world, 2)?;
    // Now alder may catch up, before the step is over for it too.
    unslow(alder)?;
    match after["status"]["round"]["protocolStep"].as_str() {
        Some("Upload") => Ok(()),
        Some("Agree") if World::site_entry(&after, "damson")["done"] != true => Ok(()),
        _ => Err(format!("damson may have signed before it was killed: {}", view::describe(&after)).into()),
    }
}
