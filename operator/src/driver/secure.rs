//! The masking protocol in a round: which roster, which attempt, and what its steps start from.

use std::collections::BTreeSet;
use std::sync::Arc;

use consilium_crds::study::SumFacts;
use consilium_federation::report::Report;
use consilium_federation::round::{EarlierSums, ProtocolStep, RosterChoice, RoundState, RoundStep};
use consilium_federation::task::TaskKind;
use consilium_federation::{Digest, SiteName};
use consilium_secagg::roster::{Roster, VerifiedRoster};
use consilium_secagg::spec::AttemptSpec;
use consilium_secagg::wire::Message;

use super::rosters::Known;
use super::{DriveError, Driver, Round};
use crate::attempts::{Inputs, Plan};
use crate::store::SignedSet;

/// The roster that most of the participants accept, the newest of several; and who of them is on it. Pure.
pub fn choose(
    rosters: &[Known],
    participants: &[SiteName],
    report: impl Fn(&SiteName) -> Option<Arc<Report>>,
) -> Option<RosterChoice> {
    let with = |roster: &Known| -> BTreeSet<SiteName> {
        let accepts = |site: &&SiteName| {
            roster.sites.contains(*site) && report(site).is_some_and(|report| report.rosters.contains(&roster.digest))
        };
        participants.iter().filter(accepts).cloned().collect()
    };
    // The first of the largest: rosters come newest first.
    let mut best: Option<RosterChoice> = None;
    for roster in rosters {
        let sites = with(roster);
        if !sites.is_empty() && best.as_ref().is_none_or(|best| sites.len() > best.sites.len()) {
            best = Some(RosterChoice { digest: roster.digest, sites });
        }
    }
    best
}

impl Driver {
    /// Whom the hospitals of a study were ever asked to sign for, whatever became of it: they remember each of them, so
    /// the hub does.
    pub(super) async fn earlier(&self, study_uid: &str) -> Result<EarlierSums, DriveError> {
        let sets = self.hub.store().signed_sets(study_uid).await;
        let sets = sets.map_err(DriveError::store("reading which sets of hospitals were signed"))?;
        let of = |kind: TaskKind| sets.iter().filter(|set| set.kind == kind).map(|set| set.sites.clone()).collect();
        Ok(EarlierSums { updates: of(TaskKind::Train), evaluations: of(TaskKind::Evaluate) })
    }

    /// Keeps whom the hospitals are asked to sign for, before any of them is asked.
    async fn keep_set(&self, round: &Round, state: &RoundState) -> Result<(), DriveError> {
        if state.protocol_step != Some(ProtocolStep::Agree) {
            return Ok(());
        }
        let set = SignedSet {
            round: round.spec.number,
            attempt: state.attempt,
            kind: kind(state),
            sites: state.in_attempt(ProtocolStep::Agree).into_iter().collect(),
        };
        let kept = self.hub.store().keep_signed_set(&round.spec.study_uid, &set).await;
        kept.map_err(DriveError::store("keeping which set of hospitals is signed"))
    }

    /// The open attempt as the hub's machine needs it; `None` when none is open or updates are not masked.
    pub(super) async fn plan(&self, round: &Round, state: &RoundState) -> Result<Option<Plan>, DriveError> {
        let (Some(step), Some(roster)) = (state.protocol_step, state.roster) else { return Ok(None) };
        let spec = self.study_spec(round.spec.spec_digest).await?;
        if !spec.is_masked() {
            return Ok(None);
        }
        let roster = self.relayed(roster).await?;
        let (base, study, kind) = (round.spec.base_model, round.study(), kind(state));
        let manifest = self.hub.manifest(base).await;
        let manifest = manifest.map_err(DriveError::store("reading the base model's manifest"))?;
        let facts = SumFacts {
            federation: &roster.roster().federation,
            study: &study,
            study_uid: &round.spec.study_uid,
            round: round.spec.number,
            kind,
            model: state.model.filter(|_| kind == TaskKind::Evaluate).unwrap_or(base),
            spec_digest: round.spec.spec_digest,
            schema: round.spec.tensor_schema,
            roster: Digest::from_bytes(roster.digest().0),
            participants: round.spec.participants.len() as u32,
            parameters: manifest.elements(),
        };
        let sum = spec.sum_spec(&facts).map_err(|e| DriveError::Invalid(e.to_string()))?;
        Ok(Some(Plan {
            round_uid: round.uid.clone(),
            attempt: AttemptSpec { round: sum, attempt: state.attempt },
            roster,
            step,
            advertised: state.in_attempt(ProtocolStep::Share),
            dealt: state.in_attempt(ProtocolStep::Upload),
            survivors: state.in_attempt(ProtocolStep::Agree),
        }))
    }

    async fn relayed(&self, digest: Digest) -> Result<VerifiedRoster, DriveError> {
        let bytes = self.hub.store().get_object(digest).await.map_err(DriveError::store("reading the roster"))?;
        let roster = Roster::from_bytes(&bytes).map_err(|e| DriveError::Invalid(format!("roster {digest}: {e}")))?;
        Ok(VerifiedRoster::relayed(roster))
    }

    /// Brings the hub's machine to the open step; answers what the hospitals start from.
    pub(super) async fn follow(&self, round: &Round, state: &RoundState) -> Result<Inputs, DriveError> {
        match self.plan(round, state).await? {
            Some(plan) => {
                self.keep_set(round, state).await?;
                Ok(self.hub.attempts().follow(self.hub.store(), &plan).await?)
            }
            None => Ok(Inputs::Nothing),
        }
    }

    /// As [`Self::follow`], for an open attempt: why it cannot go on at the hub, if it cannot and asking again will not
    /// help.
    pub(super) async fn follow_open(&self, round: &Round, state: &RoundState) -> Result<Option<String>, DriveError> {
        if state.roster.is_none() {
            return Ok(Some("the attempt was opened without a roster".into()));
        }
        match self.follow(round, state).await {
            Ok(_) => Ok(None),
            Err(error) if error.is_final() => Ok(Some(error.to_string())),
            Err(error) => Err(error),
        }
    }
}

fn kind(state: &RoundState) -> TaskKind {
    if state.step == RoundStep::Evaluating { TaskKind::Evaluate } else { TaskKind::Train }
}
