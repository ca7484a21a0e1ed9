//! Who made a round. A TrainingRound is the operator's own: one that someone else made would be offered to hospitals under
//! the study's name, and would stand among its rounds. So the operator signs each with the hub's key as it makes it. Pure.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use consilium_crds::{TrainingRound, TrainingRoundSpec};
use consilium_federation::Digest;
use ed25519_dalek::{Signature, Signer as _, SigningKey, VerifyingKey};
use kube::ResourceExt;

/// Annotation with the signature.
pub const ANNOTATION: &str = "consilium.health/made-by";

fn signed_bytes(namespace: &str, name: &str, spec: &TrainingRoundSpec) -> Vec<u8> {
    format!("consilium/training-round/v1\n{namespace}\n{name}\n{}\n", Digest::of_json(spec)).into_bytes()
}

/// The annotation of a round that the operator makes.
pub fn seal(key: &SigningKey, namespace: &str, name: &str, spec: &TrainingRoundSpec) -> String {
    BASE64.encode(key.sign(&signed_bytes(namespace, name, spec)).to_bytes())
}

/// Whether the operator made this round. One that has a state has had it from the operator, which alone may write it.
pub fn is_ours(round: &TrainingRound, key: &VerifyingKey) -> bool {
    if round.status.as_ref().is_some_and(|status| status.round.is_some()) {
        return true;
    }
    let text = round.annotations().get(ANNOTATION);
    let signature = text.and_then(|text| BASE64.decode(text).ok()).and_then(|raw| Signature::from_slice(&raw).ok());
    let bytes = signed_bytes(&round.namespace().unwrap_or_default(), &round.name_any(), &round.spec);
    signature.is_some_and(|signature| key.verify_strict(&bytes, &signature).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controllers::testing::{completed, round};

    fn made() -> (SigningKey, TrainingRound) {
        let key = SigningKey::from_bytes(&[3; 32]);
        let mut made = round(1, None);
        let sealed = seal(&key, "research", &made.name_any(), &made.spec);
        made.metadata.annotations = Some([(ANNOTATION.to_owned(), sealed)].into());
        (key, made)
    }

    /// Whoever may create TrainingRounds in a namespace must not have hospitals train what no study asks for, neither by a
    /// round of their own nor by another one's seal.
    #[test]
    fn only_what_the_operator_made_is_a_round() {
        let (key, made) = made();
        let ours = |round: &TrainingRound| is_ours(round, &key.verifying_key());
        assert!(ours(&made));
        assert!(!ours(&round(1, None)), "made by hand");
        type Edit = fn(&mut TrainingRound);
        let edits: [Edit; 4] = [
            |r| r.spec.number = 2,
            |r| r.metadata.name = Some("hippocampus-9".into()),
            |r| r.metadata.namespace = Some("elsewhere".into()),
            |r| r.spec.spec_digest = Digest::of(b"another study"),
        ];
        for edit in edits {
            let mut forged = made.clone();
            edit(&mut forged);
            assert!(!ours(&forged), "{:?}", forged.metadata);
        }
        assert!(!is_ours(&made, &SigningKey::from_bytes(&[4; 32]).verifying_key()));
        // Rounds of an operator that did not seal them yet go on.
        assert!(ours(&round(1, Some(completed(b"m")))));
    }
}
