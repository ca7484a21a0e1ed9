//! How many hospitals an attempt needs.

/// The smallest number of survivors of an attempt opened by `n` hospitals: ⌊2n/3⌋ + 1.
///
/// From `2t > n + n_C` for a hub that colludes with up to a third of the hospitals
/// (Bonawitz et al., CCS 2017, §6, malicious server). Three hospitals: 3, four: 3, ten: 7.
pub const fn threshold(n: u32) -> u32 {
    2 * n / 3 + 1
}

/// The largest number of hospitals that may collude with the hub while one round stays private: `2t > n + n_C`.
pub const fn tolerated_colluders(n: u32, t: u32) -> u32 {
    (2 * t).saturating_sub(n).saturating_sub(1)
}

/// Survivors that an attempt of `n` hospitals needs: the threshold, the study's floor, or two beside the colluders that
/// it is to withstand, whichever is most.
pub fn survivors_needed(n: u32, min_contributors: u32, colluders: u32) -> u32 {
    threshold(n).max(min_contributors).max(colluders.saturating_add(2))
}

/// Whether an attempt of `n` hospitals withstands so many colluders: `2t > n + n_C`.
pub const fn withstands(n: u32, colluders: u32) -> bool {
    2 * threshold(n) > n.saturating_add(colluders)
}

/// How many of `n` hospitals must open an attempt, so that it can live with any number of them from there up; more than
/// `n` when it cannot. The threshold jumps, so one hospital fewer may withstand fewer colluders.
pub fn openers_needed(n: u32, min_contributors: u32, colluders: u32) -> u32 {
    let lives = |m: &u32| withstands(*m, colluders) && *m >= survivors_needed(*m, min_contributors, colluders);
    let fewest = (1..=n).rev().take_while(lives).last().unwrap_or(n.saturating_add(1));
    fewest.max(survivors_needed(n, min_contributors, colluders))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thresholds_match_the_published_table() {
        for (n, t) in [(3, 3), (4, 3), (5, 4), (10, 7), (200, 134)] {
            assert_eq!(threshold(n), t, "n = {n}");
        }
        assert_eq!(tolerated_colluders(200, 134), 67);
    }

    /// Five hospitals withstand two colluders and four only one: an attempt that went on with four could be given shares
    /// and never a sum.
    #[test]
    fn an_attempt_that_would_withstand_too_few_colluders_does_not_open() {
        assert_eq!(openers_needed(5, 4, 2), 5);
        assert_eq!(openers_needed(4, 4, 2), 5, "more than there are");
        assert_eq!(openers_needed(4, 3, 1), 3);
        for n in 3..=60 {
            for colluders in 0..=20 {
                for m in openers_needed(n, 3, colluders)..=n {
                    assert!(withstands(m, colluders) && survivors_needed(m, 3, colluders) <= m, "{n} {m} {colluders}");
                }
            }
        }
    }

    #[test]
    fn the_floor_of_the_study_wins_when_it_is_higher() {
        assert_eq!(survivors_needed(4, 4, 1), 4);
        assert_eq!(survivors_needed(4, 3, 1), 3);
        assert_eq!(survivors_needed(10, 3, 8), 10);
    }
}
