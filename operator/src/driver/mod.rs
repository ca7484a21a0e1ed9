//! What carries a round on, wherever it is written down: the shell of the round machine in `federation`, behind a port.
//!
//! A turn is read → decide (pure) → write, over the version that was read → effects, which follow from the state and can
//! be repeated. The controllers take turns over TrainingRounds of a cluster, `consilium local` over files; here is no
//! Kubernetes, and time comes in as an argument.

pub mod book;
pub mod decide;
mod error;
pub mod items;
pub mod rosters;
pub mod secure;
mod sums;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use consilium_crds::{FederatedStudySpec, TrainingRoundSpec, WrittenSpec};
use consilium_federation::assignment::Item;
use consilium_federation::round::{HubWork, Protocol, ProtocolStep, RoundPolicy, RoundState, RoundStep, hub_work};
use consilium_federation::task::TaskKind;
use consilium_federation::{Digest, SiteName, StudyKey};
use jiff::{SignedDuration, Timestamp};

use crate::aggregation::{Subject, SumJob};
use crate::attempts::Inputs;
use crate::hub::Hub;
use crate::news::News;
use crate::store::{BlobStore, UploadKey};
use book::{Book, Owner};
use decide::Facts;
pub use error::{DriveError, back_off};
use rosters::Known;
use sums::Sums;

/// When a round that nothing moves is looked at again, for what no event announces.
const IDLE: Duration = Duration::from_secs(60);
/// When it is looked whether hospitals that fell out of an attempt have been heard again.
const RETURNS: Duration = Duration::from_secs(2);
/// How long after its start the hub waits to hear the hospitals of a round before it judges by who has not spoken.
const SETTLE: SignedDuration = SignedDuration::from_mins(2);

/// A round as its store keeps it.
#[derive(Clone, Debug)]
pub struct Round {
    /// By which it is told from all others.
    pub uid: String,
    /// Namespace of its study.
    pub namespace: String,
    /// Its own name.
    pub name: String,
    /// The snapshot that it was made with.
    pub spec: TrainingRoundSpec,
    /// Where it stands; `None` before its first turn.
    pub state: Option<RoundState>,
    /// It is being deleted.
    pub deleting: bool,
    /// Why it is to end now, if it is: somebody says so, or it is being deleted.
    pub cancelled: Option<String>,
}

impl Round {
    /// Its study.
    pub fn study(&self) -> StudyKey {
        StudyKey::new(self.namespace.clone(), self.spec.study.clone())
    }

    /// Whose work its items are.
    pub fn owner(&self) -> Owner {
        Owner::Round { namespace: self.namespace.clone(), name: self.name.clone() }
    }
}

/// What one turn came to, to be written down.
pub struct Turn<'a> {
    /// The round as it was read.
    pub round: &'a Round,
    /// The state to write.
    pub after: &'a RoundState,
    /// The rules that it was decided by.
    pub policy: &'a RoundPolicy,
    /// What keeps the sum of its attempt from ending, if anything does.
    pub trouble: Option<String>,
    /// When.
    pub now: Timestamp,
}

/// Where rounds are written down.
pub trait RoundStore: Sync {
    /// Why a round was not written.
    type Error: From<DriveError>;

    /// Writes a turn, durably, unless somebody wrote the round since it was read: that is the fence against a second hub.
    fn write(&self, turn: &Turn<'_>) -> impl Future<Output = Result<(), Self::Error>> + Send;

    /// Whether the round is still there. Asked under the lock of the book: work that is put in while it stands is taken
    /// out when it goes.
    fn stands(&self, round: &Round) -> bool;
}

/// Asks for another turn of a piece of work.
pub type Wake = Arc<dyn Fn(&Owner) + Send + Sync>;

/// Drives all rounds of a hub.
pub struct Driver {
    hub: Hub,
    wake: Wake,
    started: Timestamp,
    sums: Sums,
    book: Mutex<Book>,
    specs: Mutex<HashMap<Digest, Arc<FederatedStudySpec>>>,
    cleaned: Mutex<BTreeSet<(String, u32)>>,
    rosters: Mutex<Arc<[Known]>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Driver {
    /// A driver that begins now. `wake` is called when a sum has ended.
    pub fn new(hub: Hub, started: Timestamp, wake: Wake) -> Self {
        Self {
            hub,
            wake,
            started,
            sums: Sums::default(),
            book: Mutex::default(),
            specs: Mutex::default(),
            cleaned: Mutex::default(),
            rosters: Mutex::new(Arc::from([])),
        }
    }

    /// The book of assignments. Never held over an await.
    pub fn book(&self) -> MutexGuard<'_, Book> {
        lock(&self.book)
    }

    /// Changes the book and publishes what changed, in one go, so that no older list overtakes a newer one.
    pub fn publish(&self, change: impl FnOnce(&mut Book) -> BTreeSet<SiteName>) {
        let mut book = self.book();
        for site in change(&mut book) {
            self.hub.publish(&site, book.items(&site));
            if let Some(assignment) = self.hub.assignment(&site) {
                book.sent(&site, &assignment.items, assignment.revision);
            }
        }
    }

    /// Takes note of what a hospital last said; answers whose work it concerns, and which tombstones without an object it
    /// has heard, by UID: they are off its list.
    pub fn hear(&self, site: &SiteName, news: &News) -> (BTreeSet<Owner>, Vec<String>) {
        let mut book = self.book();
        let report = self.hub.report(site);
        let heard = report.map(|(report, _)| book.heard(site, &report, self.hub.store().epoch()));
        let heard = heard.unwrap_or_default();
        let owners = match news {
            News::Nothing => BTreeSet::new(),
            News::Work(uids) => book.owners(site, |uid| uids.contains(uid) || heard.iter().any(|h| h == uid)),
            News::Everything => book.owners(site, |_| true),
        };
        (owners, book.lay_to_rest(site, &heard))
    }

    /// The rosters that attempts may open under, newest first.
    pub fn rosters(&self) -> Arc<[Known]> {
        lock(&self.rosters).clone()
    }

    /// Replaces them; whether they differ. Every hospital is offered the new ones.
    pub fn set_rosters(&self, rosters: Vec<Known>) -> bool {
        self.hub.set_rosters(rosters.iter().map(|roster| roster.signed).collect());
        let mut known = lock(&self.rosters);
        let differs = **known != *rosters;
        *known = rosters.into();
        differs
    }

    /// The spec that a round was made from, by its digest.
    ///
    /// # Errors
    /// When the store does not give it, or it is no study's spec.
    pub async fn study_spec(&self, digest: Digest) -> Result<Arc<FederatedStudySpec>, DriveError> {
        if let Some(spec) = lock(&self.specs).get(&digest) {
            return Ok(spec.clone());
        }
        let bytes = self.store().get_object(digest).await.map_err(DriveError::store("reading the study's spec"))?;
        let bad = |why: String| DriveError::Invalid(format!("object {digest} is not the spec of a study: {why}"));
        let written = serde_json::from_slice(&bytes).map_err(|e| bad(e.to_string()))?;
        let spec = WrittenSpec::of(written).read().map_err(|e| bad(e.to_string()))?;
        let spec = Arc::new(spec);
        let mut specs = lock(&self.specs);
        // A bound, not a policy: the specs of live rounds come back by themselves.
        if specs.len() >= 1024 {
            specs.clear();
        }
        specs.insert(digest, spec.clone());
        Ok(spec)
    }

    fn store(&self) -> &BlobStore {
        self.hub.store()
    }

    /// The rules of a round, with what is known of its hospitals now.
    ///
    /// # Errors
    /// [`DriveError::is_final`] when the study's spec cannot be had at all.
    pub async fn policy(&self, round: &Round, now: Timestamp) -> Result<RoundPolicy, DriveError> {
        let spec = self.study_spec(round.spec.spec_digest).await?;
        // Slow is whom one can wait for.
        let connected = |site: &&SiteName| self.hub.connected(site);
        let waited_for = round.spec.waited_for.iter().filter(connected).cloned().collect();
        let mut policy = spec.round_policy(waited_for).map_err(|e| DriveError::Invalid(e.to_string()))?;
        policy.starting = self.is_starting(round, now);
        if spec.is_masked() {
            let report = |site: &SiteName| self.hub.report(site).map(|(report, _)| report);
            policy.roster = secure::choose(&self.rosters(), &round.spec.participants, report);
            policy.earlier = self.earlier(&round.spec.study_uid).await?;
        }
        Ok(policy)
    }

    fn settled_at(&self) -> Option<Timestamp> {
        self.started.checked_add(SETTLE).ok()
    }

    /// Whether the hub has just started and a hospital of the round that may call has not reported since.
    fn is_starting(&self, round: &Round, now: Timestamp) -> bool {
        let silent = |site: &SiteName| self.hub.is_accepted(site) && self.hub.report(site).is_none();
        self.settled_at().is_some_and(|at| now < at) && round.spec.participants.iter().any(silent)
    }

    /// One turn of a round; answers it as it stands then.
    ///
    /// # Errors
    /// When something could not be read, written or done. What was written stays, and the next turn carries on from it.
    pub async fn turn<S: RoundStore>(
        &self,
        store: &S,
        round: Round,
        policy: &RoundPolicy,
        now: Timestamp,
    ) -> Result<Round, S::Error> {
        let facts = match self.read(&round, policy).await {
            Ok(facts) => Facts { cancelled: round.cancelled.clone(), ..facts },
            // What cannot be read must not keep a round from ending.
            Err(_) if round.cancelled.is_some() => Facts { cancelled: round.cancelled.clone(), ..Facts::default() },
            Err(error) => return Err(error.into()),
        };
        let start = round.state.clone().unwrap_or_else(|| decide::begin(&round.spec, now));
        let after = decide::advance(start, &facts, now, policy);
        let trouble = self.sums.trouble(&round.uid, after.attempt);
        store.write(&Turn { round: &round, after: &after, policy, trouble, now }).await?;
        let round = Round { state: Some(after), ..round };
        self.effects(store, &round).await?;
        Ok(round)
    }

    async fn read(&self, round: &Round, policy: &RoundPolicy) -> Result<Facts, DriveError> {
        let mut facts = Facts::default();
        let state = round.state.as_ref();
        for site in &round.spec.participants {
            let Some((report, heard)) = self.hub.report(site) else { continue };
            if state.is_none_or(|state| decide::counts(state, site, heard, self.hub.connected(site))) {
                facts.reports.extend(decide::of_round(&report, &round.uid).map(|r| (site.clone(), r.clone())));
            }
        }
        let Some(state) = state else { return Ok(facts) };
        if policy.protocol == Protocol::SecAgg && state.protocol_step.is_some() {
            // After a restart the machine is made from the journal here. What it refuses is a fact about the attempt.
            facts.broken = self.follow_open(round, state).await?;
        }
        if let (Some((step, waiting)), None) = (decide::awaited(state), &facts.broken) {
            facts.done = self.done(&round.uid, state, step, waiting).await?;
        }
        facts.sum = self.sums.outcome(&round.uid, state.attempt);
        Ok(facts)
    }

    /// Who of those waited for has done the open step.
    async fn done(
        &self,
        uid: &str,
        state: &RoundState,
        step: ProtocolStep,
        mut waiting: Vec<SiteName>,
    ) -> Result<Vec<SiteName>, DriveError> {
        if state.roster.is_some() {
            let heard = self.hub.attempts().heard(uid, state.attempt, step).await;
            waiting.retain(|site| heard.contains(site));
        }
        if step != ProtocolStep::Upload {
            return Ok(waiting);
        }
        let mut uploaded = Vec::new();
        for site in waiting {
            let key = UploadKey { round_uid: uid.to_owned(), attempt: state.attempt, site: site.clone() };
            let complete = self.store().upload_complete(&key).await;
            if complete.map_err(DriveError::store(format!("looking for the upload of {site}")))? {
                uploaded.push(site);
            }
        }
        Ok(uploaded)
    }

    /// Does what the state asks for; again is as good as once.
    async fn effects<S: RoundStore>(&self, store: &S, round: &Round) -> Result<(), DriveError> {
        let Some(state) = &round.state else { return Ok(()) };
        // What a step starts from lies in the store before anyone is told to take it.
        let inputs = self.follow(round, state).await?;
        self.offer(store, round, &inputs);
        if let Some(HubWork::Sum { attempt, kind, contributors }) = hub_work(state) {
            let job = self.sum_job(round, state, (attempt, kind, contributors)).await?;
            self.sums.start(self.store(), (&self.wake, round.owner()), job);
        }
        // The sum stands: what hospitals sent for it is no longer needed, and is kept no longer.
        let summed = state.step == RoundStep::Evaluating && state.protocol_step.is_none();
        if summed || state.is_over() {
            if let Some(model) = state.model.filter(|_| !self.is_clean(&round.uid, state.attempt)) {
                let kept = self.store().keep_origin(model, &round.namespace).await;
                kept.map_err(DriveError::store("keeping whose model this is"))?;
            }
            return self.close(&round.uid, state.attempt).await;
        }
        let spent = decide::spent(state);
        if spent > 0 && !self.is_clean(&round.uid, spent) {
            let gone = self.store().delete_attempts(&round.uid, spent).await;
            gone.map_err(DriveError::store("deleting the uploads of an attempt that came to nothing"))?;
            self.mark_clean(&round.uid, spent);
        }
        Ok(())
    }

    async fn sum_job(
        &self,
        round: &Round,
        state: &RoundState,
        (attempt, kind, contributors): (u32, TaskKind, Vec<SiteName>),
    ) -> Result<SumJob, DriveError> {
        let spec = self.study_spec(round.spec.spec_digest).await?;
        let masks = match self.plan(round, state).await? {
            Some(plan) => Some(self.hub.attempts().masks(self.store(), &plan).await?),
            None => None,
        };
        let subject = match kind {
            TaskKind::Evaluate => Subject::Evaluation,
            TaskKind::Train | TaskKind::Init => Subject::Updates {
                base_model: round.spec.base_model,
                clip: spec.clip().map_err(|e| DriveError::Invalid(e.to_string()))?,
                rule: spec.rule().map_err(|e| DriveError::Invalid(e.to_string()))?,
                moments: round.spec.moments.clone(),
            },
        };
        let roster_size = round.spec.participants.len() as u32;
        Ok(SumJob { round_uid: round.uid.clone(), attempt, contributors, subject, roster_size, masks })
    }

    /// Tells the hospitals what a round asks of them now.
    pub fn offer<S: RoundStore>(&self, store: &S, round: &Round, inputs: &Inputs) {
        self.publish(|book| {
            if !store.stands(round) {
                // It is gone, which takes its work out, or can no longer be read, which leaves that as it is.
                return BTreeSet::new();
            }
            let items = items::items(round, &book.acknowledged(&round.uid), inputs);
            book.set(&round.uid, &round.owner(), items)
        });
    }

    /// What a round asked of its hospitals before a restart, for the first list that they get.
    pub async fn asked_before(&self, round: &Round) -> BTreeMap<SiteName, Item> {
        let inputs = match &round.state {
            Some(state) => self.follow(round, state).await,
            None => Ok(Inputs::Nothing),
        };
        // Without what its step starts from, the item is left out, and comes with the round's first turn.
        let inputs = inputs.unwrap_or_else(|error| {
            tracing::warn!(round = round.name, %error, "an open attempt is taken up later");
            Inputs::Nothing
        });
        items::items(round, &BTreeSet::new(), &inputs)
    }

    /// Ends what is under way for the sums of a round, and deletes what hospitals sent for them up to this attempt.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn close(&self, uid: &str, attempt: u32) -> Result<(), DriveError> {
        self.sums.forget(uid);
        self.hub.attempts().forget(uid);
        if self.is_clean(uid, attempt) {
            return Ok(());
        }
        let gone = self.store().delete_round_uploads(uid).await;
        gone.map_err(DriveError::store("deleting the uploads of a finished round"))?;
        self.mark_clean(uid, attempt);
        Ok(())
    }

    /// Whether what was sent for a round up to this attempt was deleted since the start.
    fn is_clean(&self, uid: &str, attempt: u32) -> bool {
        lock(&self.cleaned).contains(&(uid.to_owned(), attempt))
    }

    fn mark_clean(&self, uid: &str, attempt: u32) {
        lock(&self.cleaned).insert((uid.to_owned(), attempt));
    }

    /// Forgets everything in memory about a round that is gone.
    pub fn forget(&self, uid: &str) {
        lock(&self.cleaned).retain(|(round, _)| round != uid);
        self.sums.forget(uid);
        self.hub.attempts().forget(uid);
        self.publish(|book| book.remove(uid));
    }

    /// When to take another turn of a round, whatever happens; `None` when it is over.
    pub fn next_turn(&self, state: &RoundState, policy: &RoundPolicy, now: Timestamp) -> Option<Duration> {
        if state.is_over() {
            return None;
        }
        // A little late, so that the deadline has passed when it is looked at.
        let late = |d: Duration| d.saturating_add(Duration::from_millis(5));
        // Whether one that fell out is back shows in when it was last heard, and that wakes nobody.
        let most = if decide::awaits_return(state) { RETURNS } else { Duration::MAX };
        let pause = decide::wake_in(state, now).map_or(IDLE, late).min(most);
        // From when on time limits count that may have run out.
        let settled = self.settled_at().filter(|_| policy.starting);
        let settled = settled.and_then(|at| Duration::try_from(at.duration_since(now)).ok());
        Some(settled.map_or(pause, |settled| pause.min(late(settled))))
    }
}
