//! Approvals: who says that a model may stand on a rung of the ladder.
//!
//! An approval is an Ed25519 signature (RFC 8032) made offline over the model's
//! digest, the stage, the evidence and an expiry. The hospital counts approvals
//! against the keys in its own policy; the hub's key is never among them.

use ed25519_dalek::{Signature, VerifyingKey};
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::ladder::Stage;

/// One signed approval as it stands in a ModelPromotion.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(inline)]
pub struct Approval {
    /// Name of the key in the hospital's policy.
    #[serde(rename = "keyID")]
    #[schemars(length(min = 1, max = 63))]
    pub key_id: String,
    /// The role in which the signer approves, for example `clinical-safety-officer`.
    #[schemars(length(min = 1, max = 63))]
    pub role: String,
    /// When the approval ends, RFC 3339.
    #[schemars(with = "String", length(max = 40), extend("format" = "date-time", "pattern" = crate::ids::TIME_PATTERN))]
    pub expiry: Timestamp,
    /// The signature, base64 (88 characters).
    #[schemars(length(max = 88), regex(pattern = "^[A-Za-z0-9+/]{85}[AQgw]==$"))]
    pub signature: String,
}

/// A key that a hospital trusts for approvals.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(inline)]
pub struct TrustedKey {
    /// Its name.
    #[schemars(length(min = 1, max = 63))]
    pub id: String,
    /// The one role that it may sign in.
    #[schemars(length(min = 1, max = 63))]
    pub role: String,
    /// Ed25519 public key, base64 (44 characters).
    #[schemars(length(max = 44), regex(pattern = "^[A-Za-z0-9+/]{42}[AEIMQUYcgkosw048]=$"))]
    pub public_key: String,
}

/// How many approvals a stage needs, and in which roles.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(inline)]
pub struct Requirement {
    /// The stage.
    pub stage: Stage,
    /// Approvals by different keys.
    #[schemars(range(min = 1, max = 10))]
    pub approvals: u32,
    /// Each of these roles must be among them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 10), inner(length(min = 1, max = 63)), extend("x-kubernetes-list-type" = "set"))]
    pub roles: Vec<String>,
}

/// Why the approvals do not suffice; every text says what would.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The policy says nothing about the stage.
    #[error("SitePolicy spec.releases.require has no entry for stage {0}; add one to allow it")]
    NoRequirement(Stage),
    /// Not enough good signatures.
    #[error("stage {stage} needs {needed} approvals by keys in SitePolicy spec.releases.keys, {found} are valid{why}")]
    TooFew {
        /// Stage asked for.
        stage: Stage,
        /// By policy.
        needed: u32,
        /// Valid ones.
        found: u32,
        /// What was wrong with the others.
        why: String,
    },
    /// A role is missing.
    #[error("stage {stage} needs an approval in the role {role:?}, none is valid{why}")]
    MissingRole {
        /// Stage asked for.
        stage: Stage,
        /// The role.
        role: String,
        /// What was wrong with the others.
        why: String,
    },
}

/// The bytes that an approval signs: one line a field, with a leading context line.
pub fn signed_bytes(model: Digest, stage: Stage, evidence: Digest, expiry: Timestamp) -> Vec<u8> {
    format!("consilium/approval/v1\n{model}\n{stage}\n{evidence}\n{expiry}\n").into_bytes()
}

fn check(approval: &Approval, keys: &[TrustedKey], bytes: &[u8], now: Timestamp) -> Result<(), String> {
    let key = keys.iter().find(|k| k.id == approval.key_id).ok_or("the key is not in the policy")?;
    if key.role != approval.role {
        return Err(format!("the key may sign as {:?} only, not as {:?}", key.role, approval.role));
    }
    if approval.expiry <= now {
        return Err(format!("it expired at {}", approval.expiry));
    }
    let public = parse_public_key(&key.public_key)?;
    let raw = decode64(&approval.signature)?;
    let signature = Signature::from_slice(&raw).map_err(|_| "the signature is not 64 bytes")?;
    public
        .verify_strict(bytes, &signature)
        .map_err(|_| "the signature is not over this model, stage, evidence and expiry".into())
}

fn decode64(text: &str) -> Result<Vec<u8>, String> {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.decode(text).map_err(|e| format!("not base64: {e}"))
}

/// Parses a base64 Ed25519 public key.
pub fn parse_public_key(text: &str) -> Result<VerifyingKey, String> {
    let raw: [u8; 32] = decode64(text)?.try_into().map_err(|_| "a public key is 32 bytes".to_owned())?;
    VerifyingKey::from_bytes(&raw).map_err(|_| "not a valid Ed25519 public key".to_owned())
}

/// Approvals that suffice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Enough {
    /// Those that count: one a key, the first to end first.
    pub approvals: Vec<Approval>,
    /// The earliest moment at which they no longer suffice.
    pub until: Timestamp,
}

/// Do these approvals let the model stand on `stage` under this policy, at this time, and how long?
pub fn decide(
    model: Digest,
    evidence: Digest,
    stage: Stage,
    approvals: &[Approval],
    keys: &[TrustedKey],
    require: &[Requirement],
    now: Timestamp,
) -> Result<Enough, Refusal> {
    let need = require.iter().find(|r| r.stage == stage).ok_or(Refusal::NoRequirement(stage))?;
    let mut valid: Vec<&Approval> = Vec::new();
    let mut why = String::new();
    for approval in approvals {
        let bytes = signed_bytes(model, stage, evidence, approval.expiry);
        match (check(approval, keys, &bytes, now), valid.iter_mut().find(|v| v.key_id == approval.key_id)) {
            (Ok(()), Some(same)) if same.expiry < approval.expiry => *same = approval,
            (Ok(()), Some(_)) => {}
            (Ok(()), None) => valid.push(approval),
            (Err(reason), _) => why.push_str(&format!("; {:?}: {reason}", approval.key_id)),
        }
    }
    if (valid.len() as u32) < need.approvals {
        return Err(Refusal::TooFew { stage, needed: need.approvals, found: valid.len() as u32, why });
    }
    if let Some(role) = missing_role(need, &valid) {
        return Err(Refusal::MissingRole { stage, role: role.clone(), why });
    }
    valid.sort_by_key(|v| (v.expiry, v.key_id.clone()));
    // They end one after the other; the first that leaves too few behind it ends them all.
    let last = (0..valid.len()).find(|n| {
        let left = &valid[n + 1..];
        (left.len() as u32) < need.approvals || missing_role(need, left).is_some()
    });
    let until = last.map_or(Timestamp::MAX, |n| valid[n].expiry);
    Ok(Enough { approvals: valid.into_iter().cloned().collect(), until })
}

fn missing_role<'a>(need: &'a Requirement, valid: &[&Approval]) -> Option<&'a String> {
    need.roles.iter().find(|role| !valid.iter().any(|v| v.role == **role))
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use ed25519_dalek::{Signer, SigningKey};

    use super::*;

    const B64: base64::engine::GeneralPurpose = base64::engine::general_purpose::STANDARD;

    fn sign(key: &SigningKey, id: &str, role: &str, stage: Stage, expiry: &str) -> Approval {
        let expiry: Timestamp = expiry.parse().unwrap();
        let bytes = signed_bytes(Digest::of(b"model"), stage, Digest::of(b"evidence"), expiry);
        let signature = B64.encode(key.sign(&bytes).to_bytes());
        Approval { key_id: id.into(), role: role.into(), expiry, signature }
    }

    fn try_all(stage: Stage, approvals: &[Approval]) -> Result<Enough, Refusal> {
        let key = |n: u8, id: &str, role: &str| TrustedKey {
            id: id.into(),
            role: role.into(),
            public_key: B64.encode(SigningKey::from_bytes(&[n; 32]).verifying_key().as_bytes()),
        };
        let keys = [key(1, "mary", "clinical-safety-officer"), key(2, "ola", "radiologist")];
        let require =
            [Requirement { stage: Stage::Shadow, approvals: 2, roles: vec!["clinical-safety-officer".into()] }];
        let now = "2026-06-01T00:00:00Z".parse().unwrap();
        decide(Digest::of(b"model"), Digest::of(b"evidence"), stage, approvals, &keys, &require, now)
    }

    #[test]
    fn only_valid_distinct_approvals_in_the_right_role_count() {
        let mary = SigningKey::from_bytes(&[1; 32]);
        let ola = SigningKey::from_bytes(&[2; 32]);
        let later = "2027-01-01T00:00:00Z";
        let by_mary = sign(&mary, "mary", "clinical-safety-officer", Stage::Shadow, later);
        let by_ola = sign(&ola, "ola", "radiologist", Stage::Shadow, later);
        let enough = try_all(Stage::Shadow, &[by_ola.clone(), by_mary.clone()]).unwrap();
        assert_eq!(enough.approvals, [by_mary.clone(), by_ola.clone()]);
        // Twice the same person is one approval.
        assert!(try_all(Stage::Shadow, &[by_mary.clone(), by_mary.clone()]).is_err());
        // A signature for another stage, an expired one, a role the key does not have.
        for wrong in [
            sign(&ola, "ola", "radiologist", Stage::Triage, later),
            sign(&ola, "ola", "radiologist", Stage::Shadow, "2026-01-01T00:00:00Z"),
            sign(&ola, "ola", "clinical-safety-officer", Stage::Shadow, later),
            sign(&ola, "mallory", "radiologist", Stage::Shadow, later),
        ] {
            let refusal = try_all(Stage::Shadow, &[by_mary.clone(), wrong]).unwrap_err();
            assert!(matches!(refusal, Refusal::TooFew { found: 1, .. }), "{refusal}");
        }
        assert_eq!(try_all(Stage::Triage, &[by_mary, by_ola]), Err(Refusal::NoRequirement(Stage::Triage)));
    }

    /// A lease that reached beyond this moment would keep a model answering on nobody's word, its agent being dead.
    #[test]
    fn approvals_suffice_until_the_first_that_leaves_too_few() {
        let (officer, radiologist) = ("clinical-safety-officer", "radiologist");
        let (mary, ola) = (SigningKey::from_bytes(&[1; 32]), SigningKey::from_bytes(&[2; 32]));
        let by = |key, id, role, expiry| sign(key, id, role, Stage::Shadow, expiry);
        let (early, late) = ("2026-07-01T00:00:00Z", "2027-01-01T00:00:00Z");
        let until = |approvals: &[Approval]| try_all(Stage::Shadow, approvals).unwrap().until.to_string();
        let by_ola = by(&ola, "ola", radiologist, late);
        assert_eq!(until(&[by(&mary, "mary", officer, early), by_ola.clone()]), early);
        // Signed again before the first ended: the later word of the same person holds, in either order.
        let both = [by(&mary, "mary", officer, early), by(&mary, "mary", officer, late), by_ola.clone()];
        assert_eq!(until(&both), late);
        assert_eq!(until(&[both[1].clone(), both[0].clone(), by_ola]), late);
    }
}
