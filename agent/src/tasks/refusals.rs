//! What the hospital's API server has refused of late. It is asked again after a while, since nothing tells when an
//! admission policy or a quota changes, and at once when the SitePolicy does.

use std::collections::BTreeMap;

use consilium_federation::task::TaskKind;
use jiff::{SignedDuration, Timestamp};

/// How long a refusal stands.
const STANDS: SignedDuration = SignedDuration::from_secs(60);

/// A part in a round: UID and kind.
pub type PartKey = (String, TaskKind);

struct Refusal {
    words: String,
    at: Timestamp,
    policy: Option<i64>,
}

/// The refusals that this process has seen.
#[derive(Default)]
pub struct Refusals(BTreeMap<PartKey, Refusal>);

impl Refusals {
    /// The words of a refusal that still stands under this generation of the SitePolicy.
    pub fn standing(&self, key: &PartKey, policy: Option<i64>, now: Timestamp) -> Option<&str> {
        let refusal = self.0.get(key)?;
        let stands = refusal.policy == policy && now.duration_since(refusal.at) < STANDS;
        stands.then_some(refusal.words.as_str())
    }

    /// Notes a refusal.
    pub fn note(&mut self, key: PartKey, words: String, policy: Option<i64>, now: Timestamp) {
        self.0.insert(key, Refusal { words, at: now, policy });
    }

    /// What was refused before is there; true if there was a refusal.
    pub fn lift(&mut self, key: &PartKey) -> bool {
        self.0.remove(key).is_some()
    }

    /// Keeps those of parts that are still asked for.
    pub fn retain(&mut self, wanted: impl Fn(&PartKey) -> bool) {
        self.0.retain(|key, _| wanted(key));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An administrator who corrects the policy must not wait, and a webhook that says no must not be asked every turn.
    #[test]
    fn a_refusal_stands_for_a_while_or_until_the_policy_changes() {
        let now: Timestamp = "2026-06-01T12:00:00Z".parse().unwrap();
        let key = ("round".to_owned(), TaskKind::Train);
        let mut refusals = Refusals::default();
        refusals.note(key.clone(), "no".into(), Some(3), now);
        let later = |seconds| now + SignedDuration::from_secs(seconds);
        assert_eq!(refusals.standing(&key, Some(3), later(59)), Some("no"));
        assert_eq!(refusals.standing(&key, Some(3), later(60)), None);
        assert_eq!(refusals.standing(&key, Some(4), later(1)), None);
        assert_eq!((refusals.lift(&key), refusals.lift(&key)), (true, false));
    }
}
