//! What every hospital is asked to do, kept by piece of work, so that one change touches only the hospitals that it
//! concerns. Pure; the shell publishes what [`Book::set`] says has changed.
//!
//! Nothing of it is written down but the tombstones of objects that are gone (in the store): after a restart it is made
//! again from the objects, and every tombstone is sent once more, which hospitals answer by no longer listing the work.

use std::collections::{BTreeMap, BTreeSet};

use consilium_federation::SiteName;
use consilium_federation::assignment::{Item, ItemState};
use consilium_federation::report::Report;

/// Items that one hospital's list holds, as long as its work leaves room: far below what a hospital takes, and what one
/// message may weigh.
const LISTED: usize = 4000;

/// Whose work an item is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Owner {
    /// A TrainingRound.
    Round {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
    },
    /// A ModelPromotion.
    Promotion {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
    },
    /// Nobody's any more: the object is gone, and the tombstone stays until its hospital has heard it.
    Buried,
}

#[derive(Clone, Debug)]
struct Slot {
    item: Item,
    owner: Owner,
    /// Revision of the assignment that first held the tombstone.
    sent: Option<u64>,
}

/// The work of all hospitals.
#[derive(Debug, Default)]
pub struct Book {
    sites: BTreeMap<SiteName, BTreeMap<String, Slot>>,
    acknowledged: BTreeMap<String, BTreeSet<SiteName>>,
}

impl Book {
    /// Replaces the items of one piece of work. Answers which hospitals' lists changed.
    pub fn set(&mut self, uid: &str, owner: &Owner, mut items: BTreeMap<SiteName, Item>) -> BTreeSet<SiteName> {
        let mut changed = BTreeSet::new();
        for (site, slots) in &mut self.sites {
            if slots.get(uid).is_some_and(|slot| slot.owner == Owner::Buried) {
                items.remove(site);
                continue;
            }
            match items.remove(site) {
                Some(item) => match slots.get_mut(uid) {
                    Some(slot) if slot.item == item => {}
                    Some(slot) => {
                        let sent = slot.sent.filter(|_| item.state == ItemState::Cancelled);
                        *slot = Slot { item, owner: owner.clone(), sent };
                        changed.insert(site.clone());
                    }
                    None => {
                        slots.insert(uid.to_owned(), Slot { item, owner: owner.clone(), sent: None });
                        changed.insert(site.clone());
                    }
                },
                None => {
                    if slots.remove(uid).is_some() {
                        changed.insert(site.clone());
                    }
                }
            }
        }
        for (site, item) in items {
            let slot = Slot { item, owner: owner.clone(), sent: None };
            self.sites.entry(site.clone()).or_default().insert(uid.to_owned(), slot);
            changed.insert(site);
        }
        self.sites.retain(|_, slots| !slots.is_empty());
        changed
    }

    /// Replaces the items of some hospitals for one piece of work and leaves those of all others as they are. Answers which
    /// hospitals' lists changed.
    pub fn lower(&mut self, uid: &str, owner: &Owner, items: BTreeMap<SiteName, Item>) -> BTreeSet<SiteName> {
        let mut all: BTreeMap<SiteName, Item> = (self.sites.iter())
            .filter_map(|(site, slots)| Some((site.clone(), slots.get(uid)?.item.clone())))
            .collect();
        all.extend(items);
        self.set(uid, owner, all)
    }

    /// Tombstones for all hospitals that a piece of work was given to, whatever it was.
    pub fn tombstones(&self, uid: &str) -> BTreeMap<SiteName, Item> {
        let slots = self.sites.iter().filter_map(|(site, slots)| Some((site, slots.get(uid)?)));
        let open = slots.filter(|(_, slot)| slot.owner != Owner::Buried);
        open.map(|(site, slot)| (site.clone(), Item { state: ItemState::Cancelled, ..slot.item.clone() })).collect()
    }

    /// Forgets a piece of work whose object is gone. Answers which hospitals' lists changed.
    pub fn remove(&mut self, uid: &str) -> BTreeSet<SiteName> {
        self.acknowledged.remove(uid);
        let mut changed = BTreeSet::new();
        for (site, slots) in &mut self.sites {
            if slots.get(uid).is_some_and(|slot| slot.owner != Owner::Buried) {
                slots.remove(uid);
                changed.insert(site.clone());
            }
        }
        self.sites.retain(|_, slots| !slots.is_empty());
        changed
    }

    /// Keeps a hospital's tombstone beyond its object. Answers whether its list changed.
    pub fn bury(&mut self, site: &SiteName, item: Item) -> bool {
        let slots = self.sites.entry(site.clone()).or_default();
        let known = slots.get(&item.uid).filter(|slot| slot.item == item);
        let (changed, sent) = (known.is_none(), known.and_then(|slot| slot.sent));
        slots.insert(item.uid.clone(), Slot { item, owner: Owner::Buried, sent });
        changed
    }

    /// Forgets buried tombstones that this hospital has acknowledged; answers their UIDs.
    pub fn lay_to_rest(&mut self, site: &SiteName, acknowledged: &[String]) -> Vec<String> {
        let Some(slots) = self.sites.get_mut(site) else { return Vec::new() };
        let buried = |uid: &&String| slots.get(*uid).is_some_and(|slot| slot.owner == Owner::Buried);
        let rested: Vec<String> = acknowledged.iter().filter(buried).cloned().collect();
        slots.retain(|uid, _| !rested.contains(uid));
        self.sites.retain(|_, slots| !slots.is_empty());
        for uid in &rested {
            if let Some(sites) = self.acknowledged.get_mut(uid) {
                sites.remove(site);
            }
        }
        self.acknowledged.retain(|_, sites| !sites.is_empty());
        rested
    }

    /// One hospital's list, sorted by UID: all work, and as many tombstones as there is room for. The others follow when
    /// those are heard: a hospital that was away for a year must not get a list that it refuses.
    pub fn items(&self, site: &SiteName) -> Vec<Item> {
        let slots = || self.sites.get(site).into_iter().flat_map(BTreeMap::values);
        let is_tombstone = |slot: &&Slot| slot.item.state == ItemState::Cancelled;
        let work = slots().filter(|slot| !is_tombstone(slot)).count();
        // What went out stays in, or the hospital would be thought to have acknowledged what it was not told.
        let (sent, fresh): (Vec<&Slot>, Vec<&Slot>) =
            slots().filter(is_tombstone).partition(|slot| slot.sent.is_some());
        let room = LISTED.saturating_sub(work);
        let told: BTreeSet<&str> =
            sent.into_iter().chain(fresh).take(room).map(|slot| slot.item.uid.as_str()).collect();
        let listed = |slot: &&Slot| !is_tombstone(slot) || told.contains(slot.item.uid.as_str());
        slots().filter(listed).map(|slot| slot.item.clone()).collect()
    }

    /// Notes the revision in which this list of the hospital went out.
    pub fn sent(&mut self, site: &SiteName, items: &[Item], revision: u64) {
        let Some(slots) = self.sites.get_mut(site) else { return };
        for item in items.iter().filter(|item| item.state == ItemState::Cancelled) {
            if let Some(slot) = slots.get_mut(&item.uid).filter(|slot| slot.sent.is_none()) {
                slot.sent = Some(revision);
            }
        }
    }

    /// Takes note of a report; answers the UIDs whose tombstones it acknowledges: the hospital works from an
    /// assignment that holds the tombstone, and no longer lists the work.
    pub fn heard(&mut self, site: &SiteName, report: &Report, epoch: &str) -> Vec<String> {
        if report.hub_epoch != epoch {
            return Vec::new();
        }
        let listed =
            |uid: &str| report.rounds.iter().any(|r| r.uid == uid) || report.deployments.iter().any(|d| d.uid == uid);
        let settled: Vec<String> = self
            .sites
            .get(site)
            .into_iter()
            .flatten()
            .filter(|(uid, slot)| slot.sent.is_some_and(|sent| sent <= report.revision) && !listed(uid))
            .map(|(uid, _)| uid.clone())
            .collect();
        for uid in &settled {
            self.acknowledged.entry(uid.clone()).or_default().insert(site.clone());
        }
        settled
    }

    /// The hospitals that have acknowledged the tombstone of this work.
    pub fn acknowledged(&self, uid: &str) -> BTreeSet<SiteName> {
        self.acknowledged.get(uid).cloned().unwrap_or_default()
    }

    /// The hospitals that hold a tombstone of this work beyond its object, or beside it.
    pub fn buried(&self, uid: &str) -> BTreeSet<SiteName> {
        let buried = |slots: &BTreeMap<String, Slot>| slots.get(uid).is_some_and(|slot| slot.owner == Owner::Buried);
        self.sites.iter().filter(|(_, slots)| buried(slots)).map(|(site, _)| site.clone()).collect()
    }

    /// The work was taken up again: earlier acknowledgements, and a tombstone that was not heard yet, mean nothing.
    pub fn revive(&mut self, uid: &str, site: &SiteName) {
        if let Some(slots) = self.sites.get_mut(site) {
            slots.retain(|key, slot| key != uid || slot.owner != Owner::Buried);
        }
        if let Some(sites) = self.acknowledged.get_mut(uid) {
            sites.remove(site);
        }
    }

    /// Whose work stands in this hospital's list, of the pieces of work that `which` names.
    pub fn owners(&self, site: &SiteName, which: impl Fn(&str) -> bool) -> BTreeSet<Owner> {
        let slots = self.sites.get(site).into_iter().flatten();
        slots.filter(|(uid, _)| which(uid)).map(|(_, slot)| slot.owner.clone()).collect()
    }

    /// The hospitals with anything to do.
    pub fn sites(&self) -> BTreeSet<SiteName> {
        self.sites.keys().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use consilium_federation::Digest;
    use consilium_federation::assignment::{DeployWork, Work};
    use consilium_federation::ladder::Stage;
    use consilium_federation::report::{DeployReport, RolloutReason};

    use super::*;

    fn site(name: &str) -> SiteName {
        name.parse().unwrap()
    }

    fn owner() -> Owner {
        Owner::Promotion { namespace: "research".into(), name: "p".into() }
    }

    fn item(uid: &str, state: ItemState) -> Item {
        let work = DeployWork {
            release: "r".into(),
            release_digest: Digest::of(b"r"),
            model: Digest::of(b"m"),
            stage: Stage::Shadow,
            approvals: vec![],
            plan: None,
            stage_approvals: Vec::new(),
        };
        Item { uid: uid.into(), state, work: Work::Deploy(work) }
    }

    fn items(uid: &str, state: ItemState, sites: &[&str]) -> BTreeMap<SiteName, Item> {
        sites.iter().map(|s| (site(s), item(uid, state))).collect()
    }

    fn report(epoch: &str, revision: u64, listed: &[&str]) -> Report {
        let deployment = |uid: &&str| DeployReport {
            uid: (*uid).into(),
            reason: RolloutReason::Serving,
            serving: None,
            stage: None,
            message: None,
        };
        Report {
            hub_epoch: epoch.into(),
            revision,
            agent_version: String::new(),
            rosters: vec![],
            ledger: None,
            rounds: vec![],
            deployments: listed.iter().map(deployment).collect(),
        }
    }

    fn sent(book: &mut Book, site: &SiteName, revision: u64) {
        let items = book.items(site);
        book.sent(site, &items, revision);
    }

    fn names(sites: &BTreeSet<SiteName>) -> Vec<&str> {
        sites.iter().map(SiteName::as_str).collect()
    }

    /// A hospital that never came, while studies ran for years, must not be cut off by a list that it refuses; it hears all
    /// tombstones, some at a time, and its work at once.
    #[test]
    fn more_tombstones_than_a_list_holds_are_heard_some_at_a_time() {
        let (mut book, alder) = (Book::default(), site("alder"));
        for n in 0..2 * LISTED {
            book.bury(&alder, item(&format!("u-{n:06}"), ItemState::Cancelled));
        }
        book.set("work", &owner(), items("work", ItemState::Active, &["alder"]));
        let mut heard = 0;
        for revision in 1.. {
            let list = book.items(&alder);
            assert!(list.len() <= LISTED && list.iter().any(|item| item.uid == "work"));
            if list.len() == 1 {
                break;
            }
            sent(&mut book, &alder, revision);
            assert_eq!(book.items(&alder), list, "what went out stays");
            let settled = book.heard(&alder, &report("e", revision, &["work"]), "e");
            heard += book.lay_to_rest(&alder, &settled).len();
        }
        assert_eq!(heard, 2 * LISTED);
    }

    /// What is taken back from some goes out at once; what the others serve is not touched by it.
    #[test]
    fn lowering_leaves_everyone_else_as_they_are() {
        let mut book = Book::default();
        book.set("u", &owner(), items("u", ItemState::Active, &["alder", "birch"]));
        let changed = book.lower("u", &owner(), items("u", ItemState::Cancelled, &["birch"]));
        assert_eq!(names(&changed), ["birch"]);
        assert_eq!(book.items(&site("alder"))[0].state, ItemState::Active);
        // A hub that has restarted holds nothing yet.
        let mut book = Book::default();
        assert_eq!(names(&book.lower("u", &owner(), items("u", ItemState::Cancelled, &["birch"]))), ["birch"]);
    }

    /// A hospital that is named again before it heard that it was not is asked again.
    #[test]
    fn a_tombstone_beside_its_object_makes_way_for_new_work() {
        let mut book = Book::default();
        book.bury(&site("alder"), item("u", ItemState::Cancelled));
        assert_eq!(names(&book.buried("u")), ["alder"]);
        book.revive("u", &site("alder"));
        book.set("u", &owner(), items("u", ItemState::Active, &["alder"]));
        assert_eq!(book.items(&site("alder"))[0].state, ItemState::Active);
        assert!(book.buried("u").is_empty());
    }

    #[test]
    fn only_hospitals_whose_list_changed_are_published_to() {
        let mut book = Book::default();
        let active = |sites: &[&str]| items("u", ItemState::Active, sites);
        assert_eq!(names(&book.set("u", &owner(), active(&["alder", "birch"]))), ["alder", "birch"]);
        assert_eq!(names(&book.set("u", &owner(), active(&["alder", "birch"]))), [""; 0]);
        assert_eq!(names(&book.set("u", &owner(), active(&["birch", "cedar"]))), ["alder", "cedar"]);
        assert!(book.items(&site("alder")).is_empty());
        assert_eq!(names(&book.remove("u")), ["birch", "cedar"]);
    }

    /// A cancelled task that its hospital has not heard of yet would run to its deadline as an orphan.
    #[test]
    fn a_tombstone_stays_until_a_report_from_an_assignment_that_held_it() {
        let mut book = Book::default();
        let alder = site("alder");
        book.set("u", &owner(), items("u", ItemState::Active, &["alder"]));
        sent(&mut book, &alder, 7);
        // Active work is never acknowledged away, even if the hospital does not list it yet.
        assert!(book.heard(&alder, &report("e", 7, &[]), "e").is_empty());
        book.set("u", &owner(), items("u", ItemState::Cancelled, &["alder"]));
        // Not published yet: no report can speak of it.
        assert!(book.heard(&alder, &report("e", 99, &[]), "e").is_empty());
        sent(&mut book, &alder, 8);
        sent(&mut book, &alder, 9);
        for (epoch, revision, listed) in [("e", 7, &[][..]), ("e", 8, &["u"]), ("lost", 8, &[])] {
            assert!(book.heard(&alder, &report(epoch, revision, listed), "e").is_empty(), "{epoch} {revision}");
        }
        assert_eq!(book.heard(&alder, &report("e", 8, &[]), "e"), ["u"]);
        assert_eq!(names(&book.acknowledged("u")), ["alder"]);
        book.revive("u", &alder);
        assert!(book.acknowledged("u").is_empty());
    }

    /// A hospital that was offline while a promotion was deleted would serve the withdrawn model for ever.
    #[test]
    fn a_tombstone_outlives_its_object_until_its_hospital_has_heard_it() {
        let mut book = Book::default();
        let alder = site("alder");
        book.set("u", &owner(), items("u", ItemState::Cancelled, &["alder", "birch"]));
        assert!(!book.bury(&alder, item("u", ItemState::Cancelled)), "it is on the list already");
        assert_eq!(names(&book.remove("u")), ["birch"]);
        // A turn of the controller that is late must not take it over.
        assert_eq!(names(&book.set("u", &owner(), BTreeMap::new())), [""; 0]);
        assert_eq!(book.items(&alder), [item("u", ItemState::Cancelled)]);
        sent(&mut book, &alder, 7);
        let early = book.heard(&alder, &report("e", 6, &[]), "e");
        assert_eq!(book.lay_to_rest(&alder, &early), [""; 0]);
        let heard = book.heard(&alder, &report("e", 7, &[]), "e");
        assert_eq!(book.lay_to_rest(&alder, &heard), ["u"]);
        assert!(book.items(&alder).is_empty() && book.acknowledged("u").is_empty());
        // A hub that has restarted takes it from the store, and it is news to the list.
        assert!(book.bury(&alder, item("u", ItemState::Cancelled)));
    }
}
