//! What can go wrong in a controller's turn. The class decides when it looks again.

use consilium_crds::values::ValueError;
use kube::core::Status;

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
            Self::Kube(kube::Error::Api(status)) if is_refusal(status) => "Invalid",
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

fn was_made<T>(result: Result<T, kube::Error>) -> Result<bool, ControlError> {
    match result {
        Err(kube::Error::Api(status)) if status.code == 409 && status.reason == "AlreadyExists" => Ok(false),
        other => Ok(other.map(|_| true)?),
    }
}

/// Whether the server has looked at an object and says no: its schema, a quota, rights, an admission policy (403, 422),
/// or a webhook. A webhook answers with any code, 400 where it gives none; by the server's own words it is known.
fn is_refusal(status: &Status) -> bool {
    matches!(status.code, 400 | 403 | 413 | 422) || status.message.contains(" denied the request")
}

/// Whether the object was made now, and not before, for objects whose refusal is a word of the hospital. Of an object that
/// is applied it says nothing more than that it stands.
pub fn admitted<T>(what: String, result: Result<T, kube::Error>) -> Result<bool, ControlError> {
    match result {
        Err(kube::Error::Api(status)) if is_refusal(&status) => {
            Err(ControlError::Refused { what, words: status.message.chars().take(600).collect() })
        }
        other => was_made(other),
    }
}

/// Success also when the object is gone.
pub fn gone<T>(result: Result<T, kube::Error>) -> Result<(), ControlError> {
    match result {
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        other => Ok(other.map(|_| ())?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(code: u16, message: &str) -> Result<(), kube::Error> {
        Err(kube::Error::Api(Box::new(Status { code, message: message.into(), ..Status::default() })))
    }

    /// An administrator whose webhook says no would look for its words in vain: most webhooks answer 400, and some 500.
    #[test]
    fn whatever_says_no_to_an_object_is_told_from_a_server_that_is_away() {
        let webhook = "admission webhook \"gpu.example\" denied the request: no GPUs at night";
        for (code, words) in
            [(400, webhook), (403, "exceeded quota"), (413, "too large"), (422, "invalid"), (500, webhook)]
        {
            let refused = admitted("Service s".into(), answer(code, words)).unwrap_err();
            assert_eq!(refused.class(), "Invalid");
            assert!(refused.to_string().contains(words) && refused.to_string().contains("Service s"), "{refused}");
        }
        for (code, words) in
            [(429, "too many requests"), (500, "etcd"), (503, "failed calling webhook \"gpu.example\"")]
        {
            assert_eq!(admitted("Service s".into(), answer(code, words)).unwrap_err().class(), "Transient", "{code}");
        }
    }
}
