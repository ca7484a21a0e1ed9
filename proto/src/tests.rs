use consilium_federation::approval::Approval;
use consilium_federation::assignment::{Assignment, DeployWork, Item, ItemState, MAX_ITEMS, RoundWork, Work};
use consilium_federation::gate::{CaseSums, Vote};
use consilium_federation::ladder::Stage;
use consilium_federation::report::{DeployReport, Evaluation, LedgerEnd, Report, RolloutReason, RoundReport};
use consilium_federation::round::{ProtocolStep, SiteReason};
use consilium_federation::task::{ClassScore, ScoreFile, TaskKind};
use consilium_federation::{Digest, StudyKey};

use crate::v1;

fn assignment() -> Assignment {
    let round = RoundWork {
        study: StudyKey::new("research", "hippocampus"),
        study_uid: "u-1".into(),
        spec_digest: Digest::of(b"spec"),
        round: 3,
        kind: TaskKind::Train,
        model: Digest::of(b"model"),
        schema: Digest::of(b"schema"),
        roster_size: 4,
        attempt: 2,
        step: Some(ProtocolStep::Upload),
        roster: Some(Digest::of(b"roster")),
        inputs: Some(Digest::of(b"bundle")),
        deadline: "2026-01-01T00:00:00Z".parse().unwrap(),
    };
    let approval = Approval {
        key_id: "mary".into(),
        role: "clinical-safety-officer".into(),
        expiry: "2027-01-01T00:00:00Z".parse().unwrap(),
        signature: "AA==".into(),
    };
    let deploy = DeployWork {
        release: "hippocampus-r5".into(),
        release_digest: Digest::of(b"release"),
        model: Digest::of(b"model"),
        stage: Stage::Shadow,
        approvals: vec![approval],
    };
    Assignment {
        hub_epoch: "e".into(),
        revision: 7,
        rosters: vec![Digest::of(b"signed roster")],
        items: vec![
            Item { uid: "a-1".into(), state: ItemState::Active, work: Work::Round(round) },
            Item { uid: "b-2".into(), state: ItemState::Cancelled, work: Work::Deploy(deploy) },
        ],
    }
}

#[test]
fn an_assignment_survives_the_wire() {
    assert_eq!(Assignment::try_from(v1::Assignment::from(&assignment())).unwrap(), assignment());
}

#[test]
fn a_report_survives_the_wire() {
    let class = ClassScore { label: 1, dice: 0.9, hd95_mm: Some(1.5), assd_mm: None };
    let evaluation = Evaluation {
        vote: Vote::Pass,
        sums: Some(CaseSums { cases: 10, dice: 9.0 }),
        published: Some(ScoreFile { cases: 10, classes: vec![class] }),
    };
    let report = Report {
        hub_epoch: "e".into(),
        revision: 7,
        agent_version: "0.1.0".into(),
        rosters: vec![Digest::of(b"roster")],
        ledger: Some(LedgerEnd { entries: 9, head: Digest::of(b"head") }),
        rounds: vec![RoundReport {
            uid: "a-1".into(),
            kind: TaskKind::Evaluate,
            reason: SiteReason::Evaluated,
            message: Some("m".into()),
            evaluation: Some(evaluation),
        }],
        deployments: vec![DeployReport {
            uid: "b-2".into(),
            reason: RolloutReason::Serving,
            serving: Some(Digest::of(b"model")),
            message: None,
        }],
    };
    assert_eq!(Report::try_from(v1::ReportRequest::from(&report)).unwrap(), report);
}

/// A hostile hub or hospital must not get past the parser with values that the types forbid.
#[test]
fn nonsense_is_refused_and_the_field_is_named() {
    let spoil = |change: fn(&mut v1::RoundWork)| {
        let mut wire = v1::Assignment::from(&assignment());
        if let Some(v1::item::Work::Round(round)) = &mut wire.items[0].work {
            change(round);
        }
        Assignment::try_from(wire).unwrap_err().field
    };
    assert_eq!(spoil(|r| r.model = "sha256:zz".into()), "round.model");
    assert_eq!(spoil(|r| r.kind = "Format".into()), "round.kind");
    assert_eq!(spoil(|r| r.study = "../etc".into()), "round.study");
    assert_eq!(spoil(|r| r.study_uid = "u\n  approval: Automatic".into()), "round.study_uid");
    assert_eq!(spoil(|r| r.step = "Leap".into()), "round.step");
    assert_eq!(spoil(|r| r.roster = "mine".into()), "round.roster");
    assert_eq!(spoil(|r| r.inputs = "../x".into()), "round.inputs");
    assert_eq!(spoil(|r| r.deadline = "soon".into()), "round.deadline");
    let mut wire = v1::Assignment::from(&assignment());
    wire.items[0].uid = "../../x".into();
    assert_eq!(Assignment::try_from(wire).unwrap_err().field, "items.uid");
    let mut wire = v1::Assignment::from(&assignment());
    wire.items = vec![wire.items[0].clone(); MAX_ITEMS + 1];
    assert_eq!(Assignment::try_from(wire).unwrap_err().field, "items");
    let sums =
        v1::Evaluation { vote: "Pass".into(), sums: Some(v1::Sums { cases: 1, dice: f64::NAN }), published: None };
    assert_eq!(Evaluation::try_from(sums).unwrap_err().field, "sums.dice");
}

/// A hospital keeps what it is asked to serve; a hub that names it in megabytes, thousands of times, would fill its volume.
#[test]
fn what_a_promotion_says_is_bounded_field_by_field() {
    let deploy = || {
        let items = assignment().items.into_iter();
        let mut items = items.filter(|item| matches!(item.work, Work::Deploy(_)));
        v1::Item::from(&items.next().expect("the assignment of these tests holds a promotion"))
    };
    let field = |edit: &dyn Fn(&mut v1::DeployWork)| {
        let mut item = deploy();
        let Some(v1::item::Work::Deploy(work)) = &mut item.work else { panic!("a promotion") };
        if work.approvals.is_empty() {
            let expiry = "2027-01-01T00:00:00Z".to_owned();
            work.approvals.push(v1::Approval { expiry, ..v1::Approval::default() });
        }
        edit(work);
        Item::try_from(item).map(drop).map_err(|error| error.field)
    };
    assert_eq!(field(&|_| ()), Ok(()));
    assert_eq!(field(&|w| w.release = "x".repeat(254)), Err("deploy.release"));
    assert_eq!(field(&|w| w.approvals[0].key_id = "x".repeat(64)), Err("deploy.approvals.key_id"));
    assert_eq!(field(&|w| w.approvals[0].role = "x".repeat(64)), Err("deploy.approvals.role"));
    assert_eq!(field(&|w| w.approvals[0].signature = "x".repeat(89)), Err("deploy.approvals.signature"));
    assert_eq!(field(&|w| w.approvals = vec![w.approvals[0].clone(); 21]), Err("deploy.approvals"));
}

/// A number of cases that no hospital has must not get into the hub's sums.
#[test]
fn an_evaluation_of_more_cases_than_there_are_is_refused_with_the_rule() {
    for (sums, published, field) in [(u32::MAX, 1, "sums.cases"), (1, u32::MAX, "published.cases")] {
        let evaluation = v1::Evaluation {
            vote: "Pass".into(),
            sums: Some(v1::Sums { cases: sums, dice: 0.5 }),
            published: Some(v1::Score { cases: published, classes: vec![] }),
        };
        let error = Evaluation::try_from(evaluation).unwrap_err().to_string();
        assert!(error.contains(field) && error.contains("at most"), "{error}");
    }
}
