//! Hazards are complete, closed with proof, never deleted, and lower what they are about.

use super::*;
use crate::testing::{at, hazard, subject};

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

fn closed(mut hazard: Hazard) -> Hazard {
    hazard.controls = vec![Control { control: "scope rule".into(), proof: Some("test 12".into()) }];
    hazard.residual = Some(Risk { severity: 2, likelihood: 1 });
    hazard.closed = Some(Closed { at: at(9000), by: name("clinical-safety-officer"), why: "the risk is low".into() });
    hazard
}

#[test]
fn a_hazard_is_complete_and_closed_with_proof() {
    let id = name("wrong-plane");
    assert_eq!(hazard(Fall::Shadow).check(&id), Ok(()));
    assert_eq!(closed(hazard(Fall::Shadow)).check(&id), Ok(()));
    type Change = fn(&mut Hazard);
    let changes: [(Change, &str); 8] = [
        (|h| h.harm = "  ".into(), "harm"),
        (|h| h.causes.clear(), "causes"),
        (|h| h.effect = "x".repeat(MAX_TEXT + 1), "effect"),
        (|h| h.initial.severity = 6, "severity 6"),
        (|h| h.residual = None, "residual"),
        (|h| h.controls[0].proof = None, "proof"),
        (|h| h.controls.clear(), "controls"),
        (|h| h.closed.as_mut().unwrap().at = at(1), "before it was opened"),
    ];
    for (change, what) in changes {
        let mut wrong = closed(hazard(Fall::Shadow));
        change(&mut wrong);
        let error = wrong.check(&id).unwrap_err().to_string();
        assert!(error.starts_with("hazard wrong-plane: ") && error.contains(what), "{error} lacks {what:?}");
    }
}

/// A hub that deletes its hazard, or says it was never so bad, must not raise a model by it.
#[test]
fn what_is_not_mentioned_stays_and_only_its_origin_closes_it() {
    let (id, line) = (name("h1"), "research/hippocampus".parse().unwrap());
    let open = |log: &HazardLog| log.open(&subject(), &line, Fall::Watch).map(|(_, _, fall)| fall).collect::<Vec<_>>();
    let mut log = HazardLog::default();
    log.take(Origin::Hospital, &id, hazard(Fall::Withdraw)).unwrap();
    assert_eq!(open(&log), [Fall::Withdraw]);

    let milder = log.take(Origin::Hospital, &id, hazard(Fall::Watch)).unwrap_err();
    assert_eq!(milder.field, "lowers");
    let mut moved = hazard(Fall::Withdraw);
    moved.hospital = Some("birch".parse().unwrap());
    assert_eq!(log.take(Origin::Hospital, &id, moved).unwrap_err().field, "of");
    log.take(Origin::Hub, &id, closed(hazard(Fall::Withdraw))).unwrap();
    assert_eq!(open(&log), [Fall::Withdraw], "the hub's hazard of the same name is another one");

    log.take(Origin::Hospital, &id, closed(hazard(Fall::Withdraw))).unwrap();
    assert_eq!((open(&log), log.all().count()), (vec![], 2));
    assert_eq!(log.take(Origin::Hospital, &id, hazard(Fall::Withdraw)).unwrap_err().field, "closed");
}

/// A hub that names hazards without end must not keep a hospital's own people from opening one.
#[test]
fn each_origin_has_a_bound_of_its_own() {
    let mut log = HazardLog::default();
    for n in 0..MAX_HAZARDS {
        log.take(Origin::Hub, &name(&format!("h{n}")), hazard(Fall::Watch)).unwrap();
    }
    assert_eq!(log.take(Origin::Hub, &name("one-more"), hazard(Fall::Watch)).unwrap_err().field, "name");
    assert_eq!(log.take(Origin::Hub, &name("h1"), hazard(Fall::Shadow)), Ok(()));
    assert_eq!(log.take(Origin::Hospital, &name("ours"), hazard(Fall::Shadow)), Ok(()));
}

/// A hospital that has closed a thousand hazards in ten years must be able to open the next.
#[test]
fn closed_hazards_of_the_hospital_take_no_room_from_open_ones() {
    let mut log = HazardLog::default();
    for n in 0..MAX_HAZARDS {
        log.take(Origin::Hospital, &name(&format!("h{n}")), hazard(Fall::Watch)).unwrap();
    }
    assert!(log.take(Origin::Hospital, &name("one-more"), hazard(Fall::Watch)).is_err());
    log.take(Origin::Hospital, &name("h1"), closed(hazard(Fall::Watch))).unwrap();
    assert_eq!(log.take(Origin::Hospital, &name("one-more"), hazard(Fall::Watch)), Ok(()));
}

#[test]
fn a_hazard_lowers_what_it_is_about_and_the_plan_may_say_more() {
    let (line, other) = ("research/hippocampus".parse().unwrap(), "research/spleen".parse().unwrap());
    let x = Digest::of(b"x");
    for (of, hits) in [
        (HazardOf::Line("research/hippocampus".parse().unwrap()), true),
        (HazardOf::Line(other), false),
        (HazardOf::Model(subject().model), true),
        (HazardOf::Model(x), false),
        (HazardOf::Pipeline(subject().pipeline), true),
        (HazardOf::Pipeline(x), false),
    ] {
        let one = Hazard { of: of.clone(), ..hazard(Fall::OneDown) };
        assert_eq!(one.hits(&subject(), &line), hits, "{of:?}");
        let here = Hazard { hospital: Some("alder".parse().unwrap()), ..one.clone() };
        assert_eq!(here.hits(&subject(), &line), hits);
        let elsewhere = Hazard { hospital: Some("birch".parse().unwrap()), ..one.clone() };
        assert!(!elsewhere.hits(&subject(), &line) && !closed(one).hits(&subject(), &line));
    }
    let mut log = HazardLog::default();
    log.take(Origin::Hub, &name("h"), hazard(Fall::OneDown)).unwrap();
    let falls = |plan| log.open(&subject(), &line, plan).map(|(_, _, fall)| fall).collect::<Vec<_>>();
    assert_eq!((falls(Fall::Watch), falls(Fall::Shadow)), (vec![Fall::OneDown], vec![Fall::Shadow]));
    let again = HazardLog::new(log.all().map(|(o, n, h)| ((*o, n.clone()), h.clone())));
    assert_eq!(again, log);
}
