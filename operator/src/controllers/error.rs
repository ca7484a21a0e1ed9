//! What went wrong in a reconcile, and therefore when to look again.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::driver::{DriveError, back_off};
use crate::store::StoreError;

/// A reconcile did not end well.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A call to the Kubernetes API failed.
    #[error("{what}: {source}")]
    Kube {
        /// What was tried.
        what: String,
        /// Why it failed.
        #[source]
        source: Box<kube::Error>,
    },
    /// The blob store did not answer as needed.
    #[error("{what}: {source}")]
    Store {
        /// What was tried.
        what: String,
        /// Why it failed.
        #[source]
        source: Box<StoreError>,
    },
    /// Something else wrote first, or is still in the way.
    #[error("{0}")]
    Conflict(String),
    /// What was read makes no sense; only an edit can mend it.
    #[error("{0}")]
    Invalid(String),
    /// This program is wrong.
    #[error("{0}; this is a defect of the operator, please report it")]
    Bug(String),
}

/// The class of an error: it alone decides the requeue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Look again when the object changes.
    Invalid,
    /// Look again soon, then less and less often.
    Transient,
    /// Look again at once: the next read sees the other's write.
    Conflict,
    /// Look again rarely.
    Bug,
    /// The object is gone: nothing to do.
    Gone,
}

impl Error {
    /// Wraps a failed call to the API.
    pub fn kube(what: impl Into<String>) -> impl FnOnce(kube::Error) -> Self {
        let what = what.into();
        move |source| Self::Kube { what, source: Box::new(source) }
    }

    /// Wraps a failed call to the store.
    pub fn store(what: impl Into<String>) -> impl FnOnce(StoreError) -> Self {
        let what = what.into();
        move |source| Self::Store { what, source: Box::new(source) }
    }

    /// How to go on.
    pub fn class(&self) -> Class {
        match self {
            Error::Kube { source, .. } => match &**source {
                kube::Error::Api(status) => class_of_code(status.code),
                kube::Error::SerdeError(_) | kube::Error::BuildRequest(_) => Class::Bug,
                _ => Class::Transient,
            },
            Error::Store { source, .. } if source.is_transient() => Class::Transient,
            Error::Store { .. } | Error::Bug(_) => Class::Bug,
            Error::Conflict(_) => Class::Conflict,
            Error::Invalid(_) => Class::Invalid,
        }
    }
}

impl From<DriveError> for Error {
    fn from(error: DriveError) -> Self {
        match error {
            DriveError::Store { what, source } => Self::Store { what, source },
            DriveError::Invalid(why) => Self::Invalid(why),
            DriveError::Stopped(why) => Self::Conflict(why),
        }
    }
}

impl Error {
    /// The API server's words, if it has looked at an object and says no: its schema, a quota, rights, an admission policy,
    /// or a webhook, which answers with any code and is known by the server's own words. Waiting does not help.
    pub fn refusal(&self) -> Option<String> {
        let Error::Kube { what, source } = self else { return None };
        let kube::Error::Api(status) = &**source else { return None };
        let refused = matches!(status.code, 400 | 403 | 413 | 422) || status.message.contains(" denied the request");
        refused.then(|| format!("the API server refuses {what}: {}", status.message))
    }
}

const fn class_of_code(code: u16) -> Class {
    match code {
        404 => Class::Gone,
        409 => Class::Conflict,
        // What we sent breaks the schema: sending it again will not help.
        400 | 422 => Class::Bug,
        _ => Class::Transient,
    }
}

/// Whether the API says that an object of this name is there already.
pub fn already_exists(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.reason == "AlreadyExists")
}

/// Whether the API says that there is no such object.
pub fn not_found(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 404)
}

const SOON: Duration = Duration::from_millis(100);
const SLOW: Duration = Duration::from_secs(300);

/// How long to wait after `failures` in a row of one class; `jitter` lies in 0..1. `None`: until a change.
pub fn wait(class: Class, failures: u32, jitter: f64) -> Option<Duration> {
    let spread = |d: Duration| d.mul_f64(0.5 + jitter.clamp(0.0, 1.0));
    match class {
        Class::Invalid | Class::Gone => None,
        Class::Conflict => Some(spread(SOON)),
        Class::Transient => Some(back_off(failures, jitter)),
        Class::Bug => Some(spread(SLOW)),
    }
}

/// Failures in a row, by object.
#[derive(Debug)]
pub struct Failures<K>(Mutex<HashMap<K, u32>>);

impl<K> Default for Failures<K> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: Eq + Hash> Failures<K> {
    /// Counts a failure; the number of those before it.
    pub fn count(&self, key: K) -> u32 {
        let mut map = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = map.entry(key).or_insert(0);
        let before = *count;
        *count = count.saturating_add(1);
        before
    }

    /// Forgets an object's failures.
    pub fn clear(&self, key: &K) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_class_decides_how_long_to_wait_and_back_off_grows_to_a_bound() {
        assert_eq!(wait(Class::Invalid, 3, 0.5), None);
        assert_eq!(wait(Class::Conflict, 30, 0.5), Some(SOON));
        let seconds = |failures| wait(Class::Transient, failures, 0.5).map(|pause| pause.as_secs_f64());
        assert_eq!([0, 3, 4_000_000_000].map(seconds), [Some(0.5), Some(4.0), Some(60.0)]);
        // Two hundred studies that failed at one instant must not come back at one instant.
        assert_ne!(wait(Class::Transient, 3, 0.1), wait(Class::Transient, 3, 0.9));
    }

    #[test]
    fn api_codes_map_to_what_helps() {
        for (code, class) in [
            (404, Class::Gone),
            (409, Class::Conflict),
            (422, Class::Bug),
            (403, Class::Transient),
            (429, Class::Transient),
            (500, Class::Transient),
        ] {
            assert_eq!(class_of_code(code), class, "{code}");
        }
    }

    /// A webhook says no with 400, or with any other code; a server that is away says nothing of an object.
    #[test]
    fn a_refusal_is_told_from_a_server_that_is_away() {
        let answer = |code, message: &str| {
            let status = kube::core::Status { code, message: message.into(), ..kube::core::Status::default() };
            Error::kube("making Job j")(kube::Error::Api(Box::new(status))).refusal()
        };
        let webhook = "admission webhook \"w\" denied the request: no";
        for (code, words) in [(400, webhook), (403, "exceeded quota"), (422, "is invalid"), (500, webhook)] {
            let told = answer(code, words).unwrap();
            assert!(told.contains("making Job j") && told.contains(words), "{told}");
        }
        assert_eq!(answer(500, "etcd"), None);
        assert_eq!(answer(429, "slow down"), None);
    }

    #[test]
    fn failures_count_by_object_and_are_forgotten_on_success() {
        let failures = Failures::default();
        assert_eq!((failures.count("a"), failures.count("a"), failures.count("b")), (0, 1, 0));
        failures.clear(&"a");
        assert_eq!(failures.count("a"), 0);
    }
}
