//! Whether a study's references make sense. Pure. Every refusal names the field, the value, the rule and the way out.

use std::collections::{BTreeMap, BTreeSet};

use consilium_crds::{FederatedStudySpec, TrustSite};
use consilium_federation::output::OutputKind;
use consilium_federation::{SiteName, quorum};

use crate::driver::rosters::Known;

/// What the hub's administrator says of one hospital.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SiteFacts {
    /// The gateway lets it in.
    pub accepted: bool,
    /// Namespaces whose studies may name it.
    pub namespaces: Vec<String>,
}

/// The TrustSites by name.
pub type Sites = BTreeMap<SiteName, SiteFacts>;

/// The TrustSites as facts.
pub fn sites<'a>(objects: impl IntoIterator<Item = &'a TrustSite>) -> Sites {
    let fact = |site: &TrustSite| {
        let facts = SiteFacts { accepted: site.spec.accepted, namespaces: site.spec.study_namespaces.clone() };
        site.metadata.deletion_timestamp.is_none().then(|| Some((site.site_name()?, facts)))?
    };
    objects.into_iter().filter_map(fact).collect()
}

/// Why a study is not accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Reason of the condition `Accepted`.
    pub reason: &'static str,
    /// What is wrong, and what to do.
    pub message: String,
}

impl Refusal {
    fn reference(message: String) -> Self {
        Self { reason: "InvalidReference", message }
    }
}

/// The hospitals that may take part now, sorted, or why no round may start.
///
/// # Errors
/// The first thing that is wrong.
pub fn accept(namespace: &str, spec: &FederatedStudySpec, sites: &Sites) -> Result<Vec<SiteName>, Refusal> {
    if let Err(error) = spec.round_policy(BTreeSet::new()) {
        return Err(Refusal { reason: "InvalidValue", message: error.to_string() });
    }
    scorable(spec)?;
    for (index, named) in spec.sites.iter().enumerate() {
        reference(&format!("spec.sites[{index}].name"), &named.name, namespace, sites).map_err(Refusal::reference)?;
    }
    let accepted = |name: &SiteName| sites.get(name).is_some_and(|s| s.accepted);
    let (mut members, missing): (Vec<SiteName>, Vec<SiteName>) = spec.site_names().into_iter().partition(accepted);
    enough(spec, &members, &missing)?;
    members.sort();
    Ok(members)
}

/// A gate that the platform's evaluator could never decide would be found out after every hospital's training.
fn scorable(spec: &FederatedStudySpec) -> Result<(), Refusal> {
    let refuse = |message: String| Err(Refusal { reason: "InvalidValue", message });
    match &spec.output {
        Some(output) => match output.check() {
            Err(why) => refuse(format!("spec.{why}")),
            Ok(()) if spec.gate.is_some() && output.kind == OutputKind::Classification => refuse(
                "spec.output.kind is Classification and spec.gate.metric is dice: the evaluator scores segmentations \
                 alone; take spec.gate out, or write a kind of Segmentation"
                    .into(),
            ),
            Ok(()) => Ok(()),
        },
        None => Ok(()),
    }
}

/// Whether a field may name a hospital from this namespace.
///
/// # Errors
/// The text for a condition.
pub fn reference(field: &str, name: &SiteName, namespace: &str, sites: &Sites) -> Result<(), String> {
    let Some(facts) = sites.get(name) else {
        return Err(format!(
            "{field} is \"{name}\": there is no TrustSite of that name; correct the name, or ask the hub's \
             administrator to enrol the hospital"
        ));
    };
    if facts.namespaces.iter().any(|n| n == namespace) {
        return Ok(());
    }
    let allowed = if facts.namespaces.is_empty() { "no namespace".to_owned() } else { facts.namespaces.join(", ") };
    Err(format!(
        "{field} is \"{name}\": its TrustSite may be named from {allowed}, and this object is in \"{namespace}\"; ask \
         the hub's administrator to add \"{namespace}\" to spec.studyNamespaces of the TrustSite"
    ))
}

fn enough(spec: &FederatedStudySpec, members: &[SiteName], missing: &[SiteName]) -> Result<(), Refusal> {
    let names = || missing.iter().map(SiteName::as_str).collect::<Vec<_>>().join(", ");
    let refuse = |message| Err(Refusal { reason: "NotEnoughSites", message });
    if let Some(name) = spec.sites.iter().filter(|s| s.required).map(|s| &s.name).find(|n| missing.contains(n)) {
        return refuse(format!(
            "spec.sites names \"{name}\" as required, but spec.accepted of its TrustSite is false; ask the hub's \
             administrator to accept it, or drop required"
        ));
    }
    if (members.len() as u32) < spec.rounds.quorum {
        return refuse(format!(
            "spec.rounds.quorum is {}, but only {} of the hospitals in spec.sites are accepted (not accepted: {}); ask \
             the hub's administrator to accept them, or lower the quorum",
            spec.rounds.quorum,
            members.len(),
            names()
        ));
    }
    Ok(())
}

/// Whether the keys of enough hospitals are on a roster, so that updates can be masked; `rosters` newest first.
///
/// # Errors
/// What is missing, and how it is made.
pub fn rostered(spec: &FederatedStudySpec, members: &[SiteName], rosters: &[Known]) -> Result<(), Refusal> {
    if !spec.is_masked() {
        return Ok(());
    }
    let secure = &spec.aggregation.secure;
    let refuse = |reason, message| Err(Refusal { reason, message });
    for n in spec.rounds.quorum..=members.len() as u32 {
        if quorum::tolerated_colluders(n, quorum::threshold(n)) < secure.colluders {
            return refuse(
                "InvalidValue",
                format!(
                    "spec.aggregation.secure.colluders is {}, but an attempt of {n} hospitals withstands {} (2t > n + \
                     colluders); lower it or name more hospitals",
                    secure.colluders,
                    quorum::tolerated_colluders(n, quorum::threshold(n))
                ),
            );
        }
    }
    let on = |roster: &Known| members.iter().filter(|site| roster.sites.contains(site)).count() as u32;
    let Some(newest) = rosters.first() else {
        return refuse(
            "NoRoster",
            "spec.aggregation.secure.protocol is SecAgg, but the hub has no roster of hospital keys; put one that the \
             governance signed into a ConfigMap labelled consilium.health/roster=true in the operator's namespace \
             (`kubectl consilium roster new` and `roster sign`)"
                .into(),
        );
    };
    if rosters.iter().any(|roster| on(roster) >= spec.rounds.quorum) {
        return Ok(());
    }
    let missing: Vec<_> = members.iter().filter(|s| !newest.sites.contains(*s)).map(SiteName::as_str).collect();
    refuse(
        "AwaitingRoster",
        format!(
            "spec.rounds.quorum is {}, but roster version {} holds the keys of {} of the study's hospitals (not of {}); \
             have the governance sign a roster with them",
            spec.rounds.quorum,
            newest.version,
            on(newest),
            missing.join(", ")
        ),
    )
}

/// What to warn of when not a single hospital may drop out; `None` when some may.
pub fn no_dropout_tolerance(spec: &FederatedStudySpec, members: u32) -> Option<String> {
    let secure = &spec.aggregation.secure;
    let survivors = quorum::survivors_needed(members, secure.min_contributors, secure.colluders);
    if survivors >= members {
        return Some(format!(
            "an attempt of {members} hospitals needs the updates of all {members} (threshold and \
             spec.aggregation.secure.minContributors): one that drops out fails it; name more hospitals in spec.sites"
        ));
    }
    (spec.rounds.quorum >= members).then(|| {
        format!(
            "spec.rounds.quorum is {} of {members} hospitals: a round waits for all of them; name more hospitals in \
             spec.sites or lower the quorum",
            spec.rounds.quorum
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controllers::testing::{name, study_spec};

    fn site(accepted: bool, namespaces: &[&str]) -> SiteFacts {
        SiteFacts { accepted, namespaces: namespaces.iter().map(|&n| n.to_owned()).collect() }
    }

    fn four() -> Sites {
        ["alder", "birch", "cedar", "damson"].map(|n| (name(n), site(true, &["research"]))).into()
    }

    fn refused(spec: &FederatedStudySpec, sites: &Sites) -> Refusal {
        accept("research", spec, sites).unwrap_err()
    }

    #[test]
    fn a_study_whose_hospitals_are_all_there_is_accepted() {
        let members = accept("research", &study_spec(), &four()).unwrap();
        assert_eq!(members, ["alder", "birch", "cedar", "damson"].map(name));
    }

    /// Every hospital would train for a model whose gate nobody can decide, and only then be told.
    #[test]
    fn a_gate_that_the_evaluator_cannot_decide_is_refused_before_anybody_trains() {
        let mut spec = study_spec();
        let output =
            |kind: &str| serde_json::from_value(serde_json::json!({"kind": kind, "classes": ["a", "b"]})).unwrap();
        spec.output = Some(output("Segmentation"));
        assert!(accept("research", &spec, &four()).is_ok());
        spec.output = Some(output("Classification"));
        let refusal = refused(&spec, &four());
        assert!(refusal.reason == "InvalidValue" && refusal.message.contains("spec.output.kind"), "{refusal:?}");
        spec.gate = None;
        assert!(accept("research", &spec, &four()).is_ok());
        let twice = serde_json::json!({"kind": "Segmentation", "classes": ["a", "a"]});
        spec.output = Some(serde_json::from_value(twice).unwrap());
        assert!(refused(&spec, &four()).message.contains("spec.output.classes"));
    }

    /// Each wrong reference is told with the field, the value, the rule and the way out.
    #[test]
    fn a_bad_reference_names_field_value_rule_and_way_out() {
        let mut sites = four();
        sites.remove(&name("birch"));
        let refusal = refused(&study_spec(), &sites);
        assert_eq!(refusal.reason, "InvalidReference");
        for part in ["spec.sites[1].name", "\"birch\"", "no TrustSite", "enrol"] {
            assert!(refusal.message.contains(part), "{part}: {}", refusal.message);
        }
        for (namespaces, allowed) in [(&[][..], "no namespace"), (&["cardiology"], "cardiology")] {
            let mut sites = four();
            sites.insert(name("cedar"), site(true, namespaces));
            let refusal = refused(&study_spec(), &sites);
            assert_eq!(refusal.reason, "InvalidReference");
            for part in ["spec.sites[2].name", "\"cedar\"", allowed, "\"research\"", "spec.studyNamespaces"] {
                assert!(refusal.message.contains(part), "{part}: {}", refusal.message);
            }
        }
    }

    /// Revoking one hospital must not stop the study of the others; revoking too many, or a required one, must.
    #[test]
    fn revoked_hospitals_are_left_out_until_too_few_are_left() {
        let mut sites = four();
        sites.insert(name("damson"), site(false, &["research"]));
        assert_eq!(accept("research", &study_spec(), &sites).unwrap().len(), 3);
        let mut spec = study_spec();
        spec.sites[3].required = true;
        let refusal = refused(&spec, &sites);
        assert_eq!(refusal.reason, "NotEnoughSites");
        assert!(refusal.message.contains("\"damson\"") && refusal.message.contains("required"), "{}", refusal.message);
        sites.insert(name("birch"), site(false, &["research"]));
        let refusal = refused(&study_spec(), &sites);
        assert_eq!(refusal.reason, "NotEnoughSites");
        for part in ["spec.rounds.quorum is 3", "only 2", "birch, damson", "lower the quorum"] {
            assert!(refusal.message.contains(part), "{part}: {}", refusal.message);
        }
    }

    #[test]
    fn a_value_that_the_schema_let_through_is_refused_with_its_field() {
        let mut spec = study_spec();
        spec.rounds.deadline = "0s".into();
        let refusal = refused(&spec, &four());
        assert_eq!(refusal.reason, "InvalidValue");
        assert!(refusal.message.contains("spec.rounds.deadline") && refusal.message.contains("0s"));
    }

    #[test]
    fn a_study_that_no_hospital_may_leave_is_warned_of() {
        let spec = study_spec();
        assert_eq!(no_dropout_tolerance(&spec, 4), None);
        assert!(no_dropout_tolerance(&spec, 3).unwrap().contains("name more hospitals"));
        let mut strict = study_spec();
        strict.rounds.quorum = 4;
        assert!(no_dropout_tolerance(&strict, 4).unwrap().contains("spec.rounds.quorum is 4"));
    }
}
