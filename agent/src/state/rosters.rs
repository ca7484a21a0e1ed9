//! This hospital's signing key, and the rosters of hospital keys that it has accepted.

use consilium_secagg::identity::SiteKey;
use consilium_secagg::ids::Digest;
use consilium_secagg::roster::{Governance, RosterBook, RosterError, SignedRoster};
use jiff::Timestamp;
use redb::{ReadableDatabase, ReadableTable, WriteTransaction};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::ledger;
use super::{Entry, META, State, StateError, to_json};
use crate::Entropy;

const SITE_KEY: &str = "site-key";
const ROSTERS: &str = "rosters";

/// What was accepted, with the signatures: other governance means another look at them.
#[derive(Default, Serialize, Deserialize)]
struct Row {
    /// Whose signatures counted.
    governance: Option<Governance>,
    /// Oldest first, at most two.
    accepted: Vec<SignedRoster>,
    /// The newest version ever accepted in this federation: it is never gone back behind.
    newest: u64,
}

impl Row {
    fn book(&self) -> RosterBook {
        let mut book = RosterBook::default();
        if let Some(governance) = &self.governance {
            for signed in &self.accepted {
                // What does not hold any more is left out; it was accepted under these keys, so none is.
                let _ = book.accept(governance, signed);
            }
        }
        book
    }
}

fn read_in(write: &WriteTransaction) -> Result<Row, StateError> {
    let meta = write.open_table(META)?;
    let Some(bytes) = meta.get(ROSTERS)? else { return Ok(Row::default()) };
    serde_json::from_slice(bytes.value()).map_err(StateError::damaged("the accepted rosters"))
}

/// Whether the keys that are pinned now are those under which the book was made.
fn repin(row: &mut Row, governance: &Governance) -> bool {
    if row.governance.as_ref() == Some(governance) {
        return false;
    }
    if row.governance.as_ref().is_some_and(|old| old.federation != governance.federation) {
        row.newest = 0;
    }
    row.governance = Some(governance.clone());
    row.accepted.retain(|signed| governance.verify(signed).is_ok());
    true
}

impl State {
    /// This hospital's signing key, made from the system's randomness when it is first asked for.
    ///
    /// It never leaves the volume: a volume without it is another hospital to the roster.
    pub fn site_key(&self, entropy: &Entropy) -> Result<SiteKey, StateError> {
        let known = {
            let read = self.0.db.begin_read()?;
            let meta = read.open_table(META)?;
            meta.get(SITE_KEY)?.map(|value| Zeroizing::new(value.value().to_vec()))
        };
        if let Some(bytes) = known {
            return seed(&bytes).map(|seed| SiteKey::from_seed(&seed));
        }
        let fresh = Zeroizing::new(entropy.bytes32());
        let write = self.0.db.begin_write()?;
        let key = {
            let mut meta = write.open_table(META)?;
            // Another thread may have been first.
            let raced = meta.get(SITE_KEY)?.map(|value| Zeroizing::new(value.value().to_vec()));
            match raced {
                Some(bytes) => SiteKey::from_seed(&*seed(&bytes)?),
                None => {
                    meta.insert(SITE_KEY, fresh.as_slice())?;
                    SiteKey::from_seed(&fresh)
                }
            }
        };
        write.commit()?;
        Ok(key)
    }

    /// The rosters that hold under the pinned governance, oldest first.
    pub fn rosters(&self, governance: &Governance) -> Result<RosterBook, StateError> {
        let mut row: Row = self.read_json(META, ROSTERS)?.unwrap_or_default();
        repin(&mut row, governance);
        Ok(row.book())
    }

    /// Takes a roster that governance signed; the same one again is fine.
    pub fn accept_roster(
        &self,
        governance: &Governance,
        signed: &SignedRoster,
        now: Timestamp,
    ) -> Result<Result<Digest, RosterError>, StateError> {
        let write = self.0.db.begin_write()?;
        let mut row = read_in(&write)?;
        let repinned = repin(&mut row, governance);
        let mut book = row.book();
        let version = signed.roster.version;
        let held = book.accepted().iter().any(|roster| roster.version() == version);
        if !held && version < row.newest && governance.verify(signed).is_ok() {
            return Ok(Err(RosterError::Older { version, newest: row.newest }));
        }
        let digest = match book.accept(governance, signed) {
            Ok(digest) => digest,
            Err(error) => return Ok(Err(error)),
        };
        if !held {
            row.accepted.push(signed.clone());
            let holds = |signed: &SignedRoster| book.accepted().iter().any(|r| *r.roster() == signed.roster);
            row.accepted.retain(holds);
            row.newest = row.newest.max(version);
            let hospitals = signed.roster.entries.len() as u32;
            ledger::append_in(&write, &Entry::RosterAccepted { version, roster: hub_digest(digest), hospitals }, now)?;
        }
        if !held || repinned {
            write.open_table(META)?.insert(ROSTERS, to_json("rosters", &row)?.as_slice())?;
            write.commit()?;
        }
        Ok(Ok(digest))
    }
}

fn seed(bytes: &[u8]) -> Result<Zeroizing<[u8; 32]>, StateError> {
    let damaged =
        || StateError::Damaged { what: "the hospital's signing key".into(), why: "it is not 32 bytes".into() };
    Ok(Zeroizing::new(bytes.try_into().map_err(|_| damaged())?))
}

/// A digest of the protocol's as the rest of the agent writes them: both are SHA-256.
pub fn hub_digest(digest: Digest) -> consilium_federation::Digest {
    consilium_federation::Digest::from_bytes(digest.0)
}
