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
    /// The volume.
    #[error(transparent)]
    State(#[from] StateError),
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
            Self::Kube(kube::Error::Api(status)) if status.code == 422 || status.code == 403 => "Invalid",
            Self::Kube(_) | Self::State(_) => "Transient",
            Self::Value(_) => "Invalid",
            Self::Identity(_) | Self::Join(_) => "Bug",
        }
    }
}

/// Success also when the object is already there.
pub fn made<T>(result: Result<T, kube::Error>) -> Result<(), ControlError> {
    match result {
        Err(kube::Error::Api(status)) if status.code == 409 && status.reason == "AlreadyExists" => Ok(()),
        other => Ok(other.map(|_| ())?),
    }
}

/// Success also when the object is gone.
pub fn gone<T>(result: Result<T, kube::Error>) -> Result<(), ControlError> {
    match result {
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        other => Ok(other.map(|_| ())?),
    }
}
