//! The task port's own certificate: self-signed, pinned by every task's credential, kept on the agent's volume so that
//! pods still know the port after a restart.

use rcgen::{CertificateParams, KeyPair};

use crate::state::{State, StateError};

const BLOB: &str = "taskport/identity";

/// Key and certificate of the task port.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Identity {
    /// The host that it is for.
    host: String,
    /// PEM; public, in every task's credential as `ca.crt`.
    pub certificate: String,
    /// PEM; never leaves the agent.
    pub key: String,
}

/// Why there is no identity.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The address.
    #[error("--task-address is {0:?}: write https://host:port as task pods dial it")]
    Address(String),
    /// The certificate could not be made.
    #[error("no certificate for the task port: {0}")]
    Certificate(#[from] rcgen::Error),
    /// The volume.
    #[error(transparent)]
    State(#[from] StateError),
    /// What is stored.
    #[error("the stored identity of the task port cannot be read: {0}")]
    Stored(#[from] serde_json::Error),
}

/// The identity on the volume, or a new one if there is none for this address.
pub fn load_or_make(state: &State, address: &str) -> Result<Identity, IdentityError> {
    let host = host(address)?;
    if let Some(bytes) = state.blob(BLOB)? {
        let known: Identity = serde_json::from_slice(&bytes)?;
        if known.host == host {
            return Ok(known);
        }
    }
    let key = KeyPair::generate()?;
    let certificate = CertificateParams::new(vec![host.clone()])?.self_signed(&key)?;
    let identity = Identity { host, certificate: certificate.pem(), key: key.serialize_pem() };
    state.put_blob(BLOB, &serde_json::to_vec(&identity)?)?;
    Ok(identity)
}

/// The host of `https://host:port`, an IPv6 address without its brackets.
fn host(address: &str) -> Result<String, IdentityError> {
    let bad = || IdentityError::Address(address.to_owned());
    let rest = address.strip_prefix("https://").ok_or_else(bad)?;
    let (host, port) = rest.trim_end_matches('/').rsplit_once(':').ok_or_else(bad)?;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    if host.is_empty() || port.parse::<u16>().is_err() { Err(bad()) } else { Ok(host.to_owned()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A new certificate at each start would shut out every pod that runs.
    #[test]
    fn the_identity_survives_a_restart_and_changes_with_the_address() {
        let folder = tempfile::tempdir().unwrap();
        let state = State::open(folder.path(), [7; 32]).unwrap();
        let first = load_or_make(&state, "https://10.96.0.50:8444").unwrap();
        assert_eq!(load_or_make(&state, "https://10.96.0.50:8444").unwrap(), first);
        assert_ne!(load_or_make(&state, "https://10.96.0.51:8444").unwrap().certificate, first.certificate);
        for bad in ["http://a:1", "https://a", "https://:1"] {
            assert!(load_or_make(&state, bad).is_err(), "{bad}");
        }
    }
}
