//! The ModelPromotion controller: offers a release at a stage to hospitals, and folds what they say of it.

pub mod decide;
#[cfg(test)]
mod health_tests;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use consilium_crds::{ClinicalPlan, ModelPromotion, ModelRelease};
use consilium_federation::SiteName;
use consilium_federation::report::DeployReport;
use jiff::{SignedDuration, Timestamp};
use kube::runtime::controller::Action;
use kube::runtime::reflector::ObjectRef;
use kube::{Api, ResourceExt};

use super::context::Context;
use super::error::Error;
use super::study::accept::{self, Sites};
use super::{finalizer, write};
use crate::driver::book::{Book, Owner};
use decide::{Facts, Plan};

/// How long hospitals may take to acknowledge that a promotion is gone.
const LINGER: SignedDuration = SignedDuration::from_secs(60);

/// What was read, owned.
struct Read {
    release: Option<Arc<ModelRelease>>,
    plan: Option<Arc<ClinicalPlan>>,
    sites: Sites,
    reports: BTreeMap<SiteName, DeployReport>,
    acknowledged: BTreeSet<SiteName>,
}

impl Read {
    fn facts<'a>(&'a self, promotion: &'a ModelPromotion) -> Facts<'a> {
        Facts {
            promotion,
            release: self.release.as_deref(),
            plan: self.plan.as_deref(),
            sites: &self.sites,
            reports: &self.reports,
            acknowledged: &self.acknowledged,
        }
    }
}

/// One turn of a promotion.
///
/// # Errors
/// See [`Error`].
pub async fn reconcile(cached: Arc<ModelPromotion>, context: Arc<Context>) -> Result<Action, Error> {
    let promotion = context.promotions_written.newest(cached);
    let uid = promotion.uid().ok_or_else(|| Error::Bug("a ModelPromotion without a UID".into()))?;
    let api: Api<ModelPromotion> = Api::namespaced(context.client.clone(), &promotion.namespace().unwrap_or_default());
    let read = read(&context, &promotion, &uid);
    let facts = read.facts(&promotion);
    let now = context.now();
    if promotion.metadata.deletion_timestamp.is_some() {
        return clean_up(&context, &api, &facts, &uid, now).await;
    }
    if !finalizer::is_on(&*promotion) {
        // Its change brings this object back here; nothing is offered before it can be taken back.
        finalizer::add(&api, &*promotion).await?;
        return Ok(Action::await_change());
    }
    let Plan { lowered, buried, items, status, notes } = decide::decide(&facts, now);
    // What is taken back waits for nothing: neither for a status that can be written nor for a volume with room.
    publish(&context, &promotion, |book, owner| book.lower(&uid, owner, lowered));
    context.bury(buried).await?;
    // The status names whom the offer goes to before it goes out: that is how a later turn knows whom to tell.
    if promotion.status.as_ref() != Some(&status) {
        let wanted = ModelPromotion { status: Some(status), ..(*promotion).clone() };
        let written = write::status(&api, &wanted).await;
        if written.is_err() {
            // Whatever the reason, the cache knows better than we do now.
            context.promotions_written.forget(&uid);
        }
        context.promotions_written.put(&promotion, written?);
        write::events(&context, &*promotion, notes).await;
    }
    if let Some(items) = items {
        let named: Vec<&SiteName> = items.keys().filter(|site| promotion.spec.sites.contains(site)).collect();
        let buried = context.book().buried(&uid);
        for site in buried.iter().filter(|site| named.contains(site)) {
            let gone = context.hub.store().forget_tombstone(site, &uid).await;
            gone.map_err(Error::store(format!("taking back a tombstone for {site}, which is named again")))?;
        }
        publish(&context, &promotion, |book, owner| {
            for site in &promotion.spec.sites {
                book.revive(&uid, site);
            }
            book.set(&uid, owner, items)
        });
    }
    Ok(Action::await_change())
}

/// Changes a promotion's work in the book, unless its object is gone, which takes its work out, or can no longer be read,
/// which leaves it as it is.
fn publish(
    context: &Context,
    promotion: &ModelPromotion,
    change: impl FnOnce(&mut Book, &Owner) -> BTreeSet<SiteName>,
) {
    let owner = owner(promotion);
    context.publish(|book| match Context::stands(&context.caches.promotions, promotion) {
        true => change(book, &owner),
        false => BTreeSet::new(),
    });
}

/// Whose work it is in the book.
pub fn owner(promotion: &ModelPromotion) -> Owner {
    Owner::Promotion { namespace: promotion.namespace().unwrap_or_default(), name: promotion.name_any() }
}

/// What hospitals were asked for before, or less, from the caches and the hub alone; the promotion's first turn asks for
/// the rest.
pub fn items_from_cache(
    context: &Context,
    promotion: &ModelPromotion,
) -> BTreeMap<SiteName, consilium_federation::assignment::Item> {
    let Some(uid) = promotion.uid() else { return BTreeMap::new() };
    let read = read(context, promotion, &uid);
    decide::lowered(&read.facts(promotion))
}

fn read(context: &Context, promotion: &ModelPromotion, uid: &str) -> Read {
    let namespace = promotion.namespace().unwrap_or_default();
    let key = ObjectRef::<ModelRelease>::new(&promotion.spec.release.name).within(&namespace);
    let known = promotion.status.iter().flat_map(|s| s.sites.iter().map(|s| &s.site));
    let asked: BTreeSet<&SiteName> = promotion.spec.sites.iter().chain(known).collect();
    let said = |site: &SiteName| {
        let (report, _) = context.hub.report(site)?;
        report.deployments.iter().find(|d| d.uid == uid).cloned()
    };
    let plan = promotion.spec.plan.as_ref().map(|plan| ObjectRef::<ClinicalPlan>::new(&plan.name).within(&namespace));
    Read {
        plan: plan.and_then(|key| context.caches.plans.get(&key)),
        release: context.caches.releases.get(&key),
        sites: accept::sites(context.caches.sites.state().iter().map(|s| &**s)),
        reports: asked.into_iter().filter_map(|site| Some((site.clone(), said(site)?))).collect(),
        acknowledged: context.book().acknowledged(uid),
    }
}

/// Tells the hospitals to stop, and lets the object go when they have acknowledged or had their time.
async fn clean_up(
    context: &Context,
    api: &Api<ModelPromotion>,
    facts: &Facts<'_>,
    uid: &str,
    now: Timestamp,
) -> Result<Action, Error> {
    let promotion = facts.promotion;
    let outstanding = decide::lowered(facts);
    let items = outstanding.clone();
    publish(context, promotion, |book, owner| book.set(uid, owner, items));
    let since = promotion.metadata.deletion_timestamp.as_ref().map_or(now, |t| t.0);
    let left = since.saturating_add(LINGER).unwrap_or(now).duration_since(now);
    if let (true, true, Ok(pause)) = (!outstanding.is_empty(), left.is_positive(), Duration::try_from(left)) {
        return Ok(Action::requeue(pause));
    }
    // A model that was withdrawn must stop wherever it is served, also in a hospital that comes back next week.
    context.bury(outstanding).await?;
    finalizer::remove(api, promotion).await?;
    context.publish(|book| book.remove(uid));
    Ok(Action::await_change())
}
