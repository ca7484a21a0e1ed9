//! The one connection to the hub: dialled from here, mutual TLS, everything level-triggered.
//!
//! Five loops share one channel: `follow` keeps the channel and takes the desired
//! state, `report` says what is the case, `objects` fetches by digest, `rosters`
//! takes rosters that governance signed, `turns` takes this hospital's steps in
//! attempts of the aggregation protocol. Each may be killed at any point; the next
//! look at the state carries on.

mod announce;
mod backoff;
mod calls;
mod dial;
mod follow;
mod identity;
mod masked;
mod objects;
mod plan;
mod proxy;
mod report;
mod rosters;
mod said;
mod send;
mod steps;
mod stepwise;
mod turn;
mod turns;

use std::sync::Arc;

use consilium_federation::assignment::Assignment;
use futures::future::BoxFuture;
use tokio::sync::watch;

use crate::Context;

pub use announce::{Announce, AnnounceError, Recalled};
pub use backoff::Backoff;
pub use calls::{Calls, Connection, Dial, Watched};
pub use dial::{DialError, Dialer};
pub use identity::{Identity, IdentityError};
pub(crate) use objects::read_plan;
pub use objects::{ObjectCache, ObjectError, ObjectSource};
pub use proxy::{Proxy, ProxyError};
pub use stepwise::Stepwise;

/// How often an act is shown anew, when others write the RoundTask at the same time.
const SHOW_TRIES: usize = 8;

/// How the connection is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkStatus {
    /// Not tried yet.
    Connecting,
    /// The watch is open.
    Connected,
    /// It is not.
    Disconnected {
        /// CamelCase, for the condition `Connected`.
        reason: &'static str,
        /// What was seen, and what to do.
        message: String,
    },
}

/// The link before it runs: hands out what the context needs.
pub struct Link {
    dialer: Box<dyn Dial>,
    channel: Arc<watch::Sender<Option<Connection>>>,
    desired: watch::Sender<Arc<Assignment>>,
    status: watch::Sender<LinkStatus>,
}

impl Link {
    /// A link that has not dialled yet. `known` is the desired state from before the restart.
    pub fn new(dialer: impl Dial + 'static, known: Option<Assignment>) -> Self {
        let empty = || Assignment { hub_epoch: String::new(), revision: 0, rosters: vec![], items: Vec::new() };
        Self {
            dialer: Box::new(dialer),
            channel: Arc::new(watch::Sender::new(None)),
            desired: watch::Sender::new(Arc::new(known.unwrap_or_else(empty))),
            status: watch::Sender::new(LinkStatus::Connecting),
        }
    }

    /// The desired state.
    pub fn desired(&self) -> watch::Receiver<Arc<Assignment>> {
        self.desired.subscribe()
    }

    /// How the connection is.
    pub fn status(&self) -> watch::Receiver<LinkStatus> {
        self.status.subscribe()
    }

    /// Where objects come from.
    pub fn object_source(&self) -> Arc<dyn ObjectSource> {
        Arc::new(objects::HubObjects::new(self.channel.subscribe()))
    }

    /// Runs until shutdown, or until one of its loops fails.
    pub async fn run(self, ctx: Arc<Context>, announce: Arc<dyn Announce>) -> anyhow::Result<()> {
        if let Some(policy) = ctx.site_policy() {
            crate::site::check_volume(&ctx, &policy)?;
        }
        let reports = report::run(ctx.clone(), self.channel.subscribe());
        let rosters = rosters::run(ctx.clone(), self.channel.subscribe());
        let turns = turns::run(ctx.clone(), self.channel.subscribe(), announce);
        let follow = follow::run(ctx, self);
        // One that fails ends them all, and the agent with them: alone, the others would look alive and do nothing.
        tokio::try_join!(follow, reports, rosters, turns)?;
        Ok(())
    }
}

/// What a loop follows is gone: fine at shutdown, and otherwise a reason to start the agent anew.
fn gone(ctx: &Context, what: &str) -> anyhow::Result<()> {
    anyhow::ensure!(ctx.shutdown.is_cancelled(), "{what} ended; restarting the agent starts it again");
    Ok(())
}

/// The channel, as soon as there is one.
async fn connected(channel: &mut watch::Receiver<Option<Connection>>) -> Option<Connection> {
    channel.wait_for(Option::is_some).await.ok().and_then(|channel| channel.clone())
}

/// A future in a box, for the ports that tests replace.
pub type Answer<'a, T> = BoxFuture<'a, T>;

#[cfg(test)]
mod tests;
