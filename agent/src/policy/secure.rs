//! The rungs of a study whose updates are masked: whose keys hold, how few may be summed, and no sum twice.

use consilium_crds::roster::parse_key;
use consilium_crds::site_policy::{SitePolicySpec, SurvivorDifference};
use consilium_crds::study::Secure;
use consilium_federation::Digest;
use consilium_federation::assignment::RoundWork;
use consilium_federation::round::SiteReason;
use consilium_secagg::client::Floors;
use consilium_secagg::history::DifferenceRule;
use consilium_secagg::roster::Governance;

use super::rungs::{Rung, deny};
use super::{Decision, opt_in};
use crate::state::Closed;

/// What this hospital knows itself about masked sums.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SecureFacts {
    /// The rosters that hold here under the pinned governance, oldest first.
    pub rosters: Vec<RosterSeen>,
    /// Why an offered one does not.
    pub roster_trouble: Option<String>,
    /// The session in which shares for this study, purpose and model were released, in another attempt than this.
    pub released: Option<String>,
    /// The volume was restored from a backup, and the study closed until the policy says from which round on.
    pub closed: Option<Closed>,
}

/// A roster that holds here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RosterSeen {
    /// Its digest, without signatures.
    pub digest: Digest,
    /// Its version.
    pub version: u64,
    /// It lists this hospital with the key on its volume.
    pub lists_us: bool,
}

/// The governance that the policy pins; `None` when it pins none.
///
/// # Errors
/// A key that is none, in words for an administrator.
pub fn governance(policy: &SitePolicySpec) -> Result<Option<Governance>, String> {
    let Some(pinned) = &policy.governance else { return Ok(None) };
    let key = |key: &consilium_crds::site_policy::GovernanceKey| {
        parse_key(&key.id, &key.public_key)
            .map_err(|error| format!("SitePolicy spec.governance.keys[{}]: {error}", key.id))
    };
    let keys = pinned.keys.iter().map(key).collect::<Result<_, _>>()?;
    Ok(Some(Governance { federation: pinned.federation.clone(), keys, required: pinned.required as usize }))
}

/// The least that this hospital asks of any attempt.
pub fn floors(policy: &SitePolicySpec) -> Floors {
    let small = |n: u32| u16::try_from(n).unwrap_or(u16::MAX);
    let aggregation = &policy.aggregation;
    Floors { min_contributors: small(aggregation.min_contributors), colluders: small(aggregation.colluders) }
}

/// Whether two sums may differ by one hospital, if the policy says so; else the history's default counts.
pub fn difference_rule(policy: &SitePolicySpec) -> Option<DifferenceRule> {
    policy.aggregation.survivor_difference.map(|rule| match rule {
        SurvivorDifference::Refuse => DifferenceRule::Refuse,
        SurvivorDifference::Allow => DifferenceRule::Allow,
    })
}

fn pinned(policy: &SitePolicySpec) -> Result<Governance, Decision> {
    governance(policy).map_err(deny)?.ok_or_else(|| {
        deny(
            "the study masks its updates among hospitals whose keys a governance signs, and SitePolicy spec.governance is not set; pin the federation's governance keys there, compared out of band, to take part"
                .into(),
        )
    })
}

/// Governance is pinned, the study keeps the hospital's floors, and no sum leaves twice.
pub(super) fn masked(work: &RoundWork, secure: &Secure, policy: &SitePolicySpec, facts: &SecureFacts) -> Rung {
    pinned(policy)?;
    let floor = policy.aggregation.colluders;
    if secure.colluders < floor {
        return Err(deny(format!(
            "the study withstands {} hospitals that work together with the hub and SitePolicy spec.aggregation.colluders is {floor}; lower it to take part, or ask the study to raise its own",
            secure.colluders
        )));
    }
    resumed(work, policy, facts.closed.as_ref())?;
    if let Some(session) = &facts.released {
        return Err(deny(format!(
            "this hospital released its part of a sum for {} on model {} in session {session}; a second sum on the same model would give differences between hospitals, so there is none",
            work.study, work.model
        )));
    }
    Ok(())
}

/// What a volume that was set back or lost has forgotten, the hospital's people have to know.
fn resumed(work: &RoundWork, policy: &SitePolicySpec, closed: Option<&Closed>) -> Rung {
    let says = opt_in(policy, &work.study).and_then(|study| study.resume_after_round);
    if let Some(closed) = closed.filter(|closed| closed.through(says).is_none()) {
        let higher = closed.resumed.map(|round| format!(" (higher than {round}, which was said before that)"));
        return Err(deny(format!(
            "StateRolledBack: the agent's volume was restored from a backup, or is another one, and does not know which sums of {0} hold this hospital's update; set SitePolicy spec.studies[{0}].resumeAfterRound to the last round that it may have taken part in{1}, to take part in later ones",
            work.study,
            higher.unwrap_or_default()
        )));
    }
    match says {
        Some(through) if work.round <= through => Err(deny(format!(
            "SitePolicy spec.studies[{}].resumeAfterRound is {through}: rounds up to it may have been summed with this hospital's update already; it takes part from round {} on",
            work.study,
            through.saturating_add(1)
        ))),
        _ => Ok(()),
    }
}

/// A roster that lists this hospital holds here; of an open attempt, the one that it names.
pub(super) fn roster(work: &RoundWork, policy: &SitePolicySpec, facts: &SecureFacts) -> Rung {
    let required = pinned(policy)?.required;
    let awaits = |message: String| Err(Decision::refused(SiteReason::AwaitingRoster, message));
    let ask =
        "ask the governance to sign a roster that lists this hospital with the key in SitePolicy status.signingKey";
    let Some(newest) = facts.rosters.last() else {
        let seen = facts.roster_trouble.as_ref().map(|why| format!(" ({why})")).unwrap_or_default();
        return awaits(format!(
            "the hub has offered no roster with valid signatures of {required} of the keys in SitePolicy spec.governance{seen}; {ask}"
        ));
    };
    if !facts.rosters.iter().any(|roster| roster.lists_us) {
        return awaits(format!("roster version {} does not list this hospital with its key; {ask}", newest.version));
    }
    match work.roster {
        Some(digest) if !facts.rosters.iter().any(|roster| roster.digest == digest && roster.lists_us) => {
            awaits(format!(
                "the attempt opens among the hospitals of roster {digest}, which does not hold here or does not list this hospital (newest that does: version {})",
                newest.version
            ))
        }
        _ => Ok(()),
    }
}
