//! ModelDeployment: one model in use in one hospital, and the stage on which it stands there.

use consilium_federation::approval::Approval;
use consilium_federation::digest::Digest;
use consilium_federation::ids::{SiteName, StudyKey};
use consilium_federation::ladder::Stage;
use consilium_federation::output::OutputSpec;
use consilium_federation::stage_approval::{MAX_STAGE_APPROVALS, StageApproval};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{schema, values};

/// One model in use. Made by the agent; owns the Deployment and the Service.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "consilium.health",
    version = "v1alpha1",
    kind = "ModelDeployment",
    shortname = "mdeploy",
    category = "consilium",
    namespaced,
    status = "ModelDeploymentStatus",
    derive = "PartialEq",
    cel,
    validation = Rule::new("self.spec.model == oldSelf.spec.model && self.spec.release == oldSelf.spec.release && self.spec.releaseDigest == oldSelf.spec.releaseDigest && self.spec.promotionUID == oldSelf.spec.promotionUID")
        .message(Message::Expression("(self.spec.release != oldSelf.spec.release ? 'spec.release is \"' + self.spec.release + '\" and was \"' + oldSelf.spec.release : self.spec.promotionUID != oldSelf.spec.promotionUID ? 'spec.promotionUID is \"' + self.spec.promotionUID + '\" and was \"' + oldSelf.spec.promotionUID : self.spec.model != oldSelf.spec.model ? 'spec.model is \"' + self.spec.model + '\" and was \"' + oldSelf.spec.model : 'spec.releaseDigest is \"' + self.spec.releaseDigest + '\" and was \"' + oldSelf.spec.releaseDigest) + '\"; only spec.stage and spec.approved can be changed: the agent makes another ModelDeployment for another model'".into()))
        .field_path(".spec"),
    printcolumn(name = "Release", type_ = "string", json_path = ".spec.release"),
    printcolumn(name = "Asked", type_ = "string", json_path = ".spec.stage"),
    printcolumn(name = "Stands", type_ = "string", json_path = ".status.stage"),
    printcolumn(name = "RolledOut", type_ = "string", json_path = ".status.conditions[?(@.type==\"RolledOut\")].status"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].reason"),
    printcolumn(name = "Because", type_ = "string", json_path = ".status.because"),
    printcolumn(name = "Message", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].message", priority = 1),
    printcolumn(name = "Digest", type_ = "string", json_path = ".status.servingDigest", priority = 1),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct ModelDeploymentSpec {
    /// Name of the release at the hub.
    #[schemars(length(min = 1, max = 253), regex(pattern = values::NAME_PATTERN))]
    pub release: String,
    /// Digest of the release.
    pub release_digest: Digest,
    /// Digest of the model.
    pub model: Digest,
    /// The stage that is asked for. The model stands on `status.stage`, which is this or a lower one.
    pub stage: Stage,
    /// UID of the ModelPromotion at the hub.
    #[schemars(length(min = 1, max = 63))]
    #[serde(rename = "promotionUID")]
    pub promotion_uid: String,
    /// On whose word. Absent in an object of an agent of before, which adds it at its first look: until then the model
    /// answers on the lease that it has, and gets no other.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub approved: Option<Approved>,
}

/// What was signed, and by whom: the hospital judges it again and again from here, with nothing else at hand.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Approved {
    /// The stage that was asked for when this was written. The model stands on it or below.
    pub stage: Stage,
    /// Digest of the evidence that was signed.
    pub evidence_digest: Digest,
    /// This hospital's name, for approvals that are for one hospital. Absent in an object of an agent of before, as
    /// `approved` is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hospital: Option<SiteName>,
    /// The model line: the study, `namespace/name` at the hub. Of one line one model acts, and the others stand on Shadow.
    /// Absent as `hospital` is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub line: Option<StudyKey>,
    /// The approvals whose signatures held when this was written. One that has expired counts for Shadow.
    #[schemars(length(max = 20), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["keyID"]))]
    pub approvals: Vec<Approval>,
    /// The clinical plan that the promotion names, whole: its digest is under the approvals of the second kind.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::free_object")]
    pub plan: Option<serde_json::Value>,
    /// What the model answers, by its release: part of the pipeline that is approved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output: Option<OutputSpec>,
    /// The approvals of the second kind that are for this hospital; each is verified at every turn.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = MAX_STAGE_APPROVALS), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["keyID", "hospital", "stage"]))]
    pub stage_approvals: Vec<StageApproval>,
}

/// Where a deployment is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ModelDeploymentStatus {
    /// Generation that the conditions speak of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// The model that answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serving_digest: Option<Digest>,
    /// The stage on which the model stands, as it was written down. What its pod is told is never higher, whatever stands
    /// here; without it, Shadow.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stage: Option<Stage>,
    /// Why it stands no higher, where that is less than is asked: what it lacks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 500))]
    pub because: Option<String>,
    /// The next rung up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<Stage>,
    /// All that the next rung lacks, in numbers, as far as there is room.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 40), inner(length(max = 400)), extend("x-kubernetes-list-type" = "atomic"))]
    pub missing: Vec<String>,
    /// When it falls by itself, if nothing else changes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>", length(max = 40), extend("format" = "date-time", "pattern" = values::TIME_PATTERN))]
    pub until: Option<Timestamp>,
    /// Digest of everything that changes an answer here (model, finding and scope rules, output, worker and server image,
    /// precision, device class): what approvals of the second kind are over. None while the plan, or the worker in
    /// SitePolicy spec.releases.workers, is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pipeline: Option<Digest>,
    /// SignatureVerified, Approved, RolledOut, Ready; Stalled once the server refused the model.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::conditions")]
    pub conditions: Vec<Condition>,
}
