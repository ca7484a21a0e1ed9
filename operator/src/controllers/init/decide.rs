//! How the first model of a study comes about. Pure.

use consilium_federation::Digest;

/// Tries before someone has to look.
pub const MAX_TRIES: u32 = 3;

/// One try of the Init task.
#[derive(Clone, Debug, PartialEq)]
pub struct Try {
    /// From 1.
    pub number: u32,
    /// Name of its Job.
    pub job: String,
    /// Where it is.
    pub state: TryState,
}

/// Where a try is.
#[derive(Clone, Debug, PartialEq)]
pub enum TryState {
    /// The Job has not ended.
    Active,
    /// The Job ended well.
    Succeeded,
    /// It did not.
    Failed {
        /// The trainer said that trying again will not help (exit 42).
        invalid: bool,
        /// What the trainer or Kubernetes said.
        message: String,
    },
}

/// What to do next.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// This is the model.
    Take(Digest),
    /// A Job is under way.
    Wait {
        /// Its name.
        job: String,
    },
    /// Make a Job with this number.
    Start(u32),
    /// Someone has to act.
    GiveUp {
        /// CamelCase.
        reason: &'static str,
        /// What, and how.
        message: String,
    },
}

/// Decides from the delivered model, if there is one, and the tries for this spec.
pub fn decide(delivered: Option<Digest>, tries: &[Try]) -> Step {
    if let Some(model) = delivered {
        return Step::Take(model);
    }
    if let Some(active) = tries.iter().find(|t| t.state == TryState::Active) {
        return Step::Wait { job: active.job.clone() };
    }
    let failed = |t: &Try| match &t.state {
        TryState::Failed { invalid, message } => Some((*invalid, t.job.clone(), message.clone())),
        TryState::Active | TryState::Succeeded => None,
    };
    let failures: Vec<_> = tries.iter().filter_map(failed).collect();
    if let Some((_, job, message)) = failures.iter().find(|(invalid, ..)| *invalid) {
        let message = format!(
            "the trainer refuses spec.trainer.config: {message} (Job {job}); correct the config, the study then tries again"
        );
        return Step::GiveUp { reason: "InvalidConfig", message };
    }
    if failures.len() as u32 >= MAX_TRIES {
        let (_, job, message) = &failures[failures.len() - 1];
        let message = format!(
            "the first model could not be made in {MAX_TRIES} tries, the last said: {message} (Job {job}); \
             delete the Jobs to try again, or correct spec.trainer"
        );
        return Step::GiveUp { reason: "InitFailed", message };
    }
    // A Job that ended well without a result here: the hub went away between the two. The same seed gives the
    // same model.
    Step::Start(tries.iter().map(|t| t.number).max().unwrap_or(0) + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attempt(number: u32, state: TryState) -> Try {
        Try { number, job: format!("job-{number}"), state }
    }

    fn failed(number: u32, invalid: bool) -> Try {
        attempt(number, TryState::Failed { invalid, message: "out of disk".into() })
    }

    #[test]
    fn each_state_of_the_tries_leads_to_one_step() {
        let model = Digest::of(b"m");
        let cases = [
            (None, vec![], Step::Start(1)),
            (None, vec![attempt(1, TryState::Active)], Step::Wait { job: "job-1".into() }),
            (Some(model), vec![attempt(1, TryState::Active)], Step::Take(model)),
            // The hub was killed between the delivery and writing it down.
            (None, vec![attempt(1, TryState::Succeeded)], Step::Start(2)),
            (None, vec![failed(1, false)], Step::Start(2)),
            (None, vec![failed(1, false), attempt(2, TryState::Active)], Step::Wait { job: "job-2".into() }),
        ];
        for (delivered, tries, expected) in cases {
            assert_eq!(decide(delivered, &tries), expected, "{tries:?}");
        }
    }

    /// A config that the trainer refuses must be told to the researcher once, not retried all night.
    #[test]
    fn a_refused_config_is_not_tried_again_and_three_failures_are_enough() {
        let Step::GiveUp { reason: "InvalidConfig", message } = decide(None, &[failed(1, true)]) else { panic!() };
        assert!(message.contains("spec.trainer.config") && message.contains("out of disk"), "{message}");
        let tries = [failed(1, false), failed(2, false), failed(3, false)];
        let Step::GiveUp { reason: "InitFailed", message } = decide(None, &tries) else { panic!() };
        assert!(message.contains("job-3") && message.contains("delete the Jobs"), "{message}");
    }
}
