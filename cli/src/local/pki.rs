//! Certificates for one run: between processes of one machine, never for a hospital.

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;

use consilium_federation::SiteName;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair, SanType,
};

use super::{Failure, Result, files};

/// Who signs the certificates of one side.
pub(super) struct Authority(CertifiedIssuer<'static, KeyPair>);

fn failed(error: rcgen::Error) -> Failure {
    Failure::Part(format!("a certificate cannot be made: {error}"))
}

impl Authority {
    pub(super) fn new(name: &str) -> Result<Self> {
        let mut params = CertificateParams::new(Vec::new()).map_err(failed)?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().map_err(failed)?;
        Ok(Self(CertifiedIssuer::self_signed(params, key).map_err(failed)?))
    }

    /// Writes the gateway's certificate and key, and who signs those of its callers.
    pub(super) fn gateway(&self, folder: &Path, callers: &Authority) -> Result<()> {
        let name = SanType::IpAddress(IpAddr::V4(Ipv4Addr::LOCALHOST));
        self.write(folder, ("gateway", name), ExtendedKeyUsagePurpose::ServerAuth, callers)
    }

    /// Writes a hospital's.
    pub(super) fn site(&self, folder: &Path, site: &SiteName, gateways: &Authority) -> Result<()> {
        let uri = format!("spiffe://consilium/site/{site}");
        let name = SanType::URI(uri.try_into().map_err(failed)?);
        self.write(folder, (site.as_str(), name), ExtendedKeyUsagePurpose::ClientAuth, gateways)
    }

    fn write(
        &self,
        folder: &Path,
        (common, name): (&str, SanType),
        usage: ExtendedKeyUsagePurpose,
        other: &Authority,
    ) -> Result<()> {
        let mut params = CertificateParams::new(Vec::new()).map_err(failed)?;
        params.distinguished_name.push(DnType::CommonName, common);
        params.subject_alt_names = vec![name];
        params.extended_key_usages = vec![usage];
        let key = KeyPair::generate().map_err(failed)?;
        let certificate = params.signed_by(&key, &self.0).map_err(failed)?;
        files::put_bytes(&folder.join("tls.crt"), certificate.pem().as_bytes())?;
        files::put_bytes(&folder.join("tls.key"), key.serialize_pem().as_bytes())?;
        files::put_bytes(&folder.join("ca.crt"), other.0.pem().as_bytes())
    }
}
