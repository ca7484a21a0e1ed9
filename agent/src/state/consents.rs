//! What approvals were used for: which tasks began, by study, round and kind.

use consilium_federation::Digest;
use consilium_federation::assignment::RoundWork;
use jiff::{SignedDuration, Timestamp};
use redb::{ReadableDatabase, ReadableTable, TableDefinition, WriteTransaction};
use serde::{Deserialize, Serialize};

use super::{State, StateError};

/// `<study UID>/<kind>/<round>` to the tasks that began.
const CONSENTS: TableDefinition<&str, &[u8]> = TableDefinition::new("consents");
const DAY: SignedDuration = SignedDuration::from_hours(24);

/// A task that an approval was used for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Taken {
    /// UID of the TrainingRound.
    pub round_uid: String,
    /// The model that it starts from, or evaluates.
    pub model: Digest,
    /// When.
    pub at: Timestamp,
}

impl Taken {
    /// Whether it is this one.
    pub fn is_of(&self, uid: &str, work: &RoundWork) -> bool {
        self.round_uid == uid && self.model == work.model
    }
}

pub(super) fn prepare(write: &WriteTransaction) -> Result<(), StateError> {
    write.open_table(CONSENTS)?;
    Ok(())
}

fn key(work: &RoundWork) -> String {
    format!("{}/{}/{}", work.study_uid, work.kind.as_str(), work.round)
}

impl State {
    /// The tasks that the approval of this round was used for.
    pub fn taken(&self, work: &RoundWork) -> Result<Vec<Taken>, StateError> {
        Ok(self.read_json(CONSENTS, &key(work))?.unwrap_or_default())
    }

    /// Writes down that a task begins, once.
    pub fn take(&self, uid: &str, work: &RoundWork, now: Timestamp) -> Result<(), StateError> {
        let mut taken = self.taken(work)?;
        if taken.iter().any(|taken| taken.is_of(uid, work)) {
            return Ok(());
        }
        taken.push(Taken { round_uid: uid.to_owned(), model: work.model, at: now });
        self.write_json(CONSENTS, &key(work), &taken)
    }

    /// How many tasks began within a day.
    pub fn taken_within_a_day(&self, now: Timestamp) -> Result<u32, StateError> {
        let read = self.0.db.begin_read()?;
        let mut count = 0;
        for row in read.open_table(CONSENTS)?.iter()? {
            let (key, bytes) = row?;
            let taken: Vec<Taken> = serde_json::from_slice(bytes.value()).map_err(StateError::damaged(key.value()))?;
            count += taken.iter().filter(|taken| now.duration_since(taken.at) < DAY).count();
        }
        Ok(u32::try_from(count).unwrap_or(u32::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::tests::work;

    /// An agent that restarts would have forgotten that the round has been trained, and train it again under another UID.
    #[test]
    fn what_an_approval_was_used_for_survives_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let at = |hour: i64| Timestamp::from_second(1_700_000_000 + 3600 * hour).unwrap();
        let state = State::open(folder.path(), [1; 32]).unwrap();
        state.take("a", &work(), at(0)).unwrap();
        state.take("a", &work(), at(1)).unwrap();
        state.take("b", &RoundWork { round: 4, ..work() }, at(2)).unwrap();
        drop(state);
        let state = State::open(folder.path(), [1; 32]).unwrap();
        assert_eq!(state.taken(&work()).unwrap(), [Taken { round_uid: "a".into(), model: work().model, at: at(0) }]);
        let evaluate = RoundWork { kind: consilium_federation::task::TaskKind::Evaluate, ..work() };
        assert!(state.taken(&evaluate).unwrap().is_empty(), "an evaluation is another purpose");
        assert_eq!([3, 25, 27].map(|hour| state.taken_within_a_day(at(hour)).unwrap()), [2, 1, 0]);
    }
}
