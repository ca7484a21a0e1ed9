use super::*;
use crate::testing::{round_spec, site};

fn set(of: &[usize]) -> BTreeSet<SiteId> {
    of.iter().map(|i| site(*i)).collect()
}

/// "Crash and run again without the victim" subtracts the victim out: after release there is no second session.
#[test]
fn a_released_base_is_done_for_every_other_attempt_and_round() {
    let (mut history, round, sid) = (History::default(), round_spec(4, 10), Sid([1; 32]));
    history.may_take_part(&round, None).unwrap();
    history.record_released(&round, sid);
    history.may_take_part(&round, Some(&sid)).unwrap();
    let mut later = round.clone();
    later.round = 2;
    for other in [None, Some(&Sid([2; 32]))] {
        let error = history.may_take_part(&later, other).unwrap_err();
        assert!(matches!(error, HistoryError::AlreadyReleased { .. }), "{error}");
    }
    later.subject = Digest([9; 32]);
    history.may_take_part(&later, None).unwrap();
}

/// Example counts asked for twice would tell how many patients one newcomer has.
#[test]
fn static_numbers_leave_once_per_study_and_roster() {
    let (mut history, mut round) = (History::default(), round_spec(4, 10));
    round.purpose = Purpose::Statistics;
    round.subject = round.roster;
    history.record_released(&round, Sid([1; 32]));
    round.round = 7;
    assert!(matches!(history.may_take_part(&round, None), Err(HistoryError::AlreadyReleased { .. })));
}

#[test]
fn sets_that_differ_by_one_hospital_are_refused() {
    let (mut history, round) = (History::default(), round_spec(8, 10));
    history.record_signed(&round, Sid([1; 32]), set(&[0, 1, 2, 3, 4, 5]));
    let sign = |of: &[usize], rule| history.may_sign(&round, &Sid([2; 32]), &set(of), rule);
    let by_one = HistoryError::DiffersByOne { sid: Sid([1; 32]), site: site(5) };
    assert_eq!(sign(&[0, 1, 2, 3, 4], DifferenceRule::Refuse), Err(by_one));
    assert!(sign(&[0, 1, 2, 3, 4, 5, 6], DifferenceRule::Refuse).is_err());
    assert!(sign(&[0, 1, 2, 3, 4, 5], DifferenceRule::Refuse).is_ok());
    assert!(sign(&[0, 1, 2, 3], DifferenceRule::Refuse).is_ok());
    assert!(sign(&[0, 1, 2, 3, 4], DifferenceRule::Allow).is_ok());
}

#[test]
fn the_default_refuses_where_the_hub_has_room() {
    assert_eq!([3, 4, 5, 6].map(DifferenceRule::default_for), [DifferenceRule::Allow; 4]);
    assert_eq!([7, 8, 20].map(DifferenceRule::default_for), [DifferenceRule::Refuse; 3]);
}

/// An honest hub must find a set that goes through, or know at once that there is none.
#[test]
fn the_hub_leaves_one_more_out_when_it_must() {
    let all = set(&[0, 1, 2, 3, 4, 5, 6, 7]);
    let complete = set(&[0, 1, 2, 3, 4, 5, 6]);
    let chosen = admissible_survivors(&complete, std::slice::from_ref(&all), 6).unwrap();
    assert_eq!(chosen.len(), 6);
    assert_eq!(admissible_survivors(&complete, std::slice::from_ref(&all), 7), None);
    assert_eq!(admissible_survivors(&all, &[complete.clone(), all.clone()], 6).map(|s| s.len()), None);
    assert_eq!(admissible_survivors(&complete, &[], 6), Some(complete));
}
