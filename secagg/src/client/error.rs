//! Refusals of the hospital's side, each naming what was wrong.
use crate::deal::DealError;
use crate::history::HistoryError;
use crate::ids::{Digest, PublicKey, Sid, SiteId};
use crate::keys::LowOrderKey;
use crate::session::SessionError;
use crate::shares::ShareError;
use crate::spec::RoundSpec;
use crate::survivors::SurvivorError;

/// What the hub asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Shares for a list of adverts.
    Share,
    /// Taking the others' shares.
    Bundle,
    /// Binding the update.
    Update,
    /// Masking and the manifest.
    Upload,
    /// Signing survivors.
    Agree,
    /// Releasing shares.
    Unmask,
    /// Giving up.
    Burn,
}

/// The least that this hospital asks of any attempt, whatever the hub says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Floors {
    /// Fewest hospitals in a sum.
    pub min_contributors: u16,
    /// Colluding hospitals to withstand.
    pub colluders: u16,
}

impl Floors {
    /// Checks a round's own floors against these.
    ///
    /// # Errors
    /// [`ClientError::Floor`].
    pub fn check(&self, round: &RoundSpec) -> Result<(), ClientError> {
        let floor = |field, got, least| {
            if got < least { Err(ClientError::Floor { field, got, least }) } else { Ok(()) }
        };
        floor("minContributors", round.min_contributors, self.min_contributors)?;
        floor("colluders", round.colluders, self.colluders)
    }
}

/// Why a client refuses. Nothing that depends on a secret left it.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ClientError {
    /// The round offers less than the SitePolicy asks for.
    #[error("the round has {field} {got}, this hospital's policy asks for at least {least}")]
    Floor {
        /// The field.
        field: &'static str,
        /// The round's.
        got: u16,
        /// The policy's.
        least: u16,
    },
    /// The roster does not hold this hospital's key.
    #[error("the roster does not list {site} with this hospital's key {key}")]
    OwnKey {
        /// The hospital.
        site: SiteId,
        /// Its key.
        key: PublicKey,
    },
    /// The past forbids it.
    #[error(transparent)]
    History(#[from] HistoryError),
    /// The adverts make no session.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// The list does not hold our advert as we sent it.
    #[error("the adverts do not hold this hospital's own as it was sent: the hub replaced it or left it out")]
    OwnAdvert,
    /// Dealing failed.
    #[error(transparent)]
    Deal(#[from] DealError),
    /// Someone's shares.
    #[error(transparent)]
    Share(#[from] ShareError),
    /// A bundle for another session.
    #[error("message is for session {got}, this client is in {expected}")]
    WrongSession {
        /// The message's.
        got: Sid,
        /// Ours.
        expected: Sid,
    },
    /// A bundle that is not ours, out of order, or without our own shares.
    #[error("the share bundle {problem}")]
    Bundle {
        /// What is wrong.
        problem: &'static str,
    },
    /// Too few hospitals dealt shares.
    #[error("{got} hospitals dealt shares, at least {needed} are needed")]
    TooFewDealers {
        /// Dealers.
        got: usize,
        /// Needed.
        needed: usize,
    },
    /// A mask key that is public.
    #[error(transparent)]
    LowOrder(#[from] LowOrderKey),
    /// Wrong number of chunks.
    #[error("{got} chunk digests, the layout has {expected} chunks")]
    Chunks {
        /// Given.
        got: usize,
        /// Chunks.
        expected: usize,
    },
    /// The survivor set or its proof.
    #[error(transparent)]
    Survivors(#[from] SurvivorError),
    /// A proof for another set than the one signed.
    #[error("the proof is for survivor set {got}, this hospital signed {signed}")]
    OtherSurvivors {
        /// The proof's.
        got: Digest,
        /// The one signed.
        signed: Digest,
    },
    /// The step was answered before, to other input.
    #[error("step {step:?} was answered to input {first}; {now} is another: one session, one answer")]
    Conflict {
        /// The step.
        step: Step,
        /// Digest of the first input.
        first: Digest,
        /// Digest of this one.
        now: Digest,
    },
    /// Not the step that is due.
    #[error("step {step:?} does not fit state {phase}")]
    OutOfOrder {
        /// The step.
        step: Step,
        /// The state.
        phase: &'static str,
    },
    /// The attempt was given up.
    #[error("the attempt was given up: {reason}")]
    Burned {
        /// Why.
        reason: String,
    },
}
