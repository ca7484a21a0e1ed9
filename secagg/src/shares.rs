//! Step 2: every hospital shares its two seeds with all others, in envelopes only they can open, with commitments
//! that tell later who sent a wrong share.
//!
//! The signed header holds a digest per recipient's entry, so that a recipient can check its own entry against the
//! signature without receiving everyone else's.
use crate::identity::Signed;
use crate::ids::{Digest, Party, Sid};
use crate::secret::Secret;
use crate::session::Session;
use crate::wire::{Message, Reader, WireError, Writer, serde_as_wire};
use sha2::{Digest as _, Sha256};

/// Which of the two seeds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
pub enum SeedKind {
    /// r_i, for a hospital that dropped out.
    Mask,
    /// b_i, for a hospital that survived.
    Own,
}

impl SeedKind {
    pub(crate) fn code(self) -> u8 {
        match self {
            Self::Mask => 0,
            Self::Own => 1,
        }
    }
}

/// The commitment to a seed (hiding because the seed has 256 bits of entropy).
#[must_use]
pub fn commit_seed(kind: SeedKind, sid: &Sid, party: Party, seed: &Secret) -> Digest {
    let mut w = Writer::new();
    w.string("consilium/secagg/v1/seed").u8(kind.code()).fixed(&sid.0).u8(party.0).fixed(seed.expose());
    hash_secret(w)
}

fn commit_share(kind: SeedKind, sid: &Sid, from: Party, to: Party, share: &SaltedShare) -> Digest {
    let mut w = Writer::new();
    w.string("consilium/secagg/v1/share").u8(kind.code()).fixed(&sid.0).u8(from.0).u8(to.0);
    w.fixed(share.salt.expose()).fixed(share.share.expose());
    hash_secret(w)
}

fn hash_secret(w: Writer) -> Digest {
    Digest(Sha256::digest(&*zeroize::Zeroizing::new(w.finish())).into())
}

/// A share with the salt that opens its commitment.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct SaltedShare {
    /// The 32 bytes of the share.
    pub share: Secret,
    /// The salt.
    pub salt: Secret,
}

/// A dealer's commitments for one recipient, and the envelope with the shares (empty for the dealer itself).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShareEntry {
    /// Commitment to the share of the mask seed.
    pub mask_share: Digest,
    /// Commitment to the share of the self seed.
    pub own_share: Digest,
    /// Nonce, ciphertext and tag.
    pub envelope: Vec<u8>,
}

impl ShareEntry {
    pub(crate) fn commit(sid: &Sid, from: Party, to: Party, shares: &[SaltedShare; 2], envelope: Vec<u8>) -> Self {
        let of = |kind: SeedKind| commit_share(kind, sid, from, to, &shares[usize::from(kind.code())]);
        Self { mask_share: of(SeedKind::Mask), own_share: of(SeedKind::Own), envelope }
    }

    /// Whether a share opens this entry's commitment.
    #[must_use]
    pub fn opens(&self, kind: SeedKind, sid: &Sid, from: Party, to: Party, share: &SaltedShare) -> bool {
        let committed = if kind == SeedKind::Mask { self.mask_share } else { self.own_share };
        commit_share(kind, sid, from, to, share) == committed
    }
}

impl Message for ShareEntry {
    const TAG: &'static str = "consilium/secagg/v1/share-entry";

    fn write(&self, w: &mut Writer) {
        w.fixed(&self.mask_share.0).fixed(&self.own_share.0).bytes(&self.envelope);
    }

    fn read(r: &mut Reader<'_>) -> Result<Self, WireError> {
        Ok(Self {
            mask_share: Digest(r.fixed()?),
            own_share: Digest(r.fixed()?),
            envelope: r.bytes("envelope")?.to_vec(),
        })
    }
}

/// What a dealer signs: commitments to its seeds, and the digest of every recipient's entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShareHeader {
    /// The session.
    pub sid: Sid,
    /// The dealer.
    pub from: Party,
    /// Commitment to r_i.
    pub mask_seed: Digest,
    /// Commitment to b_i.
    pub self_seed: Digest,
    /// Digests of the entries, one per party of the session.
    pub entries: Vec<Digest>,
}

impl Message for ShareHeader {
    const TAG: &'static str = "consilium/secagg/v1/share-header";

    fn write(&self, w: &mut Writer) {
        w.fixed(&self.sid.0).u8(self.from.0).fixed(&self.mask_seed.0).fixed(&self.self_seed.0);
        w.count(self.entries.len());
        for entry in &self.entries {
            w.fixed(&entry.0);
        }
    }

    fn read(r: &mut Reader<'_>) -> Result<Self, WireError> {
        let (sid, from) = (Sid(r.fixed()?), Party(r.u8()?));
        let (mask_seed, self_seed) = (Digest(r.fixed()?), Digest(r.fixed()?));
        let n = r.count("entries", 32)?;
        let entries = (0..n).map(|_| Ok(Digest(r.fixed()?))).collect::<Result<_, WireError>>()?;
        Ok(Self { sid, from, mask_seed, self_seed, entries })
    }
}

/// A dealer's whole message to the hub.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SharesMessage {
    /// The signed header.
    pub header: Signed<ShareHeader>,
    /// The entries, one per party of the session.
    pub entries: Vec<ShareEntry>,
}

impl Message for SharesMessage {
    const TAG: &'static str = "consilium/secagg/v1/shares";

    fn write(&self, w: &mut Writer) {
        w.bytes(&self.header.to_bytes()).count(self.entries.len());
        for entry in &self.entries {
            w.bytes(&entry.to_bytes());
        }
    }

    fn read(r: &mut Reader<'_>) -> Result<Self, WireError> {
        let header = Signed::from_bytes(r.bytes("header")?)?;
        let n = r.count("entries", 64)?;
        let entries = (0..n).map(|_| ShareEntry::from_bytes(r.bytes("entry")?)).collect::<Result<_, _>>()?;
        Ok(Self { header, entries })
    }
}

/// What one recipient gets of one dealer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeliveredShare {
    /// The dealer's signed header.
    pub header: Signed<ShareHeader>,
    /// The recipient's entry.
    pub entry: ShareEntry,
}

/// What one recipient gets of all dealers (U2), ascending by dealer, its own included.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShareBundle {
    /// The session.
    pub sid: Sid,
    /// The recipient.
    pub to: Party,
    /// The shares.
    pub shares: Vec<DeliveredShare>,
}

impl Message for ShareBundle {
    const TAG: &'static str = "consilium/secagg/v1/share-bundle";

    fn write(&self, w: &mut Writer) {
        w.fixed(&self.sid.0).u8(self.to.0).count(self.shares.len());
        for share in &self.shares {
            w.bytes(&share.header.to_bytes()).bytes(&share.entry.to_bytes());
        }
    }

    fn read(r: &mut Reader<'_>) -> Result<Self, WireError> {
        let (sid, to) = (Sid(r.fixed()?), Party(r.u8()?));
        let n = r.count("shares", 128)?;
        let mut shares = Vec::with_capacity(n);
        for _ in 0..n {
            let header = Signed::from_bytes(r.bytes("header")?)?;
            shares.push(DeliveredShare { header, entry: ShareEntry::from_bytes(r.bytes("entry")?)? });
        }
        Ok(Self { sid, to, shares })
    }
}

serde_as_wire!(ShareEntry, ShareHeader, SharesMessage, ShareBundle);

/// Why a dealer's shares are refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ShareError {
    /// For another session.
    #[error("shares are for session {got}, this is {expected}")]
    WrongSession {
        /// The message's session.
        got: Sid,
        /// Ours.
        expected: Sid,
    },
    /// Not signed by the dealer.
    #[error("shares of {dealer} are not signed by it")]
    Signature {
        /// The dealer.
        dealer: Party,
    },
    /// A dealer outside the session.
    #[error("dealer {dealer} is not in the session")]
    UnknownDealer {
        /// The dealer.
        dealer: Party,
    },
    /// Wrong number of entries.
    #[error("shares of {dealer} have {got} entries, the session has {expected} parties")]
    Count {
        /// The dealer.
        dealer: Party,
        /// Entries.
        got: usize,
        /// Parties.
        expected: usize,
    },
    /// The entry is not the one the dealer signed: it was changed on the way.
    #[error("the entry of {dealer} for {to} is not the one it signed: it was changed on the way")]
    Entry {
        /// The dealer.
        dealer: Party,
        /// The recipient.
        to: Party,
    },
    /// The envelope does not open, or holds shares other than committed: the dealer cheats.
    #[error("the envelope of {dealer} for {to} does not hold the committed shares: the dealer is at fault")]
    Envelope {
        /// The dealer.
        dealer: Party,
        /// The recipient.
        to: Party,
    },
}

impl ShareHeader {
    /// Checks a header's signature, session and shape.
    ///
    /// # Errors
    /// [`ShareError`].
    pub fn check<'a>(session: &Session, signed: &'a Signed<Self>) -> Result<&'a Self, ShareError> {
        let header = &signed.body;
        if header.sid != session.sid() {
            return Err(ShareError::WrongSession { got: header.sid, expected: session.sid() });
        }
        let dealer = header.from;
        let key = session.identity(dealer).ok_or(ShareError::UnknownDealer { dealer })?;
        signed.verify(key).map_err(|_| ShareError::Signature { dealer })?;
        let expected = session.thresholds().n();
        if header.entries.len() != expected {
            return Err(ShareError::Count { dealer, got: header.entries.len(), expected });
        }
        Ok(header)
    }
}

impl SharesMessage {
    /// Checks everything the hub can check: signature, session, shape, and that the entries are the signed ones.
    ///
    /// # Errors
    /// [`ShareError`].
    pub fn check(&self, session: &Session) -> Result<(), ShareError> {
        let header = ShareHeader::check(session, &self.header)?;
        if self.entries.len() != header.entries.len() {
            let (got, expected) = (self.entries.len(), header.entries.len());
            return Err(ShareError::Count { dealer: header.from, got, expected });
        }
        for ((to, entry), digest) in session.parties().zip(&self.entries).zip(&header.entries) {
            if entry.digest() != *digest {
                return Err(ShareError::Entry { dealer: header.from, to });
            }
        }
        Ok(())
    }
}

/// The view of step 2 that survivors sign: which hospitals dealt (U2) and with which headers.
#[must_use]
pub fn view_digest<'a>(sid: &Sid, headers: impl Iterator<Item = &'a ShareHeader>) -> Digest {
    let mut w = Writer::new();
    w.string("consilium/secagg/v1/view").fixed(&sid.0);
    for header in headers {
        w.u8(header.from.0).fixed(&header.digest().0);
    }
    Digest(Sha256::digest(w.finish()).into())
}
