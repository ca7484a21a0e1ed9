//! The hospital's side as a state machine: messages in, messages out, nothing else.
//!
//! Every method either fails and changes nothing, or moves one step on. **Store the client before sending what a
//! method returned**: a hospital that forgot what it said could say something else, and two different answers are
//! what a malicious hub is after. Asking again with the same input gives the same answer; asking with another input
//! is refused ([`ClientError::Conflict`]).
//!
//! ```text
//! open ─► Advertised ─ adverts ─► Shared ─ bundle ─► Ready ─ bind ─► Masking ─ finish ─► Uploaded
//!                                            ─ survivors ─► Signed ─ proof ─► Released      (burn: from any but the last)
//! ```
mod error;
mod steps;

pub use error::{ClientError, Floors, Step};

use crate::advert::{Advert, Seeds};
use crate::deal::SharePair;
use crate::history::History;
use crate::identity::{Signed, SiteKey};
use crate::ids::{Digest, Party, SiteId};
use crate::mask::Sign;
use crate::roster::VerifiedRoster;
use crate::secret::Secret;
use crate::session::Session;
use crate::shares::SharesMessage;
use crate::spec::AttemptSpec;
use crate::survivors::SurvivorStatement;
use crate::unmask::UnmaskReply;
use crate::upload::UploadManifest;
use crate::wire::Message;
use rand_core::CryptoRng;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// One hospital's part in one attempt. Holds secrets until they are used up; serialise it only into protected storage.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Client {
    attempt: AttemptSpec,
    site: SiteId,
    advert: Signed<Advert>,
    said: Said,
    phase: Phase,
}

/// What was answered to what: the memory that makes answers idempotent.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
struct Said {
    shares: Option<Answer<SharesMessage>>,
    bundle: Option<Answer<()>>,
    update: Option<Answer<()>>,
    manifest: Option<Answer<Signed<UploadManifest>>>,
    statement: Option<Answer<Signed<SurvivorStatement>>>,
    reply: Option<Answer<Signed<UnmaskReply>>>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Answer<T> {
    input: Digest,
    output: T,
}

/// Where the client is, with exactly the secrets that it still needs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
enum Phase {
    /// Keys published.
    Advertised { seeds: Seeds },
    /// Seeds dealt to the others.
    Shared { session: Session, me: Party, seeds: Seeds, own: SharePair },
    /// The others' shares received; U2 is fixed and the mask keys are made.
    Ready { held: Held, keys: Vec<(Sign, Secret)> },
    /// The update is bound: these chunks, by digest, and no others get these masks.
    Masking { held: Held, keys: Vec<(Sign, Secret)>, plain: Vec<Digest> },
    /// The manifest is signed; mask keys are gone.
    Uploaded { held: Held },
    /// A survivor set is signed, the only one ever.
    Signed { held: Held },
    /// Shares released; no secret is left.
    Released { session: Session },
    /// Given up; no secret is left.
    Burned { reason: String },
}

/// What a client holds for the others from step 2 on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Held {
    session: Session,
    me: Party,
    /// Digest of U2 and its headers.
    view: Digest,
    /// The shares each dealer of U2 dealt to us.
    shares: BTreeMap<Party, SharePair>,
}

impl Phase {
    fn name(&self) -> &'static str {
        match self {
            Self::Advertised { .. } => "Advertised",
            Self::Shared { .. } => "Shared",
            Self::Ready { .. } => "Ready",
            Self::Masking { .. } => "Masking",
            Self::Uploaded { .. } => "Uploaded",
            Self::Signed { .. } => "Signed",
            Self::Released { .. } => "Released",
            Self::Burned { .. } => "Burned",
        }
    }
}

/// What a hospital checks an attempt against; all of it is its own, none the hub's.
#[derive(Debug, Clone, Copy)]
pub struct Guard<'a> {
    /// The roster that governance signed.
    pub roster: &'a VerifiedRoster,
    /// The SitePolicy's floors.
    pub floors: &'a Floors,
    /// What was released and signed before.
    pub history: &'a History,
}

impl Client {
    /// Begins a part in an attempt; send [`Client::advert`].
    ///
    /// # Errors
    /// [`ClientError`] when the specification, the roster, the floors or the past forbid it.
    pub fn open(
        attempt: AttemptSpec,
        site: SiteId,
        key: &SiteKey,
        guard: Guard<'_>,
        rng: &mut impl CryptoRng,
    ) -> Result<Self, ClientError> {
        attempt.round.check().map_err(crate::session::SessionError::from)?;
        guard.floors.check(&attempt.round)?;
        guard.history.may_take_part(&attempt.round, None)?;
        let (named, verified) = (attempt.round.roster, guard.roster.digest());
        if named != verified {
            return Err(crate::session::SessionError::OtherRoster { named, verified }.into());
        }
        if guard.roster.key(&site) != Some(&key.public()) {
            return Err(ClientError::OwnKey { site, key: key.public() });
        }
        let seeds = Seeds::random(rng);
        let advert = seeds.advertise(&attempt.digest(), &site, key, rng);
        Ok(Self { attempt, site, advert, said: Said::default(), phase: Phase::Advertised { seeds } })
    }

    /// The advert to send.
    #[must_use]
    pub fn advert(&self) -> &Signed<Advert> {
        &self.advert
    }

    /// The attempt.
    #[must_use]
    pub fn attempt(&self) -> &AttemptSpec {
        &self.attempt
    }

    /// The session, from step 2 on.
    #[must_use]
    pub fn session(&self) -> Option<&Session> {
        match &self.phase {
            Phase::Shared { session, .. } | Phase::Released { session } => Some(session),
            Phase::Ready { held, .. }
            | Phase::Masking { held, .. }
            | Phase::Uploaded { held }
            | Phase::Signed { held } => Some(&held.session),
            Phase::Advertised { .. } | Phase::Burned { .. } => None,
        }
    }

    /// The name of the state, for logs and statuses.
    #[must_use]
    pub fn phase(&self) -> &'static str {
        self.phase.name()
    }

    /// Whether shares were released: from then on the attempt can only be finished, by nobody abandoned.
    #[must_use]
    pub fn released(&self) -> bool {
        matches!(self.phase, Phase::Released { .. })
    }

    /// The survivor set that was signed, if any.
    #[must_use]
    pub fn signed_survivors(&self) -> Option<&SurvivorStatement> {
        self.said.statement.as_ref().map(|a| &a.output.body)
    }

    /// Gives the attempt up and wipes every secret. After the release there is nothing left to give up.
    ///
    /// # Errors
    /// [`ClientError::OutOfOrder`] after the release.
    pub fn burn(&mut self, reason: impl Into<String>) -> Result<(), ClientError> {
        if self.released() {
            return Err(self.out_of_order(Step::Burn));
        }
        // The statement stays: that it was signed must be remembered.
        self.said = Said { statement: self.said.statement.take(), ..Said::default() };
        self.phase = Phase::Burned { reason: reason.into() };
        Ok(())
    }

    fn out_of_order(&self, step: Step) -> ClientError {
        match &self.phase {
            Phase::Burned { reason } => ClientError::Burned { reason: reason.clone() },
            phase => ClientError::OutOfOrder { step, phase: phase.name() },
        }
    }

    fn check_not_burned(&self) -> Result<(), ClientError> {
        match &self.phase {
            Phase::Burned { reason } => Err(ClientError::Burned { reason: reason.clone() }),
            _ => Ok(()),
        }
    }
}

/// The earlier answer to the same input, a refusal for another input, or nothing yet.
fn earlier<T>(said: Option<&Answer<T>>, step: Step, input: Digest) -> Result<Option<&T>, ClientError> {
    match said {
        Some(answer) if answer.input == input => Ok(Some(&answer.output)),
        Some(answer) => Err(ClientError::Conflict { step, first: answer.input, now: input }),
        None => Ok(None),
    }
}
