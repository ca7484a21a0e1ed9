//! Each fault that is put in on purpose is found, by the rule that it breaks: a simulator that is blind to them would be
//! blind to the same in the product.

use consilium_simulation::mutant::Mutant;
use consilium_simulation::run_with;
use consilium_simulation::schedule::Schedule;

/// The first schedule of 2,000 that finds each, by `consilium-simulation --mutants`.
const FOUND: &[(Mutant, u64, &str)] = &[
    (Mutant::StaleWriter, 67, "terminal states absorb"),
    (Mutant::ForgetfulApi, 52, "terminal states absorb"),
    (Mutant::SkippedPersist, 48, "what works ends"),
    (Mutant::SkippedJournal, 1, "what works takes part"),
    (Mutant::DoubleCount, 1, "the sum is right"),
    (Mutant::OldUpdate, 1, "the sum is right"),
    (Mutant::LostReplyAsLostRequest, 1, "nobody trains twice"),
    (Mutant::LateDeadline, 37, "rounds end in time"),
    (Mutant::ForgottenVeto, 3, "nothing leaves a hospital that says no"),
    (Mutant::OneWayLeave, 39, "what works ends"),
    (Mutant::NoTombstones, 7, "what works ends"),
    (Mutant::NothingDeleted, 1, "nothing is left behind"),
    (Mutant::TasksStay, 1, "what works ends"),
];

/// A change of the simulator that no longer sees one of these would let the same through in a change of the product.
#[test]
fn every_fault_is_found_by_the_rule_that_it_breaks() {
    for (mutant, id, rule) in FOUND {
        let found = run_with(&Schedule::draw(*id), Some(*mutant)).map_err(|violation| violation.rule);
        assert_eq!(found, Err(*rule), "{mutant:?} in schedule {id}");
    }
    assert!(Mutant::ALL.iter().all(|mutant| FOUND.iter().any(|(found, ..)| found == mutant)));
}
