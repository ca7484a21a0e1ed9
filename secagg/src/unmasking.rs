//! Step 6: the sum, chunk by chunk, in memory of one chunk whatever the number of hospitals and parameters.
use crate::hub::HubError;
use crate::ids::{Digest, SiteId};
use crate::layout::Layout;
use crate::mask::MaskSet;
use crate::session::Session;
use crate::sum;
use crate::survivors::SurvivorStatement;
use crate::unmask::{self, RevealedSeeds};
use crate::upload::{UploadManifest, chunk_digest};
use std::num::NonZeroUsize;

/// Takes the masks off sums of chunks. Shareable between threads.
#[derive(Debug)]
pub struct Unmasking {
    layout: Layout,
    masks: MaskSet,
    survivors: Vec<(SiteId, Vec<Digest>)>,
}

impl Unmasking {
    /// From checked seeds and the survivors' manifests (ascending by party).
    ///
    /// # Errors
    /// [`HubError`].
    pub fn new<'a>(
        session: &Session,
        statement: &SurvivorStatement,
        manifests: impl Iterator<Item = &'a UploadManifest>,
        seeds: &RevealedSeeds,
    ) -> Result<Self, HubError> {
        let layout = session.attempt().round.layout()?;
        let masks = unmask::removal(session, statement, seeds)?;
        let named = |m: &UploadManifest| {
            let site = session.site(m.from).ok_or(HubError::UnknownParty { party: m.from })?;
            Ok((site.clone(), m.chunks.clone()))
        };
        let survivors = manifests.map(named).collect::<Result<Vec<_>, HubError>>()?;
        let (got, expected) = (survivors.len(), statement.survivors.len());
        if got != expected {
            return Err(HubError::Uploads { got, expected });
        }
        Ok(Self { layout, masks, survivors })
    }

    /// The layout of sums.
    #[must_use]
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// The hospitals in the sum, in the order in which their chunks are given.
    pub fn survivors(&self) -> impl Iterator<Item = &SiteId> {
        self.survivors.iter().map(|(site, _)| site)
    }

    /// How many masks come off every chunk: |U3| + |U2 ∖ U3|·|U3|.
    #[must_use]
    pub fn masks(&self) -> usize {
        self.masks.len()
    }

    /// The sum of one chunk: checks every upload against its manifest, adds them and takes the masks off.
    ///
    /// `uploads` are the survivors' chunks in the order of [`Unmasking::survivors`]; `sum` is overwritten.
    ///
    /// # Errors
    /// [`HubError`]; `sum` is then not to be used.
    pub fn sum_chunk(
        &self,
        chunk: u32,
        uploads: &[&[u8]],
        threads: NonZeroUsize,
        sum: &mut Vec<u32>,
    ) -> Result<(), HubError> {
        let (range, elements) = (self.layout.elements_of(chunk)?, self.layout.chunk_elements(chunk)?);
        if uploads.len() != self.survivors.len() {
            return Err(HubError::Uploads { got: uploads.len(), expected: self.survivors.len() });
        }
        for ((site, digests), bytes) in self.survivors.iter().zip(uploads) {
            if digests.get(chunk as usize) != Some(&chunk_digest(bytes)) {
                return Err(HubError::ChunkDigest { site: site.clone(), chunk });
            }
        }
        sum.clear();
        sum.resize(elements, 0);
        sum::add_all(sum, uploads)?;
        self.take_off(range.start, sum, threads)
    }

    /// Takes the masks off a sum that was made elsewhere: `sum` holds the elements of the whole vector from `offset`.
    ///
    /// # Errors
    /// [`HubError::Misaligned`].
    pub fn take_off(&self, offset: u64, sum: &mut [u32], threads: NonZeroUsize) -> Result<(), HubError> {
        Ok(self.masks.apply_parallel(offset, sum, threads)?)
    }
}
