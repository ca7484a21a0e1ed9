//! ModelRelease: one model by digest, its lineage, its evidence and the hub's attestation.

use consilium_federation::digest::Digest;
use consilium_federation::gate::Vote;
use consilium_federation::ids::{SiteName, StudyKey};
use consilium_federation::output::OutputSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{schema, values};

/// A model that passed its study's gate. It permits nothing by itself.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "consilium.health",
    version = "v1alpha1",
    kind = "ModelRelease",
    shortname = "mrelease",
    category = "consilium",
    namespaced,
    status = "ModelReleaseStatus",
    derive = "PartialEq",
    cel,
    validation = Rule::new("self.spec == oldSelf.spec")
        .message("spec of a release cannot be changed: approvals and deployments refer to it by digest")
        .field_path(".spec"),
    printcolumn(name = "Study", type_ = "string", json_path = ".spec.study"),
    printcolumn(name = "Round", type_ = "integer", json_path = ".spec.round"),
    printcolumn(name = "Dice", type_ = "string", json_path = ".spec.dice"),
    printcolumn(name = "Attested", type_ = "string", json_path = ".status.conditions[?(@.type==\"Attested\")].status"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].reason"),
    printcolumn(name = "Digest", type_ = "string", json_path = ".spec.model", priority = 1),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct ModelReleaseSpec {
    /// The study, `namespace/name`.
    pub study: StudyKey,
    /// Its UID.
    #[schemars(length(min = 1, max = 63), regex(pattern = values::UID_PATTERN))]
    #[serde(rename = "studyUID")]
    pub study_uid: String,
    /// The round that made the model.
    #[schemars(range(min = 1, max = 10_000))]
    pub round: u32,
    /// Digest of the model's manifest.
    pub model: Digest,
    /// Digest of the study's spec at that round: hospitals, image, config, guarantees.
    pub spec_digest: Digest,
    /// Digest of the model that the round started from.
    pub base_model: Digest,
    /// Trainer image that made it.
    #[schemars(length(max = 500))]
    pub trainer_image: String,
    /// Trainer config that made it; tells a server which network to build.
    #[schemars(schema_with = "schema::free_object")]
    pub config: serde_json::Map<String, serde_json::Value>,
    /// What the model answers: the study's `spec.output`, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output: Option<OutputSpec>,
    /// Hospitals whose updates are in the round's sum.
    #[schemars(length(min = 1, max = 200), extend("x-kubernetes-list-type" = "set"))]
    pub contributors: Vec<SiteName>,
    /// Global mean Dice, four decimals.
    #[schemars(length(max = 8), regex(pattern = values::FRACTION_PATTERN))]
    pub dice: String,
    /// What each hospital found.
    #[schemars(length(max = 200), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["site"]))]
    pub evidence: Vec<SiteEvidence>,
    /// The hub's signature over all of the above.
    pub attestation: Attestation,
}

/// One hospital's finding.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SiteEvidence {
    /// Who.
    pub site: SiteName,
    /// Its vote on its own floor.
    pub vote: Vote,
    /// Cases, if it publishes its numbers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cases: Option<u32>,
    /// Mean Dice for each class, if it publishes its numbers; `-` for a class that none of its cases has.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8), inner(length(max = 8), regex(pattern = values::CLASS_DICE_PATTERN)), extend("x-kubernetes-list-type" = "atomic"))]
    pub dice: Vec<String>,
}

/// The hub's signature.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Attestation {
    /// First 16 hexadecimal digits of the SHA-256 of the hub's public key.
    #[serde(rename = "keyID")]
    #[schemars(length(max = 16))]
    pub key_id: String,
    /// Ed25519 signature over `consilium/release/v1\n` and the spec's canonical JSON with an empty
    /// signature, base64.
    #[schemars(length(max = 88))]
    pub signature: String,
}

/// Whether a release stands.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ModelReleaseStatus {
    /// Generation that the conditions speak of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Digest of the spec as canonical JSON: what deployments refer to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub release_digest: Option<Digest>,
    /// Digest of the evidence: what approvals sign, beside the model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub evidence_digest: Option<Digest>,
    /// Attested, Ready.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::conditions")]
    pub conditions: Vec<Condition>,
}

impl ModelReleaseSpec {
    /// Digest of the whole spec, attestation included: what a deployment fetches.
    pub fn digest(&self) -> Digest {
        Digest::of_json(self)
    }

    /// Digest of the evidence, which approvals sign; with what the model answers, if that is said: under another output
    /// spec the same weights give other masks.
    pub fn evidence_digest(&self) -> Digest {
        match &self.output {
            None => Digest::of_json(&(&self.dice, &self.evidence)),
            Some(output) => Digest::of_json(&(&self.dice, &self.evidence, output)),
        }
    }

    /// What the hub signs.
    pub fn attested_bytes(&self) -> Vec<u8> {
        let mut unsigned = self.clone();
        unsigned.attestation.signature = String::new();
        let mut bytes = b"consilium/release/v1\n".to_vec();
        bytes.extend(consilium_federation::digest::canonical_json(&unsigned));
        bytes
    }
}
