//! Conditions as the API conventions and kstatus want them.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

/// `Ready`: accepted and reconciling normally. Not "finished".
pub const READY: &str = "Ready";
/// `Reconciling`, abnormal-true: present only while something is under way.
pub const RECONCILING: &str = "Reconciling";
/// `Stalled`, abnormal-true: present only when someone has to act.
pub const STALLED: &str = "Stalled";
/// `Accepted`: the spec makes sense and its references exist.
pub const ACCEPTED: &str = "Accepted";
/// `Succeeded`: the work is finished and good.
pub const SUCCEEDED: &str = "Succeeded";
/// Condition type: nothing new begins, because somebody says so.
pub const SUSPENDED: &str = "Suspended";

/// Reason of conditions on an object that cannot be read.
pub const UNREADABLE: &str = "Unreadable";

/// Conditions that one object may have, by its schema.
pub const MOST: usize = 16;

/// The list of conditions of one object, changed only where something changed.
#[derive(Clone, Debug, Default)]
pub struct Conditions {
    list: Vec<Condition>,
    /// Types that were said now.
    said: Vec<String>,
    generation: Option<i64>,
    now: Option<Timestamp>,
}

impl Conditions {
    /// Starts from what an object has that was read. That it could not be read before is forgotten.
    pub fn from_status(list: &[Condition], generation: Option<i64>, now: Timestamp) -> Self {
        let list = list.iter().filter(|condition| condition.reason != UNREADABLE).cloned().collect();
        Self { list, said: Vec::new(), generation, now: Some(now) }
    }

    /// Starts from what an object has that cannot be read.
    pub fn of_unread(list: &[Condition], generation: Option<i64>, now: Timestamp) -> Self {
        Self { list: list.to_vec(), said: Vec::new(), generation, now: Some(now) }
    }

    /// Sets a condition; the transition time moves only when the status does. Messages are cut to 1,000 characters.
    pub fn set(&mut self, type_: &str, status: bool, reason: &str, message: impl AsRef<str>) -> &mut Self {
        self.put(type_, if status { "True" } else { "False" }, reason, message.as_ref())
    }

    /// Sets a condition whose truth is not known yet.
    pub fn unknown(&mut self, type_: &str, reason: &str, message: impl AsRef<str>) -> &mut Self {
        self.put(type_, "Unknown", reason, message.as_ref())
    }

    /// Removes an abnormal-true condition.
    pub fn clear(&mut self, type_: &str) -> &mut Self {
        self.list.retain(|c| c.type_ != type_);
        self
    }

    fn put(&mut self, type_: &str, status: &str, reason: &str, message: &str) -> &mut Self {
        self.said.push(type_.to_owned());
        let message: String = message.chars().take(1000).collect();
        let now = Time(self.now.unwrap_or(Timestamp::UNIX_EPOCH));
        let fresh = |since| Condition {
            type_: type_.to_owned(),
            status: status.to_owned(),
            reason: reason.to_owned(),
            message: message.clone(),
            observed_generation: self.generation,
            last_transition_time: since,
        };
        match self.list.iter_mut().find(|c| c.type_ == type_) {
            Some(old) => {
                let since = if old.status == status { old.last_transition_time.clone() } else { now };
                *old = fresh(since);
            }
            None => self.list.push(fresh(now)),
        }
        self
    }

    /// The list for the status, sorted by type so that equal states are equal JSON. What others have put beside ours goes
    /// when there is no room for all: otherwise they could keep an object from ever saying anything again.
    pub fn into_list(mut self) -> Vec<Condition> {
        self.list.sort_by_key(|c| !self.said.contains(&c.type_));
        self.list.truncate(MOST);
        self.list.sort_by(|a, b| a.type_.cmp(&b.type_));
        self.list
    }
}

/// The status ("True", "False", "Unknown") of a condition, if present.
pub fn status_of<'a>(list: &'a [Condition], type_: &str) -> Option<&'a str> {
    list.iter().find(|c| c.type_ == type_).map(|c| c.status.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sixteen conditions of somebody else would keep ours from being written for ever.
    #[test]
    fn what_others_say_leaves_room_for_what_we_say() {
        let now = Timestamp::UNIX_EPOCH;
        let mut theirs = Conditions::from_status(&[], None, now);
        for n in 0..MOST {
            theirs.set(&format!("Theirs{n:02}"), true, "Said", "");
        }
        let mut ours = Conditions::from_status(&theirs.into_list(), None, now);
        let list = ours.set(READY, true, "Reconciled", "").set(STALLED, true, "NotAdmitted", "").clone().into_list();
        assert_eq!(list.len(), MOST);
        assert_eq!((status_of(&list, READY), status_of(&list, STALLED)), (Some("True"), Some("True")));
    }
}
