//! One session: the attempt and exactly these hospitals with exactly these keys, under one identity `sid`.
//!
//! Both sides build it from the hub's list of adverts and the pinned roster. Whatever the hub changes for one of them
//! (a key, a hospital, the model) changes that hospital's sid, hence all its masks, and its upload cancels with nobody's.
use crate::advert::{Advert, AdvertList};
use crate::identity::BadSignature;
use crate::ids::{Digest, Party, PublicKey, Sid, SiteId};
use crate::keys::{self, LowOrderKey};
use crate::roster::VerifiedRoster;
use crate::secret::Secret;
use crate::spec::{AttemptSpec, SpecError};
use crate::thresholds::{ThresholdError, Thresholds};
use crate::wire::{Message, Writer};
use sha2::{Digest as _, Sha256};

/// Why a list of adverts makes no session.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum SessionError {
    /// The specification itself.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// Too few, too many, or too many colluders.
    #[error(transparent)]
    Threshold(#[from] ThresholdError),
    /// The specification names another roster than the verified one.
    #[error("the round names roster {named}, the verified one is {verified}")]
    OtherRoster {
        /// Named in the specification.
        named: Digest,
        /// Verified.
        verified: Digest,
    },
    /// Not in order of site, or a site twice.
    #[error("adverts are not strictly ascending by site at {site}")]
    Order {
        /// The site out of order.
        site: SiteId,
    },
    /// A hospital that governance never signed.
    #[error("site {site} is not on the roster: the hub invented it or its roster is another")]
    UnknownSite {
        /// The site.
        site: SiteId,
    },
    /// An advert that its hospital did not sign.
    #[error("advert of {site}: {source}")]
    Signature {
        /// The site.
        site: SiteId,
        /// What failed.
        source: BadSignature,
    },
    /// An advert for another attempt.
    #[error("advert of {site} is for attempt {got}, this is {expected}")]
    WrongAttempt {
        /// The site.
        site: SiteId,
        /// The advert's attempt.
        got: Digest,
        /// Ours.
        expected: Digest,
    },
    /// A key that gives everyone the shared secret.
    #[error("advert of {site}: {source}")]
    LowOrder {
        /// The site.
        site: SiteId,
        /// The key.
        source: LowOrderKey,
    },
    /// A key that appears twice.
    #[error("advert of {site} repeats key {key} of another advert")]
    RepeatedKey {
        /// The site.
        site: SiteId,
        /// The key.
        key: PublicKey,
    },
}

/// An opened session.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Session {
    sid: Sid,
    attempt: AttemptSpec,
    thresholds: Thresholds,
    adverts: Vec<Advert>,
    identities: Vec<PublicKey>,
}

impl Session {
    /// Opens a session among the adverts.
    ///
    /// # Errors
    /// [`SessionError`].
    pub fn open(attempt: &AttemptSpec, list: &AdvertList, roster: &VerifiedRoster) -> Result<Self, SessionError> {
        let round = &attempt.round;
        round.check()?;
        if round.roster != roster.digest() {
            return Err(SessionError::OtherRoster { named: round.roster, verified: roster.digest() });
        }
        let (n, capacity) = (list.adverts.len(), usize::from(round.capacity));
        if n > capacity {
            return Err(ThresholdError::TooMany { n, capacity }.into());
        }
        let thresholds = Thresholds::for_attempt(n, usize::from(round.colluders), usize::from(round.min_contributors))?;
        let expected = attempt.digest();
        let mut identities = Vec::with_capacity(n);
        for (i, signed) in list.adverts.iter().enumerate() {
            let site = &signed.body.site;
            if i > 0 && list.adverts[i - 1].body.site >= *site {
                return Err(SessionError::Order { site: site.clone() });
            }
            let key = roster.key(site).ok_or_else(|| SessionError::UnknownSite { site: site.clone() })?;
            signed.verify(key).map_err(|source| SessionError::Signature { site: site.clone(), source })?;
            if signed.body.attempt != expected {
                return Err(SessionError::WrongAttempt { site: site.clone(), got: signed.body.attempt, expected });
            }
            check_keys(&signed.body, list.adverts[..i].iter().map(|s| &s.body))?;
            identities.push(*key);
        }
        let adverts: Vec<_> = list.adverts.iter().map(|s| s.body.clone()).collect();
        Ok(Self { sid: session_id(attempt, &adverts), attempt: attempt.clone(), thresholds, adverts, identities })
    }

    /// The session's identity.
    #[must_use]
    pub fn sid(&self) -> Sid {
        self.sid
    }

    /// The attempt's specification.
    #[must_use]
    pub fn attempt(&self) -> &AttemptSpec {
        &self.attempt
    }

    /// n, t and the floor of contributors.
    #[must_use]
    pub fn thresholds(&self) -> Thresholds {
        self.thresholds
    }

    /// All parties of the session (U1).
    pub fn parties(&self) -> impl Iterator<Item = Party> + use<> {
        // Safety: the roster has at most 255 entries.
        (0..self.adverts.len()).map(|i| Party(i as u8))
    }

    /// A party's advert; `None` for a party outside the session.
    #[must_use]
    pub fn advert(&self, party: Party) -> Option<&Advert> {
        self.adverts.get(party.index())
    }

    /// A party's identity key; `None` for a party outside the session.
    #[must_use]
    pub fn identity(&self, party: Party) -> Option<&PublicKey> {
        self.identities.get(party.index())
    }

    /// The party that a hospital is, if it takes part.
    #[must_use]
    pub fn party(&self, site: &SiteId) -> Option<Party> {
        // Safety: the roster has at most 255 entries.
        self.adverts.binary_search_by(|a| a.site.cmp(site)).ok().map(|i| Party(i as u8))
    }

    /// The hospital that a party is. Parties come from the session's own messages, which are checked on arrival.
    #[must_use]
    pub fn site(&self, party: Party) -> Option<&SiteId> {
        self.advert(party).map(|a| &a.site)
    }
}

/// Whether an advert's keys are keys, and nobody else's among `others`.
pub(crate) fn check_keys<'a>(
    advert: &Advert,
    others: impl Iterator<Item = &'a Advert> + Clone,
) -> Result<(), SessionError> {
    // Any scalar tells a low-order point; the one used here protects nothing.
    let probe = Secret::new([0x55; 32]);
    for key in [advert.enc_key, advert.mask_key] {
        keys::diffie_hellman(&probe, &key)
            .map_err(|source| SessionError::LowOrder { site: advert.site.clone(), source })?;
        let repeated = advert.enc_key == advert.mask_key
            || others.clone().any(|other| other.enc_key == key || other.mask_key == key);
        if repeated {
            return Err(SessionError::RepeatedKey { site: advert.site.clone(), key });
        }
    }
    Ok(())
}

fn session_id(attempt: &AttemptSpec, adverts: &[Advert]) -> Sid {
    let mut w = Writer::new();
    w.string("consilium/secagg/v1/session").bytes(&attempt.to_bytes()).count(adverts.len());
    for advert in adverts {
        w.bytes(&advert.to_bytes());
    }
    Sid(Sha256::digest(w.finish()).into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Federation;

    /// Two hospitals that were told different base models must not end up in one session.
    #[test]
    fn the_session_binds_every_detail() {
        let f = Federation::new(4, 10);
        let (list, _) = f.adverts(&f.attempt);
        let session = Session::open(&f.attempt, &list, &f.roster).unwrap();
        assert_eq!(session.sid(), Session::open(&f.attempt, &list, &f.roster).unwrap().sid());
        let mut other = f.attempt.clone();
        other.round.subject = Digest([8; 32]);
        assert!(matches!(Session::open(&other, &list, &f.roster), Err(SessionError::WrongAttempt { .. })));
        let (again, _) = f.adverts(&other);
        assert_ne!(Session::open(&other, &again, &f.roster).unwrap().sid(), session.sid());
        assert_eq!(session.party(&f.sites[2]), Some(Party(2)));
        assert_eq!(session.site(Party(9)), None);
    }
}
