//! Who speaks with a hospital's certificate: one agent, or two. Pure.
//!
//! A second agent is a copy of the first: a volume and its keys restored beside the one in use, an installation in another
//! cluster, or a stolen certificate. Each would take the other's steps, report over it, and give sums that the other has
//! given. Neither is the right one to anybody but the hospital's people, so neither takes part.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};

/// How long two must have been heard beside each other: what an agent that was stopped sent may come in late.
const BESIDE: SignedDuration = SignedDuration::from_secs(10);
/// Who has not been heard for so long is gone. An agent calls every half minute, also while it is refused.
pub const GONE: SignedDuration = SignedDuration::from_mins(3);
/// Instances that are remembered.
const REMEMBERED: usize = 8;
/// Longest name of one.
const NAME: usize = 40;

#[derive(Clone, Copy, Debug)]
struct Heard {
    first: Timestamp,
    last: Timestamp,
}

/// The agents of one hospital, by the names that their processes took.
#[derive(Debug, Default)]
pub struct Instances {
    heard: BTreeMap<String, Heard>,
    two: Option<[String; 2]>,
}

impl Instances {
    /// Takes note of a call; whether that changes how many there are.
    pub fn hear(&mut self, instance: &str, now: Timestamp) -> bool {
        let name: String = instance.chars().filter(char::is_ascii_alphanumeric).take(NAME).collect();
        if name.is_empty() {
            // A version that does not say its name.
            return false;
        }
        self.heard.retain(|known, heard| *known == name || now.duration_since(heard.last) < GONE);
        for heard in self.heard.values_mut() {
            // The hub's own clock was set back: nobody was heard in a time to come.
            *heard = Heard { first: heard.first.min(now), last: heard.last.min(now) };
        }
        let heard = self.heard.entry(name).or_insert(Heard { first: now, last: now });
        heard.last = heard.last.max(now);
        while self.heard.len() > REMEMBERED {
            let oldest = self.heard.iter().min_by_key(|(_, heard)| heard.last).map(|(name, _)| name.clone());
            oldest.map(|name| self.heard.remove(&name));
        }
        let before = self.two.take();
        // Two that were seen are two until one is gone.
        let still = before.as_ref().filter(|two| two.iter().all(|name| self.heard.contains_key(name)));
        self.two = still.cloned().or_else(|| self.beside());
        self.two != before
    }

    fn beside(&self) -> Option<[String; 2]> {
        let all: Vec<(&String, &Heard)> = self.heard.iter().collect();
        let pairs = all.iter().enumerate().flat_map(|(n, a)| all[n + 1..].iter().map(move |b| (a, b)));
        let mut found =
            pairs.filter(|((_, a), (_, b))| a.last.min(b.last).duration_since(a.first.max(b.first)) > BESIDE);
        found.next().map(|((a, _), (b, _))| [(*a).clone(), (*b).clone()])
    }

    /// In words, if there are two.
    pub fn trouble(&self) -> Option<String> {
        let [one, other] = self.two.as_ref()?;
        Some(format!(
            "two agents speak with this hospital's certificate, instances {one} and {other}, and neither takes part: stop \
             one (each names its instance in its log and in its SitePolicy's condition Connected); the other goes on {} \
             minutes after the last word of that one",
            GONE.as_mins()
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(calls: &[(&str, i64)]) -> (Instances, Vec<bool>) {
        let mut instances = Instances::default();
        let changes = calls.iter().map(|(name, second)| instances.hear(name, Timestamp::from_second(*second).unwrap()));
        let changes = changes.collect();
        (instances, changes)
    }

    /// An agent that restarts, and what it sent last comes in late: that is one agent, and its hospital must not fall out.
    #[test]
    fn a_restart_is_no_second_agent() {
        let (instances, changes) = heard(&[("a", 0), ("a", 30), ("b", 31), ("a", 35), ("b", 61), ("c", 62), ("c", 92)]);
        assert!(instances.trouble().is_none() && changes.iter().all(|changed| !changed));
        // Nor when the hub's clock was set back an hour in between.
        assert!(heard(&[("a", 0), ("a", 4000), ("b", 500), ("b", 600), ("b", 630)]).0.trouble().is_none());
        // Nor are versions that do not say their name.
        assert!(heard(&[("", 0), ("a", 20), ("", 40), ("a", 60)]).0.trouble().is_none());
    }

    /// Two on two copies of one volume would answer one step in two ways.
    #[test]
    fn two_that_are_heard_beside_each_other_are_noticed_and_named_until_one_is_gone() {
        let calls = [("a", 0), ("b", 5), ("a", 10), ("b", 15), ("a", 30), ("b", 31), ("a", 60)];
        let (mut instances, changes) = heard(&calls);
        assert_eq!(changes, [false, false, false, false, false, true, false]);
        let words = instances.trouble().unwrap();
        assert!(
            words.contains("instances a and b") && words.contains("stop one") && words.contains("3 minutes"),
            "{words}"
        );
        // Both go on dialling; one is stopped at 100.
        let mut hear = |name: &str, second| instances.hear(name, Timestamp::from_second(second).unwrap());
        assert!(!hear("b", 100));
        assert!((120..280).step_by(20).all(|second| !hear("a", second)));
        assert!(hear("a", 280), "the other one was last heard three minutes ago");
        assert!(instances.trouble().is_none());
    }

    /// Whoever holds the certificate may take a name for each call; the hub must not remember them all.
    #[test]
    fn names_without_end_take_no_room() {
        let mut instances = Instances::default();
        for n in 0..1000 {
            instances.hear(&format!("{n}{}", "x".repeat(500)), Timestamp::from_second(n).unwrap());
        }
        assert!(instances.heard.len() <= REMEMBERED && instances.heard.keys().all(|name| name.len() <= NAME));
    }
}
