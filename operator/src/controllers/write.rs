//! Writing a status once, only when it changed, and only over the version that was read.

use std::collections::{BTreeSet, HashMap};
use std::fmt::Debug;
use std::sync::{Arc, Mutex, PoisonError};

use kube::api::{Api, PostParams};
use kube::runtime::events::{Event, EventType};
use kube::{Resource, ResourceExt};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::context::{Context, MANAGER};
use super::error::Error;

/// Something that a person who looks at the object should see. Recorded after the status is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// CamelCase.
    pub reason: &'static str,
    /// What happened, and what to do if it is a warning.
    pub message: String,
    /// Whether someone has to act.
    pub warning: bool,
}

impl Note {
    /// Something went as it should.
    pub fn normal(reason: &'static str, message: impl Into<String>) -> Self {
        Self { reason, message: message.into(), warning: false }
    }

    /// Someone has to act.
    pub fn warning(reason: &'static str, message: impl Into<String>) -> Self {
        Self { reason, message: message.into(), warning: true }
    }
}

/// Writes the object's status; the resourceVersion in it is the precondition.
///
/// # Errors
/// Conflict when someone else wrote first.
pub async fn status<K>(api: &Api<K>, object: &K) -> Result<K, Error>
where
    K: Resource + Clone + Debug + Serialize + DeserializeOwned,
{
    let name = object.name_any();
    let params = PostParams { field_manager: Some(MANAGER.into()), ..PostParams::default() };
    api.replace_status(&name, &params, object).await.map_err(Error::kube(format!("writing the status of {name}")))
}

/// Records Events. They are for people: one that is lost is logged and fails nothing.
pub async fn events<K>(context: &Context, object: &K, notes: Vec<Note>)
where
    K: Resource<DynamicType = ()>,
{
    for note in notes {
        let event = Event {
            type_: if note.warning { EventType::Warning } else { EventType::Normal },
            reason: note.reason.into(),
            // The API's bound on a note is 1,024 bytes.
            note: Some(note.message.chars().take(250).collect()),
            action: note.reason.into(),
            secondary: None,
        };
        if let Err(error) = context.recorder.publish(&event, &object.object_ref(&())).await {
            tracing::warn!(reason = note.reason, %error, "an Event was not recorded");
        }
    }
}

/// Objects as this process last wrote them. A cache that lags behind shows a version that was replaced already;
/// deciding from it would publish yesterday's work.
#[derive(Debug)]
pub struct Written<K>(Mutex<HashMap<String, Last<K>>>);

#[derive(Debug)]
struct Last<K> {
    replaced: BTreeSet<String>,
    object: Arc<K>,
}

impl<K> Default for Written<K> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: Resource> Written<K> {
    /// The newer of what the cache shows and what was written.
    pub fn newest(&self, cached: Arc<K>) -> Arc<K> {
        let mut map = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (Some(uid), Some(version)) = (&cached.meta().uid, &cached.meta().resource_version) else { return cached };
        match map.get(uid) {
            Some(last) if last.replaced.contains(version) => last.object.clone(),
            // The cache has caught up: this version is the written one or follows it.
            Some(_) => {
                map.remove(uid);
                cached
            }
            None => cached,
        }
    }

    /// Notes that `old` was replaced by `new`.
    pub fn put(&self, old: &K, new: K) -> Arc<K> {
        let new = Arc::new(new);
        if let (Some(uid), Some(version)) = (&old.meta().uid, &old.meta().resource_version) {
            let mut map = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let last =
                map.entry(uid.clone()).or_insert_with(|| Last { replaced: BTreeSet::new(), object: new.clone() });
            last.replaced.insert(version.clone());
            last.object = new.clone();
        }
        new
    }

    /// Forgets an object: it is gone, or a write to it was refused and the cache must speak.
    pub fn forget(&self, uid: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(uid);
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::ConfigMap;

    use super::*;

    fn version(text: &str) -> ConfigMap {
        let mut object = ConfigMap::default();
        object.metadata.uid = Some("u".into());
        object.metadata.resource_version = Some(text.into());
        object
    }

    /// Two writes may land before the watch shows the first: the round must not step back.
    #[test]
    fn a_cache_that_lags_by_two_writes_is_not_believed() {
        let written = Written::default();
        let seen = |text: &str| written.newest(Arc::new(version(text))).metadata.resource_version.clone().unwrap();
        assert_eq!(seen("1"), "1");
        written.put(&version("1"), version("2"));
        written.put(&version("2"), version("3"));
        assert_eq!((seen("1").as_str(), seen("2").as_str()), ("3", "3"));
        assert_eq!(seen("3"), "3");
        // Caught up: someone else's later write is believed.
        assert_eq!(seen("4"), "4");
        written.put(&version("4"), version("5"));
        written.forget("u");
        assert_eq!(seen("4"), "4");
    }
}
