//! How many must survive, and against how many colluders that protects.
//!
//! With n hospitals in the attempt: t = ⌊2n/3⌋ + 1 shares reconstruct a secret. At most one survivor set can gather t
//! signatures as long as 2t > n + n_C (any two sets of t signers share more than n_C, hence an honest one, who signs
//! once). The sum must hold at least two hospitals beside the colluders.

/// Fewest hospitals of an attempt: of two, each could subtract itself and read the other.
pub const MIN_ROSTER: usize = 3;

/// t of n: shares that reconstruct, and signatures that fix a survivor set.
#[must_use]
pub const fn threshold(n: usize) -> usize {
    2 * n / 3 + 1
}

/// Why an attempt among these hospitals cannot keep the promise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ThresholdError {
    /// Too few hospitals.
    #[error("{n} hospitals in the attempt, at least {required} are needed")]
    TooFew {
        /// Hospitals in the attempt.
        n: usize,
        /// Needed.
        required: usize,
    },
    /// More than shares can be made for, or than the ring was scaled for.
    #[error("{n} hospitals in the attempt, at most {capacity} fit the round's ring")]
    TooMany {
        /// Hospitals in the attempt.
        n: usize,
        /// Most that fit.
        capacity: usize,
    },
    /// More colluders to withstand than the threshold allows.
    #[error(
        "threshold {t} of {n} withstands {max} colluding hospitals, {colluders} are asked for (2t > n + colluders)"
    )]
    Colluders {
        /// Threshold.
        t: usize,
        /// Hospitals in the attempt.
        n: usize,
        /// Asked for.
        colluders: usize,
        /// Withstood.
        max: usize,
    },
}

/// The numbers that hold for one attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Thresholds {
    n: usize,
    t: usize,
    contributors: usize,
}

impl Thresholds {
    /// For `n` hospitals of which `colluders` may work with the hub, and a floor of contributors.
    ///
    /// # Errors
    /// [`ThresholdError`].
    pub fn for_attempt(n: usize, colluders: usize, min_contributors: usize) -> Result<Self, ThresholdError> {
        let required = MIN_ROSTER.max(min_contributors).max(colluders + 2);
        if n < required {
            return Err(ThresholdError::TooFew { n, required });
        }
        let t = threshold(n);
        if 2 * t <= n + colluders {
            return Err(ThresholdError::Colluders { t, n, colluders, max: 2 * t - n - 1 });
        }
        Ok(Self { n, t, contributors: t.max(min_contributors).max(colluders + 2) })
    }

    /// n: hospitals in the attempt.
    #[must_use]
    pub fn n(&self) -> usize {
        self.n
    }

    /// t: shares that reconstruct, and signatures that fix a survivor set.
    #[must_use]
    pub fn t(&self) -> usize {
        self.t
    }

    /// Fewest hospitals in a sum: max(t, minContributors, colluders + 2).
    #[must_use]
    pub fn contributors(&self) -> usize {
        self.contributors
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_of_the_specification() {
        for (n, t) in [(3, 3), (4, 3), (5, 4), (10, 7), (200, 134)] {
            assert_eq!(Thresholds::for_attempt(n, 0, 3).unwrap().t(), t);
        }
        assert!(Thresholds::for_attempt(200, 67, 3).is_ok());
        assert!(matches!(Thresholds::for_attempt(200, 68, 3), Err(ThresholdError::Colluders { max: 67, .. })));
    }

    /// Two hospitals would expose each other; so would three of which two collude.
    #[test]
    fn sums_that_expose_someone_are_refused() {
        assert!(matches!(Thresholds::for_attempt(2, 0, 0), Err(ThresholdError::TooFew { n: 2, required: 3 })));
        assert!(matches!(Thresholds::for_attempt(3, 2, 0), Err(ThresholdError::TooFew { required: 4, .. })));
        assert!(matches!(Thresholds::for_attempt(4, 0, 5), Err(ThresholdError::TooFew { required: 5, .. })));
        assert_eq!(Thresholds::for_attempt(9, 2, 8).unwrap().contributors(), 8);
    }
}
