//! Why a turn of a round did not end well.

use std::time::Duration;

use crate::attempts::AttemptError;
use crate::store::StoreError;

/// A turn did not end well; the next one looks at everything again.
#[derive(Debug, thiserror::Error)]
pub enum DriveError {
    /// The blob store did not answer as needed.
    #[error("{what}: {source}")]
    Store {
        /// What was tried.
        what: String,
        /// Why it failed.
        #[source]
        source: Box<StoreError>,
    },
    /// What was read makes no sense; only an edit can mend it.
    #[error("{0}")]
    Invalid(String),
    /// The work was stopped in between; the next turn carries it on.
    #[error("{0}")]
    Stopped(String),
}

impl DriveError {
    /// Wraps a failed call to the store.
    pub fn store(what: impl Into<String>) -> impl FnOnce(StoreError) -> Self {
        let what = what.into();
        move |source| Self::Store { what, source: Box::new(source) }
    }

    /// Whether asking again will not help.
    pub fn is_final(&self) -> bool {
        match self {
            Self::Store { source, .. } => !source.is_transient(),
            Self::Invalid(_) => true,
            Self::Stopped(_) => false,
        }
    }
}

impl From<AttemptError> for DriveError {
    fn from(error: AttemptError) -> Self {
        match error {
            AttemptError::Store(error) => Self::store("the journal of an attempt")(error),
            AttemptError::Stopped => Self::Stopped(error.to_string()),
            AttemptError::Lost { .. } | AttemptError::Unreadable { .. } | AttemptError::Protocol(_) => {
                Self::Invalid(error.to_string())
            }
        }
    }
}

const FIRST: Duration = Duration::from_millis(500);
const LONGEST: Duration = Duration::from_secs(60);

/// How long to wait after this many failures in a row of what may pass; `jitter` lies in 0..1.
pub fn back_off(failures: u32, jitter: f64) -> Duration {
    FIRST.saturating_mul(1 << failures.min(10)).min(LONGEST).mul_f64(0.5 + jitter.clamp(0.0, 1.0))
}
