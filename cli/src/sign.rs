//! `sign`: an approval, made offline over the model, the stage, the evidence and an expiry. Nobody signs unasked.

use std::{
    io::{BufRead, IsTerminal as _, stdin},
    path::{Path, PathBuf},
};

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use clap::ValueEnum;
use consilium_crds::{ModelRelease, values};
use consilium_federation::{
    Digest,
    approval::{Approval, signed_bytes},
    ladder::Stage,
};
use ed25519_dalek::{Signer as _, SigningKey};
use jiff::Timestamp;

use crate::{
    error::{CliError, Result},
    keys, objects, staged,
    text::{quoted, visible},
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
    /// File with the ClinicalPlan (`kubectl get cplan NAME -o yaml`): makes the approval one of the second kind, over the
    /// plan, the pipeline and the hospital too, which is what a stage above Shadow needs.
    #[arg(long)]
    plan: Option<PathBuf>,
    /// With --plan: the hospital that it is for, or '*' for every one that trusts the key.
    #[arg(long, requires = "plan")]
    hospital: Option<String>,
    /// With --plan: digest of everything that changes an answer, as the hospital shows it (`.status.pipeline` of the
    /// ModelDeployment).
    #[arg(long, requires = "plan")]
    pipeline: Option<Digest>,
    /// Name of the key in the hospitals' policies.
    #[arg(long)]
    key_id: String,
    /// Role in which you approve, as in the hospitals' policies.
    #[arg(long)]
    role: String,
    /// How long the approval holds, for example 2160h.
    #[arg(long)]
    expires_in: String,
    /// Sign without being asked. Without a terminal, where nobody can be asked, nothing is signed unless this is given.
    #[arg(long)]
    yes: bool,
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

/// Shows on standard error what is to be signed, asks, signs, and returns the entry.
pub fn run(arguments: &Arguments, now: Timestamp) -> Result<String> {
    let release = objects::release(&arguments.release)?;
    let expiry = check(arguments, &release, now)?;
    let ask = || confirm(arguments.yes, stdin().is_terminal(), &mut stdin().lock());
    if let Some(plan) = &arguments.plan {
        let asked = arguments.asked(plan);
        let signing = staged::signing(&asked, &release, expiry)?;
        eprint!("{}{}", staged::shown(&asked, &signing), figures(&release));
        ask()?;
        let approval = staged::approve(&asked, signing.terms, &keys::read(&arguments.key)?);
        return Ok(match arguments.output {
            Output::Json => format!("{}\n", serde_json::json!(approval)),
            Output::Yaml => staged::entry(&approval),
        });
    }
    if arguments.stage > Stage::Shadow {
        return Err(CliError::NoPlan { stage: arguments.stage.as_str() });
    }
    eprint!("{}", shown(arguments, &release, expiry));
    ask()?;
    let approval = approve(arguments, &release, expiry, &keys::read(&arguments.key)?);
    Ok(match arguments.output {
        Output::Json => format!("{}\n", serde_json::json!(approval)),
        Output::Yaml => entry(&approval),
    })
}

impl Arguments {
    fn asked<'a>(&'a self, plan: &'a Path) -> staged::Asked<'a> {
        let Self { pipeline, stage, key_id, role, .. } = self;
        let hospital = self.hospital.as_deref();
        staged::Asked { plan, hospital, pipeline: *pipeline, stage: *stage, key_id, role }
    }
}

/// A signature is somebody's word: it is given by typing yes, or by having written so on the command line.
fn confirm(yes: bool, terminal: bool, answers: &mut impl BufRead) -> Result<()> {
    if yes {
        return Ok(());
    }
    if !terminal {
        return Err(CliError::NobodyToAsk);
    }
    eprint!("Sign this? Type yes: ");
    let mut answer = String::new();
    answers.read_line(&mut answer).map_err(|source| CliError::Io { path: "standard input".into(), source })?;
    if answer.trim() == "yes" { Ok(()) } else { Err(CliError::NotSigned) }
}

/// Whether this may be signed, and until when it then holds.
fn check(arguments: &Arguments, release: &ModelRelease, now: Timestamp) -> Result<Timestamp> {
    let evidence = release.spec.evidence_digest();
    let name = || release.metadata.name.clone().unwrap_or_default();
    match release.status.as_ref().and_then(|status| status.evidence_digest) {
        None => return Err(CliError::NoEvidenceDigest { name: name() }),
        Some(said) if said != evidence => {
            return Err(CliError::Evidence { name: name(), said: said.to_string(), computed: evidence.to_string() });
        }
        Some(_) => {}
    }
    for (field, value) in [("--key-id", &arguments.key_id), ("--role", &arguments.role)] {
        if !(1..=63).contains(&value.len()) {
            return Err(CliError::Argument { field, value: value.clone(), rule: "use 1 to 63 characters" });
        }
    }
    let lasts = values::duration("--expires-in", &arguments.expires_in)?;
    // Whole seconds, so that the expiry reads the same wherever it was written and parsed again.
    let start = Timestamp::from_second(now.as_second()).unwrap_or(now);
    start.checked_add(lasts).map_err(|_| CliError::Argument {
        field: "--expires-in",
        value: arguments.expires_in.clone(),
        rule: "the end lies beyond what a date can hold",
    })
}

fn approve(arguments: &Arguments, release: &ModelRelease, expiry: Timestamp, key: &SigningKey) -> Approval {
    let bytes = signed_bytes(release.spec.model, arguments.stage, release.spec.evidence_digest(), expiry);
    Approval {
        key_id: arguments.key_id.clone(),
        role: arguments.role.clone(),
        expiry,
        signature: BASE64.encode(key.sign(&bytes).to_bytes()),
    }
}

/// What the signer is about to put the name under, and what merely stands beside it in the file.
fn shown(arguments: &Arguments, release: &ModelRelease, expiry: Timestamp) -> String {
    let spec = &release.spec;
    let mut text = format!(
        "{} signs as {} until {expiry}:\n  stage     {}\n  model     {}\n  evidence  {}\n",
        visible(&arguments.key_id),
        visible(&arguments.role),
        arguments.stage,
        spec.model,
        spec.evidence_digest(),
    );
    text.push_str(&figures(release));
    text
}

/// What the evidence's digest stands for, and what merely stands beside it.
fn figures(release: &ModelRelease) -> String {
    let spec = &release.spec;
    let mut text = format!("  mean Dice {}\n", visible(&spec.dice));
    for site in &spec.evidence {
        let numbers = match site.cases {
            Some(cases) => format!(", {cases} cases, Dice {}", visible(&site.dice.join(" "))),
            None => String::new(),
        };
        text.push_str(&format!("  {:<9} {:?}{numbers}\n", site.site.as_str(), site.vote));
    }
    text.push_str(&format!(
        "Not signed, only said by the file: study {}, round {}, {} hospitals in the sum\n",
        visible(&spec.study.to_string()),
        spec.round,
        spec.contributors.len(),
    ));
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
        let mut object = without_status();
        let release: ModelRelease = serde_json::from_value(object.clone()).unwrap();
        object["status"] = json!({"evidenceDigest": release.spec.evidence_digest()});
        object
    }

    fn without_status() -> Value {
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
            plan: None,
            hospital: None,
            pipeline: None,
            key_id: "mary".into(),
            role: "clinical-safety-officer".into(),
            expires_in: expires_in.into(),
            yes: false,
            output: Output::Yaml,
        }
    }

    /// The approval that is printed is one that a hospital accepts, after it went through YAML in a Git repository.
    #[test]
    fn a_hospital_accepts_what_was_signed_and_only_for_its_stage() {
        let release: ModelRelease = serde_json::from_value(release()).unwrap();
        let key = SigningKey::from_bytes(&[7; 32]);
        let arguments = arguments("2160h");
        let expiry = check(&arguments, &release, NOW.parse().unwrap()).unwrap();
        let approval = approve(&arguments, &release, expiry, &key);
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
        assert_eq!(judge(Stage::Shadow, NOW).map(|enough| enough.until), Ok(expiry));
        assert!(judge(Stage::Triage, NOW).is_err());
        assert!(judge(Stage::Shadow, "2026-08-31T12:00:01Z").is_err());
    }

    /// A script that has the key would sign whatever it is given, with nobody looking; and a key at a terminal signs what
    /// somebody has read.
    #[test]
    fn nothing_is_signed_without_a_word() {
        let ask = |yes, terminal, answer: &str| confirm(yes, terminal, &mut answer.as_bytes());
        assert!(ask(false, true, "yes\n").is_ok() && ask(true, false, "").is_ok());
        for answer in ["", "y\n", "no\n", "yes please\n"] {
            assert!(matches!(ask(false, true, answer), Err(CliError::NotSigned)), "{answer:?}");
        }
        let refused = ask(false, false, "yes\n").unwrap_err();
        assert!(refused.to_string().contains("--yes"), "what is piped in is no word: {refused}");
    }

    /// Evidence that was edited in a file, or that nobody says is the hub's, must not get a signature.
    #[test]
    fn changed_evidence_is_not_signed() {
        let refused = |object: Value| {
            let release: ModelRelease = serde_json::from_value(object).unwrap();
            check(&arguments("1h"), &release, NOW.parse().unwrap()).unwrap_err().to_string()
        };
        let mut object = release();
        object["status"] = json!({"evidenceDigest": Digest::of(b"something else").to_string()});
        assert!(refused(object).contains("do not sign"));
        let text = refused(without_status());
        assert!(
            text.contains("status.evidenceDigest is missing") && text.contains("kubectl get mrelease h-r5"),
            "{text}"
        );
    }

    /// What is shown before the signature must not be repainted by what a hospital wrote, nor say more than is signed.
    #[test]
    fn what_is_shown_is_what_is_signed() {
        let mut object = without_status();
        object["spec"]["evidence"][0]["vote"] = "Fail".into();
        object["spec"]["evidence"][0]["dice"] = json!(["\u{1b}[2K\r  alder     Pass"]);
        let release: ModelRelease = serde_json::from_value(object).unwrap();
        let text = shown(&arguments("1h"), &release, NOW.parse().unwrap());
        assert!(text.contains("  alder     Fail, 12 cases, Dice \\u{1b}[2K\\r"), "{text}");
        let (signed, beside) = text.split_once("Not signed").unwrap();
        assert!(
            signed.contains(&release.spec.evidence_digest().to_string()) && !signed.contains("research/h"),
            "{text}"
        );
        assert!(beside.contains("research/h, round 5, 1 hospitals"), "{text}");
    }

    /// "90 days" and "0h" are told what to write instead.
    #[test]
    fn a_wrong_duration_names_the_flag_and_the_form() {
        let release: ModelRelease = serde_json::from_value(release()).unwrap();
        for wrong in ["90d", "0h", ""] {
            let error = check(&arguments(wrong), &release, NOW.parse().unwrap());
            let text = error.unwrap_err().to_string();
            assert!(text.contains("--expires-in") && text.contains("hours, minutes and seconds"), "{text}");
        }
    }
}
