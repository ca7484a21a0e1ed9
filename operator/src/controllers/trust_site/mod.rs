//! The TrustSite controller: who may call, and what the hub sees of them.

pub mod decide;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use consilium_crds::TrustSite;
use consilium_federation::SiteName;
use kube::Api;
use kube::runtime::controller::Action;

use super::context::Context;
use super::error::Error;
use super::write;
use decide::{Facts, REFRESH};

/// Tells the gateway who may call. Called on every change of a TrustSite, before anything else looks at it: a
/// revocation must not wait in a queue.
pub fn admit(context: &Context) {
    let accepted: BTreeSet<SiteName> = context
        .caches
        .sites
        .state()
        .iter()
        .filter(|site| site.spec.accepted && site.metadata.deletion_timestamp.is_none())
        .filter_map(|site| site.site_name())
        .collect();
    let since = |site: &Arc<TrustSite>| Some((site.site_name()?, site.spec.certificates_issued_since?));
    context.hub.set_issued_since(context.caches.sites.state().iter().filter_map(since).collect());
    context.hub.set_accepted(accepted);
    for site in context.caches.sites.state().iter().filter(|site| site.spec.accepted) {
        let last = site.status.as_ref().and_then(|status| status.last_contact_time);
        if let (Some(name), Some(last)) = (site.site_name(), last) {
            context.hub.remember_contact(&name, last);
        }
    }
}

/// One turn of a hospital.
///
/// # Errors
/// See [`Error`].
pub async fn reconcile(site: Arc<TrustSite>, context: Arc<Context>) -> Result<Action, Error> {
    let Some(name) = site.site_name() else { return Ok(Action::await_change()) };
    // A hospital that is new has nothing to do, and must hear just that.
    context.publish_one(&name);
    context.hub.settle_instances(&name, context.now());
    let facts = Facts {
        connected: context.hub.connected(&name),
        last_contact: context.hub.last_contact(&name),
        agent_version: context.hub.report(&name).map(|(report, _)| report.agent_version.clone()),
        clock: context.hub.clock(&name),
        two_agents: context.hub.two_agents(&name),
    };
    let (status, notes) = decide::decide(&site, &facts, context.now());
    if site.status.as_ref() != Some(&status) {
        let wanted = TrustSite { status: Some(status), ..(*site).clone() };
        write::status(&Api::all(context.client.clone()), &wanted).await?;
        write::events(&context, &*site, notes).await;
    }
    // Contacts announce nothing by themselves; this is what keeps the last one current.
    let refresh = Duration::try_from(REFRESH).unwrap_or(Duration::from_secs(300));
    Ok(if facts.two_agents.is_some() {
        Action::requeue(Duration::from_secs(60))
    } else if facts.connected {
        Action::requeue(refresh)
    } else {
        Action::await_change()
    })
}
