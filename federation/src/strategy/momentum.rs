//! FedAvgM (Hsu et al., 2019): v ← βv + ū, w ← w + ηv.

/// The rule's numbers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Momentum {
    /// η.
    pub rate: f64,
    /// β, below 1.
    pub beta: f64,
}

impl Momentum {
    pub(super) fn advance(&self, mean: &mut [f32], velocity: &mut [f32]) {
        for (u, v) in mean.iter_mut().zip(velocity) {
            *v = (self.beta * f64::from(*v) + f64::from(*u)) as f32;
            *u = (self.rate * f64::from(*v)) as f32;
        }
    }
}
