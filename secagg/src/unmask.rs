//! Steps 5 and 6: shares released, seeds reconstructed, masks taken off the sum.
use crate::identity::Signed;
use crate::ids::{Digest, Party, Sid};
use crate::keys::{self, LowOrderKey};
use crate::mask::{MaskSet, Sign};
use crate::secret::Secret;
use crate::session::Session;
use crate::shamir::{self, ShamirError};
use crate::shares::{SaltedShare, SeedKind, ShareHeader, SharesMessage, commit_seed};
use crate::survivors::SurvivorStatement;
use crate::wire::{Message, Reader, WireError, Writer, serde_as_wire};
use std::collections::BTreeMap;

/// One share that a survivor releases: of a survivor's own seed, or of a dropped hospital's mask seed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReleasedShare {
    /// Whose seed.
    pub of: Party,
    /// Which seed.
    pub kind: SeedKind,
    /// The share and the salt that opens its commitment.
    pub share: SaltedShare,
}

/// A survivor's shares: exactly one for every hospital that dealt, strictly ascending.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnmaskReply {
    /// The session.
    pub sid: Sid,
    /// The survivor.
    pub from: Party,
    /// Digest of the survivor statement it answers.
    pub statement: Digest,
    /// The shares.
    pub shares: Vec<ReleasedShare>,
}

impl Message for UnmaskReply {
    const TAG: &'static str = "consilium/secagg/v1/unmask";

    fn write(&self, w: &mut Writer) {
        w.fixed(&self.sid.0).u8(self.from.0).fixed(&self.statement.0).count(self.shares.len());
        for share in &self.shares {
            w.u8(share.of.0).u8(share.kind.code());
            w.fixed(share.share.share.expose()).fixed(share.share.salt.expose());
        }
    }

    fn read(r: &mut Reader<'_>) -> Result<Self, WireError> {
        let (sid, from, statement) = (Sid(r.fixed()?), Party(r.u8()?), Digest(r.fixed()?));
        let n = r.count("shares", 66)?;
        let mut shares = Vec::with_capacity(n);
        for _ in 0..n {
            let (of, kind) = (Party(r.u8()?), read_kind(r)?);
            let share = SaltedShare { share: Secret::new(r.fixed()?), salt: Secret::new(r.fixed()?) };
            shares.push(ReleasedShare { of, kind, share });
        }
        if shares.windows(2).any(|w| w[0].of >= w[1].of) {
            return Err(r.field("shares", "are not strictly ascending: at most one share per hospital"));
        }
        Ok(Self { sid, from, statement, shares })
    }
}

fn read_kind(r: &mut Reader<'_>) -> Result<SeedKind, WireError> {
    match r.u8()? {
        0 => Ok(SeedKind::Mask),
        1 => Ok(SeedKind::Own),
        other => Err(r.field("kind", format!("is {other}, must be 0 or 1"))),
    }
}

/// The reconstructed seeds, strictly ascending by party: public once known, for they cover only the sum's masks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RevealedSeeds {
    /// The session.
    pub sid: Sid,
    /// One seed per hospital that dealt: its own seed if it survived, its mask seed if not.
    pub seeds: Vec<(Party, SeedKind, Secret)>,
}

impl Message for RevealedSeeds {
    const TAG: &'static str = "consilium/secagg/v1/seeds";

    fn write(&self, w: &mut Writer) {
        w.fixed(&self.sid.0).count(self.seeds.len());
        for (party, kind, seed) in &self.seeds {
            w.u8(party.0).u8(kind.code()).fixed(seed.expose());
        }
    }

    fn read(r: &mut Reader<'_>) -> Result<Self, WireError> {
        let sid = Sid(r.fixed()?);
        let n = r.count("seeds", 34)?;
        let mut seeds = Vec::with_capacity(n);
        for _ in 0..n {
            seeds.push((Party(r.u8()?), read_kind(r)?, Secret::new(r.fixed()?)));
        }
        if seeds.windows(2).any(|w| w[0].0 >= w[1].0) {
            return Err(r.field("seeds", "are not strictly ascending: at most one seed per hospital"));
        }
        Ok(Self { sid, seeds })
    }
}

serde_as_wire!(UnmaskReply, RevealedSeeds);

/// Why shares or seeds are refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnmaskError {
    /// For another session.
    #[error("unmasking shares are for session {got}, this is {expected}")]
    WrongSession {
        /// The message's.
        got: Sid,
        /// Ours.
        expected: Sid,
    },
    /// For another survivor set.
    #[error("unmasking shares of {from} answer another survivor set")]
    OtherStatement {
        /// The sender.
        from: Party,
    },
    /// Not from a survivor, or not signed by it.
    #[error("unmasking shares of {from} are not signed by a survivor")]
    Signature {
        /// The sender.
        from: Party,
    },
    /// Not exactly one share of the right kind per dealer.
    #[error("unmasking shares of {from} do not hold exactly the {kind:?} share for {of}")]
    Shape {
        /// The sender.
        from: Party,
        /// The hospital concerned.
        of: Party,
        /// The kind that was due.
        kind: SeedKind,
    },
    /// A share that does not open its dealer's commitment: the sender is at fault.
    #[error("the share of {of} that {from} released is not the one {of} committed to: {from} is at fault")]
    Corrupted {
        /// The sender.
        from: Party,
        /// The hospital whose seed it is.
        of: Party,
    },
    /// Fewer than t replies.
    #[error(transparent)]
    Shamir(#[from] ShamirError),
    /// Committed shares that do not give the committed seed: the dealer is at fault.
    #[error(
        "the shares that {dealer} dealt do not give the seed it committed to: {dealer} is at fault, burn the attempt"
    )]
    Dealer {
        /// The dealer.
        dealer: Party,
    },
    /// A revealed mask seed that is not behind the advertised key.
    #[error("the mask seed of {dealer} does not give its advertised key: {dealer} is at fault, burn the attempt")]
    MaskKey {
        /// The dealer.
        dealer: Party,
    },
    /// A peer's key.
    #[error(transparent)]
    LowOrder(#[from] LowOrderKey),
}

/// The kind of share that is due for a dealer, given the survivors.
#[must_use]
pub fn due(statement: &SurvivorStatement, of: Party) -> SeedKind {
    if statement.survivors.contains(&of) { SeedKind::Own } else { SeedKind::Mask }
}

/// Checks a survivor's reply against everything that was signed before.
///
/// # Errors
/// [`UnmaskError`], naming who is at fault.
pub fn check_reply(
    session: &Session,
    dealt: &BTreeMap<Party, SharesMessage>,
    statement: &SurvivorStatement,
    signed: &Signed<UnmaskReply>,
) -> Result<(), UnmaskError> {
    let reply = &signed.body;
    let (from, sid) = (reply.from, session.sid());
    if reply.sid != sid {
        return Err(UnmaskError::WrongSession { got: reply.sid, expected: sid });
    }
    let key = session.identity(from).filter(|_| statement.survivors.contains(&from));
    key.and_then(|key| signed.verify(key).ok()).ok_or(UnmaskError::Signature { from })?;
    if reply.statement != statement.digest() {
        return Err(UnmaskError::OtherStatement { from });
    }
    let mut released = reply.shares.iter();
    for (of, message) in dealt {
        let kind = due(statement, *of);
        let share = released.next().filter(|s| s.of == *of && s.kind == kind);
        let share = share.ok_or(UnmaskError::Shape { from, of: *of, kind })?;
        let entry = message.entries.get(from.index());
        if !entry.is_some_and(|entry| entry.opens(kind, &sid, *of, from, &share.share)) {
            return Err(UnmaskError::Corrupted { from, of: *of });
        }
    }
    match released.next() {
        Some(extra) => Err(UnmaskError::Shape { from, of: extra.of, kind: due(statement, extra.of) }),
        None => Ok(()),
    }
}

/// Reconstructs every seed that is due from checked replies.
///
/// # Errors
/// [`UnmaskError`].
pub fn reconstruct(
    session: &Session,
    dealt: &BTreeMap<Party, SharesMessage>,
    statement: &SurvivorStatement,
    replies: &BTreeMap<Party, Signed<UnmaskReply>>,
) -> Result<RevealedSeeds, UnmaskError> {
    let t = session.thresholds().t();
    let mut seeds = Vec::with_capacity(dealt.len());
    for of in dealt.keys() {
        let released = |reply: &'_ Signed<UnmaskReply>| reply.body.shares.iter().position(|s| s.of == *of);
        let shares: Vec<_> = replies
            .iter()
            .filter_map(|(from, reply)| released(reply).map(|i| (*from, &reply.body.shares[i].share.share)))
            .collect();
        seeds.push((*of, due(statement, *of), shamir::combine(&shares, t)?));
    }
    Ok(RevealedSeeds { sid: session.sid(), seeds })
}

/// Checks revealed seeds against the dealers' signed commitments and advertised keys; anyone can.
///
/// # Errors
/// [`UnmaskError`].
pub fn check_seeds(session: &Session, headers: &[&ShareHeader], seeds: &RevealedSeeds) -> Result<(), UnmaskError> {
    let (sid, attempt) = (session.sid(), session.attempt().digest());
    if seeds.sid != sid {
        return Err(UnmaskError::WrongSession { got: seeds.sid, expected: sid });
    }
    for (dealer, kind, seed) in &seeds.seeds {
        let dealer = *dealer;
        let header = headers.iter().find(|h| h.from == dealer).ok_or(UnmaskError::Dealer { dealer })?;
        let committed = if *kind == SeedKind::Mask { header.mask_seed } else { header.self_seed };
        if commit_seed(*kind, &sid, dealer, seed) != committed {
            return Err(UnmaskError::Dealer { dealer });
        }
        if *kind == SeedKind::Mask {
            let key = keys::x25519_public(&keys::mask_scalar(seed, &attempt));
            if session.advert(dealer).map(|a| a.mask_key) != Some(key) {
                return Err(UnmaskError::MaskKey { dealer });
            }
        }
    }
    Ok(())
}

/// The masks to apply to `Σ y_i` so that `Σ q_i` remains: minus every survivor's own mask, minus what survivors share
/// with hospitals that dropped out. |U3| + |U2 ∖ U3|·|U3| masks.
///
/// # Errors
/// [`UnmaskError::LowOrder`].
pub fn removal(
    session: &Session,
    statement: &SurvivorStatement,
    seeds: &RevealedSeeds,
) -> Result<MaskSet, UnmaskError> {
    let (sid, attempt) = (session.sid(), session.attempt().digest());
    let mut masks = MaskSet::new();
    for (party, kind, seed) in &seeds.seeds {
        if *kind == SeedKind::Own {
            masks.push(Sign::Minus, &keys::self_mask_key(seed, &sid, *party));
            continue;
        }
        let scalar = keys::mask_scalar(seed, &attempt);
        for survivor in &statement.survivors {
            let advert = session.advert(*survivor).ok_or(UnmaskError::Signature { from: *survivor })?;
            let key = keys::pair_mask_key(&scalar, &advert.mask_key, &sid, *party, *survivor)?;
            masks.push(pair_sign(*survivor, *party).opposite(), &key);
        }
    }
    Ok(masks)
}

/// The sign with which `me` adds the mask it shares with `peer`: plus towards later parties, minus towards earlier.
#[must_use]
pub fn pair_sign(me: Party, peer: Party) -> Sign {
    if peer > me { Sign::Plus } else { Sign::Minus }
}
