//! How long to wait after a failure.

use std::time::Duration;

/// Doubling waits with jitter, so that a hub that comes back is not met by all hospitals at once.
#[derive(Clone, Debug, Default)]
pub struct Backoff {
    failures: u32,
}

impl Backoff {
    const FIRST: Duration = Duration::from_millis(500);
    const MOST: Duration = Duration::from_secs(30);

    /// The next wait; `fraction` is random, from 0 to 1. It lies between half of the bound and the bound.
    pub fn wait(&mut self, fraction: f64) -> Duration {
        let bound = Self::FIRST.saturating_mul(1 << self.failures.min(10)).min(Self::MOST);
        self.failures = self.failures.saturating_add(1);
        bound.mul_f64(0.5 + fraction.clamp(0.0, 1.0) / 2.0)
    }

    /// After a success.
    pub fn reset(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A hospital must neither hammer a hub that is down nor stay away for long once it is up.
    #[test]
    fn waits_double_to_half_a_minute_and_start_again() {
        let mut backoff = Backoff::default();
        let waits: Vec<_> = (0..9).map(|_| backoff.wait(1.0).as_millis()).collect();
        assert_eq!(waits, [500, 1000, 2000, 4000, 8000, 16_000, 30_000, 30_000, 30_000]);
        backoff.reset();
        assert_eq!(backoff.wait(0.0).as_millis(), 250);
    }
}
