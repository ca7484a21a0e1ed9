//! Watching the API server into caches, and saying what a change concerns.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use consilium_crds::{Kind, Unread, Watched};
use futures::StreamExt;
use kube::Api;
use kube::runtime::WatchStreamExt;
use kube::runtime::reflector::store::Writer;
use kube::runtime::reflector::{ObjectRef, Store};
use kube::runtime::watcher::{self, Event, watcher};
use tokio_util::sync::CancellationToken;

/// What happened to one object.
pub enum Change<K> {
    /// It is new, changed or listed again.
    Touched(Arc<K>),
    /// It is gone.
    Gone(Arc<K>),
}

/// What a watch brings.
pub enum Seen<K> {
    /// An object that was read.
    Read(Change<K>),
    /// An object that is there and cannot be read; the cache shows nothing of it, and nothing of what it was before.
    Unread(Unread),
    /// An object that could not be read is gone.
    UnreadGone(Unread),
    /// So many objects cannot be read.
    Count(usize),
}

/// Keeps a cache current until `shutdown`, and calls `on` after the cache shows each change.
pub async fn follow<K: Kind>(
    api: Api<Watched<K>>,
    config: watcher::Config,
    writer: Writer<K>,
    mut on: impl FnMut(Seen<K>) + Send,
    shutdown: CancellationToken,
) {
    let events = watcher(api, config).default_backoff().take_until(shutdown.cancelled_owned());
    let mut events = std::pin::pin!(events);
    let mut sorter = Sorter { reader: writer.as_reader(), writer, unread: BTreeMap::new(), before: Vec::new() };
    while let Some(event) = events.next().await {
        match event {
            Ok(event) => sorter.take(event).into_iter().for_each(&mut on),
            Err(error) => {
                tracing::warn!(kind = %K::kind(&()), %error, "watch interrupted; it is taken up again");
            }
        }
    }
}

/// Sorts what was read into the cache, and keeps what was not apart, by UID.
struct Sorter<K: Kind> {
    reader: Store<K>,
    writer: Writer<K>,
    unread: BTreeMap<String, Unread>,
    /// What the cache held before it was listed anew: a watch that was broken has missed what was deleted meanwhile.
    before: Vec<Arc<K>>,
}

impl<K: Kind> Sorter<K> {
    fn take(&mut self, event: Event<Watched<K>>) -> Vec<Seen<K>> {
        let before = self.unread.len();
        let mut seen = match event {
            Event::Apply(Watched(Ok(object))) => {
                self.unread.remove(uid(object.meta().uid.as_deref()));
                self.writer.apply_watcher_event(&Event::Apply(object.clone()));
                vec![Seen::Read(Change::Touched(Arc::new(object)))]
            }
            Event::Delete(Watched(Ok(object))) => {
                self.unread.remove(uid(object.meta().uid.as_deref()));
                self.writer.apply_watcher_event(&Event::Delete(object.clone()));
                vec![Seen::Read(Change::Gone(Arc::new(object)))]
            }
            Event::Apply(Watched(Err(unread))) => {
                self.drop_known(&unread);
                self.keep(&unread);
                vec![Seen::Unread(unread)]
            }
            Event::Delete(Watched(Err(unread))) => {
                self.drop_known(&unread);
                self.unread.remove(uid(unread.metadata.uid.as_deref()));
                vec![Seen::UnreadGone(unread)]
            }
            Event::Init => {
                self.unread.clear();
                self.before = self.reader.state();
                self.writer.apply_watcher_event(&Event::Init);
                return Vec::new();
            }
            Event::InitApply(Watched(Ok(object))) => {
                self.writer.apply_watcher_event(&Event::InitApply(object));
                return Vec::new();
            }
            Event::InitApply(Watched(Err(unread))) => {
                self.keep(&unread);
                return Vec::new();
            }
            Event::InitDone => {
                self.writer.apply_watcher_event(&Event::InitDone);
                let now = self.reader.state();
                let mut gone = missing(std::mem::take(&mut self.before), &now);
                // One that can no longer be read is still there.
                gone.retain(|object| !self.unread.contains_key(uid(object.meta().uid.as_deref())));
                let read = now.into_iter().map(|object| Seen::Read(Change::Touched(object)));
                let gone = gone.into_iter().map(|object| Seen::Read(Change::Gone(object)));
                let unread = self.unread.values().cloned().map(Seen::Unread);
                read.chain(gone).chain(unread).chain([Seen::Count(self.unread.len())]).collect()
            }
        };
        if self.unread.len() != before {
            seen.push(Seen::Count(self.unread.len()));
        }
        seen
    }

    fn keep(&mut self, unread: &Unread) {
        self.unread.insert(uid(unread.metadata.uid.as_deref()).to_owned(), unread.clone());
    }

    /// What it was before it was changed into something that cannot be read holds no more.
    fn drop_known(&mut self, unread: &Unread) {
        let name = unread.metadata.name.as_deref().unwrap_or_default();
        let mut key = ObjectRef::<K>::new(name);
        if let Some(namespace) = &unread.metadata.namespace {
            key = key.within(namespace);
        }
        if let Some(known) = self.reader.get(&key) {
            self.writer.apply_watcher_event(&Event::Delete(Arc::unwrap_or_clone(known)));
        }
    }
}

/// The objects that are not among those that there are now: another one of the same name is another object.
fn missing<K: Kind>(before: Vec<Arc<K>>, now: &[Arc<K>]) -> Vec<Arc<K>> {
    let uids: HashSet<Option<&str>> = now.iter().map(|object| object.meta().uid.as_deref()).collect();
    before.into_iter().filter(|object| !uids.contains(&object.meta().uid.as_deref())).collect()
}

fn uid(uid: Option<&str>) -> &str {
    uid.unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use consilium_crds::TrustSite;
    use kube::runtime::reflector::store;
    use serde_json::json;

    use super::*;

    fn watched(name: &str, accepted: serde_json::Value) -> Watched<TrustSite> {
        let object = json!({"apiVersion": "consilium.health/v1alpha1", "kind": "TrustSite",
            "metadata": {"name": name, "uid": name, "managedFields": [{"manager": "x"}]}, "spec": {"accepted": accepted}});
        serde_json::from_value(object).unwrap()
    }

    fn told(seen: &[Seen<TrustSite>]) -> Vec<String> {
        let name = |meta: &kube::api::ObjectMeta| meta.name.clone().unwrap_or_default();
        let word = |seen: &Seen<TrustSite>| match seen {
            Seen::Read(Change::Touched(site)) => format!("{} is", name(&site.metadata)),
            Seen::Read(Change::Gone(site)) => format!("{} was", name(&site.metadata)),
            Seen::Unread(unread) => format!("{}?", name(&unread.metadata)),
            Seen::UnreadGone(unread) => format!("{}? was", name(&unread.metadata)),
            Seen::Count(unread) => unread.to_string(),
        };
        seen.iter().map(word).collect()
    }

    /// One object that cannot be read must not blind the hub to all others, in the list and in the watch; and what it
    /// was before somebody broke it must not be acted on for ever.
    #[test]
    fn an_object_that_does_not_parse_is_left_out_alone() {
        let (reader, writer) = store::<TrustSite>();
        let mut sorter = Sorter { reader: reader.clone(), writer, unread: BTreeMap::new(), before: Vec::new() };
        let mut take = |event| told(&sorter.take(event));
        let names = || {
            let mut names: Vec<String> = reader.state().iter().filter_map(|s| s.metadata.name.clone()).collect();
            names.sort();
            names
        };
        for event in
            [Event::Init, Event::InitApply(watched("a", json!(true))), Event::InitApply(watched("b", json!("?")))]
        {
            assert!(take(event).is_empty());
        }
        assert_eq!(take(Event::InitDone), ["a is", "b?", "1"]);
        assert_eq!(names(), ["a"]);
        assert_eq!(take(Event::Apply(watched("c", json!(true)))), ["c is"]);
        assert_eq!(take(Event::Apply(watched("a", json!(3)))), ["a?", "2"]);
        assert_eq!(names(), ["c"]);
        assert_eq!(take(Event::Apply(watched("b", json!(false)))), ["b is", "1"]);
        assert_eq!(take(Event::Delete(watched("a", json!(3)))), ["a? was", "0"]);
        assert_eq!(take(Event::Delete(watched("b", json!(false)))), ["b was"]);
        assert_eq!(names(), ["c"]);
        assert!(reader.state()[0].metadata.managed_fields.is_none());
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

    /// While all are listed anew: what was deleted is gone, and one that can no longer be read is there, and says so.
    #[test]
    fn an_object_that_no_longer_parses_is_not_gone() {
        let (reader, writer) = store::<TrustSite>();
        let mut sorter = Sorter { reader, writer, unread: BTreeMap::new(), before: Vec::new() };
        for name in ["a", "b"] {
            sorter.take(Event::Apply(watched(name, json!(true))));
        }
        sorter.take(Event::Init);
        sorter.take(Event::InitApply(watched("a", json!("?"))));
        assert_eq!(told(&sorter.take(Event::InitDone)), ["b was", "a?", "1"]);
    }
}
