//! `explain`: why each hospital is or is not in a round, and who would have to do what.

use consilium_crds::{FederatedStudy, TrainingRound};
use consilium_federation::round::{Outcome, ProtocolStep, RoundState, RoundStep, SiteReason, SiteState};

use crate::{
    cluster,
    error::{CliError, Result},
    table,
    text::visible,
};

/// The explanation of a study's round.
pub async fn run(namespace: &str, study: &str, number: Option<u32>) -> Result<String> {
    let client = cluster::client().await?;
    let missing = |what, way_out| CliError::Missing { what, name: format!("{namespace}/{study}"), way_out };
    let studies = cluster::list::<FederatedStudy>(&client, Some(namespace)).await?.unwrap_or_default();
    let found = studies.into_iter().find(|s| s.metadata.name.as_deref() == Some(study));
    let way_out = "studies live in the hub's cluster; name the study's namespace with --namespace";
    let found = found.ok_or_else(|| missing("FederatedStudy", way_out))?;
    let mut rounds = cluster::list::<TrainingRound>(&client, Some(namespace)).await?.unwrap_or_default();
    rounds.retain(|round| round.spec.study == study && number.is_none_or(|n| round.spec.number == n));
    match rounds.into_iter().max_by_key(|round| round.spec.number) {
        Some(round) => Ok(explain(&round)),
        None if number.is_some() => Err(missing(
            "the asked round of study",
            "it has not begun, or is beyond spec.rounds.historyLimit and lies in the hub's store only; `kubectl get trounds` \
             lists those that can be explained",
        )),
        None => Ok(no_round(&found)),
    }
}

fn no_round(study: &FederatedStudy) -> String {
    let conditions = study.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
    let said = conditions
        .iter()
        .find(|c| c.status == "False")
        .map(|c| format!("{}: {} ({})\n", c.type_, visible(&c.message), c.reason));
    format!("No round has begun.\n{}", said.unwrap_or_default())
}

fn explain(round: &TrainingRound) -> String {
    let name = format!("{} round {}", round.spec.study, round.spec.number);
    let Some(state) = round.status.as_ref().and_then(|status| status.round.as_ref()) else {
        return format!("{name} has been made and not begun.\n");
    };
    let scored = state.step == RoundStep::Evaluating;
    let through = state.sites.iter().filter(|s| came_through(s, scored)).count();
    let what = if scored { "have scored the new model" } else { "are ready or further" };
    let (all, quorum) = (state.sites.len(), round.spec.quorum);
    let mut text = format!("{name}: {}\n{through} of {all} hospitals {what}; {quorum} are needed.\n\n", summary(state));
    let rows: Vec<Vec<String>> = state.sites.iter().map(|site| row(site, scored)).collect();
    text.push_str(&table::lay_out(&["HOSPITAL", "REASON", "WHO ACTS", "WHAT IT MEANS"], &rows));
    text
}

fn came_through(site: &SiteState, scored: bool) -> bool {
    match site.reason {
        SiteReason::Evaluated => true,
        SiteReason::Ready | SiteReason::Submitted => !scored,
        _ => site.contributed && !scored,
    }
}

fn summary(state: &RoundState) -> String {
    let message = state.message.as_deref().map(|m| format!(": {}", visible(m))).unwrap_or_default();
    match (state.step, state.outcome) {
        (RoundStep::Failed, Some(Outcome::QuorumLost)) => {
            format!("failed, too few hospitals were ready at the deadline{message}")
        }
        (RoundStep::Failed, Some(Outcome::AggregationFailed)) => format!("failed, no attempt came through{message}"),
        (RoundStep::Failed, Some(Outcome::SumUnusable)) => format!("failed, its sum cannot be used{message}"),
        (RoundStep::Failed, Some(Outcome::Cancelled)) => format!("was cancelled{message}"),
        (RoundStep::Failed, _) => format!("failed{message}"),
        (RoundStep::Succeeded, _) => format!("succeeded with {} updates{message}", state.contributors),
        (step, _) => format!("{step:?}, attempt {}{}, until {}{message}", state.attempt, open(state), state.deadline),
    }
}

/// Where an open attempt stands, and what is waited for.
fn open(state: &RoundState) -> String {
    let Some(step) = state.protocol_step else { return String::new() };
    let members: Vec<&SiteState> = state.sites.iter().filter(|site| site.member).collect();
    let done = members.iter().filter(|site| site.done).count();
    match step {
        ProtocolStep::Sum => " (Sum: the hub adds up)".to_owned(),
        _ => format!(" ({step:?}: {done} of {} hospitals have answered)", members.len()),
    }
}

fn row(site: &SiteState, scored: bool) -> Vec<String> {
    let (who, what) = meaning(site, scored);
    let mut what = match &site.message {
        Some(message) => format!("{what} ({message})"),
        None => what.to_owned(),
    };
    if let Some(step) = site.dropped {
        what.push_str(&format!("; it fell out of the attempt at {step:?}"));
    }
    vec![site.site.to_string(), format!("{:?}", site.reason), who.to_owned(), what]
}

/// Who has to act on a reason, if anyone, and what it means. While the model is scored a contribution is past, and the
/// reason speaks of the scoring.
fn meaning(site: &SiteState, scored: bool) -> (&'static str, &'static str) {
    if site.contributed && !scored {
        return ("nobody", "its update is in the sum");
    }
    match site.reason {
        SiteReason::Offered => {
            ("hospital", "its agent has not answered: kubectl get tsite shows whether it is connected")
        }
        SiteReason::AwaitingApproval => {
            ("hospital", "its policy approves each round: raise approvedThroughRound to allow this one")
        }
        SiteReason::AwaitingRoster => (
            "governance",
            "no roster with its key holds in it yet: sign one and apply it at the hub; its SitePolicy status says what it \
             has",
        ),
        SiteReason::DeniedByPolicy => ("nobody", "its policy says no; that is no failure, and no reason is owed"),
        SiteReason::SpecChanged => {
            ("hospital", "the study was edited or made anew since the opt-in: opt in to the new digest")
        }
        SiteReason::Queued => ("nobody", "waits for room on its GPUs"),
        SiteReason::IncompatibleGPU => ("researcher", "it has no hardware that the study asks for: see spec.trainer"),
        SiteReason::NetworkPolicyNotEnforced => {
            ("hospital", "task pods are not kept from the network there, so none starts")
        }
        SiteReason::Training => ("nobody", "is at work"),
        SiteReason::OutOfMemory => {
            ("researcher", "the last try ran out of memory; the next is under way: batchSize or width may be too large")
        }
        SiteReason::InvalidData => {
            ("hospital", "the trainer refused its data or the config; it is not tried again in this round")
        }
        SiteReason::Failed => ("hospital", "all tries failed: kubectl get rtasks in its cluster says why"),
        SiteReason::Ready => ("nobody", "its update is on its own disk and waits for the others"),
        SiteReason::Submitted => ("nobody", "its update is at the hub"),
        SiteReason::Rejected => {
            ("hospital", "its update was refused: out of shape, not finite, or in conflict with an earlier one")
        }
        SiteReason::Missed => {
            ("nobody", "was not ready when the attempt opened, or did not survive it; the next round counts it in")
        }
        SiteReason::Evaluated => ("nobody", "has scored the new model and voted"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn round(step: &str, sites: serde_json::Value) -> TrainingRound {
        let digest = format!("sha256:{}", "0".repeat(64));
        serde_json::from_value(json!({
            "apiVersion": "consilium.health/v1alpha1", "kind": "TrainingRound", "metadata": {"name": "h-1"},
            "spec": {"study": "h", "studyUID": "u", "specDigest": digest, "number": 1, "baseModel": digest,
                "tensorSchema": digest, "participants": ["alder", "birch"], "quorum": 3, "deadline": "2026-06-01T00:00:00Z"},
            "status": {"round": {"step": step, "startedAt": "2026-05-31T00:00:00Z", "deadline": "2026-06-01T00:00:00Z",
                "attempt": 0, "sites": sites}}
        }))
        .unwrap()
    }

    /// The person who asks learns who has to act; a veto is not shown as anyone's fault.
    #[test]
    fn each_hospital_gets_its_reason_and_who_acts() {
        let sites = json!([
            {"site": "alder", "reason": "SpecChanged"},
            {"site": "birch", "reason": "DeniedByPolicy"},
            {"site": "cedar", "reason": "InvalidData", "message": "case 7 is truncated"},
            {"site": "damson", "reason": "Submitted", "contributed": true},
        ]);
        let text = explain(&round("Training", sites));
        for part in [
            "1 of 4 hospitals are ready or further; 3 are needed",
            "alder     SpecChanged     hospital",
            "birch     DeniedByPolicy  nobody    its policy says no; that is no failure",
            "(case 7 is truncated)",
            "damson    Submitted       nobody    its update is in the sum",
        ] {
            assert!(text.contains(part), "{part:?} is not in\n{text}");
        }
    }

    /// In an open attempt the question is who is waited for, and at which step somebody was lost.
    #[test]
    fn an_open_attempt_says_who_is_waited_for_and_who_was_lost() {
        let sites = json!([
            {"site": "alder", "reason": "Submitted", "member": true, "done": true, "survived": true},
            {"site": "birch", "reason": "Submitted", "member": true, "survived": true},
            {"site": "cedar", "reason": "Missed", "dropped": "Upload"},
            {"site": "damson", "reason": "AwaitingRoster"},
        ]);
        let mut round = round("Aggregating", sites);
        if let Some(state) = round.status.as_mut().and_then(|status| status.round.as_mut()) {
            (state.attempt, state.protocol_step) = (1, Some(ProtocolStep::Agree));
        }
        let text = explain(&round);
        for part in [
            "attempt 1 (Agree: 1 of 2 hospitals have answered)",
            "it fell out of the attempt at Upload",
            "damson    AwaitingRoster  governance",
        ] {
            assert!(text.contains(part), "{part:?} is not in\n{text}");
        }
    }

    /// While a model is scored, a hospital that has given its update and cannot score is the one to look at.
    #[test]
    fn while_the_model_is_scored_the_reason_speaks_of_that() {
        let sites = json!([
            {"site": "alder", "reason": "InvalidData", "contributed": true},
            {"site": "birch", "reason": "Evaluated", "contributed": true},
        ]);
        let text = explain(&round("Evaluating", sites));
        assert!(text.contains("1 of 2 hospitals have scored the new model"), "{text}");
        assert!(text.contains("alder     InvalidData  hospital  the trainer refused its data"), "{text}");
    }

    /// A round that the operator has not touched yet must not look like one without hospitals.
    #[test]
    fn a_round_without_a_state_says_so() {
        let mut fresh = round("Training", json!([]));
        fresh.status = None;
        assert_eq!(explain(&fresh), "h round 1 has been made and not begun.\n");
    }
}
