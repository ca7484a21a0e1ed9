//! Signing keys: Ed25519 (RFC 8032), private as PKCS#8 PEM as OpenSSL writes it, public as base64.

use std::{
    fs::{self, File, OpenOptions},
    io::{ErrorKind, Read as _, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use ed25519_dalek::{
    SigningKey,
    pkcs8::{DecodePrivateKey as _, EncodePrivateKey as _, KeypairBytes, spki::der::pem::LineEnding},
};
use zeroize::Zeroizing;

use crate::error::{CliError, Result};

/// Makes a key pair: `out` readable by its owner alone, and `out`.pub.
pub fn make(out: &Path) -> Result<String> {
    let mut seed = Zeroizing::new([0; 32]);
    let random = Path::new("/dev/urandom");
    File::open(random).and_then(|mut file| file.read_exact(&mut *seed)).map_err(io(random))?;
    let key = SigningKey::from_bytes(&seed);
    // Without the public key, which OpenSSL does not read (PKCS#8 version 1, RFC 8410).
    let pem = KeypairBytes { secret_key: *seed, public_key: None }
        .to_pkcs8_pem(LineEnding::LF)
        .map_err(|error| CliError::Key { path: out.into(), problem: error.to_string() })?;
    let opened = OpenOptions::new().write(true).create_new(true).mode(0o600).open(out);
    let mut file = opened.map_err(|source| match source.kind() {
        ErrorKind::AlreadyExists => CliError::KeyExists { path: out.into() },
        _ => CliError::Io { path: out.into(), source },
    })?;
    file.write_all(pem.as_bytes()).and_then(|()| file.sync_all()).map_err(io(out))?;
    let public = BASE64.encode(key.verifying_key().as_bytes());
    let beside = public_file(out);
    fs::write(&beside, format!("{public}\n")).map_err(io(&beside))?;
    Ok(format!(
        "{} is the private key: keep it off every cluster.\n{} is the public one, for SitePolicy spec.releases.keys \
         (a governance member's goes into spec.governance.keys, without a role):\n\n\
         - id: NAME\n  role: ROLE\n  publicKey: {public}\n",
        out.display(),
        beside.display()
    ))
}

/// Reads a private key.
pub fn read(path: &Path) -> Result<SigningKey> {
    let pem = Zeroizing::new(fs::read_to_string(path).map_err(io(path))?);
    SigningKey::from_pkcs8_pem(&pem).map_err(|error| CliError::Key { path: path.into(), problem: error.to_string() })
}

fn public_file(out: &Path) -> PathBuf {
    let mut name = out.as_os_str().to_owned();
    name.push(".pub");
    name.into()
}

fn io(path: &Path) -> impl FnOnce(std::io::Error) -> CliError {
    let path = path.to_owned();
    move |source| CliError::Io { path, source }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    /// A safety officer who makes a second key must not lose the first, and nobody else on the machine may read it.
    #[test]
    fn a_key_is_private_read_back_and_never_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("mary.key");
        make(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        // 48 bytes of DER: the seed alone, as `openssl genpkey -algorithm ed25519` writes it.
        let pem = fs::read_to_string(&path).unwrap();
        assert_eq!(BASE64.decode(pem.lines().nth(1).unwrap()).unwrap().len(), 48);
        let public = fs::read_to_string(folder.path().join("mary.key.pub")).unwrap();
        let key = read(&path).unwrap();
        assert_eq!(BASE64.encode(key.verifying_key().as_bytes()), public.trim());
        let before = fs::read(&path).unwrap();
        assert!(make(&path).unwrap_err().to_string().contains("never overwritten"));
        assert_eq!(fs::read(&path).unwrap(), before);
    }

    /// The public key given by mistake is told from a private one.
    #[test]
    fn a_file_that_is_no_key_says_how_to_make_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("mary.key.pub");
        fs::write(&path, "AAAA\n").unwrap();
        assert!(read(&path).unwrap_err().to_string().contains("keygen --out"));
    }
}
