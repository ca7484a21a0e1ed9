//! A roster as people and pipelines handle it: a JSON document whose signatures any governance member can add.
//!
//! It lies in a ConfigMap of the hub (key [`DATA_KEY`], label [`LABEL`]) and in a file when it is signed. What is signed
//! are the canonical bytes of `secagg`, so the document's spelling does not matter.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use consilium_federation::SiteName;
use consilium_secagg::ids::{PublicKey, Signature, SiteId};
use consilium_secagg::roster::{Roster, RosterEntry, SignedRoster};
use serde::{Deserialize, Serialize};

/// Label of the ConfigMaps in the operator's namespace that hold a roster; its value is `true`.
pub const LABEL: &str = "consilium.health/roster";
/// Key of the document in such a ConfigMap.
pub const DATA_KEY: &str = "roster.json";

/// The document.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RosterDocument {
    /// Name of the federation.
    pub federation: String,
    /// Counts up; hospitals never go back.
    pub version: u64,
    /// The hospitals, by name.
    pub sites: Vec<RosterSite>,
    /// Who has signed.
    #[serde(default)]
    pub signatures: Vec<RosterSignature>,
}

/// One hospital.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RosterSite {
    /// Name of its TrustSite.
    pub name: SiteName,
    /// Its signing key, as its SitePolicy's status shows it: base64 of 32 bytes.
    pub public_key: String,
}

/// One governance member's signature.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RosterSignature {
    /// Its key: base64 of 32 bytes.
    pub public_key: String,
    /// Ed25519: base64 of 64 bytes.
    pub signature: String,
}

/// A document that makes no roster.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DocumentError {
    /// Not the JSON of a roster.
    #[error("roster.json: {0}; write one with `kubectl consilium roster new`")]
    Json(String),
    /// A key or signature that is none.
    #[error("roster.json: {field} of {of} is {value:?}: expected base64 of {bytes} bytes")]
    Base64 {
        /// Which field.
        field: &'static str,
        /// Whose.
        of: String,
        /// What it holds, cut to 100 characters.
        value: String,
        /// Bytes expected.
        bytes: usize,
    },
    /// Two entries for one hospital.
    #[error("roster.json: sites names {0} twice; each hospital has one key")]
    Twice(SiteName),
}

fn decode<const N: usize>(field: &'static str, of: &str, text: &str) -> Result<[u8; N], DocumentError> {
    let bad = || DocumentError::Base64 { field, of: of.to_owned(), value: text.chars().take(100).collect(), bytes: N };
    BASE64.decode(text.trim()).ok().and_then(|bytes| bytes.try_into().ok()).ok_or_else(bad)
}

/// A public key as the API spells it.
pub fn key_text(key: &PublicKey) -> String {
    BASE64.encode(key.0)
}

/// A public key from the API's spelling.
///
/// # Errors
/// [`DocumentError::Base64`], naming `of`.
pub fn parse_key(of: &str, text: &str) -> Result<PublicKey, DocumentError> {
    decode("publicKey", of, text).map(PublicKey)
}

/// A site's name in the protocol's own type: both are RFC 1123 labels.
pub fn site_id(site: &SiteName) -> SiteId {
    // Safety: SiteName admits exactly the names that SiteId does; the test below holds both to it.
    #[allow(clippy::expect_used)]
    SiteId::new(site.as_str()).expect("a site name is a site id")
}

impl RosterDocument {
    /// Parses JSON.
    ///
    /// # Errors
    /// [`DocumentError::Json`].
    pub fn parse(json: &str) -> Result<Self, DocumentError> {
        serde_json::from_str(json).map_err(|error| DocumentError::Json(error.to_string()))
    }

    /// The roster with its signatures, not yet judged by anyone.
    ///
    /// # Errors
    /// [`DocumentError`].
    pub fn signed(&self) -> Result<SignedRoster, DocumentError> {
        let mut entries = Vec::new();
        for (i, site) in self.sites.iter().enumerate() {
            if self.sites[..i].iter().any(|other| other.name == site.name) {
                return Err(DocumentError::Twice(site.name.clone()));
            }
            entries
                .push(RosterEntry { site: site_id(&site.name), key: parse_key(site.name.as_str(), &site.public_key)? });
        }
        let roster = Roster { federation: self.federation.clone(), version: self.version, entries };
        let mut signed = SignedRoster::new(roster);
        for signature in &self.signatures {
            let of = format!("signer {}", signature.public_key);
            let key = parse_key(&of, &signature.public_key)?;
            signed.signatures.push((key, Signature(decode("signature", &of, &signature.signature)?)));
        }
        signed.signatures.sort_by_key(|(key, _)| *key);
        signed.signatures.dedup_by_key(|(key, _)| *key);
        Ok(signed)
    }

    /// The document of a roster.
    pub fn of(signed: &SignedRoster) -> Self {
        let site = |entry: &RosterEntry| {
            let name = entry.site.as_str().parse().ok()?;
            Some(RosterSite { name, public_key: key_text(&entry.key) })
        };
        let signature = |(key, signature): &(PublicKey, Signature)| RosterSignature {
            public_key: key_text(key),
            signature: BASE64.encode(signature.0),
        };
        Self {
            federation: signed.roster.federation.clone(),
            version: signed.roster.version,
            sites: signed.roster.entries.iter().filter_map(site).collect(),
            signatures: signed.signatures.iter().map(signature).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use consilium_secagg::identity::SiteKey;

    use super::*;

    fn document() -> RosterDocument {
        let site = |name: &str, seed| RosterSite {
            name: name.parse().unwrap(),
            public_key: key_text(&SiteKey::from_seed(&[seed; 32]).public()),
        };
        let sites = vec![site("birch", 2), site("alder", 1)];
        RosterDocument { federation: "north".into(), version: 3, sites, signatures: vec![] }
    }

    /// A member signs what it read: the document must come back the same, in the roster's order, with its signatures.
    #[test]
    fn a_signed_document_survives_and_verifies() {
        let key = SiteKey::from_seed(&[9; 32]);
        let mut signed = document().signed().unwrap();
        signed.sign(&key);
        let written = RosterDocument::of(&signed);
        assert_eq!(written.sites[0].name.as_str(), "alder");
        let json = serde_json::to_string(&written).unwrap();
        let read = RosterDocument::parse(&json).unwrap().signed().unwrap();
        assert_eq!(read, signed);
        let pinned =
            consilium_secagg::roster::Governance { federation: "north".into(), keys: vec![key.public()], required: 1 };
        pinned.verify(&read).unwrap();
    }

    #[test]
    fn what_is_no_roster_says_which_field() {
        let refused = |edit: fn(&mut RosterDocument)| {
            let mut document = document();
            edit(&mut document);
            document.signed().unwrap_err().to_string()
        };
        assert!(refused(|d| d.sites[0].public_key = "AAAA".into()).contains("publicKey of birch"));
        assert!(refused(|d| d.sites[1].name = "birch".parse().unwrap()).contains("birch twice"));
        let bad = RosterSignature { public_key: document().sites[0].public_key.clone(), signature: "x".into() };
        let mut document = document();
        document.signatures.push(bad);
        assert!(document.signed().unwrap_err().to_string().contains("signature of signer"));
        assert!(RosterDocument::parse("{}").unwrap_err().to_string().contains("roster new"));
    }

    /// Every name that a TrustSite may have must be one that the protocol takes.
    #[test]
    fn both_types_of_site_name_admit_the_same() {
        for text in ["a", "alder", "st-thomas-2", &"x".repeat(63), "", "-a", "a-", "A", "a.b", &"x".repeat(64)] {
            assert_eq!(text.parse::<SiteName>().is_ok(), SiteId::new(text).is_ok(), "{text}");
        }
    }
}
