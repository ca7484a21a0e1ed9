use consilium_crds::conditions::status_of;
use consilium_crds::site_policy::Suspend;
use consilium_federation::Digest;

use super::*;

fn policy(participation: &str) -> SitePolicy {
    serde_json::from_value(serde_json::json!({
        "apiVersion": "consilium.health/v1alpha1", "kind": "SitePolicy",
        "metadata": {"name": "default", "generation": 3},
        "spec": {
            "participation": participation, "maxGPUs": 0, "registries": [],
            "resources": {"cpu": "1", "memory": "1Gi", "workClaim": "work"},
            "aggregation": {"minContributors": 3}
        }
    }))
    .unwrap()
}

fn item(uid: &str, study: &str, round: u32, state: ItemState) -> Item {
    let work = RoundWork {
        study: StudyKey::new("research", study),
        study_uid: "study-uid".into(),
        spec_digest: Digest::of(b"spec"),
        round,
        kind: TaskKind::Train,
        model: Digest::of(b"model"),
        schema: Digest::of(b"schema"),
        roster_size: 4,
        attempt: 0,
        step: None,
        roster: None,
        inputs: None,
        deadline: "2026-01-01T00:00:00Z".parse().unwrap(),
    };
    Item { uid: uid.into(), state, work: Work::Round(work) }
}

fn standing() -> Standing {
    Standing {
        signing_key: "key".into(),
        rosters: vec![AcceptedRoster { version: 3, digest: Digest::of(b"roster"), sites: 4 }],
        listed: true,
        trouble: None,
        other_hub_key: false,
        overdue: None,
        ledger: LedgerHead { entries: 7, head: Digest::of(b"head"), countersignature: None },
        rolled_back: None,
        hub_claim: None,
        used: UsedAmounts::default(),
    }
}

/// An administrator must read from the policy alone what stands between the hospital and its first masked round.
#[test]
fn the_roster_is_told_with_what_to_do() {
    let told = |governance: bool, standing: Standing| {
        let mut policy = policy("Enabled");
        if governance {
            policy.spec.governance = Some(
                serde_json::from_value(serde_json::json!(
                    {"federation": "north", "required": 1, "keys": [{"id": "chair", "publicKey": ""}]}
                ))
                .unwrap(),
            );
        }
        let status = decide(&StatusInputs {
            policy: &policy,
            link: &LinkStatus::Connected,
            clock: OtherClock::Unheard,
            enforcement: &Enforcement::Enforced,
            desired: &Assignment { hub_epoch: "e".into(), revision: 1, rosters: vec![], items: vec![] },
            standing: &standing,
            reason: &|_, _| None,
            now: "2026-01-01T00:00:00Z".parse().unwrap(),
        });
        let condition = |name: &str| {
            let found = status.conditions.iter().find(|c| c.type_ == name).unwrap();
            (found.status == "True", found.reason.clone(), found.message.clone())
        };
        (condition("RosterAccepted"), condition("StateRolledBack"), status)
    };
    let (roster, back, status) = told(true, standing());
    assert!(roster.0 && roster.2.contains("version 3") && !back.0);
    assert_eq!((status.signing_key.as_deref(), status.ledger.map(|l| l.entries)), (Some("key"), Some(7)));
    assert_eq!(told(false, standing()).0.1, "NoGovernance");
    assert_eq!(told(true, Standing { listed: false, ..standing() }).0.1, "NotListed");
    let none = Standing { rosters: vec![], trouble: Some("1 valid signature".into()), ..standing() };
    let (roster, ..) = told(true, none);
    assert!(roster.1 == "NoneAccepted" && roster.2.contains("1 valid signature"), "{roster:?}");
}

/// What keeps the hospital out must be told with the way back in, and end where that was taken.
#[test]
fn a_roll_back_is_told_until_the_policy_resumes_and_a_claim_while_the_hub_makes_it() {
    let told = |resume: Option<u32>, seen: bool, claim: Option<bool>| {
        let mut policy = policy("Enabled");
        policy.spec.studies = crate::policy::tests::policy(&[]).studies;
        policy.spec.studies[0].resume_after_round = resume;
        let at = "2026-01-01T00:00:00Z".parse().unwrap();
        let study = &policy.spec.studies[0];
        let closed =
            vec![crate::state::Closed { study: study.study.clone(), uid: study.uid.clone(), resumed: Some(2) }];
        let standing = Standing {
            rolled_back: seen.then(|| RolledBack { why: "a head that it never had".into(), at, closed }),
            hub_claim: claim.map(|stands| HubClaim { why: "the hub says more".into(), at, stands }),
            ..standing()
        };
        let mut conditions = Conditions::from_status(&[], None, at);
        rolled_back(&mut conditions, &policy.spec, &standing);
        let found = conditions.into_list().pop().unwrap();
        (found.status == "True", found.reason, found.message)
    };
    for resume in [None, Some(2)] {
        let (back, reason, message) = told(resume, true, None);
        assert!(back && reason == "Restored", "{message}");
        assert!(message.contains("resumeAfterRound") && message.contains("research/hippocampus"), "{message}");
    }
    assert_eq!(told(Some(3), true, None).1, "Resumed");
    for (seen, claim, back, reason) in [
        (false, None, false, "Continuous"),
        (false, Some(true), true, "HubRemembersMore"),
        (false, Some(false), false, "Continuous"),
        (true, Some(true), true, "HubRemembersMore"),
    ] {
        let (found, found_reason, message) = told(Some(3), seen, claim);
        assert_eq!((found, found_reason.as_str()), (back, reason), "{message}");
    }
}

fn status(participation: &str, link: LinkStatus, enforcement: Enforcement, items: Vec<Item>) -> SitePolicyStatus {
    decide(&StatusInputs {
        policy: &policy(participation),
        link: &link,
        clock: OtherClock::Unheard,
        enforcement: &enforcement,
        desired: &Assignment { hub_epoch: "e".into(), revision: 1, rosters: vec![], items },
        standing: &standing(),
        reason: &|uid, _| (uid == "b").then(|| (SiteReason::DeniedByPolicy, Some("why".into()))),
        now: "2026-01-01T00:00:00Z".parse().unwrap(),
    })
}

#[test]
fn ready_says_whether_something_would_run() {
    let lost = || LinkStatus::Disconnected { reason: "ProxyIntercepts", message: "m".into() };
    let open = || LinkStatus::Connected;
    for (participation, link, enforcement, ready) in [
        ("Enabled", open(), Enforcement::Enforced, "True"),
        ("Enabled", lost(), Enforcement::Enforced, "False"),
        ("Enabled", open(), Enforcement::NotEnforced("x".into()), "False"),
        ("Enabled", open(), Enforcement::Unknown, "False"),
        ("Drain", open(), Enforcement::Enforced, "True"),
        ("Disabled", lost(), Enforcement::Unknown, "True"),
    ] {
        let status = status(participation, link.clone(), enforcement, vec![]);
        assert_eq!(status_of(&status.conditions, READY), Some(ready), "{participation} {link:?}");
        assert_eq!(status.observed_generation, Some(3));
    }
    let lost = status("Enabled", lost(), Enforcement::Enforced, vec![]);
    assert!(lost.conditions.iter().any(|c| c.type_ == "Connected" && c.reason == "ProxyIntercepts"));
}

/// Who wrote one word into the policy must read there what it stops, and that the other thing goes on.
#[test]
fn ready_says_what_is_stopped() {
    let told = |participation: &str, suspend: Option<Suspend>| {
        let mut policy = policy(participation);
        policy.spec.suspend = suspend;
        closed(&policy.spec).unwrap_or_default()
    };
    let suspend = |tasks, models| Some(Suspend { tasks, models });
    for (participation, suspended, reason, words) in [
        ("Enabled", None, "", &[][..]),
        ("Drain", None, "Draining", &["finished", "models in use stay", "nothing new"]),
        ("Disabled", suspend(true, true), "Disabled", &["no training, evaluation or model", "says no"]),
        ("Enabled", suspend(true, false), "TasksSuspended", &["suspend.tasks", "models stay and come"]),
        ("Enabled", suspend(false, true), "ModelsSuspended", &["suspend.models", "trainings go on and start"]),
        ("Drain", suspend(true, false), "TasksSuspended", &["models in use stay, none comes"]),
        ("Drain", suspend(false, true), "ModelsSuspended", &["nothing starts"]),
        ("Enabled", suspend(true, true), "Suspended", &["no training, evaluation or model"]),
    ] {
        let (found, message) = told(participation, suspended);
        assert_eq!(found, reason, "{message}");
        words.iter().for_each(|word| assert!(message.contains(word), "{word:?} is not in {message:?}"));
    }
}

/// An administrator copies uid and specDigest from here into the spec to opt in.
#[test]
fn each_study_is_offered_once_with_its_newest_round() {
    let items = vec![
        item("a", "lung", 1, ItemState::Orphaned),
        item("b", "lung", 2, ItemState::Active),
        item("c", "liver", 7, ItemState::Cancelled),
        item("d", "heart", 1, ItemState::Active),
    ];
    let status = status("Enabled", LinkStatus::Connected, Enforcement::Enforced, items);
    let seen: Vec<_> = status.studies.iter().map(|s| (s.study.name.as_str(), s.round, s.reason.as_str())).collect();
    assert_eq!(seen, [("heart", 1, "Offered"), ("lung", 2, "DeniedByPolicy")]);
    assert_eq!((status.studies[0].uid.as_str(), status.studies[0].spec_digest), ("study-uid", Digest::of(b"spec")));
}

/// Approvals, leases and windows go by this clock: an administrator whose node is five hours off must read it here, and how
/// far. While the hub is away, what was known stays.
#[test]
fn a_clock_that_is_off_is_told_with_how_far() {
    let told = |clock| {
        let status = decide(&StatusInputs {
            policy: &policy("Enabled"),
            link: &LinkStatus::Connected,
            clock,
            enforcement: &Enforcement::Enforced,
            desired: &Assignment { hub_epoch: "e".into(), revision: 1, rosters: vec![], items: vec![] },
            standing: &standing(),
            reason: &|_, _| None,
            now: "2026-01-01T00:00:00Z".parse().unwrap(),
        });
        status.conditions.into_iter().find(|c| c.type_ == CLOCK).map(|c| (c.status, c.message))
    };
    let ahead = |seconds| OtherClock::Ahead(jiff::SignedDuration::from_secs(seconds));
    assert_eq!(told(OtherClock::Unheard), None);
    assert_eq!(told(ahead(3)).unwrap().0, "True");
    for (seconds, words) in [(5 * 3600 + 120, "5 h 2 min behind the hub's"), (-130, "2 min ahead of the hub's")] {
        let (status, message) = told(ahead(seconds)).unwrap();
        assert!(status == "False" && message.contains(words), "{message}");
    }
}

/// Whoever answers for patients' data reads in the policy's status that segmentations lie about, and where.
#[test]
fn folders_that_should_be_gone_are_told() {
    let told = |overdue: Option<(usize, String)>| {
        let mut standing = standing();
        standing.overdue = overdue;
        let status = decide(&StatusInputs {
            policy: &policy("Enabled"),
            link: &LinkStatus::Connected,
            clock: OtherClock::Unheard,
            enforcement: &Enforcement::Enforced,
            desired: &Assignment { hub_epoch: "e".into(), revision: 1, rosters: vec![], items: vec![] },
            standing: &standing,
            reason: &|_, _| None,
            now: "2026-01-01T00:00:00Z".parse().unwrap(),
        });
        let found = status.conditions.into_iter().find(|c| c.type_ == "Erased").unwrap();
        (found.status, found.message)
    };
    assert_eq!(told(None).0, "True");
    let (status, message) = told(Some((3, "the folders of 3 tasks".into())));
    assert!(status == "False" && message.contains("3 tasks") && message.contains("ErasureOverdue"), "{message}");
}
