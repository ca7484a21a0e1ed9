//! The hospital's side: what the hub asks for is compared with what the hospital
//! allows, carried out as Jobs and Deployments, and reported as facts.
//!
//! **Belongs here:** the veto ladder (`policy`), what must survive a restart
//! (`state`), the one connection to the hub (`link`), the hospital's own objects
//! (`site`, `tasks`, `deployments`), what stops them when all else fails (`guard`) and
//! the port that task pods dial (`taskport`).
//! **Does not belong here:** rules that the hub shares (`federation`), wire
//! conversions (`proto`), what trains (`trainer`).
//!
//! Kubernetes calls stand in `site`, `tasks`, `deployments`, `guard` and the wiring;
//! sockets in `link`, `taskport`, `admin` and the wiring.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod admin;
pub mod audit;
pub mod config;
pub mod courier;
pub mod deployments;
pub mod edge;
pub mod facts;
pub mod guard;
pub mod link;
pub mod metrics;
pub mod policy;
pub mod site;
pub mod state;
pub mod taskport;
pub mod tasks;
pub mod volume;
pub mod words;

use std::sync::Arc;

use consilium_clinical::plan::ClinicalPlan;
use consilium_crds::roster::site_id;
use consilium_crds::site_policy::SitePolicySpec;
use consilium_crds::{FederatedStudySpec, ModelReleaseSpec, SitePolicy};
use consilium_federation::SiteName;
use consilium_federation::assignment::{Assignment, DeployWork, ItemState, RoundWork};
use consilium_federation::clock::OtherClock;
use consilium_federation::ladder::Stage;
use consilium_federation::round::SiteReason;
use consilium_federation::task::TaskKind;
use consilium_secagg::roster::{Governance, VerifiedRoster};
use consilium_secagg::spec::Purpose;
use jiff::Timestamp;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub use config::Config;
pub use edge::{Clock, Entropy};
pub use facts::Facts;
pub use link::ObjectCache;
pub use metrics::Metrics;
pub use policy::{Barrier, Decision, ReleaseDecision};
pub use state::{State, StateError};

/// Version of the agent, as it is told to the hub.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// What every part of the agent works with. Made once, in the wiring.
pub struct Context {
    /// The command line.
    pub config: Config,
    /// This hospital's name, from its own certificate.
    pub site: SiteName,
    /// What survives a restart.
    pub state: State,
    /// What is reported to the hub.
    pub facts: Facts,
    /// What the hub wants, as accepted and stored; empty before the first.
    pub desired: watch::Receiver<Arc<Assignment>>,
    /// What the hospital allows; `None` while there is no SitePolicy `default`.
    pub policy: watch::Receiver<Option<Arc<SitePolicy>>>,
    /// Immutable objects of the hub, verified and cached on the volume.
    pub objects: ObjectCache,
    /// The hospital's API server.
    pub kube: kube::Client,
    /// Prometheus metrics.
    pub metrics: Metrics,
    /// What the task controllers tell the task port.
    pub desk: tasks::Desk,
    /// Whether task pods are kept from the network; written by the probe in `tasks`.
    pub enforcement: watch::Sender<Enforcement>,
    /// What has happened and is not in the ledger yet.
    pub unrecorded: state::Unrecorded,
    /// The hazards of models that this hospital has seen.
    pub hazards: policy::SeenHazards,
    /// The time.
    pub clock: Clock,
    /// Randomness.
    pub entropy: Entropy,
    /// Cancelled on SIGTERM: finish what is under way and return.
    pub shutdown: CancellationToken,
}

impl Context {
    /// The time now.
    pub fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// Takes note of what the hub says of its clock at a time of the steady one.
    pub fn heard_clock(&self, hub: Option<Timestamp>, steady: Timestamp) {
        self.facts.hear_clock(hub, steady);
        if let OtherClock::Ahead(by) = self.hub_clock() {
            self.metrics.hub_clock_ahead.set(by.as_secs_f64());
        }
    }

    /// The hub's clock beside ours as it shows now. The hub's deadlines are read by it: setting our clock, which is what
    /// people do when the two are apart, brings none of them nearer.
    pub fn hub_clock(&self) -> OtherClock {
        let behind = self.clock.steady().duration_since(self.now());
        self.facts.hub_clock().beside(behind)
    }

    /// The policy in force now.
    pub fn site_policy(&self) -> Option<Arc<SitePolicy>> {
        self.policy.borrow().clone()
    }

    /// The policy in force now, which the ledger says before anything is decided or said by it.
    pub fn in_force(&self) -> Result<Option<Arc<SitePolicy>>, StateError> {
        let policy = self.site_policy();
        let meta = policy.as_deref().map(|policy| &policy.metadata);
        let uid = meta.and_then(|meta| meta.uid.clone());
        if self.state.is_news(uid, meta.and_then(|meta| meta.generation))? {
            let (written, now) = (site::in_force(policy.as_deref()), self.now());
            if let Err(error) = self.state.append(written.clone(), now) {
                tracing::error!(%error, "an edit of the SitePolicy holds and could not be written down; it is written later");
                self.unrecorded.push(written, now);
            }
        }
        Ok(policy)
    }

    /// Runs the veto ladder at a barrier with the policy in force now. A decision that differs from the last one for
    /// this item is written to the ledger and counted.
    ///
    /// `uid` is the item's; `spec` the study's spec fetched by `work.spec_digest`, or `None` while it is not at hand,
    /// which is enough for the rungs that do not need it.
    pub fn judge(
        &self,
        uid: &str,
        work: &RoundWork,
        spec: Option<&FederatedStudySpec>,
        barrier: Barrier,
    ) -> Result<Decision, StateError> {
        let policy = self.in_force()?;
        if let Some(policy) = &policy {
            site::check_volume(self, policy)?;
        }
        let enforcement = self.enforcement.borrow().clone();
        let secure = match (&policy, spec) {
            (Some(policy), Some(spec)) if spec.is_masked() => self.secure_facts(uid, work, &policy.spec)?,
            _ => policy::SecureFacts::default(),
        };
        let inputs = policy::LadderInputs {
            work,
            policy: policy.as_deref().map(|p| &p.spec),
            spec,
            enforcement: &enforcement,
            secure: &secure,
            barrier,
        };
        let decision = match policy::ladder(&inputs) {
            Decision::Allowed if !self.state.is_round(uid, work)? => Decision::refused(
                SiteReason::DeniedByPolicy,
                format!(
                    "the hub offers round {} of study {} under the UID of another round ({uid}), whose task or result \
                     is still here; nothing is done for either until the hub withdraws that UID",
                    work.round, work.study
                ),
            ),
            decision => decision,
        };
        self.record(uid, work, barrier, &decision)?;
        Ok(decision)
    }

    /// Whether a new task that the ladder allows is one too many; so many tasks are under way, and evaluations of them.
    pub fn judge_amount(
        &self,
        uid: &str,
        work: &RoundWork,
        (running, evaluating): (u32, u32),
    ) -> Result<Decision, StateError> {
        let Some(policy) = self.in_force()? else { return Ok(Decision::SpecNeeded) };
        let (taken, today) = (self.state.taken(work)?, self.state.taken_within_a_day(self.now())?);
        let (rounds, gpu_seconds) = (today.other_rounds(work), tasks::gpus::spent(&self.state, self.now())?);
        let spent = policy::Spent { taken, today: today.tasks, rounds, running, evaluating, gpu_seconds };
        let decision = policy::amount(uid, work, &policy.spec, &spent);
        self.record(uid, work, Barrier::Amount, &decision)?;
        Ok(decision)
    }

    /// Refuses a part in a round of a study whose approved spec this agent cannot read in full, and records that.
    pub fn not_understood(
        &self,
        uid: &str,
        work: &RoundWork,
        barrier: Barrier,
        why: &str,
    ) -> Result<Decision, StateError> {
        let decision = Decision::refused(SiteReason::SpecChanged, format!("study {}: {why}", work.study));
        self.record(uid, work, barrier, &decision)?;
        Ok(decision)
    }

    /// What this hospital knows itself about masked sums, for one part in a round.
    fn secure_facts(
        &self,
        uid: &str,
        work: &RoundWork,
        policy: &SitePolicySpec,
    ) -> Result<policy::SecureFacts, StateError> {
        let rosters = match policy::governance(policy) {
            Ok(Some(governance)) => self.rosters_seen(&governance)?,
            // The rung says what is wrong with the governance.
            Ok(None) | Err(_) => Vec::new(),
        };
        let restored = self.state.rolled_back()?;
        Ok(policy::SecureFacts {
            rosters,
            roster_trouble: self.facts.roster_trouble(),
            released: self.released_elsewhere(uid, work)?,
            closed: restored.and_then(|r| r.closed(&work.study, &work.study_uid).cloned()),
        })
    }

    /// The rosters that hold here under this governance, oldest first.
    pub fn rosters_seen(&self, governance: &Governance) -> Result<Vec<policy::RosterSeen>, StateError> {
        let key = self.state.site_key(&self.entropy)?.public();
        let site = site_id(&self.site);
        let book = self.state.rosters(governance)?;
        let seen = |roster: &VerifiedRoster| policy::RosterSeen {
            digest: state::hub_digest(roster.digest()),
            version: roster.version(),
            lists_us: roster.key(&site) == Some(&key),
        };
        Ok(book.accepted().iter().map(seen).collect())
    }

    /// The session in which shares for this study, purpose and model left, unless it is the attempt that is open: that
    /// one may be finished, and its round may end.
    fn released_elsewhere(&self, uid: &str, work: &RoundWork) -> Result<Option<String>, StateError> {
        let purpose = match work.kind {
            TaskKind::Evaluate => Purpose::Evaluate,
            TaskKind::Train | TaskKind::Init => Purpose::Train,
        };
        let study = format!("{}@{}", work.study, work.study_uid);
        for released in self.state.history()?.released {
            let same = released.study == study
                && released.purpose == purpose
                && state::hub_digest(released.subject) == work.model;
            if !same {
                continue;
            }
            let here = self
                .state
                .released_in(&released)?
                .is_some_and(|key| key.round_uid == uid && (work.step.is_none() || key.attempt == work.attempt));
            if !here {
                return Ok(Some(released.sid.to_string()));
            }
        }
        Ok(None)
    }

    /// Takes up what the hospital's own API server said to an object of this part, as a decision like the ladder's.
    pub fn admitted(&self, uid: &str, work: &RoundWork, refusal: Option<&str>) -> Result<(), StateError> {
        let decision = refusal.map_or(Decision::Allowed, |why| Decision::refused(SiteReason::DeniedByPolicy, why));
        self.record(uid, work, Barrier::Admission, &decision)
    }

    fn record(&self, uid: &str, work: &RoundWork, barrier: Barrier, decision: &Decision) -> Result<(), StateError> {
        let unchanged = self.facts.decision(uid, work.kind, barrier).as_ref() == Some(decision);
        if unchanged || *decision == Decision::SpecNeeded {
            return Ok(());
        }
        let message = decision.message().unwrap_or_default();
        let reason = decision.reason_name();
        tracing::info!(study = %work.study, round = work.round, ?barrier, reason, message, "decision");
        let entry = state::Entry::Decision {
            subject: uid.to_owned(),
            study: work.study.clone(),
            round: work.round,
            kind: work.kind,
            barrier,
            allowed: *decision == Decision::Allowed,
            reason: reason.to_owned(),
            message: message.to_owned(),
        };
        let before = self.facts.decision(uid, work.kind, barrier) == Some(Decision::Allowed);
        self.keep(entry, *decision == Decision::Allowed, before)?;
        self.metrics.decisions.with_label_values(&[reason]).inc();
        self.facts.set_decision(uid, work.kind, barrier, decision.clone());
        Ok(())
    }

    /// Writes a decision down. A yes holds only once it is written; a no holds at once, and is written when it can be.
    /// One that was no yes before is only counted where the hub has more refused than a ledger can hold.
    fn keep(&self, entry: state::Entry, allowed: bool, before: bool) -> Result<(), StateError> {
        let now = self.now();
        if allowed {
            return self.state.append(entry, now).map(drop);
        }
        let counted = if before { Some(0) } else { self.unrecorded.refusal(now) };
        let Some(counted) = counted else { return Ok(()) };
        let counted = (counted > 0).then_some(state::Entry::Refusals { entries: counted });
        for entry in counted.into_iter().chain([entry]) {
            if let Err(error) = self.state.append(entry.clone(), now) {
                tracing::error!(%error, "a refusal holds and could not be written down; it is written later");
                self.unrecorded.push(entry, now);
            }
        }
        Ok(())
    }

    /// Runs the release ladder with the policy in force now. A decision that differs from the last one for this item
    /// is written to the ledger and counted.
    pub fn judge_release(
        &self,
        uid: &str,
        work: &DeployWork,
        item: ItemState,
        (release, plan): (&ModelReleaseSpec, Option<&ClinicalPlan>),
        in_use: bool,
    ) -> Result<ReleaseDecision, StateError> {
        let (policy, hazards) = (self.in_force()?, self.hazards.known());
        let hospital = self.hospital(policy.as_deref(), Some(&*hazards));
        let (site, state) = (&self.site, item);
        let decision = policy::release(&policy::ReleaseInputs { work, state, release, plan, site, hospital, in_use });
        self.record_release(uid, work, &decision)?;
        Ok(decision)
    }

    /// What models are held against now.
    pub(crate) fn hospital<'a>(
        &self,
        policy: Option<&'a SitePolicy>,
        hazards: Option<&'a policy::Hazards>,
    ) -> policy::Hospital<'a> {
        let image = self.config.serving_image();
        policy::Hospital { policy: policy.map(|policy| &policy.spec), hazards, image, now: self.now() }
    }

    /// Runs the rungs of the release ladder for which the release need not be at hand; only a refusal is a decision.
    pub fn judge_room(
        &self,
        uid: &str,
        work: &DeployWork,
        in_use: bool,
    ) -> Result<Option<ReleaseDecision>, StateError> {
        let decision = policy::of_policy(in_use, self.in_force()?.as_deref().map(|p| &p.spec));
        if let Some(decision) = &decision {
            self.record_release(uid, work, decision)?;
        }
        Ok(decision)
    }

    fn record_release(&self, uid: &str, work: &DeployWork, decision: &ReleaseDecision) -> Result<(), StateError> {
        if self.facts.release_decision(uid).as_ref() == Some(decision) {
            return Ok(());
        }
        let (allowed, message) = match decision {
            ReleaseDecision::Allowed(_) => (true, String::new()),
            ReleaseDecision::Withdrawn => (false, "the hub withdrew the promotion".to_owned()),
            ReleaseDecision::Refused { message, .. } => (false, message.clone()),
        };
        tracing::info!(release = work.release, stage = %work.stage, allowed, message, "release decision");
        let (subject, release, stage) = (uid.to_owned(), work.release.clone(), work.stage.to_string());
        let before = matches!(self.facts.release_decision(uid), Some(ReleaseDecision::Allowed(_)));
        self.keep(state::Entry::ReleaseDecision { subject, release, stage, allowed, message }, allowed, before)?;
        self.facts.set_release_decision(uid, decision.clone());
        Ok(())
    }

    /// Writes down that a model stands on another stage from now on. A rise holds only once it is written; a fall holds at
    /// once, and is written when it can be.
    pub fn record_stage(
        &self,
        uid: &str,
        release: &str,
        before: Option<Stage>,
        after: Stage,
        because: Option<&str>,
    ) -> Result<(), StateError> {
        let from = before.map_or("none".to_owned(), |stage| stage.to_string());
        let why = because.map(|because| format!(": {because}")).unwrap_or_default();
        let message = format!("it stands on {after} and stood on {from}{why}");
        tracing::info!(release, stage = %after, from, because, "a model stands on another stage");
        let (subject, release, stage) = (uid.to_owned(), release.to_owned(), after.to_string());
        let entry = state::Entry::ReleaseDecision { subject, release, stage, allowed: true, message };
        if Some(after) < before {
            self.metrics.stage_falls.inc();
        }
        match self.state.append(entry.clone(), self.now()) {
            Err(error) if Some(after) < before => {
                tracing::error!(%error, "a model's fall holds and could not be written down; it is written later");
                self.unrecorded.push(entry, self.now());
                Ok(())
            }
            other => other.map(drop),
        }
    }
}

/// Whether task pods are kept from the network.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Enforcement {
    /// Not probed yet: no task starts.
    #[default]
    Unknown,
    /// A probe pod could not reach the API server.
    Enforced,
    /// It could: no task starts. What was reached, and what to do.
    NotEnforced(String),
}
