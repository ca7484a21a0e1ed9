use consilium_federation::Digest;
use consilium_federation::round::ProtocolStep;
use consilium_federation::task::TaskKind;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

pub(super) const IMAGE: &str = "registry.hospital.example/research/trainer@sha256:0000000000000000000000000000000000000000000000000000000000000001";

pub(crate) fn spec() -> FederatedStudySpec {
    serde_json::from_value(json!({
        "sites": [{"name": "alder"}, {"name": "birch"}, {"name": "cedar"}, {"name": "damson"}],
        "trainer": {"image": IMAGE, "gpus": 8, "minGPUMemory": "32Gi", "minComputeCapability": "7.0"},
        "initialModel": {"seed": 7},
        "aggregation": {"secure": {"protocol": "None", "minContributors": 3}, "clipNorm": "10"},
        "rounds": {"max": 50, "quorum": 3, "deadline": "12h"},
        "gate": {"metric": "dice", "min": "0.8", "perSiteMin": "0.7", "minCases": 10}
    }))
    .unwrap()
}

pub(crate) fn work() -> RoundWork {
    RoundWork {
        study: StudyKey::new("research", "hippocampus"),
        study_uid: "uid-1".into(),
        spec_digest: spec().digest(),
        round: 3,
        kind: TaskKind::Train,
        model: Digest::of(b"model"),
        schema: Digest::of(b"schema"),
        roster_size: 4,
        attempt: 0,
        step: None,
        roster: None,
        inputs: None,
        deadline: "2026-01-01T00:00:00Z".parse().unwrap(),
    }
}

/// A policy that allows [`work`], with some fields replaced, by JSON pointer.
pub(crate) fn policy(changes: &[(&str, Value)]) -> SitePolicySpec {
    let mut tree = json!({
        "participation": "Enabled",
        "hardware": [{"product": "Tesla-V100-SXM3-32GB", "computeCapability": "7.0", "memory": "32Gi", "count": 16}],
        "maxGPUs": 8,
        "registries": ["registry.hospital.example/research/"],
        "imageDigests": [],
        "resources": {"cpu": "8", "memory": "64Gi", "workClaim": "work"},
        "studies": [{
            "study": "research/hippocampus", "uid": "uid-1", "specDigest": spec().digest(), "approval": "Automatic",
            "dataset": {"trainClaim": "train", "evaluateClaim": "evaluate", "labelsClaim": "labels"}
        }],
        "aggregation": {"minContributors": 3, "allowPlaintextUpdates": true}
    });
    for (pointer, value) in changes {
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        match tree.pointer_mut(parent).unwrap() {
            Value::Object(map) => drop(map.insert(key.to_owned(), value.clone())),
            other => panic!("{pointer} is in {other}"),
        }
    }
    serde_json::from_value(tree).unwrap()
}

fn ask(work: &RoundWork, policy: &SitePolicySpec, spec: &FederatedStudySpec, barrier: Barrier) -> Decision {
    let enforcement = &Enforcement::Enforced;
    ladder(&LadderInputs {
        work,
        policy: Some(policy),
        spec: Some(spec),
        enforcement,
        secure: &SecureFacts::default(),
        barrier,
    })
}

/// One row a rung: what the hospital wrote, what the hub is told, and the words that its people need.
#[test]
fn each_rung_refuses_and_says_what_would_help() {
    let other = Digest::of(b"other").to_string();
    let rows: &[(&str, Value, SiteReason, &[&str])] = &[
        ("/studies", json!([]), SiteReason::DeniedByPolicy, &["spec.studies", "research/hippocampus", "uid-1"]),
        ("/studies/0/uid", json!("uid-0"), SiteReason::SpecChanged, &["uid-0", "uid-1", "made anew"]),
        ("/studies/0/specDigest", json!(other), SiteReason::SpecChanged, &["specDigest", "edited", &other]),
        ("/studies/0/approval", json!("Denied"), SiteReason::DeniedByPolicy, &["approval", "Denied", "Automatic"]),
        ("/studies/0/approval", json!("PerRound"), SiteReason::AwaitingApproval, &["approvedThroughRound", "0", "3"]),
        ("/participation", json!("Drain"), SiteReason::DeniedByPolicy, &["participation", "Drain", "Enabled"]),
        ("/participation", json!("Disabled"), SiteReason::DeniedByPolicy, &["participation", "Disabled", "Enabled"]),
        (
            "/registries",
            json!(["registry.hospital.example/other/"]),
            SiteReason::DeniedByPolicy,
            &["registries", IMAGE],
        ),
        ("/registries", json!([]), SiteReason::DeniedByPolicy, &["registries"]),
        ("/imageDigests", json!([other]), SiteReason::DeniedByPolicy, &["imageDigests", "sha256:00"]),
        ("/maxGPUs", json!(4), SiteReason::DeniedByPolicy, &["maxGPUs", "8", "4"]),
        ("/hardware", json!([]), SiteReason::IncompatibleGPU, &["hardware", "32Gi", "7.0"]),
        ("/hardware/0/memory", json!("16Gi"), SiteReason::IncompatibleGPU, &["32Gi"]),
        ("/hardware/0/computeCapability", json!("6.1"), SiteReason::IncompatibleGPU, &["7.0"]),
        ("/hardware/0/count", json!(4), SiteReason::IncompatibleGPU, &["8 GPUs in one node"]),
        ("/aggregation/minContributors", json!(4), SiteReason::DeniedByPolicy, &["minContributors", "3", "4"]),
        ("/aggregation/allowPlaintextUpdates", json!(false), SiteReason::DeniedByPolicy, &["allowPlaintextUpdates"]),
    ];
    assert_eq!(ask(&work(), &policy(&[]), &spec(), Barrier::CreateTask), Decision::Allowed);
    for (pointer, value, expected, words) in rows {
        match ask(&work(), &policy(&[(pointer, value.clone())]), &spec(), Barrier::CreateTask) {
            Decision::Refused { reason, message } => {
                assert_eq!(reason, *expected, "{pointer}: {message}");
                words
                    .iter()
                    .for_each(|word| assert!(message.contains(word), "{pointer}: {word:?} is not in {message:?}"));
            }
            other => panic!("{pointer} = {value}: {other:?}"),
        }
    }
}

/// A study is edited while its round trains: whoever approves the new text must not stop the round by it.
#[test]
fn an_earlier_digest_holds_for_its_rounds_and_no_others() {
    let edited = Digest::of(b"edited");
    let earlier = |through: u32| json!([{"specDigest": spec().digest(), "throughRound": through}]);
    let at = |through: u32, approval: &str| {
        let changes = [
            ("/studies/0/specDigest", json!(edited)),
            ("/studies/0/earlier", earlier(through)),
            ("/studies/0/approval", json!(approval)),
        ];
        ask(&work(), &policy(&changes), &spec(), Barrier::Fetch).reason_name()
    };
    assert_eq!(at(3, "Automatic"), "Allowed");
    assert_eq!(at(2, "Automatic"), "SpecChanged");
    assert_eq!(at(3, "Denied"), "DeniedByPolicy");
    let without = policy(&[("/studies/0/specDigest", json!(edited))]);
    assert_eq!(ask(&work(), &without, &spec(), Barrier::Fetch).reason_name(), "SpecChanged");
}

#[test]
fn without_a_policy_or_a_probe_nothing_starts() {
    let (work, spec, policy) = (work(), spec(), policy(&[]));
    let ask = |policy, enforcement: &Enforcement, barrier| {
        let secure = &SecureFacts::default();
        ladder(&LadderInputs { work: &work, policy, spec: Some(&spec), enforcement, secure, barrier }).reason_name()
    };
    assert_eq!(ask(None, &Enforcement::Enforced, Barrier::CreateTask), "DeniedByPolicy");
    for barrier in [Barrier::CreateTask, Barrier::Fetch] {
        assert_eq!(ask(Some(&policy), &Enforcement::Unknown, barrier), "NetworkPolicyNotEnforced");
    }
    // An agent that has just restarted has not probed yet; an update from before must not wait for that.
    assert_eq!(ask(Some(&policy), &Enforcement::Unknown, Barrier::Upload), "Allowed");
    let reached = Enforcement::NotEnforced("10.96.0.1:443 answered".into());
    assert_eq!(ask(Some(&policy), &reached, Barrier::Upload), "NetworkPolicyNotEnforced");
}

/// A study that nobody opted in to must not even make the agent fetch something from the hub.
#[test]
fn the_spec_is_asked_for_only_when_the_study_is_opted_in() {
    let enforcement = &Enforcement::Enforced;
    let ask = |policy: &SitePolicySpec| {
        ladder(&LadderInputs {
            work: &work(),
            policy: Some(policy),
            spec: None,
            enforcement,
            secure: &SecureFacts::default(),
            barrier: Barrier::CreateTask,
        })
    };
    assert_eq!(ask(&policy(&[])), Decision::SpecNeeded);
    assert_eq!(ask(&policy(&[("/studies", json!([]))])).reason_name(), "DeniedByPolicy");
}

/// Rungs about starting do not stop what has started; rungs about trust always do.
#[test]
fn the_barriers_ask_what_still_matters() {
    let at = |change: (&str, Value), barrier| ask(&work(), &policy(&[change]), &spec(), barrier) == Decision::Allowed;
    use Barrier::{CreateTask, Fetch, Upload};
    for (change, allowed) in [
        (("/participation", json!("Drain")), [false, true, true]),
        (("/participation", json!("Disabled")), [false; 3]),
        (("/maxGPUs", json!(0)), [false, false, true]),
        (("/registries", json!([])), [false; 3]),
        (("/studies", json!([])), [false; 3]),
        (("/aggregation/minContributors", json!(4)), [false; 3]),
        (("/aggregation/allowPlaintextUpdates", json!(false)), [false; 3]),
    ] {
        let found = [CreateTask, Fetch, Upload].map(|barrier| at(change.clone(), barrier));
        assert_eq!(found, allowed, "{change:?}");
    }
}

/// A prefix that ends in the middle of a name would allow a registry that someone else can register.
#[test]
fn a_registry_prefix_ends_at_a_part_of_the_name() {
    let digest = "sha256:0000000000000000000000000000000000000000000000000000000000000001";
    for (prefix, name, allowed) in [
        ("registry.example", "registry.example/x", true),
        ("registry.example/", "registry.example/x", true),
        ("registry.example", "registry.example.evil.org/x", false),
        ("registry.example/research", "registry.example/research-evil/x", false),
        ("registry.example/research", "registry.example/research", true),
        ("registry.example", "registry.example:5000/x", false),
        ("", "registry.example/x", false),
    ] {
        let mut spec = spec();
        spec.trainer.image = format!("{name}@{digest}");
        let policy = policy(&[("/registries", json!([prefix])), ("/studies/0/specDigest", json!(spec.digest()))]);
        let work = RoundWork { spec_digest: spec.digest(), ..work() };
        assert_eq!(ask(&work, &policy, &spec, Barrier::CreateTask) == Decision::Allowed, allowed, "{prefix} {name}");
    }
}

/// What the hub adds to the approved spec must lie within it.
#[test]
fn work_outside_the_approved_spec_is_refused() {
    for (changed, word) in [
        (RoundWork { kind: TaskKind::Init, ..work() }, "Init"),
        (RoundWork { round: 0, ..work() }, "rounds.max"),
        (RoundWork { round: 51, ..work() }, "rounds.max"),
        (RoundWork { roster_size: 2, ..work() }, "roster"),
        (RoundWork { roster_size: 5, ..work() }, "roster"),
    ] {
        let decision = ask(&changed, &policy(&[]), &spec(), Barrier::CreateTask);
        assert!(decision.message().is_some_and(|m| m.contains(word)), "{decision:?}");
    }
    let without_gate = FederatedStudySpec { gate: None, ..spec() };
    let digest = without_gate.digest();
    let evaluate = RoundWork { kind: TaskKind::Evaluate, spec_digest: digest, ..work() };
    let policy = policy(&[("/studies/0/specDigest", json!(digest))]);
    assert_eq!(ask(&evaluate, &policy, &without_gate, Barrier::CreateTask).reason_name(), "DeniedByPolicy");
}

/// The hub chooses the object that it sends for a digest; another spec than the approved one must not count.
#[test]
fn another_spec_than_the_approved_one_is_refused() {
    let mut swapped = spec();
    swapped.aggregation.clip_norm = "1000".into();
    assert_eq!(ask(&work(), &policy(&[]), &swapped, Barrier::CreateTask).reason_name(), "SpecChanged");
}

prop_compose! {
    /// Any assignment that a hostile hub could write, with each approved value likely enough to get past its rung.
    fn hostile()(
        study in prop::sample::select(vec![StudyKey::new("research", "hippocampus"), StudyKey::new("x", "y")]),
        study_uid in prop::sample::select(vec!["uid-1", "uid-2", ""]),
        spec_digest in prop::sample::select(vec![spec().digest(), Digest::of(b"other")]),
        round in prop_oneof![0..60u32, any::<u32>()],
        kind in prop::sample::select(vec![TaskKind::Init, TaskKind::Train, TaskKind::Evaluate]),
        roster_size in prop_oneof![0..8u32, any::<u32>()],
        attempt in any::<u32>(),
        step in prop::option::of(prop::sample::select(vec![ProtocolStep::Upload, ProtocolStep::Sum])),
        seconds in 0..4_000_000_000i64,
    ) -> RoundWork {
        let deadline = jiff::Timestamp::from_second(seconds).unwrap();
        RoundWork { study, study_uid: study_uid.into(), spec_digest, round, kind, roster_size, attempt, step, deadline, ..work() }
    }
}

proptest! {
    /// Whatever the hub writes: what is allowed was approved by this hospital, value by value.
    #[test]
    fn no_assignment_widens_what_the_policy_allows(
        work in hostile(),
        through in 0..60u32,
        participation in prop::sample::select(vec!["Enabled", "Drain", "Disabled"]),
        plaintext in any::<bool>(),
        floor in 3..6u32,
        gpus in 0..16u32,
        barrier in prop::sample::select(vec![Barrier::CreateTask, Barrier::Fetch, Barrier::Upload]),
    ) {
        let policy = policy(&[
            ("/studies/0/approval", json!("PerRound")),
            ("/studies/0/approvedThroughRound", json!(through)),
            ("/participation", json!(participation)),
            ("/aggregation/allowPlaintextUpdates", json!(plaintext)),
            ("/aggregation/minContributors", json!(floor)),
            ("/maxGPUs", json!(gpus)),
        ]);
        if ask(&work, &policy, &spec(), barrier) == Decision::Allowed {
            prop_assert_eq!(&work.study, &policy.studies[0].study);
            prop_assert_eq!(&work.study_uid, "uid-1");
            prop_assert_eq!(work.spec_digest, spec().digest());
            prop_assert!((1..=through.min(50)).contains(&work.round));
            prop_assert!(work.kind != TaskKind::Init && (3..=4).contains(&work.roster_size));
            prop_assert!(plaintext && floor <= 3 && participation != "Disabled");
            prop_assert!(participation == "Enabled" || barrier != Barrier::CreateTask);
            prop_assert!(gpus >= 8 || barrier == Barrier::Upload);
        }
    }
}
