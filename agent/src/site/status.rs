//! Writes the SitePolicy's status, and an event when a study is newly refused.

use std::sync::Arc;
use std::time::Duration;

use consilium_crds::SitePolicy;
use consilium_crds::roster::key_text;
use consilium_crds::site_policy::{AcceptedRoster, LedgerHead, OfferedStudy, SitePolicyStatus, UsedAmounts};
use kube::api::{Patch, PatchParams};
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::{Api, Resource as _};
use serde_json::json;
use tokio::sync::watch;

use super::{POLICY_NAME, Standing, StatusInputs, decide};
use crate::link::{Backoff, LinkStatus};
use crate::state::hub_digest;
use crate::tasks::gpus;
use crate::volume::Trouble;
use crate::{Context, StateError};

/// Changes that come closer together share one write.
const FOLD: Duration = Duration::from_secs(1);
/// How often it is looked at without a change: a ledger's end and a roll-back wake nobody.
const LOOK: Duration = Duration::from_secs(60);
const MANAGER: &str = "consilium-agent";

/// Runs until shutdown. While there is trouble with the volume another part writes the status, and this one none: two
/// that hold different things true would take turns.
pub async fn run(
    ctx: Arc<Context>,
    mut link: watch::Receiver<LinkStatus>,
    mut trouble: watch::Receiver<Option<Trouble>>,
) -> anyhow::Result<()> {
    let api: Api<SitePolicy> = Api::namespaced(ctx.kube.clone(), &ctx.config.namespace);
    let recorder = Recorder::new(ctx.kube.clone(), Reporter { controller: MANAGER.into(), instance: None });
    let (mut policy, mut desired, mut facts) = (ctx.policy.clone(), ctx.desired.clone(), ctx.facts.changed());
    let mut enforcement = ctx.enforcement.subscribe();
    let mut backoff = Backoff::default();
    loop {
        policy.mark_unchanged();
        desired.mark_unchanged();
        facts.mark_unchanged();
        enforcement.mark_unchanged();
        let status_of_link = link.borrow_and_update().clone();
        let mut again = LOOK;
        let troubled = trouble.borrow_and_update().is_some();
        let result = if troubled { Ok(()) } else { turn(&ctx, &api, &recorder, &status_of_link).await };
        match result {
            Ok(()) => backoff.reset(),
            Err(error) => {
                let wait = backoff.wait(ctx.entropy.fraction());
                tracing::warn!(%error, wait_ms = wait.as_millis() as u64, "the SitePolicy's status could not be written; it is tried again");
                ctx.metrics.reconcile_errors.with_label_values(&["sitepolicy", "transient"]).inc();
                again = wait;
            }
        }
        tokio::select! {
            () = ctx.shutdown.cancelled() => return Ok(()),
            _ = policy.changed() => {}
            _ = desired.changed() => {}
            _ = facts.changed() => {}
            _ = enforcement.changed() => {}
            _ = link.changed() => {}
            _ = trouble.changed() => {}
            () = tokio::time::sleep(again) => {}
        }
        tokio::select! {
            () = ctx.shutdown.cancelled() => return Ok(()),
            () = tokio::time::sleep(FOLD) => {}
        }
    }
}

async fn turn(ctx: &Context, api: &Api<SitePolicy>, recorder: &Recorder, link: &LinkStatus) -> Result<(), kube::Error> {
    let Some(policy) = ctx.site_policy() else { return Ok(()) };
    // What is written below would take the place of what shows that the volume was set back.
    super::check_volume(ctx, &policy).map_err(|error| kube::Error::Service(error.into()))?;
    let desired = ctx.desired.borrow().clone();
    let enforcement = ctx.enforcement.borrow().clone();
    let standing = standing(ctx, &policy).map_err(|error| kube::Error::Service(error.into()))?;
    let status = decide(&StatusInputs {
        policy: &policy,
        link,
        clock: ctx.hub_clock(),
        enforcement: &enforcement,
        desired: &desired,
        standing: &standing,
        reason: &|uid, kind| {
            let reason = ctx.facts.round(uid, kind)?.reason;
            Some((reason, ctx.facts.refusal(uid, kind, reason)))
        },
        now: ctx.now(),
    });
    if policy.status.as_ref() == Some(&status) {
        return Ok(());
    }
    let patch = json!({
        "apiVersion": SitePolicy::api_version(&()),
        "kind": SitePolicy::kind(&()),
        "status": status,
    });
    api.patch_status(POLICY_NAME, &PatchParams::apply(MANAGER).force(), &Patch::Apply(&patch)).await?;
    for event in refusals(policy.status.as_ref(), &status) {
        // An event is a courtesy; what counts is in the status.
        if let Err(error) = recorder.publish(&event, &policy.object_ref(&())).await {
            tracing::warn!(%error, "an event on the SitePolicy could not be written");
        }
    }
    Ok(())
}

/// What the volume says of this hospital.
fn standing(ctx: &Context, policy: &SitePolicy) -> Result<Standing, StateError> {
    let governance = crate::policy::governance(&policy.spec).ok().flatten();
    let seen = governance.as_ref().map(|governance| ctx.rosters_seen(governance)).transpose()?.unwrap_or_default();
    let book = governance.map(|governance| ctx.state.rosters(&governance)).transpose()?.unwrap_or_default();
    let rosters = book.accepted().iter().map(|roster| AcceptedRoster {
        version: roster.version(),
        digest: hub_digest(roster.digest()),
        sites: roster.roster().entries.len() as u32,
    });
    let end = ctx.state.ledger_end()?;
    ctx.metrics
        .erasures_overdue
        .set(ctx.facts.overdue().map_or(0, |(count, _)| i64::try_from(count).unwrap_or(i64::MAX)));
    let (rolled_back, hub_claim) = (ctx.state.rolled_back()?, ctx.state.hub_claim()?);
    let noticed = [rolled_back.as_ref().map(|seen| seen.at), hub_claim.as_ref().map(|claim| claim.at)];
    let latest = noticed.into_iter().flatten().max();
    ctx.metrics.rolled_back.set(latest.map_or(0.0, |at| at.as_second() as f64));
    Ok(Standing {
        signing_key: key_text(&ctx.state.site_key(&ctx.entropy)?.public()),
        rosters: rosters.collect(),
        listed: seen.iter().any(|roster| roster.lists_us),
        trouble: ctx.facts.roster_trouble(),
        ledger: LedgerHead { entries: end.entries, head: end.head, countersignature: ctx.state.countersigned(end)? },
        rolled_back,
        hub_claim,
        overdue: ctx.facts.overdue(),
        other_hub_key: ctx.facts.other_hub_key(),
        used: used(ctx)?,
    })
}

/// What of the limits is used.
fn used(ctx: &Context) -> Result<UsedAmounts, StateError> {
    let today = ctx.state.taken_within_a_day(ctx.now())?;
    Ok(UsedAmounts {
        tasks_within_day: today.tasks,
        rounds_within_day: u32::try_from(today.rounds.len()).unwrap_or(u32::MAX),
        gpu_hours: gpus::spent(&ctx.state, ctx.now())? / 3600,
    })
}

/// One event for each study whose refusal is new.
fn refusals(before: Option<&SitePolicyStatus>, after: &SitePolicyStatus) -> Vec<Event> {
    let known = |study: &OfferedStudy| {
        let same = |s: &OfferedStudy| s.study == study.study && s.reason == study.reason && s.message == study.message;
        before.is_some_and(|b| b.studies.iter().any(same))
    };
    let event = |study: &OfferedStudy| {
        let message = study.message.as_ref()?;
        Some(Event {
            type_: EventType::Warning,
            reason: study.reason.clone(),
            note: Some(format!("{} round {}: {message}", study.study, study.round).chars().take(1000).collect()),
            action: "Decide".into(),
            secondary: None,
        })
    };
    after.studies.iter().filter(|study| !known(study)).filter_map(event).collect()
}
