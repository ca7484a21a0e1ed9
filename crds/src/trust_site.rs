//! TrustSite: a hospital that may take part.

use consilium_federation::ids::SiteName;
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{schema, values};

/// A hospital that may take part in studies. Its name is the one in the hospital's certificate.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "consilium.health",
    version = "v1alpha1",
    kind = "TrustSite",
    shortname = "tsite",
    category = "consilium",
    status = "TrustSiteStatus",
    derive = "PartialEq",
    cel,
    validation = Rule::new("self.metadata.name.matches('^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$')")
        .message(Message::Expression("'metadata.name is \"' + self.metadata.name + '\": a site is called as in its certificate, with at most 63 lower-case letters, digits and \"-\", no dots'".into())),
    printcolumn(name = "Accepted", type_ = "boolean", json_path = ".spec.accepted"),
    printcolumn(name = "Connected", type_ = "string", json_path = ".status.conditions[?(@.type==\"Connected\")].status"),
    printcolumn(name = "LastContact", type_ = "date", json_path = ".status.lastContactTime"),
    printcolumn(name = "Agent", type_ = "string", json_path = ".status.agentVersion"),
    printcolumn(name = "DisplayName", type_ = "string", json_path = ".spec.displayName", priority = 1),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct TrustSiteSpec {
    /// Name for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 200))]
    pub display_name: Option<String>,
    /// Whether the gateway lets this hospital in. Checked on every call; false revokes at once.
    pub accepted: bool,
    /// Only certificates whose validity begins at this time or later let this hospital in: what was issued before is in
    /// the wrong hands. Set it, with a certificate of a new key in the hospital, before `accepted` is true again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>", length(max = 40), extend("format" = "date-time", "pattern" = values::TIME_PATTERN))]
    pub certificates_issued_since: Option<Timestamp>,
    /// Namespaces whose studies may name this hospital. Empty: none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 100), inner(length(min = 1, max = 63), regex(pattern = values::NAMESPACE_PATTERN)), extend("x-kubernetes-list-type" = "set"))]
    pub study_namespaces: Vec<String>,
}

/// What the hub sees of a hospital.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TrustSiteStatus {
    /// Generation that the conditions speak of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Version of the hospital's agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63))]
    pub agent_version: Option<String>,
    /// Written on transitions and every five minutes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>", length(max = 40), extend("format" = "date-time", "pattern" = values::TIME_PATTERN))]
    pub last_contact_time: Option<Timestamp>,
    /// Accepted, Connected, Ready.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::conditions")]
    pub conditions: Vec<Condition>,
}

impl TrustSite {
    /// The site's name, if the object has a valid one.
    pub fn site_name(&self) -> Option<SiteName> {
        self.metadata.name.as_deref().and_then(|n| n.parse().ok())
    }
}
