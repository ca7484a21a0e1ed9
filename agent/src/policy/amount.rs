//! How much of what was approved may run: consent bounds an amount. Pure.
//!
//! A round is approved by its study and number. The hub gives it a UID and a model to start from, and could give it as
//! many of both as it likes; each would be another training on the same scans.

use consilium_crds::site_policy::{Limits, SitePolicySpec};
use consilium_federation::assignment::RoundWork;
use consilium_federation::round::SiteReason;
use consilium_federation::task::TaskKind;

use super::Decision;
use crate::state::Taken;

/// What has run, or runs.
#[derive(Clone, Debug, Default)]
pub struct Spent {
    /// The tasks that this round's approval was used for, of the same kind.
    pub taken: Vec<Taken>,
    /// Tasks that began within the last 24 hours.
    pub today: u32,
    /// Other rounds of which a task began within the last 24 hours.
    pub rounds: u32,
    /// Tasks that are under way.
    pub running: u32,
    /// Evaluations among them.
    pub evaluating: u32,
    /// GPU seconds that tasks held within the last 30 days.
    pub gpu_seconds: u64,
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
    // These pass by themselves, so the hub is told to wait.
    match limits_reached(work, &limits, spent).next() {
        Some(why) => Decision::refused(SiteReason::Queued, format!("{why}; this one waits")),
        None => Decision::Allowed,
    }
}

/// What there is too much of for now.
fn limits_reached<'a>(work: &RoundWork, limits: &'a Limits, spent: &'a Spent) -> impl Iterator<Item = String> + 'a {
    let evaluations = limits.concurrent_evaluations.filter(|_| work.kind == TaskKind::Evaluate);
    let gpu_hours = spent.gpu_seconds / 3600;
    let rows: [(&str, Option<u32>, u64, &str); 5] = [
        ("tasksPerDay", limits.tasks_per_day, spent.today.into(), "tasks began within 24 hours"),
        ("roundsPerDay", limits.rounds_per_day, spent.rounds.into(), "other rounds began within 24 hours"),
        ("concurrentTasks", limits.concurrent_tasks, spent.running.into(), "tasks are under way"),
        ("concurrentEvaluations", evaluations, spent.evaluating.into(), "evaluations are under way"),
        ("gpuHours", limits.gpu_hours, gpu_hours, "GPU hours were held within 30 days"),
    ];
    rows.into_iter().filter_map(|(field, most, used, what)| {
        let most = most.filter(|most| used >= u64::from(*most))?;
        Some(format!("{used} {what} and SitePolicy spec.limits.{field} is {most}"))
    })
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
            (json!({"roundsPerDay": 2}), Spent { rounds: 2, ..Spent::default() }),
            (json!({"gpuHours": 10}), Spent { gpu_seconds: 36_000, ..Spent::default() }),
        ] {
            let (field, refused) = (limits.to_string(), amount("u", &work(), &with(limits.clone()), &spent));
            assert_eq!(refused.reason_name(), "Queued", "{field}");
            let name = limits.as_object().unwrap().keys().next().unwrap().clone();
            assert!(refused.message().is_some_and(|why| why.contains(&name)), "{field}: {refused:?}");
            assert_eq!(amount("u", &work(), &with(limits), &Spent::default()), Decision::Allowed);
        }
        let almost = Spent { gpu_seconds: 35_999, ..Spent::default() };
        assert_eq!(amount("u", &work(), &with(json!({"gpuHours": 10})), &almost), Decision::Allowed);
        // An evaluation waits for evaluations, and a training does not.
        let busy = Spent { evaluating: 1, ..Spent::default() };
        let one = with(json!({"concurrentEvaluations": 1}));
        let evaluate = RoundWork { kind: TaskKind::Evaluate, ..work() };
        assert_eq!(amount("u", &evaluate, &one, &busy).reason_name(), "Queued");
        assert_eq!(amount("u", &work(), &one, &busy), Decision::Allowed);
    }
}
