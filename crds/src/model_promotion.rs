//! ModelPromotion: a release, a stage, the hospitals, and who approved it.

use consilium_federation::approval::Approval;
use consilium_federation::digest::Digest;
use consilium_federation::ids::SiteName;
use consilium_federation::ladder::Stage;
pub use consilium_federation::report::RolloutReason;
use consilium_federation::stage_approval::{MAX_STAGE_APPROVALS, StageApproval};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{schema, values};

/// The wish that a release stands at a stage in some hospitals. Each hospital decides for itself.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "consilium.health",
    version = "v1alpha1",
    kind = "ModelPromotion",
    shortname = "mpromo",
    category = "consilium",
    namespaced,
    status = "ModelPromotionStatus",
    derive = "PartialEq",
    cel,
    validation = Rule::new("self.spec.release.name == oldSelf.spec.release.name || self.spec.release.digest != oldSelf.spec.release.digest")
        .message(Message::Expression("'spec.release.name is \"' + self.spec.release.name + '\" and was \"' + oldSelf.spec.release.name + '\", and spec.release.digest is ' + self.spec.release.digest + ' as before: they belong together; change both to promote another release'".into()))
        .field_path(".spec.release"),
    printcolumn(name = "Release", type_ = "string", json_path = ".spec.release.name"),
    printcolumn(name = "Stage", type_ = "string", json_path = ".spec.stage"),
    printcolumn(name = "RolledOut", type_ = "string", json_path = ".status.conditions[?(@.type==\"RolledOut\")].status"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type==\"RolledOut\")].reason"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct ModelPromotionSpec {
    /// Which release.
    pub release: ReleaseRef,
    /// What it is to be trusted with.
    pub stage: Stage,
    /// Where.
    #[schemars(length(min = 1, max = 200), extend("x-kubernetes-list-type" = "set"))]
    pub sites: Vec<SiteName>,
    /// Signed approvals, made with `kubectl consilium sign`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 20), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["keyID"]))]
    pub approvals: Vec<Approval>,
    /// The clinical plan by which the model may climb. Without one it stands on Shadow.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plan: Option<PlanRef>,
    /// Signed approvals of the second kind, over the plan too, made with `kubectl consilium sign --plan`: what a rung above
    /// Shadow needs. Those in `approvals` stand for Shadow.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = MAX_STAGE_APPROVALS), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["keyID", "hospital", "stage"]))]
    pub stage_approvals: Vec<StageApproval>,
}

/// A plan by name and digest.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PlanRef {
    /// Name of the ClinicalPlan in the same namespace.
    #[schemars(length(min = 1, max = 253), regex(pattern = values::NAME_PATTERN))]
    pub name: String,
    /// Its digest, as in its status; must match.
    pub digest: Digest,
}

/// A release by name and by the digest of its model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ReleaseRef {
    /// Name of the ModelRelease in the same namespace.
    #[schemars(length(min = 1, max = 253), regex(pattern = values::NAME_PATTERN))]
    pub name: String,
    /// Digest of its model; must match.
    pub digest: Digest,
}

/// Where a promotion is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ModelPromotionStatus {
    /// Generation that the conditions speak of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// What was last offered while the promotion was accepted. One that no longer makes sense is still lowered by it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub offered: Option<Offered>,
    /// Hospital by hospital: those that were offered it, and those that must still hear that it is taken back, as far as
    /// there is room.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 200), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["site"]))]
    pub sites: Vec<SiteRollout>,
    /// Accepted, RolledOut, Ready.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::conditions")]
    pub conditions: Vec<Condition>,
}

/// An offer as it went out to hospitals.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Offered {
    /// Name of the release.
    #[schemars(length(max = 253))]
    pub release: String,
    /// Digest of the release's spec.
    pub release_digest: Digest,
    /// Digest of the model.
    pub model: Digest,
    /// Stage asked for.
    pub stage: Stage,
    /// The approvals that went with it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 20), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["keyID"]))]
    pub approvals: Vec<Approval>,
    /// Digest of the clinical plan.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plan: Option<Digest>,
    /// The approvals of the second kind that went with it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = MAX_STAGE_APPROVALS), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["keyID", "hospital", "stage"]))]
    pub stage_approvals: Vec<StageApproval>,
}

/// One hospital's rollout.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SiteRollout {
    /// Who.
    pub site: SiteName,
    /// Where it is.
    pub reason: RolloutReason,
    /// The model that is served there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<Digest>,
    /// The stage on which it stands there, as the hospital says: what is asked, or a lower one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stage: Option<Stage>,
    /// Only when something is wrong.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 200))]
    pub message: Option<String>,
}
