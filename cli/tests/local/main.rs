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
    a_folder_that_is_not_its_own_is_left_alone();
    println!("test a_folder_that_is_not_its_own_is_left_alone ... ok");
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
    // It holds keys and scans: nobody else on the machine reads them, and no `git add` takes them along.
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(world.out()).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o700);
    assert_eq!(std::fs::read_to_string(world.out().join(".gitignore")).unwrap(), "*\n");
    // A kill in the middle of a line costs that line alone: the report is made from the others.
    let log = world.out().join("events.jsonl");
    let told = std::fs::read(&log).unwrap();
    std::fs::write(&log, &told[..told.len() - 20]).unwrap();
    // What is over is not begun again.
    let again = world.run();
    let lines = std::fs::read_to_string(&log).unwrap();
    let read = lines.lines().map(serde_json::from_str::<serde_json::Value>).collect::<Vec<_>>();
    assert_eq!(read.iter().filter(|line| line.is_err()).count(), 1, "{lines}");
    assert_eq!(read.last().unwrap().as_ref().unwrap()["event"], "finished");
    // Other scans, hospitals or trainers would give figures that no one set of them produced.
    for (words, named) in [(["--shards", "others"], "--shards"), (["--trainer", "another"], "--trainer")] {
        let said = world.refused(&words);
        assert!(said.contains(named) && said.contains("--out"), "{said}");
    }
    assert_eq!(again.last().unwrap()["model"], last["model"]);
    assert_eq!(world.trainings().values().sum::<u64>(), 6);
}

/// `--out .` in a project that has a folder `data` must not be the end of its scans.
fn a_folder_that_is_not_its_own_is_left_alone() {
    let world = World::new();
    let scan = world.out().join("data/mine.nii.gz");
    std::fs::create_dir_all(scan.parent().unwrap()).unwrap();
    std::fs::write(&scan, "a scan").unwrap();
    let said = world.refused(&[]);
    assert!(said.contains("--out") && said.contains("\"data\""), "{said}");
    assert_eq!(std::fs::read_to_string(&scan).unwrap(), "a scan");
    assert_eq!(std::fs::read_dir(world.out()).unwrap().count(), 1, "nothing is left in it");
}

/// Somebody closes the lid, the machine runs out of memory, a process is shot: the same command ends with the same model,
/// and nobody whose update was there trains again. The hub's rule remembers: what it knew of the first round must be there
/// in the second.
fn whatever_is_killed_nothing_is_lost() {
    let strategy = serde_json::json!({"kind": "FedAdam", "rate": "0.1"});
    let undisturbed = World::of(&strategy);
    let expected = undisturbed.run().last().unwrap()["model"].clone();
    let moments = |world: &World| {
        let round: serde_json::Value = serde_json::from_str(&world.round(2)).unwrap();
        (round["spec"]["moments"].clone(), round["status"]["round"]["moments"].clone())
    };
    assert_eq!(moments(&undisturbed).0.as_array().map(Vec::len), Some(2));

    let world = World::of(&strategy);
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
    assert_eq!(moments(&world), moments(&undisturbed));
    // The second round, and what was cut off in the first.
    assert_eq!(world.trainings()["alder"], trained + 1);
}
