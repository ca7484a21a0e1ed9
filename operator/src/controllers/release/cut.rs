//! Cutting a release from a round, and the hub's attestation of it. Pure: Ed25519 signatures are deterministic
//! (RFC 8032).

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use consilium_crds::model_release::{Attestation, SiteEvidence};
use consilium_crds::{FederatedStudySpec, ModelReleaseSpec, TrainingRound};
use consilium_federation::round::SiteState;
use consilium_federation::{Digest, StudyKey};
use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use kube::ResourceExt;

/// The name of a key: the first 16 hexadecimal digits of its SHA-256.
pub fn key_id(key: &VerifyingKey) -> String {
    Digest::of(key.as_bytes()).hex()[..16].to_owned()
}

/// The release of a round whose gate passed, attested.
///
/// # Errors
/// When the round's state lacks what a release needs, which its gate should have excluded.
pub fn cut(round: &TrainingRound, spec: &FederatedStudySpec, key: &SigningKey) -> Result<ModelReleaseSpec, String> {
    let name = round.name_any();
    let lacks = |what: &str| format!("TrainingRound {name} passed its gate without {what}");
    let state = round.status.as_ref().and_then(|s| s.round.as_ref()).ok_or_else(|| lacks("a state"))?;
    let gate = state.gate.as_ref().filter(|g| g.passed).ok_or_else(|| lacks("a passed gate"))?;
    let evidence = |s: &SiteState| {
        s.vote.map(|vote| SiteEvidence { site: s.site.clone(), vote, cases: s.cases, dice: s.dice.clone() })
    };
    let mut release = ModelReleaseSpec {
        study: StudyKey::new(round.namespace().unwrap_or_default(), round.spec.study.clone()),
        study_uid: round.spec.study_uid.clone(),
        round: round.spec.number,
        model: state.model.ok_or_else(|| lacks("a model"))?,
        spec_digest: round.spec.spec_digest,
        base_model: round.spec.base_model,
        trainer_image: spec.trainer.image.clone(),
        config: spec.trainer.config.clone(),
        output: spec.output.clone(),
        contributors: state.contributor_names(),
        dice: gate.global.clone().ok_or_else(|| lacks("a global figure"))?,
        evidence: state.sites.iter().filter_map(evidence).collect(),
        attestation: Attestation { key_id: key_id(&key.verifying_key()), signature: String::new() },
    };
    attest(&mut release, key);
    Ok(release)
}

/// Signs what stands in the release.
pub fn attest(release: &mut ModelReleaseSpec, key: &SigningKey) {
    let signature = key.sign(&release.attested_bytes());
    release.attestation.signature = STANDARD.encode(signature.to_bytes());
}

/// Whether the attestation is this hub's, over this spec.
///
/// # Errors
/// A text for the condition.
pub fn verify(spec: &ModelReleaseSpec, key: &VerifyingKey) -> Result<(), String> {
    let id = key_id(key);
    if spec.attestation.key_id != id {
        return Err(format!(
            "spec.attestation.keyID is \"{}\", but this hub's key is \"{id}\": the release was made by another hub or \
             by hand; delete it, releases are cut by the operator",
            spec.attestation.key_id
        ));
    }
    let raw = STANDARD.decode(&spec.attestation.signature).map_err(|e| e.to_string());
    let signature = raw.and_then(|raw| Signature::from_slice(&raw).map_err(|_| "it is not 64 bytes long".to_owned()));
    let signature = signature.map_err(|why| format!("spec.attestation.signature cannot be read: {why}"))?;
    key.verify_strict(&spec.attested_bytes(), &signature).map_err(|_| {
        "spec.attestation.signature is not over this spec: the release was altered; delete it, the operator cuts it again \
         while its round is kept"
            .to_owned()
    })
}

#[cfg(test)]
mod tests {
    use consilium_federation::gate::Vote;
    use consilium_federation::round::{GateRecord, Outcome, RoundState, RoundStep};

    use super::*;
    use crate::controllers::testing::{at, name, round, study_spec};

    fn passed() -> TrainingRound {
        let mut state = RoundState::new(["alder", "birch", "cedar"].map(name), at(0), at(60));
        state.step = RoundStep::Succeeded;
        state.outcome = Some(Outcome::Completed);
        state.model = Some(Digest::of(b"new"));
        state.gate = Some(GateRecord { passed: true, global: Some("0.8712".into()), message: None });
        for site in &mut state.sites {
            site.contributed = true;
            site.vote = Some(Vote::Pass);
        }
        round(3, Some(state))
    }

    fn key(n: u8) -> SigningKey {
        SigningKey::from_bytes(&[n; 32])
    }

    #[test]
    fn a_release_is_attested_by_the_hub_that_cut_it_and_by_no_other() {
        let release = cut(&passed(), &study_spec(), &key(1)).unwrap();
        assert_eq!((release.round, release.dice.as_str(), release.contributors.len()), (3, "0.8712", 3));
        assert_eq!(release.evidence.len(), 3);
        // The bounds of the schema; the API server would refuse more.
        assert_eq!((release.attestation.key_id.len(), release.attestation.signature.len()), (16, 88));
        verify(&release, &key(1).verifying_key()).unwrap();
        assert!(verify(&release, &key(2).verifying_key()).unwrap_err().contains("keyID"));
        // The same round gives the same release, so that a second try meets the first one's object.
        assert_eq!(cut(&passed(), &study_spec(), &key(1)).unwrap(), release);
    }

    /// A model that was swapped after the gate must not be promoted under the gate's name.
    #[test]
    fn an_altered_release_is_noticed() {
        let release = cut(&passed(), &study_spec(), &key(1)).unwrap();
        let mut swapped = release.clone();
        swapped.model = Digest::of(b"other");
        let mut better = release.clone();
        better.dice = "0.9999".into();
        let mut garbled = release;
        garbled.attestation.signature = "AA==".into();
        for altered in [swapped, better, garbled] {
            assert!(verify(&altered, &key(1).verifying_key()).unwrap_err().contains("spec.attestation.signature"));
        }
    }

    #[test]
    fn nothing_is_cut_from_a_round_whose_gate_stayed_shut() {
        let mut shut = passed();
        let state = shut.status.as_mut().unwrap().round.as_mut().unwrap();
        state.gate.as_mut().unwrap().passed = false;
        assert!(cut(&shut, &study_spec(), &key(1)).is_err());
    }
}
