//! What the simulator must be able to do before it can find anything.

use consilium_simulation::run;
use consilium_simulation::schedule::{Schedule, Setting};

/// Where nothing goes wrong, nothing may: each round ends with a model that every update is in.
#[test]
fn a_study_without_trouble_makes_a_model_in_each_round() {
    for gate in [false, true] {
        let told = run(&Schedule { setting: Setting { rounds: 2, gate }, ops: vec![] }).unwrap();
        assert_eq!((told.sums, told.failed), (2, 0), "gate {gate}");
    }
}

/// A schedule that fails in CI must fail in the same way at whoever looks for the reason.
#[test]
fn a_number_is_always_the_same_schedule_with_the_same_end() {
    for id in 1..=6 {
        let schedule = Schedule::draw(id);
        assert_eq!(schedule, Schedule::draw(id));
        assert_eq!(run(&schedule), run(&schedule), "{id}");
    }
}
