//! The link without its loops: everything that they do, each when its caller says. The simulator drives it, with time and
//! chance of its own; sockets and waits are the loops' alone.

use std::sync::Arc;

use consilium_proto::v1;
use tokio::sync::watch;
use tonic::Status;

use super::rosters::Rosters;
use super::said::Account;
use super::turns::{Turns, restore};
use super::{Announce, Connection, Link, follow, report};
use crate::{Context, StateError};

/// The link of one process of the agent.
pub struct Stepwise {
    ctx: Arc<Context>,
    link: Link,
    rosters: Rosters,
    turns: Turns,
    facts: watch::Receiver<u64>,
    account: Account,
}

impl Stepwise {
    /// As the link begins: shows what is known from before a restart, and gives up what is over.
    ///
    /// # Errors
    /// When the volume fails, or is another one's.
    pub fn begin(ctx: Arc<Context>, link: Link, announce: Arc<dyn Announce>) -> anyhow::Result<Self> {
        if let Some(policy) = ctx.site_policy() {
            crate::site::check_volume(&ctx, &policy)?;
        }
        restore(&ctx)?;
        let (rosters, mut turns) = (Rosters::new(ctx.clone()), Turns::new(ctx.clone(), announce));
        turns.tidy()?;
        let facts = ctx.facts.changed();
        Ok(Self { ctx, link, rosters, turns, facts, account: Account::default() })
    }

    /// There is a connection, perhaps another one than before.
    pub fn connect(&mut self, hub: Connection) {
        self.link.channel.send_replace(Some(hub));
        self.turns.reconnected();
    }

    /// An assignment came.
    ///
    /// # Errors
    /// When the volume fails.
    pub fn take(&mut self, message: v1::Assignment) -> Result<(), StateError> {
        follow::take(&self.ctx, &self.link, message)?;
        self.turns.changed();
        self.turns.tidy()
    }

    /// The policy was written.
    pub fn policy_changed(&mut self) {
        self.turns.policy(self.ctx.site_policy());
    }

    /// Looks at the rosters that are offered.
    ///
    /// # Errors
    /// When the volume fails.
    pub async fn rosters(&mut self) -> Result<(), StateError> {
        let connected = self.link.channel.borrow().is_some();
        self.rosters.turn(connected).await.map(drop)
    }

    /// Says what is the case.
    ///
    /// # Errors
    /// When the hub did not take it.
    pub async fn report(&mut self) -> Result<(), Status> {
        let Some(hub) = self.link.channel.borrow().clone() else { return Ok(()) };
        report::send(&self.ctx, &mut self.account, hub).await
    }

    /// Takes every turn that is due, one after the other, to its end.
    ///
    /// # Errors
    /// When the volume fails.
    pub async fn turns(&mut self) -> anyhow::Result<()> {
        if self.facts.has_changed().unwrap_or(false) {
            self.facts.mark_unchanged();
            self.turns.changed();
        }
        self.turns.tidy()?;
        let hub = self.link.channel.borrow().clone();
        self.turns.turn(hub.clone());
        while let Some(ended) = self.turns.tasks.join_next().await {
            self.turns.ended(ended)?;
            self.turns.tidy()?;
            self.turns.turn(hub.clone());
        }
        Ok(())
    }
}
