use consilium_crds::site_policy::SitePolicySpec;
use consilium_federation::assignment::DeployWork;
use consilium_federation::task::TaskKind;
use serde_json::{Value, json};

use super::super::release_tests::{EXPIRY, approved, releases};
use super::super::tests::{policy, spec, work};
use super::super::{LadderInputs, SecureFacts, ladder, of_stage};
use super::*;

const GUIDE: &str = include_str!("../../../docs/guides/hospital-administrator.md");
const NOW: &str = "2026-06-01T12:00:00Z";

fn now() -> Timestamp {
    NOW.parse().unwrap()
}

fn task() -> RoundTaskSpec {
    let work = work();
    RoundTaskSpec {
        study: work.study,
        study_uid: work.study_uid,
        spec_digest: work.spec_digest,
        round_uid: "round".into(),
        round: work.round,
        kind: TaskKind::Train,
        model: work.model,
        image: spec().trainer.image,
        gpus: 8,
        deadline: "2199-01-01T00:00:00Z".parse().unwrap(),
    }
}

fn model() -> ModelDeploymentSpec {
    ModelDeploymentSpec {
        release: "hippocampus-r5".into(),
        release_digest: consilium_federation::Digest::of(b"release"),
        model: consilium_federation::Digest::of(b"model"),
        stage: Stage::Shadow,
        promotion_uid: "promotion".into(),
        approved: Some(approved(Stage::Shadow)),
    }
}

fn deploy() -> DeployWork {
    let model = model();
    DeployWork {
        release: model.release,
        release_digest: model.release_digest,
        model: model.model,
        stage: model.stage,
        approvals: vec![],
    }
}

fn with(changes: &[(&str, Value)]) -> SitePolicySpec {
    let mut all = vec![("/releases", releases(Some("Shadow")))];
    all.extend_from_slice(changes);
    policy(&all)
}

fn stopped(task: &RoundTaskSpec, policy: Option<&SitePolicySpec>, hours: i64) -> Option<String> {
    let since = now() - jiff::SignedDuration::from_hours(hours);
    task_must_stop(task, Some(since), policy, &Enforcement::Enforced, now())
}

/// The rows of the guide's table, cell by cell.
fn table() -> Vec<Vec<&'static str>> {
    let (_, after) = GUIDE.split_once("## What each word stops").expect("the guide has that section");
    let rows =
        after.lines().skip_while(|line| !line.starts_with("|---")).skip(1).take_while(|line| line.starts_with('|'));
    rows.map(|row| row.trim_matches('|').split('|').map(str::trim).collect()).collect()
}

/// The field that a cell such as "`suspend: {tasks: true}`" names.
fn written(cell: &str) -> Option<SitePolicySpec> {
    let Some((field, value)) = cell.trim_matches('`').split_once(": ") else {
        assert_eq!(cell, "no SitePolicy `default`, or one that cannot be read");
        return None;
    };
    let value = match value.strip_prefix('{') {
        Some(inner) => {
            let (name, word) = inner.trim_end_matches('}').split_once(": ").expect("{name: true}");
            json!({name: word == "true"})
        }
        None => json!(value),
    };
    Some(with(&[(&format!("/{field}"), value)]))
}

/// An administrator reads this table at night and writes one word. It must do what the table says, no less and no more.
#[test]
fn the_guide_s_table_says_what_each_word_stops() {
    let rows = table();
    assert_eq!(rows.len(), 6, "{rows:?}");
    for row in rows {
        let policy = written(row[0]);
        let policy = policy.as_ref();
        let ask = |barrier| {
            let (work, spec, secure) = (work(), spec(), SecureFacts::default());
            let enforcement = &Enforcement::Enforced;
            ladder(&LadderInputs { work: &work, policy, spec: Some(&spec), enforcement, secure: &secure, barrier })
                == Decision::Allowed
        };
        let runs = stopped(&task(), policy, 1).is_none();
        assert_eq!((ask(Barrier::Fetch), ask(Barrier::Upload)), (runs, runs), "the ladder agrees: {row:?}");
        let stays = model_stands(&model(), policy, now()).is_ok();
        assert_eq!(of_stage(&deploy(), true, policy).is_none(), stays, "the release ladder agrees: {row:?}");
        let comes = of_stage(&deploy(), false, policy).is_none();
        let word = |yes: bool, words: [&'static str; 2]| words[usize::from(!yes)];
        let found = [
            word(runs, ["go on", "stop"]),
            word(ask(Barrier::CreateTask), ["start", "none starts"]),
            word(stays, ["stay", "stop"]),
            word(comes, ["come", "none comes"]),
            word(speaks(policy), ["what is said above", "that you are there and say no"]),
        ];
        assert_eq!(row[1..], found, "{}", row[0]);
    }
}

/// With the hub away nobody else would stop a task that the policy no longer allows.
#[test]
fn a_task_is_judged_from_its_own_spec() {
    let allowed = with(&[]);
    assert_eq!(stopped(&task(), Some(&allowed), 1), None);
    let rows: &[(&str, Value, &str)] = &[
        ("/studies", json!([]), "no entry"),
        ("/studies/0/approval", json!("Denied"), "Denied"),
        ("/studies/0/uid", json!("other"), "made anew"),
        ("/studies/0/specDigest", json!(consilium_federation::Digest::of(b"x")), "edited"),
        ("/studies/0/approval", json!("PerRound"), "approvedThroughRound"),
        ("/registries", json!([]), "registries"),
        ("/imageDigests", json!([consilium_federation::Digest::of(b"x")]), "imageDigests"),
        ("/maxGPUs", json!(7), "maxGPUs"),
        ("/participation", json!("Disabled"), "Disabled"),
        ("/suspend", json!({"tasks": true}), "spec.suspend.tasks"),
    ];
    for (pointer, value, word) in rows {
        let why = stopped(&task(), Some(&with(&[(pointer, value.clone())])), 1);
        assert!(why.as_ref().is_some_and(|why| why.contains(word)), "{pointer}: {why:?}");
    }
    assert!(stopped(&task(), None, 1).is_some());
    assert!(stopped(&RoundTaskSpec { kind: TaskKind::Init, ..task() }, Some(&allowed), 1).is_some());
    let reached = Enforcement::NotEnforced("10.96.0.1 answered".into());
    assert!(task_must_stop(&task(), Some(now()), Some(&allowed), &reached, now()).is_some());
    // An agent that has just started has not probed yet: what runs goes on.
    assert_eq!(task_must_stop(&task(), Some(now()), Some(&allowed), &Enforcement::Unknown, now()), None);
}

/// A hub that names a deadline in the year 2199 would hold a hospital's GPUs until then.
#[test]
fn no_deadline_is_the_hub_s_alone() {
    let unset = with(&[]);
    assert_eq!(stopped(&task(), Some(&unset), 167), None);
    assert!(stopped(&task(), Some(&unset), 168).is_some_and(|why| why.contains("168h")));
    let own = with(&[("/limits", json!({"taskDuration": "1h30m"}))]);
    assert!(stopped(&task(), Some(&own), 2).is_some_and(|why| why.contains("1h30m")));
    let hub = task().deadline;
    assert_eq!(ends(hub, Some(now()), Some(&own)), now() + jiff::SignedDuration::from_mins(90));
    let soon = now() + jiff::SignedDuration::from_mins(5);
    assert_eq!(ends(soon, Some(now()), Some(&own)), soon);
    assert_eq!(ends(hub, None, Some(&own)), hub);
}

/// Draining must neither take a model from clinicians nor give one that is in use more trust.
#[test]
fn while_draining_no_model_rises_and_none_falls() {
    let (drain, open) = (with(&[("/participation", json!("Drain"))]), with(&[]));
    assert_eq!(stage_now(Some(&drain), Stage::Triage, Some(Stage::Shadow)), Stage::Shadow);
    assert_eq!(stage_now(Some(&drain), Stage::Shadow, Some(Stage::Triage)), Stage::Shadow);
    assert_eq!(stage_now(Some(&open), Stage::Triage, Some(Stage::Shadow)), Stage::Triage);
    assert_eq!(stage_now(None, Stage::Triage, None), Stage::Triage);
}

/// With the hub away, the ledger broken or the volume new, nobody else would take a model down that stands above what the
/// hospital has come to allow, or on the word of somebody whom it no longer trusts.
#[test]
fn a_model_is_judged_from_its_own_spec() {
    let until = |model: &ModelDeploymentSpec, changes: &[(&str, Value)], at: &str| {
        model_stands(model, Some(&with(changes)), at.parse().unwrap())
    };
    let ends: Timestamp = EXPIRY.parse().unwrap();
    assert_eq!(until(&model(), &[], NOW), Ok(Some(ends)));
    let stands = |stage, on: Option<Approved>| ModelDeploymentSpec { stage, approved: on, ..model() };
    let (safety_net, triage) = (("/releases", releases(Some("SafetyNet"))), ("/releases", releases(Some("Triage"))));
    // Lowered by its hospital, it stands on the word for the higher stage.
    let lower = stands(Stage::Shadow, Some(approved(Stage::SafetyNet)));
    assert_eq!(until(&lower, std::slice::from_ref(&safety_net), NOW), Ok(Some(ends)));
    // An agent of before wrote no approvals: nothing is said against it, and nothing for it.
    assert_eq!(until(&stands(Stage::Shadow, None), &[], NOW), Ok(None));

    let forged = {
        let mut forged = approved(Stage::Shadow);
        forged.stage = Stage::SafetyNet;
        forged
    };
    let other = ModelDeploymentSpec { model: consilium_federation::Digest::of(b"another"), ..model() };
    let (nobody, unasked) = (json!([]), json!([{"stage": "SafetyNet", "approvals": 1}]));
    let two = json!([{"stage": "Shadow", "approvals": 2}]);
    let role = json!([{"stage": "Shadow", "approvals": 1, "roles": ["radiologist"]}]);
    type Row<'a> = (ModelDeploymentSpec, Vec<(&'a str, Value)>, &'a str, &'a str);
    let rows: Vec<Row<'_>> = vec![
        (model(), vec![("/releases/keys", nobody)], NOW, "the key is not in the policy"),
        (model(), vec![], EXPIRY, "expired"),
        (model(), vec![("/releases/require", unasked)], NOW, "no entry for stage Shadow"),
        (model(), vec![("/releases/require", two)], NOW, "needs 2 approvals"),
        (model(), vec![("/releases/require", role)], NOW, "radiologist"),
        (other, vec![], NOW, "not over this model"),
        (stands(Stage::SafetyNet, Some(approved(Stage::Shadow))), vec![safety_net.clone()], NOW, "are for Shadow"),
        (stands(Stage::SafetyNet, Some(forged)), vec![safety_net], NOW, "not over this model, stage"),
        (stands(Stage::Triage, Some(approved(Stage::Triage))), vec![triage], NOW, "no entry for stage Triage"),
        (stands(Stage::SafetyNet, None), vec![], NOW, "maxStage"),
        (model(), vec![("/releases", json!({}))], NOW, "maxStage"),
        (model(), vec![("/suspend", json!({"models": true}))], NOW, "spec.suspend.models"),
    ];
    for (model, changes, at, word) in rows {
        let said = until(&model, &changes, at);
        assert!(said.as_ref().is_err_and(|why| why.contains(word)), "{word:?}: {said:?}");
    }
    assert!(model_stands(&model(), None, now()).is_err());
}
