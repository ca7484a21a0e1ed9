//! Watching the API server into caches, and saying what a change concerns.

use std::collections::HashSet;
use std::fmt::Debug;
use std::hash::Hash;
use std::sync::Arc;

use futures::StreamExt;
use kube::core::DeserializeGuard;
use kube::runtime::WatchStreamExt;
use kube::runtime::reflector::store::Writer;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use tokio_util::sync::CancellationToken;

/// What happened to one object.
pub enum Change<K> {
    /// It is new, changed or listed again.
    Touched(Arc<K>),
    /// It is gone.
    Gone(Arc<K>),
}

/// Keeps a cache current until `shutdown`, and calls `on` after the cache shows each change.
///
/// An object that does not parse (written by another version of the schema) is logged and left out: it must not
/// stop the watch of all others.
pub async fn follow<K>(
    api: Api<DeserializeGuard<K>>,
    config: watcher::Config,
    mut writer: Writer<K>,
    mut on: impl FnMut(Change<K>) + Send,
    shutdown: CancellationToken,
) where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
    K::DynamicType: Eq + Hash + Clone,
{
    let reader = writer.as_reader();
    let events = watcher(api, config).default_backoff().take_until(shutdown.cancelled_owned());
    let mut events = std::pin::pin!(events);
    // What the cache held before it was listed anew: a watch that was broken has missed what was deleted meanwhile.
    let mut before: Vec<Arc<K>> = Vec::new();
    while let Some(event) = events.next().await {
        let event = match event {
            Ok(event) => event,
            Err(error) => {
                tracing::warn!(kind = %K::kind(&()), %error, "watch interrupted; it is taken up again");
                continue;
            }
        };
        let Some(event) = sift(event, &before) else { continue };
        if matches!(event, Event::Init) {
            before = reader.state();
        }
        writer.apply_watcher_event(&event);
        match event {
            Event::Apply(object) => on(Change::Touched(Arc::new(object))),
            Event::Delete(object) => on(Change::Gone(Arc::new(object))),
            Event::InitDone => {
                reader.state().into_iter().for_each(|object| on(Change::Touched(object)));
                let gone = missing(std::mem::take(&mut before), &reader.state());
                gone.into_iter().for_each(|object| on(Change::Gone(object)));
            }
            Event::Init | Event::InitApply(_) => {}
        }
    }
}

/// The objects that are not among those that there are now: another one of the same name is another object.
fn missing<K: Resource<DynamicType = ()>>(before: Vec<Arc<K>>, now: &[Arc<K>]) -> Vec<Arc<K>> {
    let uids: HashSet<Option<&str>> = now.iter().map(|object| object.meta().uid.as_deref()).collect();
    before.into_iter().filter(|object| !uids.contains(&object.meta().uid.as_deref())).collect()
}

/// Leaves out what does not parse, and what only costs memory.
///
/// While all are listed anew, what was known before (`before`) stands in for one that no longer parses: it is not gone.
fn sift<K: Resource<DynamicType = ()> + Clone>(
    event: Event<DeserializeGuard<K>>,
    before: &[Arc<K>],
) -> Option<Event<K>> {
    let keep = |guard: DeserializeGuard<K>| match guard.0 {
        Ok(mut object) => {
            object.managed_fields_mut().clear();
            Some(object)
        }
        Err(invalid) => {
            tracing::error!(
                kind = %K::kind(&()),
                namespace = invalid.metadata.namespace,
                name = invalid.metadata.name,
                error = invalid.error,
                "an object does not fit the schema that this version knows and is left out; correct or delete it"
            );
            let known = before.iter().find(|known| known.meta().uid == invalid.metadata.uid);
            known.map(|known| (**known).clone())
        }
    };
    Some(match event {
        Event::Apply(guard) => Event::Apply(keep(guard)?),
        Event::Delete(guard) => Event::Delete(keep(guard)?),
        Event::InitApply(guard) => Event::InitApply(keep(guard)?),
        Event::Init => Event::Init,
        Event::InitDone => Event::InitDone,
    })
}

#[cfg(test)]
mod tests {
    use consilium_crds::TrustSite;
    use kube::runtime::reflector::store;
    use serde_json::json;

    use super::*;

    fn guard(spec: serde_json::Value) -> DeserializeGuard<TrustSite> {
        let object = json!({"apiVersion": "consilium.health/v1alpha1", "kind": "TrustSite",
            "metadata": {"name": "alder", "managedFields": [{"manager": "x"}]}, "spec": spec});
        serde_json::from_value(object).unwrap()
    }

    /// One object of a foreign schema version must not blind the hub to all others.
    #[test]
    fn an_object_that_does_not_parse_is_left_out() {
        assert!(sift(Event::InitApply(guard(json!({"accepted": "perhaps"}))), &[]).is_none());
        let (reader, mut writer) = store::<TrustSite>();
        writer.apply_watcher_event(&sift(Event::Apply(guard(json!({"accepted": true}))), &[]).unwrap());
        let kept = &reader.state()[0];
        assert!(kept.spec.accepted && kept.metadata.managed_fields.as_ref().is_none_or(Vec::is_empty));
    }

    fn site(name: &str, uid: &str) -> Arc<TrustSite> {
        let mut site = TrustSite::new(name, consilium_crds::TrustSiteSpec::default());
        site.metadata.uid = Some(uid.into());
        Arc::new(site)
    }

    /// A hospital that was deleted while the watch was broken must lose its access now, not at the next restart; also when it
    /// was the only one, and when another one took its name.
    #[test]
    fn what_was_deleted_unseen_is_gone() {
        let before = vec![site("alder", "1"), site("birch", "2")];
        let names =
            |gone: Vec<Arc<TrustSite>>| gone.iter().map(|s| s.metadata.uid.clone().unwrap()).collect::<Vec<_>>();
        assert_eq!(names(missing(before.clone(), &[])), ["1", "2"]);
        assert_eq!(names(missing(before.clone(), &[site("alder", "1"), site("birch", "3")])), ["2"]);
        assert!(missing(before.clone(), &before).is_empty());
    }

    /// One that can no longer be read is still there: what it asked for goes on until someone corrects or deletes it.
    #[test]
    fn an_object_that_no_longer_parses_is_not_gone() {
        let mut invalid = guard(json!({"accepted": "perhaps"}));
        if let Err(error) = &mut invalid.0 {
            error.metadata.uid = Some("1".into());
        }
        let kept = sift(Event::InitApply(invalid), &[site("alder", "1")]);
        assert!(matches!(kept, Some(Event::InitApply(site)) if site.metadata.uid.as_deref() == Some("1")));
    }
}
