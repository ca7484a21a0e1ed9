//! Approvals of the second kind, as they are carried and signed: who says that this pipeline, under this plan, in this
//! hospital, may stand on a stage. What they count for is said in `consilium-clinical`.

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::ids::{NameError, SiteName};
use crate::ladder::Stage;

/// Approvals of this kind that one promotion carries at most.
pub const MAX_STAGE_APPROVALS: usize = 40;

/// For which hospitals an approval is: one by name, or `*` for every hospital that trusts the key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Hospitals {
    /// Every one.
    All,
    /// This one.
    One(SiteName),
}

impl TryFrom<String> for Hospitals {
    type Error = NameError;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        if text == "*" { Ok(Self::All) } else { text.parse().map(Self::One) }
    }
}

impl From<Hospitals> for String {
    fn from(hospitals: Hospitals) -> Self {
        hospitals.to_string()
    }
}

impl std::fmt::Display for Hospitals {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::All => f.write_str("*"),
            Self::One(site) => site.fmt(f),
        }
    }
}

impl JsonSchema for Hospitals {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Hospitals".into()
    }
    fn inline_schema() -> bool {
        true
    }
    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "type": "string", "minLength": 1, "maxLength": 63, "pattern": "^(\\*|[a-z0-9]([-a-z0-9]*[a-z0-9])?)$"
        })
    }
}

/// Everything that an approval is over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(inline)]
pub struct Terms {
    /// Digest of the model.
    pub model: Digest,
    /// Digest of the pipeline, which is everything that changes an answer.
    pub pipeline: Digest,
    /// Digest of the plan, as promotions name it.
    pub plan: Digest,
    /// The stage. It counts for every lower one too, so that a fall needs no new signature.
    pub stage: Stage,
    /// For which hospitals.
    pub hospital: Hospitals,
    /// Digest of the evidence that the signer saw: a release's, or what a hospital committed to
    /// itself.
    pub evidence: Digest,
    /// When it ends, RFC 3339.
    #[schemars(with = "String", length(max = 40), extend("format" = "date-time", "pattern" = crate::ids::TIME_PATTERN))]
    pub expiry: Timestamp,
}

impl Terms {
    /// The bytes that are signed: a context line and one line a field. Every field is of a type whose text has no line
    /// break, so no two terms have the same bytes.
    pub fn signed_bytes(&self) -> Vec<u8> {
        let Self { model, pipeline, plan, stage, hospital, evidence, expiry } = self;
        format!("consilium/approval/v2\n{model}\n{pipeline}\n{plan}\n{stage}\n{hospital}\n{evidence}\n{expiry}\n")
            .into_bytes()
    }
}

/// One signed approval of the second kind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(inline)]
pub struct StageApproval {
    /// Name of the key in the hospital's policy.
    #[serde(rename = "keyID")]
    #[schemars(length(min = 1, max = 63))]
    pub key_id: String,
    /// The role in which the signer approves.
    #[schemars(length(min = 1, max = 63))]
    pub role: String,
    /// What is approved.
    #[serde(flatten)]
    pub terms: Terms,
    /// Ed25519 signature (RFC 8032) over [`Terms::signed_bytes`], base64.
    #[schemars(length(max = 88), regex(pattern = "^[A-Za-z0-9+/]{85}[AQgw]==$"))]
    pub signature: String,
}
