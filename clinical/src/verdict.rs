//! A hospital's signed verdict on its own evidence: by default all that leaves. Signed with the key that the roster has
//! for the hospital, so that a hub can keep one back but make none up.

use std::collections::BTreeMap;

use consilium_federation::ladder::Stage;
use consilium_federation::{Digest, SiteName};
use ed25519_dalek::VerifyingKey;
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::approval::parse_signature;
use crate::evidence::Subject;
use crate::rules::Outcome;

/// Verdicts that are looked at for one rule.
pub const MAX_VERDICTS: usize = 400;

/// What a hospital's evidence says of a plan's rule for one stage.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(inline)]
pub struct Verdict {
    /// Whose.
    pub hospital: SiteName,
    /// Digest of the model.
    pub model: Digest,
    /// Digest of the pipeline there.
    pub pipeline: Digest,
    /// Digest of the plan.
    pub plan: Digest,
    /// The stage whose rule it is about.
    pub stage: Stage,
    /// On the rule as a whole, as far as it speaks of this hospital.
    pub outcome: Outcome,
    /// On each metric of the rule, in the plan's order.
    #[schemars(length(max = 20))]
    pub metrics: Vec<Outcome>,
    /// What the hospital committed to, see [`crate::evidence::Evidence::commitment`].
    pub evidence: Digest,
    /// When the evidence's window ended: of two verdicts of one hospital the later window's counts.
    #[schemars(with = "String", length(max = 40), extend("format" = "date-time", "pattern" = consilium_federation::ids::TIME_PATTERN))]
    pub window_end: Timestamp,
    /// When it stops counting.
    #[schemars(with = "String", length(max = 40), extend("format" = "date-time", "pattern" = consilium_federation::ids::TIME_PATTERN))]
    pub expiry: Timestamp,
}

impl Verdict {
    /// The bytes that are signed: a context line and one line a field.
    pub fn signed_bytes(&self) -> Vec<u8> {
        let Self { hospital, model, pipeline, plan, stage, outcome, evidence, window_end, expiry, .. } = self;
        let outcome = outcome.as_str();
        let metrics: Vec<&str> = self.metrics.iter().map(|metric| metric.as_str()).collect();
        let metrics = metrics.join(",");
        format!(
            "consilium/verdict/v1\n{hospital}\n{model}\n{pipeline}\n{plan}\n{stage}\n{outcome}\n{metrics}\n{evidence}\n{window_end}\n{expiry}\n"
        )
        .into_bytes()
    }
}

/// A verdict with its signature.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(inline)]
pub struct SignedVerdict {
    /// The verdict.
    #[serde(flatten)]
    pub verdict: Verdict,
    /// Ed25519 signature (RFC 8032) over [`Verdict::signed_bytes`] with the hospital's roster key, base64.
    #[schemars(length(max = 88), regex(pattern = "^[A-Za-z0-9+/]{85}[AQgw]==$"))]
    pub signature: String,
}

/// Why a verdict counts for nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VerdictError {
    /// No key.
    #[error("hospital {0} is not in the roster that this hospital has accepted: its verdict cannot be verified")]
    NotInRoster(SiteName),
    /// Forged, damaged, or of another key.
    #[error("the verdict of {hospital} is not signed with its roster key ({why}): ask that hospital for it again")]
    Forged {
        /// Whose it claims to be.
        hospital: SiteName,
        /// What is wrong.
        why: String,
    },
}

/// The roster's keys by hospital, as this hospital has accepted them.
pub type RosterKeys = BTreeMap<SiteName, VerifyingKey>;

impl SignedVerdict {
    /// The verdict, if the hospital that it names has signed it.
    ///
    /// # Errors
    /// See [`VerdictError`].
    pub fn verify(&self, roster: &RosterKeys) -> Result<&Verdict, VerdictError> {
        let hospital = &self.verdict.hospital;
        let key = roster.get(hospital).ok_or_else(|| VerdictError::NotInRoster(hospital.clone()))?;
        let forged = |why: String| VerdictError::Forged { hospital: hospital.clone(), why };
        let signature = parse_signature(&self.signature).map_err(forged)?;
        let bytes = self.verdict.signed_bytes();
        key.verify_strict(&bytes, &signature).map_err(|_| forged("the signature does not hold".into()))?;
        Ok(&self.verdict)
    }
}

/// What another hospital says of one rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Heard {
    /// On each metric, in the plan's order.
    pub metrics: Vec<Outcome>,
    /// When its evidence's window ended.
    pub window_end: Timestamp,
    /// When it stops counting.
    pub expiry: Timestamp,
}

/// The verdicts of the other hospitals on one rule: those that are signed, of the same model and plan, and of each
/// hospital the one of the latest window. Where a hospital says two things of one window, the worse of each counts.
/// Which pipeline ran there does not matter: what a model does on other devices is what a worst hospital is looked for.
pub fn of_others(
    verdicts: &[SignedVerdict],
    roster: &RosterKeys,
    subject: &Subject,
    plan: Digest,
    stage: Stage,
) -> BTreeMap<SiteName, Heard> {
    let mut latest: BTreeMap<SiteName, Heard> = BTreeMap::new();
    let concerns =
        |v: &Verdict| (v.model, v.plan, v.stage) == (subject.model, plan, stage) && v.hospital != subject.hospital;
    for signed in verdicts.iter().filter(|signed| concerns(&signed.verdict)).take(MAX_VERDICTS) {
        let Ok(Verdict { hospital, metrics, window_end, expiry, .. }) = signed.verify(roster) else { continue };
        let new = Heard { metrics: metrics.clone(), window_end: *window_end, expiry: *expiry };
        let heard = match latest.remove(hospital) {
            Some(old) if old.window_end > new.window_end => old,
            Some(old) if old.window_end == new.window_end => worse(&old, &new),
            _ => new,
        };
        latest.insert(hospital.clone(), heard);
    }
    latest
}

fn worse(one: &Heard, other: &Heard) -> Heard {
    Heard {
        metrics: one.metrics.iter().zip(&other.metrics).map(|(a, b)| *a.min(b)).collect(),
        window_end: one.window_end,
        expiry: one.expiry.min(other.expiry),
    }
}

#[cfg(test)]
#[path = "verdict_tests.rs"]
mod tests;
