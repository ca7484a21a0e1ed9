//! The hub's signatures over ends of the ledger: what it was shown, and by when, for whoever has to prove it.

use consilium_federation::ledger::Countersigned;
use consilium_federation::report::LedgerEnd;
use jiff::SignedDuration;
use redb::{ReadableDatabase, ReadableTable, TableDefinition, WriteTransaction};

use super::{State, StateError, to_json};

/// Entries of the ledger to the signature over the end that it had with them.
const TABLE: TableDefinition<u64, &[u8]> = TableDefinition::new("ledger-countersigned");

/// Of those that come closer together only the last is kept.
const APART: SignedDuration = SignedDuration::from_hours(1);

pub(super) fn prepare(write: &WriteTransaction) -> Result<(), StateError> {
    write.open_table(TABLE)?;
    Ok(())
}

fn read(bytes: &[u8]) -> Result<Countersigned, StateError> {
    serde_json::from_slice(bytes).map_err(StateError::damaged("a countersignature"))
}

impl State {
    /// Keeps a signature over an end that the ledger has had.
    pub fn put_countersigned(&self, new: &Countersigned) -> Result<(), StateError> {
        if self.countersigned(new.end)?.is_some() {
            return Ok(());
        }
        let write = self.0.db.begin_write()?;
        {
            let mut table = write.open_table(TABLE)?;
            let last = table.iter()?.rev().take(2).map(|row| read(row?.1.value()));
            let last: Vec<Countersigned> = last.collect::<Result<_, StateError>>()?;
            // The one before stands between two that are close together.
            if let [between, before] = &last[..]
                && new.at.duration_since(before.at) < APART
            {
                table.remove(between.end.entries)?;
            }
            table.insert(new.end.entries, to_json("a countersignature", new)?.as_slice())?;
        }
        Ok(write.commit()?)
    }

    /// The hub's signature over this end of the ledger, hexadecimal, if it is there.
    pub fn countersigned(&self, end: LedgerEnd) -> Result<Option<String>, StateError> {
        let found = self.countersignatures(end.entries, 1)?.into_iter().find(|found| found.end == end);
        Ok(found.map(|found| found.signature))
    }

    /// Signatures over ends with so many entries or more, at most `limit`.
    pub fn countersignatures(&self, from: u64, limit: usize) -> Result<Vec<Countersigned>, StateError> {
        let table = self.0.db.begin_read()?.open_table(TABLE)?;
        table.range(from..)?.take(limit).map(|row| read(row?.1.value())).collect()
    }
}

#[cfg(test)]
mod tests {
    use consilium_federation::Digest;
    use jiff::Timestamp;

    use super::*;

    /// Twice a minute a signature comes in; kept are those of about every hour, and always the newest, so that a year of
    /// them is small and what was written today is proven today.
    #[test]
    fn signatures_are_kept_about_hourly_and_the_newest_always() {
        let dir = tempfile::tempdir().unwrap();
        let state = State::open(dir.path(), [7; 32]).unwrap();
        let end = |entries| LedgerEnd { entries, head: Digest::of(&entries.to_be_bytes()) };
        for n in 0..240_u64 {
            let at = Timestamp::from_second(1_800_000_000 + 60 * n as i64).unwrap();
            state.put_countersigned(&Countersigned { end: end(n), signature: "07".repeat(64), at }).unwrap();
        }
        let kept = state.countersignatures(0, 1000).unwrap();
        assert!((4..=6).contains(&kept.len()), "{}", kept.len());
        assert_eq!(kept.last().unwrap().end, end(239));
        assert!(state.countersigned(end(239)).unwrap().is_some() && state.countersigned(end(238)).unwrap().is_none());
        let other = LedgerEnd { head: Digest::of(b"x"), ..end(239) };
        assert_eq!(state.countersigned(other).unwrap(), None, "one over another end proves nothing about this one");
    }
}
