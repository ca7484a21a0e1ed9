//! The SitePolicy's status while the parts that write it cannot run: the same as before, but for what says so.

use std::sync::Arc;
use std::time::Duration;

use consilium_crds::SitePolicy;
use consilium_crds::conditions::{Conditions, READY};
use consilium_crds::site_policy::SitePolicyStatus;
use jiff::Timestamp;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client, Resource as _};
use serde_json::json;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::POLICY_NAME;
use super::decide::{VOLUME, closed};
use crate::Clock;
use crate::volume::Trouble;

/// A start and a failure that is over at once are not told.
const SETTLED: Duration = Duration::from_secs(5);
/// How long until a write that failed is made again.
const AGAIN: Duration = Duration::from_secs(10);

/// What the telling works with.
pub struct Troubled {
    /// The hospital's API server.
    pub kube: Client,
    /// Namespace of the SitePolicy.
    pub namespace: String,
    /// The SitePolicy.
    pub policy: watch::Receiver<Option<Arc<SitePolicy>>>,
    /// What is wrong.
    pub trouble: watch::Receiver<Option<Trouble>>,
    /// The time.
    pub clock: Clock,
    /// Cancelled at the end of the process.
    pub shutdown: CancellationToken,
}

/// Tells of trouble until shutdown. Without any, the other parts write the status.
pub async fn tell_trouble(mut troubled: Troubled) -> anyhow::Result<()> {
    let api: Api<SitePolicy> = Api::namespaced(troubled.kube.clone(), &troubled.namespace);
    loop {
        let (trouble, policy) =
            (troubled.trouble.borrow_and_update().clone(), troubled.policy.borrow_and_update().clone());
        let mut wait = None;
        if let (Some(trouble), Some(policy)) = (trouble, policy) {
            tokio::select! {
                () = troubled.shutdown.cancelled() => return Ok(()),
                changed = troubled.trouble.changed() => { changed?; continue }
                () = tokio::time::sleep(SETTLED) => {}
            }
            if let Err(error) = write(&api, &policy, &trouble, troubled.clock.now()).await {
                tracing::warn!(%error, "the SitePolicy's status could not be written; it is tried again");
                wait = Some(AGAIN);
            }
        }
        tokio::select! {
            () = troubled.shutdown.cancelled() => return Ok(()),
            changed = troubled.trouble.changed() => changed?,
            changed = troubled.policy.changed() => changed?,
            () = tokio::time::sleep(wait.unwrap_or_default()), if wait.is_some() => {}
        }
    }
}

async fn write(
    api: &Api<SitePolicy>,
    policy: &SitePolicy,
    trouble: &Trouble,
    now: Timestamp,
) -> Result<(), kube::Error> {
    let status = status(policy, trouble, now);
    if policy.status.as_ref() == Some(&status) {
        return Ok(());
    }
    let patch = json!({
        "apiVersion": SitePolicy::api_version(&()), "kind": SitePolicy::kind(&()), "status": status,
    });
    api.patch_status(POLICY_NAME, &PatchParams::apply("consilium-agent").force(), &Patch::Apply(&patch)).await?;
    Ok(())
}

/// All that was told before stays: the ledger's head in it is what shows that a volume was set back.
fn status(policy: &SitePolicy, trouble: &Trouble, now: Timestamp) -> SitePolicyStatus {
    let generation = policy.metadata.generation;
    let before = policy.status.clone().unwrap_or_default();
    let mut conditions = Conditions::from_status(&before.conditions, generation, now);
    if trouble.volume {
        conditions.set(VOLUME, false, trouble.reason, &trouble.message);
    }
    let stops = match closed(&policy.spec) {
        Some((_, what)) => format!("; what the policy says holds all the same: {what}"),
        None => "; what the policy does not allow is stopped all the same".to_owned(),
    };
    let message: String = trouble.message.chars().take(600).collect();
    conditions.set(READY, false, trouble.reason, format!("nothing new starts and nothing leaves: {message}{stops}"));
    SitePolicyStatus { observed_generation: generation, conditions: conditions.into_list(), ..before }
}

#[cfg(test)]
mod tests {
    use consilium_crds::conditions::status_of;

    use super::*;

    /// An administrator looks at the policy first. Whoever writes there while the volume is away must not wipe out what
    /// shows that another volume took its place.
    #[test]
    fn trouble_is_told_and_nothing_else_is_forgotten() {
        let digest = consilium_federation::Digest::of(b"head");
        let policy: SitePolicy = serde_json::from_value(json!({
            "apiVersion": "consilium.health/v1alpha1", "kind": "SitePolicy",
            "metadata": {"name": "default", "generation": 3},
            "spec": {
                "participation": "Disabled", "maxGPUs": 0, "registries": [],
                "resources": {"cpu": "1", "memory": "1Gi", "workClaim": "work"}, "aggregation": {"minContributors": 3},
            },
            "status": {"signingKey": "key", "ledger": {"entries": 7, "head": digest}},
        }))
        .unwrap();
        let error = anyhow::Error::from(crate::StateError::Ledger { seq: 3, why: "w".into() });
        let now = "2026-01-01T00:00:00Z".parse().unwrap();
        let told = status(&policy, &Trouble::of(&error), now);
        assert_eq!(told.ledger.as_ref().map(|ledger| ledger.head), Some(digest));
        assert_eq!((told.signing_key.as_deref(), told.observed_generation), (Some("key"), Some(3)));
        assert_eq!(status_of(&told.conditions, VOLUME), Some("False"));
        let ready = told.conditions.iter().find(|c| c.type_ == READY).unwrap();
        assert_eq!((ready.status.as_str(), ready.reason.as_str()), ("False", "LedgerBroken"));
        assert!(
            ready.message.contains("entry 3") && ready.message.contains("no training, evaluation or model"),
            "{}",
            ready.message
        );
    }
}
