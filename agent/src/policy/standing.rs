//! May what is here go on? Judged from its own spec and the policy alone, with nothing that the hub says: so it can be
//! asked with the hub away, lying or too talkative, on a new volume and on a broken one.
//!
//! These rungs are a part of the ladders in this folder, by the same functions: what they refuse, the ladders refuse.

use consilium_crds::RoundTaskSpec;
use consilium_crds::site_policy::{Participation, SitePolicySpec};
use consilium_federation::task::TaskKind;
use jiff::Timestamp;

use super::rungs::{self, Asked};
use super::{Barrier, Decision};
use crate::Enforcement;

/// What of one kind there may be in this hospital.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Room {
    /// What is here, and more.
    Open,
    /// What is here, and nothing new; which field says so.
    Kept(&'static str),
    /// Nothing; which field says so, and what it holds.
    Closed(&'static str),
}

/// Trainings and evaluations.
pub fn tasks(policy: &SitePolicySpec) -> Room {
    match policy.participation {
        Participation::Disabled => Room::Closed("spec.participation is Disabled"),
        _ if policy.suspended().tasks => Room::Closed("spec.suspend.tasks is true"),
        Participation::Drain => Room::Kept("spec.participation is Drain"),
        Participation::Enabled => Room::Open,
    }
}

/// Models in use.
pub fn models(policy: &SitePolicySpec) -> Room {
    match policy.participation {
        Participation::Disabled => Room::Closed("spec.participation is Disabled"),
        _ if policy.suspended().models => Room::Closed("spec.suspend.models is true"),
        Participation::Drain => Room::Kept("spec.participation is Drain"),
        Participation::Enabled => Room::Open,
    }
}

/// Whether the hub may learn more than that this hospital is there and says no.
pub fn speaks(policy: Option<&SitePolicySpec>) -> bool {
    policy.is_some_and(|policy| policy.participation != Participation::Disabled)
}

/// There is no SitePolicy, so nothing may be here.
pub(super) const NO_POLICY: &str =
    "there is no SitePolicy \"default\" in the agent's namespace, so nothing is allowed; create one to take part";

/// Why a task must stop now.
///
/// `since` is when its RoundTask was made: no deadline is the hub's alone.
pub fn task_must_stop(
    task: &RoundTaskSpec,
    since: Option<Timestamp>,
    policy: Option<&SitePolicySpec>,
    enforcement: &Enforcement,
    now: Timestamp,
) -> Option<String> {
    let Some(policy) = policy else { return Some(NO_POLICY.to_owned()) };
    let judged = || -> Result<(), Decision> {
        rungs::participation(policy, Barrier::Fetch)?;
        rungs::opted_in(&Asked::of_task(task), policy)?;
        rungs::image(&task.image, policy)?;
        rungs::gpus(task.gpus, policy)
    };
    if let Err(refused) = judged() {
        return Some(refused.message().unwrap_or_default().to_owned());
    }
    if task.kind == TaskKind::Init {
        return Some("a task of kind Init never runs in a hospital; nobody but the agent makes RoundTasks".to_owned());
    }
    if let Enforcement::NotEnforced(what) = enforcement {
        return Some(format!("task pods are not kept from the network ({what})"));
    }
    let limit = policy.task_duration();
    let over = since.is_some_and(|since| now.duration_since(since) >= limit);
    over.then(|| {
        format!(
            "the task was made {} ago or more and SitePolicy spec.limits.taskDuration lets none live longer",
            hours(limit)
        )
    })
}

/// When a task's time is over: at the hub's deadline, or the hospital's own where that comes first.
pub fn ends(hub: Timestamp, since: Option<Timestamp>, policy: Option<&SitePolicySpec>) -> Timestamp {
    let own = since.zip(policy).and_then(|(since, policy)| since.checked_add(policy.task_duration()).ok());
    own.map_or(hub, |own| own.min(hub))
}

fn hours(limit: jiff::SignedDuration) -> String {
    let (hours, minutes, seconds) = (limit.as_hours(), limit.as_mins() % 60, limit.as_secs() % 60);
    let parts = [(hours, "h"), (minutes, "m"), (seconds, "s")];
    parts.iter().filter(|(n, _)| *n > 0).map(|(n, unit)| format!("{n}{unit}")).collect()
}

/// Whether there is room for a model that is in use already, or is not.
pub(super) fn model_room(policy: &SitePolicySpec, in_use: bool) -> Result<(), String> {
    match models(policy) {
        Room::Open => Ok(()),
        Room::Kept(_) if in_use => Ok(()),
        Room::Kept(field) => {
            Err(format!("SitePolicy {field}: no model comes into use; set spec.participation to Enabled to allow that"))
        }
        Room::Closed(field) => Err(format!("SitePolicy {field}, so no model is in use; change that to use models")),
    }
}

#[cfg(test)]
#[path = "standing_tests.rs"]
pub(super) mod tests;
