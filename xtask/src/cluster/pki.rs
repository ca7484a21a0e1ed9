//! A cluster's certificates: one authority per cluster, so that no cluster's credential is worth anything in another.

use std::{fs, net::Ipv4Addr, path::Path};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256, date_time_ymd,
};

use crate::error::{Error, IoContext, Result};

/// What a certificate says about who holds it.
#[derive(Debug, PartialEq)]
pub(super) struct Subject {
    /// Name of the files, without ending.
    pub(super) file: &'static str,
    pub(super) common_name: String,
    /// The Kubernetes group.
    pub(super) organization: Option<&'static str>,
    /// DNS names and addresses that a client may reach it by; none for those that only call others.
    pub(super) sans: Vec<String>,
}

/// Everyone in a cluster who needs a certificate.
pub(super) fn subjects(cluster: &str, ip: Ipv4Addr, service_ip: Ipv4Addr) -> Vec<Subject> {
    let client = |file, common_name: &str, organization| Subject {
        file,
        common_name: common_name.to_owned(),
        organization,
        sans: Vec::new(),
    };
    let api_names =
        ["kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local"];
    let api_sans = api_names.map(str::to_owned).into_iter();
    vec![
        Subject {
            file: "apiserver",
            common_name: "kube-apiserver".to_owned(),
            organization: None,
            sans: api_sans
                .chain(["localhost", "127.0.0.1"].map(str::to_owned))
                .chain([ip, service_ip].map(|ip| ip.to_string()))
                .collect(),
        },
        Subject {
            file: "kubelet",
            common_name: format!("system:node:{cluster}"),
            organization: Some("system:nodes"),
            sans: vec![cluster.to_owned(), ip.to_string()],
        },
        client("apiserver-kubelet-client", "kube-apiserver-kubelet-client", Some("system:masters")),
        client("admin", "admin", Some("system:masters")),
        client("controller-manager", "system:kube-controller-manager", None),
        client("scheduler", "system:kube-scheduler", None),
        client("proxy", "system:kube-proxy", None),
    ]
}

/// Writes the authority, everyone's certificate and key, and the service-account key pair into `folder`. Nothing is done
/// when they are there: a cluster keeps its authority for its life.
pub(super) fn ensure(folder: &Path, cluster: &str, subjects: &[Subject]) -> Result<()> {
    let done = folder.join("complete");
    if done.is_file() {
        return Ok(());
    }
    fs::create_dir_all(folder).at("make folder", folder)?;
    let authority_key = key(cluster)?;
    let mut authority = params("ca", &format!("{cluster}-ca"), None, &[])?;
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    authority.key_usages =
        vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
    let pki = |name: &str| {
        let name = name.to_owned();
        move |source| Error::Pki { name, source }
    };
    let certificate = authority.self_signed(&authority_key).map_err(pki("ca"))?;
    write(folder, "ca.crt", &certificate.pem())?;
    write(folder, "ca.key", &authority_key.serialize_pem())?;
    let issuer = Issuer::new(authority, authority_key);
    for subject in subjects {
        let key = key(subject.file)?;
        let mut params = params(subject.file, &subject.common_name, subject.organization, &subject.sans)?;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        if !subject.sans.is_empty() {
            params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
        }
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        let certificate = params.signed_by(&key, &issuer).map_err(pki(subject.file))?;
        write(folder, &format!("{}.crt", subject.file), &certificate.pem())?;
        write(folder, &format!("{}.key", subject.file), &key.serialize_pem())?;
    }
    let service_accounts = key("service-accounts")?;
    write(folder, "service-accounts.key", &service_accounts.serialize_pem())?;
    write(folder, "service-accounts.pub", &service_accounts.public_key_pem())?;
    write(folder, "complete", "")
}

fn key(name: &str) -> Result<KeyPair> {
    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(|source| Error::Pki { name: name.to_owned(), source })
}

fn params(name: &str, common_name: &str, organization: Option<&str>, sans: &[String]) -> Result<CertificateParams> {
    let mut params = CertificateParams::new(sans).map_err(|source| Error::Pki { name: name.to_owned(), source })?;
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common_name);
    if let Some(organization) = organization {
        params.distinguished_name.push(DnType::OrganizationName, organization);
    }
    // Longer than any test cluster lives, whatever the machine's clock says.
    params.not_before = date_time_ymd(2020, 1, 1);
    params.not_after = date_time_ymd(2099, 1, 1);
    Ok(params)
}

fn write(folder: &Path, name: &str, content: &str) -> Result<()> {
    use std::os::unix::fs::OpenOptionsExt;
    let path = folder.join(name);
    let mode = if name.ends_with(".key") { 0o600 } else { 0o644 };
    let mut file =
        fs::OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&path).at("write", &path)?;
    std::io::Write::write_all(&mut file, content.as_bytes()).at("write", &path)
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use x509_parser::prelude::*;

    use super::*;

    fn issue() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let subjects = subjects("alder", Ipv4Addr::new(172, 31, 77, 2), Ipv4Addr::new(10, 96, 0, 1));
        ensure(folder.path(), "alder", &subjects).unwrap();
        folder
    }

    fn with_certificate<T>(folder: &Path, file: &str, check: impl Fn(&X509Certificate<'_>) -> T) -> T {
        let pem = fs::read(folder.join(file)).unwrap();
        let (_, pem) = parse_x509_pem(&pem).unwrap();
        check(&pem.parse_x509().unwrap())
    }

    /// Pods reach the API server by the service's address and name, kubectl and the kubelet by the node's: a name that is
    /// missing here fails only much later, as a TLS error in some component's log.
    #[test]
    fn the_api_server_is_known_by_every_name_it_is_called_by() {
        let folder = issue();
        let (names, addresses) = with_certificate(folder.path(), "apiserver.crt", |certificate| {
            let sans = certificate.subject_alternative_name().unwrap().unwrap();
            let mut names = Vec::new();
            let mut addresses = Vec::new();
            for san in &sans.value.general_names {
                match san {
                    GeneralName::DNSName(name) => names.push((*name).to_owned()),
                    GeneralName::IPAddress(ip) => addresses.push(IpAddr::from(<[u8; 4]>::try_from(*ip).unwrap())),
                    other => panic!("{other}"),
                }
            }
            (names, addresses)
        });
        assert!(names.contains(&"kubernetes.default.svc".to_owned()), "{names:?}");
        for ip in ["127.0.0.1", "172.31.77.2", "10.96.0.1"] {
            assert!(addresses.contains(&ip.parse().unwrap()), "{addresses:?}");
        }
    }

    /// The node authorizer lets a kubelet do anything only under exactly this name and group.
    #[test]
    fn a_kubelet_is_its_node() {
        let folder = issue();
        let subject = with_certificate(folder.path(), "kubelet.crt", |certificate| certificate.subject().to_string());
        assert!(subject.contains("CN=system:node:alder") && subject.contains("O=system:nodes"), "{subject}");
    }

    /// A second `up` must not replace the authority under running components.
    #[test]
    fn certificates_are_made_once() {
        let folder = issue();
        let before = fs::read(folder.path().join("ca.crt")).unwrap();
        ensure(folder.path(), "alder", &[]).unwrap();
        assert_eq!(before, fs::read(folder.path().join("ca.crt")).unwrap());
    }
}
