//! The hospital's own record of acts that cannot be taken back, where its people see them.

use consilium_crds::round_task::Irreversible;

use super::Answer;

/// What a RoundTask remembers.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Recalled {
    /// The newest act.
    pub act: Option<Irreversible>,
    /// The version of the RoundTask that was read.
    pub version: String,
}

/// `RoundTask.status.irreversible`: written before each act, and only over what was read before it, so that of two
/// agents on two copies of one volume only one goes on.
pub trait Announce: Send + Sync {
    /// What the RoundTask remembers.
    fn recall<'a>(&'a self, task: &'a str) -> Answer<'a, Result<Recalled, AnnounceError>>;
    /// Writes an act, before it happens, over this version of the RoundTask.
    fn announce<'a>(
        &'a self,
        task: &'a str,
        act: &'a Irreversible,
        over: &'a str,
    ) -> Answer<'a, Result<(), AnnounceError>>;
}

/// The act could not be shown, so it does not happen now.
#[derive(Debug, thiserror::Error)]
pub enum AnnounceError {
    /// Someone deleted the task, which stops it.
    #[error("RoundTask {0} does not exist (any more), so nothing is sent for it")]
    Gone(String),
    /// Someone wrote it in between; it is read again.
    #[error("RoundTask {0} changed while it was written; it is read again")]
    Changed(String),
    /// The API server.
    #[error("RoundTask {task} cannot be read or written: {why}; it is tried again")]
    Api {
        /// Which one.
        task: String,
        /// What the API server said.
        why: String,
    },
}
