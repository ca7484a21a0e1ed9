use serde_json::{Value, json};

use super::*;

/// A hospital in which no hazard was ever opened.
pub(crate) fn none() -> &'static Hazards {
    static NONE: std::sync::LazyLock<Hazards> = std::sync::LazyLock::new(|| seen(&[]));
    &NONE
}

/// Hazards as the objects say.
pub(crate) fn seen(objects: &[ModelHazard]) -> Hazards {
    let mut hazards = Hazards::default();
    hazards.take(objects);
    hazards
}

/// An open hazard of a model.
pub(crate) fn hazard(name: &str, lowers: &str, changes: &[(&str, Value)]) -> ModelHazard {
    let mut spec = json!({
        "of": {"model": consilium_federation::Digest::of(b"model")}, "hazard": "a scan of another plane is read",
        "causes": ["the series rule matches too much"], "effect": "a finding is missed", "harm": "late treatment",
        "initial": {"severity": 4, "likelihood": 2}, "owner": "clinical-safety-officer", "lowers": lowers,
        "opened": "2026-05-01T00:00:00Z",
    });
    for (field, value) in changes {
        spec[*field] = value.clone();
    }
    let object = json!({"apiVersion": "consilium.health/v1alpha1", "kind": "ModelHazard",
        "metadata": {"name": name}, "spec": spec});
    consilium_crds::Kind::read(object).unwrap()
}

/// A hazard of which all that closing needs is there.
pub(crate) fn closed(name: &str) -> ModelHazard {
    let control = json!([{"control": "the rule names the plane", "proof": "test 12 passes"}]);
    let end =
        json!({"at": "2026-05-20T00:00:00Z", "by": "clinical-safety-officer", "why": "it cannot happen any more"});
    let residual = json!({"severity": 4, "likelihood": 1});
    hazard(name, "Shadow", &[("controls", control), ("residual", residual), ("closed", end)])
}

fn open_of(hazards: &Hazards) -> Vec<String> {
    hazards.missing(&BTreeSet::new()).into_iter().map(|(name, _)| name.to_owned()).collect()
}

/// Somebody deletes the object, or a GitOps tool prunes it, or the API server is restored from before it: the model would
/// rise with nobody having closed anything. It stays, over a restart of the agent too, and is made again.
#[test]
fn a_hazard_ends_by_being_closed_and_not_by_being_deleted() {
    let mut hazards = Hazards::default();
    assert_eq!(hazards.take(&[hazard("plane", "Shadow", &[])]), <[String; 0]>::default());
    assert_eq!(hazards.take(&[]), <[String; 0]>::default());
    assert_eq!((hazards.open(), open_of(&hazards)), (1, vec!["plane".to_owned()]));
    assert!(hazards.missing(&BTreeSet::from(["plane".to_owned()])).is_empty());

    let mut restarted = Hazards::default();
    restarted.take_up(&hazards.to_bytes()).unwrap();
    assert_eq!(restarted.missing(&BTreeSet::new()), hazards.missing(&BTreeSet::new()));
    // Made anew and closed in the meantime: what is kept does not open it again.
    let mut closed_before = Hazards::default();
    closed_before.take(&[closed("plane")]);
    closed_before.take_up(&hazards.to_bytes()).unwrap();
    assert_eq!((closed_before.open(), open_of(&closed_before)), (0, vec![]));

    assert_eq!(hazards.take(&[closed("plane")]), <[String; 0]>::default());
    assert_eq!((hazards.open(), open_of(&hazards)), (0, vec![]));
    // And no object of before opens or lowers it again.
    assert!(hazards.take(&[hazard("plane", "Shadow", &[])])[0].contains("stays closed"));
    assert_eq!(hazards.open(), 0);
}

/// What a newer version wrote, or what the rules refuse, is a hazard all the same: it lowers every model, and as far as it
/// says if that can be read.
#[test]
fn what_cannot_be_read_lowers_everything_until_it_can() {
    let fall = |object: ModelHazard| {
        let mut hazards = Hazards::default();
        let refused = hazards.take(&[object]);
        assert_eq!((refused.len(), hazards.open()), (1, 1));
        let (name, fall) = hazards.unread().next().unwrap();
        (name.to_owned(), fall)
    };
    let of = |fall| ("odd".to_owned(), fall);
    assert_eq!(fall(hazard("odd", "Watch", &[("of", json!({"fleet": "all"}))])), of(Fall::Shadow));
    assert_eq!(fall(hazard("odd", "Withdraw", &[("novel", json!(true))])), of(Fall::Withdraw));
    assert_eq!(fall(hazard("odd", "Gently", &[])), of(Fall::Shadow));
    let unproven = json!({"at": "2026-05-20T00:00:00Z", "by": "someone", "why": "it is late"});
    assert_eq!(fall(hazard("odd", "OneDown", &[("closed", unproven)])), of(Fall::Shadow));

    let mut hazards = Hazards::default();
    hazards.take(&[hazard("odd", "Gently", &[])]);
    hazards.take(&[]);
    assert_eq!(hazards.open(), 1, "gone is not closed");
    hazards.take(&[closed("odd")]);
    assert_eq!(hazards.open(), 0);
}

/// An edit that the log refuses changes nothing: the hazard lowers as it did.
#[test]
fn an_open_hazard_does_not_come_to_lower_less() {
    let mut hazards = Hazards::default();
    hazards.take(&[hazard("plane", "Withdraw", &[])]);
    let before = hazards.clone();
    assert!(hazards.take(&[hazard("plane", "Watch", &[])])[0].contains("cannot lower less"));
    assert_eq!(hazards, before);
}

/// Hazards without end must not fill the agent's volume.
#[test]
fn what_is_kept_is_bounded() {
    let mut hazards = Hazards::default();
    let long = json!("é".repeat(2000));
    let causes = json!(vec!["é".repeat(2000); 10]);
    for n in 0..200 {
        hazards.take(&[hazard(&format!("h{n}"), "Shadow", &[("harm", long.clone()), ("causes", causes.clone())])]);
    }
    assert_eq!(hazards.open(), 200);
    assert!((3 << 20..MAX_BYTES + 100_000).contains(&hazards.to_bytes().len()));
}

/// A name that is used again: the object says that a hazard is open, and whoever reads it believes that it lowers.
#[test]
fn an_open_hazard_under_an_old_name_lowers_every_model_until_it_is_told_apart() {
    let (first, other) = (hazard("h1", "Shadow", &[]), json!({"model": consilium_federation::Digest::of(b"other")}));
    let mut hazards = seen(std::slice::from_ref(&first));
    let again = hazard("h1", "Withdraw", &[("of", other)]);
    assert_eq!(hazards.take([&again]).len(), 1);
    assert_eq!(hazards.unread().collect::<Vec<_>>(), [("h1", Fall::Withdraw)]);
    assert!(hazards.take([&first]).is_empty());
    assert_eq!(hazards.unread().count(), 0);
}

/// A hazard that this version cannot read, whose object is pruned while the agent is down: nobody closed it, and it was
/// forgotten with the process.
#[test]
fn one_that_cannot_be_read_lowers_over_a_restart_too() {
    let odd = hazard("odd", "Withdraw", &[("novel", json!(true))]);
    let before = seen(std::slice::from_ref(&odd));
    let known = SeenHazards::default();
    known.take_up(&before.to_bytes()).unwrap();
    known.take_up_unread(&before.unread_to_bytes()).unwrap();
    known.take(&[]);
    assert_eq!(known.known().unread().collect::<Vec<_>>(), [("odd", Fall::Withdraw)]);
    // What was read and closed since is not opened again by what was kept.
    let after = SeenHazards::default();
    after.take(&[Arc::new(closed("odd"))]);
    after.take_up_unread(&before.unread_to_bytes()).unwrap();
    assert_eq!(after.known().unread().count(), 0);
}

/// An agent that starts while the objects cannot be read: what the volume kept withdraws all the same.
#[test]
fn what_the_volume_kept_lowers_before_the_objects_are_read() {
    let kept = seen(&[hazard("h1", "Withdraw", &[])]).to_bytes();
    let known = SeenHazards::default();
    known.take_up(&kept).unwrap();
    let hazards = known.known();
    assert!(!hazards.whole());
    assert_eq!(hazards.log().all().count(), 1);
    assert_eq!(hazards.open(), 2, "the one that is kept, and that nobody knows of others");
}
