//! Faults that are put in on purpose, each in what hub or hospitals stand on: a simulator that does not find them proves
//! nothing when it finds nothing.

use crate::schedule::{Fate, Op, Schedule};

/// One fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutant {
    /// The API server takes a round over a newer one: a hub that was replaced goes on writing.
    StaleWriter,
    /// What the API server was told last of a round that ended is gone when the hub begins anew.
    ForgetfulApi,
    /// What a hospital's agent wrote in its last turns is gone when it begins anew: nothing was persisted.
    SkippedPersist,
    /// The hub's store says that it has a message, and has none.
    SkippedJournal,
    /// A hospital counts twice: its trainer tells double the scans.
    DoubleCount,
    /// A trainer hands over what it made in the round before.
    OldUpdate,
    /// A try whose beginning was not answered is begun again, beside the first.
    LostReplyAsLostRequest,
    /// The hub's deadlines are an hour off.
    LateDeadline,
    /// A veto does not reach the agent.
    ForgottenVeto,
    /// A hospital whose connection was lost is never let in again.
    OneWayLeave,
    /// Tombstones do not reach hospitals.
    NoTombstones,
    /// The hub's store deletes nothing.
    NothingDeleted,
    /// A hospital's cluster keeps tasks that were to go.
    TasksStay,
}

impl Mutant {
    /// Whether a schedule has in it what this fault needs to do harm; others need not be tried.
    pub fn shows_in(self, schedule: &Schedule) -> bool {
        let has = |wanted: &dyn Fn(&Op) -> bool| schedule.ops.iter().any(wanted);
        match self {
            Self::StaleWriter => has(&|op| *op == Op::OldHub),
            Self::ForgetfulApi => has(&|op| matches!(op, Op::HubCrash | Op::Roster | Op::NewEpoch)),
            Self::SkippedPersist => {
                let killed = |op: &Op| matches!(op, Op::Call(_, _, Fate::CrashBefore | Fate::CrashAfter));
                schedule.setting.rounds > 1 && has(&|op| killed(op) || matches!(op, Op::Crash(_)))
            }
            Self::OldUpdate => schedule.setting.rounds > 1,
            Self::LateDeadline => schedule.ops.iter().filter(|op| matches!(op, Op::Slow(_, 50_000))).count() > 1,
            Self::ForgottenVeto => has(&|op| matches!(op, Op::Veto(_, true))),
            Self::OneWayLeave => schedule.setting.rounds > 1 && has(&|op| matches!(op, Op::Link(_, false))),
            _ => true,
        }
    }

    /// All of them.
    pub const ALL: [Self; 13] = [
        Self::StaleWriter,
        Self::ForgetfulApi,
        Self::SkippedPersist,
        Self::SkippedJournal,
        Self::DoubleCount,
        Self::OldUpdate,
        Self::LostReplyAsLostRequest,
        Self::LateDeadline,
        Self::ForgottenVeto,
        Self::OneWayLeave,
        Self::NoTombstones,
        Self::NothingDeleted,
        Self::TasksStay,
    ];
}
