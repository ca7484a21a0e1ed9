//! Why a sum cannot be made.

use consilium_federation::model::ModelError;
use consilium_federation::{Digest, SiteName};
use consilium_secagg::hub::HubError;
use consilium_secagg::layout::LayoutError;
use consilium_secagg::ring::RingError;

use crate::store::StoreError;

/// The sum of an attempt was not made; nothing points to what was written of it.
#[derive(Debug, thiserror::Error)]
pub enum AggregateError {
    /// Nobody, someone twice, or more than the scale was made for.
    #[error(
        "{found} contributors for a roster of {roster}: they must be distinct, at least one and at most the roster"
    )]
    Contributors {
        /// How many were named.
        found: usize,
        /// The roster's size.
        roster: u32,
    },
    /// An upload for another model.
    #[error("the upload of {site} has {found} chunks, the model needs {expected}; it trained another model")]
    ChunkCount {
        /// Whose.
        site: SiteName,
        /// Chunks in the upload.
        found: usize,
        /// Chunks needed.
        expected: u32,
    },
    /// One chunk of one hospital cannot be used.
    #[error("chunk {chunk} of {site} cannot be used: {source}")]
    Chunk {
        /// Whose.
        site: SiteName,
        /// Which.
        chunk: u32,
        /// Why.
        source: ChunkError,
    },
    /// One chunk of the base model cannot be used.
    #[error("chunk {chunk} of the base model cannot be used: {source}; restore the store's volume")]
    Base {
        /// Which.
        chunk: usize,
        /// Why.
        source: ChunkError,
    },
    /// One chunk of what the server's rule remembers cannot be used.
    #[error("chunk {chunk} of what the server's rule remembers cannot be used: {source}; restore the store's volume")]
    Moment {
        /// Which.
        chunk: usize,
        /// Why.
        source: ChunkError,
    },
    /// What the server's rule remembers is of another model.
    #[error(
        "object {0}, which the server's rule remembers, is not laid out as the base model; restore the store's volume"
    )]
    OtherMoment(Digest),
    /// The weights, the roster or the clip norm.
    #[error(transparent)]
    Ring(#[from] RingError),
    /// A model too large to be summed.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// The base model.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The sum is no mean of clipped updates.
    #[error(
        "the mean update has the norm {norm:.6}, but no mean of updates clipped to {clip} can; a hospital did not clip"
    )]
    Norm {
        /// L2 norm of the mean.
        norm: f64,
        /// The clip norm.
        clip: f64,
    },
    /// The new model would hold an infinity.
    #[error(
        "parameter {parameter} of the new model is not finite; the base model has diverged, start from an earlier one"
    )]
    NotFinite {
        /// Which, counted from 0.
        parameter: u64,
    },
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The masks do not come off.
    #[error("the masks cannot be taken off: {0}")]
    Unmask(#[from] HubError),
    /// The work was cut short.
    #[error("the sum was stopped before it was done; it is made again")]
    Stopped,
}

impl AggregateError {
    /// The same sum may succeed later; otherwise the attempt is to be burned.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Store(error) => error.is_transient(),
            Self::Chunk { source: ChunkError::Read(_), .. }
            | Self::Base { source: ChunkError::Read(_), .. }
            | Self::Moment { source: ChunkError::Read(_), .. }
            | Self::Stopped => true,
            _ => false,
        }
    }
}

/// What is wrong with a stored chunk.
#[derive(Debug, thiserror::Error)]
pub enum ChunkError {
    /// It is gone.
    #[error("it is no longer in the store")]
    Missing,
    /// The volume.
    #[error("it cannot be read: {0}")]
    Read(#[from] std::io::Error),
    /// Too short or too long.
    #[error("it does not have the {expected} bytes that the model's layout asks for")]
    Size {
        /// Bytes needed.
        expected: usize,
    },
    /// Not what the hospital sent.
    #[error("it has the digest {found}, expected {expected}; the volume damaged it")]
    Digest {
        /// The digest it has.
        found: String,
        /// The digest it should have.
        expected: String,
    },
}

impl ChunkError {
    /// A chunk's fault if the store says that it is gone; the store's own fault otherwise.
    pub(super) fn from_store(error: StoreError) -> Result<Self, StoreError> {
        match error {
            StoreError::Missing { .. } => Ok(Self::Missing),
            other => Err(other),
        }
    }
}
