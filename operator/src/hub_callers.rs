//! Which hospitals may call: those that their TrustSites let in and for which one agent speaks. And what their clocks show.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use consilium_federation::SiteName;
use consilium_federation::clock::OtherClock;
use jiff::Timestamp;
use tokio::sync::watch;

use super::{Hub, lock};

impl Hub {
    /// Replaces the set of hospitals that may call. One that is no longer in it is cut off at once, and what it
    /// said is forgotten.
    pub fn set_accepted(&self, accepted: BTreeSet<SiteName>) {
        *lock(&self.0.admitted) = accepted;
        self.admit();
        self.0.knows_accepted.store(true, Ordering::Relaxed);
    }

    /// Those that the TrustSites let in, but for hospitals for which two agents speak.
    fn admit(&self) {
        let admitted = lock(&self.0.admitted);
        let mut accepted = admitted.clone();
        let two: Vec<SiteName> = {
            let sites = self.sites();
            let two = accepted.iter().filter(|name| sites.get(*name).is_some_and(|s| s.instances.trouble().is_some()));
            two.cloned().collect()
        };
        accepted.retain(|name| !two.contains(name));
        let revoked: Vec<SiteName> = self.0.accepted.borrow().difference(&accepted).cloned().collect();
        // What the series say follows from what is known now, not from what has just changed.
        for site in self.sites().keys().filter(|site| !admitted.contains(*site)) {
            self.0.metrics.forget_site(site);
        }
        for site in admitted.iter() {
            self.0.metrics.two_agents(site, two.contains(site));
        }
        let changed = self.0.accepted.send_if_modified(|known| {
            let differs = **known != accepted;
            if differs {
                *known = Arc::new(accepted);
            }
            differs
        });
        if !changed {
            return;
        }
        self.0.metrics.accepted(self.0.accepted.borrow().len());
        // A series for each, or an alert could not tell a hospital that is away from one that there never was.
        for site in self.0.accepted.borrow().iter() {
            self.0.metrics.connected(site, self.connected(site));
        }
        for site in revoked {
            if let Some(entry) = self.sites().get_mut(&site) {
                entry.report = None;
                entry.last_contact = None;
                // It is measured anew when it is let in again.
                entry.clock = OtherClock::Unheard;
            }
            self.0.metrics.forget_site(&site);
            if two.contains(&site) {
                self.0.metrics.two_agents(&site, true);
            }
            self.changed(&site);
        }
    }

    /// Notes that an agent of this name called for a hospital. A second one beside the first, and its end, decide at once
    /// whether the hospital may call.
    pub fn hear_instance(&self, site: &SiteName, instance: &str, now: Timestamp) {
        let (changed, trouble) = {
            let mut sites = self.sites();
            let instances = &mut sites.entry(site.clone()).or_default().instances;
            (instances.hear(instance, now), instances.trouble())
        };
        self.judged(site, changed, trouble.as_deref());
    }

    /// Looks whether two agents that spoke for a hospital are both gone: nobody's call says so.
    pub fn settle_instances(&self, site: &SiteName, now: Timestamp) {
        let (changed, trouble) = {
            let mut sites = self.sites();
            let Some(known) = sites.get_mut(site) else { return };
            (known.instances.settle(now), known.instances.trouble())
        };
        self.judged(site, changed, trouble.as_deref());
    }

    fn judged(&self, site: &SiteName, changed: bool, trouble: Option<&str>) {
        if !changed {
            return;
        }
        match trouble {
            Some(words) => tracing::error!(%site, words, "a hospital has two agents"),
            None => tracing::warn!(%site, "a hospital has one agent again"),
        }
        self.admit();
        self.changed(site);
    }

    /// Since when certificates of a hospital must have been issued, for hospitals that say so: what was issued before is
    /// in the wrong hands.
    pub fn set_issued_since(&self, since: BTreeMap<SiteName, Timestamp>) {
        *lock(&self.0.issued_since) = since;
    }

    /// The same of one hospital.
    pub fn issued_since(&self, site: &SiteName) -> Option<Timestamp> {
        lock(&self.0.issued_since).get(site).copied()
    }

    /// Why a hospital may not call although its TrustSite lets it in: two agents speak for it.
    pub fn two_agents(&self, site: &SiteName) -> Option<String> {
        self.sites().get(site).and_then(|site| site.instances.trouble())
    }

    /// Notes what a hospital said of its clock.
    pub fn hear_clock(&self, site: &SiteName, theirs: Option<Timestamp>, now: Timestamp) {
        let clock = {
            let mut sites = self.sites();
            let known = &mut sites.entry(site.clone()).or_default().clock;
            let before = *known;
            *known = before.after(theirs, now);
            (*known != before).then_some(*known)
        };
        if let Some(OtherClock::Ahead(by)) = clock {
            self.0.metrics.clock_ahead(site, by);
            self.changed(site);
        }
    }

    /// What is known of a hospital's clock.
    pub fn clock(&self, site: &SiteName) -> OtherClock {
        self.sites().get(site).map(|site| site.clock).unwrap_or_default()
    }

    /// Whether a hospital may call.
    pub fn is_accepted(&self, site: &SiteName) -> bool {
        self.0.accepted.borrow().contains(site)
    }

    /// Whether it is known yet who may call: a hub that has just started must not tell a hospital that it may not.
    pub fn knows_accepted(&self) -> bool {
        self.0.knows_accepted.load(Ordering::Relaxed)
    }

    /// The accepted hospitals as they change.
    pub fn accepted(&self) -> watch::Receiver<Arc<BTreeSet<SiteName>>> {
        self.0.accepted.subscribe()
    }
}
