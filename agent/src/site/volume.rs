//! Whether the volume is older than what was seen of it.

use consilium_crds::SitePolicy;
use consilium_federation::report::LedgerEnd;

use crate::state::Restored;
use crate::{Context, StateError};

/// Compares the volume with the ledger's head in the SitePolicy's status. Runs before anything is sent.
///
/// A volume that never had that head was restored from a backup, or is another one. What it forgot could be asked for
/// again: a second sum on a model, another answer in an open attempt. So all open attempts are burned, and rounds that
/// were offered by then get no masked sum from here any more.
pub fn check_volume(ctx: &Context) -> Result<(), StateError> {
    let Some(policy) = ctx.site_policy() else { return Ok(()) };
    let Some(head) = policy.status.as_ref().and_then(|status| status.ledger.as_ref()) else { return Ok(()) };
    check_end(ctx, LedgerEnd { entries: head.entries, head: head.head }, "SitePolicy status.ledger")
}

/// As [`check_volume`], with what the hub says that this hospital has shown it. A hub that lies can keep this hospital
/// out of sums by it, which it can anyway.
pub fn check_end(ctx: &Context, end: LedgerEnd, witness: &str) -> Result<(), StateError> {
    if ctx.state.had_head(end.head)? {
        return Ok(());
    }
    let why = format!(
        "{witness} shows head {} after {} entries, which this volume never had: it was restored from a backup, or is another volume",
        end.head, end.entries
    );
    if ctx.state.rolled_back()?.is_some_and(|known| known.why == why) {
        return Ok(());
    }
    tracing::error!(why, "StateRolledBack: open attempts are burned, and no masked sum is given for rounds of before");
    let offered = ctx.site_policy().map(|policy| offered(&policy)).unwrap_or_default();
    ctx.state.roll_back(&why, offered, ctx.now())?;
    Ok(())
}

/// The newest round of each study that was offered.
fn offered(policy: &SitePolicy) -> Vec<Restored> {
    let studies = policy.status.iter().flat_map(|status| &status.studies);
    studies.map(|s| Restored { study: s.study.clone(), uid: s.uid.clone(), through: s.round }).collect()
}
