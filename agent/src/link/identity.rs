//! Who this hospital is: the certificate that it shows to the hub.

use std::path::{Path, PathBuf};

use consilium_federation::{Digest, SiteName};
use jiff::Timestamp;
use x509_parser::extensions::GeneralName;

/// What stands before the hospital's name in the certificate's URI.
const SPIFFE: &str = "spiffe://consilium/site/";

/// The hospital's certificate and key, and the authority that signs the gateway's.
#[derive(Clone)]
pub struct Identity {
    /// The hospital's name.
    pub site: SiteName,
    /// When the certificate ends.
    pub not_after: Timestamp,
    /// Digest over all three files: another one means that they were renewed.
    pub version: Digest,
    pub(super) certificate: Vec<u8>,
    pub(super) key: Vec<u8>,
    pub(super) authority: Vec<u8>,
}

/// The identity cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// A file.
    #[error(
        "{path}: {source}; --site-tls must be a folder with tls.crt, tls.key and ca.crt (Secret consilium-site-tls)"
    )]
    Read {
        /// Which one.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The certificate.
    #[error("tls.crt: {0}; ask the hub's administrators for a certificate of this hospital")]
    Certificate(String),
}

impl Identity {
    /// Reads the three files of the folder.
    pub fn read(folder: &Path) -> Result<Self, IdentityError> {
        let read = |name: &str| {
            let path = folder.join(name);
            std::fs::read(&path).map_err(|source| IdentityError::Read { path, source })
        };
        Self::from_pem(read("tls.crt")?, read("tls.key")?, read("ca.crt")?)
    }

    /// From the contents of the three files, PEM.
    pub fn from_pem(certificate: Vec<u8>, key: Vec<u8>, authority: Vec<u8>) -> Result<Self, IdentityError> {
        let bad = |why: String| IdentityError::Certificate(why);
        let (_, pem) = x509_parser::pem::parse_x509_pem(&certificate).map_err(|e| bad(format!("not PEM: {e}")))?;
        let parsed = pem.parse_x509().map_err(|e| bad(format!("not a certificate: {e}")))?;
        let names = parsed.subject_alternative_name().map_err(|e| bad(e.to_string()))?;
        let uris: Vec<&str> = names
            .iter()
            .flat_map(|ext| &ext.value.general_names)
            .filter_map(|name| if let GeneralName::URI(uri) = name { Some(*uri) } else { None })
            .collect();
        let [uri] = uris[..] else {
            return Err(bad(format!("it holds {} URIs, expected exactly one, {SPIFFE}<name>", uris.len())));
        };
        let name =
            uri.strip_prefix(SPIFFE).ok_or_else(|| bad(format!("its URI is {uri:?}, expected {SPIFFE}<name>")))?;
        let site = name.parse().map_err(|e: consilium_federation::ids::NameError| bad(e.to_string()))?;
        let not_after = Timestamp::from_second(parsed.validity().not_after.timestamp())
            .map_err(|e| bad(format!("its end cannot be read: {e}")))?;
        let version = Digest::of_parts([certificate.as_slice(), &key, &authority]);
        Ok(Self { site, not_after, version, certificate, key, authority })
    }
}
