//! The learning rate over a study.

/// Steps over which the rate grows to its value whenever Adam starts anew: its first steps divide by a variance known
/// from a handful of gradients only, and at full rate would throw away part of what the base model knows.
pub const WARM_UP_STEPS: u64 = 10;

/// Where a step stands in its study.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Round, from 1.
    pub round: u32,
    /// Rounds planned.
    pub rounds: u32,
    /// Step within the round, from 0.
    pub step: u64,
    /// Steps of the round.
    pub steps: u64,
}

/// The rate at a place: half a cosine from `base` to 0 over all rounds (Loshchilov and Hutter, SGDR), so that a study's
/// last rounds refine, with a short linear warm-up in each round.
pub fn learning_rate(base: f64, place: Place) -> f64 {
    let steps = place.steps.max(1) as f64;
    let done = (f64::from(place.round.max(1) - 1) + place.step as f64 / steps) / f64::from(place.rounds.max(1));
    let cosine = 0.5 * (1.0 + (std::f64::consts::PI * done.clamp(0.0, 1.0)).cos());
    let warm_up = WARM_UP_STEPS.min(place.steps / 4).max(1);
    let ramp = ((place.step + 1) as f64 / warm_up as f64).min(1.0);
    base * cosine * ramp
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(round: u32, step: u64) -> f64 {
        learning_rate(1.0, Place { round, rounds: 4, step, steps: 100 })
    }

    /// If each round ran its own cosine, the model would be thrown about again at the start of the last round.
    #[test]
    fn the_cosine_spans_the_study_and_not_the_round() {
        assert!((at(1, 20) - 0.9938).abs() < 1e-3, "{}", at(1, 20));
        assert!((at(3, 50) - 0.5 * (1.0 + (std::f64::consts::PI * 0.625).cos())).abs() < 1e-12);
        assert!(at(4, 99) < 1e-3);
        assert!(at(4, 30) < at(2, 30));
    }

    #[test]
    fn each_round_warms_up() {
        assert!((at(1, 0) - 0.1).abs() < 1e-9);
        assert!(at(2, 0) < 0.2 * at(2, 10));
    }

    #[test]
    fn a_round_of_one_step_still_learns() {
        assert!(learning_rate(1.0, Place { round: 1, rounds: 1, step: 0, steps: 1 }) > 0.9);
    }
}
