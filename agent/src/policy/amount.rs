//! How much of what was approved may run: consent bounds an amount. Pure.
//!
//! A round is approved by its study and number. The hub gives it a UID and a model to start from, and could give it as
//! many of both as it likes; each would be another training on the same scans.

use consilium_crds::site_policy::SitePolicySpec;
use consilium_federation::assignment::RoundWork;
use consilium_federation::round::SiteReason;

use super::Decision;
use crate::state::Taken;

/// What has run, or runs.
#[derive(Clone, Debug, Default)]
pub struct Spent {
    /// The tasks that this round's approval was used for, of the same kind.
    pub taken: Vec<Taken>,
    /// Tasks that began within the last 24 hours.
    pub today: u32,
    /// Tasks that are under way.
    pub running: u32,
}

/// Whether there is room for this task. What was begun once is never one too many.
pub fn amount(uid: &str, work: &RoundWork, policy: &SitePolicySpec, spent: &Spent) -> Decision {
    let limits = policy.limits.clone().unwrap_or_default();
    if spent.taken.iter().any(|taken| taken.is_of(uid, work)) {
        return Decision::Allowed;
    }
    let most = limits.tasks_per_round.unwrap_or(1);
    if let Some(first) = spent.taken.first().filter(|_| spent.taken.len() >= most as usize) {
        return Decision::refused(
            SiteReason::DeniedByPolicy,
            format!(
                "round {} of study {} was approved for {most} task of kind {} (SitePolicy spec.limits.tasksPerRound), and that was for UID {} and model {} at {}; the hub asks again under UID {uid} and model {}; raise it to allow another",
                work.round,
                work.study,
                work.kind.as_str(),
                first.round_uid,
                first.model,
                first.at,
                work.model
            ),
        );
    }
    // Both pass by themselves, so the hub is told to wait.
    let wait = |message: String| Decision::refused(SiteReason::Queued, message);
    if let Some(most) = limits.tasks_per_day.filter(|most| spent.today >= *most) {
        return wait(format!(
            "{} tasks began within 24 hours and SitePolicy spec.limits.tasksPerDay is {most}; this one waits",
            spent.today
        ));
    }
    if let Some(most) = limits.concurrent_tasks.filter(|most| spent.running >= *most) {
        return wait(format!(
            "{} tasks are under way and SitePolicy spec.limits.concurrentTasks is {most}; this one waits",
            spent.running
        ));
    }
    Decision::Allowed
}

#[cfg(test)]
mod tests {
    use consilium_federation::Digest;
    use serde_json::json;

    use super::super::tests::{policy, work};
    use super::*;

    fn taken(uid: &str, model: Digest) -> Taken {
        Taken { round_uid: uid.into(), model, at: "2026-06-01T12:00:00Z".parse().unwrap() }
    }

    fn with(limits: serde_json::Value) -> SitePolicySpec {
        policy(&[("/limits", limits)])
    }

    /// A hub that gives an approved round another UID, or another model, each hour would train for ever on one approval.
    #[test]
    fn an_approved_round_is_one_training_whatever_the_hub_calls_it() {
        let (unset, work) = (policy(&[]), work());
        let spent = Spent { taken: vec![taken("first", work.model)], ..Spent::default() };
        assert_eq!(amount("first", &work, &unset, &Spent::default()), Decision::Allowed);
        assert_eq!(amount("first", &work, &unset, &spent), Decision::Allowed, "the same one goes on");
        let other = RoundWork { model: Digest::of(b"another"), ..work.clone() };
        for (uid, work) in [("second", &work), ("first", &other)] {
            let refused = amount(uid, work, &unset, &spent);
            assert_eq!(refused.reason_name(), "DeniedByPolicy");
            assert!(refused.message().is_some_and(|m| m.contains("tasksPerRound") && m.contains("first")));
        }
        assert_eq!(amount("second", &work, &with(json!({"tasksPerRound": 2})), &spent), Decision::Allowed);
    }

    /// A hospital whose GPUs are for other work too says how many tasks it takes; the hub is told to wait, not no.
    #[test]
    fn what_is_too_much_for_now_waits() {
        for (limits, spent) in [
            (json!({"tasksPerDay": 3}), Spent { today: 3, ..Spent::default() }),
            (json!({"concurrentTasks": 1}), Spent { running: 1, ..Spent::default() }),
        ] {
            assert_eq!(amount("u", &work(), &with(limits.clone()), &spent).reason_name(), "Queued", "{limits}");
            assert_eq!(amount("u", &work(), &with(limits), &Spent::default()), Decision::Allowed);
        }
    }
}
