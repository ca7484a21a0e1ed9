//! Names of things in the protocol: hospitals, their index in a session, digests, sessions.
use crate::wire::{Reader, WireError, Writer};
use std::fmt;

/// Why a text is not the name of a hospital.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("site name {name:?}: must be 1 to 63 of a-z, 0-9 and '-', not beginning or ending with '-'")]
pub struct SiteIdError {
    /// The text given.
    pub name: String,
}

/// The name of a hospital on the roster (a DNS label, as Kubernetes names it).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SiteId(String);

impl SiteId {
    /// Parses a name.
    ///
    /// # Errors
    /// [`SiteIdError`].
    pub fn new(name: impl Into<String>) -> Result<Self, SiteIdError> {
        let name = name.into();
        let ok = (1..=63).contains(&name.len())
            && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
            && !name.starts_with('-')
            && !name.ends_with('-');
        if ok { Ok(Self(name)) } else { Err(SiteIdError { name }) }
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    pub(crate) fn write(&self, w: &mut Writer) {
        w.string(&self.0);
    }

    pub(crate) fn read(r: &mut Reader<'_>) -> Result<Self, WireError> {
        let text = r.string("site")?;
        Self::new(text).map_err(|e| r.field("site", e.to_string()))
    }
}

impl fmt::Display for SiteId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for SiteId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for SiteId {
    type Error = SiteIdError;
    fn try_from(name: String) -> Result<Self, SiteIdError> {
        Self::new(name)
    }
}

impl From<SiteId> for String {
    fn from(site: SiteId) -> Self {
        site.0
    }
}

/// A 32-byte digest (SHA-256, or BLAKE3 for chunks).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest(pub [u8; 32]);

/// The identity of one session: SHA-256 over the attempt and all adverts.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Sid(pub [u8; 32]);

/// A public key (Ed25519 or X25519).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublicKey(pub [u8; 32]);

/// An Ed25519 signature.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Signature(pub [u8; 64]);

macro_rules! hex_bytes {
    ($($name:ident: $len:literal),+) => {$(
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&hex::encode(self.0))
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}…", hex::encode(&self.0[..6]))
            }
        }
        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.serialize_str(&hex::encode(self.0))
            }
        }
        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                let text = <String as serde::Deserialize>::deserialize(d)?;
                let mut out = [0; $len];
                hex::decode_to_slice(&text, &mut out).map_err(serde::de::Error::custom)?;
                Ok(Self(out))
            }
        }
    )+};
}
hex_bytes!(Digest: 32, Sid: 32, PublicKey: 32, Signature: 64);

/// A hospital's place in a session: its position among the adverts sorted by name. Its share index is one more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
pub struct Party(pub u8);

impl Party {
    /// As an index into lists of the session.
    #[must_use]
    pub fn index(self) -> usize {
        usize::from(self.0)
    }

    /// The x-coordinate of its Shamir shares, never zero.
    #[must_use]
    pub fn share_index(self) -> u8 {
        self.0 + 1
    }
}

impl fmt::Display for Party {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{}", self.0)
    }
}

/// A sorted set of parties as a list on the wire, strictly ascending so that it has one form.
pub(crate) fn write_parties(w: &mut Writer, parties: &[Party]) {
    w.count(parties.len());
    for party in parties {
        w.u8(party.0);
    }
}

pub(crate) fn read_parties(r: &mut Reader<'_>, field: &'static str) -> Result<Vec<Party>, WireError> {
    let n = r.count(field, 1)?;
    let parties: Vec<Party> = r.take(n)?.iter().map(|b| Party(*b)).collect();
    if parties.windows(2).any(|w| w[0] >= w[1]) {
        return Err(r.field(field, "is not strictly ascending"));
    }
    Ok(parties)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn site_names_are_dns_labels() {
        for good in ["alder", "st-thomas-2", "a"] {
            assert!(SiteId::new(good).is_ok());
        }
        for bad in ["", "Alder", "-a", "a-", "a b", "ä", &"x".repeat(64)] {
            assert!(SiteId::new(bad).unwrap_err().to_string().contains("site name"), "{bad}");
        }
    }
}
