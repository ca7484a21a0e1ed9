//! How the mean update moves the model: the server's rule, parameter by parameter, over what it remembers.
//!
//! A rule is a file here. It remembers moments, each as large as the model, which begin at 0; the hub streams them
//! beside the model, chunk by chunk. Arithmetic is in 64 bits in one order, and every result is rounded to 32 once: a
//! hub that computes it again, on whatever machine, gets the same digests.

mod adaptive;
mod momentum;

pub use adaptive::{Adaptive, Second};
pub use momentum::Momentum;

/// Most moments that a rule has.
pub const MAX_MOMENTS: usize = 2;

/// A server's rule.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Rule {
    /// The model moves by the mean (FedAvg; McMahan et al., 2017).
    Average,
    /// By a running sum of means.
    Momentum(Momentum),
    /// By a running mean of them, each parameter at its own pace.
    Adaptive(Adaptive),
}

impl Rule {
    /// How many moments it has.
    pub const fn moments(&self) -> usize {
        match self {
            Self::Average => 0,
            Self::Momentum(_) => 1,
            Self::Adaptive(_) => 2,
        }
    }

    /// Turns the mean update into the move, and the moments into what they are after it. All are of one length; there are
    /// [`Rule::moments`] of them.
    pub fn advance(&self, mean: &mut [f32], moments: &mut [Vec<f32>]) {
        match (self, moments) {
            (Self::Momentum(rule), [velocity]) => rule.advance(mean, velocity),
            (Self::Adaptive(rule), [first, second]) => rule.advance(mean, first, second),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Deserialize)]
    struct Case {
        rule: String,
        rate: f64,
        beta1: f64,
        beta2: f64,
        tau: f64,
        /// Mean updates of the rounds.
        means: Vec<Vec<f64>>,
        /// The model after each of them; it began at 0.
        models: Vec<Vec<f64>>,
    }

    fn rule(case: &Case) -> Rule {
        let &Case { rate, beta1, beta2, tau, .. } = case;
        let adaptive = |second| Rule::Adaptive(Adaptive { rate, beta1, beta2, tau, second });
        match case.rule.as_str() {
            "FedAvg" => Rule::Average,
            "FedAvgM" => Rule::Momentum(Momentum { rate, beta: beta1 }),
            "FedAdam" => adaptive(Second::Adam),
            "FedYogi" => adaptive(Second::Yogi),
            other => panic!("{other}"),
        }
    }

    /// A researcher who names FedAdam must get FedAdam: against `testdata/strategy.py`, which writes the formulas down
    /// again in another language.
    #[test]
    fn rules_are_what_the_reference_says() {
        let cases: Vec<Case> = serde_json::from_str(include_str!("../../testdata/strategy.json")).unwrap();
        assert_eq!(cases.len(), 4);
        for case in &cases {
            let rule = rule(case);
            let mut model = vec![0.0_f32; case.means[0].len()];
            let mut moments = vec![vec![0.0_f32; model.len()]; rule.moments()];
            for (mean, expected) in case.means.iter().zip(&case.models) {
                let mut mean: Vec<f32> = mean.iter().map(|v| *v as f32).collect();
                rule.advance(&mut mean, &mut moments);
                model.iter_mut().zip(&mean).for_each(|(w, step)| *w += step);
                for (found, expected) in model.iter().zip(expected) {
                    let off = (f64::from(*found) - expected).abs();
                    assert!(off <= 1e-6 * expected.abs().max(1.0), "{}: {found} is not {expected}", case.rule);
                }
            }
        }
    }

    /// A mean of zero in every round, or one that is tiny, must not make a number that is none.
    #[test]
    fn nothing_divides_by_zero() {
        for second in [Second::Adam, Second::Yogi] {
            let rule = Rule::Adaptive(Adaptive { rate: 0.01, beta1: 0.9, beta2: 0.99, tau: 1e-3, second });
            let mut moments = vec![vec![0.0; 3]; 2];
            for mean in [0.0, 1e-38, -1e30] {
                let mut mean = [mean; 3];
                rule.advance(&mut mean, &mut moments);
                assert!(mean.iter().all(|v| v.is_finite()), "{second:?}: {mean:?}");
            }
        }
    }
}
