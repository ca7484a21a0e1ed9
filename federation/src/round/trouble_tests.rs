//! What goes wrong in a round: at the hub, in the outage of the hub, in hospitals that die.

use super::tests::{SITES, all_ready, at, fresh, name, policy, run, say, secagg_until};
use super::*;
use crate::digest::Digest;
use crate::gate::{COUNT_CAP, CaseSums, Gate, Vote};
use crate::task::TaskKind;

fn failed(attempt: u32) -> Event {
    Event::AttemptFailed { attempt, message: "the shares of alder do not fit".into() }
}

fn gate() -> Option<Gate> {
    Some(Gate { min: 0.8, per_site_min: 0.7, min_cases: 1, quorum: 3 })
}

fn votes(second: i64, sites: &[&str]) -> Vec<(i64, Event)> {
    let vote = |s: &&str| Event::Voted { site: name(s), vote: Vote::Pass, sums: None, published: None };
    sites.iter().map(|s| (second, vote(s))).collect()
}

/// One hospital's bad message must not hang the round of all: before shares may have left another attempt opens with
/// the same updates, and after that the round ends and says why.
#[test]
fn an_attempt_that_cannot_go_on_at_the_hub_is_burned_or_ends_the_round() {
    let policy = policy(Protocol::SecAgg);
    for open in [ProtocolStep::Advertise, ProtocolStep::Share, ProtocolStep::Upload, ProtocolStep::Agree] {
        let state = run(secagg_until(open, &SITES), &policy, vec![(300, failed(1))]);
        assert_eq!((state.attempt, state.protocol_step), (2, Some(ProtocolStep::Advertise)), "{open:?}");
        assert_eq!(run(state.clone(), &policy, vec![(301, failed(1))]), state, "a repetition says nothing new");
    }
    let state = run(secagg_until(ProtocolStep::Unmask, &SITES), &policy, vec![(300, failed(1))]);
    assert_eq!(state.outcome, Some(Outcome::SumUnusable));
    assert!(state.message.unwrap().contains("the shares of alder"));
}

/// Somebody cancels a round in which hospitals have given their shares: another round on the same model would have all of
/// them train, and refuse.
#[test]
fn a_round_that_is_cancelled_too_late_is_one_whose_sum_is_lost() {
    let policy = policy(Protocol::SecAgg);
    for (open, outcome) in [(ProtocolStep::Agree, Outcome::Cancelled), (ProtocolStep::Unmask, Outcome::SumUnusable)] {
        let state = run(secagg_until(open, &SITES), &policy, vec![(300, Event::Cancel)]);
        assert_eq!((state.outcome, state.step), (Some(outcome), RoundStep::Failed), "{open:?}");
    }
}

#[test]
fn an_evaluation_that_cannot_go_on_at_the_hub_shuts_the_gate_and_keeps_the_model() {
    let mut policy = policy(Protocol::SecAgg);
    policy.gate = gate();
    let mut state = secagg_until(ProtocolStep::Unmask, &SITES);
    (state.step, state.model_attempt, state.model) = (RoundStep::Evaluating, 0, Some(Digest::of(b"m")));
    let ended = run(state.clone(), &policy, vec![(99, failed(1))]);
    assert_eq!((ended.outcome, ended.gate.unwrap().passed), (Some(Outcome::Completed), false));
    // And so it does when too few answer in time: the model stands, only its figure is missing.
    let deadline = state.deadline;
    let waiting =
        step(&state, Event::Tick, deadline.saturating_sub(jiff::SignedDuration::from_secs(1)).unwrap(), &policy);
    assert_eq!(waiting.unwrap().protocol_step, Some(ProtocolStep::Unmask));
    let late = step(&state, Event::Tick, deadline, &policy).unwrap();
    assert_eq!((late.outcome, late.model), (Some(Outcome::Completed), Some(Digest::of(b"m"))));
    assert!(late.gate.unwrap().message.unwrap().contains("Unmask"));
}

/// A hub that was down when a time limit ran out must hear the hospitals before it judges them.
#[test]
fn a_driver_that_has_just_started_lets_no_time_limit_end() {
    let mut policy = policy(Protocol::SecAgg);
    let one = run(fresh(), &policy, vec![(10, say("alder", SiteReason::Ready))]);
    let roster = policy.roster.clone();
    policy.starting = true;
    policy.roster = None;
    let waits = run(one, &policy, vec![(4000, say("alder", SiteReason::Ready)), (4000, Event::Tick)]);
    assert_eq!((waits.step, waits.site(&name("alder")).unwrap().reason), (RoundStep::Training, SiteReason::Ready));
    // Three were ready and the grace is over: without a roster nobody's keys hold, and no attempt opens.
    let three = run(fresh(), &masked(), all_ready()[..3].to_vec());
    for starting in [true, false] {
        policy.starting = starting;
        assert_eq!(run(three.clone(), &policy, vec![(500, Event::Tick)]).attempt, 0);
    }
    policy.starting = false;
    policy.roster = roster;
    assert_eq!(run(three, &policy, vec![(500, Event::Tick)]).attempt, 1);
    // The votes are in, and which roster holds is not known yet: the gate is not shut for want of a figure.
    policy.gate = gate();
    let mut state = fresh();
    (state.step, state.attempt, state.model_attempt) = (RoundStep::Evaluating, 1, 1);
    let state = run(state, &RoundPolicy { starting: true, roster: None, ..policy.clone() }, votes(9000, &SITES));
    assert_eq!(state.step, RoundStep::Evaluating);
    let state = run(state, &policy, vec![(9001, Event::Tick)]);
    assert_eq!((state.attempt, state.protocol_step), (2, Some(ProtocolStep::Advertise)));
}

fn masked() -> RoundPolicy {
    policy(Protocol::SecAgg)
}

/// Five withstand two colluders, four do not: an attempt that went on with four would hang at the hub.
#[test]
fn an_attempt_that_shrinks_below_what_the_colluders_allow_is_burned() {
    let sites = ["alder", "birch", "cedar", "damson", "elder"];
    let mut policy = policy(Protocol::SecAgg);
    (policy.colluders, policy.min_contributors, policy.quorum) = (2, 4, 5);
    policy.roster.as_mut().unwrap().sites = sites.map(name).into();
    let ready = sites.iter().map(|s| (10, say(s, SiteReason::Ready))).collect();
    let state = run(RoundState::new(sites.map(name), at(0), at(3600)), &policy, ready);
    assert_eq!((state.attempt_size, needed(&state, &policy)), (5, 5));
    let done = |s: &&str| (11, Event::StepDone { site: name(s), attempt: 1, step: ProtocolStep::Advertise });
    let state = run(state, &policy, sites[..4].iter().map(done).collect());
    let state = run(state, &policy, vec![(200, Event::Tick)]);
    assert_eq!((state.step, state.protocol_step), (RoundStep::Training, None));
}

/// A hospital that the researcher cannot do without must be in every sum of updates, not only in the opening.
#[test]
fn no_updates_are_summed_without_a_required_hospital() {
    let mut policy = policy(Protocol::None);
    policy.required.insert(name("damson"));
    let opened = run(fresh(), &policy, all_ready());
    let upload = |s: &&str| (20, Event::StepDone { site: name(s), attempt: 1, step: ProtocolStep::Upload });
    let three: Vec<_> = SITES[..3].iter().map(upload).collect();
    let late = run(run(opened.clone(), &policy, three.clone()), &policy, vec![(200, Event::Tick)]);
    assert_eq!((late.step, late.protocol_step), (RoundStep::Training, None));
    let left = run(opened.clone(), &policy, vec![(30, say("damson", SiteReason::DeniedByPolicy))]);
    assert_eq!(left.step, RoundStep::Training, "nobody waits for the step to end without it");
    let all = run(run(opened, &policy, three), &policy, vec![(40, upload(&"damson").1)]);
    assert_eq!(all.protocol_step, Some(ProtocolStep::Sum));
}

/// What a dead hospital said before it died must not bring it into the next attempt; the drivers tell by this time.
#[test]
fn the_time_at_which_hospitals_fell_out_is_kept() {
    let policy = policy(Protocol::None);
    let opened = run(fresh(), &policy, all_ready());
    assert_eq!(opened.missed_at, None);
    let burned = run(opened, &policy, vec![(130, Event::Tick)]);
    assert_eq!((burned.missed_at, burned.step_since), (Some(at(130)), Some(at(130))));
    assert!(burned.sites.iter().all(|s| s.reason == SiteReason::Missed));
}

/// Only who has taken the round up can have been slow in it.
#[test]
fn a_hospital_that_takes_the_round_up_is_remembered() {
    let begins = vec![(5, say("alder", SiteReason::Queued)), (6, say("birch", SiteReason::DeniedByPolicy))];
    let state = run(fresh(), &policy(Protocol::None), begins);
    let began: Vec<bool> = state.sites.iter().map(|s| s.began).collect();
    assert_eq!(began, [true, false, false, false]);
    let evaluate = Event::Site {
        site: name("cedar"),
        kind: TaskKind::Evaluate,
        fact: SiteFact { reason: SiteReason::Training, message: None },
    };
    assert!(!run(state, &policy(Protocol::None), vec![(7, evaluate)]).site(&name("cedar")).unwrap().began);
}

/// Where updates are masked, one hospital that sends its numbers in plain, unasked, must not open the gate for all.
#[test]
fn under_masks_no_plain_numbers_stand_in_for_the_masked_sum() {
    let mut policy = policy(Protocol::SecAgg);
    policy.gate = gate();
    let vote = |s: &&str| Event::Voted {
        site: name(s),
        vote: Vote::Pass,
        sums: Some(CaseSums { cases: 1, dice: 1.0 }),
        published: None,
    };
    let mut state = fresh();
    (state.step, state.attempt, state.model_attempt) = (RoundStep::Evaluating, 1, 1);
    state.model = Some(Digest::of(b"m"));
    let mut state = run(state, &policy, SITES.iter().map(|s| (40, vote(s))).collect());
    assert_eq!(state.evaluation, []);
    // Also those that an earlier version of the hub took down.
    state.evaluation = vec![SiteSums { site: name("alder"), cases: 1, dice: "1.000000".into() }];
    let failed = |attempt| (300, failed(attempt));
    let state = run(run(state, &policy, vec![failed(2)]), &policy, vec![failed(3)]);
    let gate = state.gate.clone().unwrap();
    assert_eq!((state.outcome, gate.passed, gate.global), (Some(Outcome::Completed), false, None));
}

/// Without masks each hospital's cases count, but none for more than the cap.
#[test]
fn a_plain_figure_takes_a_hospitals_cases_up_to_the_cap() {
    let mut policy = policy(Protocol::None);
    policy.gate = gate();
    let mut state = fresh();
    (state.step, state.attempt, state.model_attempt) = (RoundStep::Evaluating, 1, 1);
    let sums = Some(CaseSums { cases: 4 * COUNT_CAP, dice: 0.0 });
    let vote = Event::Voted { site: name("alder"), vote: Vote::Pass, sums, published: None };
    let state = run(state, &policy, vec![(40, vote)]);
    assert_eq!(state.evaluation[0].cases, COUNT_CAP);
}

/// A hospital whose policy is edited, or whose agent restarts, in the middle of a step says no for a moment. It must be
/// asked again while the step is open: after the shares have left nobody else can take its place.
#[test]
fn a_hospital_that_said_no_for_a_moment_is_asked_again_within_the_step() {
    let policy = masked();
    for open in [ProtocolStep::Advertise, ProtocolStep::Upload, ProtocolStep::Agree, ProtocolStep::Unmask] {
        let state = secagg_until(open, &SITES);
        let away = run(state.clone(), &policy, vec![(50, say("damson", SiteReason::DeniedByPolicy))]);
        // A hospital that were told to wait would take the attempt for closed and wipe its secrets.
        assert_eq!(site_work(&away, &name("damson")), Some(SiteWork::Attempt(1, open)), "{open:?}");
        assert!(!away.site(&name("damson")).unwrap().member, "the others do not wait for it");
        let back = run(away.clone(), &policy, vec![(51, say("damson", SiteReason::Ready))]);
        assert_eq!(site_work(&back, &name("damson")), Some(SiteWork::Attempt(1, open)), "{open:?}");
        assert_eq!(back.in_attempt(open), state.in_attempt(open));
        // What could not be done is not done by saying that one is ready: it would come and go for as long as the step is
        // open, each time with a write and an Event.
        let failed = run(state.clone(), &policy, vec![(50, say("damson", SiteReason::Rejected))]);
        let ready = || (51, say("damson", SiteReason::Ready));
        let again = run(failed, &policy, vec![ready(), ready()]);
        assert!(!again.site(&name("damson")).unwrap().member, "{open:?}");
        // In the next step it is too late: the others go on without it.
        let done = |s: &&str| (52, Event::StepDone { site: name(s), attempt: 1, step: open });
        let later = run(away, &policy, SITES[..3].iter().map(done).collect());
        let late = run(later.clone(), &policy, vec![(53, say("damson", SiteReason::Ready))]);
        assert_eq!(late.protocol_step, later.protocol_step);
        assert!(!late.site(&name("damson")).unwrap().member, "{open:?}");
    }
}
