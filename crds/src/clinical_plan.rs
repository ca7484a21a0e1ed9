//! ClinicalPlan: for which finding, on which scans, and what each rung of the ladder needs. Written by clinicians; this
//! software ships no threshold of its own.

use consilium_clinical::plan::{self, Change, DriftRule, Fall, Finding, PlanError, Scope};
use consilium_clinical::rules::StageRule;
use consilium_federation::digest::Digest;
use consilium_federation::ids::StudyKey;
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{schema, values};

/// A plan by which the models of a study may climb. It never changes: its digest stands in promotions and under approvals,
/// and who changes a word makes another plan, which needs new signatures.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "consilium.health",
    version = "v1alpha1",
    kind = "ClinicalPlan",
    shortname = "cplan",
    category = "consilium",
    namespaced,
    status = "ClinicalPlanStatus",
    derive = "PartialEq",
    cel,
    validation = Rule::new("self.spec == oldSelf.spec")
        .message("spec cannot be changed: approvals are over this plan as it stands; make another one under another name")
        .field_path(".spec"),
    printcolumn(name = "Line", type_ = "string", json_path = ".spec.line"),
    printcolumn(name = "Finding", type_ = "string", json_path = ".spec.finding.name"),
    printcolumn(name = "Expires", type_ = "date", json_path = ".spec.expires"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status"),
    printcolumn(name = "Digest", type_ = "string", json_path = ".status.planDigest"),
    printcolumn(name = "Message", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].message", priority = 1),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct ClinicalPlanSpec {
    /// The model line that it is for: the study whose releases may climb by it, `namespace/name`.
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
    #[schemars(with = "String", length(max = 40), extend("format" = "date-time", "pattern" = values::TIME_PATTERN))]
    pub expires: Timestamp,
}

/// Whether a plan can be used.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ClinicalPlanStatus {
    /// Generation that the conditions speak of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Digest of the plan: what promotions name and approvals sign.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plan_digest: Option<Digest>,
    /// Ready; Stalled where no model could climb by it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::conditions")]
    pub conditions: Vec<Condition>,
}

impl ClinicalPlanSpec {
    /// The plan, as the rules of standing know it.
    ///
    /// # Errors
    /// What the schema lets through and no model could climb by: the field, what it says, the rule and the way out.
    pub fn plan(&self) -> Result<plan::ClinicalPlan, PlanError> {
        let plan = self.as_written();
        plan.check()?;
        Ok(plan)
    }

    /// Digest of the plan as it is written, usable or not.
    pub fn digest(&self) -> Digest {
        self.as_written().digest()
    }

    fn as_written(&self) -> plan::ClinicalPlan {
        plan::ClinicalPlan {
            line: self.line.clone(),
            finding: self.finding.clone(),
            scope: self.scope.clone(),
            rules: self.rules.clone(),
            drift: self.drift.clone(),
            on_hazard: self.on_hazard,
            preserving: self.preserving.clone(),
            expires: self.expires,
        }
    }
}
