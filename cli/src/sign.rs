//! `sign`: an approval, made offline over the model, the stage, the evidence and an expiry.

use std::path::PathBuf;

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use clap::ValueEnum;
use consilium_crds::{ModelRelease, values};
use consilium_federation::{
    approval::{Approval, signed_bytes},
    ladder::Stage,
};
use ed25519_dalek::{Signer as _, SigningKey};
use jiff::Timestamp;

use crate::{
    error::{CliError, Result},
    keys, objects,
};

/// What is signed, by whom.
#[derive(clap::Args)]
pub struct Arguments {
    /// Private key, PKCS#8 PEM.
    #[arg(long)]
    key: PathBuf,
    /// File with the ModelRelease (`kubectl get mrelease NAME -o yaml`).
    #[arg(long)]
    release: PathBuf,
    /// What the model is to be trusted with.
    #[arg(long, value_parser = crate::stage)]
    stage: Stage,
    /// Name of the key in the hospitals' policies.
    #[arg(long)]
    key_id: String,
    /// Role in which you approve, as in the hospitals' policies.
    #[arg(long)]
    role: String,
    /// How long the approval holds, for example 2160h.
    #[arg(long)]
    expires_in: String,
    /// How it is printed.
    #[arg(short, long, default_value = "yaml")]
    output: Output,
}

/// How an approval is printed.
#[derive(Clone, Copy, ValueEnum)]
enum Output {
    /// An entry for spec.approvals.
    Yaml,
    /// The same as JSON.
    Json,
}

/// Signs, shows on standard error what was signed, and returns the entry.
pub fn run(arguments: &Arguments, now: Timestamp) -> Result<String> {
    let release = objects::release(&arguments.release)?;
    let key = keys::read(&arguments.key)?;
    let approval = approve(arguments, &release, &key, now)?;
    eprint!("{}", shown(&release, &approval, arguments.stage));
    Ok(match arguments.output {
        Output::Json => format!("{}\n", serde_json::json!(approval)),
        Output::Yaml => entry(&approval),
    })
}

fn approve(arguments: &Arguments, release: &ModelRelease, key: &SigningKey, now: Timestamp) -> Result<Approval> {
    let evidence = release.spec.evidence_digest();
    let said = release.status.as_ref().and_then(|status| status.evidence_digest);
    if let Some(said) = said.filter(|said| *said != evidence) {
        let name = release.metadata.name.clone().unwrap_or_default();
        return Err(CliError::Evidence { name, said: said.to_string(), computed: evidence.to_string() });
    }
    for (field, value) in [("--key-id", &arguments.key_id), ("--role", &arguments.role)] {
        if !(1..=63).contains(&value.len()) {
            return Err(CliError::Argument { field, value: value.clone(), rule: "use 1 to 63 characters" });
        }
    }
    let lasts = values::duration("--expires-in", &arguments.expires_in)?;
    // Whole seconds, so that the expiry reads the same wherever it was written and parsed again.
    let start = Timestamp::from_second(now.as_second()).unwrap_or(now);
    let expiry = start.checked_add(lasts).map_err(|_| CliError::Argument {
        field: "--expires-in",
        value: arguments.expires_in.clone(),
        rule: "the end lies beyond what a date can hold",
    })?;
    let bytes = signed_bytes(release.spec.model, arguments.stage, evidence, expiry);
    Ok(Approval {
        key_id: arguments.key_id.clone(),
        role: arguments.role.clone(),
        expiry,
        signature: BASE64.encode(key.sign(&bytes).to_bytes()),
    })
}

/// What the signer put the name under, for a last look.
fn shown(release: &ModelRelease, approval: &Approval, stage: Stage) -> String {
    let spec = &release.spec;
    let mut text = format!(
        "Signed by {} as {} until {}:\n  stage     {stage}\n  model     {}\n  study     {}, round {}, {} hospitals\n  \
         mean Dice {}\n",
        approval.key_id,
        approval.role,
        approval.expiry,
        spec.model,
        spec.study,
        spec.round,
        spec.contributors.len(),
        spec.dice,
    );
    for site in &spec.evidence {
        let numbers = match site.cases {
            Some(cases) => format!(", {cases} cases, Dice {}", site.dice.join(" ")),
            None => String::new(),
        };
        text.push_str(&format!("  {:<9} {:?}{numbers}\n", site.site.as_str(), site.vote));
    }
    text
}

fn entry(approval: &Approval) -> String {
    format!(
        "- keyID: {}\n  role: {}\n  expiry: \"{}\"\n  signature: {}\n",
        quoted(&approval.key_id),
        quoted(&approval.role),
        approval.expiry,
        approval.signature
    )
}

fn quoted(text: &str) -> String {
    serde_json::json!(text).to_string()
}

#[cfg(test)]
mod tests {
    use consilium_federation::{
        approval::{Requirement, TrustedKey, decide},
        digest::Digest,
    };
    use serde_json::{Value, json};

    use super::*;

    const NOW: &str = "2026-06-01T12:00:00.123Z";

    fn release() -> Value {
        let digest = |text: &str| Digest::of(text.as_bytes()).to_string();
        json!({
            "apiVersion": "consilium.health/v1alpha1", "kind": "ModelRelease", "metadata": {"name": "h-r5", "namespace": "research"},
            "spec": {
                "study": "research/h", "studyUID": "u", "round": 5, "model": digest("model"), "specDigest": digest("spec"),
                "baseModel": digest("base"), "trainerImage": "t", "config": {}, "contributors": ["alder"], "dice": "0.8600",
                "evidence": [{"site": "alder", "vote": "Pass", "cases": 12, "dice": ["0.87", "0.85"]}],
                "attestation": {"keyID": "0", "signature": ""}
            }
        })
    }

    fn arguments(expires_in: &str) -> Arguments {
        Arguments {
            key: "k".into(),
            release: "r".into(),
            stage: Stage::Shadow,
            key_id: "mary".into(),
            role: "clinical-safety-officer".into(),
            expires_in: expires_in.into(),
            output: Output::Yaml,
        }
    }

    /// The approval that is printed is one that a hospital accepts, after it went through YAML in a Git repository.
    #[test]
    fn a_hospital_accepts_what_was_signed_and_only_for_its_stage() {
        let release: ModelRelease = serde_json::from_value(release()).unwrap();
        let key = SigningKey::from_bytes(&[7; 32]);
        let approval = approve(&arguments("2160h"), &release, &key, NOW.parse().unwrap()).unwrap();
        let printed: Vec<Approval> = serde_yaml_ng::from_str(&entry(&approval)).unwrap();
        assert_eq!(printed, std::slice::from_ref(&approval));
        let keys = [TrustedKey {
            id: "mary".into(),
            role: "clinical-safety-officer".into(),
            public_key: BASE64.encode(key.verifying_key().as_bytes()),
        }];
        let require = |stage| Requirement { stage, approvals: 1, roles: vec!["clinical-safety-officer".into()] };
        let judge = |stage, at: &str| {
            let evidence = release.spec.evidence_digest();
            decide(release.spec.model, evidence, stage, &printed, &keys, &[require(stage)], at.parse().unwrap())
        };
        assert_eq!(judge(Stage::Shadow, NOW), Ok(()));
        assert!(judge(Stage::Triage, NOW).is_err());
        assert!(judge(Stage::Shadow, "2026-08-31T12:00:01Z").is_err());
    }

    /// Evidence that was edited in a file must not get a signature.
    #[test]
    fn changed_evidence_is_not_signed() {
        let mut object = release();
        object["status"] = json!({"evidenceDigest": Digest::of(b"something else").to_string()});
        let release: ModelRelease = serde_json::from_value(object).unwrap();
        let error = approve(&arguments("1h"), &release, &SigningKey::from_bytes(&[7; 32]), NOW.parse().unwrap());
        assert!(error.unwrap_err().to_string().contains("do not sign"));
    }

    /// "90 days" and "0h" are told what to write instead.
    #[test]
    fn a_wrong_duration_names_the_flag_and_the_form() {
        let release: ModelRelease = serde_json::from_value(release()).unwrap();
        for wrong in ["90d", "0h", ""] {
            let error = approve(&arguments(wrong), &release, &SigningKey::from_bytes(&[7; 32]), NOW.parse().unwrap());
            let text = error.unwrap_err().to_string();
            assert!(text.contains("--expires-in") && text.contains("hours, minutes and seconds"), "{text}");
        }
    }
}
