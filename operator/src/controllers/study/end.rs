//! How a study ends. Pure.

use consilium_crds::conditions::{READY, SUCCEEDED, status_of};

use super::carry::Carry;
use super::decide::{Act, Planner, RUNNING, is_over};
use crate::controllers::write::Note;

impl Planner<'_> {
    /// Whether it has, and how.
    pub(super) fn succeeded(&mut self, number: u32, carry: &Carry) {
        let max = self.facts.study.spec.rounds.max;
        // One that cannot be read may be under way.
        let running = self.facts.unread || self.facts.rounds.iter().any(|r| !is_over(r));
        let counted = format!("{} of {number} rounds ended with a new model", carry.succeeded);
        if number < max || running {
            self.conditions.unknown(SUCCEEDED, "Running", format!("{number} of {max} rounds begun; {counted}"));
            return;
        }
        // Whoever waits for the end promotes the newest release then: it must be there.
        let cut = |act: &Act| if let Act::Release { round } = act { Some(*round) } else { None };
        if let Some(round) = self.acts.iter().filter_map(cut).max() {
            self.conditions.unknown(
                SUCCEEDED,
                "Releasing",
                format!("the release of round {round} is being cut; {counted}"),
            );
            return;
        }
        let before = self.facts.study.status.as_ref().and_then(|s| status_of(&s.conditions, SUCCEEDED));
        if carry.succeeded > 0 {
            if before != Some("True") {
                self.notes.push(Note::normal("MaxRounds", counted.clone()));
            }
            self.conditions.set(SUCCEEDED, true, "MaxRounds", counted);
            self.finished();
        } else {
            let message =
                format!("{counted}; see the messages of the TrainingRounds, and raise spec.rounds.max to go on");
            if before != Some("False") {
                self.notes.push(Note::warning("NoRoundSucceeded", message.clone()));
            }
            self.conditions.set(SUCCEEDED, false, "NoRoundSucceeded", message);
            self.finished();
        }
    }

    /// A study that is over is none that is being reconciled, whatever else it is.
    fn finished(&mut self) {
        let list = self.conditions.clone().into_list();
        if list.iter().any(|condition| condition.type_ == READY && condition.reason == RUNNING) {
            self.conditions.set(READY, true, "Finished", "all planned rounds are over; see condition Succeeded");
        }
    }
}
