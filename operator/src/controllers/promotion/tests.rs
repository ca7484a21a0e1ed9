use std::collections::{BTreeMap, BTreeSet};

use consilium_crds::conditions::{ACCEPTED, Conditions, READY, STALLED, status_of};
use consilium_crds::model_promotion::{PlanRef, ReleaseRef, RolloutReason};
use consilium_crds::{ClinicalPlan, ModelPromotion, ModelPromotionSpec, ModelRelease, ModelReleaseStatus};
use consilium_federation::approval::Approval;
use consilium_federation::assignment::{Item, ItemState, Work};
use consilium_federation::ladder::Stage;
use consilium_federation::report::DeployReport;
use consilium_federation::stage_approval::{Hospitals, StageApproval, Terms};
use consilium_federation::{Digest, SiteName};
use ed25519_dalek::SigningKey;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::decide::{Facts, Plan, ROLLED_OUT, decide, lowered};
use crate::controllers::release::decide::ATTESTED;
use crate::controllers::study::accept::{SiteFacts, Sites};
use crate::controllers::testing::{SITES, at, name, plan, release};

pub(super) struct World {
    pub(super) promotion: ModelPromotion,
    pub(super) release: Option<ModelRelease>,
    plan: Option<ClinicalPlan>,
    sites: Sites,
    reports: BTreeMap<SiteName, DeployReport>,
    acknowledged: BTreeSet<SiteName>,
}

pub(super) fn world() -> World {
    let mut object = release("hippocampus-r1", &SigningKey::from_bytes(&[1; 32]));
    let mut conditions = Conditions::from_status(&[], Some(1), at(0));
    conditions.set(ATTESTED, true, "Verified", "");
    object.status = Some(ModelReleaseStatus { conditions: conditions.into_list(), ..ModelReleaseStatus::default() });
    let spec = ModelPromotionSpec {
        release: ReleaseRef { name: "hippocampus-r1".into(), digest: object.spec.model },
        stage: Stage::Shadow,
        sites: vec![name("alder"), name("birch")],
        approvals: vec![],
        plan: None,
        stage_approvals: vec![],
    };
    let mut promotion = ModelPromotion::new("shadow", spec);
    promotion.metadata.namespace = Some("research".into());
    promotion.metadata.uid = Some("promo".into());
    promotion.metadata.generation = Some(1);
    let allowed = |n| (name(n), SiteFacts { accepted: true, namespaces: vec!["research".into()] });
    World {
        promotion,
        release: Some(object),
        plan: None,
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
            plan: self.plan.as_ref(),
            sites: &self.sites,
            reports: &self.reports,
            acknowledged: &self.acknowledged,
        }
    }

    pub(super) fn decide(&mut self) -> Plan {
        let plan = decide(&self.facts(), at(0));
        self.promotion.status = Some(plan.status.clone());
        plan
    }

    pub(super) fn says(&mut self, site: &str, reason: RolloutReason) {
        let serving = (reason == RolloutReason::Serving).then_some(self.promotion.spec.release.digest);
        let report = DeployReport { uid: "promo".into(), reason, serving, stage: None, message: None };
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

/// A hospital must get the plan that was signed, and the approvals over it; and what the promotion takes back of them while it
/// is broken must be taken back, and nothing added.
#[test]
fn a_plan_goes_with_its_promotion_and_a_wrong_one_keeps_it_from_being_accepted() {
    let mut world = world();
    let object = plan("hippocampus-1");
    let named = PlanRef { name: "hippocampus-1".into(), digest: object.spec.digest() };
    let by = |key: &str| staged(key, object.spec.digest());
    world.plan = Some(object.clone());
    world.promotion.spec.plan = Some(named.clone());
    world.promotion.spec.stage_approvals = vec![by("mary"), by("ola")];
    let of = |items: &BTreeMap<SiteName, Item>| match &items[&name("alder")].work {
        Work::Deploy(work) => (work.plan, work.stage_approvals.iter().map(|a| a.key_id.clone()).collect::<Vec<_>>()),
        Work::Round(_) => panic!(),
    };
    let both = vec!["mary".to_owned(), "ola".to_owned()];
    assert_eq!(of(&world.decide().items.unwrap()), (Some(named.digest), both));
    let wrong: [(Edit, &str, &str); 4] = [
        (|w| w.plan = None, "InvalidReference", "spec.plan.name"),
        (|w| w.plan.as_mut().unwrap().spec.expires = at(0), "DigestMismatch", "spec.plan.digest"),
        (
            |w| w.promotion.spec.plan.as_mut().unwrap().digest = Digest::of(b"else"),
            "DigestMismatch",
            "spec.plan.digest",
        ),
        (
            |w| {
                w.release.as_mut().unwrap().spec.study = "research/liver".parse().unwrap();
            },
            "InvalidPlan",
            "research/liver",
        ),
    ];
    for (edit, reason, part) in wrong {
        let mut broken = World { promotion: world.promotion.clone(), plan: world.plan.clone(), ..self::world() };
        edit(&mut broken);
        broken.promotion.spec.stage_approvals = vec![by("ola"), by("eve")];
        let plan = broken.decide();
        let accepted = plan.status.conditions.iter().find(|c| c.type_ == ACCEPTED).unwrap();
        assert!(accepted.reason == reason && accepted.message.contains(part), "{accepted:?}");
        // Before anybody rolls out, nobody is asked; what was offered names nobody new.
        let offered = plan.status.offered.unwrap();
        assert_eq!(offered.stage_approvals.iter().map(|a| a.key_id.as_str()).collect::<Vec<_>>(), ["ola"], "{reason}");
    }
}

fn staged(key: &str, plan: Digest) -> StageApproval {
    let (model, pipeline, evidence) = (Digest::of(b"new"), Digest::of(b"pipeline"), Digest::of(b"evidence"));
    let (stage, hospital, expiry) = (Stage::SafetyNet, Hospitals::All, at(90 * 86_400));
    let terms = Terms { model, pipeline, plan, stage, hospital, evidence, expiry };
    StageApproval { key_id: key.into(), role: "officer".into(), terms, signature: String::new() }
}

type Edit = fn(&mut World);

/// What keeps a promotion from being accepted: the edit, the reason, and a part of the message.
const BROKEN: [(Edit, &str, &str); 5] = [
    (|w| w.release = None, "InvalidReference", "spec.release.name"),
    (|w| w.promotion.spec.release.digest = Digest::of(b"else"), "DigestMismatch", "spec.release.digest"),
    (|w| w.release.as_mut().unwrap().status = None, "ReleaseNotAttested", "hippocampus-r1"),
    (|w| w.promotion.spec.sites.push(name("elder")), "InvalidReference", "spec.sites["),
    (|w| w.sites.get_mut(&name("birch")).unwrap().namespaces.clear(), "InvalidReference", "spec.studyNamespaces"),
];

/// Each mistake is told with the field and what would be right; hospitals are asked for nothing new meanwhile.
#[test]
fn a_promotion_that_makes_no_sense_asks_nothing_of_hospitals() {
    for (edit, reason, part) in BROKEN {
        let mut world = world();
        edit(&mut world);
        let plan = world.decide();
        assert!(plan.items.is_none() && plan.lowered.is_empty(), "{reason}");
        let accepted = plan.status.conditions.iter().find(|c| c.type_ == ACCEPTED).unwrap();
        assert_eq!((accepted.status.as_str(), accepted.reason.as_str()), ("False", reason));
        assert!(accepted.message.contains(part), "{part}: {}", accepted.message);
        assert_eq!(status_of(&plan.status.conditions, STALLED), Some("True"));
        assert_eq!(world.decide().notes, [], "told once");
    }
}

/// Whoever asked for a stage must read that a hospital serves the model on a lower one; why is the hospital's own affair.
#[test]
fn where_a_model_stands_lower_than_asked_is_said() {
    let mut world = world();
    world.promotion.spec.stage = Stage::Triage;
    for (site, stage) in [("alder", Stage::Shadow), ("birch", Stage::Triage)] {
        world.says(site, RolloutReason::Serving);
        world.reports.get_mut(&name(site)).unwrap().stage = Some(stage);
    }
    let plan = world.decide();
    let stages: Vec<_> = plan.status.sites.iter().map(|site| site.stage).collect();
    assert_eq!(stages, [Some(Stage::Shadow), Some(Stage::Triage)]);
    assert_eq!(rolled_out(&plan), ("True", "Serving"));
    let said = plan.status.conditions.iter().find(|c| c.type_ == ROLLED_OUT).unwrap();
    assert_eq!(said.message, "2 of 2 hospitals serve the model; it stands lower than asked in alder (Shadow)");
}

#[test]
fn the_hospitals_words_fold_into_one_condition() {
    use RolloutReason::{DeniedByPolicy, Offered, RollingOut, Serving, VerificationFailed};
    for (alder, birch, expected) in [
        (Offered, RollingOut, ("False", "RollingOut")),
        (Serving, RollingOut, ("False", "RollingOut")),
        (Serving, DeniedByPolicy, ("False", "DeniedByPolicy")),
        // A no of one is not the end while another is under way.
        (RollingOut, DeniedByPolicy, ("False", "RollingOut")),
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
        let stalled = (expected.1 == "VerificationFailed").then_some("True");
        assert_eq!(status_of(&plan.status.conditions, STALLED), stalled, "{expected:?}");
        assert_eq!(world.decide().notes, []);
    }
    let mut world = world();
    world.says("alder", Serving);
    world.says("birch", Serving);
    world.reports.get_mut(&name("birch")).unwrap().serving = Some(Digest::of(b"older"));
    assert_eq!(rolled_out(&world.decide()), ("False", "RollingOut"));
}

/// The person who promoted asks the hospital's clinicians why, where its quota said no.
#[test]
fn what_a_hospital_says_of_its_no_is_read_at_the_promotion() {
    let mut world = world();
    world.says("alder", RolloutReason::Serving);
    world.says("birch", RolloutReason::DeniedByPolicy);
    world.reports.get_mut(&name("birch")).unwrap().message = Some("its API server refuses".into());
    let plan = world.decide();
    let found = plan.status.conditions.iter().find(|c| c.type_ == ROLLED_OUT).unwrap();
    assert_eq!(found.message, "1 of 2 hospitals serve the model; not allowed by birch (its API server refuses)");
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
    let left = lowered(&world.facts());
    assert_eq!(left.len(), 2);
    assert!(left.values().all(|i| i.state == ItemState::Cancelled));
    world.acknowledged = [name("alder"), name("birch")].into();
    assert!(lowered(&world.facts()).is_empty());
}

fn stage_of(item: &Item) -> (ItemState, Stage) {
    let Work::Deploy(work) = &item.work else { panic!() };
    (item.state, work.stage)
}

/// A model must be taken back, or trusted with less, whatever else of the promotion is broken: a hospital that was removed
/// would otherwise go on serving because another one's name is misspelt. Also by a hub that has just restarted, which
/// knows nothing but the object.
#[test]
fn what_is_taken_back_goes_out_whatever_is_broken() {
    for (edit, reason, _) in BROKEN {
        let mut world = world();
        world.promotion.spec.sites = [name("alder"), name("birch"), name("cedar")].into();
        world.promotion.spec.stage = Stage::Triage;
        world.decide();
        world.promotion.spec.sites = [name("alder"), name("birch"), name("damson")].into();
        world.promotion.spec.stage = Stage::SafetyNet;
        edit(&mut world);
        let restarted = lowered(&world.facts());
        let plan = world.decide();
        let asked: Vec<_> = plan.lowered.iter().map(|(site, item)| (site.as_str(), stage_of(item))).collect();
        let less = (ItemState::Active, Stage::SafetyNet);
        assert_eq!(asked[..2], [("alder", less), ("birch", less)], "{reason}");
        assert_eq!((asked.len(), asked[2].0, asked[2].1.0), (3, "cedar", ItemState::Cancelled), "{reason}");
        assert_eq!(restarted, plan.lowered, "{reason}");
        // Nobody new is asked, and what is raised again waits until it makes sense.
        assert!(plan.items.is_none() && !plan.status.sites.iter().any(|s| s.site == name("damson")), "{reason}");
        world.promotion.spec.stage = Stage::PrimaryReader;
        world.promotion.spec.sites.push(name("cedar"));
        let next = world.decide();
        assert!(next.lowered.values().all(|item| stage_of(item) == less), "{reason}");
    }
}

/// More approvals are more: they count when the promotion is accepted. One that is taken back no longer counts at once.
#[test]
fn a_promotion_that_is_broken_takes_approvals_back_and_adds_none() {
    let approval = |key: &str| Approval {
        key_id: key.into(),
        role: "radiologist".into(),
        expiry: at(1000),
        signature: "A".repeat(86) + "==",
    };
    let keys = |plan: &Plan| -> Vec<String> {
        let Work::Deploy(work) = &plan.lowered[&name("alder")].work else { panic!() };
        work.approvals.iter().map(|approval| approval.key_id.clone()).collect()
    };
    let mut world = world();
    world.promotion.spec.stage = Stage::Triage;
    world.promotion.spec.approvals = vec![approval("mary"), approval("ola")];
    world.decide();
    world.release = None;
    let renewed = Approval { expiry: at(2000), ..approval("ola") };
    world.promotion.spec.approvals = vec![renewed, approval("new")];
    assert_eq!(keys(&world.decide()), ["ola"]);
    assert_eq!(keys(&world.decide()), ["ola"], "and in every later turn");
    // A lower stage has approvals of its own, and nobody is trusted with more by them.
    world.promotion.spec.stage = Stage::Shadow;
    assert_eq!(keys(&world.decide()), ["ola", "new"]);
}

/// A promotion that names another release by mistake keeps the model in use that was offered, with its own approvals.
#[test]
fn a_release_that_is_not_there_does_not_take_the_one_in_use_away() {
    let mut world = world();
    let before = world.decide().items.unwrap();
    world.promotion.spec.release = ReleaseRef { name: "typo".into(), digest: Digest::of(b"typo") };
    world.release = None;
    assert_eq!(world.decide().lowered, before);
    assert_eq!(world.decide().lowered, before, "and in every later turn");
}

/// Two hundred hospitals that make way for two hundred others: the status lists no more than it may, and those that it
/// has no room for are remembered in the store.
#[test]
fn a_promotion_that_moves_to_as_many_others_fits_its_status() {
    let many = |prefix: &str| (0..200).map(|n| name(&format!("{prefix}{n}"))).collect::<Vec<_>>();
    let mut world = world();
    let allowed = SiteFacts { accepted: true, namespaces: vec!["research".into()] };
    world.sites = many("old").into_iter().chain(many("new")).map(|site| (site, allowed.clone())).collect();
    world.promotion.spec.sites = many("old");
    world.decide();
    world.promotion.spec.sites = many("new");
    world.acknowledged = many("old")[..50].iter().cloned().collect();
    let plan = world.decide();
    assert_eq!(plan.status.sites.len(), 200);
    assert_eq!((plan.lowered.len(), plan.buried.len()), (150, 150));
    assert!(plan.buried.values().all(|item| item.state == ItemState::Cancelled));
    assert_eq!(plan.items.unwrap().len(), 200);
    // With room the status lists them, for people to see who has not heard yet.
    world.promotion.spec.sites = many("new")[..120].to_vec();
    let plan = world.decide();
    assert_eq!((plan.status.sites.len(), plan.buried.len()), (200, 0));
}
