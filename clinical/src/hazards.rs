//! The hazard log: the fields of DCB0129 (makers) and DCB0160 (hospitals), and what an open hazard lowers. A hazard is
//! closed, never deleted, and nobody closes what somebody else opened.

use std::collections::BTreeMap;

use consilium_federation::{Digest, SiteName, StudyKey};
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::evidence::Subject;
use crate::plan::Fall;
use crate::values::Name;

/// Hazards of the hub, and open ones of the hospital, whose closed ones stand in its own objects. A hub that names ever more cannot fill a hospital's volume, nor keep the hospital's own people
/// from opening one; what is beyond is refused, and said.
pub const MAX_HAZARDS: usize = 1000;
/// Characters of a text.
pub const MAX_TEXT: usize = 2000;

/// One hazard. No field is for patient data.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(inline)]
pub struct Hazard {
    /// What it is about.
    pub of: HazardOf,
    /// The one hospital that it is in; none: every hospital.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hospital: Option<SiteName>,
    /// What may go wrong.
    #[schemars(length(min = 1, max = MAX_TEXT))]
    pub hazard: String,
    /// Why it may.
    #[schemars(length(min = 1, max = 10), inner(length(min = 1, max = MAX_TEXT)))]
    pub causes: Vec<String>,
    /// What then happens in the clinic.
    #[schemars(length(min = 1, max = MAX_TEXT))]
    pub effect: String,
    /// What that does to a patient.
    #[schemars(length(min = 1, max = MAX_TEXT))]
    pub harm: String,
    /// The risk before controls.
    pub initial: Risk,
    /// What is done about it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 20))]
    pub controls: Vec<Control>,
    /// The risk with the controls; needed to close it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub residual: Option<Risk>,
    /// Who answers for it: a role, no name.
    pub owner: Name,
    /// How far it lowers while it is open, on the word of whoever opened it; the plan may say more.
    pub lowers: Fall,
    /// When it was opened, RFC 3339.
    #[schemars(with = "String", length(max = 40), extend("format" = "date-time", "pattern" = consilium_federation::ids::TIME_PATTERN))]
    pub opened: Timestamp,
    /// Its end, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub closed: Option<Closed>,
}

/// What a hazard is about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(inline)]
pub enum HazardOf {
    /// Every model of a line, by its study.
    Line(StudyKey),
    /// One model.
    Model(Digest),
    /// One pipeline.
    Pipeline(Digest),
}

/// Severity and likelihood, each from 1 to 5 by the hospital's or maker's own matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(inline)]
pub struct Risk {
    /// 1 minor, 2 significant, 3 considerable, 4 major, 5 catastrophic.
    #[schemars(range(min = 1, max = 5))]
    pub severity: u8,
    /// 1 very low, 2 low, 3 medium, 4 high, 5 very high.
    #[schemars(range(min = 1, max = 5))]
    pub likelihood: u8,
}

/// Something done about a hazard.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(inline)]
pub struct Control {
    /// What.
    #[schemars(length(min = 1, max = MAX_TEXT))]
    pub control: String,
    /// What shows that it works; needed to close the hazard.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = MAX_TEXT))]
    pub proof: Option<String>,
}

/// How a hazard ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(inline)]
pub struct Closed {
    /// When, RFC 3339.
    #[schemars(with = "String", length(max = 40), extend("format" = "date-time", "pattern" = consilium_federation::ids::TIME_PATTERN))]
    pub at: Timestamp,
    /// By whom: a role, no name.
    pub by: Name,
    /// Why the risk that is left is accepted.
    #[schemars(length(min = 1, max = MAX_TEXT))]
    pub why: String,
}

/// A hazard, or a change of one, is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("hazard {id}: {field}: {problem}")]
pub struct HazardError {
    /// The hazard.
    pub id: Name,
    /// The field.
    pub field: &'static str,
    /// What it says, the rule, and the way out.
    pub problem: String,
}

impl Hazard {
    /// Refuses what is not complete: all fields to open it; residual risk and proof of each control to close it.
    ///
    /// # Errors
    /// The field, the rule and the way out.
    pub fn check(&self, id: &Name) -> Result<(), HazardError> {
        let fault = |field, problem: String| Err(HazardError { id: id.clone(), field, problem });
        let bad = |text: &str| text.trim().is_empty() || text.chars().count() > MAX_TEXT;
        let rule = || format!("write 1 to {MAX_TEXT} characters, and nothing of a patient");
        for (field, text) in [("hazard", &self.hazard), ("effect", &self.effect), ("harm", &self.harm)] {
            if bad(text) {
                return fault(field, rule());
            }
        }
        if self.causes.is_empty() || self.causes.len() > 10 || self.causes.iter().any(|text| bad(text)) {
            return fault("causes", format!("name 1 to 10 causes; for each {}", rule()));
        }
        let proofs = self.controls.iter().filter_map(|c| c.proof.as_ref());
        if self.controls.len() > 20 || self.controls.iter().map(|c| &c.control).chain(proofs).any(|text| bad(text)) {
            return fault("controls", format!("name at most 20 controls; for each text {}", rule()));
        }
        for (field, risk) in [("initial", Some(self.initial)), ("residual", self.residual)] {
            let good = |risk: Risk| (1..=5).contains(&risk.severity) && (1..=5).contains(&risk.likelihood);
            if let Some(risk) = risk.filter(|risk| !good(*risk)) {
                let Risk { severity, likelihood } = risk;
                return fault(field, format!("severity {severity}, likelihood {likelihood}: each is from 1 to 5"));
            }
        }
        let Some(closed) = &self.closed else { return Ok(()) };
        if bad(&closed.why) {
            return fault("closed.why", rule());
        }
        if closed.at < self.opened {
            return fault("closed.at", format!("is {}, before it was opened at {}", closed.at, self.opened));
        }
        if self.residual.is_none() {
            return fault("residual", "is needed to close a hazard: assess the risk that is left".into());
        }
        if self.controls.is_empty() || self.controls.iter().any(|c| c.proof.is_none()) {
            return fault("controls", "each needs its proof, and there must be one, to close a hazard".into());
        }
        Ok(())
    }

    /// Is it open and about every model of a line?
    pub fn is_of_a_line(&self) -> bool {
        self.closed.is_none() && matches!(self.of, HazardOf::Line(_))
    }

    /// Is it open and about this model in this hospital?
    pub fn hits(&self, subject: &Subject, line: &StudyKey) -> bool {
        let about = match &self.of {
            HazardOf::Line(named) => named == line,
            HazardOf::Model(model) => *model == subject.model,
            HazardOf::Pipeline(pipeline) => *pipeline == subject.pipeline,
        };
        about && self.closed.is_none() && self.hospital.as_ref().is_none_or(|site| *site == subject.hospital)
    }
}

/// Whose word a hazard is. Only the same may close it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Origin {
    /// The hub's people.
    Hub,
    /// This hospital's.
    Hospital,
}

/// All hazards that a hospital has ever seen, by origin and name.
///
/// It belongs into the cluster's objects and not on the agent's volume: a lost volume gives Shadow by itself, but a hazard
/// that withdraws would be lost with it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HazardLog(BTreeMap<(Origin, Name), Hazard>);

impl HazardLog {
    /// A log as it was written down.
    pub fn new(entries: impl IntoIterator<Item = ((Origin, Name), Hazard)>) -> Self {
        Self(entries.into_iter().collect())
    }

    /// All of them, closed ones too.
    pub fn all(&self) -> impl Iterator<Item = (&Origin, &Name, &Hazard)> {
        self.0.iter().map(|((origin, id), hazard)| (origin, id, hazard))
    }

    /// Takes what an origin says now. A hazard that is no longer mentioned stays as it was: only closing closes. What it
    /// is about, and that it was closed, cannot be taken back; one that comes back is a new hazard with a new name.
    ///
    /// # Errors
    /// What is refused; the log is then as before.
    pub fn take(&mut self, origin: Origin, id: &Name, hazard: Hazard) -> Result<(), HazardError> {
        let fault = |field, problem: &str| Err(HazardError { id: id.clone(), field, problem: problem.into() });
        hazard.check(id)?;
        let key = (origin, id.clone());
        match self.0.get(&key) {
            None if self.counted(origin) >= MAX_HAZARDS && (origin == Origin::Hub || hazard.closed.is_none()) => {
                return fault(
                    "name",
                    "the log has its bound of hazards: ask for a lower stage in the promotion instead",
                );
            }
            Some(old) if old.closed.is_some() && old.closed != hazard.closed => {
                return fault("closed", "a closed hazard stays closed as it was: open a new one");
            }
            Some(old) if hazard.closed.is_none() && hazard.lowers < old.lowers => {
                return fault("lowers", "an open hazard cannot lower less than before: close it, with proof");
            }
            Some(old) if (&old.of, &old.hospital, old.opened) != (&hazard.of, &hazard.hospital, hazard.opened) => {
                return fault("of", "what a hazard is about, where and since when stays: close it and open a new one");
            }
            _ => {}
        }
        self.0.insert(key, hazard);
        Ok(())
    }

    fn counted(&self, origin: Origin) -> usize {
        let counts = |hazard: &Hazard| origin == Origin::Hub || hazard.closed.is_none();
        self.0.iter().filter(|((from, _), hazard)| *from == origin && counts(hazard)).count()
    }

    /// The open hazards of this model in this hospital, with how far each lowers: its own word or the plan's, whichever
    /// is further.
    pub fn open<'a>(
        &'a self,
        subject: &'a Subject,
        line: &'a StudyKey,
        plan: Fall,
    ) -> impl Iterator<Item = (Origin, &'a Name, Fall)> {
        let hits = self.0.iter().filter(|(_, hazard)| hazard.hits(subject, line));
        hits.map(move |((origin, id), hazard)| (*origin, id, hazard.lowers.max(plan)))
    }
}

#[cfg(test)]
#[path = "hazards_tests.rs"]
mod tests;
