//! `consilium local` as somebody runs it: a study in, a digest out, and the same digest whatever is killed meanwhile.
//!
//! This program is the study's trainer too, so that the test needs neither libtorch nor scans: `trainer.rs`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test stops with what it met")]

mod trainer;
mod world;

use std::collections::BTreeMap;

use world::World;

fn main() {
    if std::env::var_os(trainer::MARK).is_some() {
        return trainer::run();
    }
    as_a_researcher_runs_it();
    println!("test as_a_researcher_runs_it ... ok");
    whatever_is_killed_nothing_is_lost();
    println!("test whatever_is_killed_nothing_is_lost ... ok");
}

/// The first command of the README: if it ends in anything but a model and a report, nobody comes back.
fn as_a_researcher_runs_it() {
    let world = World::new();
    let events = world.run();
    let of = |kind: &str| events.iter().filter(|event| event["event"] == kind).cloned().collect::<Vec<_>>();
    assert_eq!(events[0]["event"], "started");
    assert_eq!(of("round").len(), 2);
    for round in of("round") {
        assert_eq!((round["contributors"].as_u64(), round["outcome"].as_str()), (Some(3), Some("Completed")));
    }
    let last = events.last().unwrap();
    assert_eq!((last["event"].as_str(), last["succeeded"].as_bool()), (Some("finished"), Some(true)));
    // Each hospital moved every parameter by a half, twice; one that counted twice or not at all would show.
    let model = world.model();
    assert_eq!(model.len(), trainer::PARAMETERS);
    assert!(model.iter().all(|value| (value - 1.0).abs() < 1e-4), "{:?}", &model[..4]);
    let report = std::fs::read_to_string(world.out().join("report.html")).unwrap();
    assert!(report.contains(last["model"].as_str().unwrap()) && !report.contains("http://"), "{report}");
    assert_eq!(world.trainings(), BTreeMap::from(["alder", "birch", "cedar"].map(|site| (site.to_owned(), 2))));
    // What is over is not begun again.
    let again = world.run();
    assert_eq!(again.last().unwrap()["model"], last["model"]);
    assert_eq!(world.trainings().values().sum::<u64>(), 6);
}

/// Somebody closes the lid, the machine runs out of memory, a process is shot: the same command ends with the same model,
/// and nobody whose update was there trains again.
fn whatever_is_killed_nothing_is_lost() {
    let undisturbed = World::new();
    let expected = undisturbed.run().last().unwrap()["model"].clone();

    let world = World::new();
    // All of it, while everybody trains for the first time.
    world.hold(&["alder", "birch", "cedar"]);
    let first = world.start();
    world.until("all train", |world| world.trainings().len() == 3);
    first.kill();
    // A trainer that outlived its hospital would write into the folder of the next one.
    world.until("nothing is left running", |world| world.processes().is_empty());
    // One hospital whose update lies ready, while the others still train; it is started again by itself.
    world.hold(&["birch", "cedar"]);
    let second = world.start();
    world.until("alder is ready", |world| world.is_ready("alder"));
    let trained = world.trainings()["alder"];
    let before = world.hospital("alder");
    world.kill(before);
    world.until("alder is back", |world| world.hospitals("alder").iter().any(|pid| *pid != before));
    world.hold(&[]);
    // And the hub in the middle of an attempt.
    world.until("an attempt is open", |world| world.round(1).contains("\"protocolStep\""));
    second.kill();
    assert_eq!(world.trainings()["alder"], trained, "an update that was there was made again");
    let events = world.run();
    let last = events.last().unwrap();
    assert_eq!(last["model"], expected, "the model differs from that of a run that nobody disturbed");
    // The second round, and what was cut off in the first.
    assert_eq!(world.trainings()["alder"], trained + 1);
}
