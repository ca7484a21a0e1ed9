use std::collections::{BTreeMap, BTreeSet};

use consilium_crds::conditions::{READY, STALLED, SUCCEEDED, status_of};
use consilium_crds::{TrainingRound, TrainingRoundStatus};
use consilium_federation::assignment::{ItemState, RoundWork, Work};
use consilium_federation::gate::{CaseSums, Vote};
use consilium_federation::report::{Evaluation, Report, RoundReport};
use consilium_federation::round::{
    Outcome, Protocol, ProtocolStep, RosterChoice, RoundPolicy, RoundState, RoundStep, SiteReason, Summed, hub_work,
};
use consilium_federation::task::TaskKind;
use consilium_federation::{Digest, SiteName};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::{decide, read};
use crate::attempts::Inputs;
use crate::controllers::testing::{SITES, at, completed, name, round, study_spec};
use crate::driver::book::{Book, Owner};
use crate::driver::decide::{self as drive, Facts, SumOutcome};
use crate::driver::items::items;
use crate::driver::rosters::Known;
use crate::driver::secure;

fn policy() -> RoundPolicy {
    study_spec().round_policy(BTreeSet::new()).unwrap()
}

fn report(kind: TaskKind, reason: SiteReason) -> RoundReport {
    RoundReport { uid: "round-1".into(), kind, reason, message: None, evaluation: None }
}

fn say(sites: &[&str], kind: TaskKind, reason: SiteReason) -> Vec<(SiteName, RoundReport)> {
    sites.iter().map(|s| (name(s), report(kind, reason))).collect()
}

fn voted(site: &str, vote: Vote) -> (SiteName, RoundReport) {
    let evaluation = Evaluation { vote, sums: Some(CaseSums { cases: 10, dice: 9.0 }), published: None };
    (name(site), RoundReport { evaluation: Some(evaluation), ..report(TaskKind::Evaluate, SiteReason::Evaluated) })
}

fn step_of(state: &RoundState) -> (RoundStep, Option<ProtocolStep>) {
    (state.step, state.protocol_step)
}

/// A hub and its hospitals in memory: the round object with its version, what hospitals say, and the book. Drives
/// the round as the controller does, without a cluster.
struct Driver {
    round: TrainingRound,
    version: u64,
    reports: Vec<(SiteName, RoundReport)>,
    uploads: BTreeSet<SiteName>,
    sum: Option<SumOutcome>,
    book: Book,
    revision: u64,
}

impl Driver {
    fn new() -> Self {
        Self {
            round: round(1, None),
            version: 0,
            reports: vec![],
            uploads: BTreeSet::new(),
            sum: None,
            book: Book::default(),
            revision: 0,
        }
    }

    fn state(&self) -> &RoundState {
        self.round.status.as_ref().unwrap().round.as_ref().unwrap()
    }

    /// One turn of the controller; true when it wrote.
    fn turn(&mut self, now: i64) -> bool {
        let before = self.round.status.as_ref().and_then(|s| s.round.clone());
        let start = before.unwrap_or_else(|| drive::begin(&self.round.spec, at(now)));
        let awaited = drive::awaited(&start).map(|(_, sites)| sites).unwrap_or_default();
        let facts = Facts {
            reports: self.reports.clone(),
            done: awaited.into_iter().filter(|s| self.uploads.contains(s)).collect(),
            broken: None,
            sum: self.sum.clone(),
            cancelled: self.round.metadata.deletion_timestamp.as_ref().map(|_| "deleted".to_owned()),
        };
        let after = drive::advance(start, &facts, at(now), &policy());
        let status = decide::status(&self.round, after, None, &policy(), at(now));
        let changed = self.round.status.as_ref() != Some(&status);
        if changed {
            self.round.status = Some(status);
            self.version += 1;
        }
        self.publish();
        changed
    }

    fn publish(&mut self) {
        let owner = Owner::Round { namespace: "research".into(), name: "hippocampus-1".into() };
        let wanted = items(&read(&self.round), &self.book.acknowledged("round-1"), &Inputs::Nothing);
        for site in self.book.set("round-1", &owner, wanted) {
            self.revision += 1;
            let items = self.book.items(&site);
            self.book.sent(&site, &items, self.revision);
        }
    }

    fn settle(&mut self, now: i64) {
        for _ in 0..10 {
            if !self.turn(now) {
                return;
            }
        }
        panic!("the round does not come to rest: every turn writes");
    }

    fn work(&self, site: &str) -> Option<(ItemState, RoundWork)> {
        let items = self.book.items(&name(site));
        items.first().map(|item| match &item.work {
            Work::Round(work) => (item.state, work.clone()),
            Work::Deploy(_) => panic!("a round gives no deployments"),
        })
    }
}

/// The whole way of a round, with every turn repeated until nothing changes.
#[test]
fn a_round_is_driven_from_the_offer_to_the_gate() {
    let mut driver = Driver::new();
    driver.settle(0);
    let (state, work) = driver.work("alder").unwrap();
    assert_eq!(
        (state, work.kind, work.model, work.attempt),
        (ItemState::Active, TaskKind::Train, Digest::of(b"base"), 0)
    );
    assert_eq!(work.roster_size, 4);
    driver.reports = say(&SITES, TaskKind::Train, SiteReason::Ready);
    driver.settle(10);
    let (_, work) = driver.work("damson").unwrap();
    assert_eq!((work.attempt, work.step), (1, Some(ProtocolStep::Upload)));
    driver.uploads = SITES.map(name).into();
    driver.settle(20);
    assert_eq!(step_of(driver.state()), (RoundStep::Aggregating, Some(ProtocolStep::Sum)));
    assert!(hub_work(driver.state()).is_some());
    assert_eq!(driver.work("alder").unwrap().1.step, None);
    driver.sum = Some(SumOutcome { attempt: 1, result: Ok(Summed::Model(Digest::of(b"new").into())) });
    driver.settle(30);
    let (_, work) = driver.work("alder").unwrap();
    assert_eq!((work.kind, work.model), (TaskKind::Evaluate, Digest::of(b"new")));
    // The old reports about training are still what hospitals said last; they say nothing about the evaluation.
    driver.reports.extend(SITES.map(|s| voted(s, Vote::Pass)));
    driver.settle(40);
    assert_eq!(driver.state().outcome, Some(Outcome::Completed));
    assert_eq!(driver.state().gate.as_ref().unwrap().global.as_deref(), Some("0.9000"));
    let status = driver.round.status.as_ref().unwrap();
    for type_ in [READY, "QuorumReached", "Aggregated", "Evaluated", SUCCEEDED] {
        assert_eq!(status_of(&status.conditions, type_), Some("True"), "{type_}");
    }
    assert_eq!(status.contributors, SITES.map(name));
    assert_eq!(driver.work("alder").unwrap().0, ItemState::Cancelled);
}

/// A hub that was killed finds its place from the object and the store alone: nobody is asked to train again.
#[test]
fn a_restarted_hub_goes_on_where_the_object_stands() {
    let mut driver = Driver::new();
    driver.settle(0);
    driver.reports = say(&SITES, TaskKind::Train, SiteReason::Ready);
    driver.settle(10);
    // Killed: reports, book and sums are gone; the object and the uploads are not.
    driver.reports.clear();
    driver.book = Book::default();
    driver.settle(15);
    assert_eq!(driver.work("alder").unwrap().1.step, Some(ProtocolStep::Upload));
    driver.uploads = SITES.map(name).into();
    driver.settle(20);
    driver.sum = None;
    driver.settle(25);
    let work = hub_work(driver.state());
    assert!(work.is_some(), "the sum is asked for again");
    driver.settle(26);
    assert_eq!(hub_work(driver.state()), work);
}

#[test]
fn a_hospital_that_refuses_is_left_out_and_the_round_goes_on() {
    let mut driver = Driver::new();
    driver.reports = say(&SITES[..3], TaskKind::Train, SiteReason::Ready);
    driver.reports.extend(say(&["damson"], TaskKind::Train, SiteReason::DeniedByPolicy));
    driver.settle(10);
    assert_eq!(step_of(driver.state()), (RoundStep::Aggregating, Some(ProtocolStep::Upload)));
    // It is still offered the round: its administrators may change their minds for the evaluation.
    assert_eq!(driver.work("damson").unwrap().1.step, None);
    driver.uploads = SITES[..3].iter().map(|s| name(s)).collect();
    driver.settle(20);
    assert_eq!(driver.state().in_attempt(ProtocolStep::Agree).len(), 3);
}

#[test]
fn a_sum_that_cannot_be_made_burns_the_attempt_and_hospitals_stay_ready() {
    let mut driver = Driver::new();
    driver.reports = say(&SITES, TaskKind::Train, SiteReason::Ready);
    driver.uploads = SITES.map(name).into();
    driver.settle(10);
    driver.settle(11);
    driver.sum = Some(SumOutcome { attempt: 1, result: Err("weights are zero".into()) });
    // The hub looks for uploads of the new attempt, and finds none.
    driver.uploads.clear();
    driver.settle(20);
    assert_eq!((driver.state().attempt, driver.state().protocol_step), (2, Some(ProtocolStep::Upload)));
    assert_eq!(driver.work("alder").unwrap().1.attempt, 2);
}

/// Deleting a study mid-round must reach every hospital, and must not hang on one that is gone.
#[test]
fn a_deleted_round_leaves_tombstones_until_they_are_acknowledged() {
    let mut driver = Driver::new();
    driver.reports = say(&SITES, TaskKind::Train, SiteReason::Training);
    driver.settle(10);
    driver.round.metadata.deletion_timestamp = Some(Time(at(20)));
    driver.settle(20);
    assert_eq!(driver.state().outcome, Some(Outcome::Cancelled));
    assert!(SITES.iter().all(|s| driver.work(s).unwrap().0 == ItemState::Cancelled));
    let said = |revision| Report {
        hub_epoch: "e".into(),
        revision,
        agent_version: String::new(),
        rosters: vec![],
        ledger: None,
        rounds: vec![],
        deployments: vec![],
    };
    let revision = driver.revision;
    for site in &SITES[..3] {
        // What a hospital said before it could know of the tombstone acknowledges nothing.
        assert!(driver.book.heard(&name(site), &said(revision - 4), "e").is_empty());
        driver.book.heard(&name(site), &said(revision), "e");
    }
    driver.settle(30);
    let left: Vec<_> = SITES.iter().filter(|s| driver.work(s).is_some()).collect();
    assert_eq!(left, [&"damson"]);
}

#[test]
fn items_follow_the_object() {
    let none = BTreeSet::new();
    // Without a state the round was offered to nobody.
    assert!(items(&read(&round(1, None)), &none, &Inputs::Nothing).is_empty());
    let over = round(1, Some(completed(b"new")));
    let states: BTreeMap<_, _> =
        items(&read(&over), &none, &Inputs::Nothing).into_iter().map(|(s, i)| (s, i.state)).collect();
    assert_eq!(states.len(), 4);
    assert!(states.values().all(|s| *s == ItemState::Cancelled));
    assert_eq!(items(&read(&over), &SITES.map(name).into(), &Inputs::Nothing), BTreeMap::new());
    // A deleted round is over for hospitals even if its state could not be written.
    let mut gone = round(1, Some(RoundState::new(SITES.map(name), at(0), at(60))));
    gone.metadata.deletion_timestamp = Some(Time(at(1)));
    assert!(items(&read(&gone), &none, &Inputs::Nothing).values().all(|i| i.state == ItemState::Cancelled));
}

/// A step is asked for only together with what it starts from: a hospital that took another hospital's bundle, or none,
/// could not go on.
#[test]
fn a_masked_step_is_asked_for_when_its_inputs_are_there() {
    let mut state = RoundState::new(SITES.map(name), at(0), at(60));
    (state.step, state.attempt, state.protocol_step) = (RoundStep::Aggregating, 1, Some(ProtocolStep::Advertise));
    state.roster = Some(Digest::of(b"roster"));
    state.sites.iter_mut().for_each(|site| site.member = true);
    let asked = |state: &RoundState, inputs: &Inputs| {
        let items = items(&read(&round(1, Some(state.clone()))), &BTreeSet::new(), inputs);
        let work = |site: &str| match &items.get(&name(site))?.work {
            Work::Round(work) => Some((work.step, work.inputs, work.roster)),
            Work::Deploy(_) => panic!("a round gives no deployments"),
        };
        (work("alder"), work("damson"))
    };
    let roster = Some(Digest::of(b"roster"));
    let advertise = Some((Some(ProtocolStep::Advertise), None, roster));
    assert_eq!(asked(&state, &Inputs::Nothing), (advertise, advertise));
    state.protocol_step = Some(ProtocolStep::Upload);
    // To a hospital, no step means that the attempt goes on without it, and it wipes its secrets; no item is no word.
    assert_eq!(asked(&state, &Inputs::Nothing), (None, None));
    let each = Inputs::Each([(name("alder"), Digest::of(b"a"))].into());
    let upload = Some((Some(ProtocolStep::Upload), Some(Digest::of(b"a")), roster));
    assert_eq!(asked(&state, &each), (upload, None));
}

/// A new hospital must neither stop a round nor enter it before the others accept a roster with its key.
#[test]
fn an_attempt_opens_under_the_roster_that_most_accept() {
    let known = |version: u64, sites: &[&str]| Known {
        version,
        digest: Digest::of(&version.to_be_bytes()),
        signed: Digest::of(b"signed"),
        sites: sites.iter().map(|s| name(s)).collect(),
    };
    let rosters = [known(2, &SITES), known(1, &SITES[..3])];
    let choose = |accepted: &[(&str, &[u64])]| {
        let report = |site: &SiteName| {
            let (_, versions) = accepted.iter().find(|(s, _)| name(s) == *site)?;
            let rosters = versions.iter().map(|v| Digest::of(&v.to_be_bytes())).collect();
            let (hub_epoch, agent_version) = (String::new(), String::new());
            let report = Report {
                hub_epoch,
                revision: 1,
                agent_version,
                rosters,
                ledger: None,
                rounds: vec![],
                deployments: vec![],
            };
            Some(std::sync::Arc::new(report))
        };
        let choice = secure::choose(&rosters, &SITES.map(name), report)?;
        Some((choice.digest == rosters[0].digest, choice.sites.len()))
    };
    let old: &[u64] = &[1];
    let both: &[u64] = &[1, 2];
    assert_eq!(choose(&[]), None);
    assert_eq!(choose(&[("alder", old), ("birch", old), ("cedar", both), ("damson", &[2])]), Some((false, 3)));
    assert_eq!(choose(&[("alder", both), ("birch", both), ("cedar", both)]), Some((true, 3)), "the newest of equals");
    assert_eq!(choose(&[("alder", both), ("birch", both), ("cedar", both), ("damson", &[2])]), Some((true, 4)));
}

/// A grace that is over while a slow hospital is waited for must not make the hub spin.
#[test]
fn the_next_look_lies_in_the_future() {
    let mut state = RoundState::new(SITES.map(name), at(0), at(3600));
    let seconds = |state: &RoundState, now| drive::wake_in(state, at(now)).map(|d| d.as_secs());
    assert_eq!(seconds(&state, 10), Some(3590));
    state.grace_until = Some(at(70));
    assert_eq!(seconds(&state, 10), Some(60));
    assert_eq!(seconds(&state, 70), Some(3530));
    assert_eq!(seconds(&state, 3600), None);
    assert_eq!(seconds(&completed(b"new"), 10), None);
}

#[test]
fn a_round_without_its_spec_says_so_and_keeps_its_state() {
    let running = round(1, Some(RoundState::new(SITES.map(name), at(0), at(60))));
    let status = decide::stalled(&running, "it is not in the store", at(5));
    assert_eq!(status.round, running.status.as_ref().unwrap().round);
    assert_eq!(status_of(&status.conditions, STALLED), Some("True"));
    let mut again = running;
    again.status = Some(status.clone());
    assert_eq!(decide::stalled(&again, "it is not in the store", at(9)), status);
    // Once it is back the round goes on as if nothing had been.
    let state = status.round.clone().unwrap();
    let mended: TrainingRoundStatus = decide::status(&again, state, None, &policy(), at(10));
    assert_eq!(status_of(&mended.conditions, STALLED), None);
}

#[test]
fn people_hear_of_each_transition_once() {
    let before = RoundState::new(SITES.map(name), at(0), at(3600));
    let facts = Facts { reports: say(&SITES, TaskKind::Train, SiteReason::Ready), ..Facts::default() };
    let after = drive::advance(before.clone(), &facts, at(120), &policy());
    let (notes, ended) = decide::transition(Some(&before), &after, at(120));
    assert_eq!(notes.iter().map(|n| n.reason).collect::<Vec<_>>(), ["AttemptOpened"]);
    let ended = ended.unwrap();
    assert_eq!((ended.step, ended.took.as_secs()), (RoundStep::Training, 120));
    assert_eq!(decide::transition(Some(&after), &after, at(130)), (vec![], None));
    let (notes, _) = decide::transition(None, &before, at(0));
    assert_eq!(notes[0].reason, "Offered");
}

/// A hospital that died after it said that it is ready must not open the next attempt as well, and the next.
#[test]
fn what_a_hospital_said_before_it_fell_out_does_not_bring_it_back() {
    let mut state = RoundState::new(SITES.map(name), at(0), at(60));
    state.missed_at = Some(at(50));
    state.sites[0].reason = SiteReason::Missed;
    for (heard, connected, expected) in [(40, true, false), (50, true, false), (51, false, false), (51, true, true)] {
        assert_eq!(drive::counts(&state, &name("alder"), at(heard), connected), expected, "{heard} {connected}");
    }
    assert!(drive::counts(&state, &name("birch"), at(40), false));
}

/// The one step that no time limit ends must say so where people and pipelines look, and say it once.
#[test]
fn a_round_that_waits_for_shares_beyond_its_time_is_stalled() {
    let mut state = RoundState::new(SITES.map(name), at(0), at(60));
    (state.step, state.attempt, state.protocol_step) = (RoundStep::Aggregating, 1, Some(ProtocolStep::Unmask));
    let mut running = round(1, Some(state.clone()));
    let on_time = decide::status(&running, state.clone(), None, &policy(), at(59));
    assert_eq!((status_of(&on_time.conditions, READY), status_of(&on_time.conditions, STALLED)), (Some("True"), None));
    running.status = Some(on_time);
    let late = decide::status(&running, state.clone(), None, &policy(), at(60));
    assert_eq!(
        (status_of(&late.conditions, READY), status_of(&late.conditions, STALLED)),
        (Some("False"), Some("True"))
    );
    running.status = Some(late.clone());
    assert_eq!(decide::status(&running, state, None, &policy(), at(99)), late);
}

/// What one hospital sent wrong must end the attempt, not the turns of the controller.
#[test]
fn an_attempt_that_breaks_at_the_hub_is_followed_by_another() {
    let roster = RosterChoice { digest: Digest::of(b"roster"), sites: SITES.map(name).into() };
    let policy = RoundPolicy { protocol: Protocol::SecAgg, roster: Some(roster), ..policy() };
    let mut state = RoundState::new(SITES.map(name), at(0), at(3600));
    let ready = Facts { reports: say(&SITES, TaskKind::Train, SiteReason::Ready), ..Facts::default() };
    state = drive::advance(state, &ready, at(1), &policy);
    assert_eq!((state.attempt, state.protocol_step), (1, Some(ProtocolStep::Advertise)));
    let broken = Facts { broken: Some("the advert of alder repeats a key".into()), ..ready };
    state = drive::advance(state, &broken, at(2), &policy);
    assert_eq!((state.attempt, state.protocol_step), (2, Some(ProtocolStep::Advertise)));
}

/// What hospitals sent for an attempt that was burned is of no use to the one that follows, and must not fill the volume
/// for as long as the round lasts; what the open one needs must stay.
#[test]
fn only_attempts_that_came_to_nothing_are_spent() {
    let mut state = RoundState::new(SITES.map(name), at(0), at(3600));
    assert_eq!(drive::spent(&state), 0);
    (state.attempt, state.protocol_step) = (1, Some(ProtocolStep::Upload));
    assert_eq!(drive::spent(&state), 0);
    state.protocol_step = None;
    assert_eq!(drive::spent(&state), 1);
    (state.attempt, state.protocol_step) = (2, Some(ProtocolStep::Sum));
    assert_eq!(drive::spent(&state), 1);
}

/// A sum that a full volume keeps from ending is said where people look, with what keeps it.
#[test]
fn a_sum_that_takes_too_long_is_told_with_its_reason() {
    let mut state = RoundState::new(SITES.map(name), at(0), at(60));
    (state.step, state.attempt, state.protocol_step) = (RoundStep::Aggregating, 1, Some(ProtocolStep::Sum));
    let status = |now| decide::status(&round(1, None), state.clone(), Some("the volume is full"), &policy(), at(now));
    assert_eq!(status_of(&status(59).conditions, STALLED), None);
    let late = status(60);
    let ready = late.conditions.iter().find(|c| c.type_ == READY).unwrap();
    assert_eq!((ready.status.as_str(), ready.reason.as_str()), ("False", "SumOverdue"));
    assert!(ready.message.contains("the volume is full"), "{}", ready.message);
}
