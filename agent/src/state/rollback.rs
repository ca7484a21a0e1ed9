//! A volume that was set back: what it forgot could be asked for again, so it gives nothing up for what was open then.

use consilium_federation::StudyKey;
use jiff::Timestamp;
use redb::ReadableTable as _;
use serde::{Deserialize, Serialize};

use super::ledger::{self, Entry};
use super::{META, State, StateError, attempts, to_json};

const ROLLED_BACK: &str = "rolled-back";

/// Rounds of a study whose sums this volume may have forgotten.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restored {
    /// The study.
    pub study: StudyKey,
    /// Its UID.
    pub uid: String,
    /// The newest round that was offered before: it and those before it get no masked sum from here.
    pub through: u32,
}

/// The memory of a roll-back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RolledBack {
    /// What was seen.
    pub why: String,
    /// When it was noticed.
    pub at: Timestamp,
    /// What may have been forgotten.
    pub rounds: Vec<Restored>,
}

impl RolledBack {
    /// The newest round of a study that gets no masked sum from here.
    pub fn through(&self, study: &StudyKey, uid: &str) -> Option<u32> {
        self.rounds.iter().find(|round| round.study == *study && round.uid == uid).map(|round| round.through)
    }
}

impl State {
    /// Burns every open attempt and refuses what was offered before, for good.
    pub fn roll_back(&self, why: &str, rounds: Vec<Restored>, now: Timestamp) -> Result<RolledBack, StateError> {
        let write = self.0.db.begin_write()?;
        let known: Option<RolledBack> = {
            let meta = write.open_table(META)?;
            let found = meta.get(ROLLED_BACK)?;
            found.map(|bytes| serde_json::from_slice(bytes.value())).transpose()
        }
        .map_err(StateError::damaged("the memory of a roll-back"))?;
        let mut record = RolledBack { why: why.to_owned(), at: now, rounds };
        for old in known.into_iter().flat_map(|known| known.rounds) {
            match record.rounds.iter_mut().find(|new| new.study == old.study && new.uid == old.uid) {
                Some(new) => new.through = new.through.max(old.through),
                None => record.rounds.push(old),
            }
        }
        ledger::append_in(&write, &Entry::StateRolledBack { why: why.to_owned() }, now)?;
        attempts::burn_all_in(&write, why, now)?;
        write.open_table(META)?.insert(ROLLED_BACK, to_json(ROLLED_BACK, &record)?.as_slice())?;
        write.commit()?;
        Ok(record)
    }

    /// The roll-back that was noticed, if any.
    pub fn rolled_back(&self) -> Result<Option<RolledBack>, StateError> {
        self.read_json(META, ROLLED_BACK)
    }
}
