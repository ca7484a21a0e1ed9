//! Whether a release stands. Pure.

use consilium_crds::conditions::{Conditions, READY, STALLED, status_of};
use consilium_crds::{ModelRelease, ModelReleaseStatus};
use ed25519_dalek::VerifyingKey;
use jiff::Timestamp;

use super::cut;
use crate::controllers::write::Note;

/// The condition that says whether the attestation holds.
pub const ATTESTED: &str = "Attested";

/// The status of a release, from the hub's key and whether its model is in the store.
pub fn decide(
    release: &ModelRelease,
    key: &VerifyingKey,
    model_stored: bool,
    now: Timestamp,
) -> (ModelReleaseStatus, Vec<Note>) {
    let known = release.status.as_ref().map_or(&[][..], |s| &s.conditions);
    let mut conditions = Conditions::from_status(known, release.metadata.generation, now);
    let mut notes = Vec::new();
    let attested = cut::verify(&release.spec, key);
    let stored = if model_stored {
        Ok(())
    } else {
        Err(format!(
            "the hub's store does not hold {}, so no hospital could fetch it; restore the store",
            release.spec.model
        ))
    };
    match &attested {
        Ok(()) => conditions.set(ATTESTED, true, "Verified", "the hub's signature is over this spec"),
        Err(why) => conditions.set(ATTESTED, false, "NotAttested", why),
    };
    let failure = attested.err().map(|why| ("NotAttested", why)).or(stored.err().map(|why| ("ModelMissing", why)));
    match failure {
        None => {
            conditions.set(READY, true, "Available", "the release can be promoted").clear(STALLED);
        }
        Some((reason, why)) => {
            if status_of(known, READY) != Some("False") {
                notes.push(Note::warning(reason, why.clone()));
            }
            conditions.set(READY, false, reason, &why).set(STALLED, true, reason, &why);
        }
    }
    let status = ModelReleaseStatus {
        observed_generation: release.metadata.generation,
        release_digest: Some(release.spec.digest()),
        evidence_digest: Some(release.spec.evidence_digest()),
        conditions: conditions.into_list(),
    };
    (status, notes)
}

#[cfg(test)]
mod tests {
    use ed25519_dalek::SigningKey;

    use super::*;
    use crate::controllers::testing::{at, release};

    #[test]
    fn a_release_is_ready_when_it_is_attested_and_its_model_is_there() {
        let key = SigningKey::from_bytes(&[7; 32]);
        let good = release("r1", &key);
        let mut altered = good.clone();
        altered.spec.round = 9;
        for (object, stored, attested, ready, reason) in [
            (&good, true, "True", "True", None),
            (&good, false, "True", "False", Some("ModelMissing")),
            (&altered, true, "False", "False", Some("NotAttested")),
        ] {
            let (status, notes) = decide(object, &key.verifying_key(), stored, at(0));
            assert_eq!(status_of(&status.conditions, ATTESTED), Some(attested));
            assert_eq!(status_of(&status.conditions, READY), Some(ready));
            assert_eq!(notes.first().map(|n| n.reason), reason);
            assert_eq!(status.release_digest, Some(object.spec.digest()));
            // The second look says nothing new.
            let mut again = object.clone();
            again.status = Some(status.clone());
            assert_eq!(decide(&again, &key.verifying_key(), stored, at(9)), (status, vec![]));
        }
    }
}
