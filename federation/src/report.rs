//! What a hospital reports: facts, sent whole each time, never increments.
//!
//! A hub that restarts knows everything again after one report of each hospital.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::gate::{CaseSums, Vote};
use crate::ids::SiteName;
use crate::ladder::Stage;
use crate::round::SiteReason;
use crate::task::{ScoreFile, TaskKind};

/// Everything that a hospital says of itself.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// Epoch of the assignment that the hospital works from; empty before the first.
    pub hub_epoch: String,
    /// Revision of that assignment.
    pub revision: u64,
    /// Version of the agent.
    pub agent_version: String,
    /// Digests of the rosters (without their signatures) that this hospital has accepted: an attempt opens among
    /// hospitals that share one.
    pub rosters: Vec<Digest>,
    /// Where its ledger stands. The hub remembers the furthest and says it back, so that a volume that was restored from
    /// a backup is noticed even when nothing in the hospital remembers.
    pub ledger: Option<LedgerEnd>,
    /// Its parts in rounds. A round that is not listed is not known (any more) there.
    pub rounds: Vec<RoundReport>,
    /// The models it serves or was asked to serve.
    pub deployments: Vec<DeployReport>,
}

/// The end of a hospital's ledger at some moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LedgerEnd {
    /// Entries so far.
    pub entries: u64,
    /// Hash of the last one.
    pub head: Digest,
}

impl LedgerEnd {
    /// What the hub signs when it acknowledges this end: one line a field, with a leading context line.
    pub fn signed_bytes(&self, site: &SiteName) -> Vec<u8> {
        format!("consilium/ledger-head/v1\n{site}\n{}\n{}\n", self.entries, self.head).into_bytes()
    }
}

/// One part in a round.
#[derive(Clone, Debug, PartialEq)]
pub struct RoundReport {
    /// UID of the TrainingRound.
    pub uid: String,
    /// Which part.
    pub kind: TaskKind,
    /// Where it is.
    pub reason: SiteReason,
    /// Only when something is wrong.
    pub message: Option<String>,
    /// The result of an evaluation.
    pub evaluation: Option<Evaluation>,
}

/// A hospital's word on the new model.
#[derive(Clone, Debug, PartialEq)]
pub struct Evaluation {
    /// Its vote on its own floor.
    pub vote: Vote,
    /// For the global figure.
    pub sums: Option<CaseSums>,
    /// Its numbers, if it publishes them.
    pub published: Option<ScoreFile>,
}

/// One model that a hospital was asked to serve.
#[derive(Clone, Debug, PartialEq)]
pub struct DeployReport {
    /// UID of the ModelPromotion.
    pub uid: String,
    /// Where it is.
    pub reason: RolloutReason,
    /// The model that answers.
    pub serving: Option<Digest>,
    /// The stage on which it stands there: what is asked, or a lower one.
    pub stage: Option<Stage>,
    /// Only when something is wrong.
    pub message: Option<String>,
}

/// Where a model is on its way into a hospital.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
pub enum RolloutReason {
    /// No word yet.
    Offered,
    /// The hospital's policy or the approvals do not allow it.
    DeniedByPolicy,
    /// Allowed; the pod is not ready yet.
    RollingOut,
    /// The model answers.
    Serving,
    /// The model or its release could not be verified.
    VerificationFailed,
    /// It was asked to stop and has.
    Withdrawn,
}
