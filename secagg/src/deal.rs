//! Making and opening the envelopes of step 2.
use crate::advert::Seeds;
use crate::identity::SiteKey;
use crate::ids::{Party, PublicKey, Sid};
use crate::keys::{self, LowOrderKey};
use crate::secret::Secret;
use crate::session::Session;
use crate::shamir::{self, ShamirError};
use crate::shares::{
    DeliveredShare, SaltedShare, SeedKind, ShareEntry, ShareError, ShareHeader, SharesMessage, commit_seed,
};
use crate::wire::{Message, Writer};
use aes_gcm::aead::{Aead, KeyInit, Payload};
use aes_gcm::{Aes256Gcm, Nonce};
use rand_core::CryptoRng;
use zeroize::Zeroizing;

const NONCE: usize = 12;
/// Two shares and their two salts.
const PLAINTEXT: usize = 128;

/// Why dealing failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DealError {
    /// A peer's key.
    #[error(transparent)]
    LowOrder(#[from] LowOrderKey),
    /// The parameters of sharing.
    #[error(transparent)]
    Shamir(#[from] ShamirError),
}

/// One dealer's two shares for one recipient, in the order (mask seed, self seed).
pub type SharePair = [SaltedShare; 2];

/// Shares both seeds among all parties. Returns the message and the dealer's own pair.
///
/// # Errors
/// [`DealError`].
pub fn deal(
    session: &Session,
    me: Party,
    seeds: &Seeds,
    key: &SiteKey,
    rng: &mut impl CryptoRng,
) -> Result<(SharesMessage, SharePair), DealError> {
    let (sid, t, n) = (session.sid(), session.thresholds().t(), session.thresholds().n());
    let salted = |seed: &Secret, rng: &mut _| -> Result<Vec<SaltedShare>, ShamirError> {
        let shares = shamir::split(seed, t, n, rng)?;
        Ok(shares.into_iter().map(|share| SaltedShare { share, salt: Secret::random(rng) }).collect())
    };
    let mask = salted(&seeds.mask_seed, rng)?;
    let own = salted(&seeds.self_seed, rng)?;
    let pairs: Vec<SharePair> = mask.into_iter().zip(own).map(|(m, o)| [m, o]).collect();
    let mut entries = Vec::with_capacity(n);
    for (to, pair) in session.parties().zip(&pairs) {
        let envelope = match session.advert(to) {
            Some(advert) if to != me => seal(&seeds.enc_scalar, &advert.enc_key, &sid, me, to, pair, rng)?,
            _ => Vec::new(),
        };
        entries.push(ShareEntry::commit(&sid, me, to, pair, envelope));
    }
    let header = key.sign(ShareHeader {
        sid,
        from: me,
        mask_seed: commit_seed(SeedKind::Mask, &sid, me, &seeds.mask_seed),
        self_seed: commit_seed(SeedKind::Own, &sid, me, &seeds.self_seed),
        entries: entries.iter().map(Message::digest).collect(),
    });
    let mine = pairs[me.index()].clone();
    Ok((SharesMessage { header, entries }, mine))
}

/// Checks and opens the shares that `me` was dealt by another party.
///
/// # Errors
/// [`ShareError`].
pub fn open(
    session: &Session,
    me: Party,
    enc_scalar: &Secret,
    delivered: &DeliveredShare,
) -> Result<SharePair, ShareError> {
    let header = ShareHeader::check(session, &delivered.header)?;
    let (dealer, sid) = (header.from, session.sid());
    if header.entries[me.index()] != delivered.entry.digest() {
        return Err(ShareError::Entry { dealer, to: me });
    }
    let advert = session.advert(dealer).ok_or(ShareError::UnknownDealer { dealer })?;
    let pair = unseal(enc_scalar, &advert.enc_key, &sid, dealer, me, &delivered.entry.envelope)
        .ok_or(ShareError::Envelope { dealer, to: me })?;
    let [mask, own] = &pair;
    let honest = delivered.entry.opens(SeedKind::Mask, &sid, dealer, me, mask)
        && delivered.entry.opens(SeedKind::Own, &sid, dealer, me, own);
    if honest { Ok(pair) } else { Err(ShareError::Envelope { dealer, to: me }) }
}

fn associated(sid: &Sid, from: Party, to: Party) -> Vec<u8> {
    let mut w = Writer::new();
    w.string("consilium/secagg/v1/envelope").fixed(&sid.0).u8(from.0).u8(to.0);
    w.finish()
}

fn seal(
    scalar: &Secret,
    peer: &PublicKey,
    sid: &Sid,
    from: Party,
    to: Party,
    pair: &SharePair,
    rng: &mut impl CryptoRng,
) -> Result<Vec<u8>, LowOrderKey> {
    let key = keys::envelope_key(scalar, peer, sid, from, to)?;
    let mut plain = Zeroizing::new(Vec::with_capacity(PLAINTEXT));
    for part in [&pair[0].share, &pair[1].share, &pair[0].salt, &pair[1].salt] {
        plain.extend_from_slice(part.expose());
    }
    // Random rather than fixed: a hospital that lost its state and deals again must not reuse a nonce.
    let mut nonce = [0u8; NONCE];
    rng.fill_bytes(&mut nonce);
    let aad = associated(sid, from, to);
    let cipher = Aes256Gcm::new(key.expose().into());
    let sealed = cipher.encrypt(&Nonce::from(nonce), Payload { msg: &plain, aad: &aad });
    debug_assert!(sealed.is_ok(), "128 bytes are far below GCM's limit");
    Ok([nonce.to_vec(), sealed.unwrap_or_default()].concat())
}

fn unseal(scalar: &Secret, peer: &PublicKey, sid: &Sid, from: Party, to: Party, envelope: &[u8]) -> Option<SharePair> {
    let key = keys::envelope_key(scalar, peer, sid, from, to).ok()?;
    let (nonce, sealed) = envelope.split_first_chunk::<NONCE>()?;
    let cipher = Aes256Gcm::new(key.expose().into());
    let aad = associated(sid, from, to);
    let plain = Zeroizing::new(cipher.decrypt(&Nonce::from(*nonce), Payload { msg: sealed, aad: &aad }).ok()?);
    if plain.len() != PLAINTEXT {
        return None;
    }
    let part = |i: usize| {
        let mut bytes = [0; 32];
        bytes.copy_from_slice(&plain[32 * i..32 * (i + 1)]);
        Secret::new(bytes)
    };
    Some([SaltedShare { share: part(0), salt: part(2) }, SaltedShare { share: part(1), salt: part(3) }])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Federation, rng};

    fn dealt() -> (Federation, Session, Vec<Seeds>, SharesMessage) {
        let f = Federation::new(4, 10);
        let (list, seeds) = f.adverts(&f.attempt);
        let session = Session::open(&f.attempt, &list, &f.roster).unwrap();
        let (message, _) = deal(&session, Party(0), &seeds[0], &f.keys[0], &mut rng(5)).unwrap();
        (f, session, seeds, message)
    }

    fn delivered(message: &SharesMessage, to: usize) -> DeliveredShare {
        DeliveredShare { header: message.header.clone(), entry: message.entries[to].clone() }
    }

    #[test]
    fn recipients_open_their_own_entry_and_no_other() {
        let (_, session, seeds, message) = dealt();
        message.check(&session).unwrap();
        assert_eq!(SharesMessage::from_bytes(&message.to_bytes()).unwrap(), message);
        let shares: Vec<_> = (1..4u8)
            .map(|j| {
                open(&session, Party(j), &seeds[usize::from(j)].enc_scalar, &delivered(&message, j.into())).unwrap()
            })
            .collect();
        let of: Vec<_> = (1..4u8).zip(&shares).map(|(j, pair)| (Party(j), &pair[1].share)).collect();
        assert_eq!(shamir::combine(&of, 3).unwrap(), seeds[0].self_seed);
        let error = open(&session, Party(1), &seeds[1].enc_scalar, &delivered(&message, 2)).unwrap_err();
        assert_eq!(error, ShareError::Entry { dealer: Party(0), to: Party(1) });
    }

    /// The hub cannot swap an envelope unnoticed, and a dealer that encrypts rubbish is named.
    #[test]
    fn tampering_and_cheating_are_told_apart() {
        let (f, session, seeds, mut message) = dealt();
        let mut tampered = delivered(&message, 1);
        tampered.entry.envelope[20] ^= 1;
        let error = open(&session, Party(1), &seeds[1].enc_scalar, &tampered).unwrap_err();
        assert_eq!(error, ShareError::Entry { dealer: Party(0), to: Party(1) });
        message.entries[1].envelope[20] ^= 1;
        assert_eq!(message.check(&session), Err(ShareError::Entry { dealer: Party(0), to: Party(1) }));
        let mut header = message.header.body.clone();
        header.entries[1] = message.entries[1].digest();
        message.header = f.keys[0].sign(header);
        message.check(&session).unwrap();
        let error = open(&session, Party(1), &seeds[1].enc_scalar, &delivered(&message, 1)).unwrap_err();
        assert_eq!(error, ShareError::Envelope { dealer: Party(0), to: Party(1) });
    }
}
