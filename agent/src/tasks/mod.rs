//! This hospital's parts in rounds: from the hub's desired state and the hospital's
//! policy to RoundTasks and their Jobs, and back to facts.
//!
//! Every turn looks at everything again: what is wanted, what is allowed, what runs,
//! what is stored. So a restart of the agent, a change of the policy and an event of
//! a pod are one and the same: another turn.

mod apply;
pub mod clean;
mod cluster;
mod controller;
pub mod decide;
mod desk;
pub mod encode;
mod erase;
mod error;
pub mod gpus;
pub mod job;
pub mod observe;
mod part;
pub mod pod;
pub mod probe;
mod read;
mod refusals;
#[cfg(test)]
mod retention_tests;
mod runner;
pub mod status;
mod stores;

use std::sync::Arc;
use std::time::Duration;

use consilium_crds::RoundTask;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::runtime::reflector::Store;
use tokio::sync::Notify;

pub(crate) use apply::MANAGER;
pub use desk::{DeployEntry, Desk, TaskEntry};
pub use error::ControlError;
pub(crate) use error::{admitted, gone};
pub use read::Started;
pub use runner::{Runner, Sight};
pub(crate) use stores::{follow, follow_as};

use crate::Context;
use cluster::Cluster;
pub use controller::Controller;

/// Longest time between two turns: deadlines and progress are noticed by then.
const TURN: Duration = Duration::from_secs(5);

/// Runs the controller over the hospital's cluster, and the network probe, until shutdown.
pub async fn run(ctx: Arc<Context>) -> anyhow::Result<()> {
    let news = Arc::new(Notify::new());
    let stores = Stores::follow(&ctx, &news);
    probe::restore(&ctx)?;
    let probing = tokio::spawn(probe::run(Arc::clone(&ctx)));
    tokio::select! {
        () = ctx.shutdown.cancelled() => return Ok(()),
        ready = stores.ready() => ready?,
    }
    carry_out(Arc::clone(&ctx), Arc::new(Cluster::new(ctx, stores)), news).await;
    probing.await?;
    Ok(())
}

/// Runs the controller over what runs tasks here until shutdown; `news` says that something changed there.
pub async fn carry_out(ctx: Arc<Context>, runner: Arc<dyn Runner>, news: Arc<Notify>) {
    let mut controller = Controller::new(Arc::clone(&ctx), runner);
    let (mut desired, mut policy) = (ctx.desired.clone(), ctx.policy.clone());
    let (mut enforcement, mut facts) = (ctx.enforcement.subscribe(), ctx.facts.changed());
    loop {
        controller.turn().await;
        tokio::select! {
            () = ctx.shutdown.cancelled() => break,
            () = news.notified() => {}
            () = ctx.desk.news() => {}
            Ok(()) = desired.changed() => {}
            Ok(()) = policy.changed() => {}
            Ok(()) = enforcement.changed() => {}
            Ok(()) = facts.changed() => {}
            () = tokio::time::sleep(TURN) => {}
        }
    }
}

/// What is watched in the task namespace.
struct Stores {
    tasks: Store<RoundTask>,
    jobs: Store<Job>,
    pods: Store<Pod>,
}

impl Stores {
    fn follow(ctx: &Context, news: &Arc<Notify>) -> Self {
        let (client, namespace) = (&ctx.kube, ctx.config.task_namespace.as_str());
        let (news, shutdown) = (|| Arc::clone(news), || ctx.shutdown.clone());
        Self {
            tasks: follow(Api::namespaced(client.clone(), namespace), "", news(), shutdown()),
            jobs: follow(Api::namespaced(client.clone(), namespace), job::TASK_LABEL, news(), shutdown()),
            pods: follow(Api::namespaced(client.clone(), namespace), job::TASK_LABEL, news(), shutdown()),
        }
    }

    async fn ready(&self) -> anyhow::Result<()> {
        self.tasks.wait_until_ready().await?;
        self.jobs.wait_until_ready().await?;
        self.pods.wait_until_ready().await?;
        Ok(())
    }
}

/// Items in the order of one turn: those of which something is here, and then the others, beginning elsewhere each time.
///
/// What is new may have to be fetched, which a hub can let take its time. A veto must not wait for that, so a turn leaves
/// the second part when its time is over; the next one begins behind.
pub(crate) fn in_turn<T>(items: &[T], here: impl Fn(&T) -> bool, turn: usize) -> (Vec<&T>, Vec<&T>) {
    let (first, mut others): (Vec<&T>, Vec<&T>) = items.iter().partition(|item| here(item));
    let begin = turn % others.len().max(1);
    others.rotate_left(begin);
    (first, others)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A hundred offers whose specs never come must not keep a running task from being stopped, nor the last of them
    /// from ever being looked at.
    #[test]
    fn what_is_here_comes_first_and_every_other_once_at_the_front() {
        let of = |turn| in_turn(&[1, 2, 10, 3], |n| *n >= 10, turn);
        assert_eq!(of(0), (vec![&10], vec![&1, &2, &3]));
        assert_eq!(of(1), (vec![&10], vec![&2, &3, &1]));
        assert_eq!(of(5), (vec![&10], vec![&3, &1, &2]));
        assert_eq!(in_turn(&[7], |_| true, 4), (vec![&7], vec![]));
    }
}
