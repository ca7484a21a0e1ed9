//! What the hospital says of itself: facts, kept whole, reported whole.
//!
//! One writer per field: `tasks` writes what a part in a round has come to, `link`
//! writes what became of its upload, `deployments` writes the models; the effective
//! fact of a round is put together here.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use consilium_federation::Digest;
use consilium_federation::clock::OtherClock;
use consilium_federation::ladder::Stage;
use consilium_federation::report::{DeployReport, RoundReport};
use consilium_federation::round::SiteReason;
use consilium_federation::task::TaskKind;
use jiff::Timestamp;
use tokio::sync::watch;

use crate::policy::{Barrier, Decision, ReleaseDecision};
use crate::words;

/// What became of an upload, by the hub's own answer.
#[derive(Clone, Debug, PartialEq)]
pub enum UploadFact {
    /// The hub holds all of it, durably.
    Submitted,
    /// The hub, or this agent before the first byte, refused it. Why, for the hospital's people.
    Rejected(String),
}

#[derive(Default)]
struct Inner {
    rounds: BTreeMap<(String, TaskKind), RoundReport>,
    uploads: BTreeMap<(String, TaskKind), UploadFact>,
    rosters: Vec<(Digest, bool)>,
    roster_trouble: Option<String>,
    hub_clock: OtherClock,
    other_hub_key: bool,
    overdue: Option<(usize, String)>,
    deployments: BTreeMap<String, DeployReport>,
    decisions: BTreeMap<(String, TaskKind), BTreeMap<Barrier, Decision>>,
    release_decisions: BTreeMap<String, ReleaseDecision>,
    stages: BTreeMap<String, Stage>,
}

/// The facts; a cheap clone of one shared set.
#[derive(Clone)]
pub struct Facts {
    inner: Arc<Mutex<Inner>>,
    version: Arc<watch::Sender<u64>>,
}

impl Default for Facts {
    fn default() -> Self {
        Self { inner: Arc::default(), version: Arc::new(watch::Sender::new(0)) }
    }
}

impl Facts {
    /// Sets what a part in a round has come to. Equal facts wake nobody.
    pub fn set_round(&self, report: RoundReport) {
        let key = (report.uid.clone(), report.kind);
        self.change(|inner| inner.rounds.insert(key, report.clone()).as_ref() != Some(&report));
    }

    /// Forgets a part in a round: the hub is told by its absence that this hospital is done with it.
    pub fn drop_round(&self, uid: &str, kind: TaskKind) {
        let key = (uid.to_owned(), kind);
        self.change(|inner| {
            inner.decisions.remove(&key);
            inner.uploads.remove(&key);
            inner.rounds.remove(&key).is_some()
        });
    }

    /// Forgets the parts of rounds that are nowhere any more: neither asked for, nor here.
    pub fn retain_rounds(&self, known: impl Fn(&str) -> bool) {
        self.change(|inner| {
            let before = inner.rounds.len();
            inner.decisions.retain(|(uid, _), _| known(uid));
            inner.uploads.retain(|(uid, _), _| known(uid));
            inner.rounds.retain(|(uid, _), _| known(uid));
            inner.rounds.len() != before
        });
    }

    /// Forgets the models that are nowhere any more.
    pub fn retain_models(&self, known: impl Fn(&str) -> bool) {
        self.change(|inner| {
            let before = inner.deployments.len();
            inner.release_decisions.retain(|uid, _| known(uid));
            inner.stages.retain(|uid, _| known(uid));
            inner.deployments.retain(|uid, _| known(uid));
            inner.deployments.len() != before
        });
    }

    /// The stage of a model as the ledger last said it, in this life of the agent.
    pub fn stage(&self, uid: &str) -> Option<Stage> {
        self.lock().stages.get(uid).copied()
    }

    /// The ledger says that a model stands on this stage.
    pub fn set_stage(&self, uid: &str, stage: Stage) {
        self.lock().stages.insert(uid.to_owned(), stage);
    }

    /// Sets or clears what became of a part's place in a sum. Written by `link` alone.
    pub fn set_upload(&self, uid: &str, kind: TaskKind, fact: Option<UploadFact>) {
        let key = (uid.to_owned(), kind);
        self.change(|inner| match fact {
            Some(fact) => inner.uploads.insert(key, fact.clone()).as_ref() != Some(&fact),
            None => inner.uploads.remove(&key).is_some(),
        });
    }

    /// What became of a part's place in a sum.
    pub fn upload(&self, uid: &str, kind: TaskKind) -> Option<UploadFact> {
        self.lock().uploads.get(&(uid.to_owned(), kind)).cloned()
    }

    /// Sets the digests of the rosters that hold here, and whether each lists this hospital with its key.
    pub fn set_rosters(&self, rosters: Vec<(Digest, bool)>) {
        self.change(|inner| {
            let changed = inner.rosters != rosters;
            inner.rosters = rosters;
            changed
        });
    }

    /// The digests of the rosters in whose attempts this hospital can take part.
    pub fn rosters(&self) -> Vec<Digest> {
        self.lock().rosters.iter().filter(|(_, listed)| *listed).map(|(digest, _)| *digest).collect()
    }

    /// Sets why an offered roster does not hold here. Never leaves the hospital.
    pub fn set_roster_trouble(&self, why: Option<String>) {
        self.change(|inner| {
            let changed = inner.roster_trouble != why;
            inner.roster_trouble = why;
            changed
        });
    }

    /// Why an offered roster does not hold here.
    pub fn roster_trouble(&self) -> Option<String> {
        self.lock().roster_trouble.clone()
    }

    /// Takes note of whether the hub's last signature over the ledger's end is by the key that the policy pins.
    pub fn set_countersigned_by_key(&self, by_key: bool) {
        self.change(|inner| std::mem::replace(&mut inner.other_hub_key, !by_key) == by_key);
    }

    /// Whether the hub signs the ledger's ends by another key than the pinned one.
    pub fn other_hub_key(&self) -> bool {
        self.lock().other_hub_key
    }

    /// Sets how many folders of tasks are there although nobody needs them, and what is known of it. Never leaves.
    pub fn set_overdue(&self, overdue: Option<(usize, String)>) {
        self.change(|inner| {
            let changed = inner.overdue != overdue;
            inner.overdue = overdue;
            changed
        });
    }

    /// Folders that nobody needs and that are there too long.
    pub fn overdue(&self) -> Option<(usize, String)> {
        self.lock().overdue.clone()
    }

    /// Takes note of what the hub says of its clock, by the steady one; `None` where it says nothing.
    pub fn hear_clock(&self, hub: Option<Timestamp>, steady: Timestamp) -> OtherClock {
        self.change(|inner| {
            let known = std::mem::take(&mut inner.hub_clock);
            inner.hub_clock = known.after(hub, steady);
            inner.hub_clock != known
        });
        self.hub_clock()
    }

    /// The hub's clock by the steady one; see [`crate::Context::hub_clock`].
    pub fn hub_clock(&self) -> OtherClock {
        self.lock().hub_clock
    }

    /// The effective fact of one part in a round.
    pub fn round(&self, uid: &str, kind: TaskKind) -> Option<RoundReport> {
        let inner = self.lock();
        inner.rounds.get(&(uid.to_owned(), kind)).map(|report| effective(report, &inner.uploads))
    }

    /// Sets the fact of a deployment.
    pub fn set_deploy(&self, report: DeployReport) {
        self.change(|inner| inner.deployments.insert(report.uid.clone(), report.clone()).as_ref() != Some(&report));
    }

    /// Forgets a deployment.
    pub fn drop_deploy(&self, uid: &str) {
        self.change(|inner| {
            inner.release_decisions.remove(uid);
            inner.deployments.remove(uid).is_some()
        });
    }

    /// Remembers the last decision on an item at a barrier. Never leaves the hospital and wakes nobody: what follows
    /// from a decision is a fact.
    pub fn set_decision(&self, uid: &str, kind: TaskKind, barrier: Barrier, decision: Decision) {
        self.lock().decisions.entry((uid.to_owned(), kind)).or_default().insert(barrier, decision);
    }

    /// The last decision on an item at a barrier.
    pub fn decision(&self, uid: &str, kind: TaskKind, barrier: Barrier) -> Option<Decision> {
        self.lock().decisions.get(&(uid.to_owned(), kind))?.get(&barrier).cloned()
    }

    /// The message of the last refusal with this reason, at whichever barrier.
    pub fn refusal(&self, uid: &str, kind: TaskKind, reason: SiteReason) -> Option<String> {
        let inner = self.lock();
        let decisions = inner.decisions.get(&(uid.to_owned(), kind))?;
        decisions.values().find_map(|decision| match decision {
            Decision::Refused { reason: found, message } if *found == reason => Some(message.clone()),
            _ => None,
        })
    }

    /// The last decision on a model.
    pub fn release_decision(&self, uid: &str) -> Option<ReleaseDecision> {
        self.lock().release_decisions.get(uid).cloned()
    }

    /// Remembers the last decision on a model. Never leaves the hospital.
    pub fn set_release_decision(&self, uid: &str, decision: ReleaseDecision) {
        self.lock().release_decisions.insert(uid.to_owned(), decision);
    }

    /// Everything that is reported to the hub, in a fixed order.
    pub fn snapshot(&self) -> (Vec<RoundReport>, Vec<DeployReport>) {
        let inner = self.lock();
        let rounds = inner.rounds.values().map(|report| effective(report, &inner.uploads)).collect();
        (rounds, inner.deployments.values().cloned().collect())
    }

    /// Wakes after every change; the value is a counter without meaning.
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }

    fn change(&self, act: impl FnOnce(&mut Inner) -> bool) {
        if act(&mut self.lock()) {
            self.version.send_modify(|version| *version += 1);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // A panic between two map operations leaves maps that are still whole.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An upload outweighs a good result only: a task that has meanwhile failed or been refused is reported as such.
fn effective(report: &RoundReport, uploads: &BTreeMap<(String, TaskKind), UploadFact>) -> RoundReport {
    let mut report = report.clone();
    if !matches!(report.reason, SiteReason::Ready | SiteReason::Evaluated) {
        return report;
    }
    match uploads.get(&(report.uid.clone(), report.kind)) {
        Some(UploadFact::Submitted) if report.kind == TaskKind::Train => report.reason = SiteReason::Submitted,
        Some(UploadFact::Submitted) => {}
        // Why may be the hub's own words, or a parser's; they stay here.
        Some(UploadFact::Rejected(_)) => {
            report.reason = SiteReason::Rejected;
            report.message = Some(words::STEP_REFUSED.to_owned());
        }
        None => {}
    }
    report
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ready(uid: &str) -> RoundReport {
        RoundReport {
            uid: uid.into(),
            kind: TaskKind::Train,
            reason: SiteReason::Ready,
            message: None,
            evaluation: None,
        }
    }

    /// The task controller says `Ready` on every turn; the hub must go on seeing that the upload is complete.
    #[test]
    fn an_upload_shows_over_ready_and_goes_with_the_round() {
        let facts = Facts::default();
        facts.set_round(ready("a"));
        facts.set_upload("a", TaskKind::Train, Some(UploadFact::Submitted));
        facts.set_round(ready("a"));
        assert_eq!(facts.round("a", TaskKind::Train).unwrap().reason, SiteReason::Submitted);
        facts.set_round(RoundReport { reason: SiteReason::DeniedByPolicy, ..ready("a") });
        assert_eq!(facts.snapshot().0[0].reason, SiteReason::DeniedByPolicy);
        facts.drop_round("a", TaskKind::Train);
        facts.set_round(ready("a"));
        assert_eq!(facts.round("a", TaskKind::Train).unwrap().reason, SiteReason::Ready);
    }

    /// A hub that names other rounds in each message would fill the agent's memory, and its own reports.
    #[test]
    fn what_is_nowhere_any_more_is_forgotten() {
        let facts = Facts::default();
        for uid in ["kept", "gone"] {
            facts.set_round(ready(uid));
            facts.set_upload(uid, TaskKind::Train, Some(UploadFact::Submitted));
            facts.set_decision(uid, TaskKind::Train, Barrier::Fetch, Decision::Allowed);
            facts.set_release_decision(uid, ReleaseDecision::Withdrawn);
        }
        facts.retain_rounds(|uid| uid == "kept");
        facts.retain_models(|uid| uid == "kept");
        assert_eq!(facts.snapshot().0.len(), 1);
        let of = |uid| {
            let upload = facts.upload(uid, TaskKind::Train).is_some();
            let decision = facts.decision(uid, TaskKind::Train, Barrier::Fetch).is_some();
            (upload, decision, facts.release_decision(uid).is_some())
        };
        assert_eq!((of("kept"), of("gone")), ((true, true, true), (false, false, false)));
    }

    /// Reports go out on changes: a reconcile that finds nothing new must not cost a message to the hub.
    #[test]
    fn equal_facts_wake_nobody() {
        let facts = Facts::default();
        facts.set_round(ready("a"));
        let mut changed = facts.changed();
        changed.mark_unchanged();
        facts.set_round(ready("a"));
        facts.drop_deploy("none");
        assert!(!changed.has_changed().unwrap());
        facts.drop_round("a", TaskKind::Train);
        assert!(changed.has_changed().unwrap());
    }
}
