//! FedAdam and FedYogi (Reddi et al., 2021): m ← β₁m + (1−β₁)ū, w ← w + ηm/(√v + τ), and v by the one or the other.

/// The rule's numbers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Adaptive {
    /// η.
    pub rate: f64,
    /// β₁, below 1.
    pub beta1: f64,
    /// β₂, below 1.
    pub beta2: f64,
    /// τ, above 0: parameters that hardly move are not blown up.
    pub tau: f64,
    /// How v follows the squares.
    pub second: Second,
}

/// How the second moment follows the squares of the means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Second {
    /// v ← β₂v + (1−β₂)ū².
    Adam,
    /// v ← v − (1−β₂)ū²·sign(v − ū²): it falls more slowly.
    Yogi,
}

impl Adaptive {
    pub(super) fn advance(&self, mean: &mut [f32], first: &mut [f32], second: &mut [f32]) {
        for ((u, m), v) in mean.iter_mut().zip(first).zip(second) {
            let (mean, square) = (f64::from(*u), f64::from(*u) * f64::from(*u));
            *m = (self.beta1 * f64::from(*m) + (1.0 - self.beta1) * mean) as f32;
            *v = self.followed(f64::from(*v), square).min(f64::from(f32::MAX)) as f32;
            *u = (self.rate * f64::from(*m) / (f64::from(*v).sqrt() + self.tau)) as f32;
        }
    }

    fn followed(&self, v: f64, square: f64) -> f64 {
        let share = 1.0 - self.beta2;
        match self.second {
            Second::Adam => self.beta2 * v + share * square,
            Second::Yogi if v > square => v - share * square,
            Second::Yogi if v < square => v + share * square,
            Second::Yogi => v,
        }
    }
}
