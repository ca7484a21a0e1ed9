//! ModelHazard: one entry of the hazard log, by people. The fields are those of DCB0129 (makers) and DCB0160 (hospitals).

use consilium_clinical::hazards::{Closed, Control, Hazard, HazardOf, MAX_TEXT, Risk};
use consilium_clinical::plan::Fall;
use consilium_clinical::values::Name;
use consilium_federation::digest::Digest;
use consilium_federation::ids::StudyKey;
use jiff::Timestamp;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::unreadable::Unreadable;
use crate::values;

/// A hazard of a model, or of every model of a line, in this hospital. While it is open, the models that it is about stand
/// lower or are not served. It is closed, with proof, and never deleted.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "consilium.health",
    version = "v1alpha1",
    kind = "ModelHazard",
    shortname = "mhaz",
    category = "consilium",
    namespaced,
    derive = "PartialEq",
    cel,
    validation = Rule::new("self.metadata.name.matches('^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$')")
        .message(Message::Expression("'metadata.name is \"' + self.metadata.name + '\" and must be at most 63 lower-case letters, digits and \"-\", with no dots'".into())),
    validation = Rule::new("has(self.spec.of.line) != has(self.spec.of.model)")
        .message("spec.of must name a line or a model, and not both: to have both, open two hazards")
        .field_path(".spec.of"),
    validation = Rule::new("self.spec.of == oldSelf.spec.of && self.spec.opened == oldSelf.spec.opened")
        .message("spec.of and spec.opened cannot be changed: close this hazard and open a new one")
        .field_path(".spec.of"),
    validation = Rule::new("!has(oldSelf.spec.closed) || self.spec == oldSelf.spec")
        .message("spec of a closed hazard cannot be changed: it stays in the log as it is; open a new one")
        .field_path(".spec"),
    validation = Rule::new("has(self.spec.closed) || {'Watch': 0, 'OneDown': 1, 'Shadow': 2, 'Withdraw': 3}[self.spec.lowers] >= {'Watch': 0, 'OneDown': 1, 'Shadow': 2, 'Withdraw': 3}[oldSelf.spec.lowers]")
        .message(Message::Expression("'spec.lowers is \"' + self.spec.lowers + '\" and was \"' + oldSelf.spec.lowers + '\": an open hazard cannot lower less than before; close it, with proof'".into()))
        .field_path(".spec.lowers"),
    validation = Rule::new("!has(self.spec.closed) || (has(self.spec.residual) && has(self.spec.controls) && self.spec.controls.size() > 0 && self.spec.controls.all(c, has(c.proof)))")
        .message("spec.closed needs spec.residual, the risk that is left, and at least one of spec.controls, each with its proof")
        .field_path(".spec.closed"),
    validation = Rule::new("!has(self.spec.closed) || self.spec.closed.at >= self.spec.opened")
        .message("spec.closed.at must not lie before spec.opened: write when it was closed")
        .field_path(".spec.closed.at"),
    printcolumn(name = "Lowers", type_ = "string", json_path = ".spec.lowers"),
    printcolumn(name = "Severity", type_ = "integer", json_path = ".spec.initial.severity"),
    printcolumn(name = "Likelihood", type_ = "integer", json_path = ".spec.initial.likelihood"),
    printcolumn(name = "Owner", type_ = "string", json_path = ".spec.owner"),
    printcolumn(name = "Opened", type_ = "date", json_path = ".spec.opened"),
    printcolumn(name = "Closed", type_ = "date", json_path = ".spec.closed.at"),
    printcolumn(name = "Hazard", type_ = "string", json_path = ".spec.hazard", priority = 1),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp", priority = 1)
)]
#[serde(rename_all = "camelCase")]
pub struct ModelHazardSpec {
    /// What it is about.
    pub of: About,
    /// What may go wrong. Nothing of a patient, here as in every text.
    #[schemars(length(min = 1, max = MAX_TEXT))]
    pub hazard: String,
    /// Why it may.
    #[schemars(length(min = 1, max = 10), inner(length(min = 1, max = MAX_TEXT)), extend("x-kubernetes-list-type" = "atomic"))]
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
    #[schemars(length(max = 20), extend("x-kubernetes-list-type" = "atomic"))]
    pub controls: Vec<Control>,
    /// The risk with the controls; needed to close it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub residual: Option<Risk>,
    /// Who answers for it: a role, no name.
    pub owner: Name,
    /// How far it lowers while it is open: Watch (not at all), OneDown, Shadow, or Withdraw (the model is not served).
    pub lowers: Fall,
    /// When it was opened, RFC 3339.
    #[schemars(with = "String", length(max = 40), extend("format" = "date-time", "pattern" = values::TIME_PATTERN))]
    pub opened: Timestamp,
    /// Its end, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub closed: Option<Closed>,
}

/// What a hazard is about: one of the two.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
pub struct About {
    /// Every model of a line, by its study: `namespace/name` at the hub.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub line: Option<StudyKey>,
    /// One model, by its digest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<Digest>,
}

impl ModelHazardSpec {
    /// The hazard, as the rules of standing know it; none if it says of neither one thing nor the other what it is about.
    pub fn hazard(&self) -> Option<Hazard> {
        let of = match (&self.of.line, self.of.model) {
            (Some(line), None) => HazardOf::Line(line.clone()),
            (None, Some(model)) => HazardOf::Model(model),
            _ => return None,
        };
        Some(Hazard {
            of,
            hospital: None,
            hazard: self.hazard.clone(),
            causes: self.causes.clone(),
            effect: self.effect.clone(),
            harm: self.harm.clone(),
            initial: self.initial,
            controls: self.controls.clone(),
            residual: self.residual,
            owner: self.owner.clone(),
            lowers: self.lowers,
            opened: self.opened,
            closed: self.closed.clone(),
        })
    }
}

impl ModelHazard {
    /// What stands for a hazard that cannot be read: it is there all the same and must not be passed over. It says of
    /// nothing what it is about, so it is about every model; it is open, and lowers to Shadow, or further if that much
    /// can be read of it.
    pub(crate) fn unread(object: &Value, why: &Unreadable) -> Self {
        let metadata = serde_json::from_value(object["metadata"].clone()).unwrap_or_default();
        let words = |text: &str| vec![text.to_owned()];
        let risk = Risk { severity: 5, likelihood: 5 };
        let lowers = serde_json::from_value(object["spec"]["lowers"].clone()).unwrap_or(Fall::Shadow);
        let spec = ModelHazardSpec {
            of: About::default(),
            hazard: format!("it cannot be read: {why}"),
            causes: words("it cannot be read"),
            effect: "not known".into(),
            harm: "not known".into(),
            initial: risk,
            controls: Vec::new(),
            residual: None,
            owner: Name::unreadable(),
            lowers: lowers.max(Fall::Shadow),
            opened: Timestamp::UNIX_EPOCH,
            closed: None,
        };
        Self { metadata, spec }
    }
}
