//! The desired state as accepted, and the attempts that a new epoch burned.

use consilium_federation::assignment::{Acceptance, Assignment, Work, acceptance, merge};
use jiff::Timestamp;
use redb::{ReadableDatabase, TableDefinition, WriteTransaction};

use super::{Entry, META, State, StateError, attempts, ledger, to_json};

/// `<round uid>/<attempt>` of attempts that must not be served any more.
const BURNED: TableDefinition<&str, ()> = TableDefinition::new("burned");
const KEY: &str = "assignment";

pub(super) fn prepare(write: &WriteTransaction) -> Result<(), StateError> {
    write.open_table(BURNED)?;
    Ok(())
}

fn burned_key(round_uid: &str, attempt: u32) -> String {
    format!("{round_uid}/{attempt}")
}

/// The round and the attempt of a key; UIDs hold no slash.
pub(super) fn split_key(key: &str) -> (String, u32) {
    let (round_uid, attempt) = key.split_once('/').unwrap_or((key, "0"));
    (round_uid.to_owned(), attempt.parse().unwrap_or(0))
}

/// Marks an attempt within a transaction.
pub(super) fn burn_in(write: &WriteTransaction, key: &str) -> Result<(), StateError> {
    write.open_table(BURNED)?.insert(key, ())?;
    Ok(())
}

impl State {
    /// The desired state that was accepted last, orphans included.
    pub fn assignment(&self) -> Result<Option<Assignment>, StateError> {
        self.read_json(META, KEY)
    }

    /// Takes or refuses what the hub published, by the rules of `federation::assignment`.
    ///
    /// With a new epoch every attempt that was open is burned: the hub lost its store, and what it asks for under an
    /// old number is not the attempt that this hospital knows.
    /// `hub` is the time on the hub's clock, by which its deadlines are read.
    pub fn accept(&self, offered: Assignment, now: Timestamp, hub: Timestamp) -> Result<Acceptance, StateError> {
        let known = self.assignment()?;
        let verdict = acceptance(known.as_ref(), &offered);
        if verdict == Acceptance::Stale {
            return Ok(verdict);
        }
        let epoch = offered.hub_epoch.clone();
        let open = self.open_attempts()?;
        let write = self.0.db.begin_write()?;
        if let (Acceptance::TakeNewEpoch, Some(old)) = (verdict, &known) {
            let mut burned = write.open_table(BURNED)?;
            for item in &old.items {
                // Where nothing is held, nothing was answered and nothing can be: a hub that changes its epoch with every
                // message would else fill the volume.
                if let Work::Round(work) = &item.work
                    && work.attempt > 0
                    && (self.holds(&item.uid)? || open.iter().any(|key| key.round_uid == item.uid))
                {
                    burned.insert(burned_key(&item.uid, work.attempt).as_str(), ())?;
                }
            }
            drop(burned);
            attempts::burn_all_in(&write, "the hub has another store", now)?;
            let entry = Entry::NewEpoch { old: old.hub_epoch.clone(), new: epoch };
            ledger::append_in(&write, &entry, now)?;
        }
        let merged = merge(known.as_ref(), offered, hub);
        write.open_table(META)?.insert(KEY, to_json(KEY, &merged)?.as_slice())?;
        write.commit()?;
        Ok(verdict)
    }

    /// Marks an attempt as one that must not be served any more.
    pub fn burn(&self, round_uid: &str, attempt: u32) -> Result<(), StateError> {
        let write = self.0.db.begin_write()?;
        write.open_table(BURNED)?.insert(burned_key(round_uid, attempt).as_str(), ())?;
        Ok(write.commit()?)
    }

    /// Whether an attempt was burned.
    pub fn is_burned(&self, round_uid: &str, attempt: u32) -> Result<bool, StateError> {
        let read = self.0.db.begin_read()?;
        Ok(read.open_table(BURNED)?.get(burned_key(round_uid, attempt).as_str())?.is_some())
    }
}
