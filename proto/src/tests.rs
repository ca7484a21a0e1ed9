use consilium_federation::approval::Approval;
use consilium_federation::assignment::{Assignment, DeployWork, Item, ItemState, MAX_ITEMS, RoundWork, Work};
use consilium_federation::gate::{CaseSums, Vote};
use consilium_federation::ladder::Stage;
use consilium_federation::report::{DeployReport, Evaluation, LedgerEnd, Report, RolloutReason, RoundReport};
use consilium_federation::round::{ProtocolStep, SiteReason};
use consilium_federation::stage_approval::{StageApproval, Terms};
use consilium_federation::task::{ClassScore, ScoreFile, TaskKind};
use consilium_federation::{Digest, StudyKey};
use prost::Message as _;

use crate::{read_report, v1};

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
        plan: None,
        stage_approvals: Vec::new(),
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
    // Said since December 2026.
    let mut staged = assignment();
    let Work::Deploy(work) = &mut staged.items[1].work else { panic!() };
    (work.plan, work.stage_approvals) = (Some(Digest::of(b"plan")), vec![staged_approval()]);
    let wire = v1::Assignment::from(&staged);
    assert_eq!(Assignment::try_from(wire.clone()).unwrap(), staged);
    // An approval that is not understood counts for nothing, and hides neither the model nor the other work.
    let mut later = wire;
    let Some(v1::item::Work::Deploy(work)) = &mut later.items[1].work else { panic!() };
    work.stage_approvals.push(v1::StageApproval { stage: "Overlord".into(), ..work.stage_approvals[0].clone() });
    assert_eq!(Assignment::try_from(later).unwrap(), staged);
}

fn staged_approval() -> StageApproval {
    let (model, pipeline, plan) = (Digest::of(b"model"), Digest::of(b"pipeline"), Digest::of(b"plan"));
    let (stage, hospital, evidence) =
        (Stage::SafetyNet, "alder".to_owned().try_into().unwrap(), Digest::of(b"evidence"));
    let terms =
        Terms { model, pipeline, plan, stage, hospital, evidence, expiry: "2027-01-01T00:00:00Z".parse().unwrap() };
    StageApproval { key_id: "mary".into(), role: "officer".into(), terms, signature: "AA==".into() }
}

fn report() -> Report {
    let class = ClassScore { label: 1, dice: 0.9, hd95_mm: Some(1.5), assd_mm: None };
    let evaluation = Evaluation {
        vote: Vote::Pass,
        sums: Some(CaseSums { cases: 10, dice: 9.0 }),
        published: Some(ScoreFile { cases: 10, classes: vec![class] }),
    };
    Report {
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
            stage: None,
            message: None,
        }],
    }
}

#[test]
fn a_report_survives_the_wire() {
    assert_eq!(Report::try_from(v1::ReportRequest::from(&report())).unwrap(), report());
    // Said since December 2026.
    let mut staged = report();
    staged.deployments[0].stage = Some(Stage::SafetyNet);
    assert_eq!(Report::try_from(v1::ReportRequest::from(&staged)).unwrap(), staged);
}

/// One of each message, as this version writes it.
fn transcript() -> Vec<(&'static str, Vec<u8>)> {
    let end = LedgerEnd { entries: 9, head: Digest::of(b"head") };
    let digest = Digest::of(b"object").to_string();
    let (round_uid, attempt) = ("a-1".to_owned(), 2);
    let chunks = vec![vec![7; 32].into(), vec![8; 32].into()];
    vec![
        ("WatchRequest", v1::WatchRequest { agent_version: "0.1.0".into() }.encode_to_vec()),
        ("Assignment", v1::Assignment::from(&assignment()).encode_to_vec()),
        ("ReportRequest", v1::ReportRequest::from(&report()).encode_to_vec()),
        (
            "ReportReply",
            v1::ReportReply {
                ledger: Some((&end).into()),
                signature: vec![1; 64].into(),
                ..v1::ReportReply::default()
            }
            .encode_to_vec(),
        ),
        ("GetObjectRequest", v1::GetObjectRequest { digest }.encode_to_vec()),
        ("GetObjectReply", v1::GetObjectReply { content: b"object".to_vec().into() }.encode_to_vec()),
        (
            "BeginUploadRequest",
            v1::BeginUploadRequest { round_uid: round_uid.clone(), attempt, chunks, manifest: vec![3; 5].into() }
                .encode_to_vec(),
        ),
        ("BeginUploadReply", v1::BeginUploadReply { missing: vec![0, 300] }.encode_to_vec()),
        (
            "PutChunkRequest",
            v1::PutChunkRequest { round_uid: round_uid.clone(), attempt, index: 1, content: vec![4; 6].into() }
                .encode_to_vec(),
        ),
        ("PutChunkReply", v1::PutChunkReply { complete: true }.encode_to_vec()),
        (
            "PutMessageRequest",
            v1::PutMessageRequest { round_uid, attempt, step: "Advertise".into(), content: vec![5; 7].into() }
                .encode_to_vec(),
        ),
        ("PutMessageReply", v1::PutMessageReply {}.encode_to_vec()),
    ]
}

fn golden() -> Vec<(&'static str, Vec<u8>)> {
    let hex =
        |text: &str| (0..text.len()).step_by(2).map(|i| u8::from_str_radix(&text[i..i + 2], 16).unwrap()).collect();
    let lines = include_str!("../testdata/wire-2026-11.txt").lines().filter(|line| !line.starts_with('#'));
    lines.map(|line| line.split_once(' ').unwrap_or((line, ""))).map(|(name, text)| (name, hex(text))).collect()
}

/// Hub and hospital are never updated on one day. What the other writes, a version before, is in the tree; whoever
/// changes a number or a type of the wire reads here whom it parts.
#[test]
fn the_wire_of_november_2026_is_written_and_read() {
    let show = |all: Vec<(&str, Vec<u8>)>| {
        let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
        all.iter()
            .map(|(name, bytes)| format!("{name} {}", hex(bytes)).trim_end().to_owned())
            .collect::<Vec<_>>()
            .join("\n")
    };
    assert_eq!(show(transcript()), show(golden()));
    let golden = golden();
    let bytes = |name: &str| golden.iter().find(|(n, _)| *n == name).unwrap().1.clone();
    let read = Assignment::try_from(v1::Assignment::decode(&*bytes("Assignment")).unwrap()).unwrap();
    assert_eq!(read, assignment());
    assert_eq!(Report::try_from(v1::ReportRequest::decode(&*bytes("ReportRequest")).unwrap()).unwrap(), report());
}

/// The other side is a version ahead: what it adds is passed over, and an item of a new kind is refused alone.
#[test]
fn what_a_later_version_adds_is_passed_over() {
    // Field 99, a text.
    let later = |mut bytes: Vec<u8>| {
        bytes.extend([0x9a, 0x06, 0x03, b'n', b'e', b'w']);
        bytes
    };
    for (name, bytes) in golden() {
        let bytes = later(bytes);
        match name {
            "Assignment" => {
                let read = v1::Assignment::decode(&*bytes).unwrap();
                assert_eq!(Assignment::try_from(read).unwrap(), assignment());
            }
            "ReportRequest" => {
                let read = v1::ReportRequest::decode(&*bytes).unwrap();
                assert_eq!(Report::try_from(read).unwrap(), report());
            }
            _ => {}
        }
    }
    // An item whose work is field 9, of a kind that is not known here.
    let mut item = v1::Item { uid: "c-3".into(), state: "Active".into(), work: None }.encode_to_vec();
    item.extend([0x4a, 0x00]);
    let item = v1::Item::decode(&*item).unwrap();
    assert_eq!(Item::try_from(item).unwrap_err().field, "items.work");
}

/// An agent that was updated first says a reason that this hub does not know: that hospital waits, and neither its other
/// parts nor its models fall silent, which would look as if it had let go of them.
#[test]
fn a_reason_that_is_not_known_is_one_of_waiting() {
    let mut wire = v1::ReportRequest::from(&report());
    wire.rounds.push(v1::RoundReport { reason: "AwaitingMoon".into(), uid: "c-3".into(), ..wire.rounds[0].clone() });
    wire.rounds.push(v1::RoundReport { kind: "Distil".into(), uid: "d-4".into(), ..wire.rounds[0].clone() });
    wire.deployments[0].reason = "Warming".into();
    wire.deployments[0].stage = "Overlord".into();
    if let Some(evaluation) = &mut wire.rounds[0].evaluation {
        evaluation.vote = "Perhaps".into();
    }
    let (read, unknown) = read_report(wire).unwrap();
    let parts: Vec<_> = read.rounds.iter().map(|r| (r.uid.as_str(), r.reason, r.evaluation.is_some())).collect();
    assert_eq!(parts, [("a-1", SiteReason::Evaluated, false), ("c-3", SiteReason::Offered, true)]);
    assert_eq!((read.deployments[0].reason, unknown), (RolloutReason::RollingOut, 5));
    assert_eq!(read.deployments[0].stage, None);
    assert_eq!(read_report(v1::ReportRequest::from(&report())).unwrap(), (report(), 0));
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
    let many = vec![v1::StageApproval::default(); 41];
    assert_eq!(field(&|w| w.stage_approvals = many.clone()), Err("deploy.stage_approvals"));
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
