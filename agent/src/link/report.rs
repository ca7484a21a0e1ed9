//! Says what is the case: whole, after changes, and at least every half minute.

use std::sync::Arc;
use std::time::Duration;

use consilium_federation::report::{LedgerEnd, Report};
use consilium_proto::v1::{ReportReply, ReportRequest};
use tokio::sync::watch;
use tokio::time::Instant;
use tonic::Request;
use tonic::transport::Channel;

use super::{Backoff, CALL_TIMEOUT, client, connected, gone};
use crate::Context;

/// Changes that come closer together share one report. Short, since a round's next step waits for it.
const AT_MOST_EVERY: Duration = Duration::from_millis(25);
const AT_LEAST_EVERY: Duration = Duration::from_secs(30);

/// Bytes of an Ed25519 signature (RFC 8032).
const SIGNATURE_BYTES: usize = 64;

/// How long the first report waits for the controllers to look at what is known from before a restart.
const FIRST_LOOK: Duration = Duration::from_secs(15);

/// Waits until every part that was known before the restart has a fact again.
///
/// A round that is not listed counts as forgotten at the hub, which takes that as word that its work was cleaned up.
async fn first_look(ctx: &Context) {
    let known = ctx.desired.borrow().clone();
    let mut facts = ctx.facts.changed();
    let looked = facts.wait_for(|_| {
        let (rounds, deployments) = ctx.facts.snapshot();
        known.items.iter().all(|item| {
            rounds.iter().any(|round| round.uid == item.uid) || deployments.iter().any(|model| model.uid == item.uid)
        })
    });
    tokio::select! {
        () = ctx.shutdown.cancelled() => {}
        () = tokio::time::sleep(FIRST_LOOK) => {}
        _ = looked => {}
    }
}

/// Runs until shutdown. Fails when what it follows ends.
pub(super) async fn run(ctx: Arc<Context>, mut channel: watch::Receiver<Option<Channel>>) -> anyhow::Result<()> {
    let mut facts = ctx.facts.changed();
    let mut desired = ctx.desired.clone();
    let mut backoff = Backoff::default();
    first_look(&ctx).await;
    loop {
        let Some(open) = (tokio::select! {
            () = ctx.shutdown.cancelled() => return Ok(()),
            open = connected(&mut channel) => open,
        }) else {
            return gone(&ctx, "the connection that reports go by");
        };
        channel.mark_unchanged();
        facts.mark_unchanged();
        desired.mark_unchanged();
        let sent = Instant::now();
        let mut pause = AT_MOST_EVERY;
        let mut retry = AT_LEAST_EVERY;
        match send(&ctx, open).await {
            Ok(()) => backoff.reset(),
            Err(status) => {
                tracing::warn!(code = ?status.code(), message = status.message(), "the report was not taken; it is sent again");
                retry = backoff.wait(ctx.entropy.fraction());
                pause = retry;
            }
        }
        let changed = async {
            tokio::select! {
                changed = facts.changed() => changed,
                changed = desired.changed() => changed,
                changed = channel.changed() => changed,
                () = tokio::time::sleep(retry) => Ok(()),
            }
        };
        let changed = tokio::select! {
            () = ctx.shutdown.cancelled() => return Ok(()),
            changed = changed => changed,
        };
        if changed.is_err() {
            return gone(&ctx, "what reports follow");
        }
        tokio::select! {
            () = ctx.shutdown.cancelled() => return Ok(()),
            () = tokio::time::sleep_until(sent + pause) => {}
        }
    }
}

async fn send(ctx: &Context, channel: Channel) -> Result<(), tonic::Status> {
    let (rounds, deployments) = ctx.facts.snapshot();
    ctx.metrics.set_rounds(&rounds);
    let (hub_epoch, revision) = {
        let desired = ctx.desired.borrow();
        (desired.hub_epoch.clone(), desired.revision)
    };
    let ledger = match ctx.state.ledger_end() {
        Ok((entries, head)) => Some(LedgerEnd { entries, head }),
        Err(error) => return Err(tonic::Status::internal(error.to_string())),
    };
    let report = Report {
        hub_epoch,
        revision,
        agent_version: crate::VERSION.to_owned(),
        rosters: ctx.facts.rosters(),
        ledger,
        rounds,
        deployments,
    };
    let mut request = Request::new(ReportRequest::from(&report));
    request.set_timeout(CALL_TIMEOUT);
    let result = client(channel).report(request).await;
    ctx.metrics.reports.with_label_values(&[if result.is_ok() { "ok" } else { "failed" }]).inc();
    let reply = result?.into_inner();
    ctx.metrics.last_contact.set(ctx.now().as_second() as f64);
    acknowledged(ctx, reply)
}

/// The hub's word on this hospital's ledger: kept for whoever wants to prove what the hub has seen, and compared.
fn acknowledged(ctx: &Context, reply: ReportReply) -> Result<(), tonic::Status> {
    let Some(end) = reply.ledger.clone() else { return Ok(()) };
    let end = LedgerEnd::try_from(end)?;
    let failed = |error: crate::StateError| tonic::Status::internal(error.to_string());
    crate::site::check_hub(ctx, end).map_err(failed)?;
    // Anything else is no Ed25519 signature, and would be shown in a status that takes no more.
    if reply.signature.len() == SIGNATURE_BYTES {
        ctx.state.put_countersigned(end, &reply.signature).map_err(failed)?;
    }
    Ok(())
}
