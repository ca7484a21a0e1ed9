use std::collections::{BTreeMap, BTreeSet};

use consilium_crds::conditions::{ACCEPTED, Conditions, READY, STALLED, status_of};
use consilium_crds::model_promotion::{ReleaseRef, RolloutReason};
use consilium_crds::{ModelPromotion, ModelPromotionSpec, ModelRelease, ModelReleaseStatus};
use consilium_federation::assignment::{ItemState, Work};
use consilium_federation::ladder::Stage;
use consilium_federation::report::DeployReport;
use consilium_federation::{Digest, SiteName};
use ed25519_dalek::SigningKey;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::decide::{Facts, Plan, ROLLED_OUT, decide, items};
use crate::controllers::release::decide::ATTESTED;
use crate::controllers::study::accept::{SiteFacts, Sites};
use crate::controllers::testing::{SITES, at, name, release};

struct World {
    promotion: ModelPromotion,
    release: Option<ModelRelease>,
    sites: Sites,
    reports: BTreeMap<SiteName, DeployReport>,
    acknowledged: BTreeSet<SiteName>,
}

fn world() -> World {
    let mut object = release("hippocampus-r1", &SigningKey::from_bytes(&[1; 32]));
    let mut conditions = Conditions::from_status(&[], Some(1), at(0));
    conditions.set(ATTESTED, true, "Verified", "");
    object.status = Some(ModelReleaseStatus { conditions: conditions.into_list(), ..ModelReleaseStatus::default() });
    let spec = ModelPromotionSpec {
        release: ReleaseRef { name: "hippocampus-r1".into(), digest: object.spec.model },
        stage: Stage::Shadow,
        sites: vec![name("alder"), name("birch")],
        approvals: vec![],
    };
    let mut promotion = ModelPromotion::new("shadow", spec);
    promotion.metadata.namespace = Some("research".into());
    promotion.metadata.uid = Some("promo".into());
    let allowed = |n| (name(n), SiteFacts { accepted: true, namespaces: vec!["research".into()] });
    World {
        promotion,
        release: Some(object),
        sites: SITES.map(allowed).into(),
        reports: BTreeMap::new(),
        acknowledged: BTreeSet::new(),
    }
}

impl World {
    fn facts(&self) -> Facts<'_> {
        Facts {
            promotion: &self.promotion,
            release: self.release.as_ref(),
            sites: &self.sites,
            reports: &self.reports,
            acknowledged: &self.acknowledged,
        }
    }

    fn decide(&mut self) -> Plan {
        let plan = decide(&self.facts(), at(0));
        self.promotion.status = Some(plan.status.clone());
        plan
    }

    fn says(&mut self, site: &str, reason: RolloutReason) {
        let serving = (reason == RolloutReason::Serving).then_some(self.promotion.spec.release.digest);
        let report = DeployReport { uid: "promo".into(), reason, serving, message: None };
        self.reports.insert(name(site), report);
    }
}

fn rolled_out(plan: &Plan) -> (&str, &str) {
    let found = plan.status.conditions.iter().find(|c| c.type_ == ROLLED_OUT).unwrap();
    (found.status.as_str(), found.reason.as_str())
}

#[test]
fn a_promotion_is_offered_to_its_hospitals_with_the_release_they_can_check() {
    let mut world = world();
    let plan = world.decide();
    let offered = plan.items.unwrap();
    assert_eq!(offered.keys().cloned().collect::<Vec<_>>(), [name("alder"), name("birch")]);
    let Work::Deploy(work) = &offered[&name("alder")].work else { panic!() };
    let release = world.release.as_ref().unwrap();
    assert_eq!((work.release_digest, work.model), (release.spec.digest(), release.spec.model));
}

/// Each mistake is told with the field and what would be right; what hospitals serve is left alone meanwhile.
#[test]
fn a_promotion_that_makes_no_sense_asks_nothing_of_hospitals() {
    type Edit = fn(&mut World);
    let cases: [(Edit, &str, &str); 5] = [
        (|w| w.release = None, "InvalidReference", "spec.release.name"),
        (|w| w.promotion.spec.release.digest = Digest::of(b"else"), "DigestMismatch", "spec.release.digest"),
        (|w| w.release.as_mut().unwrap().status = None, "ReleaseNotAttested", "hippocampus-r1"),
        (|w| w.promotion.spec.sites.push(name("elder")), "InvalidReference", "spec.sites[2]"),
        (|w| w.sites.get_mut(&name("birch")).unwrap().namespaces.clear(), "InvalidReference", "spec.studyNamespaces"),
    ];
    for (edit, reason, part) in cases {
        let mut world = world();
        edit(&mut world);
        let plan = world.decide();
        assert!(plan.items.is_none(), "{reason}");
        let accepted = plan.status.conditions.iter().find(|c| c.type_ == ACCEPTED).unwrap();
        assert_eq!((accepted.status.as_str(), accepted.reason.as_str()), ("False", reason));
        assert!(accepted.message.contains(part), "{part}: {}", accepted.message);
        assert_eq!(status_of(&plan.status.conditions, STALLED), Some("True"));
        assert_eq!(world.decide().notes, [], "told once");
    }
}

#[test]
fn the_hospitals_words_fold_into_one_condition() {
    use RolloutReason::{DeniedByPolicy, Offered, RollingOut, Serving, VerificationFailed};
    for (alder, birch, expected) in [
        (Offered, RollingOut, ("False", "RollingOut")),
        (Serving, RollingOut, ("False", "RollingOut")),
        (Serving, DeniedByPolicy, ("False", "DeniedByPolicy")),
        (VerificationFailed, DeniedByPolicy, ("False", "VerificationFailed")),
        (Serving, Serving, ("True", "Serving")),
    ] {
        let mut world = world();
        world.says("alder", alder);
        world.says("birch", birch);
        let plan = world.decide();
        assert_eq!(rolled_out(&plan), expected, "{alder:?} {birch:?}");
        // A pipeline that waits for Ready does not wait for hospitals.
        assert_eq!(status_of(&plan.status.conditions, READY), Some("True"));
        assert_eq!(world.decide().notes, []);
    }
    let mut world = world();
    world.says("alder", Serving);
    world.says("birch", Serving);
    world.reports.get_mut(&name("birch")).unwrap().serving = Some(Digest::of(b"older"));
    assert_eq!(rolled_out(&world.decide()), ("False", "RollingOut"));
}

/// A hospital that is no longer named must be told to stop; silence would leave the model serving.
#[test]
fn a_hospital_that_is_no_longer_named_gets_a_tombstone_until_it_acknowledges() {
    let mut world = world();
    world.decide();
    world.promotion.spec.sites = vec![name("alder")];
    let states = |plan: &Plan| -> Vec<_> {
        plan.items.as_ref().unwrap().iter().map(|(site, item)| (site.to_string(), item.state)).collect()
    };
    let expected = [("alder".to_owned(), ItemState::Active), ("birch".to_owned(), ItemState::Cancelled)];
    assert_eq!(states(&world.decide()), expected);
    // Also when the hub restarted in between: the status remembers whom it asked.
    assert_eq!(states(&world.decide()), expected);
    world.acknowledged.insert(name("birch"));
    let plan = world.decide();
    assert_eq!(states(&plan), expected[..1]);
    assert_eq!(plan.status.sites.len(), 1);
}

#[test]
fn a_deleted_promotion_is_a_tombstone_for_everyone_even_without_its_release() {
    let mut world = world();
    world.decide();
    world.promotion.metadata.deletion_timestamp = Some(Time(at(5)));
    world.release = None;
    let left = items(&world.facts());
    assert_eq!(left.len(), 2);
    assert!(left.values().all(|i| i.state == ItemState::Cancelled));
    world.acknowledged = [name("alder"), name("birch")].into();
    assert!(items(&world.facts()).is_empty());
}
