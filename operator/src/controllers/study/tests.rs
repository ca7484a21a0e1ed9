use std::sync::Arc;

use consilium_crds::conditions::{READY, RECONCILING, STALLED, SUCCEEDED, status_of};
use consilium_crds::{FederatedStudy, FederatedStudyStatus, TrainingRound};
use consilium_federation::round::{Outcome, RoundState, RoundStep};
use consilium_federation::{Digest, SiteName};
use ed25519_dalek::SigningKey;
use kube::ResourceExt;

use super::accept::{SiteFacts, Sites};
use super::carry::{ANNOTATION, Carry};
use super::decide::{Act, Facts, Initial, Plan, decide, moments, newest_model};
use crate::controllers::init::decide::{Try, TryState};
use crate::controllers::testing::{SITES, at, completed, name, release, round, study};

fn all_accepted() -> Sites {
    SITES.map(|n| (name(n), SiteFacts { accepted: true, namespaces: vec!["research".into()] })).into()
}

pub(super) fn facts(rounds: Vec<TrainingRound>, initial: Initial) -> Facts {
    Facts {
        study: Arc::new(study()),
        sites: all_accepted(),
        rosters: Arc::from([]),
        rounds: rounds.into_iter().map(Arc::new).collect(),
        leftovers: false,
        unread: false,
        releases: vec![],
        spec_stored: true,
        initial,
    }
}

pub(super) fn past() -> Initial {
    Initial::Past { ended: vec![] }
}

fn made(delivered: Option<Digest>, tries: Vec<Try>) -> Initial {
    Initial::Made { delivered, tries, stale: vec![] }
}

fn with_status(mut facts: Facts, status: FederatedStudyStatus) -> Facts {
    let mut study = (*facts.study).clone();
    study.status = Some(status);
    facts.study = Arc::new(study);
    facts
}

fn ended(number: u32, outcome: Outcome) -> TrainingRound {
    let mut state = completed(format!("m{number}").as_bytes());
    state.outcome = Some(outcome);
    if outcome != Outcome::Completed {
        state.step = RoundStep::Failed;
        state.model = None;
        state.gate = None;
    }
    round(number, Some(state))
}

fn running(number: u32) -> TrainingRound {
    round(number, Some(RoundState::new(SITES.map(name), at(0), at(3600))))
}

fn condition<'a>(plan: &'a Plan, type_: &str) -> Option<&'a str> {
    status_of(&plan.status.conditions, type_)
}

fn started(plan: &Plan) -> Option<(u32, Digest)> {
    plan.acts.iter().find_map(|act| match act {
        Act::Start(new) => Some((new.number, new.base_model)),
        _ => None,
    })
}

#[test]
fn the_first_model_is_made_before_the_first_round() {
    let plan = decide(&facts(vec![], made(None, vec![])), at(0));
    assert_eq!(plan.acts, [Act::StartInit(1)]);
    assert_eq!(condition(&plan, READY), Some("False"));
    assert_eq!(condition(&plan, RECONCILING), Some("True"));
    let waiting = Try { number: 1, job: "j".into(), state: TryState::Active };
    let plan = decide(&facts(vec![], made(None, vec![waiting.clone()])), at(0));
    assert_eq!(plan.acts, [Act::EnsureCredential("j".into())]);
    let plan = decide(&facts(vec![], made(Some(Digest::of(b"first")), vec![waiting])), at(0));
    assert_eq!(started(&plan), Some((1, Digest::of(b"first"))));
    assert_eq!(plan.status.model, Some(Digest::of(b"first")));
    assert_eq!((condition(&plan, READY), condition(&plan, RECONCILING)), (Some("True"), None));
}

#[test]
fn the_spec_is_stored_before_anything_refers_to_it() {
    let mut facts = facts(vec![], made(Some(Digest::of(b"first")), vec![]));
    facts.spec_stored = false;
    let plan = decide(&facts, at(0));
    assert_eq!(plan.acts[0], Act::StoreSpec);
    assert!(matches!(plan.acts[1], Act::Start(_)));
}

/// A study that waits for a person must say so to kstatus and to the person.
#[test]
fn a_failed_init_and_a_model_that_is_not_there_stall_the_study() {
    let failed = Try {
        number: 1,
        job: "j".into(),
        state: TryState::Failed { invalid: true, message: "network.width is 0".into() },
    };
    let named = Initial::Named { model: Digest::of(b"x"), stored: false };
    for (initial, part) in [(made(None, vec![failed]), "network.width is 0"), (named, "spec.initialModel.digest")] {
        let plan = decide(&facts(vec![], initial), at(0));
        assert!(started(&plan).is_none());
        assert_eq!((condition(&plan, READY), condition(&plan, STALLED)), (Some("False"), Some("True")));
        assert!(plan.notes.iter().any(|n| n.warning && n.message.contains(part)), "{:?}", plan.notes);
        assert!(plan.status.conditions.iter().any(|c| c.message.contains(part)));
    }
}

fn edited(facts: Facts, edit: impl FnOnce(&mut FederatedStudy)) -> Facts {
    let mut study = (*facts.study).clone();
    edit(&mut study);
    Facts { study: Arc::new(study), ..facts }
}

/// After a rollback the newest round may be one that this version cannot read: another one on the same model would cost
/// every hospital a training, and those that gave their shares refuse it.
#[test]
fn no_round_begins_beside_one_that_cannot_be_read() {
    let mut facts = facts(vec![ended(1, Outcome::Completed)], past());
    assert!(started(&decide(&facts, at(0))).is_some());
    facts.unread = true;
    let plan = decide(&facts, at(0));
    assert_eq!(
        (started(&plan), condition(&plan, STALLED), condition(&plan, READY)),
        (None, Some("True"), Some("False"))
    );
    // Where it is the last one, nobody may take the study for finished: a pipeline would promote a model of before.
    let max = facts.study.spec.rounds.max;
    facts.rounds = (1..=max).map(|n| Arc::new(ended(n, Outcome::Completed))).collect();
    assert_eq!(condition(&decide(&facts, at(0)), SUCCEEDED), Some("Unknown"));
}

/// Who holds a study up must be able to rely on it: no hospital is asked for anything new, and no GPU makes a first model.
#[test]
fn a_suspended_study_begins_nothing_and_goes_on_where_it_was() {
    let suspend = |facts, to| edited(facts, |study: &mut FederatedStudy| study.spec.suspend = to);
    let first = suspend(facts(vec![], made(None, vec![])), Some(true));
    assert_eq!(decide(&first, at(0)).acts, []);
    let between = || facts(vec![ended(1, Outcome::Completed)], past());
    let plan = decide(&suspend(between(), Some(true)), at(0));
    assert_eq!(
        (started(&plan), condition(&plan, "Suspended"), condition(&plan, READY)),
        (None, Some("True"), Some("True"))
    );
    assert!(plan.notes.iter().any(|note| note.reason == "Suspended"));
    let told = with_status(suspend(between(), Some(true)), plan.status.clone());
    assert_eq!(decide(&told, at(0)).notes, [], "told once");
    for to in [Some(false), None] {
        let resumed = with_status(suspend(between(), to), plan.status.clone());
        let resumed = decide(&suspend(resumed, to), at(0));
        assert_eq!((started(&resumed).map(|s| s.0), condition(&resumed, "Suspended")), (Some(2), None));
    }
    // A refused study that is let go on again is not said to be suspended.
    let mut refused = with_status(suspend(between(), Some(false)), plan.status.clone());
    refused.sites = Sites::default();
    assert_eq!(condition(&decide(&refused, at(0)), "Suspended"), None);
    // The round under way is people's to cancel; what it gives is kept.
    let under_way = decide(&suspend(facts(vec![running(1)], past()), Some(true)), at(0));
    let words = under_way.status.conditions.iter().find(|c| c.type_ == "Suspended").unwrap();
    assert!(words.message.contains("round 1 goes on"), "{}", words.message);
}

/// Fifty rounds that fail for one reason cost two hundred hospitals fifty trainings; somebody has to look first.
#[test]
fn rounds_that_fail_in_a_row_make_the_study_wait_for_people() {
    use Outcome::{Cancelled, Completed, QuorumLost};
    let limited = |outcomes: &[Outcome]| {
        let rounds = outcomes.iter().zip(1..).map(|(outcome, n)| ended(n, *outcome)).collect();
        edited(facts(rounds, past()), |study| {
            study.spec.rounds.max = 50;
            study.spec.rounds.backoff_limit = Some(2);
            study.spec.rounds.history_limit = 1;
        })
    };
    for (outcomes, waits) in [
        (&[QuorumLost][..], false),
        (&[QuorumLost, QuorumLost], true),
        (&[QuorumLost, Completed, QuorumLost], false),
        (&[QuorumLost, Cancelled, QuorumLost], true),
        (&[Completed, Cancelled, Cancelled], false),
    ] {
        let plan = decide(&limited(outcomes), at(0));
        assert_eq!(started(&plan).is_none(), waits, "{outcomes:?}");
        assert_eq!(condition(&plan, STALLED) == Some("True"), waits, "{outcomes:?}");
    }
    // The rounds that are counted stay, whatever the limit of history.
    let plan = decide(&limited(&[QuorumLost, QuorumLost]), at(0));
    assert!(!plan.acts.iter().any(|act| matches!(act, Act::Archive { .. })), "{:?}", plan.acts);
    // Also those between which somebody cancelled some, or the study would never stall.
    let plan = decide(&limited(&[QuorumLost, Cancelled, Cancelled, QuorumLost]), at(0));
    assert!(!plan.acts.iter().any(|act| matches!(act, Act::Archive { .. })), "{:?}", plan.acts);
    // Somebody looked: suspended, and on again.
    let looked = edited(limited(&[QuorumLost, QuorumLost]), |study| study.spec.suspend = Some(true));
    let status = decide(&looked, at(0)).status;
    assert_eq!(status.forgiven_through, Some(2));
    assert_eq!(
        started(&decide(&with_status(limited(&[QuorumLost, QuorumLost]), status.clone()), at(0))).map(|s| s.0),
        Some(3)
    );
    let again = with_status(limited(&[QuorumLost, QuorumLost, QuorumLost]), status.clone());
    assert!(started(&decide(&again, at(0))).is_some());
    let again = with_status(limited(&[QuorumLost; 4]), status);
    assert!(started(&decide(&again, at(0))).is_none());
}

/// Hospitals refuse a second sum on a model: a study that went on asking would burn round after round, and say nothing.
#[test]
fn a_masked_sum_that_cannot_be_used_stalls_the_study_with_the_way_out() {
    let mut lost = ended(2, Outcome::SumUnusable);
    lost.spec.base_model = Digest::of(b"m1");
    let mut facts = facts(vec![ended(1, Outcome::Completed), lost], past());
    let mut longer = (*facts.study).clone();
    longer.spec.rounds.max = 3;
    facts.study = Arc::new(longer);
    let plan = decide(&facts, at(0));
    assert!(started(&plan).is_none());
    assert_eq!((condition(&plan, READY), condition(&plan, STALLED)), (Some("False"), Some("True")));
    let told =
        |c: &k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition| c.message.contains("initialModel.digest");
    assert!(plan.status.conditions.iter().any(told), "{:?}", plan.status.conditions);
}

/// The next round starts from the newest model, whatever the last round came to.
#[test]
fn rounds_follow_one_another_and_a_lost_one_costs_no_model() {
    // (rounds, the round that starts and what from)
    let model = |n: u32| Digest::of(format!("m{n}").as_bytes());
    let cases = [
        (vec![running(1)], None),
        (vec![ended(1, Outcome::Completed)], Some((2, model(1)))),
        // No state yet: offered to nobody, but under way.
        (vec![round(1, None)], None),
        // The plan is two rounds.
        (vec![ended(1, Outcome::Completed), ended(2, Outcome::Completed)], None),
    ];
    for (rounds, expected) in cases {
        let numbers: Vec<_> = rounds.iter().map(|r| r.spec.number).collect();
        assert_eq!(started(&decide(&facts(rounds, past()), at(0))), expected, "{numbers:?}");
    }
    let first = Digest::of(b"first");
    let known = FederatedStudyStatus { model: Some(first), ..FederatedStudyStatus::default() };
    let mut failed = ended(1, Outcome::QuorumLost);
    failed.spec.base_model = first;
    let lost = with_status(facts(vec![failed], past()), known);
    let plan = decide(&lost, at(0));
    assert_eq!((started(&plan), plan.status.model), (Some((2, first)), Some(first)));
}

fn scoring(number: u32) -> TrainingRound {
    let mut state = completed(format!("m{number}").as_bytes());
    (state.step, state.outcome, state.gate) = (RoundStep::Evaluating, None, None);
    round(number, Some(state))
}

/// GPUs that wait for a score stand still: the next round trains on a model while it is being scored. One round behind is
/// the bound, and a study is not over before its last model is scored.
#[test]
fn the_next_round_trains_while_the_model_is_scored() {
    let longer = |rounds| {
        let mut facts = facts(rounds, past());
        let mut study = (*facts.study).clone();
        study.spec.rounds.max = 3;
        facts.study = Arc::new(study);
        facts
    };
    let plan = decide(&longer(vec![scoring(1)]), at(0));
    assert_eq!(started(&plan), Some((2, Digest::of(b"m1"))));
    assert_eq!((plan.status.rounds_succeeded, plan.status.model), (Some(1), Some(Digest::of(b"m1"))));
    assert!(!plan.acts.iter().any(|act| matches!(act, Act::Release { .. } | Act::Archive { .. })));
    assert_eq!(started(&decide(&longer(vec![scoring(1), running(2)]), at(0))), None);
    assert_eq!(started(&decide(&longer(vec![scoring(1), scoring(2)]), at(0))), None);
    assert_eq!(
        started(&decide(&longer(vec![ended(1, Outcome::Completed), scoring(2)]), at(0))),
        Some((3, Digest::of(b"m2")))
    );
    let last = [1, 2].map(|n| ended(n, Outcome::Completed)).into_iter().chain([scoring(3)]).collect();
    let plan = decide(&longer(last), at(0));
    assert_eq!((started(&plan), condition(&plan, SUCCEEDED)), (None, Some("Unknown")));
}

#[test]
fn nothing_starts_while_a_deleted_study_of_the_same_name_leaves_or_this_one_is_not_accepted() {
    let mut busy = facts(vec![], made(Some(Digest::of(b"first")), vec![]));
    busy.leftovers = true;
    assert_eq!(started(&decide(&busy, at(0))), None);
    let mut refused = facts(vec![ended(1, Outcome::Completed)], past());
    refused.sites.remove(&name("alder"));
    let plan = decide(&refused, at(0));
    assert_eq!(started(&plan), None);
    assert_eq!((condition(&plan, READY), condition(&plan, STALLED)), (Some("False"), Some("True")));
    // What is known of finished rounds is not forgotten by a bad edit.
    assert_eq!((plan.status.current_round, plan.status.rounds_succeeded), (Some(1), Some(1)));
}

/// Counts must be right after any restart, archive or repeat.
#[test]
fn successes_and_slow_hospitals_are_counted_once() {
    let mut late = ended(1, Outcome::Completed);
    let carry = Carry { succeeded: 5, missed: [(name("birch"), 1)].into() };
    late.annotations_mut().insert(ANNOTATION.into(), carry.to_text());
    let state = late.status.as_mut().unwrap().round.as_mut().unwrap();
    (state.sites[1].contributed, state.sites[1].began) = (false, true);
    let seen = facts(vec![late], past());
    for _ in 0..2 {
        let plan = decide(&seen, at(0));
        assert_eq!(plan.status.rounds_succeeded, Some(6));
        let missed: Vec<_> = plan.status.missed.iter().map(|m| (m.name.as_str(), m.rounds)).collect();
        assert_eq!(missed, [("birch", 2)]);
        let waited: Vec<SiteName> = plan
            .acts
            .iter()
            .flat_map(|a| match a {
                Act::Start(new) => new.waited_for.clone(),
                _ => vec![],
            })
            .collect();
        assert_eq!(waited, [name("birch")]);
    }
}

#[test]
fn a_round_that_someone_deleted_does_not_make_its_number_come_twice() {
    let known = FederatedStudyStatus {
        current_round: Some(1),
        rounds_succeeded: Some(1),
        model: Some(Digest::of(b"m1")),
        ..FederatedStudyStatus::default()
    };
    let plan = decide(&with_status(facts(vec![], past()), known), at(0));
    assert_eq!(started(&plan), Some((2, Digest::of(b"m1"))));
    assert_eq!(plan.status.rounds_succeeded, Some(1));
}

/// Hospitals give one sum on a model: a study that went back to an older one, because the round between was deleted or lost,
/// would ask for a second sum for ever.
#[test]
fn no_round_starts_from_a_model_that_was_summed_before() {
    let model = |n: u32| Digest::of(format!("m{n}").as_bytes());
    let longer = |rounds, status: Option<FederatedStudyStatus>| {
        let mut facts = facts(rounds, past());
        let mut study = (*facts.study).clone();
        study.spec.rounds.max = 9;
        study.status = status;
        facts.study = Arc::new(study);
        started(&decide(&facts, at(0)))
    };
    let mut lost = ended(3, Outcome::QuorumLost);
    lost.spec.base_model = model(2);
    // Round 2 was deleted after its model stood, and the round that trained on it failed.
    assert_eq!(longer(vec![ended(1, Outcome::Completed), lost], None), Some((4, model(2))));
    // It was deleted and nothing came after it: the status remembers.
    let known =
        FederatedStudyStatus { current_round: Some(2), model: Some(model(2)), ..FederatedStudyStatus::default() };
    assert_eq!(longer(vec![ended(1, Outcome::Completed)], Some(known)), Some((3, model(2))));
    // It is being deleted: cancelled, and its model stands all the same.
    let mut cancelled = ended(2, Outcome::Completed);
    let state = cancelled.status.as_mut().unwrap().round.as_mut().unwrap();
    (state.step, state.outcome) = (RoundStep::Failed, Some(Outcome::Cancelled));
    assert_eq!(longer(vec![ended(1, Outcome::Completed), cancelled], None), Some((3, model(2))));
}

/// What the server's rule remembers belongs to one model: taken along with another, it would push that one by what was
/// learnt about the first. A round that failed asks again for the same step.
#[test]
fn a_rule_goes_on_with_the_model_that_it_remembers() {
    let (before, after) = (vec![Digest::of(b"v1")], vec![Digest::of(b"v2")]);
    let mut done = ended(1, Outcome::Completed);
    done.status.as_mut().unwrap().round.as_mut().unwrap().moments.clone_from(&after);
    let made = newest_model(&[Arc::new(done.clone())], None).unwrap();
    assert_eq!(moments(&[Arc::new(done.clone())], made), after);
    let mut lost = ended(2, Outcome::QuorumLost);
    lost.spec.moments.clone_from(&before);
    assert_eq!(moments(&[Arc::new(lost.clone())], lost.spec.base_model), before);
    // Of a round that was deleted: its memory went with it.
    assert_eq!(moments(&[Arc::new(done)], Digest::of(b"another")), []);
}

#[test]
fn a_release_is_cut_once_for_each_round_whose_gate_passed() {
    let shut = {
        let mut round = ended(2, Outcome::Completed);
        round.status.as_mut().unwrap().round.as_mut().unwrap().gate.as_mut().unwrap().passed = false;
        round
    };
    let mut facts = facts(vec![ended(1, Outcome::Completed), shut], past());
    let cuts = |facts: &Facts| {
        let acts = decide(facts, at(0)).acts;
        acts.iter().filter(|a| matches!(a, Act::Release { round: 1 })).count()
    };
    assert_eq!(cuts(&facts), 1);
    facts.releases = vec![Arc::new(release("hippocampus-r1", &SigningKey::from_bytes(&[1; 32])))];
    assert_eq!(cuts(&facts), 0);
    assert_eq!(decide(&facts, at(0)).status.latest_release.as_deref(), Some("hippocampus-r1"));
}

/// Old rounds leave etcd, oldest first, after their release was cut; the one under way never does.
#[test]
fn finished_rounds_beyond_the_limit_are_archived_after_their_release() {
    let plan = decide(&facts(vec![ended(1, Outcome::Completed), ended(2, Outcome::Completed)], past()), at(0));
    let order: Vec<_> = plan.acts.iter().filter(|a| !matches!(a, Act::Start(_))).cloned().collect();
    assert_eq!(order, [Act::Release { round: 1 }, Act::Release { round: 2 }, Act::Archive { round: 1 }]);
    let plan = decide(&facts(vec![ended(1, Outcome::QuorumLost), running(2)], past()), at(0));
    assert!(!plan.acts.iter().any(|a| matches!(a, Act::Archive { .. })), "{:?}", plan.acts);
}

#[test]
fn the_end_is_told_by_succeeded_and_not_by_ready() {
    let lost = |n| ended(n, Outcome::QuorumLost);
    for (rounds, expected, reason) in [
        (vec![running(1)], "Unknown", "Running"),
        (vec![ended(1, Outcome::Completed), running(2)], "Unknown", "Running"),
        (vec![lost(1), lost(2)], "False", "NoRoundSucceeded"),
    ] {
        let known = FederatedStudyStatus { model: Some(Digest::of(b"f")), ..FederatedStudyStatus::default() };
        let plan = decide(&with_status(facts(rounds, past()), known), at(0));
        assert_eq!(condition(&plan, SUCCEEDED), Some(expected));
        assert_eq!(condition(&plan, READY), Some("True"));
        let said = |type_: &str| plan.status.conditions.iter().find(|c| c.type_ == type_).unwrap().reason.clone();
        assert_eq!(said(SUCCEEDED), reason);
        // The column beside it: a study that is over is not said to be reconciled for ever.
        assert_eq!(said(READY), if expected == "False" { "Finished" } else { "Reconciling" });
    }
    let mut last = ended(2, Outcome::Completed);
    last.annotations_mut().insert(ANNOTATION.into(), Carry { succeeded: 1, ..Carry::default() }.to_text());
    let mut over = facts(vec![last], past());
    // A pipeline that waits for the end promotes the newest release then, which must not be one of an earlier round.
    assert_eq!(condition(&decide(&over, at(0)), SUCCEEDED), Some("Unknown"));
    let mut newest = release("hippocampus-r2", &SigningKey::from_bytes(&[1; 32]));
    newest.spec.round = 2;
    over.releases = vec![Arc::new(newest)];
    let plan = decide(&over, at(0));
    assert_eq!((condition(&plan, SUCCEEDED), plan.status.rounds_succeeded), (Some("True"), Some(2)));
    assert_eq!(plan.status.latest_release.as_deref(), Some("hippocampus-r2"));
}

/// A reconcile that finds nothing new must not write, or every write would bring the next one.
#[test]
fn the_same_facts_give_the_same_status_and_no_second_event() {
    let spent = || {
        let mut lost = ended(1, Outcome::SumUnusable);
        lost.spec.base_model = Digest::of(b"first");
        lost
    };
    let known = || FederatedStudyStatus { model: Some(Digest::of(b"first")), ..FederatedStudyStatus::default() };
    let waiting = || Facts { leftovers: true, ..facts(vec![], past()) };
    let missing = Initial::Named { model: Digest::of(b"x"), stored: false };
    let invalid = TryState::Failed { invalid: true, message: "network.width is 0".into() };
    let failed = || Try { number: 1, job: "j".into(), state: invalid.clone() };
    let cases: [(&str, &dyn Fn() -> Facts); 6] = [
        ("PreparingModel", &|| facts(vec![], made(None, vec![]))),
        ("a failed Init", &|| facts(vec![], made(None, vec![failed()]))),
        ("running", &|| facts(vec![running(1)], past())),
        ("a model that is not there", &|| facts(vec![], missing.clone())),
        ("WaitingForDeletion", &|| with_status(waiting(), known())),
        ("SumUnusable", &|| with_status(facts(vec![spent()], past()), known())),
    ];
    for (case, make) in cases {
        let first = decide(&make(), at(0));
        let again = decide(&with_status(make(), first.status.clone()), at(100));
        assert_eq!(again.status, first.status, "{case}");
        assert_eq!(again.notes, [], "{case}");
    }
}

#[test]
fn three_hospitals_are_warned_that_none_may_drop_out() {
    let mut few = facts(vec![running(1)], past());
    let mut study = study();
    study.spec.sites.pop();
    few.study = Arc::new(study);
    assert_eq!(condition(&decide(&few, at(0)), "NoDropoutTolerance"), Some("True"));
    assert_eq!(condition(&decide(&facts(vec![running(1)], past()), at(0)), "NoDropoutTolerance"), None);
}

/// Who looks at the study alone sees how many hospitals are through, and until when the others have.
#[test]
fn the_status_shows_the_newest_round() {
    let shown = |round: TrainingRound| {
        let status = decide(&facts(vec![round], past()), at(0)).status;
        (status.sites, status.deadline)
    };
    assert_eq!(shown(running(1)), (Some("0/4".into()), Some(at(3600))));
    assert_eq!(shown(ended(1, Outcome::Completed)), (Some("4/4".into()), None));
    assert_eq!(shown(round(1, None)), (None, None));
}
