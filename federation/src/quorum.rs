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

    #[test]
    fn the_floor_of_the_study_wins_when_it_is_higher() {
        assert_eq!(survivors_needed(4, 4, 1), 4);
        assert_eq!(survivors_needed(4, 3, 1), 3);
        assert_eq!(survivors_needed(10, 3, 8), 10);
    }
}
