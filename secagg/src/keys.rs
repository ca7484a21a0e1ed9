//! Every key and how it is derived. All derivations are HKDF-SHA-256 with a label of their own, bound to the session.
//!
//! | key | input | salt | info |
//! |---|---|---|---|
//! | mask scalar (X25519) | mask seed r_i | attempt digest | "mask-scalar" |
//! | self mask (AES-256) | self seed b_i | sid | "self", i |
//! | pair mask (AES-256) | DH(mask_i, mask_j) | sid | "pair", min, max |
//! | share envelope (AES-256-GCM) | DH(enc_i, enc_j) | sid | "envelope", from, to |
use crate::ids::{Digest, Party, PublicKey, Sid};
use crate::secret::Secret;
use crate::wire::Writer;
use hkdf::Hkdf;
use sha2::Sha256;
use x25519_dalek::{PublicKey as XPublic, StaticSecret};

/// A peer's X25519 key is of low order: the shared secret would be known to everyone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("X25519 key {key} is of low order")]
pub struct LowOrderKey {
    /// The key.
    pub key: PublicKey,
}

fn derive(input: &[u8], salt: &[u8; 32], info: &[u8]) -> Secret {
    let mut out = zeroize::Zeroizing::new([0u8; 32]);
    let done = Hkdf::<Sha256>::new(Some(salt), input).expand(info, &mut *out);
    debug_assert!(done.is_ok(), "32 bytes are always within HKDF's output limit");
    Secret::new(*out)
}

/// The info string: a label and party numbers, in the canonical encoding.
fn info(label: &str, parties: &[Party]) -> Vec<u8> {
    let mut w = Writer::new();
    w.string("consilium/secagg/v1").string(label);
    for party in parties {
        w.u8(party.0);
    }
    w.finish()
}

/// The X25519 scalar of the mask key that belongs to the seed r_i (clamped by X25519 itself).
#[must_use]
pub fn mask_scalar(seed: &Secret, attempt: &Digest) -> Secret {
    derive(seed.expose(), &attempt.0, &info("mask-scalar", &[]))
}

/// The AES-256 key of party i's own mask.
#[must_use]
pub fn self_mask_key(seed: &Secret, sid: &Sid, party: Party) -> Secret {
    derive(seed.expose(), &sid.0, &info("self", &[party]))
}

/// The AES-256 key of the mask that two parties share; symmetric in them.
///
/// # Errors
/// [`LowOrderKey`].
pub fn pair_mask_key(
    scalar: &Secret,
    peer_key: &PublicKey,
    sid: &Sid,
    me: Party,
    peer: Party,
) -> Result<Secret, LowOrderKey> {
    let shared = diffie_hellman(scalar, peer_key)?;
    Ok(derive(shared.expose(), &sid.0, &info("pair", &[me.min(peer), me.max(peer)])))
}

/// The AES-256-GCM key of shares travelling from `from` to `to`.
///
/// # Errors
/// [`LowOrderKey`].
pub fn envelope_key(
    scalar: &Secret,
    peer_key: &PublicKey,
    sid: &Sid,
    from: Party,
    to: Party,
) -> Result<Secret, LowOrderKey> {
    let shared = diffie_hellman(scalar, peer_key)?;
    Ok(derive(shared.expose(), &sid.0, &info("envelope", &[from, to])))
}

/// The X25519 public key of a scalar.
#[must_use]
pub fn x25519_public(scalar: &Secret) -> PublicKey {
    PublicKey(XPublic::from(&StaticSecret::from(*scalar.expose())).to_bytes())
}

/// X25519 with the all-zero result refused (RFC 7748 §6.1).
///
/// # Errors
/// [`LowOrderKey`].
pub fn diffie_hellman(scalar: &Secret, peer: &PublicKey) -> Result<Secret, LowOrderKey> {
    let shared = StaticSecret::from(*scalar.expose()).diffie_hellman(&XPublic::from(peer.0));
    if !shared.was_contributory() {
        return Err(LowOrderKey { key: *peer });
    }
    Ok(Secret::new(shared.to_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unhex(text: &str) -> [u8; 32] {
        let mut out = [0; 32];
        hex::decode_to_slice(text, &mut out).unwrap();
        out
    }

    /// RFC 7748 §6.1.
    #[test]
    fn x25519_matches_its_rfc() {
        let a = Secret::new(unhex("77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a"));
        let b = PublicKey(unhex("de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f"));
        let shared = diffie_hellman(&a, &b).unwrap();
        assert_eq!(*shared.expose(), unhex("4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742"));
        assert_eq!(x25519_public(&a).0, unhex("8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a"));
    }

    /// The known points of small order: with them a hub would know every pair mask.
    #[test]
    fn low_order_keys_are_refused() {
        let scalar = Secret::new([0x42; 32]);
        for text in [
            "0000000000000000000000000000000000000000000000000000000000000000",
            "0100000000000000000000000000000000000000000000000000000000000000",
            "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
            "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
            "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
            "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
            "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        ] {
            let key = PublicKey(unhex(text));
            assert_eq!(diffie_hellman(&scalar, &key), Err(LowOrderKey { key }), "{text}");
        }
    }

    #[test]
    fn both_ends_derive_the_same_keys_and_no_two_uses_share_one() {
        let (a, b, sid) = (Secret::new([1; 32]), Secret::new([2; 32]), Sid([3; 32]));
        let (pa, pb) = (x25519_public(&a), x25519_public(&b));
        let pair = pair_mask_key(&a, &pb, &sid, Party(0), Party(1)).unwrap();
        assert_eq!(pair, pair_mask_key(&b, &pa, &sid, Party(1), Party(0)).unwrap());
        let there = envelope_key(&a, &pb, &sid, Party(0), Party(1)).unwrap();
        let back = envelope_key(&a, &pb, &sid, Party(1), Party(0)).unwrap();
        assert!(there != back && there != pair && back != pair);
        assert_ne!(pair, pair_mask_key(&a, &pb, &Sid([4; 32]), Party(0), Party(1)).unwrap());
        assert_ne!(self_mask_key(&a, &sid, Party(0)), self_mask_key(&a, &sid, Party(1)));
    }
}
