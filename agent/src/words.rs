//! All words that leave the hospital: beside reasons, votes, numbers and digests it says one of these sentences or nothing.
//!
//! What a pod, an API server, an image, a file or the hub itself has said stays here, in the RoundTask, the ModelDeployment,
//! the SitePolicy and the ledger: it may name a patient's file, or be what a study's image wants to tell past the masks.

use consilium_federation::report::Report;

/// An object that a task needs was not taken.
pub const TASK_NOT_ADMITTED: &str = "the hospital's API server refuses an object that the task needs (schema, quota, rights \
                                     or admission); the RoundTask or the SitePolicy in the hospital says which";
/// An object that a model needs was not taken. No refusal owes a justification: the words stay here.
pub const MODEL_NOT_ADMITTED: &str = "the hospital's API server refuses an object that the model needs (schema, quota, \
                                      rights or admission); its ModelDeployment says which";
/// The trainer ended with exit code 42.
pub const BAD_DATA: &str = "bad data or config (exit 42); the RoundTask in the hospital says which";
/// The tries are used up.
pub const NO_RESULT: &str = "no result; the RoundTask in the hospital says why";
/// There was too little memory.
pub const OUT_OF_MEMORY: &str = "ran out of memory and is tried again";
/// A result was not taken by the agent.
pub const RESULT_REFUSED: &str = "the result was refused; the RoundTask in the hospital says why";
/// A step of an attempt was not taken, here or by the hub.
pub const STEP_REFUSED: &str =
    "a step of the attempt was refused; the RoundTask and the ledger in the hospital say why";

/// Every sentence. The guide for information governance lists them.
pub const ALL: [&str; 7] =
    [TASK_NOT_ADMITTED, MODEL_NOT_ADMITTED, BAD_DATA, NO_RESULT, OUT_OF_MEMORY, RESULT_REFUSED, STEP_REFUSED];

/// The report with no words but those of the list, whatever the rest of the agent has put into it; and how many it had.
pub fn only_listed(mut report: Report) -> (Report, usize) {
    let rounds = report.rounds.iter_mut().map(|round| &mut round.message);
    let mut others = 0;
    for message in rounds.chain(report.deployments.iter_mut().map(|model| &mut model.message)) {
        if message.as_deref().is_some_and(|words| !ALL.contains(&words)) {
            *message = None;
            others += 1;
        }
    }
    (report, others)
}

#[cfg(test)]
mod tests {
    use consilium_federation::report::{DeployReport, RolloutReason, RoundReport};
    use consilium_federation::round::SiteReason;
    use consilium_federation::task::TaskKind;

    use super::*;

    /// Whatever part of the agent puts the words of a pod, an image or an API server into a fact one day: they stay here,
    /// and the rest of the report leaves as it is.
    #[test]
    fn no_words_leave_but_those_of_the_list() {
        let round = |message: &str| RoundReport {
            uid: "r".into(),
            kind: TaskKind::Train,
            reason: SiteReason::Failed,
            message: Some(message.into()),
            evaluation: None,
        };
        let model = DeployReport {
            uid: "m".into(),
            reason: RolloutReason::VerificationFailed,
            serving: None,
            stage: None,
            message: Some("doe_jane.nii.gz".into()),
        };
        let report = Report {
            hub_epoch: "e".into(),
            revision: 1,
            agent_version: "1".into(),
            rosters: vec![],
            ledger: None,
            rounds: vec![round("doe_jane.nii.gz: no scan"), round(NO_RESULT), round(&NO_RESULT[1..])],
            deployments: vec![model],
        };
        let (said, others) = only_listed(report);
        let words: Vec<_> = said.rounds.iter().map(|round| round.message.as_deref()).collect();
        assert_eq!((words, others, said.rounds.len()), (vec![None, Some(NO_RESULT), None], 3, 3));
        assert_eq!((said.deployments[0].message.as_deref(), said.deployments.len()), (None, 1));
    }

    /// Information governance decides by this list; a sentence that leaves and is not on it was decided by nobody.
    #[test]
    fn the_guide_lists_every_sentence_that_leaves() {
        let guide = include_str!("../../docs/guides/information-governance.md");
        for words in ALL {
            assert!(guide.contains(&format!("- *{words}*")), "not in the guide: {words}");
        }
        assert_eq!(
            guide.lines().filter(|line| line.starts_with("- *") && !line.starts_with("- **")).count(),
            ALL.len()
        );
    }
}
