//! Whether the volume is older than what was seen of it.

use consilium_crds::SitePolicy;
use consilium_federation::report::LedgerEnd;

use crate::state::Closed;
use crate::{Context, StateError};

/// Compares the volume with the ledger's head in the SitePolicy's status. Runs whenever this policy decides something,
/// and before its status is written anew: at the agent's start it may not be readable yet.
///
/// A volume that never had that head was restored from a backup, or is another one. What it forgot could be asked for
/// again: a second sum on a model, another answer in an open attempt.
pub fn check_volume(ctx: &Context, policy: &SitePolicy) -> Result<(), StateError> {
    let Some(head) = policy.status.as_ref().and_then(|status| status.ledger.as_ref()) else { return Ok(()) };
    if ctx.state.had_head(head.head)? {
        return Ok(());
    }
    let why = unknown(LedgerEnd { entries: head.entries, head: head.head }, "SitePolicy status.ledger");
    set_back(ctx, Some(policy), &why)
}

/// The hospital's own objects show that the volume was set back: burns all open attempts, and closes the studies of the
/// SitePolicy until it says how far each of them may have come.
///
/// Closed are all of them, in all rounds: which were offered is the hub's word, and which were summed is forgotten.
pub fn set_back(ctx: &Context, policy: Option<&SitePolicy>, why: &str) -> Result<(), StateError> {
    let studies = policy.iter().flat_map(|policy| &policy.spec.studies);
    let closed: Vec<Closed> =
        studies.map(|s| Closed { study: s.study.clone(), uid: s.uid.clone(), resumed: s.resume_after_round }).collect();
    // Two agents on copies of a volume show each other new heads for ever.
    let known = ctx.state.rolled_back()?;
    let done = known.is_some_and(|known| closed.iter().all(|study| known.closed.contains(study)));
    if done && ctx.state.open_attempts()?.is_empty() {
        return Ok(());
    }
    tracing::error!(
        why,
        "StateRolledBack: open attempts are burned, and no masked sum is given until the policy says so"
    );
    ctx.state.roll_back(why, closed, ctx.now())
}

/// Compares the volume with what the hub says that this hospital has shown it.
///
/// Its word alone burns what is open, which it could do anyway, and closes nothing: it may lie, or be mistaken.
pub fn check_hub(ctx: &Context, end: LedgerEnd) -> Result<(), StateError> {
    let why = match ctx.state.had_head(end.head)? {
        true => None,
        false => Some(unknown(end, "the hub's record of this hospital's ledger")),
    };
    if ctx.state.hub_claims(why.as_deref(), ctx.now())? {
        tracing::error!(why, "the hub remembers more than the volume: open attempts are burned");
    }
    Ok(())
}

fn unknown(end: LedgerEnd, witness: &str) -> String {
    format!(
        "{witness} shows head {} after {} entries, which this volume never had: it was restored from a backup, or is another volume",
        end.head, end.entries
    )
}
