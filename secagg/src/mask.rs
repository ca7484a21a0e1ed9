//! Masks: element e of PRG(key) is the little-endian `u32` at bytes 4e..4e+4 of AES-256-CTR under that key, the
//! counter being the 128-bit big-endian number of the 16-byte block (NIST SP 800-38A).
//!
//! Any block-aligned range can be made alone, so uploads resume by chunk and all cores work at once. A mask is never
//! stored: keystream goes from registers through a KiB of cache into the accumulator, and the accumulator is walked
//! in 32 KiB tiles with all masks applied to one tile before the next, so that memory sees one read and one write
//! however many hospitals there are. While the cipher works on a tile, the next one is fetched into the cache: by hints,
//! since a load that waits for memory holds up the cipher behind it.
use crate::prefetch::prefetch;
use crate::secret::Secret;
use aes::cipher::array::{Array, ArraySize};
use aes::cipher::consts::U16;
use aes::cipher::{
    BlockCipherEncBackend, BlockCipherEncClosure, BlockCipherEncrypt, BlockSizeUser, KeyInit, ParBlocks,
};
use aes::{Aes256, Block};
use std::num::NonZeroUsize;

/// Elements per cipher block.
pub const BLOCK_ELEMENTS: usize = 4;
/// Elements per tile: 32 KiB.
const TILE: usize = 8192;
/// Elements of a cache line.
const LINE: usize = 16;

/// A ring element as masks can be applied to it: a number, or its four bytes on the wire.
pub trait Element: Copy + Send {
    /// The number.
    fn number(self) -> u32;
    /// The element of a number.
    fn of(number: u32) -> Self;
}

impl Element for u32 {
    #[inline(always)]
    fn number(self) -> u32 {
        self
    }
    #[inline(always)]
    fn of(number: u32) -> Self {
        number
    }
}

impl Element for [u8; 4] {
    #[inline(always)]
    fn number(self) -> u32 {
        u32::from_le_bytes(self)
    }
    #[inline(always)]
    fn of(number: u32) -> Self {
        number.to_le_bytes()
    }
}

/// A range of ring elements that does not begin on a cipher block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("masks begin on multiples of {BLOCK_ELEMENTS} elements, not at element {offset}")]
pub struct Misaligned {
    /// The offset asked for.
    pub offset: u64,
}

/// Whether a mask is added or taken away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Sign {
    /// Added.
    Plus,
    /// Subtracted.
    Minus,
}

impl Sign {
    /// The other one.
    #[must_use]
    pub fn opposite(self) -> Self {
        if self == Self::Plus { Self::Minus } else { Self::Plus }
    }
}

/// A signed sum of masks, ready to be applied to any range of a vector. Wiped on drop.
#[derive(Clone, Default)]
pub struct MaskSet {
    terms: Vec<(Sign, Aes256)>,
}

impl std::fmt::Debug for MaskSet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "MaskSet({} masks)", self.terms.len())
    }
}

impl MaskSet {
    /// No masks.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds one mask to the set.
    pub fn push(&mut self, sign: Sign, key: &Secret) {
        self.terms.push((sign, Aes256::new(key.expose().into())));
    }

    /// How many masks.
    #[must_use]
    pub fn len(&self) -> usize {
        self.terms.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.terms.is_empty()
    }

    /// Applies all masks to `acc`, which holds the vector's elements from `offset` on.
    ///
    /// # Errors
    /// [`Misaligned`]; the accumulator is then untouched.
    pub fn apply<E: Element>(&self, offset: u64, acc: &mut [E]) -> Result<(), Misaligned> {
        let first = first_block(offset)?;
        let (mut block, mut rest) = (first, acc);
        while !rest.is_empty() {
            let (tile, after) = rest.split_at_mut(rest.len().min(TILE));
            let ahead = &after[..after.len().min(TILE)];
            let share = ahead.len().div_ceil(self.terms.len().max(1)).next_multiple_of(LINE);
            for (t, (sign, key)) in self.terms.iter().enumerate() {
                let ahead = ahead.get(t * share..).unwrap_or_default();
                apply_one(*sign, key, block, tile, &ahead[..ahead.len().min(share)]);
            }
            block += (TILE / BLOCK_ELEMENTS) as u128;
            rest = after;
        }
        Ok(())
    }

    /// As [`MaskSet::apply`], on `threads` threads.
    ///
    /// # Errors
    /// [`Misaligned`]; the accumulator is then untouched.
    pub fn apply_parallel<E: Element>(
        &self,
        offset: u64,
        acc: &mut [E],
        threads: NonZeroUsize,
    ) -> Result<(), Misaligned> {
        first_block(offset)?;
        let share = acc.len().div_ceil(threads.get()).next_multiple_of(TILE);
        if threads.get() == 1 || share >= acc.len() {
            return self.apply(offset, acc);
        }
        std::thread::scope(|scope| {
            let parts = acc.chunks_mut(share).enumerate().map(|(i, part)| (offset + (i * share) as u64, part));
            let running: Vec<_> = parts.map(|(offset, part)| scope.spawn(move || self.apply(offset, part))).collect();
            // Parts begin on tiles, hence on blocks. A panic in a thread is passed on by the scope.
            running.into_iter().try_for_each(|thread| thread.join().unwrap_or(Ok(())))
        })
    }
}

fn first_block(offset: u64) -> Result<u128, Misaligned> {
    if !offset.is_multiple_of(BLOCK_ELEMENTS as u64) {
        return Err(Misaligned { offset });
    }
    Ok(u128::from(offset) / BLOCK_ELEMENTS as u128)
}

// A function of its own: merged into its callers, the cipher's registers are spilled in the inner loop.
#[inline(never)]
fn apply_one<E: Element>(sign: Sign, key: &Aes256, block: u128, acc: &mut [E], ahead: &[E]) {
    key.encrypt_with_backend(Accumulate { acc, ahead, sign, block });
}

/// Runs inside the cipher's backend, so that keystream is made and used in parallel blocks of the machine's width.
struct Accumulate<'a, E> {
    acc: &'a mut [E],
    /// What comes into the cache on the way: a part of the next tile, fetched while the cipher is busy.
    ahead: &'a [E],
    sign: Sign,
    block: u128,
}

impl<E> BlockSizeUser for Accumulate<'_, E> {
    type BlockSize = U16;
}

impl<E: Element> BlockCipherEncClosure for Accumulate<'_, E> {
    #[inline(always)]
    fn call<B: BlockCipherEncBackend<BlockSize = U16>>(self, backend: &B) {
        let mut counters = ParBlocks::<B>::default();
        let mut keystream = ParBlocks::<B>::default();
        let width = counters.len();
        let (mut next, mut acc) = (self.block, self.acc);
        let groups = acc.len().div_ceil(width * BLOCK_ELEMENTS).max(1);
        let mut ahead = self.ahead.chunks(self.ahead.len().div_ceil(groups).max(1));
        while !acc.is_empty() {
            ahead.next().unwrap_or_default().iter().step_by(LINE).for_each(prefetch);
            // Groups of counters begin on multiples of their width, so that only the last byte differs within one.
            let skip = if width.is_power_of_two() { (next as usize) & (width - 1) } else { 0 };
            set_counters(&mut counters, next - skip as u128);
            backend.encrypt_par_blocks((&counters, &mut keystream).into());
            let (part, rest) = acc.split_at_mut(acc.len().min((width - skip) * BLOCK_ELEMENTS));
            combine(self.sign, part, &keystream[skip..]);
            next += (width - skip) as u128;
            acc = rest;
        }
    }
}

/// The last bytes of 64 consecutive counters, as blocks.
const STEPS: [[u8; 16]; 64] = {
    let mut steps = [[0; 16]; 64];
    let mut i = 0;
    while i < 64 {
        steps[i][15] = i as u8;
        i += 1;
    }
    steps
};

/// Counter blocks `first, first + 1, …` in big-endian bytes.
#[inline(always)]
fn set_counters<N: ArraySize>(counters: &mut Array<Block, N>, first: u128) {
    let width = counters.len();
    let blocks = Array::cast_slice_to_core_mut(counters.as_mut_slice());
    let whole_fours = (4..=STEPS.len()).contains(&width) && width.is_power_of_two();
    if whole_fours && first.is_multiple_of(width as u128) {
        // The group begins on a multiple of its width, so counters differ in the low bits of the last byte alone: four
        // of them at a time, which is one instruction on a machine with wide registers.
        let base = [first.to_be_bytes(); 4];
        let (fours, steps) = (blocks.as_chunks_mut::<4>().0, STEPS.as_chunks::<4>().0);
        for (four, step) in fours.iter_mut().zip(steps) {
            let bytes = base.as_flattened().iter().zip(step.as_flattened());
            four.as_flattened_mut().iter_mut().zip(bytes).for_each(|(out, (b, s))| *out = b | s);
        }
    } else {
        for (i, counter) in blocks.iter_mut().enumerate() {
            *counter = first.wrapping_add(i as u128).to_be_bytes();
        }
    }
}

#[inline(always)]
fn combine<E: Element>(sign: Sign, acc: &mut [E], keystream: &[Block]) {
    // Two loops, so that the sign is not looked at per element.
    match sign {
        Sign::Plus => each(acc, keystream, u32::wrapping_add),
        Sign::Minus => each(acc, keystream, u32::wrapping_sub),
    }
}

#[inline(always)]
fn each<E: Element>(acc: &mut [E], keystream: &[Block], op: impl Fn(u32, u32) -> u32) {
    let (whole, rest) = acc.as_chunks_mut::<BLOCK_ELEMENTS>();
    for (four, block) in whole.iter_mut().zip(keystream) {
        for (a, k) in four.iter_mut().zip(block.as_slice().as_chunks::<4>().0) {
            *a = E::of(op(a.number(), u32::from_le_bytes(*k)));
        }
    }
    for (a, k) in rest.iter_mut().zip(keystream.iter().skip(whole.len()).flat_map(|b| b.as_slice().as_chunks::<4>().0))
    {
        *a = E::of(op(a.number(), u32::from_le_bytes(*k)));
    }
}

#[cfg(test)]
#[path = "mask_tests.rs"]
mod tests;
