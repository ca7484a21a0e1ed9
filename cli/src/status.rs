//! `status`: one look at a cluster, whichever side it is.

use consilium_crds::{
    FederatedStudy, ModelDeployment, RoundTask, SitePolicy, TrainingRound, TrustSite,
    conditions::{self, status_of},
    site_policy::SitePolicyStatus,
    training_round::sites_through,
};
use consilium_federation::round::{RoundState, RoundStep};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;

use crate::{
    cluster,
    error::{CliError, Result},
    table,
    text::visible,
};

/// The tables of this cluster.
pub async fn run(namespace: Option<&str>, now: Timestamp) -> Result<String> {
    let client = cluster::client().await?;
    let mut text = String::new();
    let studies = cluster::list::<FederatedStudy>(&client, namespace).await?;
    let policies = cluster::list::<SitePolicy>(&client, namespace).await?;
    // Both sides' kinds may be installed; a cluster without a policy is shown as a hub.
    let is_hospital = policies.as_ref().is_some_and(|policies| !policies.is_empty());
    if let Some(studies) = studies.as_ref().filter(|studies| !studies.is_empty() || !is_hospital) {
        let rounds = cluster::list::<TrainingRound>(&client, namespace).await?.unwrap_or_default();
        text.push_str(&study_table(studies, &rounds, now));
        // Hospitals have no namespace; who may see one namespace only may not see them.
        if namespace.is_none() {
            let sites = cluster::list_cluster::<TrustSite>(&client).await?.unwrap_or_default();
            text.push_str(&format!("\n{}", site_table(&sites, now)));
        }
    }
    if let Some(policies) = policies.as_ref().filter(|_| is_hospital || studies.is_none()) {
        let tasks = cluster::list::<RoundTask>(&client, namespace).await?.unwrap_or_default();
        let models = cluster::list::<ModelDeployment>(&client, namespace).await?.unwrap_or_default();
        text.push_str(&hospital(policies, &tasks, &models));
    }
    if studies.is_none() && policies.is_none() {
        return Err(CliError::Missing {
            what: "API group",
            name: "consilium.health".into(),
            way_out: "this cluster is neither a hub nor a hospital: install the chart consilium-crds, or change the context",
        });
    }
    Ok(text)
}

fn dash(text: Option<impl ToString>) -> String {
    text.map_or_else(|| "-".to_owned(), |t| t.to_string())
}

fn condition(list: Option<&[Condition]>, type_: &str) -> String {
    dash(list.and_then(|list| status_of(list, type_)))
}

fn study_table(studies: &[FederatedStudy], rounds: &[TrainingRound], now: Timestamp) -> String {
    let row = |study: &FederatedStudy| {
        let status = study.status.clone().unwrap_or_default();
        let meta = &study.metadata;
        let newest = rounds
            .iter()
            .filter(|r| r.metadata.namespace == meta.namespace && Some(&r.spec.study) == meta.name.as_ref())
            .max_by_key(|r| r.spec.number);
        let state = newest.and_then(|r| r.status.as_ref()?.round.as_ref());
        let running = state.filter(|s| !matches!(s.step, RoundStep::Succeeded | RoundStep::Failed));
        vec![
            format!("{}/{}", dash(meta.namespace.as_ref()), dash(meta.name.as_ref())),
            format!("{}/{}", status.current_round.unwrap_or(0), study.spec.rounds.max),
            dash(state.map(step)),
            dash(state.map(sites_through)),
            study.spec.rounds.quorum.to_string(),
            dash(running.map(|s| span(s.deadline.as_second() - now.as_second()))),
            dash(state.and_then(|s| s.gate.as_ref()?.global.clone())),
            condition(Some(&status.conditions), conditions::READY),
            dash(status.latest_release),
        ]
    };
    let headings = ["STUDY", "ROUND", "STEP", "SITES", "QUORUM", "DEADLINE", "DICE", "READY", "RELEASE"];
    table::lay_out(&headings, &studies.iter().map(row).collect::<Vec<_>>())
}

/// The step, and of an open attempt the protocol's step.
fn step(state: &RoundState) -> String {
    match state.protocol_step {
        Some(open) => format!("{:?}/{open:?}", state.step),
        None => format!("{:?}", state.step),
    }
}

fn site_table(sites: &[TrustSite], now: Timestamp) -> String {
    let row = |site: &TrustSite| {
        let status = site.status.clone().unwrap_or_default();
        vec![
            dash(site.metadata.name.as_ref()),
            site.spec.accepted.to_string(),
            condition(Some(&status.conditions), "Connected"),
            dash(status.last_contact_time.map(|at| format!("{} ago", span(now.as_second() - at.as_second())))),
            dash(status.agent_version),
        ]
    };
    let headings = ["HOSPITAL", "ACCEPTED", "CONNECTED", "LAST CONTACT", "AGENT"];
    table::lay_out(&headings, &sites.iter().map(row).collect::<Vec<_>>())
}

fn hospital(policies: &[SitePolicy], tasks: &[RoundTask], models: &[ModelDeployment]) -> String {
    let mut text = String::new();
    for policy in policies {
        let status = policy.status.clone().unwrap_or_default();
        text.push_str(&format!(
            "Participation {:?}, connected {}, network enforced {}\n\n",
            policy.spec.participation,
            condition(Some(&status.conditions), "Connected"),
            condition(Some(&status.conditions), "Enforced"),
        ));
        text.push_str(&masks(policy, &status));
        let offered = status.studies.iter().map(|s| vec![s.study.to_string(), s.round.to_string(), s.reason.clone()]);
        text.push_str(&table::lay_out(&["STUDY", "ROUND", "DECISION"], &offered.collect::<Vec<_>>()));
        text.push('\n');
    }
    let task = |task: &RoundTask| {
        let status = task.status.clone().unwrap_or_default();
        vec![
            dash(task.metadata.name.as_ref()),
            dash(status.r#try),
            dash(status.reason.map(|r| format!("{r:?}"))),
            dash(status.progress),
        ]
    };
    text.push_str(&table::lay_out(&["TASK", "TRY", "REASON", "PROGRESS"], &tasks.iter().map(task).collect::<Vec<_>>()));
    let model = |model: &ModelDeployment| {
        let conditions = model.status.as_ref().map(|status| status.conditions.as_slice());
        vec![model.spec.release.clone(), model.spec.stage.to_string(), condition(conditions, conditions::READY)]
    };
    text.push('\n');
    text.push_str(&table::lay_out(&["MODEL", "STAGE", "READY"], &models.iter().map(model).collect::<Vec<_>>()));
    text
}

/// What masked sums need of this hospital: its key, the governance it pinned, and the rosters that hold.
fn masks(policy: &SitePolicy, status: &SitePolicyStatus) -> String {
    let mut text = format!("Signing key {}\n", visible(&dash(status.signing_key.as_ref())));
    text.push_str(&match &policy.spec.governance {
        Some(governance) => {
            let names: Vec<&str> = governance.keys.iter().map(|key| key.id.as_str()).collect();
            let text =
                format!("Governance of {}: {} of {}", governance.federation, governance.required, names.join(", "));
            format!("{}\n", visible(&text))
        }
        None => {
            "Governance: not pinned, so that only studies with protocol None can run (spec.governance)\n".to_owned()
        }
    });
    let versions: Vec<String> =
        status.rosters.iter().map(|r| format!("version {} with {} hospitals", r.version, r.sites)).collect();
    let held = if versions.is_empty() { "none".to_owned() } else { versions.join(", ") };
    text.push_str(&format!("Rosters that hold: {held}\n"));
    if let Some(no) = status.conditions.iter().find(|c| c.type_ == "RosterAccepted" && c.status == "False") {
        text.push_str(&format!("No roster to take part under: {}\n", visible(&no.message)));
    }
    if let Some(back) = status.conditions.iter().find(|c| c.type_ == "StateRolledBack" && c.status == "True") {
        text.push_str(&format!("State rolled back: {}\n", visible(&back.message)));
    }
    text.push('\n');
    text
}

/// Seconds as a person says them: the two largest units; what lies in the past is `over`.
fn span(seconds: i64) -> String {
    match seconds {
        i64::MIN..0 => "over".to_owned(),
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m", seconds / 60),
        3600..86_400 => format!("{}h{}m", seconds / 3600, seconds / 60 % 60),
        _ => format!("{}d{}h", seconds / 86_400, seconds / 3600 % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// The line answers "is it working?": how far, how many hospitals, by when.
    #[test]
    fn a_study_shows_its_newest_round() {
        let study: FederatedStudy =
            serde_yaml_ng::from_str(include_str!("../../examples/hippocampus/study.yaml")).unwrap();
        let mut study = study;
        study.status = serde_json::from_value(json!({"currentRound": 2, "conditions": []})).ok();
        let digest = format!("sha256:{}", "0".repeat(64));
        let round = |number: u32, step: &str| -> TrainingRound {
            serde_json::from_value(json!({
                "apiVersion": "consilium.health/v1alpha1", "kind": "TrainingRound",
                "metadata": {"name": format!("r{number}"), "namespace": study.metadata.namespace},
                "spec": {"study": study.metadata.name, "studyUID": "u", "specDigest": digest, "number": number,
                    "baseModel": digest, "tensorSchema": digest, "participants": ["alder"], "quorum": 3,
                    "deadline": "2026-06-01T00:41:00Z"},
                "status": {"round": {"step": step, "startedAt": "2026-05-31T00:00:00Z", "deadline": "2026-06-01T00:41:00Z",
                    "attempt": 0, "sites": [{"site": "alder", "reason": "Ready"}, {"site": "birch", "reason": "Training"}]}}
            }))
            .unwrap()
        };
        let now = "2026-06-01T00:00:00Z".parse().unwrap();
        let text = study_table(&[study.clone()], &[round(2, "Training"), round(1, "Succeeded")], now);
        let cells: Vec<&str> = text.lines().nth(1).unwrap().split_whitespace().collect();
        assert_eq!(cells[1..], ["2/5", "Training", "1/2", "3", "41m", "-", "-", "-"], "{text}");
    }

    /// An administrator finds here what the governance needs of this hospital, and what keeps it out of masked sums.
    #[test]
    fn a_hospital_shows_its_key_and_whose_rosters_hold() {
        let text = include_str!("../../examples/hippocampus/site-policy.yaml");
        let mut policy: SitePolicy = serde_yaml_ng::from_str(text).unwrap();
        let fresh = hospital(std::slice::from_ref(&policy), &[], &[]);
        assert!(fresh.contains("Signing key -\n") && fresh.contains("Rosters that hold: none"), "{fresh}");
        let digest = format!("sha256:{}", "0".repeat(64));
        policy.status = serde_json::from_value(json!({
            "signingKey": "11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=",
            "rosters": [{"version": 3, "digest": digest, "sites": 4}],
            "conditions": [
                {"type": "StateRolledBack", "status": "True", "reason": "Restored", "message": "a copy",
                    "lastTransitionTime": "2026-06-01T00:00:00Z"},
                {"type": "RosterAccepted", "status": "False", "reason": "NotListed", "message": "not on version 3",
                    "lastTransitionTime": "2026-06-01T00:00:00Z"},
            ],
        }))
        .ok();
        let shown = hospital(std::slice::from_ref(&policy), &[], &[]);
        for part in ["Signing key 11qY", "2 of ", "version 3 with 4 hospitals", "rolled back: a copy", "under: not on"]
        {
            assert!(shown.contains(part), "{part:?} is not in\n{shown}");
        }
        policy.spec.governance = None;
        assert!(hospital(&[policy], &[], &[]).contains("only studies with protocol None"));
    }

    /// A deadline in the past must not read as one in the far future.
    #[test]
    fn spans_are_short_and_never_negative() {
        let shown: Vec<String> = [-5, 0, 59, 61, 3661, 90_000].into_iter().map(span).collect();
        assert_eq!(shown, ["over", "0s", "59s", "1m", "1h1m", "1d1h"]);
    }
}
