//! Refusals of the hub's side.
use crate::identity::BadSignature;
use crate::ids::{Digest, Party, Sid, SiteId};
use crate::layout::LayoutError;
use crate::mask::Misaligned;
use crate::session::SessionError;
use crate::shares::ShareError;
use crate::sum::LengthMismatch;
use crate::survivors::SurvivorError;
use crate::unmask::UnmaskError;

/// How a message was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Receipt {
    /// It is new.
    New,
    /// It was here before, identical.
    Repeated,
}

/// Why the hub refuses a message or cannot end a step.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum HubError {
    /// The adverts or the specification.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// A hospital that is not on the roster.
    #[error("site {site} is not on the roster of this attempt")]
    UnknownSite {
        /// The hospital.
        site: SiteId,
    },
    /// A party that is not in the session.
    #[error("party {party} is not in the session, or not among those who may speak in this step")]
    UnknownParty {
        /// The party.
        party: Party,
    },
    /// A message that its hospital did not sign.
    #[error("message of {site}: {source}")]
    Signature {
        /// The hospital.
        site: SiteId,
        /// What failed.
        source: BadSignature,
    },
    /// A message of one hospital over another's connection.
    #[error("{sender} sent a message of {claimed}")]
    Sender {
        /// Who is at the other end.
        sender: SiteId,
        /// Whose message it claims to be.
        claimed: SiteId,
    },
    /// An advert for another attempt.
    #[error("advert of {site} is for another attempt")]
    OtherAttempt {
        /// The hospital.
        site: SiteId,
    },
    /// A message for another session.
    #[error("message is for session {got}, this attempt is {expected}")]
    WrongSession {
        /// The message's.
        got: Sid,
        /// Ours.
        expected: Sid,
    },
    /// A message that rests on another view of the shares.
    #[error("message of {site} rests on another view of the shares: {got} instead of {expected}")]
    OtherView {
        /// The hospital.
        site: SiteId,
        /// The message's.
        got: Digest,
        /// Ours.
        expected: Digest,
    },
    /// A signature on another survivor set.
    #[error("{site} signed another survivor set")]
    OtherSurvivors {
        /// The hospital.
        site: SiteId,
    },
    /// A second, different message of one hospital in one step.
    #[error("{site} sent a second, different message in step {step}: the first one holds")]
    Conflict {
        /// The hospital.
        site: SiteId,
        /// The step.
        step: &'static str,
    },
    /// Not the step that is due.
    #[error("{step} does not fit step {phase}")]
    OutOfOrder {
        /// What was asked.
        step: &'static str,
        /// The step we are in.
        phase: &'static str,
    },
    /// Too few hospitals made the step.
    #[error("step {step}: {got} hospitals made it, {needed} are needed; wait, or burn the attempt")]
    TooFew {
        /// The step.
        step: &'static str,
        /// Made it.
        got: usize,
        /// Needed.
        needed: usize,
    },
    /// Shares.
    #[error(transparent)]
    Share(#[from] ShareError),
    /// Survivors.
    #[error(transparent)]
    Survivors(#[from] SurvivorError),
    /// Unmasking.
    #[error(transparent)]
    Unmask(#[from] UnmaskError),
    /// Chunk numbers.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// Chunks in a manifest.
    #[error("manifest of {site} has {got} chunks, the layout has {expected}")]
    Chunks {
        /// The hospital.
        site: SiteId,
        /// Its chunks.
        got: usize,
        /// The layout's.
        expected: usize,
    },
    /// A chunk of the wrong length.
    #[error(transparent)]
    Length(#[from] LengthMismatch),
    /// A chunk that is not the one in the manifest.
    #[error("chunk {chunk} of {site} is not the one it signed")]
    ChunkDigest {
        /// The hospital.
        site: SiteId,
        /// The chunk.
        chunk: u32,
    },
    /// Wrong number of uploads for a chunk.
    #[error("{got} uploads for a chunk, {expected} hospitals survived")]
    Uploads {
        /// Given.
        got: usize,
        /// Survivors.
        expected: usize,
    },
    /// A layout that does not align; never for layouts of this crate.
    #[error(transparent)]
    Misaligned(#[from] Misaligned),
}
