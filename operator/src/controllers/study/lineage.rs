//! From which models a study may start: those that studies of its own namespace made, which the store knows, and those of
//! releases that another one shares with it. A digest is no secret, and must not be a key to what other researchers
//! trained. Pure.

use consilium_crds::ModelRelease;
use consilium_federation::Digest;
use ed25519_dalek::VerifyingKey;
use kube::ResourceExt;

use crate::controllers::release::cut;

/// Annotation on a ModelRelease: namespaces whose studies may start from its model, separated by commas; `*` is all.
pub const SHARED_WITH: &str = "consilium.health/shared-with";

/// Whether a release has the model and is this namespace's, or shared with it.
pub fn of_release(release: &ModelRelease, namespace: &str, model: Digest, key: &VerifyingKey) -> bool {
    // Its own namespace stands under the attestation: a copy in another one shares nothing.
    let home = release.spec.study.namespace.as_str();
    let shared = || {
        let with = release.annotations().get(SHARED_WITH).map(String::as_str).unwrap_or_default();
        with.split(',').map(str::trim).any(|name| name == namespace || name == "*")
    };
    release.spec.model == model
        && release.namespace().as_deref() == Some(home)
        && (home == namespace || shared())
        && cut::verify(&release.spec, key).is_ok()
}

#[cfg(test)]
mod tests {
    use ed25519_dalek::SigningKey;

    use super::*;
    use crate::controllers::testing::release;

    /// Who knows the digest of another group's model must not train on from it: a copied release, or one
    /// of another hub.
    #[test]
    fn a_model_of_another_namespace_is_no_start_unless_it_is_shared() {
        let key = SigningKey::from_bytes(&[1; 32]);
        let public = key.verifying_key();
        let own = release("hippocampus-r1", &key);
        let model = own.spec.model;
        let may = |release: &ModelRelease, namespace: &str| of_release(release, namespace, model, &public);
        assert!(may(&own, "research") && !may(&own, "rivals"));
        assert!(!of_release(&own, "research", Digest::of(b"else"), &public));
        let mut copied = own.clone();
        copied.metadata.namespace = Some("rivals".into());
        assert!(!may(&copied, "rivals"));
        copied.spec.study.namespace = "rivals".into();
        assert!(!may(&copied, "rivals"), "the attestation is not over this");
        let mut shared = own;
        for (with, allowed) in [("friends", false), ("friends, rivals", true), ("*", true), ("", false)] {
            shared.metadata.annotations = Some([(SHARED_WITH.to_owned(), with.to_owned())].into());
            assert_eq!(may(&shared, "rivals"), allowed, "{with}");
        }
        assert!(!of_release(&shared, "research", model, &SigningKey::from_bytes(&[2; 32]).verifying_key()));
    }
}
