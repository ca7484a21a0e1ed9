//! The masking protocol in a round: which roster, which attempt, and what its steps start from.

use std::collections::BTreeSet;
use std::sync::Arc;

use consilium_crds::TrainingRound;
use consilium_crds::study::SumFacts;
use consilium_federation::report::Report;
use consilium_federation::round::{EarlierSums, ProtocolStep, RosterChoice, RoundState, RoundStep};
use consilium_federation::task::TaskKind;
use consilium_federation::{Digest, SiteName, StudyKey};
use consilium_secagg::roster::{Roster, VerifiedRoster};
use consilium_secagg::spec::AttemptSpec;
use consilium_secagg::wire::Message;
use kube::ResourceExt;

use crate::attempts::{AttemptError, Inputs, Plan};
use crate::controllers::context::Context;
use crate::controllers::error::Error;
use crate::controllers::rosters::Known;

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

/// Who was in the sums of these rounds. Pure.
pub fn earlier(rounds: &[Arc<TrainingRound>]) -> EarlierSums {
    let mut sums = EarlierSums::default();
    let states = rounds.iter().filter_map(|round| round.status.as_ref()?.round.as_ref());
    for state in states {
        if state.model.is_some() {
            sums.updates.push(state.contributor_names().into_iter().collect());
        }
        // After the masked evaluation, `survived` speaks of it.
        if state.total.is_some() {
            let survived = state.sites.iter().filter(|s| s.survived).map(|s| s.site.clone());
            sums.evaluations.push(survived.collect());
        }
    }
    sums
}

/// The open attempt as the hub's machine needs it; `None` when none is open or updates are not masked.
pub async fn plan(
    context: &Context,
    round: &TrainingRound,
    uid: &str,
    state: &RoundState,
) -> Result<Option<Plan>, Error> {
    let (Some(step), Some(roster)) = (state.protocol_step, state.roster) else { return Ok(None) };
    let spec = context.study_spec(round.spec.spec_digest).await?;
    if !spec.is_masked() {
        return Ok(None);
    }
    let roster = relayed(context, roster).await?;
    let kind = if state.step == RoundStep::Evaluating { TaskKind::Evaluate } else { TaskKind::Train };
    let (base, study) =
        (round.spec.base_model, StudyKey::new(round.namespace().unwrap_or_default(), &round.spec.study));
    let manifest = context.hub.manifest(base).await.map_err(Error::store("reading the base model's manifest"))?;
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
    let sum = spec.sum_spec(&facts).map_err(|e| Error::Invalid(e.to_string()))?;
    Ok(Some(Plan {
        round_uid: uid.to_owned(),
        attempt: AttemptSpec { round: sum, attempt: state.attempt },
        roster,
        step,
        advertised: state.in_attempt(ProtocolStep::Share),
        dealt: state.in_attempt(ProtocolStep::Upload),
        survivors: state.in_attempt(ProtocolStep::Agree),
    }))
}

async fn relayed(context: &Context, digest: Digest) -> Result<VerifiedRoster, Error> {
    let bytes = context.hub.store().get_object(digest).await.map_err(Error::store("reading the roster"))?;
    let roster = Roster::from_bytes(&bytes).map_err(|e| Error::Invalid(format!("roster {digest}: {e}")))?;
    Ok(VerifiedRoster::relayed(roster))
}

/// Brings the hub's machine to the open step; answers what the hospitals start from.
pub async fn follow(context: &Context, round: &TrainingRound, uid: &str, state: &RoundState) -> Result<Inputs, Error> {
    match plan(context, round, uid, state).await? {
        Some(plan) => context.hub.attempts().follow(context.hub.store(), &plan).await.map_err(error),
        None => Ok(Inputs::Nothing),
    }
}

/// An attempt's fault as a reconcile's.
pub fn error(error: AttemptError) -> Error {
    match error {
        AttemptError::Store(error) => Error::store("the journal of an attempt")(error),
        AttemptError::Stopped => Error::Conflict(error.to_string()),
        AttemptError::Lost { .. } | AttemptError::Unreadable { .. } | AttemptError::Protocol(_) => {
            Error::Invalid(format!("the attempt cannot go on: {error}"))
        }
    }
}
