//! What the ledger does not hold yet. A stop never waits for the volume: it happens, is put down here, and is written
//! when the volume takes it.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::{SignedDuration, Timestamp};
use tokio::sync::Notify;
use tokio::sync::futures::Notified;

use super::{Entry, State, StateError};

/// Entries that are kept at most: a volume that stays away must not fill the memory too.
const MOST: usize = 1000;
/// An entry that is written this long after what it tells is marked as late.
const SOON: SignedDuration = SignedDuration::from_secs(10);

/// Refusals that go into the ledger at once, at most; one more for each [`REFILL`] that passes.
///
/// What is refused is the hub's to choose, as often as it likes; an entry for each would let it fill the volume.
const REFUSALS: u64 = 500;
const REFILL: SignedDuration = SignedDuration::from_secs(60);

#[derive(Default)]
struct Inner {
    waiting: VecDeque<(Timestamp, Entry)>,
    lost: u64,
    /// Refusals written since `since`, and those that were only counted.
    written: u64,
    since: Option<Timestamp>,
    counted: u64,
}

/// Entries that wait for the ledger; a cheap clone of one shared queue.
#[derive(Clone, Default)]
pub struct Unrecorded(Arc<Mutex<Inner>>, Arc<Notify>);

impl Unrecorded {
    /// Puts down what has happened. Of too many the oldest is lost, which the ledger then says.
    pub fn push(&self, entry: Entry, happened: Timestamp) {
        let mut inner = self.lock();
        if inner.waiting.len() >= MOST {
            inner.waiting.pop_front();
            inner.lost += 1;
        }
        inner.waiting.push_back((happened, entry));
        self.1.notify_one();
    }

    /// Waits for something to write.
    pub fn news(&self) -> Notified<'_> {
        self.1.notified()
    }

    /// Whether a refusal is to be written; else it is counted. With how many were counted since the last one that was.
    pub fn refusal(&self, now: Timestamp) -> Option<u64> {
        let mut inner = self.lock();
        let since = *inner.since.get_or_insert(now);
        let refills = now.duration_since(since).as_secs() / REFILL.as_secs();
        if refills > 0 {
            inner.written = inner.written.saturating_sub(refills.unsigned_abs());
            inner.since = Some(since + REFILL * i32::try_from(refills).unwrap_or(i32::MAX));
        }
        if inner.written >= REFUSALS {
            inner.counted += 1;
            return None;
        }
        inner.written += 1;
        Some(std::mem::take(&mut inner.counted))
    }

    /// How many wait, those that were lost included.
    pub fn len(&self) -> i64 {
        let inner = self.lock();
        i64::try_from(inner.waiting.len()).unwrap_or(i64::MAX).saturating_add_unsigned(inner.lost)
    }

    /// Whether the ledger holds all.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Writes what waits, oldest first. What cannot be written stays.
    pub fn write(&self, state: &State, now: Timestamp) -> Result<(), StateError> {
        loop {
            let (lost, next) = {
                let inner = self.lock();
                (inner.lost, inner.waiting.front().cloned())
            };
            if lost > 0 {
                state.append(Entry::Lost { entries: lost }, now)?;
                let mut inner = self.lock();
                inner.lost = inner.lost.saturating_sub(lost);
                continue;
            }
            let Some((happened, entry)) = next else { return Ok(()) };
            let late = now.duration_since(happened) > SOON;
            let written = if late { Entry::Late { happened, what: Box::new(entry.clone()) } } else { entry.clone() };
            state.append(written, now)?;
            let mut inner = self.lock();
            // It may have been lost to a newer one meanwhile; then it is in the ledger and counted as lost.
            if inner.waiting.front() == Some(&(happened, entry)) {
                inner.waiting.pop_front();
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // A panic between two operations leaves a queue that is still whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_700_000_000 + second).unwrap()
    }

    fn stop(name: &str) -> Entry {
        Entry::Stopped { kind: "Job".into(), name: name.into(), uid: "u".into(), why: "Disabled".into() }
    }

    /// An audit must tell a stop that was written down at once from one that waited for the volume, and when it was.
    #[test]
    fn what_waited_is_written_in_order_and_marked() {
        let folder = tempfile::tempdir().unwrap();
        let state = State::open(folder.path(), [1; 32]).unwrap();
        let unrecorded = Unrecorded::default();
        unrecorded.push(stop("a"), at(0));
        unrecorded.push(stop("b"), at(95));
        assert_eq!(unrecorded.len(), 2);
        unrecorded.write(&state, at(100)).unwrap();
        assert!(unrecorded.is_empty());
        let entries: Vec<Entry> = state.ledger(1, 10).unwrap().into_iter().map(|record| record.entry).collect();
        assert_eq!(entries, [Entry::Late { happened: at(0), what: Box::new(stop("a")) }, stop("b")]);
        assert_eq!(state.verify().unwrap(), 2);
    }

    /// A hub that offers ten thousand studies that nobody approved, and others with the next message, would fill the volume
    /// with refusals, and take minutes for writing each.
    #[test]
    fn refusals_are_written_until_there_are_too_many_and_then_counted() {
        let unrecorded = Unrecorded::default();
        let written = (0..10_000).filter(|_| unrecorded.refusal(at(0)).is_some()).count() as u64;
        assert_eq!(written, REFUSALS);
        assert_eq!(unrecorded.refusal(at(59)), None);
        assert_eq!(unrecorded.refusal(at(60)), Some(10_000 - REFUSALS + 1), "and said how many were not");
        assert_eq!((unrecorded.refusal(at(60)), unrecorded.refusal(at(121))), (None, Some(1)));
        // A day of it is at most 1,440 entries more.
        let day = (0..86_400).filter(|second| unrecorded.refusal(at(121 + second)).is_some()).count();
        assert!(day <= 1_441, "{day}");
    }

    /// A volume that is away for a week must not end the agent by its memory, nor hide that something is missing.
    #[test]
    fn memory_is_bounded_and_what_was_lost_is_said() {
        let folder = tempfile::tempdir().unwrap();
        let state = State::open(folder.path(), [1; 32]).unwrap();
        let unrecorded = Unrecorded::default();
        for n in 0..MOST + 7 {
            unrecorded.push(stop(&n.to_string()), at(0));
        }
        assert_eq!(unrecorded.len(), MOST as i64 + 7);
        unrecorded.write(&state, at(0)).unwrap();
        let records = state.ledger(1, MOST + 10).unwrap();
        assert_eq!((records[0].entry.clone(), records.len()), (Entry::Lost { entries: 7 }, MOST + 1));
        assert_eq!(records[1].entry, stop("7"));
    }
}
