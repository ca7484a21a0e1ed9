//! Who vanishes in the middle of a masked sum, and what it costs: the others nothing, and nobody a second training.

use serde_json::{Value, json};
use xtask::federation::{AGENT, study, view, wait};

use crate::{
    faults::{kill_agent, on_a_slow_link, trained_once, unslow},
    harness::{HOSPITALS, Outcome, World, ensure},
    store::Upload,
};

/// A study each: the next round of one begins while its last model is scored, and would begin without the hospital that is
/// gone.
const LOST: &str = "lost";
const LATE: &str = "late";
/// Longest time for a step of an attempt: what a hospital that is gone costs the others.
const STEP: &str = "60s";
/// Longest time for training, and for an evaluation that waits for a hospital that is gone.
const DEADLINE: &str = "2m";

/// In one study a hospital dies between its shares and its upload and stays away: the round succeeds with the other three.
/// In the other one it dies between its upload and its signature and comes back: its update is in the sum.
pub fn dropouts(world: &World) -> Outcome {
    let federation = &world.federation;
    let damson = federation.site("damson")?;
    let lost = on_a_slow_link(damson, || {
        begin(world, LOST)?;
        lost_before_its_upload(world)
    });
    // Whatever came of it, the hospital is there for the scenarios after this one.
    damson.kubectl(&["scale", "statefulset/consilium-agent", "-n", AGENT, "--replicas=1"])?;
    lost?;
    wait::rollout(damson, AGENT, "statefulset/consilium-agent")?;
    on_a_slow_link(federation.site("alder")?, || {
        begin(world, LATE)?;
        killed_after_its_upload(world)
    })?;
    let summed = trained_once(world, LATE, 1, &HOSPITALS)?;
    ensure(World::contributors(&summed) == HOSPITALS, || view::describe(&summed))?;
    view::follow(federation, LATE, wait::STILL)?;
    wait::rollout(damson, AGENT, "statefulset/consilium-agent")?;
    study::finished(federation, LATE)?;
    Ok(())
}

/// A study of one round, with a model of some chunks, so that an upload over a slow link takes a while.
fn begin(world: &World, name: &str) -> Outcome {
    let mut plan = world.plan(name, 1);
    plan.width = 16;
    plan.deadline = DEADLINE.into();
    let mut object = world.object(&plan)?;
    object["spec"]["rounds"]["stepLimit"] = json!(STEP);
    let accepted = study::apply(&world.federation, &object)?;
    world.allow(&HOSPITALS, &[study::opt_in(&accepted)])
}

fn is_uploading(round: &Value) -> bool {
    round["status"]["round"]["step"] == "Aggregating" && round["status"]["round"]["protocolStep"] == "Upload"
}

/// The hospital has dealt its shares, its masks are in everybody's sums, and its upload never comes.
fn lost_before_its_upload(world: &World) -> Outcome {
    let damson = world.federation.site("damson")?;
    let open = world.until_round(LOST, 1, "round 1 asks for uploads", is_uploading)?;
    ensure(World::site_entry(&open, "damson")["member"] == true, || {
        format!("damson was not in the attempt: {}", view::describe(&open))
    })?;
    damson.kubectl(&["scale", "statefulset/consilium-agent", "-n", AGENT, "--replicas=0"])?;
    kill_agent(damson)?;
    ensure(!Upload::of(world, &open, "damson")?.is_complete(), || {
        "damson's upload was over before its agent could be killed; make the link slower".into()
    })?;
    // The sum is made; the evaluation now waits for the hospital that is gone, until its deadline.
    let others = ["alder", "birch", "cedar"];
    let summed = trained_once(world, LOST, 1, &others)?;
    ensure(World::contributors(&summed) == others, || view::describe(&summed))?;
    // An attempt over the evaluation that has opened since begins anew with who drops out.
    let attempt = &summed["status"]["round"]["attempt"];
    let dropped = &World::site_entry(&summed, "damson")["dropped"];
    ensure(*attempt != 1 || *dropped == "Upload", || format!("damson fell out at {dropped}"))?;
    let done =
        world.until_round(LOST, 1, "round 1 succeeds", |round| round["status"]["round"]["step"] == "Succeeded")?;
    ensure(done["status"]["round"]["total"]["cases"].as_u64() > Some(0), || {
        format!("no masked figure: {}", done["status"]["round"])
    })
}

/// The hub has the whole upload and the hospital dies before it has signed who survived. The slow link of another one
/// keeps the step open for so long.
fn killed_after_its_upload(world: &World) -> Outcome {
    let federation = &world.federation;
    let (alder, damson) = (federation.site("alder")?, federation.site("damson")?);
    let uploaded = world.until_round(LATE, 1, "damson has uploaded and alder has not", |round| {
        is_uploading(round)
            && World::site_entry(round, "damson")["done"] == true
            && World::site_entry(round, "alder")["done"] != true
    })?;
    ensure(Upload::of(world, &uploaded, "damson")?.is_complete(), || "damson's upload is not in the store".into())?;
    kill_agent(damson)?;
    let after = world.round(LATE, 1)?;
    // Now alder may catch up, before the step is over for it too.
    unslow(alder)?;
    match after["status"]["round"]["protocolStep"].as_str() {
        Some("Upload") => Ok(()),
        Some("Agree") if World::site_entry(&after, "damson")["done"] != true => Ok(()),
        _ => Err(format!("damson may have signed before it was killed: {}", view::describe(&after)).into()),
    }
}
