//! How much a hospital counts: an integer of 20 fractional bits, so that weights travel as ring elements too.
//!
//! `A = round(2^20 · min(w, cap) / cap)` with `w` first rounded to a bucket that the hospital chooses, so that the
//! sum of weights over rounds does not give away an exact number of patients.

/// The weight one: 2^20.
pub const WEIGHT_ONE: u32 = 1 << 20;

/// Why a weight was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WeightError {
    /// Nothing to contribute with.
    #[error("example count is 0: a hospital without examples must not contribute")]
    NoExamples,
    /// A cap of nothing.
    #[error("weight cap is 0: set it to the largest example count that shall still count in full")]
    ZeroCap,
    /// A bucket of nothing.
    #[error("weight bucket is 0: use 1 for exact counts")]
    ZeroBucket,
    /// Not a weight in (0, 2^20].
    #[error("weight {units} is not in 1..={WEIGHT_ONE}")]
    OutOfRange {
        /// The value given.
        units: u32,
    },
}

/// A weight `A / 2^20` in (0, 1].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Weight(u32);

impl Weight {
    /// Weight one, for studies that count every hospital alike.
    pub const EQUAL: Self = Self(WEIGHT_ONE);

    /// From units of 2^-20.
    ///
    /// # Errors
    /// [`WeightError::OutOfRange`].
    pub fn from_units(units: u32) -> Result<Self, WeightError> {
        if units == 0 || units > WEIGHT_ONE {
            return Err(WeightError::OutOfRange { units });
        }
        Ok(Self(units))
    }

    /// From an example count: rounded to the nearest multiple of `bucket` (never to none), capped, scaled.
    ///
    /// # Errors
    /// [`WeightError::NoExamples`], [`WeightError::ZeroCap`], [`WeightError::ZeroBucket`].
    pub fn from_examples(examples: u64, cap: u64, bucket: u64) -> Result<Self, WeightError> {
        if examples == 0 {
            return Err(WeightError::NoExamples);
        }
        if cap == 0 {
            return Err(WeightError::ZeroCap);
        }
        if bucket == 0 {
            return Err(WeightError::ZeroBucket);
        }
        let (examples, cap, bucket) = (u128::from(examples), u128::from(cap), u128::from(bucket));
        let bucketed = ((examples + bucket / 2) / bucket).max(1) * bucket;
        let units = (u128::from(WEIGHT_ONE) * bucketed.min(cap) + cap / 2) / cap;
        // Safety: bucketed.min(cap) <= cap, so units <= 2^20; at least 1 so that a small hospital still counts.
        Ok(Self((units as u32).max(1)))
    }

    /// Units of 2^-20: the integer that becomes ring element 0.
    #[must_use]
    pub fn units(self) -> u32 {
        self.0
    }

    /// The weight as a number in (0, 1].
    #[must_use]
    pub fn as_f64(self) -> f64 {
        f64::from(self.0) / f64::from(WEIGHT_ONE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_capped_and_scaled() {
        assert_eq!(Weight::from_examples(500, 1000, 1).unwrap().units(), WEIGHT_ONE / 2);
        assert_eq!(Weight::from_examples(5000, 1000, 1).unwrap(), Weight::EQUAL);
        assert_eq!(Weight::from_examples(1, u64::MAX, 1).unwrap().units(), 1);
    }

    /// A hospital that chose buckets of 50 must not be told apart from one with 12 patients more.
    #[test]
    fn buckets_hide_exact_counts() {
        let of = |examples| Weight::from_examples(examples, 1000, 50).unwrap();
        assert_eq!(of(326), of(349));
        assert_eq!(of(3), Weight::from_examples(50, 1000, 1).unwrap());
        assert_eq!(Weight::from_examples(326, 1000, 0), Err(WeightError::ZeroBucket));
    }

    #[test]
    fn nothing_is_not_a_weight() {
        assert_eq!(Weight::from_examples(0, 10, 1), Err(WeightError::NoExamples));
        assert_eq!(Weight::from_examples(1, 0, 1), Err(WeightError::ZeroCap));
        assert_eq!(Weight::from_units(WEIGHT_ONE + 1), Err(WeightError::OutOfRange { units: WEIGHT_ONE + 1 }));
    }
}
