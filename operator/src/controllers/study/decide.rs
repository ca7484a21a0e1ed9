//! How a study goes on from what is known. Pure.

use std::sync::Arc;

use consilium_crds::conditions::{ACCEPTED, Conditions, READY, RECONCILING, STALLED, SUSPENDED, status_of};
use consilium_crds::training_round::sites_through;
use consilium_crds::{FederatedStudy, FederatedStudyStatus, ModelRelease, TrainingRound};
use consilium_federation::round::{Outcome, RoundState};
use consilium_federation::{Digest, SiteName};
use jiff::Timestamp;
use kube::ResourceExt;

use super::accept::{self, Refusal, Sites};
use super::carry::Carry;
use super::hold::exhausted;
use super::lineage::SHARED_WITH;
use crate::controllers::init::decide::{self as init, Step, Try};
use crate::controllers::write::Note;
use crate::driver::rosters::Known;

/// Reason of a study that goes on.
pub(super) const RUNNING: &str = "Reconciling";

/// Everything that was read for one turn.
pub struct Facts {
    /// The study.
    pub study: Arc<FederatedStudy>,
    /// The hospitals that there are.
    pub sites: Sites,
    /// The rosters that there are, newest first.
    pub rosters: Arc<[Known]>,
    /// The study's own rounds, by number.
    pub rounds: Vec<Arc<TrainingRound>>,
    /// Rounds of an earlier study of this name are still there.
    pub leftovers: bool,
    /// A round of the study is there and cannot be read by this version.
    pub unread: bool,
    /// The study's own releases.
    pub releases: Vec<Arc<ModelRelease>>,
    /// The spec is in the store.
    pub spec_stored: bool,
    /// Where the first model stands.
    pub initial: Initial,
}

impl Facts {
    fn suspended(&self) -> bool {
        self.study.spec.suspend == Some(true)
    }
}

/// Where the first model stands.
#[derive(Clone, Debug, PartialEq)]
pub enum Initial {
    /// The study's status or a round names a model already; these Jobs of the Init task have ended.
    Past {
        /// Names of Jobs to delete.
        ended: Vec<String>,
    },
    /// `spec.initialModel.digest`, and whether the store holds it and this namespace may start from it.
    Named {
        /// The digest.
        model: Digest,
        /// In the store, with a manifest that parses.
        stored: bool,
    },
    /// `spec.initialModel.seed`: the Init task.
    Made {
        /// What a task delivered.
        delivered: Option<Digest>,
        /// Its tries.
        tries: Vec<Try>,
        /// Jobs for another version of the spec.
        stale: Vec<String>,
    },
}

/// Something to do outside.
#[derive(Clone, Debug, PartialEq)]
pub enum Act {
    /// Put the spec into the store.
    StoreSpec,
    /// Make a Job of the Init task.
    StartInit(u32),
    /// See that a Job has its credential.
    EnsureCredential(String),
    /// Delete Jobs of the Init task.
    DeleteJobs(Vec<String>),
    /// Cut a release from this round.
    Release {
        /// Number of the round.
        round: u32,
    },
    /// Archive and delete this round.
    Archive {
        /// Number of the round.
        round: u32,
    },
    /// Make a round.
    Start(NewRound),
}

/// A round to be made; the tensor schema comes from the model's manifest.
#[derive(Clone, Debug, PartialEq)]
pub struct NewRound {
    /// From 1.
    pub number: u32,
    /// Digest of the model to start from.
    pub base_model: Digest,
    /// What the server's rule remembers with it.
    pub moments: Vec<Digest>,
    /// The hospitals.
    pub participants: Vec<SiteName>,
    /// Those that are waited for.
    pub waited_for: Vec<SiteName>,
    /// What came before.
    pub carry: Carry,
}

/// What to do, and what to say.
#[derive(Clone, Debug)]
pub struct Plan {
    /// In this order.
    pub acts: Vec<Act>,
    /// Written after the acts.
    pub status: FederatedStudyStatus,
    /// Recorded after the status.
    pub notes: Vec<Note>,
}

pub(super) fn state(round: &TrainingRound) -> Option<&RoundState> {
    round.status.as_ref()?.round.as_ref()
}

fn whole(at: Timestamp) -> Timestamp {
    Timestamp::from_second(at.as_second()).unwrap_or(at)
}

pub(super) fn is_over(round: &TrainingRound) -> bool {
    state(round).is_some_and(RoundState::is_over)
}

/// Rounds whose model stands and is still being scored.
fn evaluating(rounds: &[Arc<TrainingRound>]) -> usize {
    rounds.iter().filter(|r| !is_over(r) && state(r).is_some_and(|s| s.model.is_some())).count()
}

/// Whether the study must wait before its next round. Hospitals train on a new model while they score it, so that an
/// evaluation is not in the way; but it may fall behind by one round only, or a hospital that evaluates slowly would
/// have ever more to do and the study ever older votes.
fn is_busy(rounds: &[Arc<TrainingRound>]) -> bool {
    let (running, evaluating) = (rounds.iter().filter(|r| !is_over(r)).count(), evaluating(rounds));
    running > evaluating || evaluating > 1
}

/// The newest model that a round made. The newest round names it, if only as what it starts from; but a round that someone
/// deleted may have made a newer one, which the status remembers. An older one would be no way back: hospitals that gave
/// their sum on it give no other.
pub fn newest_model(rounds: &[Arc<TrainingRound>], status: Option<&FederatedStudyStatus>) -> Option<Digest> {
    let remembered = status.and_then(|s| s.model);
    let Some(newest) = rounds.last() else { return remembered };
    if status.and_then(|s| s.current_round) > Some(newest.spec.number) && remembered.is_some() {
        return remembered;
    }
    state(newest).and_then(|s| s.model).or(Some(newest.spec.base_model))
}

/// What the server's rule remembers with the newest model. Nothing where another round made that one, or none: then the
/// rule begins anew.
pub(super) fn moments(rounds: &[Arc<TrainingRound>], model: Digest) -> Vec<Digest> {
    let Some(newest) = rounds.last() else { return Vec::new() };
    match state(newest) {
        Some(state) if state.model == Some(model) => state.moments.clone(),
        _ if newest.spec.base_model == model => newest.spec.moments.clone(),
        _ => Vec::new(),
    }
}

/// Decides one turn.
pub fn decide(facts: &Facts, now: Timestamp) -> Plan {
    let study = &facts.study;
    let known = study.status.clone().unwrap_or_default();
    let conditions = Conditions::from_status(&known.conditions, study.metadata.generation, now);
    let mut plan = Planner { facts, acts: Vec::new(), notes: Vec::new(), conditions, model: None };
    plan.model = newest_model(&facts.rounds, study.status.as_ref());
    plan.releases();
    plan.archive();
    let latest = facts.rounds.last();
    let newest = latest.and_then(|round| state(round));
    let number = latest.map(|r| r.spec.number).max(known.current_round).unwrap_or(0);
    let carry = match latest.filter(|r| r.spec.number == number) {
        Some(round) => Carry::before(round).after(state(round)),
        None => Carry::from_status(&known),
    };
    plan.advance(number, &carry);
    let status = FederatedStudyStatus {
        observed_generation: study.metadata.generation,
        spec_digest: Some(study.spec.digest()),
        current_round: (number > 0).then_some(number),
        sites: newest.map(sites_through),
        // For people, who read it as a column: to the second.
        deadline: newest.filter(|state| !state.is_over()).map(|state| whole(state.deadline)),
        rounds_succeeded: (number > 0).then_some(carry.succeeded),
        model: plan.model,
        latest_release: facts
            .releases
            .iter()
            .max_by_key(|r| r.spec.round)
            .map(|r| r.name_any())
            .or(known.latest_release),
        missed: carry.missed_list(),
        forgiven_through: if facts.suspended() { Some(number) } else { known.forgiven_through },
        conditions: plan.conditions.into_list(),
    };
    Plan { acts: plan.acts, status, notes: plan.notes }
}

/// The API server refuses what the study needs next: that stands where its people look, in place of what was decided. Told
/// once; each condition keeps the time of its last change.
pub fn not_admitted(
    study: &FederatedStudy,
    status: &mut FederatedStudyStatus,
    words: &str,
    now: Timestamp,
) -> Option<Note> {
    const REASON: &str = "NotAdmitted";
    let known = study.status.as_ref().map_or(&[][..], |status| &status.conditions);
    let mut conditions = Conditions::from_status(known, study.metadata.generation, now);
    conditions.set(READY, false, REASON, words).set(STALLED, true, REASON, words);
    let ours = |type_: &str| [READY, STALLED].contains(&type_);
    status.conditions.retain(|c| !ours(&c.type_) && c.type_ != RECONCILING);
    status.conditions.extend(conditions.into_list().into_iter().filter(|c| ours(&c.type_)));
    status.conditions.sort_by(|a, b| a.type_.cmp(&b.type_));
    let told = known.iter().any(|c| c.type_ == READY && c.reason == REASON);
    (!told).then(|| Note::warning(REASON, words.to_owned()))
}

pub(super) struct Planner<'a> {
    pub(super) facts: &'a Facts,
    pub(super) acts: Vec<Act>,
    pub(super) notes: Vec<Note>,
    pub(super) conditions: Conditions,
    pub(super) model: Option<Digest>,
}

impl Planner<'_> {
    fn releases(&mut self) {
        let cut = |round: &&Arc<TrainingRound>| {
            let passed = state(round)
                .is_some_and(|s| s.outcome == Some(Outcome::Completed) && s.gate.as_ref().is_some_and(|g| g.passed));
            passed && !self.facts.releases.iter().any(|r| r.spec.round == round.spec.number)
        };
        let acts: Vec<Act> =
            self.facts.rounds.iter().filter(cut).map(|r| Act::Release { round: r.spec.number }).collect();
        self.acts.extend(acts);
    }

    /// Finished rounds beyond the limit, oldest first; the newest round always stays.
    fn archive(&mut self) {
        let finished: Vec<_> = self.facts.rounds.iter().filter(|r| is_over(r)).collect();
        let limits = &self.facts.study.spec.rounds;
        let excess = finished.len().saturating_sub(limits.history_limit.max(1) as usize);
        // Those that are counted stay.
        let counts = |round: &&Arc<TrainingRound>| state(round).is_some_and(|s| s.outcome != Some(Outcome::Cancelled));
        let counted =
            finished.iter().rev().filter(|round| counts(round)).take(limits.backoff_limit.unwrap_or(0) as usize);
        let first = counted.last().map_or(u32::MAX, |round| round.spec.number);
        let excess = finished.iter().take(excess).filter(|round| round.spec.number < first).count();
        let old = finished.into_iter().take(excess).filter(|r| r.metadata.deletion_timestamp.is_none());
        self.acts.extend(old.map(|r| Act::Archive { round: r.spec.number }));
    }

    fn advance(&mut self, number: u32, carry: &Carry) {
        let study = self.facts.study.clone();
        let namespace = study.namespace().unwrap_or_default();
        let accepted = accept::accept(&namespace, &study.spec, &self.facts.sites);
        let rostered =
            |members: Vec<SiteName>| accept::rostered(&study.spec, &members, &self.facts.rosters).map(|()| members);
        let suspended = self.suspended(number);
        // A condition is set once a turn: one that is set to and fro has its transition now, and every write of it brings
        // the next turn.
        match accepted.and_then(rostered).and_then(|members| self.named().map(|()| members)) {
            Err(refusal) => self.refuse(&refusal),
            Ok(members) => {
                self.accepted(&members);
                if !suspended && self.initial() {
                    self.next_round(number, carry, members);
                }
                if suspended {
                    self.running().clear(RECONCILING);
                }
            }
        }
        self.succeeded(number, carry);
    }

    /// Whether the first model is there, if the study names one.
    fn named(&self) -> Result<(), Refusal> {
        let Initial::Named { model, stored: false } = &self.facts.initial else { return Ok(()) };
        let message = format!(
            "spec.initialModel.digest is {model}: there is no model of that digest that studies of this namespace may start \
             from; make a new study with the digest of a model that a round or a release in this namespace names, or ask \
             the owners of the release to name this namespace in its annotation {SHARED_WITH}"
        );
        Err(Refusal { reason: "InvalidReference", message })
    }

    fn refuse(&mut self, refusal: &Refusal) {
        let before = self.facts.study.status.as_ref().and_then(|s| status_of(&s.conditions, ACCEPTED));
        if before != Some("False") {
            self.notes.push(Note::warning(refusal.reason, refusal.message.clone()));
        }
        self.conditions
            .set(ACCEPTED, false, refusal.reason, &refusal.message)
            .set(READY, false, refusal.reason, &refusal.message)
            .set(STALLED, true, refusal.reason, &refusal.message)
            .clear(RECONCILING);
    }

    fn accepted(&mut self, members: &[SiteName]) {
        let before = self.facts.study.status.as_ref().and_then(|s| status_of(&s.conditions, ACCEPTED));
        let message = format!("{} hospitals may take part", members.len());
        if before != Some("True") {
            self.notes.push(Note::normal("Accepted", message.clone()));
        }
        self.conditions.set(ACCEPTED, true, "Accepted", &message);
        match accept::no_dropout_tolerance(&self.facts.study.spec, members.len() as u32) {
            Some(warning) => self.conditions.set("NoDropoutTolerance", true, "AllNeeded", warning),
            None => self.conditions.clear("NoDropoutTolerance"),
        };
        if !self.facts.spec_stored {
            self.acts.push(Act::StoreSpec);
        }
    }

    /// Whether nothing begins because somebody says so.
    fn suspended(&mut self, number: u32) -> bool {
        let before = self.facts.study.status.as_ref().and_then(|s| status_of(&s.conditions, SUSPENDED));
        if !self.facts.suspended() {
            if before == Some("True") {
                self.notes.push(Note::normal("Resumed", "spec.suspend is no longer true"));
            }
            self.conditions.clear(SUSPENDED);
            return false;
        }
        let running = self.facts.rounds.iter().any(|round| !is_over(round));
        let under_way = if running { format!("; round {number} goes on to its end") } else { String::new() };
        let message = format!("spec.suspend is true: no round begins until it is false{under_way}");
        if before != Some("True") {
            self.notes.push(Note::normal("Suspended", message.clone()));
        }
        self.conditions.set(SUSPENDED, true, "SpecSuspend", &message);
        true
    }

    /// The study waits for people.
    fn stall(&mut self, reason: &'static str, message: &str) {
        let known = self.facts.study.status.iter().flat_map(|s| &s.conditions).find(|c| c.type_ == STALLED);
        if known.is_none_or(|known| known.status != "True" || known.reason != reason) {
            self.notes.push(Note::warning(reason, message.to_owned()));
        }
        self.conditions.set(READY, false, reason, message).set(STALLED, true, reason, message).clear(RECONCILING);
    }

    /// Sees to the first model; true when there is one.
    fn initial(&mut self) -> bool {
        match &self.facts.initial {
            Initial::Past { ended } => {
                if !ended.is_empty() {
                    self.acts.push(Act::DeleteJobs(ended.clone()));
                }
                true
            }
            Initial::Named { model, .. } => {
                self.model = Some(*model);
                true
            }
            Initial::Made { delivered, tries, stale } => {
                if !stale.is_empty() {
                    self.acts.push(Act::DeleteJobs(stale.clone()));
                }
                let step = init::decide(*delivered, tries);
                self.make(step)
            }
        }
    }

    fn make(&mut self, step: Step) -> bool {
        match step {
            Step::Take(model) => {
                self.notes.push(Note::normal("InitialModel", format!("the first model is {model}")));
                self.model = Some(model);
                return true;
            }
            Step::Wait { job } => {
                self.preparing(&format!("Job {job} makes the first model"));
                self.acts.push(Act::EnsureCredential(job));
            }
            Step::Start(number) => {
                self.preparing("a Job makes the first model");
                self.acts.push(Act::StartInit(number));
            }
            Step::GiveUp { reason, message } => {
                self.stall(reason, &message);
            }
        }
        false
    }

    fn preparing(&mut self, message: &str) {
        self.conditions
            .set(READY, false, "PreparingModel", message)
            .set(RECONCILING, true, "PreparingModel", message)
            .clear(STALLED);
    }

    fn running(&mut self) -> &mut Conditions {
        self.conditions.set(READY, true, RUNNING, "the study is accepted and driven by the operator").clear(STALLED)
    }

    fn next_round(&mut self, number: u32, carry: &Carry, participants: Vec<SiteName>) {
        let study = &self.facts.study;
        let busy = is_busy(&self.facts.rounds);
        let Some(base_model) = self.model else { return };
        if busy || number >= study.spec.rounds.max || study.metadata.deletion_timestamp.is_some() {
            self.running().clear(RECONCILING);
            return;
        }
        if let Some(message) = self.spent(number, base_model) {
            return self.stall("SumUnusable", &message);
        }
        if let Some(message) = exhausted(study, &self.facts.rounds) {
            return self.stall("BackoffLimitExceeded", &message);
        }
        if self.facts.leftovers {
            let message = "waits until the rounds of a deleted study of the same name are gone";
            self.running().set(RECONCILING, true, "WaitingForDeletion", message);
            return;
        }
        if self.facts.unread {
            let message = "a round of this study cannot be read by this version of the operator, so that none begins beside \
                           it; see the conditions of its TrainingRounds, and update the operator or delete that round";
            return self.stall("UnreadableRound", message);
        }
        self.running().clear(RECONCILING);
        let waited_for = carry.waited_for(study.spec.rounds.straggler.max_missed, &participants);
        let number = number + 1;
        let moments = moments(&self.facts.rounds, base_model);
        self.acts.push(Act::Start(NewRound {
            number,
            base_model,
            moments,
            participants,
            waited_for,
            carry: carry.clone(),
        }));
    }

    /// Why no round can start from the newest model: its masked sum was given, once and for all, and could not be used.
    fn spent(&self, number: u32, base_model: Digest) -> Option<String> {
        let last = self.facts.rounds.last().filter(|r| r.spec.number == number && r.spec.base_model == base_model)?;
        let state = state(last).filter(|state| state.outcome == Some(Outcome::SumUnusable))?;
        Some(format!(
            "round {number}: {}; make a new study with spec.initialModel.digest {base_model}",
            state.message.as_deref().unwrap_or("the sum cannot be used")
        ))
    }
}
