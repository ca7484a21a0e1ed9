//! What approvals were used for: which tasks began, by study, round and kind.

use std::collections::BTreeSet;

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

/// Study, kind and round of a key.
fn parts(key: &str) -> (&str, &str, &str) {
    let (rest, round) = key.rsplit_once('/').unwrap_or((key, ""));
    let (study, kind) = rest.rsplit_once('/').unwrap_or((rest, ""));
    (study, kind, round)
}

/// What began within a day.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Today {
    /// Tasks.
    pub tasks: u32,
    /// Rounds, by UID of the study and number.
    pub rounds: BTreeSet<(String, String)>,
}

impl Today {
    /// Rounds but for this one, which goes on.
    pub fn other_rounds(&self, work: &RoundWork) -> u32 {
        let own = (work.study_uid.clone(), work.round.to_string());
        u32::try_from(self.rounds.iter().filter(|round| **round != own).count()).unwrap_or(u32::MAX)
    }
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

    /// What began within a day.
    pub fn taken_within_a_day(&self, now: Timestamp) -> Result<Today, StateError> {
        let read = self.0.db.begin_read()?;
        let mut today = Today::default();
        for row in read.open_table(CONSENTS)?.iter()? {
            let (key, bytes) = row?;
            let taken: Vec<Taken> = serde_json::from_slice(bytes.value()).map_err(StateError::damaged(key.value()))?;
            let begun = taken.iter().filter(|taken| now.duration_since(taken.at) < DAY).count();
            today.tasks = today.tasks.saturating_add(u32::try_from(begun).unwrap_or(u32::MAX));
            if begun > 0 {
                // Training and evaluation of a round are of one round.
                let (study, _, round) = parts(key.value());
                today.rounds.insert((study.to_owned(), round.to_owned()));
            }
        }
        Ok(today)
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
        let today = |hour| state.taken_within_a_day(at(hour)).unwrap();
        assert_eq!([3, 25, 27].map(|hour| today(hour).tasks), [2, 1, 0]);
        state.take("c", &evaluate, at(2)).unwrap();
        assert_eq!((today(3).tasks, today(3).rounds.len()), (3, 2), "training and evaluation are of one round");
        let other = RoundWork { study_uid: "another".into(), ..work() };
        assert_eq!((today(3).other_rounds(&work()), today(3).other_rounds(&other)), (1, 2));
    }
}
