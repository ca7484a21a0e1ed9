//! Step 6: the sum, chunk by chunk, in memory of one chunk whatever the number of hospitals and parameters.
use crate::hub::HubError;
use crate::ids::{Digest, SiteId};
use crate::layout::{ELEMENT_BYTES, Layout};
use crate::mask::MaskSet;
use crate::session::Session;
use crate::sum::{self, LengthMismatch};
use crate::survivors::SurvivorStatement;
use crate::unmask::{self, RevealedSeeds};
use crate::upload::UploadManifest;
use std::num::NonZeroUsize;

/// Elements per tile of hashing and adding: 128 KiB of each upload.
const TILE: usize = 1 << 15;

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

    /// Begins the sum of one chunk, to which uploads are added as they are read: memory of one chunk, however many
    /// hospitals there are. `memory` is taken over, so that one allocation serves all chunks.
    ///
    /// # Errors
    /// [`HubError::Layout`].
    pub fn begin_chunk(&self, chunk: u32, mut memory: Vec<u32>) -> Result<ChunkSum<'_>, HubError> {
        memory.clear();
        memory.resize(self.layout.chunk_elements(chunk)?, 0);
        Ok(ChunkSum { unmasking: self, chunk, sum: memory, added: 0 })
    }

    /// The sum of one chunk from all uploads at once, in the order of [`Unmasking::survivors`]; `sum` is overwritten.
    ///
    /// # Errors
    /// [`HubError`]; `sum` is then empty.
    pub fn sum_chunk(
        &self,
        chunk: u32,
        uploads: &[&[u8]],
        threads: NonZeroUsize,
        sum: &mut Vec<u32>,
    ) -> Result<(), HubError> {
        *sum = self.begin_chunk(chunk, std::mem::take(sum))?.verify_and_add(uploads)?.finish(threads)?;
        Ok(())
    }

    /// Takes the masks off a sum that was made elsewhere: `sum` holds the elements of the whole vector from `offset`.
    ///
    /// # Errors
    /// [`HubError::Misaligned`].
    pub fn take_off(&self, offset: u64, sum: &mut [u32], threads: NonZeroUsize) -> Result<(), HubError> {
        Ok(self.masks.apply_parallel(offset, sum, threads)?)
    }
}

/// The sum of one chunk in the making. Until [`ChunkSum::finish`] it is as masked as any upload.
#[derive(Debug)]
pub struct ChunkSum<'a> {
    unmasking: &'a Unmasking,
    chunk: u32,
    sum: Vec<u32>,
    added: usize,
}

impl ChunkSum<'_> {
    /// The hospitals whose chunks come next, in order.
    pub fn missing(&self) -> impl Iterator<Item = &SiteId> {
        self.unmasking.survivors().skip(self.added)
    }

    /// Checks the next survivors' chunks against their manifests and adds them; several at once is faster.
    ///
    /// # Errors
    /// [`HubError`]; the sum is dropped, for a part of a bad chunk may be in it.
    pub fn verify_and_add(mut self, uploads: &[&[u8]]) -> Result<Self, HubError> {
        let expected = self.expect(uploads)?;
        let mut hashers = vec![blake3::Hasher::new(); uploads.len()];
        // Tile by tile, so that bytes are hashed and added in one walk through memory.
        for (t, tile) in self.sum.chunks_mut(TILE).enumerate() {
            let from = t * TILE * ELEMENT_BYTES;
            let parts: Vec<&[u8]> = uploads.iter().map(|u| &u[from..from + tile.len() * ELEMENT_BYTES]).collect();
            hashers.iter_mut().zip(&parts).for_each(|(hasher, part)| {
                hasher.update(part);
            });
            sum::add_all(tile, &parts)?;
        }
        for ((site, digest), hasher) in expected.iter().zip(hashers) {
            if *digest != Digest(*hasher.finalize().as_bytes()) {
                return Err(HubError::ChunkDigest { site: site.clone(), chunk: self.chunk });
            }
        }
        self.added += uploads.len();
        Ok(self)
    }

    /// As [`ChunkSum::verify_and_add`], for bytes that a store has just checked against [`crate::hub::Hub::chunk_digests`].
    ///
    /// # Errors
    /// [`HubError`]; the sum is dropped.
    pub fn add_verified(mut self, uploads: &[&[u8]]) -> Result<Self, HubError> {
        self.expect(uploads)?;
        sum::add_all(&mut self.sum, uploads)?;
        self.added += uploads.len();
        Ok(self)
    }

    /// Who the next uploads are from, with the digests they signed; refuses too many and wrong lengths.
    fn expect(&self, uploads: &[&[u8]]) -> Result<Vec<(SiteId, Digest)>, HubError> {
        let survivors = &self.unmasking.survivors;
        let (got, expected) = (self.added + uploads.len(), survivors.len());
        if got > expected {
            return Err(HubError::Uploads { got, expected });
        }
        let bytes = self.sum.len() * ELEMENT_BYTES;
        if let Some(input) = uploads.iter().position(|u| u.len() != bytes) {
            return Err(LengthMismatch { input, bytes: uploads[input].len(), expected: bytes }.into());
        }
        let next = survivors[self.added..got].iter();
        Ok(next.filter_map(|(site, digests)| Some((site.clone(), *digests.get(self.chunk as usize)?))).collect())
    }

    /// Takes the masks off, once all survivors' chunks are in.
    ///
    /// # Errors
    /// [`HubError::Uploads`] when some are missing.
    pub fn finish(mut self, threads: NonZeroUsize) -> Result<Vec<u32>, HubError> {
        let (got, expected) = (self.added, self.unmasking.survivors.len());
        if got != expected {
            return Err(HubError::Uploads { got, expected });
        }
        let offset = self.unmasking.layout.elements_of(self.chunk)?.start;
        self.unmasking.take_off(offset, &mut self.sum, threads)?;
        Ok(self.sum)
    }
}
