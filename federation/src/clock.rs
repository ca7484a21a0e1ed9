//! How far the clocks of hub and hospital are apart. Pure.
//!
//! Deadlines are the hub's times. A hospital whose clock is off by hours would end its trainings by them, or never; so
//! each side measures the other's clock, says so, and a hospital reads the hub's times by the hub's clock. Its own limits
//! and the approvals of its people go by its own.

use jiff::{SignedDuration, Timestamp};

/// Clocks that are this close count as one: what a message takes on its way, and what time services leave.
pub const IN_SYNC: SignedDuration = SignedDuration::from_secs(60);

/// A measure that differs by less says nothing new: the way of a message takes a different time each time.
const NEWS: SignedDuration = SignedDuration::from_secs(10);

/// What is known of the other side's clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OtherClock {
    /// It has not been heard since the start.
    #[default]
    Unheard,
    /// The other side is of a version that does not say its time.
    Unsaid,
    /// By so much it is ahead of ours.
    Ahead(SignedDuration),
}

impl OtherClock {
    /// What is known after the other side said a time at a time of ours.
    pub fn after(self, theirs: Option<Timestamp>, ours: Timestamp) -> Self {
        let Some(theirs) = theirs else {
            // One that has said its time before says it again.
            return if let Self::Ahead(_) = self { self } else { Self::Unsaid };
        };
        let measured = theirs.duration_since(ours);
        match self {
            Self::Ahead(known) if measured.saturating_sub(known).unsigned_abs() < NEWS.unsigned_abs() => self,
            _ => Self::Ahead(measured),
        }
    }

    /// The same beside a clock that is so much behind the one that it was measured by.
    pub fn beside(self, behind: SignedDuration) -> Self {
        match self {
            Self::Ahead(by) => Self::Ahead(by.saturating_add(behind)),
            other => other,
        }
    }

    /// Whether both show one time; `None` while nobody knows.
    pub fn in_sync(self) -> Option<bool> {
        match self {
            Self::Unheard | Self::Unsaid => None,
            Self::Ahead(by) => Some(by.unsigned_abs() <= IN_SYNC.unsigned_abs()),
        }
    }

    /// A time of theirs on our clock. Before they were heard, none of theirs has come: better late than wrongly ended.
    pub fn on_ours(self, theirs: Timestamp) -> Timestamp {
        match self {
            Self::Unheard => Timestamp::MAX,
            Self::Unsaid => theirs,
            Self::Ahead(by) => shifted(theirs, -by),
        }
    }

    /// The time on their clock.
    pub fn now(self, ours: Timestamp) -> Timestamp {
        match self {
            Self::Unheard | Self::Unsaid => ours,
            Self::Ahead(by) => shifted(ours, by),
        }
    }

    /// The distance in words, as `3 h 2 min`; `None` while nobody knows.
    pub fn distance(self) -> Option<String> {
        let Self::Ahead(by) = self else { return None };
        let seconds = by.unsigned_abs().as_secs();
        let minutes = (seconds + 30) / 60;
        Some(match (seconds, minutes) {
            (..60, _) => format!("{seconds} s"),
            (_, ..60) => format!("{minutes} min"),
            _ => format!("{} h {} min", minutes / 60, minutes % 60),
        })
    }
}

fn shifted(at: Timestamp, by: SignedDuration) -> Timestamp {
    let end = if by.is_negative() { Timestamp::MIN } else { Timestamp::MAX };
    at.checked_add(by).unwrap_or(end)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    /// A hospital five hours ahead would give up each training five hours before the hub's deadline.
    #[test]
    fn a_time_of_the_other_side_is_read_by_its_clock() {
        let (hub, ours) = (at("2026-01-01T10:00:00Z"), at("2026-01-01T15:00:00Z"));
        let clock = OtherClock::default().after(Some(hub), ours);
        assert_eq!((clock.in_sync(), clock.distance().as_deref()), (Some(false), Some("5 h 0 min")));
        assert_eq!(clock.on_ours(at("2026-01-01T12:00:00Z")), at("2026-01-01T17:00:00Z"));
        assert_eq!(clock.now(ours), hub);
        // Mended: the next word of the hub counts.
        let mended = clock.after(Some(hub), at("2026-01-01T10:00:01Z"));
        assert_eq!((mended.in_sync(), mended.on_ours(hub)), (Some(true), at("2026-01-01T10:00:01Z")));
    }

    /// Before the hub is heard, after a restart with it away, nothing may be ended by its times; a hub of before these
    /// messages is taken at its word.
    #[test]
    fn nothing_ends_by_a_clock_that_was_not_heard() {
        let hub = at("2026-01-01T10:00:00Z");
        assert_eq!(OtherClock::Unheard.on_ours(hub), Timestamp::MAX);
        let old = OtherClock::Unheard.after(None, hub);
        assert_eq!((old, old.on_ours(hub), old.in_sync()), (OtherClock::Unsaid, hub, None));
        let said = old.after(Some(hub), hub);
        assert_eq!(said.after(None, hub), said);
    }

    /// A status that is written with each message would be written for ever.
    #[test]
    fn what_the_way_of_a_message_takes_is_no_news() {
        let hub = at("2026-01-01T10:00:00Z");
        let first = OtherClock::Unheard.after(Some(hub), at("2026-01-01T10:00:03Z"));
        assert_eq!(first.after(Some(hub), at("2026-01-01T10:00:12Z")), first);
        assert_ne!(first.after(Some(hub), at("2026-01-01T10:00:14Z")), first);
        for (end, by) in [(Timestamp::MAX, 1), (Timestamp::MIN, -1)] {
            assert_eq!(OtherClock::Ahead(SignedDuration::from_secs(by)).now(end), end);
        }
    }
}
