//! What a hospital keeps of a round that it refuses, or whose time is over: nothing beyond the time that it names itself,
//! whatever the hub says.

use consilium_federation::round::SiteReason;
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use crate::policy::Decision;
use crate::state::{State, StateError};

const KEY: &str = "tasks/spent/";

/// A round whose results and folders nobody needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spent {
    /// Since when.
    pub since: Timestamp,
    /// Why.
    pub why: Why,
    /// It was erased: nothing is made again for it.
    pub erased: bool,
}

/// Why nobody needs them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Why {
    /// The hospital says no.
    Refused,
    /// Its time is over, by the hub's word or by the hospital's, whichever comes first.
    Over,
}

impl Why {
    /// In words.
    pub const fn words(self) -> &'static str {
        match self {
            Self::Refused => "the hospital refuses it",
            Self::Over => "its time is over",
        }
    }
}

/// Whether a round is needed now. A roster that is replaced, or a probe that has not spoken yet, is no refusal.
pub fn of(decision: &Decision, unprobed: bool, ends: Timestamp, now: Timestamp) -> Option<Why> {
    match decision {
        Decision::Refused { reason: SiteReason::AwaitingRoster, .. } => (now >= ends).then_some(Why::Over),
        Decision::Refused { reason: SiteReason::NetworkPolicyNotEnforced, .. } if unprobed => None,
        _ if now >= ends => Some(Why::Over),
        Decision::Refused { .. } => Some(Why::Refused),
        Decision::Allowed | Decision::SpecNeeded => None,
    }
}

/// What is remembered of a round from here on.
pub fn next(known: Option<Spent>, why: Option<Why>, now: Timestamp) -> Option<Spent> {
    match (known, why) {
        (Some(known), _) if known.erased => Some(known),
        // It counts from when it was first not needed, whatever the reason is now.
        (Some(known), Some(why)) => Some(Spent { why, ..known }),
        (None, Some(why)) => Some(Spent { since: now, why, erased: false }),
        (_, None) => None,
    }
}

/// Whether it is time. Half of what the hospital allows is left for what may be in the way: claims, queues, nodes.
pub fn is_due(spent: &Spent, within: SignedDuration, now: Timestamp) -> bool {
    !spent.erased && now.duration_since(spent.since) >= within / 2
}

fn key(round_uid: &str) -> String {
    format!("{KEY}{round_uid}")
}

/// What is remembered of a round.
pub fn known(state: &State, round_uid: &str) -> Result<Option<Spent>, StateError> {
    let Some(bytes) = state.blob(&key(round_uid))? else { return Ok(None) };
    serde_json::from_slice(&bytes).map(Some).map_err(StateError::damaged(key(round_uid)))
}

/// Remembers it; `None` forgets.
pub fn remember(state: &State, round_uid: &str, spent: Option<&Spent>) -> Result<(), StateError> {
    let Some(spent) = spent else { return state.delete_blob(&key(round_uid)) };
    state.put_blob(&key(round_uid), &serde_json::to_vec(spent).map_err(StateError::damaged(key(round_uid)))?)
}

/// Forgets rounds that nobody names any more.
pub fn retain(state: &State, named: impl Fn(&str) -> bool) -> Result<(), StateError> {
    for (name, _) in state.blobs(KEY)? {
        if !name.strip_prefix(KEY).is_some_and(&named) {
            state.delete_blob(&name)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(hour: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + 3600 * hour).unwrap()
    }

    const WITHIN: SignedDuration = SignedDuration::from_hours(24);

    /// A hub that goes on naming a refused round kept the update, unmasked, and the segmentations in the hospital for ever.
    #[test]
    fn what_is_refused_or_over_is_due_at_half_the_time_whatever_the_hub_says() {
        let refused = Decision::refused(SiteReason::DeniedByPolicy, "no");
        let no = of(&refused, false, at(100), at(0));
        assert_eq!(no, Some(Why::Refused));
        let spent = next(None, no, at(0)).unwrap();
        assert!(!is_due(&spent, WITHIN, at(11)) && is_due(&spent, WITHIN, at(12)));
        // Refused by another rule, or over, in between: it counts on.
        let later = next(Some(spent), of(&refused, false, at(5), at(6)), at(6)).unwrap();
        assert_eq!((later.since, later.why), (at(0), Why::Over));
        // Allowed again: nothing was erased, and nothing is.
        assert_eq!(next(Some(spent), of(&Decision::Allowed, false, at(100), at(6)), at(6)), None);
        // Its time is over by the hospital's own limit, whatever new deadline the hub names.
        assert_eq!(of(&Decision::Allowed, false, at(5), at(5)), Some(Why::Over));
    }

    /// Trained again for a round of which all was erased, the hospital would give more than it consented to; and an update
    /// that waits for a new roster, or for the probe after a restart, is not lost.
    #[test]
    fn what_was_erased_is_not_made_again_and_what_waits_is_kept() {
        let erased = Spent { since: at(0), why: Why::Over, erased: true };
        assert_eq!(next(Some(erased), None, at(9)), Some(erased));
        assert!(!is_due(&erased, WITHIN, at(99)));
        let waits = Decision::refused(SiteReason::AwaitingRoster, "r");
        assert_eq!((of(&waits, false, at(9), at(0)), of(&waits, false, at(9), at(9))), (None, Some(Why::Over)));
        let unprobed = Decision::refused(SiteReason::NetworkPolicyNotEnforced, "p");
        assert_eq!((of(&unprobed, true, at(9), at(0)), of(&unprobed, false, at(9), at(0))), (None, Some(Why::Refused)));
    }

    /// The memory of a round is as long as somebody names it, and survives a restart.
    #[test]
    fn it_is_remembered_as_long_as_it_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let state = State::open(dir.path(), [7; 32]).unwrap();
        let spent = Spent { since: at(0), why: Why::Refused, erased: false };
        for uid in ["a", "b"] {
            remember(&state, uid, Some(&spent)).unwrap();
        }
        retain(&state, |uid| uid == "a").unwrap();
        assert_eq!((known(&state, "a").unwrap(), known(&state, "b").unwrap()), (Some(spent), None));
        remember(&state, "a", None).unwrap();
        assert_eq!(known(&state, "a").unwrap(), None);
    }
}
