//! Step 4: everyone agrees on who survived, before anyone releases a share.
//!
//! A hospital signs one survivor set per session, ever. The hub needs t signatures on one set, and since 2t > n + n_C
//! it cannot have them on two: so it cannot show one set to some and another to others and collect both kinds of
//! shares for a hospital.
use crate::identity::verify_bytes;
use crate::ids::{Digest, Party, Sid, Signature, SiteId, read_parties, write_parties};
use crate::session::Session;
use crate::wire::{Message, Reader, WireError, Writer, serde_as_wire};
use std::collections::BTreeSet;

/// Who survived, as the hub proposes it and the hospitals sign it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SurvivorStatement {
    /// The session.
    pub sid: Sid,
    /// The view of step 2.
    pub view: Digest,
    /// U3, strictly ascending.
    pub survivors: Vec<Party>,
}

impl Message for SurvivorStatement {
    const TAG: &'static str = "consilium/secagg/v1/survivors";

    fn write(&self, w: &mut Writer) {
        w.fixed(&self.sid.0).fixed(&self.view.0);
        write_parties(w, &self.survivors);
    }

    fn read(r: &mut Reader<'_>) -> Result<Self, WireError> {
        Ok(Self { sid: Sid(r.fixed()?), view: Digest(r.fixed()?), survivors: read_parties(r, "survivors")? })
    }
}

/// A statement with the survivors' signatures on it, strictly ascending by signer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SurvivorProof {
    /// The statement.
    pub statement: SurvivorStatement,
    /// The signatures.
    pub signatures: Vec<(Party, Signature)>,
}

impl Message for SurvivorProof {
    const TAG: &'static str = "consilium/secagg/v1/survivor-proof";

    fn write(&self, w: &mut Writer) {
        w.bytes(&self.statement.to_bytes()).count(self.signatures.len());
        for (party, signature) in &self.signatures {
            w.u8(party.0).fixed(&signature.0);
        }
    }

    fn read(r: &mut Reader<'_>) -> Result<Self, WireError> {
        let statement = SurvivorStatement::from_bytes(r.bytes("statement")?)?;
        let n = r.count("signatures", 65)?;
        let signatures =
            (0..n).map(|_| Ok((Party(r.u8()?), Signature(r.fixed()?)))).collect::<Result<Vec<_>, WireError>>()?;
        if signatures.windows(2).any(|w| w[0].0 >= w[1].0) {
            return Err(r.field("signatures", "are not strictly ascending by party"));
        }
        Ok(Self { statement, signatures })
    }
}

serde_as_wire!(SurvivorStatement, SurvivorProof);

/// Why a survivor set or its proof is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SurvivorError {
    /// For another session.
    #[error("survivor set is for session {got}, this is {expected}")]
    WrongSession {
        /// The message's.
        got: Sid,
        /// Ours.
        expected: Sid,
    },
    /// Made for another view of who dealt shares.
    #[error("survivor set rests on another view of the shares ({got} instead of {expected}): the hub split the views")]
    OtherView {
        /// The statement's.
        got: Digest,
        /// Ours.
        expected: Digest,
    },
    /// Out of order or repeated.
    #[error("survivors are not strictly ascending")]
    Order,
    /// A survivor that dealt no shares.
    #[error("survivor {party} dealt no shares in this session")]
    NotDealt {
        /// The party.
        party: Party,
    },
    /// We uploaded, and are not in it.
    #[error("this hospital is not among the survivors: it signs nothing and releases nothing")]
    SelfMissing,
    /// Fewer than t, minContributors or colluders + 2.
    #[error("{got} survivors, at least {needed} must be in the sum")]
    TooFew {
        /// Survivors.
        got: usize,
        /// Needed.
        needed: usize,
    },
    /// A signer that did not survive.
    #[error("signature of {party}, which is not among the survivors")]
    NotSurvivor {
        /// The signer.
        party: Party,
    },
    /// A signature that does not verify.
    #[error("signature of {party} on the survivor set does not verify")]
    Signature {
        /// The signer.
        party: Party,
    },
    /// Fewer than t signatures.
    #[error("{got} signatures on the survivor set, {needed} are needed")]
    TooFewSignatures {
        /// Valid signatures.
        got: usize,
        /// The threshold.
        needed: usize,
    },
}

impl SurvivorStatement {
    /// Checks a set against the session and one's own view of step 2 (`dealers` is U2).
    ///
    /// # Errors
    /// [`SurvivorError`].
    pub fn check(&self, session: &Session, view: &Digest, dealers: &[Party]) -> Result<(), SurvivorError> {
        if self.sid != session.sid() {
            return Err(SurvivorError::WrongSession { got: self.sid, expected: session.sid() });
        }
        if self.view != *view {
            return Err(SurvivorError::OtherView { got: self.view, expected: *view });
        }
        if self.survivors.windows(2).any(|w| w[0] >= w[1]) {
            return Err(SurvivorError::Order);
        }
        if let Some(party) = self.survivors.iter().find(|p| !dealers.contains(p)) {
            return Err(SurvivorError::NotDealt { party: *party });
        }
        let (got, needed) = (self.survivors.len(), session.thresholds().contributors());
        if got < needed { Err(SurvivorError::TooFew { got, needed }) } else { Ok(()) }
    }

    /// The names of the survivors.
    #[must_use]
    pub fn sites(&self, session: &Session) -> BTreeSet<SiteId> {
        self.survivors.iter().filter_map(|p| session.site(*p)).cloned().collect()
    }

    /// U2 ∖ U3: those whose masks must be reconstructed.
    #[must_use]
    pub fn dropped(&self, dealers: &[Party]) -> Vec<Party> {
        dealers.iter().filter(|p| !self.survivors.contains(p)).copied().collect()
    }
}

impl SurvivorProof {
    /// Checks that at least t survivors signed the statement.
    ///
    /// # Errors
    /// [`SurvivorError`].
    pub fn check(&self, session: &Session) -> Result<(), SurvivorError> {
        let bytes = self.statement.to_bytes();
        let mut signers = BTreeSet::new();
        for (party, signature) in &self.signatures {
            let key = session.identity(*party).filter(|_| self.statement.survivors.contains(party));
            let key = key.ok_or(SurvivorError::NotSurvivor { party: *party })?;
            verify_bytes(key, &bytes, signature).map_err(|_| SurvivorError::Signature { party: *party })?;
            signers.insert(*party);
        }
        let (got, needed) = (signers.len(), session.thresholds().t());
        if got < needed { Err(SurvivorError::TooFewSignatures { got, needed }) } else { Ok(()) }
    }
}
