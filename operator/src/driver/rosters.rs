//! Rosters that attempts may open under.

use std::collections::BTreeSet;

use consilium_federation::{Digest, SiteName};
use consilium_secagg::roster::SignedRoster;
use consilium_secagg::wire::Message as _;

use crate::store::{BlobStore, StoreError};

/// A roster that attempts may open under.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    /// Its version.
    pub version: u64,
    /// Digest without signatures: what a round names.
    pub digest: Digest,
    /// Digest of the signed object: what hospitals fetch.
    pub signed: Digest,
    /// The hospitals on it.
    pub sites: BTreeSet<SiteName>,
}

/// Puts a roster into the store, where hospitals fetch it and attempts find it.
///
/// # Errors
/// When the store fails.
pub async fn keep(store: &BlobStore, signed: &SignedRoster) -> Result<Known, StoreError> {
    let digest = store.put_object(signed.roster.to_bytes().into()).await?;
    let object = store.put_object(signed.to_bytes().into()).await?;
    let sites = signed.roster.entries.iter().filter_map(|entry| entry.site.as_str().parse().ok()).collect();
    Ok(Known { version: signed.roster.version, digest, signed: object, sites })
}
