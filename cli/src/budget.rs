//! `budget`: what a hospital's policy allows of everything that can be counted, and what of it is used.

use consilium_crds::conditions::status_of;
use consilium_crds::site_policy::{Limits, SitePolicy, UsedAmounts};
use consilium_crds::{RoundTask, RoundTaskStatus};
use consilium_federation::task::TaskKind;

use crate::cluster;
use crate::error::{CliError, Result};
use crate::table;

/// The tables of this hospital.
pub async fn run() -> Result<String> {
    let client = cluster::client().await?;
    let policies = cluster::list::<SitePolicy>(&client, None).await?.unwrap_or_default();
    let policy = policies.first().ok_or(CliError::Missing {
        what: "SitePolicy",
        name: "default".into(),
        way_out: "a budget is a hospital's: change the context, or create the policy",
    })?;
    let tasks = cluster::list::<RoundTask>(&client, None).await?.unwrap_or_default();
    Ok(show(policy, &tasks))
}

fn show(policy: &SitePolicy, tasks: &[RoundTask]) -> String {
    let limits = policy.spec.limits.clone().unwrap_or_default();
    let used = policy.status.as_ref().and_then(|status| status.used.clone());
    let mut text = table::lay_out(&["SPEC.LIMITS", "ALLOWED", "USED", "WHAT"], &rows(&limits, used.as_ref(), tasks));
    let study = |study: &consilium_crds::site_policy::StudyOptIn| {
        let offered =
            policy.status.iter().flat_map(|status| &status.studies).find(|offered| offered.study == study.study);
        let through = study.approved_through_round.map_or_else(|| "-".to_owned(), |round| round.to_string());
        let earlier: Vec<String> =
            study.earlier.iter().map(|one| format!("{} to {}", short(&one.spec_digest), one.through_round)).collect();
        vec![
            study.study.to_string(),
            format!("{:?}", study.approval),
            through,
            offered.map_or_else(|| "-".to_owned(), |offered| offered.round.to_string()),
            short(&study.spec_digest),
            if earlier.is_empty() { "-".to_owned() } else { earlier.join(", ") },
        ]
    };
    let headings = ["STUDY", "APPROVAL", "THROUGH ROUND", "OFFERED", "SPEC", "EARLIER SPECS, AND THEIR LAST ROUND"];
    text.push('\n');
    text.push_str(&table::lay_out(&headings, &policy.spec.studies.iter().map(study).collect::<Vec<_>>()));
    text
}

fn short(digest: &consilium_federation::digest::Digest) -> String {
    digest.hex().chars().take(12).collect()
}

fn rows(limits: &Limits, used: Option<&UsedAmounts>, tasks: &[RoundTask]) -> Vec<Vec<String>> {
    let open = |task: &&RoundTask| {
        let conditions = |status: &RoundTaskStatus| status_of(&status.conditions, "Succeeded").map(str::to_owned);
        let over = task.status.as_ref().and_then(conditions).is_some_and(|word| word != "Unknown");
        !over && task.metadata.deletion_timestamp.is_none()
    };
    let running = tasks.iter().filter(open).count();
    let evaluating = tasks.iter().filter(open).filter(|task| task.spec.kind == TaskKind::Evaluate).count();
    let allowed = |limit: Option<u32>| limit.map_or_else(|| "no limit".to_owned(), |limit| limit.to_string());
    let counted = |of: fn(&UsedAmounts) -> u64| used.map_or_else(|| "-".to_owned(), |used| of(used).to_string());
    let row = |name: &str, allowed: String, used: String, what: &str| vec![name.into(), allowed, used, what.into()];
    vec![
        row(
            "tasksPerRound",
            limits.tasks_per_round.unwrap_or(1).to_string(),
            "-".into(),
            "trainings of one approved round, and evaluations of one",
        ),
        row(
            "tasksPerDay",
            allowed(limits.tasks_per_day),
            counted(|u| u.tasks_within_day.into()),
            "tasks begun in 24 h",
        ),
        row(
            "roundsPerDay",
            allowed(limits.rounds_per_day),
            counted(|u| u.rounds_within_day.into()),
            "rounds begun in 24 h, over all studies",
        ),
        row("concurrentTasks", allowed(limits.concurrent_tasks), running.to_string(), "tasks under way"),
        row(
            "concurrentEvaluations",
            allowed(limits.concurrent_evaluations),
            evaluating.to_string(),
            "evaluations among them",
        ),
        row("gpuHours", allowed(limits.gpu_hours), counted(|u| u.gpu_hours), "GPU hours held by tasks in 30 days"),
        row(
            "taskDuration",
            limits.task_duration.clone().unwrap_or_else(|| "168h".into()),
            "-".into(),
            "the longest that one task may live",
        ),
    ]
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// Whoever asks why a round waits finds the limit that it waits for, and whoever approves sees what was approved.
    #[test]
    fn what_is_allowed_stands_beside_what_is_used() {
        let text = include_str!("../../examples/hippocampus/site-policy.yaml");
        let mut policy: SitePolicy = serde_yaml_ng::from_str(text).unwrap();
        let fresh = show(&policy, &[]);
        assert!(fresh.contains("no limit") && fresh.contains("168h"), "{fresh}");
        policy.spec.limits = serde_json::from_value(json!({"gpuHours": 400, "concurrentEvaluations": 1})).unwrap();
        policy.status =
            serde_json::from_value(json!({"used": {"tasksWithinDay": 3, "roundsWithinDay": 2, "gpuHours": 399}}))
                .unwrap();
        let digest = format!("sha256:{}", "0".repeat(64));
        let task = |name: &str, kind: &str, conditions: serde_json::Value| -> RoundTask {
            serde_json::from_value(json!({
                "apiVersion": "consilium.health/v1alpha1", "kind": "RoundTask", "metadata": {"name": name},
                "spec": {"study": "a/b", "studyUID": "u", "specDigest": digest, "roundUID": "r", "round": 1, "kind": kind,
                    "model": digest, "image": format!("r.example/t@{digest}"), "gpus": 8, "deadline": "2026-06-01T00:00:00Z"},
                "status": {"conditions": conditions},
            }))
            .unwrap()
        };
        let over = json!([{"type": "Succeeded", "status": "False", "reason": "r", "message": "",
            "lastTransitionTime": "2026-06-01T00:00:00Z"}]);
        let tasks = [task("a", "Train", json!([])), task("b", "Evaluate", json!([])), task("c", "Train", over)];
        let shown = show(&policy, &tasks);
        let cells = |name: &str| -> Vec<String> {
            let line = shown.lines().find(|line| line.starts_with(name)).unwrap_or_default();
            line.split("  ").map(str::trim).filter(|cell| !cell.is_empty()).take(3).map(str::to_owned).collect()
        };
        assert_eq!(cells("gpuHours"), ["gpuHours", "400", "399"]);
        assert_eq!(cells("concurrentTasks"), ["concurrentTasks", "no limit", "2"]);
        assert_eq!(cells("concurrentEvaluations"), ["concurrentEvaluations", "1", "1"]);
        assert_eq!(cells("roundsPerDay"), ["roundsPerDay", "no limit", "2"]);
    }
}
