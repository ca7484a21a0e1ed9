//! Whether a plan can be used. Pure.

use consilium_crds::conditions::{Conditions, READY, STALLED, status_of};
use consilium_crds::{ClinicalPlan, ClinicalPlanStatus};
use jiff::Timestamp;

use crate::controllers::write::Note;

/// The status of a plan, and what people should hear.
pub fn decide(plan: &ClinicalPlan, now: Timestamp) -> (ClinicalPlanStatus, Vec<Note>) {
    let known = plan.status.as_ref().map_or(&[][..], |s| &s.conditions);
    let mut conditions = Conditions::from_status(known, plan.metadata.generation, now);
    let mut notes = Vec::new();
    match plan.spec.plan() {
        Ok(_) => {
            conditions.set(READY, true, "Available", "promotions can name it, by its digest").clear(STALLED);
        }
        Err(error) => {
            let why = format!("spec.{error}; a plan never changes, so correct it under another name");
            if status_of(known, READY) != Some("False") {
                notes.push(Note::warning("InvalidPlan", why.clone()));
            }
            conditions.set(READY, false, "InvalidPlan", &why).set(STALLED, true, "InvalidPlan", &why);
        }
    }
    let status = ClinicalPlanStatus {
        observed_generation: plan.metadata.generation,
        plan_digest: Some(plan.spec.digest()),
        conditions: conditions.into_list(),
    };
    (status, notes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controllers::testing::{at, plan};

    /// Clinicians sign a digest: it must be the one that hospitals compute; and a plan by which nothing could climb is told
    /// to its author, once, with the field.
    #[test]
    fn a_plan_is_ready_with_its_digest_or_says_what_is_wrong() {
        let good = plan("hippocampus-1");
        let (status, notes) = decide(&good, at(0));
        assert_eq!(status_of(&status.conditions, READY), Some("True"));
        assert_eq!(status.plan_digest, Some(good.spec.plan().unwrap().digest()));
        assert!(notes.is_empty());
        let mut loose = good.clone();
        loose.spec.rules[0].metrics[0].floor = None;
        let (status, notes) = decide(&loose, at(0));
        assert_eq!(status_of(&status.conditions, READY), Some("False"));
        let words = &status.conditions.iter().find(|c| c.type_ == READY).unwrap().message;
        assert!(words.contains("spec.rules[0].metrics[0]") && words.contains("another name"), "{words}");
        assert_eq!(notes.len(), 1);
        loose.status = Some(status.clone());
        assert_eq!(decide(&loose, at(9)), (status, vec![]));
    }
}
