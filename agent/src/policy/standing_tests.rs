use consilium_crds::ModelDeploymentSpec;
use consilium_crds::site_policy::SitePolicySpec;
use consilium_federation::ladder::Stage;
use consilium_federation::task::TaskKind;
use serde_json::{Value, json};

use super::super::hazards_tests::none as no_hazards;
use super::super::release_tests::{approved, releases};
use super::super::stands::{Hospital, Place, place};
use super::super::tests::{policy, spec, work};
use super::super::{LadderInputs, SecureFacts, ladder, of_policy};
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

/// A model in use on mary's word.
pub(crate) fn model() -> ModelDeploymentSpec {
    ModelDeploymentSpec {
        release: "hippocampus-r5".into(),
        release_digest: consilium_federation::Digest::of(b"release"),
        model: consilium_federation::Digest::of(b"model"),
        stage: Stage::Shadow,
        promotion_uid: "promotion".into(),
        approved: Some(approved(Stage::Shadow)),
    }
}

/// The policy of the tests, changed.
pub(crate) fn with(changes: &[(&str, Value)]) -> SitePolicySpec {
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
        let stays = !matches!(
            place(&model(), &Hospital { policy, hazards: Some(no_hazards()), image: None, now: now() }, true),
            Place::Refused(_)
        );
        assert_eq!(of_policy(true, policy).is_none(), stays, "the release ladder agrees: {row:?}");
        let comes = of_policy(false, policy).is_none();
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
