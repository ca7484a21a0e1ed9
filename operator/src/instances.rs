//! Who speaks with a hospital's certificate: one agent, or two. Pure.
//!
//! A second agent is a copy of the first: a volume and its keys restored beside the one in use, an installation in another
//! cluster, or a stolen certificate. Each would take the other's steps, report over it, and give sums that the other has
//! given. Neither is the right one to anybody but the hospital's people, so neither takes part.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};

/// How long after a second one's first word the first must have been heard: what an agent that was stopped sent may come in
/// late. The second need not live on, or take the same name twice: one that was replaced is never heard again.
const BESIDE: SignedDuration = SignedDuration::from_secs(10);
/// Who has not been heard for so long is gone. An agent calls every half minute, also while it is refused.
pub const GONE: SignedDuration = SignedDuration::from_mins(3);
/// Instances that are remembered.
const REMEMBERED: usize = 8;
/// Longest name of one.
const NAME: usize = 40;
/// Who says no name: a version that does not, or someone who leaves it out. It is one as any other.
const UNNAMED: &str = "unnamed";

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
        let name = if name.is_empty() { UNNAMED.to_owned() } else { name };
        self.heard.retain(|known, heard| *known == name || now.duration_since(heard.last) < GONE);
        for heard in self.heard.values_mut() {
            // The hub's own clock was set back: nobody was heard in a time to come.
            *heard = Heard { first: heard.first.min(now), last: heard.last.min(now) };
        }
        let heard = self.heard.entry(name).or_insert(Heard { first: now, last: now });
        heard.last = heard.last.max(now);
        while self.heard.len() > REMEMBERED {
            // The newest: names without end must not push out the one that was there before them.
            let newest = self.heard.iter().max_by_key(|(_, heard)| heard.first).map(|(name, _)| name.clone());
            newest.map(|name| self.heard.remove(&name));
        }
        self.judge()
    }

    /// Forgets who has not been heard for long; whether that changes how many there are.
    pub fn settle(&mut self, now: Timestamp) -> bool {
        self.heard.retain(|_, heard| now.duration_since(heard.last) < GONE);
        self.judge()
    }

    fn judge(&mut self) -> bool {
        let before = self.two.take();
        // Two that were seen are two until one is gone.
        let still = before.as_ref().filter(|two| two.iter().all(|name| self.heard.contains_key(name)));
        self.two = still.cloned().or_else(|| self.beside());
        self.two != before
    }

    fn beside(&self) -> Option<[String; 2]> {
        let mut all: Vec<(&String, &Heard)> = self.heard.iter().collect();
        all.sort_by_key(|(_, heard)| heard.first);
        let pairs = all.iter().enumerate().flat_map(|(n, a)| all[n + 1..].iter().map(move |b| (a, b)));
        let mut found = pairs.filter(|((_, a), (_, b))| a.last.duration_since(b.first) > BESIDE);
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
        // Nor is an agent of before that is brought up to date.
        assert!(heard(&[("", 0), ("", 30), ("a", 35), ("a", 60), ("a", 90)]).0.trouble().is_none());
    }

    /// A thief with the certificate would be as polite as it must: no name, a new one for each call, or many between two
    /// calls of the hospital's own agent; and a copy that falls over again and again lives for seconds.
    #[test]
    fn whoever_came_before_and_is_still_heard_shows_that_there_is_another() {
        assert!(heard(&[("a", 0), ("", 20), ("a", 30), ("a", 60)]).0.trouble().is_some(), "without a name");
        assert!(heard(&[("a", 0), ("x1", 20), ("a", 30), ("x2", 50), ("a", 60)]).0.trouble().is_some(), "ever another");
        let mut calls = vec![("a", 0)];
        let names = ["b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l", "m"];
        calls.extend(names.map(|name| (name, 5)));
        calls.push(("a", 30));
        assert!(heard(&calls).0.trouble().is_some(), "many");
    }

    /// Both were stopped, and nobody calls any more: the alert must not stand for ever.
    #[test]
    fn two_that_have_both_gone_are_none() {
        let (mut instances, _) = heard(&[("a", 0), ("b", 5), ("a", 30), ("b", 31)]);
        let at = |second| Timestamp::from_second(second).unwrap();
        assert!(instances.trouble().is_some());
        assert!(!instances.settle(at(60)) && instances.settle(at(300)) && instances.trouble().is_none());
    }

    /// Two on two copies of one volume would answer one step in two ways.
    #[test]
    fn two_that_are_heard_beside_each_other_are_noticed_and_named_until_one_is_gone() {
        let calls = [("a", 0), ("b", 5), ("a", 10), ("b", 15), ("a", 30), ("b", 31), ("a", 60)];
        let (mut instances, changes) = heard(&calls);
        assert_eq!(changes, [false, false, false, false, true, false, false]);
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
