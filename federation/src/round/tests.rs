use std::collections::BTreeSet;

use jiff::{SignedDuration, Timestamp};
use proptest::prelude::*;

use super::*;
use crate::digest::Digest;
use crate::gate::{CaseSums, Gate, Vote};
use crate::ids::SiteName;
use crate::task::TaskKind;

pub(super) fn name(text: &str) -> SiteName {
    text.parse().unwrap()
}

pub(super) fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + seconds).unwrap()
}

pub(super) fn policy(protocol: Protocol) -> RoundPolicy {
    RoundPolicy {
        quorum: 3,
        min_contributors: 3,
        colluders: 1,
        roster: Some(RosterChoice { digest: Digest::of(b"roster"), sites: SITES.map(name).into() }),
        earlier: Default::default(),
        required: Default::default(),
        waited_for: Default::default(),
        grace: SignedDuration::from_secs(60),
        step_limit: SignedDuration::from_secs(120),
        max_attempts: 2,
        protocol,
        gate: None,
        evaluation_limit: SignedDuration::from_secs(600),
        starting: false,
    }
}

pub(super) const SITES: [&str; 4] = ["alder", "birch", "cedar", "damson"];

pub(super) fn fresh() -> RoundState {
    RoundState::new(SITES.map(name), at(0), at(3600))
}

pub(super) fn say(site: &str, reason: SiteReason) -> Event {
    Event::Site { site: name(site), kind: TaskKind::Train, fact: SiteFact { reason, message: None } }
}

pub(super) fn run(mut state: RoundState, policy: &RoundPolicy, events: Vec<(i64, Event)>) -> RoundState {
    for (seconds, event) in events {
        if let Ok(next) = step(&state, event, at(seconds), policy) {
            state = next;
        }
    }
    state
}

fn uploads(attempt: u32, sites: &[&str]) -> Vec<(i64, Event)> {
    let done = |site: &&str| Event::StepDone { site: name(site), attempt, step: ProtocolStep::Upload };
    sites.iter().map(|s| (20, done(s))).collect()
}

pub(super) fn all_ready() -> Vec<(i64, Event)> {
    SITES.iter().map(|s| (10, say(s, SiteReason::Ready))).collect()
}

#[test]
fn a_round_with_everyone_ready_opens_at_once_and_ends_with_the_sum() {
    let policy = policy(Protocol::None);
    let state = run(fresh(), &policy, all_ready());
    assert_eq!((state.step, state.attempt), (RoundStep::Aggregating, 1));
    assert_eq!(site_work(&state, &name("alder")), Some(SiteWork::Attempt(1, ProtocolStep::Upload)));
    let state = run(state, &policy, uploads(1, &SITES));
    assert_eq!(
        hub_work(&state),
        Some(HubWork::Sum { attempt: 1, kind: TaskKind::Train, contributors: SITES.map(name).to_vec() })
    );
    let sum = Event::Aggregated { attempt: 1, sum: Summed::Model(Digest::of(b"m").into()) };
    let state = run(state, &policy, vec![(30, sum)]);
    assert_eq!((state.step, state.outcome, state.contributors), (RoundStep::Succeeded, Some(Outcome::Completed), 4));
}

#[test]
fn a_refusing_hospital_does_not_hold_up_the_others() {
    let policy = policy(Protocol::None);
    let mut events = all_ready();
    events[3] = (10, say("damson", SiteReason::DeniedByPolicy));
    let state = run(fresh(), &policy, events);
    assert_eq!(state.step, RoundStep::Aggregating);
    assert_eq!(site_work(&state, &name("damson")), Some(SiteWork::Wait));
}

#[test]
fn a_straggler_is_waited_for_during_the_grace_and_longer_when_it_was_left_out_before() {
    let mut policy = policy(Protocol::None);
    let events = all_ready()[..3].to_vec();
    let state = run(fresh(), &policy, events.clone());
    assert_eq!((state.step, wake_at(&state)), (RoundStep::Training, Some(at(70))));
    assert_eq!(run(state, &policy, vec![(70, Event::Tick)]).step, RoundStep::Aggregating);
    policy.waited_for.insert(name("damson"));
    let state = run(run(fresh(), &policy, events), &policy, vec![(70, Event::Tick)]);
    assert_eq!(state.step, RoundStep::Training);
    assert_eq!(run(state, &policy, vec![(3600, Event::Tick)]).step, RoundStep::Aggregating);
}

#[test]
fn below_quorum_at_the_deadline_the_round_fails_and_says_why() {
    let events = vec![(10, say("alder", SiteReason::Ready)), (3600, Event::Tick)];
    let state = run(fresh(), &policy(Protocol::None), events);
    assert_eq!((state.step, state.outcome), (RoundStep::Failed, Some(Outcome::QuorumLost)));
    assert!(state.message.unwrap().contains("1 hospitals were ready"));
}

#[test]
fn a_required_hospital_is_not_overruled_by_the_others() {
    let mut policy = policy(Protocol::None);
    policy.required.insert(name("damson"));
    let mut events = all_ready();
    events[3] = (10, say("damson", SiteReason::DeniedByPolicy));
    assert_eq!(run(fresh(), &policy, events).step, RoundStep::Training);
}

#[test]
fn an_upload_that_never_comes_costs_only_its_hospital() {
    let policy = policy(Protocol::None);
    let mut events = all_ready();
    events.extend(uploads(1, &SITES[..3]));
    let state = run(run(fresh(), &policy, events), &policy, vec![(130, Event::Tick)]);
    assert_eq!(state.protocol_step, Some(ProtocolStep::Sum));
    assert_eq!(state.in_attempt(ProtocolStep::Agree), SITES[..3].iter().map(|s| name(s)).collect::<Vec<_>>());
    assert_eq!(state.site(&name("damson")).unwrap().reason, SiteReason::Missed);
}

#[test]
fn a_burned_attempt_is_followed_by_another_without_training_again() {
    let policy = policy(Protocol::None);
    let mut events = all_ready();
    events.extend(uploads(1, &SITES[..2]));
    events.push((130, Event::Tick));
    let state = run(fresh(), &policy, events);
    assert_eq!((state.step, state.attempt), (RoundStep::Training, 1));
    assert_eq!(state.site(&name("alder")).unwrap().reason, SiteReason::Ready);
    let back = vec![(140, say("cedar", SiteReason::Ready)), (200, Event::Tick)];
    let state = run(state, &policy, back);
    assert_eq!((state.step, state.attempt), (RoundStep::Aggregating, 2));
    let state = run(state, &policy, vec![(400, Event::Tick)]);
    assert_eq!(state.outcome, Some(Outcome::AggregationFailed));
}

/// Runs an attempt with masks up to the step `last`; only `survivors` upload, the others are waited for in vain.
pub(super) fn secagg_until(last: ProtocolStep, survivors: &[&str]) -> RoundState {
    let policy = policy(Protocol::SecAgg);
    let mut state = run(fresh(), &policy, all_ready());
    let mut clock = 10;
    for open in [ProtocolStep::Advertise, ProtocolStep::Share, ProtocolStep::Upload, ProtocolStep::Agree] {
        if open >= last {
            break;
        }
        let who: &[&str] = if open >= ProtocolStep::Upload { survivors } else { &SITES };
        let done = |s: &&str| (clock, Event::StepDone { site: name(s), attempt: 1, step: open });
        state = run(state, &policy, who.iter().map(done).collect());
        if state.protocol_step == Some(open) {
            clock += 120;
            state = run(state, &policy, vec![(clock, Event::Tick)]);
        }
    }
    state
}

#[test]
fn masking_steps_follow_each_other_and_three_of_four_survive() {
    let state = secagg_until(ProtocolStep::Agree, &SITES[..3]);
    assert_eq!(state.protocol_step, Some(ProtocolStep::Agree));
    // U1 and U2 still hold the one that dropped out: its masks are in the others' uploads.
    let sizes = [ProtocolStep::Share, ProtocolStep::Upload, ProtocolStep::Agree].map(|s| state.in_attempt(s).len());
    assert_eq!(sizes, [4, 4, 3]);
    assert_eq!(state.site(&name("damson")).unwrap().dropped, Some(ProtocolStep::Upload));
    assert_eq!(site_work(&state, &name("damson")), Some(SiteWork::Wait));
}

/// A hospital that refuses between its upload and the survivors stays in the sum, where its update already is, and is
/// asked for nothing more; when too few are left, nobody waits for the deadline.
#[test]
fn a_hospital_may_leave_at_every_step_and_too_few_end_the_attempt_at_once() {
    let policy = policy(Protocol::SecAgg);
    let state = secagg_until(ProtocolStep::Agree, &SITES);
    let state = run(state, &policy, vec![(20, say("damson", SiteReason::Rejected))]);
    assert_eq!(site_work(&state, &name("damson")), Some(SiteWork::Wait));
    assert_eq!(state.in_attempt(ProtocolStep::Agree).len(), 4);
    assert_eq!(state.protocol_step, Some(ProtocolStep::Agree));
    let state = run(state, &policy, vec![(21, say("cedar", SiteReason::DeniedByPolicy))]);
    assert_eq!((state.step, state.attempt, state.protocol_step), (RoundStep::Training, 1, None));
}

/// Three signatures fix a survivor set, three shares reconstruct: the fourth is not waited for.
#[test]
fn signing_and_unmasking_end_with_the_threshold() {
    let policy = policy(Protocol::SecAgg);
    let mut state = secagg_until(ProtocolStep::Agree, &SITES);
    for open in [ProtocolStep::Agree, ProtocolStep::Unmask] {
        let done = |s: &&str| (20, Event::StepDone { site: name(s), attempt: 1, step: open });
        state = run(state, &policy, SITES[..3].iter().map(done).collect());
    }
    let contributors = SITES.map(name).to_vec();
    assert_eq!(hub_work(&state), Some(HubWork::Sum { attempt: 1, kind: TaskKind::Train, contributors }));
    // The hospitals give no second sum on this base, so a failed one ends the round.
    let failed = Event::AggregationFailed { attempt: 1, message: "the norm".into() };
    let state = run(state, &policy, vec![(30, failed)]);
    assert_eq!((state.outcome, state.attempt), (Some(Outcome::SumUnusable), 1));
}

/// From seven hospitals on, one that drops out takes another one along, so that the sums of two rounds never differ by
/// one alone; with fewer, the study goes on and the hospitals' policies decide.
#[test]
fn a_sum_one_hospital_away_from_an_earlier_one_leaves_a_second_one_out() {
    let sites: Vec<String> = (1..=7).map(|i| format!("site-{i}")).collect();
    let mut policy = policy(Protocol::SecAgg);
    let all: BTreeSet<SiteName> = sites.iter().map(|s| name(s)).collect();
    policy.roster.as_mut().unwrap().sites = all.clone();
    policy.earlier.updates = vec![all];
    let close = |of: &[String], policy: &RoundPolicy| {
        let mut state = RoundState::new(of.iter().map(|s| name(s)), at(0), at(3600));
        let ready = of.iter().map(|s| (10, say(s, SiteReason::Ready))).collect();
        state = run(state, policy, ready);
        for open in [ProtocolStep::Advertise, ProtocolStep::Share, ProtocolStep::Upload] {
            let who = if open == ProtocolStep::Upload { &of[1..] } else { of };
            let done = |s: &String| (10, Event::StepDone { site: name(s), attempt: 1, step: open });
            state = run(state, policy, who.iter().map(done).collect());
        }
        run(state, policy, vec![(500, Event::Tick)]).in_attempt(ProtocolStep::Agree).len()
    };
    assert_eq!(close(&sites, &policy), 5);
    let four: BTreeSet<SiteName> = sites[..4].iter().map(|s| name(s)).collect();
    policy.earlier.updates = vec![four];
    assert_eq!(close(&sites[..4], &policy), 3);
    policy.earlier.updates.clear();
    assert_eq!(close(&sites, &policy), 6);
}

/// A hospital whose keys are on no roster that it accepts must not stop the others, nor sign under keys it never saw.
#[test]
fn a_hospital_outside_the_roster_awaits_it_and_the_others_go_on() {
    let mut policy = policy(Protocol::SecAgg);
    policy.roster.as_mut().unwrap().sites.remove(&name("damson"));
    let state = run(fresh(), &policy, all_ready());
    assert_eq!(state.site(&name("damson")).unwrap().reason, SiteReason::AwaitingRoster);
    assert_eq!((state.step, state.attempt_size), (RoundStep::Aggregating, 3));
    assert_eq!(state.roster, Some(Digest::of(b"roster")));
    policy.roster = None;
    assert_eq!(run(fresh(), &policy, all_ready()).step, RoundStep::Training);
}

/// With masks no hospital's metric is seen: the votes come first, then one sum among those that voted.
#[test]
fn the_evaluation_is_summed_in_an_attempt_of_its_own() {
    let mut policy = policy(Protocol::SecAgg);
    policy.gate = Some(Gate { min: 0.8, per_site_min: 0.7, min_cases: 1, quorum: 3 });
    let mut state = secagg_until(ProtocolStep::Agree, &SITES);
    for open in [ProtocolStep::Agree, ProtocolStep::Unmask] {
        let done = |s: &&str| (20, Event::StepDone { site: name(s), attempt: 1, step: open });
        state = run(state, &policy, SITES.iter().map(done).collect());
    }
    state =
        run(state, &policy, vec![(30, Event::Aggregated { attempt: 1, sum: Summed::Model(Digest::of(b"m").into()) })]);
    assert_eq!((state.step, state.contributors, state.model_attempt), (RoundStep::Evaluating, 4, 1));
    let vote = |s: &&str| Event::Voted { site: name(s), vote: Vote::Pass, sums: None, published: None };
    state = run(state, &policy, SITES.iter().map(|s| (40, vote(s))).collect());
    assert_eq!((state.attempt, state.protocol_step), (2, Some(ProtocolStep::Advertise)));
    for open in [ProtocolStep::Advertise, ProtocolStep::Share, ProtocolStep::Upload] {
        assert_eq!(site_work(&state, &name("alder")), Some(SiteWork::EvaluationAttempt(2, open)));
        let done = |s: &&str| (50, Event::StepDone { site: name(s), attempt: 2, step: open });
        state = run(state, &policy, SITES.iter().map(done).collect());
    }
    for open in [ProtocolStep::Agree, ProtocolStep::Unmask] {
        let done = |s: &&str| (60, Event::StepDone { site: name(s), attempt: 2, step: open });
        state = run(state, &policy, SITES.iter().map(done).collect());
    }
    assert!(matches!(hub_work(&state), Some(HubWork::Sum { attempt: 2, kind: TaskKind::Evaluate, .. })));
    let sum = Summed::Cases(CaseSums { cases: 40, dice: 34.0 });
    state = run(state, &policy, vec![(70, Event::Aggregated { attempt: 2, sum })]);
    let gate = state.gate.clone().unwrap();
    assert_eq!((state.step, gate.passed, gate.global.as_deref()), (RoundStep::Succeeded, true, Some("0.8500")));
    assert_eq!(state.contributor_names().len(), 4);
}

/// A hospital that died in the round is waited for as long as a straggler is, not until the evaluation's deadline.
#[test]
fn once_the_quorum_has_voted_the_others_have_the_grace() {
    let mut policy = policy(Protocol::None);
    policy.gate = Some(Gate { min: 0.8, per_site_min: 0.7, min_cases: 1, quorum: 3 });
    let mut state = fresh();
    (state.step, state.attempt, state.model_attempt) = (RoundStep::Evaluating, 1, 1);
    let vote = |s: &&str| Event::Voted { site: name(s), vote: Vote::Pass, sums: None, published: None };
    state = run(state, &policy, SITES[..3].iter().map(|s| (40, vote(s))).collect());
    assert_eq!((state.step, wake_at(&state)), (RoundStep::Evaluating, Some(at(100))));
    state = run(state, &policy, vec![(100, Event::Tick)]);
    assert_eq!(state.step, RoundStep::Succeeded);
}

/// A hospital that dies after its vote costs one attempt, not the release; without a sum there is no figure.
#[test]
fn an_evaluation_attempt_that_fails_is_tried_among_the_others_and_then_shuts_the_gate() {
    let mut policy = policy(Protocol::SecAgg);
    policy.gate = Some(Gate { min: 0.8, per_site_min: 0.7, min_cases: 1, quorum: 3 });
    let mut state = fresh();
    (state.step, state.attempt, state.model_attempt) = (RoundStep::Evaluating, 1, 1);
    state.model = Some(Digest::of(b"m"));
    let vote = |s: &&str| Event::Voted { site: name(s), vote: Vote::Pass, sums: None, published: None };
    state = run(state, &policy, SITES.iter().map(|s| (40, vote(s))).collect());
    let advert = |s: &&str| (41, Event::StepDone { site: name(s), attempt: 2, step: ProtocolStep::Advertise });
    state = run(state, &policy, SITES[..2].iter().map(advert).collect());
    state = run(state, &policy, vec![(200, Event::Tick)]);
    // Two are left of four: no attempt can have three, unless one of the others comes back in time.
    let back = Event::Site {
        site: name("cedar"),
        kind: TaskKind::Evaluate,
        fact: SiteFact { reason: SiteReason::Evaluated, message: None },
    };
    let again = run(state.clone(), &policy, vec![(210, back)]);
    assert_eq!((again.attempt, again.attempt_size), (3, 3));
    // Otherwise the round ends without a figure, its model kept.
    assert_eq!(state.step, RoundStep::Evaluating);
    state = run(state, &policy, vec![(320, Event::Tick)]);
    let gate = state.gate.clone().unwrap();
    assert!(!gate.passed && gate.global.is_none());
    assert_eq!((state.outcome, state.model), (Some(Outcome::Completed), Some(Digest::of(b"m"))));
}

#[test]
fn once_shares_may_have_left_there_is_no_second_attempt() {
    let policy = policy(Protocol::SecAgg);
    let state = secagg_until(ProtocolStep::Unmask, &SITES);
    assert_eq!(state.protocol_step, Some(ProtocolStep::Unmask));
    let state = run(state, &policy, vec![(99_999, Event::Tick)]);
    assert_eq!((state.attempt, state.protocol_step), (1, Some(ProtocolStep::Unmask)));
}

#[test]
fn votes_close_the_evaluation_and_the_gate_is_recorded() {
    let mut policy = policy(Protocol::None);
    policy.gate = Some(Gate { min: 0.8, per_site_min: 0.7, min_cases: 1, quorum: 3 });
    let mut events = all_ready();
    events.extend(uploads(1, &SITES));
    events.push((30, Event::Aggregated { attempt: 1, sum: Summed::Model(Digest::of(b"m").into()) }));
    let vote = |s: &&str| Event::Voted {
        site: name(s),
        vote: Vote::Pass,
        sums: Some(CaseSums { cases: 10, dice: 8.5 }),
        published: None,
    };
    let state = run(fresh(), &policy, events);
    assert_eq!(site_work(&state, &name("alder")), Some(SiteWork::Evaluate));
    let state = run(state, &policy, SITES[..3].iter().map(|s| (40, vote(s))).collect());
    assert_eq!(state.step, RoundStep::Evaluating);
    let out = Event::Site {
        site: name("damson"),
        kind: TaskKind::Evaluate,
        fact: SiteFact { reason: SiteReason::InvalidData, message: None },
    };
    let state = run(state, &policy, vec![(41, out)]);
    let gate = state.gate.clone().unwrap();
    assert_eq!((state.step, gate.passed, gate.global.as_deref()), (RoundStep::Succeeded, true, Some("0.8500")));
}

/// A status of 200 hospitals must fit into etcd, whatever they write in whatever script.
#[test]
fn a_site_entry_stays_small_whatever_happens() {
    for text in ["x", "\u{1}", "\"", "é", "漢", "🏥"] {
        let said = Event::Site {
            site: name("alder"),
            kind: TaskKind::Train,
            fact: SiteFact { reason: SiteReason::NetworkPolicyNotEnforced, message: Some(text.repeat(200)) },
        };
        let mut state =
            run(fresh(), &policy(Protocol::None), vec![(10, say("alder", SiteReason::Training)), (11, said)]);
        let site = &mut state.sites[0];
        site.dropped = Some(ProtocolStep::Advertise);
        assert!(site.message.as_ref().is_some_and(|m| !m.is_empty()));
        assert!(serde_json::to_vec(site).unwrap().len() <= 256, "{text:?}");
    }
}

fn any_event() -> impl Strategy<Value = Event> {
    let site = || prop::sample::select(SITES.to_vec()).prop_map(name);
    let reason = prop::sample::select(vec![
        SiteReason::Offered,
        SiteReason::DeniedByPolicy,
        SiteReason::Training,
        SiteReason::InvalidData,
        SiteReason::Ready,
        SiteReason::Ready,
    ]);
    let kind = prop::sample::select(vec![TaskKind::Train, TaskKind::Evaluate]);
    let protocol_step = prop::sample::select(vec![
        ProtocolStep::Advertise,
        ProtocolStep::Share,
        ProtocolStep::Upload,
        ProtocolStep::Agree,
        ProtocolStep::Unmask,
    ]);
    prop_oneof![
        4 => (site(), kind, reason)
            .prop_map(|(site, kind, reason)| Event::Site { site, kind, fact: SiteFact { reason, message: None } }),
        4 => (site(), 1u32..3, protocol_step).prop_map(|(site, attempt, step)| Event::StepDone { site, attempt, step }),
        1 => (1u32..3).prop_map(|attempt| Event::Aggregated { attempt, sum: Summed::Model(Digest::of(b"m").into()) }),
        1 => (1u32..3).prop_map(|attempt| Event::AggregationFailed { attempt, message: "torn".into() }),
        1 => (1u32..3).prop_map(|attempt| Event::AttemptFailed { attempt, message: "a lie".into() }),
        1 => site().prop_map(|site| Event::Voted { site, vote: Vote::Pass, sums: None, published: None }),
        2 => Just(Event::Tick),
    ]
}

proptest! {
    /// Whatever is said, lost, repeated or late: nobody is counted twice, a sum has enough members,
    /// an end is an end, and doing nothing at the same instant changes nothing.
    #[test]
    fn invariants_hold_under_any_history(
        events in prop::collection::vec((0i64..200, any_event()), 0..80),
        secagg in any::<bool>(),
        gated in any::<bool>(),
    ) {
        let mut policy = policy(if secagg { Protocol::SecAgg } else { Protocol::None });
        policy.gate = gated.then_some(Gate { min: 0.8, per_site_min: 0.7, min_cases: 1, quorum: 3 });
        let mut state = fresh();
        let mut clock = 0;
        for (wait, event) in events {
            clock += wait;
            let before = state.clone();
            // The state is borrowed, so that what is rejected cannot change it.
            if let Ok(next) = step(&state, event.clone(), at(clock), &policy) {
                prop_assert!(!before.is_over());
                // Replay of what was just applied converges.
                if let Ok(again) = step(&next, Event::Tick, at(clock), &policy) {
                    prop_assert_eq!(&again, &next);
                }
                state = next;
            }
            prop_assert!(state.attempt - state.model_attempt <= policy.max_attempts);
            prop_assert_eq!(state.sites.len(), 4);
            if let Some(HubWork::Sum { contributors, .. }) = hub_work(&state) {
                prop_assert!(contributors.len() as u32 >= policy.min_contributors);
                prop_assert!(contributors.windows(2).all(|w| w[0] < w[1]));
            }
            // What may have let shares go is never burned.
            if before.protocol_step == Some(ProtocolStep::Unmask) {
                let goes_on = state.is_over() || state.protocol_step >= before.protocol_step;
                prop_assert!(state.attempt == before.attempt && goes_on);
            }
            if state.outcome == Some(Outcome::Completed) {
                prop_assert!(state.contributors >= policy.min_contributors);
                prop_assert!(state.model.is_some());
            }
        }
    }
}
