//! A volume that was set back: what it forgot could be asked for again, so it gives nothing up for what was open then,
//! and takes part again only on the word of the hospital's own people.

use consilium_federation::StudyKey;
use jiff::{SignedDuration, Timestamp};
use redb::{ReadableTable as _, WriteTransaction};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::ledger;
use super::{Entry, META, State, StateError, attempts, to_json};

const ROLLED_BACK: &str = "rolled-back";
const HUB_CLAIM: &str = "hub-claim";

/// On the hub's word alone open attempts are burned so often at most: it may lie anew in every reply.
const CLAIM_AGAIN: SignedDuration = SignedDuration::from_hours(1);

/// A study that gets no masked sum from here until the SitePolicy says which rounds may have had one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Closed {
    /// The study.
    pub study: StudyKey,
    /// Its UID.
    pub uid: String,
    /// `resumeAfterRound` of the study in the SitePolicy when the roll-back was noticed: only a higher one is about it.
    pub resumed: Option<u32>,
}

impl Closed {
    /// The last round that gets no masked sum from here, by what the SitePolicy says now; none while all get none.
    pub fn through(&self, resume_after_round: Option<u32>) -> Option<u32> {
        resume_after_round.filter(|_| resume_after_round > self.resumed)
    }
}

/// The memory of a roll-back that the hospital's own objects showed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RolledBack {
    /// What was seen.
    pub why: String,
    /// When it was noticed.
    pub at: Timestamp,
    /// The studies that this hospital took part in.
    #[serde(default)]
    pub closed: Vec<Closed>,
}

impl RolledBack {
    /// What is closed of a study.
    pub fn closed(&self, study: &StudyKey, uid: &str) -> Option<&Closed> {
        self.closed.iter().find(|closed| closed.study == *study && closed.uid == uid)
    }
}

/// What the hub says that it was shown, and this volume never had.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HubClaim {
    /// In words.
    pub why: String,
    /// When attempts were burned for it.
    pub at: Timestamp,
    /// It says so still.
    pub stands: bool,
}

fn read_in<T: DeserializeOwned>(write: &WriteTransaction, key: &str) -> Result<Option<T>, StateError> {
    let meta = write.open_table(META)?;
    let found = meta.get(key)?;
    found.map(|bytes| serde_json::from_slice(bytes.value())).transpose().map_err(StateError::damaged(key))
}

impl State {
    /// Burns every open attempt and closes these studies. Seen by the hospital itself.
    pub fn roll_back(&self, why: &str, closed: Vec<Closed>, now: Timestamp) -> Result<(), StateError> {
        let write = self.0.db.begin_write()?;
        let known: Option<RolledBack> = read_in(&write, ROLLED_BACK)?;
        let mut record = RolledBack { why: why.to_owned(), at: now, closed };
        let mut before = known.map(|known| known.closed).unwrap_or_default();
        before.retain(|old| record.closed(&old.study, &old.uid).is_none());
        record.closed.append(&mut before);
        ledger::append_in(&write, &Entry::StateRolledBack { why: why.to_owned() }, now)?;
        attempts::burn_all_in(&write, why, now)?;
        write.open_table(META)?.insert(ROLLED_BACK, to_json(ROLLED_BACK, &record)?.as_slice())?;
        Ok(write.commit()?)
    }

    /// The roll-back that was noticed, if any.
    pub fn rolled_back(&self) -> Result<Option<RolledBack>, StateError> {
        self.read_json(META, ROLLED_BACK)
    }

    /// Notes what the hub says of this hospital's ledger, `None` when that is what the volume holds too; burns open
    /// attempts once for each thing that it says, and not more than once an hour. True if it did.
    pub fn hub_claims(&self, why: Option<&str>, now: Timestamp) -> Result<bool, StateError> {
        let known = self.hub_claim()?;
        let (fresh, claim) = match (why, known) {
            (None, Some(known)) if known.stands => (false, HubClaim { stands: false, ..known }),
            (Some(why), Some(known)) if known.why == why || now.duration_since(known.at) < CLAIM_AGAIN => {
                if known.stands {
                    return Ok(false);
                }
                (false, HubClaim { stands: true, ..known })
            }
            (None, _) => return Ok(false),
            (Some(why), _) => (true, HubClaim { why: why.to_owned(), at: now, stands: true }),
        };
        let write = self.0.db.begin_write()?;
        if fresh {
            ledger::append_in(&write, &Entry::StateRolledBack { why: claim.why.clone() }, now)?;
            attempts::burn_all_in(&write, &claim.why, now)?;
        }
        write.open_table(META)?.insert(HUB_CLAIM, to_json(HUB_CLAIM, &claim)?.as_slice())?;
        write.commit()?;
        Ok(fresh)
    }

    /// The last thing that the hub said and this volume does not know, if any.
    pub fn hub_claim(&self) -> Result<Option<HubClaim>, StateError> {
        self.read_json(META, HUB_CLAIM)
    }
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    fn closed(name: &str, resumed: Option<u32>) -> Closed {
        Closed { study: StudyKey::new("research", name), uid: "u".into(), resumed }
    }

    /// A number from before the volume was set back says nothing of what it has forgotten since.
    #[test]
    fn only_a_later_word_opens_a_closed_study() {
        for (then, now, through) in [
            (None, None, None),
            (None, Some(0), Some(0)),
            (None, Some(4), Some(4)),
            (Some(4), Some(4), None),
            (Some(4), Some(9), Some(9)),
            (Some(4), None, None),
        ] {
            assert_eq!(closed("lung", then).through(now), through, "{then:?} {now:?}");
        }
    }

    /// A second roll-back forgets more, and must not be answered with the word that was given on the first.
    #[test]
    fn a_second_roll_back_closes_anew_and_forgets_no_study() {
        let dir = TempDir::new().unwrap();
        let state = State::open(dir.path(), [7; 32]).unwrap();
        let now = "2026-01-01T00:00:00Z".parse().unwrap();
        state.roll_back("first", vec![closed("lung", None), closed("liver", None)], now).unwrap();
        state.roll_back("second", vec![closed("lung", Some(4))], now).unwrap();
        let record = state.rolled_back().unwrap().unwrap();
        assert_eq!(record.closed, [closed("lung", Some(4)), closed("liver", None)]);
    }

    /// A hub that lies, or is mistaken, may cost what is open, and neither the hospital's place in the study nor its
    /// disk.
    #[test]
    fn the_hubs_word_alone_closes_nothing_and_is_acted_upon_at_most_hourly() {
        let dir = TempDir::new().unwrap();
        let state = State::open(dir.path(), [7; 32]).unwrap();
        let at = |minutes: i64| Timestamp::from_second(1_800_000_000 + 60 * minutes).unwrap();
        let entries = || state.ledger_end().unwrap().entries;
        for lie in 0..50 {
            assert_eq!(state.hub_claims(Some(&format!("head {lie}")), at(lie)).unwrap(), lie == 0);
            state.hub_claims(None, at(lie)).unwrap();
            assert!(!state.hub_claims(Some("head 0"), at(lie)).unwrap());
        }
        assert_eq!((entries(), state.rolled_back().unwrap()), (1, None));
        assert!(!state.hub_claims(Some("head 0"), at(600)).unwrap(), "it said that before");
        assert!(state.hub_claims(Some("head 99"), at(600)).unwrap());
        assert_eq!(entries(), 2);
        state.hub_claims(None, at(601)).unwrap();
        assert!(!state.hub_claim().unwrap().unwrap().stands, "the hub agrees again");
    }
}
