use consilium_crds::ModelDeployment;
use serde_json::{Value, json};

use super::super::hazards_tests::{closed, hazard, none as no_hazards, seen};
use super::super::release_tests::{EXPIRY, approved, releases, staged};
use super::super::standing::tests::{model, with};
use super::*;

const NOW: &str = "2026-06-01T12:00:00Z";

fn judged(model: &ModelDeploymentSpec, changes: &[(&str, Value)], at: &str) -> Place {
    place(
        model,
        &Hospital { policy: Some(&with(changes)), hazards: Some(no_hazards()), image: None, now: at.parse().unwrap() },
        true,
    )
}

/// Stage and end, or why not.
fn stands(model: &ModelDeploymentSpec, changes: &[(&str, Value)], at: &str) -> Result<(Stage, Option<String>), String> {
    match judged(model, changes, at) {
        Place::Refused(why) => Err(why),
        Place::Unsaid | Place::Withdrawn(_) => panic!("neither refused nor standing"),
        Place::Stands(standing) => Ok((standing.effective.unwrap(), standing.until.map(|at| at.to_string()))),
    }
}

fn asked(stage: Stage) -> ModelDeploymentSpec {
    ModelDeploymentSpec { stage, approved: Some(approved(stage)), ..model() }
}

/// With the hub away, the ledger broken or the volume new, nobody else would take a model down on the word of somebody whom
/// the hospital no longer trusts.
#[test]
fn a_model_is_judged_from_its_own_object() {
    assert_eq!(stands(&model(), &[], NOW), Ok((Stage::Shadow, None)));
    let forged = |change: fn(&mut Approved)| {
        let mut forged = approved(Stage::Shadow);
        change(&mut forged);
        ModelDeploymentSpec { approved: Some(forged), ..model() }
    };
    let other = ModelDeploymentSpec { model: Digest::of(b"another"), ..model() };
    let (nobody, unasked) = (json!([]), json!([]));
    // A policy that names the lowest stage that it uses, as policies did, keeps its models on Shadow.
    let lowest = json!([{"stage": "Triage", "approvals": 2}, {"stage": "SafetyNet", "approvals": 1}]);
    assert_eq!(stands(&model(), &[("/releases/require", lowest)], NOW), Ok((Stage::Shadow, None)));
    let two = json!([{"stage": "Shadow", "approvals": 2}]);
    let role = json!([{"stage": "Shadow", "approvals": 1, "roles": ["radiologist"]}]);
    let none = "the signature is not over these terms";
    type Row<'a> = (ModelDeploymentSpec, Vec<(&'a str, Value)>, &'a str);
    let rows: Vec<Row<'_>> = vec![
        (model(), vec![("/releases/keys", nobody)], "mary: the key is not in the policy"),
        (model(), vec![("/releases/require", unasked)], "an entry for Shadow in releases.require"),
        (model(), vec![("/releases/require", two)], "1 more valid signature (1 of 2)"),
        (model(), vec![("/releases/require", role)], "a signature as radiologist"),
        (other, vec![], none),
        (forged(|it| it.evidence_digest = Digest::of(b"x")), vec![], none),
        (forged(|it| it.approvals[0].expiry = "2999-01-01T00:00:00Z".parse().unwrap()), vec![], none),
        (forged(|it| it.approvals.clear()), vec![], "1 more valid signature (0 of 1)"),
        (model(), vec![("/releases", json!({}))], "spec.releases.maxStage is not set"),
        (model(), vec![("/suspend", json!({"models": true}))], "spec.suspend.models"),
    ];
    for (model, changes, word) in rows {
        let said = stands(&model, &changes, NOW);
        assert!(said.as_ref().is_err_and(|why| why.contains(word)), "{word:?}: {said:?}");
    }
    let nothing = Hospital { policy: None, hazards: Some(no_hazards()), image: None, now: NOW.parse().unwrap() };
    assert!(matches!(place(&model(), &nothing, true), Place::Refused(_)));
}

/// Approvals say nothing of evidence, plan and hospital: whatever the hub asks for, whatever the ceiling, and whatever they
/// were signed for, a model that has no others stands on Shadow.
#[test]
fn nothing_that_is_asked_or_signed_in_the_old_way_stands_above_shadow() {
    let require: Vec<Value> = Stage::ALL.map(|stage| json!({"stage": stage, "approvals": 1})).into();
    let mut open = releases(Some("PrimaryReader"));
    open["require"] = json!(require);
    for stage in Stage::ALL {
        assert_eq!(stands(&asked(stage), &[("/releases", open.clone())], NOW), Ok((Stage::Shadow, None)), "{stage}");
    }
}

/// A model that was deleted loses the evidence by which it would be approved again; and a hospital that wants it gone must
/// have it gone, and with a dead agent by the end of its lease.
#[test]
fn approvals_that_ended_leave_it_on_shadow_unless_the_hospital_says_withdraw() {
    assert_eq!(stands(&model(), &[], EXPIRY), Ok((Stage::Shadow, None)));
    let withdraw = [("/releases/onExpiry", json!("Withdraw"))];
    assert_eq!(stands(&model(), &withdraw, NOW), Ok((Stage::Shadow, Some(EXPIRY.to_owned()))));
    let why = stands(&model(), &withdraw, EXPIRY).unwrap_err();
    assert!(why.contains(&format!("a new signature by mary, whose last one expired at {EXPIRY}")), "{why}");
}

/// After an upgrade of the agent no model is taken from clinicians because its object is an old one, and none goes on for
/// ever unvouched for.
#[test]
fn an_object_of_an_agent_of_before_is_left_on_what_it_has() {
    let without = |change: fn(&mut Approved)| {
        let mut model = asked(Stage::Triage);
        change(model.approved.as_mut().unwrap());
        model
    };
    let old = ModelDeploymentSpec { approved: None, ..asked(Stage::Triage) };
    let place = judged(&old, &[], NOW);
    assert_eq!(place, Place::Unsaid);
    assert_eq!(place.told(Some(Stage::Triage)), Some(Told { stage: Stage::Shadow, until: None }));
    assert!(matches!(judged(&old, &[("/releases", json!({}))], NOW), Place::Refused(_)));
    // Of one that says on whose word it stands, and not of which line it is, the word is judged: with the hub away and the
    // release not at hand nobody can add the rest, and its lease would end.
    for model in [without(|it| it.line = None), without(|it| it.hospital = None)] {
        let place = judged(&model, &[], NOW);
        let told = place.told(Some(Stage::Triage)).unwrap();
        assert!(told.stage == Stage::Shadow && told.until.is_some(), "{told:?}");
        assert!(matches!(judged(&model, &[("/releases/keys", json!([]))], NOW), Place::Refused(_)));
        assert!(matches!(judged(&model, &[("/releases", json!({}))], NOW), Place::Refused(_)));
        // A hazard of a line may be one of this model.
        let of_a_line = seen(&[hazard("a", "Withdraw", &[("of", json!({"line": "research/liver"}))])]);
        assert_eq!(under(Some(&of_a_line), &model), Place::Unsaid);
    }
}

/// A signature of the second kind, a plan and a worker bring a model nowhere by themselves: what is missing is said in
/// numbers, and what is signed for another pipeline, plan or hospital is said to count for nothing.
#[test]
fn without_evidence_a_signed_plan_says_in_numbers_what_is_missing() {
    let plan = example_plan();
    let mut releases = releases(Some("SafetyNet"));
    releases["workers"] = json!([{"line": "research/hippocampus", "image": Digest::of(b"worker")}]);
    let policy = with(&[("/releases", releases.clone())]);
    let image = Some(Digest::of(b"inference"));
    let climbing = |change: fn(&mut Approved)| {
        let mut model = asked(Stage::SafetyNet);
        let approved = model.approved.as_mut().unwrap();
        approved.plan = Some(serde_json::to_value(&plan).unwrap());
        change(approved);
        model
    };
    let model = climbing(|_| ());
    let pipeline = pipeline_of(&model, &policy, image).unwrap();
    let at = |model: &ModelDeploymentSpec, image| {
        let hospital =
            Hospital { policy: Some(&policy), hazards: Some(no_hazards()), image, now: NOW.parse().unwrap() };
        place(model, &hospital, true)
    };
    let texts = |place: &Place| outlook(place).missing.join("\n");
    let missing = texts(&at(&model, image));
    for part in [
        "3 more cases with a result (0 of 3)",
        "1 more positive",
        "1 more valid signature (0 of 1)",
        "a signature as officer",
    ] {
        assert!(missing.contains(part), "{part:?} is not in\n{missing}");
    }
    let mut signed = model.clone();
    signed.approved.as_mut().unwrap().stage_approvals = vec![staged(plan.digest(), pipeline, "alder")];
    let (before, after) = (missing, texts(&at(&signed, image)));
    assert!(before.contains("valid signature") && !after.contains("valid signature"), "{after}");
    assert_eq!(at(&signed, image).stage(), Some(Stage::Shadow));
    // Another server's image is another pipeline.
    let other = texts(&at(&signed, Some(Digest::of(b"newer"))));
    assert!(other.contains("1 more valid signature") && other.contains("it is for pipeline"), "{other}");
    assert_eq!(pipeline_of(&model, &policy, None), None);
    let unreadable = climbing(|approved| approved.plan = Some(json!({"line": "research/hippocampus", "novel": 1})));
    let why = texts(&at(&unreadable, image));
    assert!(why.contains("the one that the promotion names cannot be used"), "{why}");
    let later = |_: &mut Approved| ();
    assert_eq!(pipeline_of(&climbing(later), &with(&[]), image), None, "no worker is named");
}

/// A plan with one rule; its numbers are examples.
fn example_plan() -> ClinicalPlan {
    ClinicalPlan::read(&json!({
        "line": "research/hippocampus", "finding": {"name": "atrophy", "scheme": "SCT", "code": "0"},
        "scope": {"modalities": ["MR"]}, "onHazard": "Shadow", "expires": "2030-01-01T00:00:00Z",
        "rules": [{"stage": "SafetyNet", "cases": 3, "positives": 1, "days": 1, "validDays": 30,
            "metrics": [{"metric": "sensitivity", "of": "Site", "floor": "0.05"}]}],
    }))
    .unwrap()
}

fn standing(stage: Stage) -> Place {
    let Place::Stands(mut standing) = judged(&model(), &[], NOW) else { panic!() };
    standing.effective = Some(stage);
    Place::Stands(standing)
}

/// Somebody writes a high stage into a status, or restores an old one: that raises nothing. And a model that has risen is
/// told so when its rise is in the ledger, and not before.
#[test]
fn a_pod_is_told_the_lower_of_where_it_stands_and_what_is_written() {
    let told = |place: &Place, written| place.told(written).map(|told| told.stage);
    assert_eq!(told(&standing(Stage::Shadow), Some(Stage::PrimaryReader)), Some(Stage::Shadow));
    assert_eq!(told(&standing(Stage::Triage), Some(Stage::SafetyNet)), Some(Stage::SafetyNet));
    assert_eq!(told(&standing(Stage::Triage), None), Some(Stage::Shadow));
    assert_eq!(Place::Refused("w".into()).told(Some(Stage::Shadow)), None);
}

fn object(name: &str, made: &str, spec: ModelDeploymentSpec) -> Arc<ModelDeployment> {
    let mut object = ModelDeployment::new(name, spec);
    object.metadata.uid = Some(name.into());
    let at = k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(made.parse().unwrap());
    object.metadata.creation_timestamp = Some(at);
    Arc::new(object)
}

/// Two promotions of one model are one model: the lower counts. One that the hospital refuses is none, or a hub could take
/// a model out of use by promoting it again without a signature.
#[test]
fn of_two_promotions_of_a_model_the_lower_counts_and_a_refused_one_is_none() {
    let mut unsigned = model();
    unsigned.approved.as_mut().unwrap().approvals.clear();
    let early = "2026-01-01T00:00:00Z";
    let models =
        [object("a", early, asked(Stage::SafetyNet)), object("b", early, model()), object("c", early, unsigned)];
    let policy = with(&[("/releases", releases(Some("SafetyNet")))]);
    let all = places(
        &models,
        &Hospital { policy: Some(&policy), hazards: Some(no_hazards()), image: None, now: NOW.parse().unwrap() },
    );
    let asked = |uid: &str| match &all[uid] {
        Place::Stands(standing) => Some((standing.asked, standing.effective)),
        _ => None,
    };
    assert_eq!(asked("a"), Some((Stage::Shadow, Some(Stage::Shadow))));
    assert_eq!((asked("a"), asked("c")), (asked("b"), None));
    let why = because(&all["a"], Stage::SafetyNet, Stage::Shadow).unwrap();
    assert!(why.contains("another promotion of this model asks for Shadow alone"), "{why}");
}

/// Whoever asked for a stage reads what it takes, and not a page.
#[test]
fn why_it_stands_no_higher_is_said_in_words() {
    let place = judged(&asked(Stage::SafetyNet), &[("/releases", releases(Some("SafetyNet")))], NOW);
    let why = because(&place, Stage::SafetyNet, Stage::Shadow).unwrap();
    assert!(why.starts_with("SafetyNet needs a clinical plan that holds: the promotion names none"), "{why}");
    assert_eq!(because(&place, Stage::Shadow, Stage::Shadow), None);
    let long = Place::Refused("é".repeat(9000));
    assert_eq!(because(&long, Stage::SafetyNet, Stage::Shadow).unwrap().chars().count(), 500);
}

fn under(hazards: Option<&Hazards>, model: &ModelDeploymentSpec) -> Place {
    place(model, &Hospital { policy: Some(&with(&[])), hazards, image: None, now: NOW.parse().unwrap() }, true)
}

/// A safety officer who opens a hazard that withdraws must see the model go, read why, and see it come back when, and only
/// when, the hazard is closed. Hazards of other models and lines change nothing.
#[test]
fn a_hazard_withdraws_its_model_until_it_is_closed() {
    let line = |name: &str| ("of", json!({"line": format!("research/{name}")}));
    for of in [("of", json!({"model": Digest::of(b"model")})), line("hippocampus")] {
        let mut hazards = seen(&[hazard("plane", "Withdraw", std::slice::from_ref(&of))]);
        let place = under(Some(&hazards), &model());
        assert_eq!((place.stage(), place.told(Some(Stage::Shadow))), (None, None));
        let why = withdrawn(&place).unwrap();
        assert!(why.contains("the hospital's hazard plane closed"), "{why}");
        hazards.take(&[]);
        assert!(matches!(under(Some(&hazards), &model()), Place::Withdrawn(_)), "deleted is not closed");
        hazards.take(&[hazard("plane", "Withdraw", &[of.clone(), ("closed", json!(closed("x").spec.closed))])]);
        assert!(matches!(under(Some(&hazards), &model()), Place::Withdrawn(_)), "closed without proof is not closed");
        let mut proven = closed("plane");
        proven.spec.of = hazard("plane", "Withdraw", &[of]).spec.of;
        hazards.take(&[proven]);
        assert_eq!(under(Some(&hazards), &model()).stage(), Some(Stage::Shadow));
    }
    let others = seen(&[
        hazard("a", "Withdraw", &[("of", json!({"model": Digest::of(b"other")}))]),
        hazard("b", "Withdraw", &[line("liver")]),
    ]);
    assert_eq!(under(Some(&others), &model()).stage(), Some(Stage::Shadow));
    // One that the policy refuses is refused, whatever hazards there are: its object goes.
    let mut unsigned = model();
    unsigned.approved.as_mut().unwrap().approvals.clear();
    let hazards = seen(&[hazard("plane", "Withdraw", &[])]);
    assert!(matches!(under(Some(&hazards), &unsigned), Place::Refused(why) if why.contains("signature")));
}

/// Hazards that cannot be read must not be passed over, nor those that were not read yet.
#[test]
fn what_is_not_known_of_hazards_lowers() {
    let high = |stage| {
        let Place::Stands(standing) = standing(stage) else { panic!() };
        *standing
    };
    let fall = |hazards: Option<&Hazards>| fallen(high(Stage::Triage), hazards).effective;
    assert_eq!(fall(Some(no_hazards())), Some(Stage::Triage));
    assert_eq!(fall(None), Some(Stage::Shadow));
    assert_eq!(fall(Some(&seen(&[hazard("odd", "Gently", &[])]))), Some(Stage::Shadow));
    let far = fallen(high(Stage::Triage), Some(&seen(&[hazard("odd", "Withdraw", &[("novel", json!(1))])])));
    assert_eq!(far.effective, None);
    assert_eq!(far.because[0].to_string(), "the hospital's hazard odd closed");
    assert_eq!(far.next, Some(Stage::Shadow));
}
