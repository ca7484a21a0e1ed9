//! What the ledger can hold: a kind of entry for each decision and for each thing that leaves.

use consilium_federation::task::TaskKind;
use consilium_federation::{Digest, StudyKey};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::policy::Barrier;

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all_fields = "camelCase")]
pub enum Entry {
    /// The veto ladder came to another decision on a part in a round.
    Decision {
        /// UID of the TrainingRound.
        subject: String,
        /// The study.
        study: StudyKey,
        /// Its round.
        round: u32,
        /// Which part.
        kind: TaskKind,
        /// Where the ladder was asked.
        barrier: Barrier,
        /// Yes or no.
        allowed: bool,
        /// The reason that the hub is told.
        reason: String,
        /// Which rung, and what it saw.
        message: String,
    },
    /// The release ladder came to another decision on a model.
    ReleaseDecision {
        /// UID of the ModelPromotion.
        subject: String,
        /// The release.
        release: String,
        /// The stage asked for.
        stage: String,
        /// Yes or no.
        allowed: bool,
        /// Which rung, and what it saw.
        message: String,
    },
    /// A task pod was given the base model.
    BaseHandedOut {
        /// UID of the RoundTask.
        task_uid: String,
        /// Its try.
        r#try: u32,
        /// The model.
        model: Digest,
    },
    /// A task delivered a result, and it is durable here.
    Delivered {
        /// UID of the RoundTask.
        task_uid: String,
        /// Its try.
        r#try: u32,
        /// Digest of what was stored.
        result: Digest,
    },
    /// The point of no return: these bytes are about to leave. Written before the first of them does.
    UploadBegins {
        /// UID of the TrainingRound.
        round_uid: String,
        /// The attempt.
        attempt: u32,
        /// Digest of the whole update.
        update: Digest,
        /// Its chunks; a resumed upload sends fewer.
        chunks: u32,
        /// Their bytes.
        bytes: u64,
        /// Digest of the signed list of the masked chunks, which are what leaves; none where the update itself does.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        manifest: Option<Digest>,
    },
    /// What did leave since the last `UploadBegins` of this attempt.
    UploadEnded {
        /// UID of the TrainingRound.
        round_uid: String,
        /// The attempt.
        attempt: u32,
        /// Chunks sent.
        chunks: u32,
        /// Their bytes.
        bytes: u64,
        /// The hub holds all of it.
        complete: bool,
    },
    /// A vote, and numbers if the policy allows them, were reported.
    EvaluationSent {
        /// UID of the TrainingRound.
        round_uid: String,
        /// `Pass`, `Fail` or `Abstain`.
        vote: String,
        /// Sums over the cases were sent.
        sums: bool,
        /// The hospital's own numbers were published.
        published: bool,
    },
    /// This hospital takes part in an attempt of the aggregation protocol.
    AttemptOpened {
        /// UID of the TrainingRound.
        round_uid: String,
        /// The attempt.
        attempt: u32,
        /// What is summed: `Train` or `Evaluate`.
        kind: TaskKind,
        /// The base model, or the model evaluated.
        model: Digest,
        /// Whose keys hold.
        roster: Digest,
        /// Digest of the message that leaves: two copies of a volume that say two things have two heads.
        message: Digest,
    },
    /// Its shares of the masks' seeds are about to leave, for the other hospitals alone.
    SharesSent {
        /// UID of the TrainingRound.
        round_uid: String,
        /// The attempt.
        attempt: u32,
        /// The protocol's session.
        session: String,
        /// Who takes part.
        hospitals: Vec<String>,
        /// Digest of the message that leaves.
        message: Digest,
    },
    /// It signed whose updates are in the sum, the only time in this session.
    SurvivorsSigned {
        /// UID of the TrainingRound.
        round_uid: String,
        /// The attempt.
        attempt: u32,
        /// The protocol's session.
        session: String,
        /// Whose updates are in the sum.
        hospitals: Vec<String>,
        /// Digest of the message that leaves.
        message: Digest,
    },
    /// The point of no return of the sum: the shares that take its masks off are about to leave.
    SharesReleased {
        /// UID of the TrainingRound.
        round_uid: String,
        /// The attempt.
        attempt: u32,
        /// The protocol's session.
        session: String,
        /// Digest of the message that leaves.
        message: Digest,
    },
    /// The hub asked for something that this hospital must not answer.
    AttemptRefused {
        /// UID of the TrainingRound.
        round_uid: String,
        /// The attempt.
        attempt: u32,
        /// Which step.
        step: String,
        /// Why.
        why: String,
    },
    /// An attempt was given up and its secrets wiped.
    AttemptBurned {
        /// UID of the TrainingRound.
        round_uid: String,
        /// The attempt.
        attempt: u32,
        /// Why.
        why: String,
    },
    /// The hub is told something that it was not told before. The same again, twice a minute, has no entry.
    Reported(Box<Reported>),
    /// From here on the agent speaks with this hub, under this certificate.
    HubDialed {
        /// Address of its gateway.
        hub: String,
        /// Digest of this hospital's certificate and of what the hub's is checked by.
        identity: Digest,
    },
    /// From here on this SitePolicy is in force; none: there is none, so nothing is allowed.
    PolicyInForce {
        /// Its `metadata.generation`.
        generation: Option<i64>,
        /// Its `metadata.uid`: one that was deleted and made again has the same generations.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        uid: Option<String>,
        /// Digest of its spec as canonical JSON.
        digest: Option<Digest>,
        /// The spec, unless it is too large for an entry.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        spec: Option<Value>,
    },
    /// A roster of hospital keys that governance signed holds from here on.
    RosterAccepted {
        /// Its version.
        version: u64,
        /// Its digest, without signatures.
        roster: Digest,
        /// Hospitals on it.
        hospitals: u32,
    },
    /// The volume is older than what was seen of it: it was restored from a backup, or copied.
    StateRolledBack {
        /// What was seen.
        why: String,
    },
    /// Something that ran here was stopped by the hospital's own word, whatever the hub said.
    Stopped {
        /// What it is: `Job`, `Pod`, `ModelDeployment`, `Deployment`.
        kind: String,
        /// Its name.
        name: String,
        /// Its UID.
        uid: String,
        /// Which word, and what it saw.
        why: String,
    },
    /// What was kept for a round or a task is gone.
    Erased {
        /// What.
        what: String,
        /// UIDs of the TrainingRounds or RoundTasks.
        uids: Vec<String>,
        /// Why.
        why: String,
    },
    /// Something that could not be written down when it happened, since the volume took nothing.
    Late {
        /// When it happened.
        happened: Timestamp,
        /// What.
        what: Box<Entry>,
    },
    /// So many things were refused one after the other that these have no entries of their own.
    Refusals {
        /// How many, since the last one that has.
        entries: u64,
    },
    /// So many things happened while the volume took nothing that these were forgotten.
    Lost {
        /// How many.
        entries: u64,
    },
    /// The hub has another store: its open attempts were burned.
    NewEpoch {
        /// The store known so far.
        old: String,
        /// The new one.
        new: String,
    },
}

/// What a report says that the one before did not.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Reported {
    /// Digest of the whole message, but for the ledger's end and the time of day.
    pub message: Option<Digest>,
    /// Parts in rounds and models, as they are said from here on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub said: Vec<Said>,
    /// UIDs of those that are not said any more.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub silent: Vec<String>,
    /// Rosters that the hospital has accepted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rosters: Vec<Digest>,
    /// So many more parts are new in the message and have no room here.
    #[serde(default, skip_serializing_if = "is_none")]
    pub more: u64,
    /// So many reports before this one were new and have no entry: the hub asked for too much.
    #[serde(default, skip_serializing_if = "is_none")]
    pub unwritten: u64,
}

const fn is_none(number: &u64) -> bool {
    *number == 0
}

/// What is said of one part.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Said {
    /// UID of the TrainingRound or the ModelPromotion.
    pub uid: String,
    /// `Train`, `Evaluate`, or `Model`.
    pub part: String,
    /// The reason's word.
    pub reason: String,
    /// One of the sentences that may leave.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub words: Option<String>,
    /// The model that answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serving: Option<Digest>,
    /// The stage that it stands on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stage: Option<String>,
    /// `Pass`, `Fail` or `Abstain`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vote: Option<String>,
    /// Plain numbers, where the policy lets them leave.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub numbers: Option<Value>,
}

impl Entry {
    /// What it tells of has left the hospital, or begins to.
    pub fn leaves(&self) -> bool {
        match self {
            Self::UploadBegins { .. }
            | Self::UploadEnded { .. }
            | Self::EvaluationSent { .. }
            | Self::AttemptOpened { .. }
            | Self::SharesSent { .. }
            | Self::SurvivorsSigned { .. }
            | Self::SharesReleased { .. }
            | Self::Reported(_) => true,
            Self::Late { what, .. } => what.leaves(),
            Self::Decision { .. }
            | Self::ReleaseDecision { .. }
            | Self::BaseHandedOut { .. }
            | Self::Delivered { .. }
            | Self::AttemptRefused { .. }
            | Self::AttemptBurned { .. }
            | Self::HubDialed { .. }
            | Self::PolicyInForce { .. }
            | Self::RosterAccepted { .. }
            | Self::StateRolledBack { .. }
            | Self::Stopped { .. }
            | Self::Erased { .. }
            | Self::Refusals { .. }
            | Self::Lost { .. }
            | Self::NewEpoch { .. } => false,
        }
    }

    pub(super) fn innermost(&self) -> &Self {
        match self {
            Self::Late { what, .. } => what.innermost(),
            other => other,
        }
    }
}
