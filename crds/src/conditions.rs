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

/// The list of conditions of one object, changed only where something changed.
#[derive(Clone, Debug, Default)]
pub struct Conditions {
    list: Vec<Condition>,
    generation: Option<i64>,
    now: Option<Timestamp>,
}

impl Conditions {
    /// Starts from what an object has that was read. That it could not be read before is forgotten.
    pub fn from_status(list: &[Condition], generation: Option<i64>, now: Timestamp) -> Self {
        let list = list.iter().filter(|condition| condition.reason != UNREADABLE).cloned().collect();
        Self { list, generation, now: Some(now) }
    }

    /// Starts from what an object has that cannot be read.
    pub fn of_unread(list: &[Condition], generation: Option<i64>, now: Timestamp) -> Self {
        Self { list: list.to_vec(), generation, now: Some(now) }
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

    /// The list for the status, sorted by type so that equal states are equal JSON.
    pub fn into_list(mut self) -> Vec<Condition> {
        self.list.sort_by(|a, b| a.type_.cmp(&b.type_));
        self.list
    }
}

/// The status ("True", "False", "Unknown") of a condition, if present.
pub fn status_of<'a>(list: &'a [Condition], type_: &str) -> Option<&'a str> {
    list.iter().find(|c| c.type_ == type_).map(|c| c.status.as_str())
}
