//! The hub's side as a state machine. It relays, collects and, at the end, takes the masks off a sum; nothing that it
//! holds before that depends on any hospital's update.
//!
//! Messages may arrive in any order within a step and again; a second, different one is refused. `close_*` ends a
//! step with those who made it (the driver decides when, by its deadlines) and fails without effect when they are too
//! few. Replaying the same messages into a fresh hub gives the same state, so a journal of messages is a backup.
mod error;
mod steps;

pub use error::{HubError, Receipt};

use crate::advert::{Advert, AdvertList};
use crate::identity::Signed;
use crate::ids::{Party, Signature, SiteId};
use crate::roster::VerifiedRoster;
use crate::session::Session;
use crate::shares::SharesMessage;
use crate::spec::AttemptSpec;
use crate::survivors::SurvivorProof;
use crate::unmask::{RevealedSeeds, UnmaskReply};
use crate::upload::UploadManifest;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// One attempt at the hub.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Hub {
    attempt: AttemptSpec,
    roster: VerifiedRoster,
    phase: Phase,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
enum Phase {
    /// Collecting adverts.
    Advertise { adverts: BTreeMap<SiteId, Signed<Advert>> },
    /// Collecting shares.
    Share { list: AdvertList, session: Session, dealt: BTreeMap<Party, SharesMessage> },
    /// Collecting manifests (chunks go to a store).
    Upload { dealt: Dealt, manifests: BTreeMap<Party, Signed<UploadManifest>> },
    /// Collecting signatures on the survivor set.
    Agree { dealt: Dealt, survived: Survived, signatures: BTreeMap<Party, Signature> },
    /// Collecting shares that take the masks off.
    Unmask { dealt: Dealt, survived: Survived, proof: SurvivorProof, replies: BTreeMap<Party, Signed<UnmaskReply>> },
    /// Seeds known; the sum can be had chunk by chunk.
    Sum { dealt: Dealt, survived: Survived, proof: SurvivorProof, seeds: RevealedSeeds },
}

/// What is fixed once shares are dealt: U2, and what everyone sees of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Dealt {
    list: AdvertList,
    session: Session,
    shares: BTreeMap<Party, SharesMessage>,
    view: crate::ids::Digest,
}

/// What is fixed once survivors are proposed: U3.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Survived {
    statement: crate::survivors::SurvivorStatement,
    manifests: BTreeMap<Party, Signed<UploadManifest>>,
}

impl Phase {
    fn name(&self) -> &'static str {
        match self {
            Self::Advertise { .. } => "Advertise",
            Self::Share { .. } => "Share",
            Self::Upload { .. } => "Upload",
            Self::Agree { .. } => "Agree",
            Self::Unmask { .. } => "Unmask",
            Self::Sum { .. } => "Sum",
        }
    }
}

impl Hub {
    /// Opens an attempt for hospitals of a roster.
    ///
    /// # Errors
    /// [`HubError`] when the specification is unusable or names another roster.
    pub fn open(attempt: AttemptSpec, roster: VerifiedRoster) -> Result<Self, HubError> {
        attempt.round.check().map_err(crate::session::SessionError::from)?;
        let (named, verified) = (attempt.round.roster, roster.digest());
        if named != verified {
            return Err(crate::session::SessionError::OtherRoster { named, verified }.into());
        }
        Ok(Self { attempt, roster, phase: Phase::Advertise { adverts: BTreeMap::new() } })
    }

    /// The attempt.
    #[must_use]
    pub fn attempt(&self) -> &AttemptSpec {
        &self.attempt
    }

    /// The name of the step, for logs and statuses.
    #[must_use]
    pub fn phase(&self) -> &'static str {
        self.phase.name()
    }

    /// The session, once adverts are closed.
    #[must_use]
    pub fn session(&self) -> Option<&Session> {
        match &self.phase {
            Phase::Advertise { .. } => None,
            Phase::Share { session, .. } => Some(session),
            Phase::Upload { dealt, .. }
            | Phase::Agree { dealt, .. }
            | Phase::Unmask { dealt, .. }
            | Phase::Sum { dealt, .. } => Some(&dealt.session),
        }
    }

    /// Whether a proof of survivors exists, so that some hospital may have released shares: from then on the attempt
    /// can only be finished; before, it may be burned and another one opened.
    #[must_use]
    pub fn committed(&self) -> bool {
        matches!(self.phase, Phase::Unmask { .. } | Phase::Sum { .. })
    }

    /// Who has delivered in the present step, by name.
    #[must_use]
    pub fn heard(&self) -> Vec<SiteId> {
        let named = |parties: Vec<Party>| {
            let session = self.session();
            parties.into_iter().filter_map(|p| session?.site(p).cloned()).collect()
        };
        match &self.phase {
            Phase::Advertise { adverts } => adverts.keys().cloned().collect(),
            Phase::Share { dealt, .. } => named(dealt.keys().copied().collect()),
            Phase::Upload { manifests, .. } => named(manifests.keys().copied().collect()),
            Phase::Agree { signatures, .. } => named(signatures.keys().copied().collect()),
            Phase::Unmask { replies, .. } => named(replies.keys().copied().collect()),
            Phase::Sum { survived, .. } => named(survived.statement.survivors.clone()),
        }
    }

    fn out_of_order(&self, step: &'static str) -> HubError {
        HubError::OutOfOrder { step, phase: self.phase.name() }
    }
}

/// Puts a message in its place: new, the same again, or refused.
fn admit<K: Ord, V: PartialEq>(
    map: &mut BTreeMap<K, V>,
    key: K,
    value: V,
    site: &SiteId,
    step: &'static str,
) -> Result<Receipt, HubError> {
    match map.get(&key) {
        Some(known) if *known == value => Ok(Receipt::Repeated),
        Some(_) => Err(HubError::Conflict { site: site.clone(), step }),
        None => {
            map.insert(key, value);
            Ok(Receipt::New)
        }
    }
}
