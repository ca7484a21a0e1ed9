//! The certificates of a federation on one machine; in a real one, cert-manager or an authority of the health service
//! makes them.

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair, SanType,
};

use crate::error::{Error, Result};

/// Name under which the gateway is dialled.
pub const GATEWAY: &str = "gateway.consilium.local";

/// An authority that signs the gateway's and the hospitals' certificates.
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

/// A certificate and its key, as PEM.
pub struct Pair {
    /// Certificate.
    pub certificate: String,
    /// PKCS#8 key.
    pub key: String,
}

impl Authority {
    /// A new authority.
    pub fn new(name: &str) -> Result<Self> {
        let context = |source| Error::Pki { name: name.to_owned(), source };
        let mut params = CertificateParams::new(Vec::new()).map_err(context)?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().map_err(context)?;
        Ok(Self { issuer: CertifiedIssuer::self_signed(params, key).map_err(context)? })
    }

    /// The authority's own certificate, PEM.
    pub fn certificate(&self) -> String {
        self.issuer.pem()
    }

    /// The gateway's certificate: for its name and the hub's address.
    pub fn gateway(&self, address: std::net::Ipv4Addr) -> Result<Pair> {
        let name = SanType::DnsName(GATEWAY.try_into().map_err(|source| Error::Pki { name: GATEWAY.into(), source })?);
        self.sign("gateway", vec![name, SanType::IpAddress(address.into())], ExtendedKeyUsagePurpose::ServerAuth)
    }

    /// A hospital's certificate: its name stands in a URI, as the gateway reads it.
    pub fn site(&self, site: &str) -> Result<Pair> {
        let uri = format!("spiffe://consilium/site/{site}");
        let name = SanType::URI(uri.try_into().map_err(|source| Error::Pki { name: site.into(), source })?);
        self.sign(site, vec![name], ExtendedKeyUsagePurpose::ClientAuth)
    }

    fn sign(&self, name: &str, names: Vec<SanType>, usage: ExtendedKeyUsagePurpose) -> Result<Pair> {
        let context = |source| Error::Pki { name: name.to_owned(), source };
        let mut params = CertificateParams::new(Vec::new()).map_err(context)?;
        params.distinguished_name.push(DnType::CommonName, name);
        params.subject_alt_names = names;
        params.extended_key_usages = vec![usage];
        let key = KeyPair::generate().map_err(context)?;
        let certificate = params.signed_by(&key, &self.issuer).map_err(context)?;
        Ok(Pair { certificate: certificate.pem(), key: key.serialize_pem() })
    }
}
