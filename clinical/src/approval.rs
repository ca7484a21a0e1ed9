//! Approvals of the second kind: who says that this pipeline, under this plan, in this hospital, may stand on a stage.
//!
//! One of the first kind (`consilium_federation::approval`) says nothing of pipeline, plan and hospital; it stands for
//! Shadow and no more, whatever stage it was signed for.

use consilium_federation::Digest;
use consilium_federation::approval::{Approval, TrustedKey, parse_public_key, signed_bytes as first_bytes};
use consilium_federation::ladder::Stage;
pub use consilium_federation::stage_approval::{Hospitals, MAX_STAGE_APPROVALS, StageApproval, Terms};
use ed25519_dalek::Signature;
use jiff::Timestamp;

use crate::evidence::Subject;

/// Approvals of one promotion that are looked at; what a hub adds beyond costs nothing and counts for nothing.
pub const MAX_APPROVALS: usize = 64;

/// An approval whose signature holds, for what it stands, and until when.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Valid {
    /// Who signed: of several by one key, one counts.
    pub key_id: String,
    /// In which role.
    pub role: String,
    /// The highest stage that it stands for.
    pub stage: Stage,
    /// When it ends.
    pub expiry: Timestamp,
}

/// What stands in a promotion, and what a hospital holds it against.
#[derive(Clone, Copy, Debug)]
pub struct Presented<'a> {
    /// Of the second kind.
    pub approvals: &'a [StageApproval],
    /// Of the first kind: for Shadow.
    pub first: &'a [Approval],
    /// Digest of the release's evidence: what those of the first kind are over.
    pub release_evidence: Digest,
    /// Digests of the evidence that this hospital can show for this pipeline besides: what it committed to itself.
    pub own_evidence: &'a [Digest],
    /// Keys in the hospital's policy.
    pub keys: &'a [TrustedKey],
}

impl Presented<'_> {
    /// The approvals whose signature holds, whenever they end, and what is wrong with the others.
    ///
    /// An approval over evidence that this hospital cannot show counts for nothing: a hub could have shown the signer
    /// figures of its own making.
    ///
    /// `plan` is the digest of the plan that the promotion names; without one only the first kind counts.
    pub fn verify(&self, subject: &Subject, plan: Option<Digest>) -> (Vec<Valid>, Vec<String>) {
        let mut faults = Vec::new();
        let mut valid = Vec::new();
        let mut note = |key: &str, result: Result<Valid, String>| match result {
            Ok(good) => valid.push(good),
            Err(why) => faults.push(format!("{}: {why}", key.chars().take(63).collect::<String>())),
        };
        for approval in self.approvals.iter().take(MAX_APPROVALS) {
            note(&approval.key_id, self.second(approval, subject, plan));
        }
        for approval in self.first.iter().take(MAX_APPROVALS) {
            note(&approval.key_id, self.first_kind(approval, subject));
        }
        (valid, faults)
    }

    fn second(&self, approval: &StageApproval, subject: &Subject, plan: Option<Digest>) -> Result<Valid, String> {
        let terms = &approval.terms;
        let plan = plan.ok_or("it is for a plan, and the promotion names none that holds")?;
        for (what, named, own) in [
            ("model", terms.model, subject.model),
            ("pipeline", terms.pipeline, subject.pipeline),
            ("plan", terms.plan, plan),
        ] {
            if named != own {
                return Err(format!("it is for {what} {named}, here it is {own}"));
            }
        }
        match &terms.hospital {
            Hospitals::One(site) if *site != subject.hospital => return Err(format!("it is for hospital {site}")),
            _ => {}
        }
        if terms.evidence != self.release_evidence && !self.own_evidence.contains(&terms.evidence) {
            return Err(format!("it is over evidence {}, which this hospital cannot show", terms.evidence));
        }
        let bytes = terms.signed_bytes();
        self.signed(&approval.key_id, &approval.role, &approval.signature, |good| good(&bytes))?;
        let Terms { stage, expiry, .. } = *terms;
        Ok(Valid { key_id: approval.key_id.clone(), role: approval.role.clone(), stage, expiry })
    }

    fn first_kind(&self, approval: &Approval, subject: &Subject) -> Result<Valid, String> {
        let over = |stage| first_bytes(subject.model, stage, self.release_evidence, approval.expiry);
        let any = |good: &dyn Fn(&[u8]) -> bool| Stage::ALL.into_iter().any(|stage| good(&over(stage)));
        self.signed(&approval.key_id, &approval.role, &approval.signature, any)?;
        let (key_id, role, expiry) = (approval.key_id.clone(), approval.role.clone(), approval.expiry);
        Ok(Valid { key_id, role, stage: Stage::Shadow, expiry })
    }

    /// Does the key sign in this role, and is one of the byte strings that `any` tries what it signed?
    fn signed(
        &self,
        key_id: &str,
        role: &str,
        signature: &str,
        any: impl Fn(&dyn Fn(&[u8]) -> bool) -> bool,
    ) -> Result<(), String> {
        let key = self.keys.iter().find(|key| key.id == key_id).ok_or("the key is not in the policy")?;
        if key.role != role {
            return Err(format!("the key may sign as {:?} only", key.role));
        }
        let public = parse_public_key(&key.public_key)?;
        let signature = parse_signature(signature)?;
        let good = |bytes: &[u8]| public.verify_strict(bytes, &signature).is_ok();
        if any(&good) { Ok(()) } else { Err("the signature is not over these terms".into()) }
    }
}

/// Parses a base64 Ed25519 signature.
pub(crate) fn parse_signature(text: &str) -> Result<Signature, String> {
    use base64::Engine as _;
    let raw = base64::engine::general_purpose::STANDARD.decode(text).map_err(|e| format!("not base64: {e}"))?;
    Signature::from_slice(&raw).map_err(|_| "the signature is not 64 bytes".to_owned())
}

#[cfg(test)]
#[path = "approval_tests.rs"]
mod tests;
