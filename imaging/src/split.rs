//! Parts of a data set that share no person.

use crate::msd::Case;
use crate::random::permutation;

/// Holds back every `every`-th person: the cases of persons number `every`, 2·`every`, … go to the second part.
///
/// Persons are counted in the order of their numbers (of their names where those are no numbers). With a salt they are
/// shuffled by it first, so that several splits of one data set can be made. Cases keep their order.
pub fn hold_back(cases: &[Case], every: usize, salt: Option<u64>) -> (Vec<Case>, Vec<Case>) {
    let mut subjects = subjects(cases);
    if let Some(salt) = salt {
        let order = permutation(salt, "hold-back", 0, subjects.len());
        subjects = order.into_iter().map(|at| subjects[at].clone()).collect();
    }
    let held: Vec<String> = subjects.into_iter().skip(every.max(1) - 1).step_by(every.max(1)).collect();
    cases.iter().cloned().partition(|case| !held.contains(&case.subject))
}

/// Cuts cases into `parts` runs of consecutive persons, as equal in persons as can be.
pub fn runs(cases: &[Case], parts: usize) -> Vec<Vec<Case>> {
    let subjects = subjects(cases);
    let part_of = |case: &Case| {
        let at = subjects.iter().position(|subject| *subject == case.subject).unwrap_or_default();
        at * parts / subjects.len()
    };
    (0..parts).map(|part| cases.iter().filter(|case| part_of(case) == part).cloned().collect()).collect()
}

/// The persons of some cases, each once, in the order of their numbers.
pub fn subjects(cases: &[Case]) -> Vec<String> {
    let mut all: Vec<String> = cases.iter().map(|case| case.subject.clone()).collect();
    all.sort_by_key(|subject| (subject.parse::<u64>().unwrap_or(u64::MAX), subject.clone()));
    all.dedup();
    all
}
