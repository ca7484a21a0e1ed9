//! Who belongs to the federation changes while it runs.

use xtask::federation::{AGENT, SYSTEM, roster, study, view, wait};

use crate::harness::{HOSPITALS, Outcome, World, ensure};

/// A hospital that the governance takes off the roster is in no sum any more, whatever it and the hub would like; once it
/// is listed again, it is. Nobody is restarted for it and no policy is edited.
pub fn leave_and_join(world: &World) -> Outcome {
    let federation = &world.federation;
    world.governance.next(federation, 2, &["--remove".into(), "damson".into()])?;
    // As long as the version before is offered, it may be used: that is what keeps rounds going while one spreads.
    federation.hub.kubectl(&["delete", "configmap", "-n", SYSTEM, "consilium-roster-1"])?;
    let outcome = a_round_with(world, "left", &["alder", "birch", "cedar"]);
    // Whatever came of it, the scenarios after this one have four hospitals.
    let damson = format!("--site=damson={}", roster::signing_key(federation.site("damson")?)?);
    world.governance.next(federation, 3, &[damson])?;
    outcome?;
    let policy = wait::get(federation.site("damson")?, AGENT, "sitepolicy", "default")?;
    let versions: Vec<_> =
        policy["status"]["rosters"].as_array().into_iter().flatten().map(|r| &r["version"]).collect();
    ensure(versions == [2, 3], || format!("damson holds versions {versions:?} instead of the two newest"))?;
    a_round_with(world, "joined", &HOSPITALS)
}

fn a_round_with(world: &World, name: &str, contributors: &[&str]) -> Outcome {
    let federation = &world.federation;
    let mut plan = world.plan(name, 1);
    // Who trained and may not be summed is not waited for; who was slow to report what it accepted is.
    plan.grace = "30s".into();
    let accepted = study::apply(federation, &world.object(&plan)?)?;
    world.allow(&HOSPITALS, &[study::opt_in(&accepted)])?;
    study::finished(federation, name)?;
    let rounds = study::rounds(federation, name)?;
    let round = rounds.first().ok_or("no round")?;
    ensure(World::contributors(round) == contributors, || view::describe(round))
}
