//! Where everything of one upload lies: a short head (weight and statistics), then the body (parameters).
//!
//! One upload is one ring vector: `head ‖ body`. Chunk 0 is the head, chunk `k >= 1` is the body's elements
//! `[(k-1)·CHUNK_ELEMENTS, k·CHUNK_ELEMENTS)`, so that body chunk k covers the same parameters in every upload and a
//! sum can be taken, stored and resumed chunk by chunk. Elements travel as little-endian `u32`.
use std::ops::Range;

/// Elements of a full body chunk: 1 Mi elements, 4 MiB on the wire.
pub const CHUNK_ELEMENTS: usize = 1 << 20;
/// The head is padded with zeros to a multiple of this, so that the body begins on a cipher block.
pub const HEAD_ALIGN: usize = 16;
/// Bytes of one ring element on the wire.
pub const ELEMENT_BYTES: usize = 4;
/// Head elements that may be used (weight and statistics), so that the head stays a chunk of a few KiB.
pub const MAX_HEAD: usize = 4096;
/// Body elements that may be used: 16 Gi parameters, far above any model that this is meant for.
pub const MAX_BODY: u64 = 1 << 34;

/// Why a layout was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    /// The weight and the statistics do not fit into the head.
    #[error("head of {used} elements exceeds {MAX_HEAD}: send fewer statistics")]
    HeadTooLong {
        /// Elements asked for.
        used: usize,
    },
    /// More parameters than the mask's block offsets are meant for.
    #[error("body of {body} elements exceeds {MAX_BODY}: split the model into several sessions")]
    BodyTooLong {
        /// Elements asked for.
        body: u64,
    },
    /// A chunk number outside the upload.
    #[error("chunk {chunk} does not exist: the upload has chunks 0..{chunks}")]
    NoSuchChunk {
        /// The chunk asked for.
        chunk: u32,
        /// How many there are.
        chunks: u32,
    },
}

/// The shape of one upload: how many statistics follow the weight, and how many parameters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Layout {
    statistics: usize,
    body: u64,
}

impl Layout {
    /// A layout with `statistics` elements after the weight and `body` parameters.
    ///
    /// # Errors
    /// [`LayoutError::HeadTooLong`] and [`LayoutError::BodyTooLong`].
    pub fn new(statistics: usize, body: u64) -> Result<Self, LayoutError> {
        if statistics >= MAX_HEAD {
            return Err(LayoutError::HeadTooLong { used: statistics.saturating_add(1) });
        }
        if body > MAX_BODY {
            return Err(LayoutError::BodyTooLong { body });
        }
        Ok(Self { statistics, body })
    }

    /// Statistics elements, which lie in head elements `1..=statistics`.
    #[must_use]
    pub fn statistics(&self) -> usize {
        self.statistics
    }

    /// Parameters in the body.
    #[must_use]
    pub fn body(&self) -> u64 {
        self.body
    }

    /// Elements of the head with its padding: a multiple of [`HEAD_ALIGN`].
    #[must_use]
    pub fn head(&self) -> usize {
        (self.statistics + 1).next_multiple_of(HEAD_ALIGN)
    }

    /// Elements of the whole vector, padding included.
    #[must_use]
    pub fn elements(&self) -> u64 {
        self.head() as u64 + self.body
    }

    /// Bytes of the whole vector on the wire.
    #[must_use]
    pub fn upload_bytes(&self) -> u64 {
        self.elements() * ELEMENT_BYTES as u64
    }

    /// Chunks of the upload: the head, then the body's.
    #[must_use]
    pub fn chunks(&self) -> u32 {
        // Safety: MAX_BODY / CHUNK_ELEMENTS = 2^14, which fits.
        1 + self.body.div_ceil(CHUNK_ELEMENTS as u64) as u32
    }

    /// The parameters that chunk `chunk` covers; empty for the head.
    ///
    /// # Errors
    /// [`LayoutError::NoSuchChunk`].
    pub fn parameters(&self, chunk: u32) -> Result<Range<u64>, LayoutError> {
        if chunk >= self.chunks() {
            return Err(LayoutError::NoSuchChunk { chunk, chunks: self.chunks() });
        }
        if chunk == 0 {
            return Ok(0..0);
        }
        let start = u64::from(chunk - 1) * CHUNK_ELEMENTS as u64;
        Ok(start..self.body.min(start + CHUNK_ELEMENTS as u64))
    }

    /// The elements of the whole vector that chunk `chunk` holds.
    ///
    /// # Errors
    /// [`LayoutError::NoSuchChunk`].
    pub fn elements_of(&self, chunk: u32) -> Result<Range<u64>, LayoutError> {
        let parameters = self.parameters(chunk)?;
        let head = self.head() as u64;
        Ok(if chunk == 0 { 0..head } else { head + parameters.start..head + parameters.end })
    }

    /// Elements in chunk `chunk`.
    ///
    /// # Errors
    /// [`LayoutError::NoSuchChunk`].
    pub fn chunk_elements(&self, chunk: u32) -> Result<usize, LayoutError> {
        let range = self.elements_of(chunk)?;
        // Safety: at most max(CHUNK_ELEMENTS, MAX_HEAD).
        Ok((range.end - range.start) as usize)
    }

    /// Bytes of chunk `chunk` on the wire: at most 4 MiB.
    ///
    /// # Errors
    /// [`LayoutError::NoSuchChunk`].
    pub fn chunk_bytes(&self, chunk: u32) -> Result<usize, LayoutError> {
        Ok(self.chunk_elements(chunk)? * ELEMENT_BYTES)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// If chunks overlapped or left a gap, parameters would be summed twice or never.
    #[test]
    fn chunks_partition_the_vector_and_are_aligned() {
        for (statistics, body) in [(0, 0), (0, 1), (15, 5), (16, CHUNK_ELEMENTS as u64), (40, 3 << 20), (3, 10_000_000)]
        {
            let layout = Layout::new(statistics, body).unwrap();
            let mut next = 0;
            for chunk in 0..layout.chunks() {
                let range = layout.elements_of(chunk).unwrap();
                assert_eq!(range.start, next);
                assert_eq!(range.start % 4, 0, "a chunk must begin on a cipher block");
                assert!(range.end > range.start && layout.chunk_bytes(chunk).unwrap() <= 4 << 20);
                next = range.end;
            }
            assert_eq!(next, layout.elements());
            let chunks = layout.chunks();
            assert_eq!(layout.parameters(chunks), Err(LayoutError::NoSuchChunk { chunk: chunks, chunks }));
        }
    }

    /// The wire budget: an upload is at most 1.01 times four bytes a parameter.
    #[test]
    fn the_head_costs_less_than_a_percent() {
        let layout = Layout::new(30, 1_000_000).unwrap();
        assert!(layout.upload_bytes() as f64 <= 1.01 * 4e6);
        assert_eq!(layout.head(), 32);
    }

    #[test]
    fn absurd_shapes_are_refused() {
        assert!(matches!(Layout::new(MAX_HEAD, 1), Err(LayoutError::HeadTooLong { used: 4097 })));
        assert!(matches!(Layout::new(0, MAX_BODY + 1), Err(LayoutError::BodyTooLong { .. })));
    }
}
