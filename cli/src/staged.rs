//! Approvals of the second kind: over a clinical plan, a pipeline and a hospital too, which is what a rung above Shadow
//! needs. Pure but for the files.

use std::path::Path;

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use consilium_clinical::{
    plan::ClinicalPlan,
    rules::{MetricRule, Of, StageRule},
};
use consilium_crds::ModelRelease;
use consilium_federation::{
    Digest,
    ladder::Stage,
    stage_approval::{Hospitals, StageApproval, Terms},
};
use ed25519_dalek::{Signer as _, SigningKey};
use jiff::Timestamp;

use crate::{
    error::{CliError, Result},
    objects,
    text::{quoted, visible},
};

/// What is said on the command line beside the release.
pub struct Asked<'a> {
    pub plan: &'a Path,
    pub hospital: Option<&'a str>,
    pub pipeline: Option<Digest>,
    pub stage: Stage,
    pub key_id: &'a str,
    pub role: &'a str,
}

/// Everything that is signed, and the plan behind its digest.
pub struct Signing {
    pub plan: ClinicalPlan,
    pub terms: Terms,
}

/// Reads and checks what is to be signed.
pub fn signing(asked: &Asked<'_>, release: &ModelRelease, expiry: Timestamp) -> Result<Signing> {
    let object = objects::clinical_plan(asked.plan)?;
    let name = object.metadata.name.clone().unwrap_or_default();
    let refused = |problem: String| CliError::Plan { name: name.clone(), problem };
    let plan = object.spec.plan().map_err(|error| refused(format!("spec.{error}")))?;
    let digest = plan.digest();
    match object.status.as_ref().and_then(|status| status.plan_digest) {
        Some(said) if said != digest => {
            let problem =
                format!("status.planDigest is {said}, but spec has {digest}: fetch it again and do not sign it");
            return Err(refused(problem));
        }
        _ => {}
    }
    if plan.line != release.spec.study {
        return Err(refused(format!(
            "it is for the models of {}, the release is one of {}",
            plan.line, release.spec.study
        )));
    }
    if plan.expires < expiry {
        return Err(refused(format!(
            "it ends at {}, before the approval would ({expiry}): sign for less",
            plan.expires
        )));
    }
    if asked.stage > Stage::Shadow && plan.rule(asked.stage).is_none() {
        return Err(refused(format!("it has no rule for {}, so nothing comes to stand there by it", asked.stage)));
    }
    let argument = |field, rule| CliError::Argument { field, value: String::new(), rule };
    let hospital = asked.hospital.ok_or_else(|| argument("--hospital", "name the hospital, or '*' for every one"))?;
    let hospital = Hospitals::try_from(hospital.to_owned()).map_err(|_| CliError::Argument {
        field: "--hospital",
        value: hospital.into(),
        rule: "name a hospital, or '*'",
    })?;
    let pipeline = asked.pipeline.ok_or_else(|| {
        argument(
            "--pipeline",
            "give the digest that the hospital shows: kubectl get mdeploy NAME -n consilium-tasks -o jsonpath={.status.pipeline}",
        )
    })?;
    let (model, evidence, stage) = (release.spec.model, release.spec.evidence_digest(), asked.stage);
    Ok(Signing { plan, terms: Terms { model, pipeline, plan: digest, stage, hospital, evidence, expiry } })
}

/// Signs.
pub fn approve(asked: &Asked<'_>, terms: Terms, key: &SigningKey) -> StageApproval {
    let signature = BASE64.encode(key.sign(&terms.signed_bytes()).to_bytes());
    StageApproval { key_id: asked.key_id.to_owned(), role: asked.role.to_owned(), terms, signature }
}

/// What the signer is about to put the name under: every field that is signed, and what the plan's digest stands for.
pub fn shown(asked: &Asked<'_>, signing: &Signing) -> String {
    let Terms { model, pipeline, plan, stage, hospital, evidence, expiry } = &signing.terms;
    let content = &signing.plan;
    let mut text = format!(
        "{} signs as {} until {expiry}:\n  stage     {stage}, and every lower one\n  hospital  {hospital}\n  model     {model}\n  \
         pipeline  {pipeline}\n  evidence  {evidence}\n  plan      {plan}\n",
        visible(asked.key_id),
        visible(asked.role),
    );
    text.push_str(&format!(
        "The plan says, for {} until {}, an open hazard at the least {:?}:\n  finding {} ({} {}){}\n",
        visible(&content.line.to_string()),
        content.expires,
        content.on_hazard,
        content.finding.name,
        content.finding.scheme,
        content.finding.code,
        content.finding.min_volume_ml.map(|ml| format!(", from {ml} ml")).unwrap_or_default(),
    ));
    content.rules.iter().filter(|rule| rule.stage <= *stage).for_each(|rule| text.push_str(&of_rule(rule)));
    match &content.drift {
        Some(drift) => text.push_str(&format!("  drift: {:?}\n", drift.then)),
        None => text.push_str("  no drift lowers\n"),
    }
    text
}

/// A rung of a plan, on a few lines.
pub fn of_rule(rule: &StageRule) -> String {
    let mut text = format!(
        "  {} needs {} cases, {} patients with the finding, {} days; it counts for {} days\n",
        rule.stage, rule.cases, rule.positives, rule.days, rule.valid_days
    );
    let place = |of: Of| match of {
        Of::Site => "here",
        Of::WorstSite => "here, and failing in no other hospital",
        Of::WorstSubgroup => "in each group",
        Of::Global => "over all hospitals",
    };
    let line = |metric: &MetricRule| format!("    {} {}, with 95 % confidence\n", metric.words(), place(metric.of));
    rule.metrics.iter().for_each(|metric| text.push_str(&line(metric)));
    let parts = [
        rule.coverage.map(|share| format!("truth known of at least {share}")),
        rule.max_failures.map(|share| format!("failures at most {share}")),
        rule.max_p95_seconds.map(|seconds| format!("95 % of the results within {seconds} s")),
        rule.blind.map(|share| format!("reads before the result at least {share}")),
    ];
    let parts: Vec<String> = parts.into_iter().flatten().collect();
    if !parts.is_empty() {
        text.push_str(&format!("    {}\n", parts.join(", ")));
    }
    for group in &rule.subgroups {
        let names: Vec<&str> = group.groups.iter().map(|name| name.as_str()).collect();
        text.push_str(&format!("    groups of {}: {}\n", group.dimension, names.join(", ")));
    }
    let roles: Vec<&str> = rule.roles.iter().map(|name| name.as_str()).collect();
    if !roles.is_empty() {
        text.push_str(&format!("    signed by: {}\n", roles.join(", ")));
    }
    text
}

/// The entry for `spec.stageApprovals`.
pub fn entry(approval: &StageApproval) -> String {
    let Terms { model, pipeline, plan, stage, hospital, evidence, expiry } = &approval.terms;
    format!(
        "- keyID: {}\n  role: {}\n  model: {model}\n  pipeline: {pipeline}\n  plan: {plan}\n  stage: {stage}\n  hospital: {}\n  \
         evidence: {evidence}\n  expiry: \"{expiry}\"\n  signature: {}\n",
        quoted(&approval.key_id),
        quoted(&approval.role),
        quoted(&hospital.to_string()),
        approval.signature
    )
}

#[cfg(test)]
mod tests {
    use consilium_clinical::{approval::Presented, evidence::Subject};
    use consilium_federation::approval::TrustedKey;
    use serde_json::json;

    use super::*;

    fn release() -> ModelRelease {
        let digest = |text: &str| Digest::of(text.as_bytes()).to_string();
        serde_json::from_value(json!({
            "apiVersion": "consilium.health/v1alpha1", "kind": "ModelRelease", "metadata": {"name": "hippocampus-r5"},
            "spec": {
                "study": "research/hippocampus", "studyUID": "u", "round": 5, "model": digest("model"),
                "specDigest": digest("spec"), "baseModel": digest("base"), "trainerImage": "t", "config": {},
                "contributors": ["alder"], "dice": "0.8600", "evidence": [], "attestation": {"keyID": "0", "signature": ""}
            }
        }))
        .unwrap()
    }

    fn asked<'a>(plan: &'a Path, hospital: Option<&'a str>, pipeline: Option<Digest>) -> Asked<'a> {
        Asked { plan, hospital, pipeline, stage: Stage::SafetyNet, key_id: "mary", role: "clinical-safety-officer" }
    }

    /// What was signed and pasted into a Git repository must count in the hospital that it names, and nowhere else; and
    /// before it is signed, everything that it is over must have been shown.
    #[test]
    fn what_is_signed_is_shown_and_counts_in_its_hospital_alone() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/hippocampus/plan.yaml");
        let pipeline = Digest::of(b"pipeline");
        let asked = asked(&path, Some("alder"), Some(pipeline));
        let expiry = "2027-06-01T00:00:00Z".parse().unwrap();
        let signing = signing(&asked, &release(), expiry).unwrap();
        let text = shown(&asked, &signing);
        let terms = signing.terms.clone();
        for part in [terms.model, terms.pipeline, terms.plan, terms.evidence].map(|digest| digest.to_string()) {
            assert!(text.contains(&part), "{part} is not in {text}");
        }
        for part in
            ["SafetyNet, and every lower one", "hospital  alder", "sensitivity ≥ 0.9 here", "300 cases", "2027-06-01"]
        {
            assert!(text.contains(part), "{part} is not in {text}");
        }
        assert!(!text.contains("Prioritisation"), "nobody signs that: {text}");
        let key = SigningKey::from_bytes(&[7; 32]);
        let printed: Vec<StageApproval> =
            serde_yaml_ng::from_str(&entry(&approve(&asked, terms.clone(), &key))).unwrap();
        let public_key = BASE64.encode(key.verifying_key().as_bytes());
        let keys = [TrustedKey { id: "mary".into(), role: "clinical-safety-officer".into(), public_key }];
        let presented = Presented {
            approvals: &printed,
            first: &[],
            release_evidence: release().spec.evidence_digest(),
            own_evidence: &[],
            keys: &keys,
        };
        let at = |hospital: &str| {
            let subject = Subject { hospital: hospital.parse().unwrap(), model: release().spec.model, pipeline };
            presented.verify(&subject, Some(terms.plan)).0
        };
        assert_eq!((at("alder").len(), at("birch").len()), (1, 0));
    }

    /// A signature over a plan of another study, one that ends first, or a stage that the plan does not know would count for
    /// nothing, and its signer would hear of it months later.
    #[test]
    fn what_would_count_for_nothing_is_not_signed() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/hippocampus/plan.yaml");
        let expiry = |text: &str| text.parse::<Timestamp>().unwrap();
        let pipeline = Some(Digest::of(b"pipeline"));
        let refused = |asked: Asked<'_>, release: ModelRelease, expiry| {
            signing(&asked, &release, expiry).map(drop).unwrap_err().to_string()
        };
        let good = || asked(&path, Some("*"), pipeline);
        let mut liver = release();
        liver.spec.study = "research/liver".parse().unwrap();
        let early = expiry("2027-06-01T00:00:00Z");
        assert!(refused(good(), liver, early).contains("research/liver"));
        assert!(refused(good(), release(), expiry("2029-01-01T00:00:00Z")).contains("it ends at 2027-11-30"));
        let high = Asked { stage: Stage::Triage, ..good() };
        assert!(refused(high, release(), early).contains("no rule for Triage"));
        assert!(refused(asked(&path, None, pipeline), release(), early).contains("--hospital"));
        assert!(refused(asked(&path, Some("a b"), pipeline), release(), early).contains("--hospital"));
        assert!(refused(asked(&path, Some("*"), None), release(), early).contains(".status.pipeline"));
    }
}
