//! Rosters of hospital keys: ConfigMaps in the operator's namespace, put into the store and offered to every hospital.
//!
//! The hub judges nothing but that a roster parses and that its signatures verify: which keys count is what each
//! hospital has pinned. So whoever can write ConfigMaps here can at most keep attempts from opening.

use std::sync::Arc;
use std::time::Duration;

use consilium_crds::roster::{DATA_KEY, RosterDocument};
use consilium_secagg::roster::{Governance, SignedRoster};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::ResourceExt;
use kube::runtime::reflector::ObjectRef;

use super::context::{Context, ask};
use super::write::{self, Note};
use crate::driver::rosters::keep;

/// Versions that are offered: an old and a new one overlap while a hospital joins.
const OFFERED: usize = 2;

/// When a store that failed is tried again: without a roster no masked study goes on.
const AGAIN: Duration = Duration::from_secs(30);

/// A roster from a ConfigMap, or what is wrong with it. Pure.
fn parse(object: &ConfigMap) -> Result<SignedRoster, String> {
    let json = object.data.as_ref().and_then(|data| data.get(DATA_KEY));
    let json = json.ok_or_else(|| format!("data has no key {DATA_KEY}; put the signed roster under it"))?;
    let signed = RosterDocument::parse(json).and_then(|document| document.signed()).map_err(|e| e.to_string())?;
    // Every signature on it must verify; whose they are is for the hospitals to judge.
    let keys: Vec<_> = signed.signatures.iter().map(|(key, _)| *key).collect();
    let signers = Governance { federation: signed.roster.federation.clone(), required: keys.len(), keys };
    signers.verify(&signed).map_err(|e| format!("{e}; sign it with `kubectl consilium roster sign`"))?;
    Ok(signed)
}

/// The newest versions, newest first, each version once. Pure.
fn newest(mut rosters: Vec<SignedRoster>) -> Vec<SignedRoster> {
    rosters.sort_by(|a, b| b.roster.version.cmp(&a.roster.version).then(b.signatures.len().cmp(&a.signatures.len())));
    rosters.dedup_by_key(|signed| signed.roster.version);
    rosters.truncate(OFFERED);
    rosters
}

/// Reads all ConfigMaps, puts their rosters into the store and offers the newest ones.
pub async fn refresh(context: &Arc<Context>) {
    let _turn = context.roster_turn.lock().await;
    let mut rosters = Vec::new();
    for object in context.caches.rosters.state() {
        match parse(&object) {
            Ok(signed) => rosters.push(signed),
            Err(why) => {
                tracing::warn!(configmap = object.name_any(), why, "a roster is left out");
                write::events(context, &*object, vec![Note::warning("InvalidRoster", why)]).await;
            }
        }
    }
    let mut known = Vec::new();
    for signed in newest(rosters) {
        match keep(context.hub.store(), &signed).await {
            Ok(roster) => known.push(roster),
            // Until it is tried again the old ones are offered.
            Err(error) => {
                tracing::error!(%error, "a roster was not stored; it is tried again in {} s", AGAIN.as_secs());
                return refresh_later(context.clone());
            }
        }
    }
    if context.driver.set_rosters(known) {
        for study in context.caches.studies.state() {
            ask(&context.queues.studies, ObjectRef::from_obj(&*study));
        }
        for round in context.caches.rounds.state() {
            ask(&context.queues.rounds, ObjectRef::from_obj(&*round));
        }
    }
}

fn refresh_later(context: Arc<Context>) {
    tokio::spawn(async move {
        tokio::time::sleep(AGAIN).await;
        refresh(&context).await;
    });
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use consilium_crds::roster::{RosterSite, key_text};
    use consilium_secagg::identity::SiteKey;

    use super::*;

    fn signed(version: u64) -> SignedRoster {
        let site = |name: &str, seed| RosterSite {
            name: name.parse().unwrap(),
            public_key: key_text(&SiteKey::from_seed(&[seed; 32]).public()),
        };
        let sites = vec![site("alder", 1), site("birch", 2)];
        let document = RosterDocument { federation: "north".into(), version, sites, signatures: vec![] };
        let mut signed = document.signed().unwrap();
        signed.sign(&SiteKey::from_seed(&[9; 32]));
        signed
    }

    fn config_map(json: &str) -> ConfigMap {
        let data = BTreeMap::from([(DATA_KEY.to_owned(), json.to_owned())]);
        ConfigMap { data: Some(data), ..ConfigMap::default() }
    }

    /// A roster that nobody signed, or that was changed after it was signed, must not reach hospitals as if it counted.
    #[test]
    fn a_roster_is_taken_as_signed_or_not_at_all() {
        let good = serde_json::to_string(&RosterDocument::of(&signed(1))).unwrap();
        assert_eq!(parse(&config_map(&good)).unwrap(), signed(1));
        assert!(parse(&ConfigMap::default()).unwrap_err().contains(DATA_KEY));
        for (from, to, word) in [("north", "south", "roster sign"), ("\"version\":1", "\"version\":2", "roster sign")] {
            assert!(parse(&config_map(&good.replace(from, to))).unwrap_err().contains(word));
        }
        let mut unsigned = signed(1);
        unsigned.signatures.clear();
        let unsigned = serde_json::to_string(&RosterDocument::of(&unsigned)).unwrap();
        assert!(parse(&config_map(&unsigned)).is_err());
        assert!(parse(&config_map("{}")).unwrap_err().contains("roster new"));
    }

    #[test]
    fn the_two_newest_versions_are_offered_newest_first() {
        let versions = |list: Vec<SignedRoster>| list.iter().map(|s| s.roster.version).collect::<Vec<_>>();
        assert_eq!(versions(newest(vec![signed(2), signed(7), signed(5), signed(7)])), [7, 5]);
        assert_eq!(versions(newest(vec![])), [] as [u64; 0]);
    }
}
