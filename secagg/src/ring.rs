//! Between real numbers and Z_2^32: fixed point so coarse that n clipped updates cannot wrap, and no coarser.
//!
//! With n hospitals on the roster and L2 clip C: `M = ⌊(2^31 − 1) / n⌋`, `S = M / C`, and a coordinate u of a
//! hospital of weight α becomes `q = clamp(rint(α·u·S), −M, M)` mod 2^32 (`rint`: to nearest, ties to even). Every
//! |q| ≤ M, so any sum over at most n hospitals stays within ±n·M < 2^31 and reads back as a signed integer.
//! Rounding costs each hospital at most half a step, hence [`RingParams::sum_error_bound`].
use crate::weight::{WEIGHT_ONE, Weight};

/// Largest roster: share indices are nonzero elements of GF(256).
pub const MAX_ROSTER: usize = 255;
/// Adding this to an f64 of magnitude below 2^51 leaves `rint(x)` mod 2^32 in the low bits of its representation.
const ROUND_MAGIC: f64 = 6_755_399_441_055_744.0;

/// Why encoding or decoding was refused.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
pub enum RingError {
    /// The roster is empty or does not fit into GF(256).
    #[error("roster of {n} hospitals: must be 1..={MAX_ROSTER}")]
    RosterSize {
        /// The size given.
        n: usize,
    },
    /// The clip is not a positive finite number.
    #[error("clip norm {clip}: must be a positive finite number")]
    Clip {
        /// The clip given.
        clip: f64,
    },
    /// A NaN or an infinity in the update.
    #[error("update holds {value} at element {index}: training diverged, this update must not be sent")]
    NotFinite {
        /// Where.
        index: usize,
        /// What.
        value: f32,
    },
    /// A statistic that is not finite or exceeds its declared bound.
    #[error("statistic {index} is {value}, beyond its bound of ±{bound}")]
    Statistic {
        /// Which, counted from 0.
        index: usize,
        /// The value.
        value: f64,
        /// The largest magnitude the study declared.
        bound: f64,
    },
    /// Input and output lengths differ.
    #[error("{what} has {got} elements, expected {expected}")]
    Length {
        /// Which argument.
        what: &'static str,
        /// Its length.
        got: usize,
        /// What it had to be.
        expected: usize,
    },
    /// The sum of weights is zero or more than the contributors could have sent.
    #[error("sum of weights is {units}: must be 1..={max} for {contributors} contributors; the sum is not to be used")]
    WeightSum {
        /// The decoded sum, in units of 2^-20.
        units: u32,
        /// Its largest possible value.
        max: u64,
        /// Number of contributors.
        contributors: usize,
    },
}

/// The fixed-point scale that all hospitals of a session share.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RingParams {
    n: usize,
    clip: f64,
    max: u32,
}

impl RingParams {
    /// For a roster of `n` hospitals (those that opened the attempt) and the study's L2 clip norm.
    ///
    /// # Errors
    /// [`RingError::RosterSize`], [`RingError::Clip`].
    pub fn new(n: usize, clip: f64) -> Result<Self, RingError> {
        if n == 0 || n > MAX_ROSTER {
            return Err(RingError::RosterSize { n });
        }
        if !clip.is_finite() || clip < f64::from(f32::MIN_POSITIVE) {
            return Err(RingError::Clip { clip });
        }
        // Safety: (2^31 - 1) / n fits u32.
        Ok(Self { n, clip, max: (i32::MAX as usize / n) as u32 })
    }

    /// Roster size n.
    #[must_use]
    pub fn roster(&self) -> usize {
        self.n
    }

    /// The L2 clip norm C.
    #[must_use]
    pub fn clip(&self) -> f64 {
        self.clip
    }

    /// M: the largest magnitude of one hospital's element.
    #[must_use]
    pub fn max(&self) -> u32 {
        self.max
    }

    /// S = M / C: ring units per unit of the update.
    #[must_use]
    pub fn scale(&self) -> f64 {
        f64::from(self.max) / self.clip
    }

    /// Largest error of a coordinate of `Σ α_i·u_i` over `contributors` hospitals: m·C / (2M), with a hair for f64.
    #[must_use]
    pub fn sum_error_bound(&self, contributors: usize) -> f64 {
        contributors as f64 * self.clip / (2.0 * f64::from(self.max)) * (1.0 + 1e-9)
    }

    /// Largest error of a coordinate of the weighted mean, before it is rounded to f32: m·C / (2M·Σα).
    #[must_use]
    pub fn mean_error_bound(&self, contributors: usize, weight_units: u64) -> f64 {
        self.sum_error_bound(contributors) / (weight_units as f64 / f64::from(WEIGHT_ONE))
    }

    /// Encodes a slice of the update (already clipped to L2 norm C as a whole) into ring elements.
    ///
    /// Returns how many coordinates had to be clamped; 0 for any update within the clip.
    ///
    /// # Errors
    /// [`RingError::NotFinite`] (the index is relative to the slice; `out` is then zeroed), [`RingError::Length`].
    pub fn encode(&self, weight: Weight, update: &[f32], out: &mut [u32]) -> Result<usize, RingError> {
        expect_length("out", out.len(), update.len())?;
        let factor = weight.as_f64() * self.scale();
        let limit = f64::from(self.max);
        let (mut clamped, mut broken) = (0usize, false);
        for (x, q) in update.chunks(1024).zip(out.chunks_mut(1024)) {
            let mut worst = 0u32;
            for (x, q) in x.iter().zip(q) {
                // Magnitude bits: finite floats order like integers, NaN and infinities are the largest.
                worst = worst.max(x.to_bits() & 0x7fff_ffff);
                let y = f64::from(*x) * factor;
                let y = if y > limit { limit } else { y };
                let y = if y < -limit { -limit } else { y };
                *q = (y + ROUND_MAGIC).to_bits() as u32;
            }
            broken |= worst >= 0x7f80_0000;
            if f64::from(f32::from_bits(worst)) * factor > limit {
                clamped += x.iter().filter(|x| f64::from(x.abs()) * factor > limit).count();
            }
        }
        if broken {
            out.fill(0);
            let index = update.iter().position(|x| !x.is_finite()).unwrap_or(0);
            return Err(RingError::NotFinite { index, value: update[index] });
        }
        Ok(clamped)
    }

    /// The sum `Σ α_i·u_i` from a sum of ring elements.
    ///
    /// # Errors
    /// [`RingError::Length`].
    pub fn decode_sum(&self, sum: &[u32], out: &mut [f64]) -> Result<(), RingError> {
        expect_length("out", out.len(), sum.len())?;
        let step = self.clip / f64::from(self.max);
        for (q, x) in sum.iter().zip(out) {
            *x = f64::from(*q as i32) * step;
        }
        Ok(())
    }

    /// The weighted mean `Σ α_i·u_i / Σ α_i` from a sum of ring elements and the decoded sum of weights.
    ///
    /// # Errors
    /// [`RingError::Length`].
    pub fn decode_mean(&self, sum: &[u32], weights: WeightSum, out: &mut [f32]) -> Result<(), RingError> {
        expect_length("out", out.len(), sum.len())?;
        let step = self.clip / f64::from(self.max) / weights.as_f64();
        for (q, x) in sum.iter().zip(out) {
            *x = (f64::from(*q as i32) * step) as f32;
        }
        Ok(())
    }

    /// Element 0 of the summed head as the sum of weights of `contributors` hospitals.
    ///
    /// # Errors
    /// [`RingError::WeightSum`]: no contributor can have sent this, so the whole sum is spoilt.
    pub fn decode_weights(&self, element: u32, contributors: usize) -> Result<WeightSum, RingError> {
        let max = contributors as u64 * u64::from(WEIGHT_ONE);
        if u64::from(element) < contributors.max(1) as u64 || u64::from(element) > max {
            return Err(RingError::WeightSum { units: element, max, contributors });
        }
        Ok(WeightSum(element))
    }
}

/// A decoded sum of weights, in units of 2^-20 and never zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WeightSum(u32);

impl WeightSum {
    /// Units of 2^-20.
    #[must_use]
    pub fn units(self) -> u32 {
        self.0
    }

    /// The sum as a number.
    #[must_use]
    pub fn as_f64(self) -> f64 {
        f64::from(self.0) / f64::from(WEIGHT_ONE)
    }
}

/// How one statistic in the head is scaled.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Statistic {
    /// A real number within ±`bound`, in steps of `bound / M`.
    Real {
        /// Largest magnitude a hospital may report.
        bound: f64,
    },
    /// An integer within `0..=max`, kept exact; `n · max` must stay below 2^31.
    Count {
        /// Largest count a hospital may report.
        max: u32,
    },
}

impl Statistic {
    fn bound_and_scale(self, params: &RingParams) -> (f64, f64) {
        match self {
            Self::Real { bound } => (bound, f64::from(params.max) / bound),
            Self::Count { max } => (f64::from(max.min(params.max)), 1.0),
        }
    }
}

/// Builds the head of an upload: weight, statistics, zero padding. `out` has the layout's head length.
///
/// # Errors
/// [`RingError::Statistic`] when a value exceeds its bound (nothing is clamped silently), [`RingError::Length`].
pub fn encode_head(
    params: &RingParams,
    weight: Weight,
    statistics: &[(Statistic, f64)],
    out: &mut [u32],
) -> Result<(), RingError> {
    if out.len() < statistics.len() + 1 {
        return Err(RingError::Length { what: "head", got: out.len(), expected: statistics.len() + 1 });
    }
    out.fill(0);
    out[0] = weight.units();
    for (index, ((kind, value), q)) in statistics.iter().zip(&mut out[1..]).enumerate() {
        let (bound, scale) = kind.bound_and_scale(params);
        let least = if matches!(kind, Statistic::Count { .. }) { 0.0 } else { -bound };
        // A NaN is in no range.
        if !(least..=bound).contains(value) || !scale.is_finite() {
            return Err(RingError::Statistic { index, value: *value, bound });
        }
        *q = (value * scale + ROUND_MAGIC).to_bits() as u32;
    }
    Ok(())
}

/// The sums of the statistics from a summed head, in the order they were declared.
///
/// # Errors
/// [`RingError::Length`] when the head is too short for them.
pub fn decode_statistics(params: &RingParams, kinds: &[Statistic], head: &[u32]) -> Result<Vec<f64>, RingError> {
    if head.len() < kinds.len() + 1 {
        return Err(RingError::Length { what: "head", got: head.len(), expected: kinds.len() + 1 });
    }
    Ok(kinds.iter().zip(&head[1..]).map(|(kind, q)| f64::from(*q as i32) / kind.bound_and_scale(params).1).collect())
}

fn expect_length(what: &'static str, got: usize, expected: usize) -> Result<(), RingError> {
    if got == expected { Ok(()) } else { Err(RingError::Length { what, got, expected }) }
}

#[cfg(test)]
#[path = "ring_tests.rs"]
mod tests;
