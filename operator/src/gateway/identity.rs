//! Who calls, from the certificate of the connection.

use consilium_federation::SiteName;
use jiff::Timestamp;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

/// What stands before the site's name in the certificate's only URI.
pub const SPIFFE_PREFIX: &str = "spiffe://consilium/site/";

/// A certificate of the right CA that names no hospital.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// None at all.
    #[error("the connection shows no client certificate; use the certificate that was issued to this hospital")]
    NoCertificate,
    /// Not X.509.
    #[error("the client certificate cannot be read; use the certificate that was issued to this hospital")]
    Unreadable,
    /// Not exactly one URI.
    #[error("the client certificate names {found} URIs, expected exactly one: {SPIFFE_PREFIX}<site>")]
    Uris {
        /// How many.
        found: usize,
    },
    /// A URI of another kind, or a name that is none.
    #[error("the client certificate names {uri:?}, expected {SPIFFE_PREFIX}<site> with an RFC 1123 label")]
    NotASite {
        /// The URI, cut to 100 characters.
        uri: String,
    },
    /// It was good when the connection was made.
    #[error("the client certificate ended on {ended}; connect again with the one that was renewed")]
    Ended {
        /// When.
        ended: Timestamp,
    },
    /// It was replaced because it is in the wrong hands.
    #[error(
        "the client certificate holds from {issued}, and the TrustSite's spec.certificatesIssuedSince is {since}: issue one of a new key"
    )]
    Superseded {
        /// From when it holds.
        issued: Timestamp,
        /// From when certificates count.
        since: Timestamp,
    },
}

/// A caller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// Which hospital.
    pub site: SiteName,
    /// From when its certificate holds, Unix time in seconds.
    pub issued: i64,
    /// When its certificate ends, Unix time in seconds.
    pub expires: i64,
}

impl Caller {
    /// The caller, if its certificate still holds: a connection may outlive what it was opened with.
    pub(super) fn at(self, now: Timestamp) -> Result<Self, IdentityError> {
        if now.as_second() <= self.expires {
            return Ok(self);
        }
        Err(IdentityError::Ended { ended: Timestamp::from_second(self.expires).unwrap_or(Timestamp::MIN) })
    }

    /// Why it is none of those that count, if its hospital's certificates count from a time on.
    pub(super) fn superseded(&self, since: Timestamp) -> Option<IdentityError> {
        let issued = Timestamp::from_second(self.issued).unwrap_or(Timestamp::MIN);
        (issued < since).then_some(IdentityError::Superseded { issued, since })
    }
}

/// Reads the caller from a certificate in DER form. That the CA signed it and that it has not ended was checked in
/// the handshake.
pub(super) fn caller(certificate: &[u8]) -> Result<Caller, IdentityError> {
    let (_, parsed) = X509Certificate::from_der(certificate).map_err(|_| IdentityError::Unreadable)?;
    let names = parsed.subject_alternative_name().map_err(|_| IdentityError::Unreadable)?;
    let uris: Vec<&str> = names
        .iter()
        .flat_map(|extension| &extension.value.general_names)
        .filter_map(|name| match name {
            GeneralName::URI(uri) => Some(*uri),
            _ => None,
        })
        .collect();
    // With two, which one counts would be up to the reader.
    let [uri] = uris[..] else { return Err(IdentityError::Uris { found: uris.len() }) };
    let site = uri.strip_prefix(SPIFFE_PREFIX).and_then(|name| name.parse().ok());
    let site = site.ok_or_else(|| IdentityError::NotASite { uri: uri.chars().take(100).collect() })?;
    Ok(Caller {
        site,
        issued: parsed.validity().not_before.timestamp(),
        expires: parsed.validity().not_after.timestamp(),
    })
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair, SanType};

    use super::*;

    fn certificate(uris: &[&str]) -> Vec<u8> {
        let mut params = CertificateParams::new(vec!["alder".to_owned()]).unwrap();
        params.subject_alt_names.extend(uris.iter().map(|uri| SanType::URI((*uri).try_into().unwrap())));
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().to_vec()
    }

    /// A name that two readers understand differently would let one hospital act as another.
    #[test]
    fn only_exactly_one_site_uri_is_an_identity() {
        let site = |uris: &[&str]| caller(&certificate(uris)).map(|c| c.site.to_string());
        assert_eq!(site(&["spiffe://consilium/site/alder"]).unwrap(), "alder");
        assert_eq!(site(&[]), Err(IdentityError::Uris { found: 0 }));
        let two = ["spiffe://consilium/site/alder", "spiffe://consilium/site/birch"];
        assert_eq!(site(&two), Err(IdentityError::Uris { found: 2 }));
        for other in ["spiffe://consilium/site/", "spiffe://consilium/site/a/b", "spiffe://other/site/alder"] {
            assert_eq!(site(&[other]), Err(IdentityError::NotASite { uri: other.into() }));
        }
        assert_eq!(caller(b"junk"), Err(IdentityError::Unreadable));
    }

    /// A certificate that was stolen must be worth nothing once its hospital has another.
    #[test]
    fn what_was_issued_before_can_be_shut_out() {
        let stolen = Caller { site: "alder".parse().unwrap(), issued: 1_600_000_000, expires: 1_700_000_000 };
        let at = |second| Timestamp::from_second(second).unwrap();
        assert_eq!(stolen.superseded(at(1_600_000_000)), None);
        let words = stolen.superseded(at(1_600_000_001)).unwrap().to_string();
        assert!(words.contains("certificatesIssuedSince"), "{words}");
    }

    /// A hospital that keeps its connection open must not be let in for ever by a certificate of a week.
    #[test]
    fn a_certificate_that_has_ended_is_no_identity_any_more() {
        let alder = Caller { site: "alder".parse().unwrap(), issued: 1_600_000_000, expires: 1_700_000_000 };
        let at = |second| alder.clone().at(Timestamp::from_second(second).unwrap());
        assert_eq!(at(1_700_000_000), Ok(alder.clone()));
        let error = at(1_700_000_001).unwrap_err().to_string();
        assert!(error.contains("2023-11-14") && error.contains("renewed"), "{error}");
    }
}
