//! What the ledger says of the SitePolicy and of the hub's word on the ledger.

use consilium_crds::SitePolicy;
use consilium_federation::Digest;
use consilium_federation::approval::parse_public_key;
use consilium_federation::ledger::Countersigned;

use crate::state::Entry;
use crate::{Context, StateError};

/// Bytes of a policy that an entry holds; of a larger one it holds the digest.
const ROOM: usize = 64 << 10;

/// The entry that says which policy is in force.
pub fn in_force(policy: Option<&SitePolicy>) -> Entry {
    let Some(policy) = policy else {
        return Entry::PolicyInForce { generation: None, uid: None, digest: None, spec: None };
    };
    let bytes = consilium_federation::digest::canonical_json(&policy.spec);
    let spec = (bytes.len() <= ROOM).then(|| serde_json::from_slice(&bytes).ok()).flatten();
    let (generation, uid) = (policy.metadata.generation, policy.metadata.uid.clone());
    Entry::PolicyInForce { generation, uid, digest: Some(Digest::of(&bytes)), spec }
}

/// Takes the hub's signature over an end of the ledger: kept if it is by the key that the policy pins, or if it pins none.
/// False: by another key.
pub fn take_countersigned(ctx: &Context, by_hub: &Countersigned) -> Result<bool, StateError> {
    let policy = ctx.site_policy();
    let pinned = policy.as_ref().and_then(|policy| policy.spec.audit.as_ref());
    let by = |text: &str| parse_public_key(text).is_ok_and(|key| by_hub.is_by(&key, &ctx.site));
    let good = pinned.is_none_or(|audit| by(&audit.hub_key));
    if good && ctx.state.head_number(by_hub.end.head)? == Some(by_hub.end.entries) {
        ctx.state.put_countersigned(by_hub)?;
    }
    Ok(good)
}
