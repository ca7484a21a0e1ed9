//! Step 1: a hospital's ephemeral keys for one attempt, signed by its identity.
use crate::identity::{Signed, SiteKey};
use crate::ids::{Digest, PublicKey, SiteId};
use crate::keys;
use crate::secret::Secret;
use crate::wire::{Message, Reader, WireError, Writer};
use rand_core::CryptoRng;

/// What a hospital says when it opens an attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Advert {
    /// Digest of the attempt's specification.
    pub attempt: Digest,
    /// The hospital.
    pub site: SiteId,
    /// X25519 key for share envelopes.
    pub enc_key: PublicKey,
    /// X25519 key for pair masks.
    pub mask_key: PublicKey,
    /// Fresh randomness: makes the session new even if keys were not.
    pub nonce: [u8; 32],
}

impl Message for Advert {
    const TAG: &'static str = "consilium/secagg/v1/advert";

    fn write(&self, w: &mut Writer) {
        w.fixed(&self.attempt.0);
        self.site.write(w);
        w.fixed(&self.enc_key.0).fixed(&self.mask_key.0).fixed(&self.nonce);
    }

    fn read(r: &mut Reader<'_>) -> Result<Self, WireError> {
        Ok(Self {
            attempt: Digest(r.fixed()?),
            site: SiteId::read(r)?,
            enc_key: PublicKey(r.fixed()?),
            mask_key: PublicKey(r.fixed()?),
            nonce: r.fixed()?,
        })
    }
}

/// The secrets behind an advert. The mask key's scalar derives from `mask_seed`, so that sharing 32 bytes shares it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Seeds {
    /// r_i: from it the mask scalar derives; reconstructed only if this hospital drops out.
    pub mask_seed: Secret,
    /// b_i: from it the hospital's own mask derives; reconstructed only if it survives.
    pub self_seed: Secret,
    /// X25519 scalar for share envelopes; never shared.
    pub enc_scalar: Secret,
}

impl Seeds {
    /// Fresh secrets.
    pub fn random(rng: &mut impl CryptoRng) -> Self {
        Self { mask_seed: Secret::random(rng), self_seed: Secret::random(rng), enc_scalar: Secret::random(rng) }
    }

    /// The signed advert of these secrets for an attempt.
    pub fn advertise(
        &self,
        attempt: &Digest,
        site: &SiteId,
        key: &SiteKey,
        rng: &mut impl CryptoRng,
    ) -> Signed<Advert> {
        let mut nonce = [0; 32];
        rng.fill_bytes(&mut nonce);
        key.sign(Advert {
            attempt: *attempt,
            site: site.clone(),
            enc_key: keys::x25519_public(&self.enc_scalar),
            mask_key: keys::x25519_public(&keys::mask_scalar(&self.mask_seed, attempt)),
            nonce,
        })
    }
}

/// All adverts of the attempt (U1), which the hub sends to each of them; in order of site.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdvertList {
    /// The adverts.
    pub adverts: Vec<Signed<Advert>>,
}

impl Message for AdvertList {
    const TAG: &'static str = "consilium/secagg/v1/adverts";

    fn write(&self, w: &mut Writer) {
        w.count(self.adverts.len());
        for advert in &self.adverts {
            w.bytes(&advert.to_bytes());
        }
    }

    fn read(r: &mut Reader<'_>) -> Result<Self, WireError> {
        let n = r.count("adverts", 64)?;
        let adverts = (0..n).map(|_| Signed::from_bytes(r.bytes("advert")?)).collect::<Result<_, _>>()?;
        Ok(Self { adverts })
    }
}

crate::wire::serde_as_wire!(Advert, AdvertList);
