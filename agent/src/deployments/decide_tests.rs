use serde_json::json;

use super::*;

/// On somebody's word.
fn on() -> Approved {
    let evidence_digest = Digest::of(b"evidence");
    Approved {
        stage: Stage::Shadow,
        evidence_digest,
        hospital: None,
        line: None,
        approvals: vec![],
        plan: None,
        output: None,
        stage_approvals: vec![],
    }
}

fn allowed() -> ReleaseDecision {
    ReleaseDecision::Allowed(on())
}

fn up() -> Seen {
    let (stage, approved) = (Stage::Shadow, Some(on()));
    Seen { deleting: false, stage, approved, built: true, stopped: false, pod: PodSeen::Ready }
}

fn plan(decision: Option<&ReleaseDecision>, seen: Option<Seen>, stage: Stage) -> Plan {
    decide(&Inputs { decision, stage, withdrawn: None, seen })
}

#[track_caller]
fn expect(plan: &Plan, acts: &[Act], reason: impl Into<Option<RolloutReason>>) {
    assert_eq!(plan.acts, acts);
    assert_eq!(plan.reason, reason.into());
}

/// A model that everyone signed would never reach the clinicians.
#[test]
fn an_allowed_model_is_rolled_out_and_then_serves() {
    expect(&plan(Some(&allowed()), None, Stage::Shadow), &[Act::Create(on())], RolloutReason::RollingOut);
    let bare = Seen { built: false, pod: PodSeen::Starting(None), ..up() };
    expect(&plan(Some(&allowed()), Some(bare), Stage::Shadow), &[Act::Build], RolloutReason::RollingOut);
    expect(&plan(Some(&allowed()), Some(up()), Stage::Shadow), &[], RolloutReason::Serving);
}

/// A model must not go on at a stage that it lost, nor at one that it was never given.
#[test]
fn a_refused_model_is_taken_down_at_once() {
    for reason in [RolloutReason::DeniedByPolicy, RolloutReason::VerificationFailed] {
        let refused = ReleaseDecision::Refused { reason, message: "maxStage".into() };
        let down = plan(Some(&refused), Some(up()), Stage::Shadow);
        expect(&down, &[Act::Delete], reason);
        assert_eq!(down.message.as_deref(), Some("maxStage"));
        expect(&plan(Some(&refused), None, Stage::Shadow), &[], reason);
        assert_eq!(report("u", Digest::of(b"m"), reason, None, true).message, None);
    }
}

/// A promotion that was taken back would serve on, or its tombstone would stay at the hub for ever.
#[test]
fn a_withdrawn_model_is_removed_and_then_forgotten() {
    let withdrawn = ReleaseDecision::Withdrawn;
    expect(&plan(Some(&withdrawn), Some(up()), Stage::Shadow), &[Act::Delete], None);
    expect(&plan(Some(&withdrawn), None, Stage::Shadow), &[], None);
}

/// Clinicians would be without the model for as long as it takes to start, for a word in an annotation.
#[test]
fn another_stage_changes_the_object_and_not_the_pod() {
    expect(
        &plan(Some(&allowed()), Some(up()), Stage::SafetyNet),
        &[Act::Restate(Stage::SafetyNet, on())],
        RolloutReason::Serving,
    );
}

/// What a hospital judges while its ledger is broken is what stands in the object: an old one has nothing there, and one
/// that was signed anew has the old word, which ends.
#[test]
fn the_word_on_which_a_model_stands_is_kept_up_to_date() {
    let old = Approved { evidence_digest: Digest::of(b"other"), ..on() };
    for before in [None, Some(old)] {
        let seen = Seen { approved: before, ..up() };
        let restated = [Act::Restate(Stage::Shadow, on())];
        expect(&plan(Some(&allowed()), Some(seen.clone()), Stage::Shadow), &restated, RolloutReason::Serving);
        expect(&plan(None, Some(seen), Stage::Shadow), &[], RolloutReason::Serving);
    }
}

/// A hospital that drains would give a model more trust than it had, or a model would keep the trust that it lost because
/// the hospital drains.
#[test]
fn a_fall_is_written_at_once_and_a_rise_where_something_new_is_taken() {
    let place = Place::Unsaid;
    let kept = Room::Kept("spec.participation is Drain");
    for room in [Room::Open, kept] {
        assert_eq!(written(&place, Some(Stage::Triage), room), Some(Stage::Shadow));
        assert_eq!(written(&place, None, room), Some(Stage::Shadow));
        assert_eq!(written(&Place::Refused("w".into()), Some(Stage::Triage), room), None);
    }
}

/// The hub learns where the model stands, and of one that does not answer nothing.
#[test]
fn the_stage_is_reported_of_a_model_that_serves() {
    let told = |reason| report("u", Digest::of(b"m"), reason, Some(Stage::Shadow), true).stage;
    assert_eq!(told(RolloutReason::Serving), Some(Stage::Shadow));
    assert_eq!(told(RolloutReason::DeniedByPolicy), None);
}

/// The guard ends the pod of a model that a hazard withdraws; a controller that built it again would fight it, and one that
/// deleted the object would take away why.
#[test]
fn a_model_that_a_hazard_withdraws_keeps_its_object_and_runs_nothing() {
    let bare = Seen { built: false, pod: PodSeen::Starting(None), ..up() };
    let hazard = || Some("needs the hospital's hazard plane closed".to_owned());
    let held = |decision, seen, stage| decide(&Inputs { decision, stage, withdrawn: hazard(), seen });
    let yes = allowed();
    for decision in [Some(&yes), None] {
        let plan = held(decision, Some(bare.clone()), Stage::Shadow);
        expect(&plan, &[], RolloutReason::DeniedByPolicy);
        assert_eq!(plan.message, hazard());
    }
    let restated = held(Some(&yes), Some(bare.clone()), Stage::Triage);
    expect(&restated, &[Act::Restate(Stage::Triage, on())], RolloutReason::DeniedByPolicy);
    expect(&held(Some(&ReleaseDecision::Withdrawn), Some(bare), Stage::Shadow), &[Act::Delete], None);
}

/// A hub that cannot be reached must not take a model away from clinicians.
#[test]
fn what_serves_goes_on_while_the_release_cannot_be_read() {
    expect(&plan(None, Some(up()), Stage::Shadow), &[], RolloutReason::Serving);
    expect(&plan(None, None, Stage::Shadow), &[], RolloutReason::Offered);
}

/// A pod that ends with 42 would crash-loop for ever, and hub and hospital would read "rolling out".
#[test]
fn a_model_that_the_server_refuses_is_stopped_once_and_said_so() {
    let refused = |built, stopped| Seen { built, stopped, pod: PodSeen::Refused("no network".into()), ..up() };
    let stop = Act::Stop("no network".into());
    let first = plan(Some(&allowed()), Some(refused(true, false)), Stage::Shadow);
    expect(&first, std::slice::from_ref(&stop), RolloutReason::VerificationFailed);
    assert_eq!(first.message.as_deref(), Some("no network"));
    let told = report("u", Digest::of(b"m"), RolloutReason::VerificationFailed, None, true);
    assert_eq!((told.serving, told.message), (None, None), "the words stay in the hospital");
    expect(&plan(Some(&allowed()), Some(refused(true, true)), Stage::Shadow), &[], RolloutReason::VerificationFailed);
    // Another stage is written, and starts nothing.
    expect(
        &plan(Some(&allowed()), Some(refused(false, true)), Stage::Shadow),
        &[stop],
        RolloutReason::VerificationFailed,
    );
}

/// Whoever waits for a model on a full T4 would read nothing but "rolling out".
#[test]
fn what_is_in_the_way_of_a_pod_is_said() {
    let full = Seen { pod: PodSeen::Starting(Some("Insufficient nvidia.com/gpu".into())), ..up() };
    let waiting = plan(Some(&allowed()), Some(full), Stage::Shadow);
    expect(&waiting, &[], RolloutReason::RollingOut);
    assert_eq!(waiting.message.as_deref(), Some("Insufficient nvidia.com/gpu"));
}

fn work(release: &str) -> DeployWork {
    DeployWork {
        release: release.into(),
        release_digest: Digest::of(b"release"),
        model: Digest::of(b"model"),
        stage: Stage::Shadow,
        approvals: vec![],
        plan: None,
        stage_approvals: Vec::new(),
    }
}

fn model(name: &str, promotion: &str, created: &str) -> Arc<ModelDeployment> {
    let spec = json!({"release": "r5", "releaseDigest": Digest::of(b"release"), "model": Digest::of(b"model"),
        "stage": "Shadow", "promotionUID": promotion});
    let metadata = json!({"name": name, "uid": format!("uid-{name}"), "creationTimestamp": created});
    let object = json!({"apiVersion": "consilium.health/v1alpha1", "kind": "ModelDeployment", "metadata": metadata, "spec": spec});
    Arc::new(serde_json::from_value(object).unwrap())
}

fn item((uid, state, release): (&str, ItemState, &str)) -> Item {
    Item { uid: uid.into(), state, work: Work::Deploy(work(release)) }
}

fn assignment(epoch: &str, items: &[(&str, ItemState, &str)]) -> Assignment {
    let items = items.iter().copied().map(item).collect();
    Assignment { hub_epoch: epoch.into(), revision: 1, rosters: vec![], items }
}

fn found(models: &[Arc<ModelDeployment>], (uid, state, release): (&str, ItemState, &str)) -> String {
    own(models, &item((uid, state, release)), &work(release)).unwrap().name_any()
}

/// A model that names a promotion of nobody's would serve past expired approvals, a lowered maxStage and a withdrawal.
#[test]
fn a_model_that_no_item_stands_behind_goes() {
    let models = [
        model("first", "promotion", "2026-01-01T00:00:00Z"),
        model("second", "promotion", "2026-01-02T00:00:00Z"),
        model("edited", "nobody's", "2026-01-01T00:00:00Z"),
        model("orphan", "orphaned", "2026-01-01T00:00:00Z"),
        model("replaced", "moved-on", "2026-01-01T00:00:00Z"),
    ];
    let items = [
        ("promotion", ItemState::Active, "r5"),
        ("orphaned", ItemState::Orphaned, "r5"),
        ("moved-on", ItemState::Active, "r6"),
    ];
    let gone: Vec<String> = strays(&models, &assignment("e", &items)).into_iter().map(|m| m.name_any()).collect();
    assert_eq!(gone, ["second", "edited", "replaced"]);
    assert_eq!(found(&models, ("promotion", ItemState::Active, "r5")), "first");
    // A tombstone names what it can; by it the model is withdrawn, and not an object of nobody's.
    assert_eq!(found(&models, ("promotion", ItemState::Cancelled, "unknown by now")), "first");
}

/// An agent with a new volume knows nothing yet, and would take every model away from clinicians.
#[test]
fn before_the_first_assignment_nothing_is_a_stray() {
    let models = [model("serving", "promotion", "2026-01-01T00:00:00Z")];
    assert!(strays(&models, &assignment("", &[])).is_empty());
}

/// A hub that hears of a rise tells clinicians of it; one that the ledger does not hold never was.
#[test]
fn a_rise_is_said_when_it_is_in_the_ledger_and_a_fall_at_once() {
    let (low, high) = (Some(Stage::Shadow), Some(Stage::SafetyNet));
    assert_eq!([said(high, low, true), said(high, low, false), said(high, None, false)], [high, low, None]);
    assert_eq!([said(low, high, true), said(low, high, false)], [low, low]);
}

/// While the old one is on its way out, its successor must not be taken for a second one.
#[test]
fn one_that_is_being_removed_does_not_stand_for_its_promotion() {
    let mut old = Arc::unwrap_or_clone(model("old", "promotion", "2026-01-01T00:00:00Z"));
    old.metadata.deletion_timestamp = old.metadata.creation_timestamp.clone();
    let models = [Arc::new(old), model("new", "promotion", "2026-01-02T00:00:00Z")];
    assert!(strays(&models, &assignment("e", &[("promotion", ItemState::Active, "r5")])).is_empty());
    assert_eq!(found(&models, ("promotion", ItemState::Active, "r5")), "new");
}

/// A model that no quota has room for would be "rolling out" for ever, in the hospital and at the hub; and one that serves
/// would be said not to, because a change of it was refused.
#[test]
fn what_the_api_server_refuses_is_said_here_and_at_the_hub() {
    let words = "the hospital's API server refused Service a: exceeded quota";
    let bare = Seen { built: false, pod: PodSeen::Starting(None), ..up() };
    let refused = plan(Some(&allowed()), Some(bare), Stage::Shadow).refused(words.into());
    expect(&refused, &[Act::Build], RolloutReason::DeniedByPolicy);
    assert_eq!(refused.message.as_deref(), Some(words));
    let serving = plan(Some(&allowed()), Some(Seen { built: false, ..up() }), Stage::Shadow).refused(words.into());
    expect(&serving, &[Act::Build], RolloutReason::Serving);
    // That the model is not what it says it is weighs more than that a rule keeps its Deployment from being stopped.
    let odd = Seen { pod: PodSeen::Refused("no network".into()), ..up() };
    let odd = plan(Some(&allowed()), Some(odd), Stage::Shadow).refused(words.into());
    assert_eq!(odd.reason, Some(RolloutReason::VerificationFailed));
    assert_eq!(odd.message.as_deref(), Some(format!("no network; and {words}").as_str()));
    let told = report("u", Digest::of(b"m"), RolloutReason::DeniedByPolicy, None, false).message.unwrap();
    assert!(told.contains("API server refuses") && !told.contains("exceeded quota"), "{told}");
}
