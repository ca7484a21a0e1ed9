//! Takes the rosters that governance signed, and shows why others do not hold.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use consilium_federation::Digest;
use consilium_secagg::roster::{Governance, SignedRoster};
use consilium_secagg::wire::Message as _;
use tokio::sync::watch;

use super::{Backoff, Connection, ObjectError, gone};
use crate::{Context, StateError, policy};

/// Longest reason that is kept.
const TROUBLE: usize = 300;

/// Rosters as they are offered.
pub(super) struct Rosters {
    ctx: Arc<Context>,
    governance: Option<Governance>,
    /// Objects that were looked at under this governance.
    seen: BTreeSet<Digest>,
    trouble: Option<String>,
}

/// Runs until shutdown. Fails when the volume does, or what it follows ends.
pub(super) async fn run(ctx: Arc<Context>, mut channel: watch::Receiver<Option<Connection>>) -> anyhow::Result<()> {
    let (mut desired, mut pinned) = (ctx.desired.clone(), ctx.policy.clone());
    let mut rosters = Rosters::new(ctx.clone());
    let mut backoff = Backoff::default();
    loop {
        desired.mark_unchanged();
        pinned.mark_unchanged();
        let connected = channel.borrow_and_update().is_some();
        let turn = rosters.turn(connected);
        let fetched = tokio::select! {
            () = ctx.shutdown.cancelled() => return Ok(()),
            fetched = turn => fetched?,
        };
        let wait = if fetched {
            backoff.reset();
            None
        } else {
            Some(backoff.wait(ctx.entropy.fraction()))
        };
        let changed = tokio::select! {
            () = ctx.shutdown.cancelled() => return Ok(()),
            changed = desired.changed() => changed,
            changed = pinned.changed() => changed,
            changed = channel.changed() => changed,
            () = tokio::time::sleep(wait.unwrap_or(Duration::MAX / 4)), if wait.is_some() => Ok(()),
        };
        if changed.is_err() {
            return gone(&ctx, "what rosters follow");
        }
    }
}

impl Rosters {
    pub(super) fn new(ctx: Arc<Context>) -> Self {
        Self { ctx, governance: None, seen: BTreeSet::new(), trouble: None }
    }

    /// Looks at everything that is offered once; false when something could not be fetched.
    pub(super) async fn turn(&mut self, connected: bool) -> Result<bool, StateError> {
        let governance = self.ctx.site_policy().and_then(|p| policy::governance(&p.spec).ok().flatten());
        if governance != self.governance {
            self.seen.clear();
            self.trouble = None;
            self.governance = governance;
        }
        let Some(governance) = self.governance.clone() else {
            self.tell(Vec::new());
            return Ok(true);
        };
        // What held before a restart is reported before the hub is heard.
        self.show(&governance)?;
        if !connected {
            return Ok(true);
        }
        let offered: Vec<Digest> = self.ctx.desired.borrow().rosters.clone();
        let (mut signed, mut fetched) = (Vec::new(), true);
        for digest in offered.into_iter().filter(|digest| !self.seen.contains(digest)).collect::<Vec<_>>() {
            match self.fetch(digest).await {
                Ok(Ok(roster)) => signed.push((digest, roster)),
                Ok(Err(why)) => {
                    self.seen.insert(digest);
                    self.refused(digest, &why);
                }
                Err(why) => {
                    tracing::warn!(%digest, why, "an offered roster could not be fetched; it is tried again");
                    fetched = false;
                }
            }
        }
        // The older one first: an agent that sees both for the first time takes both.
        signed.sort_by_key(|(_, roster)| roster.roster.version);
        for (digest, roster) in signed {
            self.seen.insert(digest);
            match self.ctx.state.accept_roster(&governance, &roster, self.ctx.now())? {
                Ok(accepted) => {
                    tracing::info!(version = roster.roster.version, roster = %accepted, "the roster holds here");
                    self.trouble = None;
                }
                Err(error) => self.refused(digest, &error.to_string()),
            }
        }
        self.show(&governance)?;
        Ok(fetched)
    }

    async fn fetch(&self, digest: Digest) -> Result<Result<SignedRoster, String>, String> {
        match self.ctx.objects.get(digest).await {
            Ok(bytes) => Ok(SignedRoster::from_bytes(&bytes).map_err(|error| error.to_string())),
            Err(error @ (ObjectError::Unavailable { .. } | ObjectError::Disk { .. })) => Err(error.to_string()),
            Err(error) => Ok(Err(error.to_string())),
        }
    }

    fn refused(&mut self, digest: Digest, why: &str) {
        tracing::warn!(%digest, why, "an offered roster does not hold here");
        self.trouble = Some(why.chars().take(TROUBLE).collect());
    }

    fn show(&self, governance: &Governance) -> Result<(), StateError> {
        let seen = self.ctx.rosters_seen(governance)?;
        self.tell(seen.iter().map(|roster| (roster.digest, roster.lists_us)).collect());
        Ok(())
    }

    fn tell(&self, rosters: Vec<(Digest, bool)>) {
        self.ctx.facts.set_rosters(rosters);
        self.ctx.facts.set_roster_trouble(self.trouble.clone());
    }
}
