//! What is said of a part in a round: its RoundTask's status for the hospital, its fact for the hub. Pure.

use consilium_crds::RoundTaskStatus;
use consilium_crds::conditions::{Conditions, SUCCEEDED, status_of};
use consilium_crds::study::FederatedStudySpec;
use consilium_crds::values::ValueError;
use consilium_federation::digest::Digest;
use consilium_federation::gate::{CaseSums, vote};
use consilium_federation::report::{Evaluation, RoundReport};
use consilium_federation::round::SiteReason;
use consilium_federation::task::{Progress, ScoreFile, TaskKind};
use jiff::Timestamp;

use super::decide::Verdict;
use crate::policy::{Decision, reason_name};
use crate::words;

/// The hospital's word allows the task.
pub const APPROVED: &str = "Approved";
/// The result is on the agent's volume.
pub const DELIVERED: &str = "Delivered";

/// What a RoundTask's status is made of.
#[derive(Clone, Debug)]
pub struct StatusInputs<'a> {
    /// The status so far.
    pub old: Option<&'a RoundTaskStatus>,
    /// `metadata.generation`.
    pub generation: Option<i64>,
    /// The hospital's word.
    pub decision: &'a Decision,
    /// Where the part is, with what became of the upload laid over it.
    pub verdict: &'a Verdict,
    /// The newest try and its Job.
    pub newest: Option<(u32, String)>,
    /// How far the trainer says it is.
    pub progress: Option<Progress>,
    /// When the result was durable, and the digest of an update.
    pub delivered: Option<(Timestamp, Option<Digest>)>,
    /// The time.
    pub now: Timestamp,
}

/// The status to be; equal to the old one when nothing changed. `irreversible` is the link's and is left out.
pub fn status(inputs: &StatusInputs<'_>) -> RoundTaskStatus {
    let old = inputs.old.cloned().unwrap_or_default();
    let mut conditions = Conditions::from_status(&old.conditions, inputs.generation, inputs.now);
    match inputs.decision {
        Decision::Allowed => conditions.set(APPROVED, true, "Allowed", ""),
        Decision::SpecNeeded => {
            conditions.unknown(APPROVED, "SpecNeeded", "the study's spec has not come from the hub yet")
        }
        Decision::Refused { reason, message } => conditions.set(APPROVED, false, reason_name(*reason), message),
    };
    let (name, message) = (reason_name(inputs.verdict.reason), inputs.verdict.message.as_deref().unwrap_or_default());
    match &inputs.delivered {
        Some(_) => conditions.set(DELIVERED, true, "Stored", "the result is on the agent's volume"),
        None => conditions.set(DELIVERED, false, name, ""),
    };
    match end(inputs.verdict.reason) {
        Some(good) => conditions.set(SUCCEEDED, good, name, message),
        None => conditions.unknown(SUCCEEDED, name, message),
    };
    let newest = inputs.newest.clone().unzip();
    RoundTaskStatus {
        observed_generation: inputs.generation,
        r#try: newest.0.max(old.r#try),
        job_name: newest.1.or(old.job_name),
        reason: Some(inputs.verdict.reason),
        progress: inputs.progress.as_ref().map(|p| format!("{}/{}", p.step, p.of)).or(old.progress),
        delivered_time: inputs.delivered.map(|d| d.0),
        update_digest: inputs.delivered.and_then(|d| d.1),
        irreversible: None,
        conditions: conditions.into_list(),
    }
}

/// Whether this reason ends a task, and well.
fn end(reason: SiteReason) -> Option<bool> {
    match reason {
        SiteReason::Ready | SiteReason::Submitted | SiteReason::Evaluated => Some(true),
        SiteReason::InvalidData | SiteReason::Failed | SiteReason::Rejected => Some(false),
        _ => None,
    }
}

/// Whether a task has come to no end so far.
pub fn is_open(status: Option<&RoundTaskStatus>) -> bool {
    status.and_then(|s| s.reason).is_none_or(|reason| end(reason).is_none() && reason != SiteReason::Missed)
}

/// The end that a status remembers, which no later look at Jobs and pods may change.
pub fn remembered_end(status: Option<&RoundTaskStatus>) -> Option<(SiteReason, String)> {
    let status = status?;
    let reason = status.reason.filter(|r| end(*r) == Some(false))?;
    if status_of(&status.conditions, SUCCEEDED) != Some("False") {
        return None;
    }
    let message = status.conditions.iter().find(|c| c.type_ == SUCCEEDED).map(|c| c.message.clone());
    Some((reason, message.unwrap_or_default()))
}

/// The fact for the hub. What a trainer wrote may name files of patients, or be what a study's image wants to tell the hub
/// past the masks, and no refusal owes a justification: all of it stays in the hospital.
///
/// What the API server refuses of a part that the policy allows is said as such, or the hub would read it as the policy's word.
pub fn report(
    (uid, kind): (&str, TaskKind),
    decision: &Decision,
    verdict: &Verdict,
    evaluation: Option<Evaluation>,
) -> RoundReport {
    let words = match verdict.reason {
        SiteReason::DeniedByPolicy if *decision == Decision::Allowed => Some(words::TASK_NOT_ADMITTED),
        SiteReason::InvalidData => Some(words::BAD_DATA),
        SiteReason::Failed => Some(words::NO_RESULT),
        SiteReason::OutOfMemory => Some(words::OUT_OF_MEMORY),
        SiteReason::Rejected => Some(words::RESULT_REFUSED),
        _ => None,
    };
    let message = words.map(str::to_owned);
    RoundReport { uid: uid.to_owned(), kind, reason: verdict.reason, message, evaluation }
}

/// What leaves after an evaluation: the vote, sums where the policy allows plain numbers, the numbers by opt-in.
pub fn evaluation(
    score: &ScoreFile,
    spec: &FederatedStudySpec,
    allow_sums: bool,
    publish: bool,
) -> Result<Option<Evaluation>, ValueError> {
    let Some(gate) = spec.gate()? else { return Ok(None) };
    let sums = score.mean_dice().map(|dice| CaseSums { cases: score.cases, dice: dice * f64::from(score.cases) });
    Ok(Some(Evaluation {
        vote: vote(score, gate.per_site_min, gate.min_cases),
        sums: sums.filter(|_| allow_sums),
        published: publish.then(|| score.clone()),
    }))
}

#[cfg(test)]
mod tests {
    use consilium_federation::gate::Vote;
    use consilium_federation::task::ClassScore;
    use serde_json::json;

    use super::*;

    fn verdict(reason: SiteReason, message: &str) -> Verdict {
        Verdict { reason, message: Some(message.into()) }
    }

    fn made(verdict: &Verdict, old: Option<&RoundTaskStatus>, now: &str) -> RoundTaskStatus {
        status(&StatusInputs {
            old,
            generation: Some(1),
            decision: &Decision::Allowed,
            verdict,
            newest: Some((2, "t-2".into())),
            progress: Some(Progress { step: 12, of: 40, eta_seconds: None }),
            delivered: None,
            now: now.parse().unwrap(),
        })
    }

    /// A status that differs on every look would be written on every look, by every hospital.
    #[test]
    fn an_unchanged_state_is_an_unchanged_status() {
        let state = verdict(SiteReason::Training, "");
        let first = made(&state, None, "2026-01-01T00:00:00Z");
        assert_eq!(first.progress.as_deref(), Some("12/40"));
        assert_eq!(made(&state, Some(&first), "2026-01-02T00:00:00Z"), first);
    }

    #[test]
    fn a_bad_end_is_remembered_with_its_words_and_a_good_one_is_not() {
        let bad = made(&verdict(SiteReason::InvalidData, "scan.nii.gz"), None, "2026-01-01T00:00:00Z");
        assert_eq!(status_of(&bad.conditions, SUCCEEDED), Some("False"));
        assert_eq!(remembered_end(Some(&bad)), Some((SiteReason::InvalidData, "scan.nii.gz".into())));
        for reason in [SiteReason::Training, SiteReason::Ready, SiteReason::DeniedByPolicy] {
            let other = made(&verdict(reason, ""), None, "2026-01-01T00:00:00Z");
            assert_eq!(remembered_end(Some(&other)), None, "{reason:?}");
        }
    }

    /// File names can be names of patients, and the words of a study's image can be scans: whatever the reason.
    #[test]
    fn what_a_trainer_or_a_policy_says_stays_in_the_hospital() {
        for reason in SiteReason::ALL {
            for decision in [Decision::Allowed, Decision::SpecNeeded] {
                let report = report(("u", TaskKind::Train), &decision, &verdict(reason, "doe_jane.nii.gz"), None);
                assert!(!format!("{report:?}").contains("doe_jane"), "{reason:?}");
            }
        }
    }

    fn spec() -> FederatedStudySpec {
        serde_json::from_value(json!({
            "sites": [{"name": "alder"}],
            "trainer": {"image": "r/t@sha256:0", "gpus": 0},
            "initialModel": {"seed": 7},
            "aggregation": {"secure": {"protocol": "None", "minContributors": 3}, "clipNorm": "10"},
            "rounds": {"max": 5, "quorum": 3, "deadline": "1h"},
            "gate": {"metric": "dice", "min": "0.8", "perSiteMin": "0.7", "minCases": 5},
        }))
        .unwrap()
    }

    #[test]
    fn only_what_the_policy_allows_leaves_with_a_vote() {
        let class = |dice| ClassScore { label: 1, dice, hd95_mm: None, assd_mm: None };
        let score = ScoreFile { cases: 10, classes: vec![class(0.9), class(0.7)] };
        let quiet = evaluation(&score, &spec(), false, false).unwrap().unwrap();
        assert_eq!((quiet.vote, quiet.sums, quiet.published), (Vote::Pass, None, None));
        let open = evaluation(&score, &spec(), true, true).unwrap().unwrap();
        assert_eq!(open.published, Some(score));
        let sums = open.sums.unwrap();
        assert!(sums.cases == 10 && (sums.dice - 8.0).abs() < 1e-9);
        let ungated = FederatedStudySpec { gate: None, ..spec() };
        assert_eq!(evaluation(&ScoreFile { cases: 1, classes: vec![] }, &ungated, true, true).unwrap(), None);
    }

    /// A researcher would ask the hospital's governance why it said no, where a quota did.
    #[test]
    fn the_hub_tells_an_api_server_that_refuses_from_a_policy_that_does() {
        let denied = verdict(SiteReason::DeniedByPolicy, "exceeded quota: compute");
        let told = |decision: &Decision| report(("u", TaskKind::Train), decision, &denied, None).message;
        assert!(told(&Decision::Allowed).is_some_and(|m| m.contains("API server refuses") && !m.contains("compute")));
        let no = Decision::Refused { reason: SiteReason::DeniedByPolicy, message: "approval is Denied".into() };
        assert_eq!(told(&no), None);
    }
}
