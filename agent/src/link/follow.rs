//! Keeps the channel and takes the desired state.

use std::sync::Arc;
use std::time::Duration;

use consilium_federation::Digest;
use consilium_federation::assignment::{Acceptance, Assignment, Item, ItemState, MAX_ITEMS};
use consilium_federation::clock::OtherClock;
use consilium_proto::v1::{self, WatchRequest};
use consilium_proto::{REFUSAL, TWO_AGENTS, clock};
use futures::StreamExt as _;
use tonic::Code;

use super::{Backoff, Connection, DialError, Link, LinkStatus};
use crate::edge::instance;
use crate::{Context, StateError};

/// How often the certificate's files are looked at.
const IDENTITY_CHECK: Duration = Duration::from_secs(60);
/// Rosters that are looked at in one assignment.
const OFFERED_ROSTERS: usize = 4;
/// Longest epoch that is taken from the hub.
const EPOCH_LIMIT: usize = 63;

/// Why a connection ended.
enum Ended {
    Shutdown,
    Renewed,
    Failed { reason: &'static str, message: String },
}

impl From<DialError> for Ended {
    fn from(error: DialError) -> Self {
        Ended::Failed { reason: error.reason(), message: error.to_string() }
    }
}

/// Runs until shutdown. Fails only when the volume does.
pub(super) async fn run(ctx: Arc<Context>, link: Link) -> anyhow::Result<()> {
    let mut backoff = Backoff::default();
    loop {
        let ended = tokio::select! {
            () = ctx.shutdown.cancelled() => Ended::Shutdown,
            ended = connection(&ctx, &link, &mut backoff) => ended?,
        };
        link.channel.send_replace(None);
        ctx.metrics.connected.set(0);
        match ended {
            Ended::Shutdown => return Ok(()),
            Ended::Renewed => tracing::info!("the certificate was renewed; connecting with the new one"),
            Ended::Failed { reason, message } => {
                ctx.metrics.connects.with_label_values(&["failed"]).inc();
                let wait = backoff.wait(ctx.entropy.fraction());
                tracing::warn!(reason, message, wait_ms = wait.as_millis() as u64, "not connected to the hub");
                link.status.send_replace(LinkStatus::Disconnected { reason, message });
                tokio::select! {
                    () = ctx.shutdown.cancelled() => return Ok(()),
                    () = tokio::time::sleep(wait) => {}
                }
            }
        }
    }
}

async fn connection(ctx: &Context, link: &Link, backoff: &mut Backoff) -> Result<Ended, StateError> {
    let identity = match link.dialer.identity() {
        Ok(identity) => identity,
        Err(error) => return Ok(DialError::from(error).into()),
    };
    ctx.metrics.certificate_expiry.set(identity.not_after.as_second() as f64);
    if identity.site != ctx.site {
        let message = format!(
            "the certificate is now that of {} and this agent's state is {}'s; restore the certificate, or give the new site a volume of its own",
            identity.site, ctx.site
        );
        return Ok(Ended::Failed { reason: "InvalidIdentity", message });
    }
    let channel = match link.dialer.dial(&identity).await {
        Ok(channel) => channel,
        Err(error) => return Ok(error.into()),
    };
    let request = WatchRequest { agent_version: crate::VERSION.to_owned() };
    let mut stream = match channel.watch(request).await {
        Ok(stream) => stream,
        Err(status) => return Ok(explain(link, &status)),
    };
    ctx.state.dialed(&ctx.config.gateway, identity.version, ctx.now())?;
    opened(ctx, link, channel);
    backoff.reset();
    let mut check = tokio::time::interval(IDENTITY_CHECK);
    check.tick().await;
    loop {
        tokio::select! {
            message = stream.next() => match message {
                Some(Ok(message)) => take(ctx, link, message)?,
                None => {
                    let message = "the hub ended the watch; it may be restarting".to_owned();
                    return Ok(Ended::Failed { reason: "WatchEnded", message });
                }
                Some(Err(status)) => return Ok(explain(link, &status)),
            },
            _ = check.tick() => if renewed(link, identity.version) {
                return Ok(Ended::Renewed);
            },
        }
    }
}

fn opened(ctx: &Context, link: &Link, channel: Connection) {
    tracing::info!("connected to the hub");
    link.channel.send_replace(Some(channel));
    link.status.send_replace(LinkStatus::Connected);
    ctx.metrics.connected.set(1);
    ctx.metrics.connects.with_label_values(&["ok"]).inc();
    touch(ctx);
}

fn touch(ctx: &Context) {
    ctx.metrics.last_contact.set(ctx.now().as_second() as f64);
}

fn renewed(link: &Link, version: Digest) -> bool {
    // A file in the middle of being replaced is looked at again at the next turn.
    link.dialer.identity().is_ok_and(|identity| identity.version != version)
}

fn explain(link: &Link, status: &tonic::Status) -> Ended {
    let said = status.message().to_owned();
    let two = status.metadata().get(REFUSAL).is_some_and(|kind| kind == TWO_AGENTS);
    let (reason, message) = match status.code() {
        _ if two => {
            let ours = instance();
            (TWO_AGENTS, format!("{said}; the agent that writes this is instance {ours}"))
        }
        Code::PermissionDenied | Code::Unauthenticated => (
            "NotAccepted",
            format!(
                "the hub does not let this hospital in: {said}; its administrators set spec.accepted of the TrustSite"
            ),
        ),
        Code::Unimplemented => (
            "Incompatible",
            format!("the hub does not speak this agent's protocol ({said}); keep both within one minor version"),
        ),
        _ => {
            let error = link.dialer.explain(status);
            match error {
                DialError::Unreachable { .. } => {
                    ("ConnectionLost", format!("the connection to the hub was lost: {said}"))
                }
                other => (other.reason(), other.to_string()),
            }
        }
    };
    Ended::Failed { reason, message }
}

/// Takes an assignment that came.
pub(super) fn take(ctx: &Context, link: &Link, message: v1::Assignment) -> Result<(), StateError> {
    touch(ctx);
    let (hub_time, ours) = (clock(&message.hub_time), ctx.now());
    // A message may have waited on its way, an answer to a report has not: its word on the hub's clock goes before.
    if !matches!(ctx.hub_clock(), OtherClock::Ahead(_)) {
        ctx.heard_clock(hub_time, ctx.clock.steady());
    }
    let Some((offered, left_out)) = read(message, &link.desired.borrow()) else {
        ctx.metrics.assignments.with_label_values(&["unreadable"]).inc();
        return Ok(());
    };
    ctx.metrics.items_left_out.inc_by(left_out as u64);
    let revision = offered.revision;
    let verdict = ctx.state.accept(offered, ours, ctx.hub_clock().now(ours))?;
    let label = match verdict {
        Acceptance::Take => "taken",
        Acceptance::TakeNewEpoch => "new_epoch",
        Acceptance::Stale => "stale",
    };
    ctx.metrics.assignments.with_label_values(&[label]).inc();
    if verdict == Acceptance::Stale {
        tracing::warn!(
            revision,
            known = link.desired.borrow().revision,
            "refused a desired state that is older than the known one"
        );
        return Ok(());
    }
    if verdict == Acceptance::TakeNewEpoch {
        tracing::warn!("the hub has another store; attempts that were open are burned");
    }
    if let Some(known) = ctx.state.assignment()? {
        link.desired.send_replace(Arc::new(known));
    }
    Ok(())
}

fn is_tombstone(item: &v1::Item) -> bool {
    serde_json::from_value(item.state.as_str().into()).is_ok_and(|state: ItemState| state == ItemState::Cancelled)
}

/// Parses what came. An item that makes no sense here is left out, the others count: to this hospital it is an orphan,
/// never a cancellation. A tombstone counts by its UID alone, whatever else it says: `known` has what it takes back.
fn read(message: v1::Assignment, known: &Assignment) -> Option<(Assignment, usize)> {
    let v1::Assignment { hub_epoch, revision, items, rosters, hub_time: _ } = message;
    if hub_epoch.is_empty() || hub_epoch.len() > EPOCH_LIMIT {
        tracing::error!(
            length = hub_epoch.len(),
            "the hub's epoch is not 1 to 63 characters long; the assignment is not used"
        );
        return None;
    }
    if items.len() > MAX_ITEMS {
        tracing::error!(
            items = items.len(),
            "the hub asks for more than {MAX_ITEMS} things at once; the assignment is not used"
        );
        return None;
    }
    let mut parsed: Vec<Item> = Vec::with_capacity(items.len());
    let mut left_out = 0;
    for item in items {
        let here = known.items.iter().find(|here| here.uid == item.uid && is_tombstone(&item));
        let taken_back = here.map(|here| Item { state: ItemState::Cancelled, ..here.clone() });
        match taken_back.map_or_else(|| Item::try_from(item), Ok) {
            Ok(item) if parsed.iter().any(|known| known.uid == item.uid) => {
                tracing::error!(uid = item.uid, "the hub names an item twice; the first counts");
            }
            Ok(item) => parsed.push(item),
            Err(error) => {
                tracing::error!(%error, "an item of the hub makes no sense here and is left out; update the agent");
                left_out += 1;
            }
        }
    }
    let rosters = rosters.iter().filter_map(|text| text.parse().ok()).take(OFFERED_ROSTERS).collect();
    Some((Assignment { hub_epoch, revision, rosters, items: parsed }, left_out))
}

#[cfg(test)]
mod tests {
    use consilium_federation::Digest;
    use consilium_federation::assignment::{DeployWork, Work};
    use consilium_federation::ladder::Stage;

    use super::*;

    fn served(state: ItemState) -> Assignment {
        let none = Digest::of(b"");
        let work = DeployWork {
            release: "r1".into(),
            release_digest: none,
            model: none,
            stage: Stage::Shadow,
            approvals: vec![],
            plan: None,
            stage_approvals: Vec::new(),
        };
        let item = Item { uid: "promo-1".into(), state, work: Work::Deploy(work) };
        Assignment { hub_epoch: "e".into(), revision: 1, rosters: vec![], items: vec![item] }
    }

    /// The hub is newer and offered a stage that this agent does not know. When it takes the model back, the model must go:
    /// nothing else would ever tell this hospital.
    #[test]
    fn a_tombstone_counts_by_its_uid_whatever_else_is_in_it() {
        let known = served(ItemState::Active);
        let sent = |state: ItemState| {
            let mut message = v1::Assignment::from(&served(state));
            let Some(v1::item::Work::Deploy(work)) = &mut message.items[0].work else { panic!() };
            work.stage = "Telepathy".into();
            message
        };
        let (taken, left_out) = read(sent(ItemState::Cancelled), &known).unwrap();
        assert_eq!((taken, left_out), (served(ItemState::Cancelled), 0));
        let (raised, left_out) = read(sent(ItemState::Active), &known).unwrap();
        assert_eq!((raised.items.len(), left_out), (0, 1), "left out: to this hospital an orphan");
        // A hub that could not read its own record any more knows the UID alone.
        let mut bare = v1::Assignment::from(&Assignment { items: vec![Item::tombstone("promo-1")], ..known.clone() });
        assert_eq!(read(bare.clone(), &known).unwrap(), (served(ItemState::Cancelled), 0));
        bare.items[0].uid = "another".into();
        assert_eq!(read(bare, &known).unwrap().1, 0);
        let nothing = Assignment { items: vec![], ..known };
        assert_eq!(read(sent(ItemState::Cancelled), &nothing).unwrap().1, 1);
    }
}
