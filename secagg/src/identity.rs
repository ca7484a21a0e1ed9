//! Who said it: Ed25519 site identities, and messages signed with them.
//!
//! Verification is strict (RFC 8032 with small-order keys and non-canonical encodings refused), so that a signature
//! binds exactly one key and one message.
use crate::ids::{PublicKey, Signature};
use crate::wire::{Message, Reader, WireError, Writer};
use ed25519_dalek::{Signer, SigningKey, VerifyingKey};
use rand_core::CryptoRng;

/// A hospital's (or a governance member's) signing key.
#[derive(Clone)]
pub struct SiteKey(SigningKey);

impl SiteKey {
    /// A new key.
    pub fn generate(rng: &mut impl CryptoRng) -> Self {
        Self(SigningKey::generate(rng))
    }

    /// From the 32 secret bytes of RFC 8032.
    #[must_use]
    pub fn from_seed(seed: &[u8; 32]) -> Self {
        Self(SigningKey::from_bytes(seed))
    }

    /// The public half.
    #[must_use]
    pub fn public(&self) -> PublicKey {
        PublicKey(self.0.verifying_key().to_bytes())
    }

    /// Signs a message's canonical bytes.
    #[must_use]
    pub fn sign<T: Message>(&self, body: T) -> Signed<T> {
        let signature = Signature(self.0.sign(&body.to_bytes()).to_bytes());
        Signed { body, signature }
    }
}

impl std::fmt::Debug for SiteKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SiteKey({:?})", self.public())
    }
}

/// The signature does not belong to this key and message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("signature does not verify under key {key}")]
pub struct BadSignature {
    /// The key that should have signed.
    pub key: PublicKey,
}

/// A message and a signature over its canonical bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signed<T> {
    /// The message.
    pub body: T,
    /// The signature.
    pub signature: Signature,
}

impl<T: Message> Signed<T> {
    /// Checks the signature.
    ///
    /// # Errors
    /// [`BadSignature`].
    pub fn verify(&self, key: &PublicKey) -> Result<&T, BadSignature> {
        verify_bytes(key, &self.body.to_bytes(), &self.signature)?;
        Ok(&self.body)
    }
}

/// Checks a signature over bytes.
///
/// # Errors
/// [`BadSignature`].
pub fn verify_bytes(key: &PublicKey, bytes: &[u8], signature: &Signature) -> Result<(), BadSignature> {
    let bad = || BadSignature { key: *key };
    let verifying = VerifyingKey::from_bytes(&key.0).map_err(|_| bad())?;
    verifying.verify_strict(bytes, &ed25519_dalek::Signature::from_bytes(&signature.0)).map_err(|_| bad())
}

impl<T: Message> Message for Signed<T> {
    const TAG: &'static str = "consilium/secagg/v1/signed";

    fn write(&self, w: &mut Writer) {
        w.bytes(&self.body.to_bytes()).fixed(&self.signature.0);
    }

    fn read(r: &mut Reader<'_>) -> Result<Self, WireError> {
        Ok(Self { body: T::from_bytes(r.bytes("body")?)?, signature: Signature(r.fixed()?) })
    }
}

impl<T: Message> serde::Serialize for Signed<T> {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&hex::encode(self.to_bytes()))
    }
}

impl<'de, T: Message> serde::Deserialize<'de> for Signed<T> {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = <String as serde::Deserialize>::deserialize(d)?;
        let bytes = hex::decode(&text).map_err(serde::de::Error::custom)?;
        Self::from_bytes(&bytes).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::rng;

    #[derive(Debug, Clone, PartialEq)]
    struct Note(u32);
    impl Message for Note {
        const TAG: &'static str = "note";
        fn write(&self, w: &mut Writer) {
            w.u32(self.0);
        }
        fn read(r: &mut Reader<'_>) -> Result<Self, WireError> {
            Ok(Self(r.u32()?))
        }
    }

    #[test]
    fn signatures_bind_key_and_message() {
        let (key, other) = (SiteKey::generate(&mut rng(1)), SiteKey::generate(&mut rng(2)));
        let mut signed = key.sign(Note(5));
        assert_eq!(Signed::from_bytes(&signed.to_bytes()).unwrap(), signed);
        signed.verify(&key.public()).unwrap();
        assert_eq!(signed.verify(&other.public()).unwrap_err(), BadSignature { key: other.public() });
        signed.body = Note(6);
        assert!(signed.verify(&key.public()).is_err());
    }

    /// The small-order key verifies forged signatures under lax rules; under strict rules it never does.
    #[test]
    fn small_order_keys_never_verify() {
        let mut identity = [0u8; 32];
        identity[0] = 1;
        let mut forged = [0u8; 64];
        forged[0] = 1;
        let signed = Signed { body: Note(1), signature: Signature(forged) };
        assert!(signed.verify(&PublicKey(identity)).is_err());
    }
}
