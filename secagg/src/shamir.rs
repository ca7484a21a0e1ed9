//! Sharing 32 bytes among the hospitals of a session: Shamir over GF(256), byte by byte (vsss-rs).
//!
//! Share x-coordinates are fixed by the party's place in the session, so a share on the wire is its 32 bytes alone.
use crate::ids::Party;
use crate::secret::Secret;
use rand_core::CryptoRng;
use vsss_rs::Gf256;
use zeroize::Zeroize;

/// Why sharing or reconstruction failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ShamirError {
    /// Fewer shares than the threshold.
    #[error("{got} shares, {needed} are needed to reconstruct")]
    TooFew {
        /// Distinct shares given.
        got: usize,
        /// The threshold.
        needed: usize,
    },
    /// Threshold and number of shares do not fit.
    #[error("cannot share {t} of {n}: must be 2 <= t <= n <= 255")]
    Parameters {
        /// Threshold.
        t: usize,
        /// Shares.
        n: usize,
    },
}

/// Splits a secret into n shares, of which any t reconstruct it; share i belongs to party i.
///
/// # Errors
/// [`ShamirError::Parameters`].
pub fn split(secret: &Secret, t: usize, n: usize, rng: &mut impl CryptoRng) -> Result<Vec<Secret>, ShamirError> {
    let bad = ShamirError::Parameters { t, n };
    let mut raw = Gf256::split_bytes(t, n, secret.expose(), &mut *rng).map_err(|_| bad)?;
    let mut shares = Vec::with_capacity(n);
    for (i, share) in raw.iter().enumerate() {
        let mut value = [0; 32];
        // The x-coordinates must be ours: 1, 2, …, n.
        if share.len() != 33 || usize::from(share[0]) != i + 1 {
            return Err(bad);
        }
        value.copy_from_slice(&share[1..]);
        shares.push(Secret::new(value));
        value.zeroize();
    }
    raw.iter_mut().for_each(Zeroize::zeroize);
    Ok(shares)
}

/// Reconstructs a secret from the first t of the shares given, one per party.
///
/// # Errors
/// [`ShamirError::TooFew`].
pub fn combine(shares: &[(Party, &Secret)], t: usize) -> Result<Secret, ShamirError> {
    let too_few = |got| ShamirError::TooFew { got, needed: t };
    if shares.len() < t {
        return Err(too_few(shares.len()));
    }
    let mut raw: Vec<Vec<u8>> = shares[..t]
        .iter()
        .map(|(party, share)| {
            let mut bytes = Vec::with_capacity(33);
            bytes.push(party.share_index());
            bytes.extend_from_slice(share.expose());
            bytes
        })
        .collect();
    // Fails only for repeated parties, which are not t distinct shares.
    let combined = Gf256::combine_bytes(&raw).map_err(|_| too_few(t.saturating_sub(1)));
    raw.iter_mut().for_each(Zeroize::zeroize);
    let mut combined = combined?;
    let mut secret = [0; 32];
    secret.copy_from_slice(&combined);
    combined.zeroize();
    let out = Secret::new(secret);
    secret.zeroize();
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::rng;

    #[test]
    fn any_t_shares_reconstruct_and_fewer_do_not() {
        let secret = Secret::new([0xa5; 32]);
        for (t, n) in [(2, 3), (3, 3), (3, 4), (6, 8), (134, 200), (171, 255)] {
            let shares = split(&secret, t, n, &mut rng(7)).unwrap();
            let all: Vec<_> = shares.iter().enumerate().map(|(i, s)| (Party(i as u8), s)).collect();
            assert_eq!(combine(&all[n - t..], t).unwrap(), secret, "{t} of {n}");
            assert_eq!(combine(&all[..t - 1], t), Err(ShamirError::TooFew { got: t - 1, needed: t }));
            if t > 2 {
                assert_ne!(combine(&all[..t - 1], t - 1).unwrap(), secret, "t - 1 shares say nothing");
            }
        }
    }

    #[test]
    fn repeated_shares_do_not_count_twice() {
        let shares = split(&Secret::new([1; 32]), 3, 4, &mut rng(8)).unwrap();
        let twice = [(Party(0), &shares[0]), (Party(0), &shares[0]), (Party(1), &shares[1])];
        assert!(matches!(combine(&twice, 3), Err(ShamirError::TooFew { .. })));
        assert_eq!(split(&shares[0], 5, 4, &mut rng(1)), Err(ShamirError::Parameters { t: 5, n: 4 }));
    }
}
