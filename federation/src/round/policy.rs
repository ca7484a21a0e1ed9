//! What the machine is told: the rules of a round, and what happens in it.

use std::collections::BTreeSet;

use jiff::{SignedDuration, Timestamp};

use super::state::{ProtocolStep, SiteFact};
use crate::digest::Digest;
use crate::gate::{CaseSums, Gate, Vote};
use crate::ids::SiteName;
use crate::task::{ScoreFile, TaskKind};

/// How updates are combined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// Encoded but not masked: one trust boundary, or debugging.
    None,
    /// Masked so that only the sum can be read.
    SecAgg,
}

impl Protocol {
    pub(super) const fn first(self) -> ProtocolStep {
        match self {
            Protocol::None => ProtocolStep::Upload,
            Protocol::SecAgg => ProtocolStep::Advertise,
        }
    }

    pub(super) const fn after(self, step: ProtocolStep) -> ProtocolStep {
        match (self, step) {
            (_, ProtocolStep::Advertise) => ProtocolStep::Share,
            (_, ProtocolStep::Share) => ProtocolStep::Upload,
            (Protocol::SecAgg, ProtocolStep::Upload) => ProtocolStep::Agree,
            (Protocol::SecAgg, ProtocolStep::Agree) => ProtocolStep::Unmask,
            _ => ProtocolStep::Sum,
        }
    }
}

/// The roster among whose hospitals an attempt may open now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RosterChoice {
    /// Its digest, without signatures.
    pub digest: Digest,
    /// The hospitals that are on it and have accepted it.
    pub sites: BTreeSet<SiteName>,
}

/// Who was in the sums of earlier rounds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EarlierSums {
    /// Over updates.
    pub updates: Vec<BTreeSet<SiteName>>,
    /// Over evaluations.
    pub evaluations: Vec<BTreeSet<SiteName>>,
}

/// The rules of one round; taken from the study when the round is made.
#[derive(Clone, Debug)]
pub struct RoundPolicy {
    /// How many must be ready to open an attempt.
    pub quorum: u32,
    /// Least number of updates in a sum.
    pub min_contributors: u32,
    /// Hospitals that may collude with the hub without being able to read another one's update.
    pub colluders: u32,
    /// Whose keys hold, with [`Protocol::SecAgg`]; a hospital outside it awaits the roster.
    pub roster: Option<RosterChoice>,
    /// Hospitals in earlier sums of the study over updates, and over evaluations. With [`Protocol::SecAgg`] a sum that
    /// differs from one of them by a single hospital is avoided where two can be spared, for hospitals refuse it.
    pub earlier: EarlierSums,
    /// Hospitals without which no attempt opens and no updates are summed.
    pub required: BTreeSet<SiteName>,
    /// Hospitals that were too slow several times and are waited for until the deadline.
    pub waited_for: BTreeSet<SiteName>,
    /// How long to wait for the others once the quorum is ready.
    pub grace: SignedDuration,
    /// Time limit of one step of an attempt.
    pub step_limit: SignedDuration,
    /// Attempts before the round fails.
    pub max_attempts: u32,
    /// How updates are combined.
    pub protocol: Protocol,
    /// Score each new model, by this gate.
    pub gate: Option<Gate>,
    /// Time limit of the evaluation.
    pub evaluation_limit: SignedDuration,
    /// The driver has just started and has not heard all hospitals yet: no time limit is over, and nothing is decided
    /// by who has not spoken.
    pub starting: bool,
}

impl RoundPolicy {
    /// Whether a time limit is over.
    pub(super) fn is_over(&self, limit: Timestamp, now: Timestamp) -> bool {
        !self.starting && now >= limit
    }
}

/// What happened.
#[derive(Clone, Debug)]
pub enum Event {
    /// A hospital said where it is with its part.
    Site {
        /// Who.
        site: SiteName,
        /// Its part.
        kind: TaskKind,
        /// What it says.
        fact: SiteFact,
    },
    /// A hospital's message or upload for a step is durable at the hub.
    StepDone {
        /// Who.
        site: SiteName,
        /// In which attempt.
        attempt: u32,
        /// Which step.
        step: ProtocolStep,
    },
    /// The sum of an attempt is there, and durable if it made a model.
    Aggregated {
        /// Which attempt.
        attempt: u32,
        /// What it gave.
        sum: Summed,
    },
    /// The sum cannot be made from what was sent.
    AggregationFailed {
        /// Which attempt.
        attempt: u32,
        /// Why.
        message: String,
    },
    /// The driver's side of an attempt cannot go on: what was sent, or what was kept of it, makes no sense.
    AttemptFailed {
        /// Which attempt.
        attempt: u32,
        /// Why.
        message: String,
    },
    /// A hospital's vote.
    Voted {
        /// Who.
        site: SiteName,
        /// On the new model.
        vote: Vote,
        /// For the global figure.
        sums: Option<CaseSums>,
        /// Numbers the hospital publishes.
        published: Option<ScoreFile>,
    },
    /// Time went by.
    Tick,
    /// The study ends.
    Cancel,
}

/// What the sum of an attempt gave.
#[derive(Clone, Debug, PartialEq)]
pub enum Summed {
    /// The updates: the new model.
    Model(NewModel),
    /// The evaluation: all cases of all hospitals.
    Cases(CaseSums),
}

/// The model that a sum made.
#[derive(Clone, Debug, PartialEq)]
pub struct NewModel {
    /// Its digest.
    pub model: Digest,
    /// What the server's rule remembers with it: a digest for each of its moments.
    pub moments: Vec<Digest>,
}

impl From<Digest> for NewModel {
    /// Of a rule that remembers nothing.
    fn from(model: Digest) -> Self {
        Self { model, moments: Vec::new() }
    }
}

/// An event that does not fit; the state stays as it was.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Rejected {
    /// Not a participant.
    #[error("{0} takes no part in this round")]
    UnknownSite(SiteName),
    /// For an attempt or step that is over or not yet open. Harmless: replays look like this.
    #[error("it belongs to another attempt or step")]
    OutOfStep,
    /// The round is over.
    #[error("the round is over")]
    Over,
}
