//! What can go wrong in a controller's turn. The class decides when it looks again.

use consilium_crds::values::ValueError;

use crate::state::StateError;
use crate::taskport::IdentityError;

/// A turn that did not come through for one object.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The API server.
    #[error("API server: {0}")]
    Kube(#[from] kube::Error),
    /// The API server, again.
    #[error("API server: no answer within {seconds} s")]
    Slow {
        /// How long was waited.
        seconds: u64,
    },
    /// The volume.
    #[error(transparent)]
    State(#[from] StateError),
    /// The API server refused an object: admission, quota, rights, or a value of the SitePolicy in it.
    #[error("the hospital's API server refused {what}: {words}")]
    Refused {
        /// Kind and name.
        what: String,
        /// The server's words.
        words: String,
    },
    /// The API server dropped a field that it does not know.
    #[error(
        "this cluster's definition of ModelDeployment is older than the agent and keeps no spec.approved, without which no lease is renewed; upgrade the chart consilium-crds"
    )]
    OldKinds,
    /// Files and processes of a runner that is no cluster.
    #[error("{what}: {source}")]
    Files {
        /// What was tried.
        what: String,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// A value of the approved spec.
    #[error("the approved spec: {0}")]
    Value(#[from] ValueError),
    /// The task port's certificate.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// A task on another thread.
    #[error("a background task failed: {0}")]
    Join(#[from] tokio::task::JoinError),
}

impl ControlError {
    /// A closed label.
    pub fn class(&self) -> &'static str {
        match self {
            Self::Kube(kube::Error::Api(status)) if status.code == 409 => "Conflict",
            Self::Kube(kube::Error::Api(status)) if is_refusal(status.code) => "Invalid",
            Self::Kube(_) | Self::Slow { .. } | Self::State(_) | Self::Files { .. } => "Transient",
            Self::Value(_) | Self::Refused { .. } | Self::OldKinds => "Invalid",
            Self::Identity(_) | Self::Join(_) => "Bug",
        }
    }
}

/// Success also when the object is already there.
pub fn made<T>(result: Result<T, kube::Error>) -> Result<(), ControlError> {
    was_made(result).map(|_| ())
}

/// Whether the object was made now; not if it is already there.
pub fn was_made<T>(result: Result<T, kube::Error>) -> Result<bool, ControlError> {
    match result {
        Err(kube::Error::Api(status)) if status.code == 409 && status.reason == "AlreadyExists" => Ok(false),
        other => Ok(other.map(|_| true)?),
    }
}

fn is_refusal(code: u16) -> bool {
    matches!(code, 403 | 422)
}

/// As [`made`], for objects whose refusal is a word of the hospital.
pub fn admitted<T>(what: String, result: Result<T, kube::Error>) -> Result<(), ControlError> {
    match result {
        Err(kube::Error::Api(status)) if is_refusal(status.code) => {
            Err(ControlError::Refused { what, words: status.message.chars().take(600).collect() })
        }
        other => made(other),
    }
}

/// Success also when the object is gone.
pub fn gone<T>(result: Result<T, kube::Error>) -> Result<(), ControlError> {
    match result {
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        other => Ok(other.map(|_| ())?),
    }
}
