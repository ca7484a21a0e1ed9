//! Whose keys hold. The roster is not the hub's: k of m governance keys, pinned by every hospital at enrolment, sign
//! each version; otherwise the hub could invent hospitals and outvote the honest ones.
use crate::identity::{SiteKey, verify_bytes};
use crate::ids::{Digest, PublicKey, Signature, SiteId};
use crate::ring::MAX_ROSTER;
use crate::wire::{Message, Reader, WireError, Writer, serde_as_wire};
use std::collections::BTreeSet;

/// One hospital and its signing key.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct RosterEntry {
    /// The hospital.
    pub site: SiteId,
    /// Its Ed25519 key.
    pub key: PublicKey,
}

/// A version of the roster: hospitals in order of name, each once, each with a key of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Roster {
    /// The federation that it is for.
    pub federation: String,
    /// Its version, counting up.
    pub version: u64,
    /// The hospitals, strictly ascending by name.
    pub entries: Vec<RosterEntry>,
}

impl Message for Roster {
    const TAG: &'static str = "consilium/secagg/v1/roster";

    fn write(&self, w: &mut Writer) {
        w.string(&self.federation).u64(self.version).count(self.entries.len());
        for entry in &self.entries {
            entry.site.write(w);
            w.fixed(&entry.key.0);
        }
    }

    fn read(r: &mut Reader<'_>) -> Result<Self, WireError> {
        let (federation, version) = (r.string("federation")?.to_owned(), r.u64()?);
        let n = r.count("entries", 37)?;
        let mut entries = Vec::with_capacity(n);
        for _ in 0..n {
            entries.push(RosterEntry { site: SiteId::read(r)?, key: PublicKey(r.fixed()?) });
        }
        if entries.windows(2).any(|w| w[0].site >= w[1].site) {
            return Err(r.field("entries", "are not strictly ascending by site"));
        }
        Ok(Self { federation, version, entries })
    }
}

/// A roster with the signatures that governance members gave, ascending by key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedRoster {
    /// The roster.
    pub roster: Roster,
    /// Who signed.
    pub signatures: Vec<(PublicKey, Signature)>,
}

impl SignedRoster {
    /// An unsigned version: hospitals are put in order.
    #[must_use]
    pub fn new(mut roster: Roster) -> Self {
        roster.entries.sort_by(|a, b| a.site.cmp(&b.site));
        Self { roster, signatures: Vec::new() }
    }

    /// Adds a governance member's signature (replacing its earlier one).
    pub fn sign(&mut self, key: &SiteKey) {
        let signature = key.sign(self.roster.clone()).signature;
        self.signatures.retain(|(k, _)| *k != key.public());
        self.signatures.push((key.public(), signature));
        self.signatures.sort_by_key(|(k, _)| *k);
    }
}

impl Message for SignedRoster {
    const TAG: &'static str = "consilium/secagg/v1/signed-roster";

    fn write(&self, w: &mut Writer) {
        w.bytes(&self.roster.to_bytes()).count(self.signatures.len());
        for (key, signature) in &self.signatures {
            w.fixed(&key.0).fixed(&signature.0);
        }
    }

    fn read(r: &mut Reader<'_>) -> Result<Self, WireError> {
        let roster = Roster::from_bytes(r.bytes("roster")?)?;
        let n = r.count("signatures", 96)?;
        let mut signatures = Vec::with_capacity(n);
        for _ in 0..n {
            signatures.push((PublicKey(r.fixed()?), Signature(r.fixed()?)));
        }
        if signatures.windows(2).any(|w| w[0].0 >= w[1].0) {
            return Err(r.field("signatures", "are not strictly ascending by key"));
        }
        Ok(Self { roster, signatures })
    }
}

serde_as_wire!(Roster, SignedRoster);

/// Why a roster is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RosterError {
    /// The pinned governance is unusable.
    #[error("governance: {required} of {keys} distinct keys; required must be 1..={keys}")]
    Governance {
        /// Signatures required.
        required: usize,
        /// Distinct keys pinned.
        keys: usize,
    },
    /// Too few valid signatures by pinned keys.
    #[error("roster version {version} has {valid} valid governance signatures, {required} are required")]
    Unsigned {
        /// The version.
        version: u64,
        /// Valid signatures by distinct pinned keys.
        valid: usize,
        /// Required.
        required: usize,
    },
    /// For another federation.
    #[error("roster is for federation {got:?}, this hospital belongs to {expected:?}")]
    Federation {
        /// The roster's.
        got: String,
        /// Ours.
        expected: String,
    },
    /// Two hospitals with one key: one holder would count twice.
    #[error("sites {first} and {second} have the same key; every hospital needs its own")]
    SharedKey {
        /// One.
        first: SiteId,
        /// The other.
        second: SiteId,
    },
    /// Too many hospitals.
    #[error("roster of {n} hospitals, at most {MAX_ROSTER}; shard the federation")]
    TooMany {
        /// Hospitals listed.
        n: usize,
    },
    /// Older than what was accepted.
    #[error("roster version {version} is older than the accepted {newest}; a roster never goes back")]
    Older {
        /// The version offered.
        version: u64,
        /// The newest accepted.
        newest: u64,
    },
    /// A second roster under one version.
    #[error("roster version {version} was accepted with digest {accepted}, now {offered}: governance signed twice")]
    Forked {
        /// The version.
        version: u64,
        /// Accepted digest.
        accepted: Digest,
        /// Offered digest.
        offered: Digest,
    },
    /// A digest that is not among the accepted ones.
    #[error("roster {digest} is not among the accepted versions {versions:?} (AwaitingRoster)")]
    NotAccepted {
        /// The digest asked for.
        digest: Digest,
        /// The versions accepted.
        versions: Vec<u64>,
    },
}

/// The governance keys a hospital pinned at enrolment.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Governance {
    /// The federation.
    pub federation: String,
    /// m keys.
    pub keys: Vec<PublicKey>,
    /// k of them must sign.
    pub required: usize,
}

impl Governance {
    /// Verifies a roster.
    ///
    /// # Errors
    /// [`RosterError`].
    pub fn verify(&self, signed: &SignedRoster) -> Result<VerifiedRoster, RosterError> {
        let pinned: BTreeSet<_> = self.keys.iter().collect();
        if self.required == 0 || self.required > pinned.len() {
            return Err(RosterError::Governance { required: self.required, keys: pinned.len() });
        }
        let roster = &signed.roster;
        let bytes = roster.to_bytes();
        let valid: BTreeSet<_> = signed
            .signatures
            .iter()
            .filter(|(key, signature)| pinned.contains(key) && verify_bytes(key, &bytes, signature).is_ok())
            .map(|(key, _)| key)
            .collect();
        if valid.len() < self.required {
            let (version, required) = (roster.version, self.required);
            return Err(RosterError::Unsigned { version, valid: valid.len(), required });
        }
        if roster.federation != self.federation {
            let (got, expected) = (roster.federation.clone(), self.federation.clone());
            return Err(RosterError::Federation { got, expected });
        }
        if roster.entries.len() > MAX_ROSTER {
            return Err(RosterError::TooMany { n: roster.entries.len() });
        }
        for (i, a) in roster.entries.iter().enumerate() {
            if let Some(b) = roster.entries[..i].iter().find(|b| b.key == a.key) {
                return Err(RosterError::SharedKey { first: b.site.clone(), second: a.site.clone() });
            }
        }
        Ok(VerifiedRoster { roster: roster.clone(), digest: roster.digest() })
    }
}

/// A roster that governance signed; a hospital makes it only by [`Governance::verify`] (and reads it back from its own
/// state).
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct VerifiedRoster {
    roster: Roster,
    digest: Digest,
}

impl VerifiedRoster {
    /// A roster as the hub relays it, judged by nobody: the hub's word on rosters counts for no hospital, each of which
    /// verifies the signatures against the keys that it pinned. **Never for a hospital's side.**
    #[must_use]
    pub fn relayed(roster: Roster) -> Self {
        let digest = roster.digest();
        Self { roster, digest }
    }

    /// Digest of the roster, which specifications name.
    #[must_use]
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// Its version.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.roster.version
    }

    /// The roster itself.
    #[must_use]
    pub fn roster(&self) -> &Roster {
        &self.roster
    }

    /// A hospital's key.
    #[must_use]
    pub fn key(&self, site: &SiteId) -> Option<&PublicKey> {
        let at = self.roster.entries.binary_search_by(|e| e.site.cmp(site)).ok()?;
        Some(&self.roster.entries[at].key)
    }
}

/// The two newest versions a hospital accepted: an old and a new one overlap while a new hospital joins, so that
/// joining never stops a round.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct RosterBook {
    accepted: Vec<VerifiedRoster>,
}

impl RosterBook {
    /// Accepts a version; the same one again is fine.
    ///
    /// # Errors
    /// [`RosterError`].
    pub fn accept(&mut self, governance: &Governance, signed: &SignedRoster) -> Result<Digest, RosterError> {
        let roster = governance.verify(signed)?;
        if let Some(same) = self.accepted.iter().find(|r| r.version() == roster.version()) {
            if same.digest != roster.digest {
                let (version, accepted, offered) = (roster.version(), same.digest, roster.digest);
                return Err(RosterError::Forked { version, accepted, offered });
            }
            return Ok(roster.digest);
        }
        if let Some(newest) = self.accepted.last().filter(|newest| newest.version() > roster.version()) {
            return Err(RosterError::Older { version: roster.version(), newest: newest.version() });
        }
        let digest = roster.digest;
        self.accepted.push(roster);
        if self.accepted.len() > 2 {
            self.accepted.remove(0);
        }
        Ok(digest)
    }

    /// The accepted versions, oldest first; a hospital reports their digests with every ready report.
    #[must_use]
    pub fn accepted(&self) -> &[VerifiedRoster] {
        &self.accepted
    }

    /// The accepted roster with this digest.
    ///
    /// # Errors
    /// [`RosterError::NotAccepted`].
    pub fn get(&self, digest: &Digest) -> Result<&VerifiedRoster, RosterError> {
        let versions = || self.accepted.iter().map(VerifiedRoster::version).collect();
        self.accepted
            .iter()
            .find(|r| r.digest == *digest)
            .ok_or_else(|| RosterError::NotAccepted { digest: *digest, versions: versions() })
    }
}

/// The roster among which an attempt should open: the one most ready hospitals accept (ties: the digest that comes
/// first in `preference`), and who must wait for it (`AwaitingRoster`). `None` when nobody accepts any.
#[must_use]
pub fn common_roster(
    ready: &[(SiteId, Vec<Digest>)],
    preference: &[Digest],
) -> Option<(Digest, Vec<SiteId>, Vec<SiteId>)> {
    let count = |d: &Digest| ready.iter().filter(|(_, accepted)| accepted.contains(d)).count();
    let best = preference.iter().rev().max_by_key(|d| count(d)).filter(|d| count(d) > 0)?;
    let (with, without): (Vec<_>, Vec<_>) = ready.iter().partition(|(_, accepted)| accepted.contains(best));
    let names = |list: Vec<&(SiteId, Vec<Digest>)>| list.into_iter().map(|(site, _)| site.clone()).collect();
    Some((*best, names(with), names(without)))
}

#[cfg(test)]
#[path = "roster_tests.rs"]
mod tests;
