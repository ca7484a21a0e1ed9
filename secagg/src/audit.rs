//! Anyone's check that the published sum is the sum: from signed messages, revealed seeds and the masked uploads,
//! without seeing any hospital's update.
use crate::advert::AdvertList;
use crate::hub::HubError;
use crate::identity::Signed;
use crate::ids::{Digest, Party};
use crate::roster::VerifiedRoster;
use crate::session::{Session, SessionError};
use crate::shares::{ShareError, ShareHeader, view_digest};
use crate::spec::AttemptSpec;
use crate::survivors::{SurvivorError, SurvivorProof};
use crate::unmask::{RevealedSeeds, UnmaskError, check_seeds, due};
use crate::unmasking::Unmasking;
use crate::upload::{UploadManifest, elements_digest};
use serde::{Deserialize, Serialize};
use std::num::NonZeroUsize;

/// The public record of a finished session.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Transcript {
    /// The attempt.
    pub attempt: AttemptSpec,
    /// U1.
    pub adverts: AdvertList,
    /// The headers of U2.
    pub headers: Vec<Signed<ShareHeader>>,
    /// The manifests of U3.
    pub manifests: Vec<Signed<UploadManifest>>,
    /// The signed survivor set.
    pub proof: SurvivorProof,
    /// The revealed seeds.
    pub seeds: RevealedSeeds,
}

/// Why a transcript does not hold.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum AuditError {
    /// The session.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// A header.
    #[error(transparent)]
    Share(#[from] ShareError),
    /// The survivors.
    #[error(transparent)]
    Survivors(#[from] SurvivorError),
    /// The seeds.
    #[error(transparent)]
    Unmask(#[from] UnmaskError),
    /// Seeds that are not exactly the due ones.
    #[error("the transcript reveals other seeds than the survivor set calls for")]
    Seeds,
    /// A manifest.
    #[error("manifest of {party} is not a survivor's, not signed by it, or for another session or view")]
    Manifest {
        /// The party.
        party: Party,
    },
    /// Uploads or layout.
    #[error(transparent)]
    Hub(#[from] HubError),
    /// Another sum.
    #[error("chunk {chunk} of the published sum has digest {published}, the uploads give {computed}")]
    OtherSum {
        /// The chunk.
        chunk: u32,
        /// Published.
        published: Digest,
        /// Computed.
        computed: Digest,
    },
}

/// A checked transcript, ready to recompute the sum.
#[derive(Debug)]
pub struct Audit {
    unmasking: Unmasking,
}

impl Audit {
    /// Checks everything that is signed or committed to.
    ///
    /// # Errors
    /// [`AuditError`].
    pub fn open(transcript: &Transcript, roster: &VerifiedRoster) -> Result<Self, AuditError> {
        let session = Session::open(&transcript.attempt, &transcript.adverts, roster)?;
        for header in &transcript.headers {
            ShareHeader::check(&session, header)?;
        }
        let headers: Vec<_> = transcript.headers.iter().map(|h| &h.body).collect();
        let dealers: Vec<Party> = headers.iter().map(|h| h.from).collect();
        let view = view_digest(&session.sid(), headers.iter().copied());
        let statement = &transcript.proof.statement;
        statement.check(&session, &view, &dealers)?;
        transcript.proof.check(&session)?;
        check_seeds(&session, &headers, &transcript.seeds)?;
        let revealed: Vec<_> = transcript.seeds.seeds.iter().map(|(p, kind, _)| (*p, *kind)).collect();
        if revealed != dealers.iter().map(|p| (*p, due(statement, *p))).collect::<Vec<_>>() {
            return Err(AuditError::Seeds);
        }
        for (signed, party) in transcript.manifests.iter().zip(&statement.survivors) {
            let manifest = &signed.body;
            let known = manifest.from == *party && manifest.sid == session.sid() && manifest.view == view;
            let key = session.identity(*party).filter(|_| known);
            key.and_then(|k| signed.verify(k).ok()).ok_or(AuditError::Manifest { party: manifest.from })?;
        }
        let manifests = transcript.manifests.iter().map(|m| &m.body);
        Ok(Self { unmasking: Unmasking::new(&session, statement, manifests, &transcript.seeds)? })
    }

    /// The hospitals' order and the layout of chunks.
    #[must_use]
    pub fn unmasking(&self) -> &Unmasking {
        &self.unmasking
    }

    /// Recomputes one chunk of the sum and compares its digest with the published one.
    ///
    /// # Errors
    /// [`AuditError`].
    pub fn check_chunk(
        &self,
        chunk: u32,
        uploads: &[&[u8]],
        published: &Digest,
        threads: NonZeroUsize,
    ) -> Result<(), AuditError> {
        let mut sum = Vec::new();
        self.unmasking.sum_chunk(chunk, uploads, threads, &mut sum)?;
        let computed = elements_digest(&sum);
        if computed == *published {
            return Ok(());
        }
        Err(AuditError::OtherSum { chunk, published: *published, computed })
    }
}
