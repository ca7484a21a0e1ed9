//! A clinical plan: for which finding, on which scans, and what each rung of the ladder needs. Immutable: its digest
//! stands in promotions and under approvals, and who changes a word needs new signatures.

use consilium_federation::ladder::Stage;
use consilium_federation::{Digest, StudyKey};
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::rules::{self, StageRule};
use crate::values::{Decimal, Name, Share};

/// A plan cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {problem}")]
pub struct PlanError {
    /// The field by its path, for example `rules[1].metrics[0]`.
    pub field: String,
    /// What it says, the rule, and the way out.
    pub problem: String,
}

impl PlanError {
    pub(crate) fn new(field: String, problem: String) -> Self {
        Self { field, problem }
    }
}

/// The plan's content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ClinicalPlan {
    /// The model line that it is for: the study whose releases may climb by it.
    pub line: StudyKey,
    /// What the model looks for.
    pub finding: Finding,
    /// The scans that it is for.
    pub scope: Scope,
    /// What each stage needs, SafetyNet first, none left out. A stage without a rule cannot be reached.
    #[schemars(length(max = 5), extend("x-kubernetes-list-type" = "atomic"))]
    pub rules: Vec<StageRule>,
    /// What counts as drift, and what it does. Without it no drift lowers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drift: Option<DriftRule>,
    /// What an open hazard does at the least; whoever opens one may ask for more.
    pub on_hazard: Fall,
    /// Changes of the pipeline after which evidence goes on counting.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 4), extend("x-kubernetes-list-type" = "atomic"))]
    pub preserving: Vec<Change>,
    /// From then on nothing stands above Shadow by this plan, RFC 3339.
    #[schemars(with = "String", length(max = 40), extend("format" = "date-time", "pattern" = consilium_federation::ids::TIME_PATTERN))]
    pub expires: Timestamp,
}

/// What a model looks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(inline)]
pub struct Finding {
    /// Its name.
    pub name: Name,
    /// Coding scheme, as in DICOM's Coding Scheme Designator: `SCT` for SNOMED CT.
    pub scheme: Name,
    /// The code in it.
    pub code: Name,
    /// For a model that draws structures: there is a finding where the drawn volume reaches so many millilitres.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_volume_ml: Option<Decimal>,
}

/// The scans that a model is for. What a scan does not say of itself does not pass a bound that stands here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(inline)]
pub struct Scope {
    /// DICOM Modality (0008,0060), for example `MR`.
    #[schemars(length(min = 1, max = 5), extend("x-kubernetes-list-type" = "atomic"))]
    pub modalities: Vec<Name>,
    /// DICOM Body Part Examined (0018,0015), if it matters.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 20), extend("x-kubernetes-list-type" = "atomic"))]
    pub body_parts: Vec<Name>,
    /// The patient's age in whole years, at least.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = 150))]
    pub min_age: Option<u32>,
    /// The patient's age in whole years, at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = 150))]
    pub max_age: Option<u32>,
    /// The largest distance between voxels along any axis, in millimetres, at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_spacing_mm: Option<Decimal>,
}

/// What a scan says of itself.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ScanFeatures {
    /// DICOM Modality.
    pub modality: Option<String>,
    /// DICOM Body Part Examined.
    pub body_part: Option<String>,
    /// Whole years.
    pub age: Option<u32>,
    /// The largest distance between voxels along any axis, in millimetres.
    pub spacing_mm: Option<f64>,
}

/// Why a scan is out of scope, for the hospital's people.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the scan's {what} is {found}, the plan's scope asks for {wanted}")]
pub struct OutOfScope {
    /// The feature.
    pub what: &'static str,
    /// What the scan says.
    pub found: String,
    /// What the plan says.
    pub wanted: String,
}

impl Scope {
    /// May the model be asked about this scan?
    ///
    /// # Errors
    /// The first feature that does not pass.
    pub fn admits(&self, scan: &ScanFeatures) -> Result<(), OutOfScope> {
        let found = |value: Option<String>| value.unwrap_or_else(|| "not known".into());
        let one_of = |what, names: &[Name], value: &Option<String>| {
            let known = value.as_deref().is_some_and(|v| names.iter().any(|name| name.as_str() == v));
            if known || names.is_empty() {
                return Ok(());
            }
            let wanted: Vec<&str> = names.iter().map(Name::as_str).collect();
            Err(OutOfScope { what, found: found(value.clone()), wanted: wanted.join(" or ") })
        };
        one_of("modality", &self.modalities, &scan.modality)?;
        one_of("body part", &self.body_parts, &scan.body_part)?;
        let age = |ok: bool, wanted: String| {
            let found = found(scan.age.map(|age| age.to_string()));
            if ok { Ok(()) } else { Err(OutOfScope { what: "patient's age", found, wanted }) }
        };
        if let Some(least) = self.min_age {
            age(scan.age.is_some_and(|age| age >= least), format!("at least {least}"))?;
        }
        if let Some(most) = self.max_age {
            age(scan.age.is_some_and(|age| age <= most), format!("at most {most}"))?;
        }
        match self.max_spacing_mm {
            Some(most) if !scan.spacing_mm.is_some_and(|mm| mm > 0.0 && mm <= most.value()) => Err(OutOfScope {
                what: "spacing",
                found: found(scan.spacing_mm.map(|mm| format!("{mm} mm"))),
                wanted: format!("at most {most} mm"),
            }),
            _ => Ok(()),
        }
    }
}

/// What drift is, and what it does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(inline)]
pub struct DriftRule {
    /// Features whose distribution is compared with the approved window's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 30), extend("x-kubernetes-list-type" = "atomic"))]
    pub features: Vec<Name>,
    /// A population stability index above this is drift.
    pub limit: Decimal,
    /// So many cases in a window at least; fewer say nothing.
    #[schemars(range(min = 10, max = 1_000_000))]
    pub cases: u32,
    /// So many windows in a row must drift.
    #[schemars(range(min = 1, max = 12))]
    pub windows: u32,
    /// Rates that are watched case by case.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 10), extend("x-kubernetes-list-type" = "atomic"))]
    pub rates: Vec<RateRule>,
    /// What drift does, and a measure of it that is missing or on too few cases.
    pub then: Fall,
}

/// A rate that is watched by a cumulative sum.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(inline)]
pub struct RateRule {
    /// Of what, for example `failures`.
    pub name: Name,
    /// The rate in the approved window, above 0 and below 1.
    pub expected: Share,
    /// The rate that is to be noticed, above or below it.
    pub noticed: Share,
    /// The sum at which it is.
    pub limit: Decimal,
}

/// How far a model falls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
pub enum Fall {
    /// Not at all: it is shown, no more.
    Watch,
    /// By one rung, to Shadow at the lowest.
    OneDown,
    /// To Shadow.
    Shadow,
    /// It is not served.
    Withdraw,
}

impl Fall {
    /// Where a model that stands on `stage` stands after it; `None`: it is not served.
    pub fn from(self, stage: Option<Stage>) -> Option<Stage> {
        let stage = stage?;
        match self {
            Self::Watch => Some(stage),
            Self::OneDown => Some(below(stage).unwrap_or(Stage::Shadow)),
            Self::Shadow => Some(Stage::Shadow),
            Self::Withdraw => None,
        }
    }
}

/// The rung below; none below Shadow.
pub fn below(stage: Stage) -> Option<Stage> {
    Stage::ALL.into_iter().rev().find(|lower| *lower < stage)
}

/// The rung above; none above PrimaryReader.
pub fn above(stage: Option<Stage>) -> Option<Stage> {
    Stage::ALL.into_iter().find(|higher| Some(*higher) > stage)
}

/// A part of the pipeline that may change without its evidence being lost, once the equivalence gate has passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
pub enum Change {
    /// The image of the worker between PACS and model.
    WorkerImage,
    /// The image of the inference server.
    InferenceImage,
    /// The arithmetic.
    Precision,
    /// The class of devices.
    DeviceClass,
}

impl ClinicalPlan {
    /// Reads a plan from its JSON or YAML tree. All or nothing: a field that is not known is refused.
    ///
    /// # Errors
    /// The field by its path, what it says, the rule, and the way out.
    pub fn read(tree: &Value) -> Result<Self, PlanError> {
        let plan: Self = serde_path_to_error::deserialize(tree).map_err(|error| {
            let path = error.path().to_string();
            let field = if path == "." { "the plan".to_owned() } else { path };
            PlanError::new(field, error.into_inner().to_string())
        })?;
        plan.check()?;
        Ok(plan)
    }

    /// Refuses what the types alone let through.
    ///
    /// # Errors
    /// As [`ClinicalPlan::read`].
    pub fn check(&self) -> Result<(), PlanError> {
        let fault = |field: &str, problem: String| Err(PlanError::new(field.into(), problem));
        let scope = &self.scope;
        if scope.modalities.is_empty() || scope.modalities.len() > 5 || scope.body_parts.len() > 20 {
            return fault("scope", "needs from 1 to 5 modalities, and at most 20 body parts".into());
        }
        if let (Some(least), Some(most)) = (scope.min_age, scope.max_age)
            && least > most
        {
            return fault("scope.minAge", format!("is {least} and maxAge {most}: no patient is in scope"));
        }
        if let Some(drift) = &self.drift {
            drift.check()?;
        }
        rules::check(&self.rules, "rules")
    }

    /// The plan's digest: what promotions name and approvals sign. Over the plan as it is understood, so that `0.90` and
    /// `0.9` are one plan; what a later version adds is absent by default and changes no digest of today.
    pub fn digest(&self) -> Digest {
        Digest::of_json(self)
    }

    /// What a stage needs, if it can be reached.
    pub fn rule(&self, stage: Stage) -> Option<&StageRule> {
        self.rules.iter().find(|rule| rule.stage == stage)
    }
}

impl DriftRule {
    fn check(&self) -> Result<(), PlanError> {
        let fault = |field: String, problem: String| Err(PlanError::new(field, problem));
        let names: Vec<&Name> = self.features.iter().chain(self.rates.iter().map(|r| &r.name)).collect();
        if names.is_empty() || self.features.len() > 30 || self.rates.len() > 10 {
            return fault("drift".into(), "watches nothing or too much: write up to 30 features and 10 rates".into());
        }
        if let Some(name) = names.iter().enumerate().find(|(n, name)| names[..*n].contains(name)) {
            return fault("drift".into(), format!("watches {} twice", name.1));
        }
        if self.limit.value() == 0.0 {
            return fault("drift.limit".into(), "is 0: every window would be drift".into());
        }
        if !(10..=1_000_000).contains(&self.cases) || !(1..=12).contains(&self.windows) {
            let problem = "watches windows of 10 to 1000000 cases, and 1 to 12 of them in a row".into();
            return fault("drift".into(), problem);
        }
        for (n, rate) in self.rates.iter().enumerate() {
            let inside = |share: Share| share.value() > 0.0 && share.value() < 1.0;
            let good = inside(rate.expected) && inside(rate.noticed) && rate.expected != rate.noticed;
            if !good || rate.limit.value() == 0.0 {
                let problem = "needs two different rates above 0 and below 1, and a limit above 0".to_owned();
                return fault(format!("drift.rates[{n}]"), problem);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
