//! The card of a model: what somebody has to know before they use it, from what the hub attests and nothing else.

use std::fmt::Write as _;

use consilium_crds::model_release::SiteEvidence;
use consilium_crds::study::ProtocolKind;
use consilium_crds::{FederatedStudy, ModelRelease, ModelReleaseSpec};
use consilium_federation::gate::Vote;
use kube::ResourceExt as _;

use crate::text::visible;

/// Annotation on a release or a study: what the model is for, in a sentence.
pub const PURPOSE: &str = "consilium.health/purpose";

/// The card, Markdown. `study` is the study that made it, as it stands now, if there is one.
pub fn card(release: &ModelRelease, study: Option<&FederatedStudy>) -> String {
    let spec = &release.spec;
    // One that was edited since says nothing of this model.
    let study = study.filter(|study| study.spec.digest() == spec.spec_digest);
    let mut text = format!("# {}\n\n", cell(&release.name_any()));
    let mut line = |name: &str, value: String| {
        let _ = writeln!(text, "- **{name}**: {value}");
    };
    line("Purpose", purpose(release, study));
    line("Study", format!("{}, round {}, spec `{}`", cell(&spec.study.to_string()), spec.round, spec.spec_digest));
    line("Model", format!("`{}`, started from `{}`", spec.model, spec.base_model));
    line("Trained by", format!("`{}`", cell(&spec.trainer_image)));
    line(
        "Attested",
        format!("by the hub's key `{}`, over all that stands in the release", cell(&spec.attestation.key_id)),
    );
    text.push_str(&answers(spec));
    text.push_str(&data(spec, study));
    text.push_str(&figures(spec, study));
    text.push_str(&limits(spec, study));
    text.push_str(&format!("\n## Config\n\n```json\n{:#}\n```\n", serde_json::Value::Object(spec.config.clone())));
    text
}

/// What others wrote, in a line of Markdown.
fn cell(text: &str) -> String {
    visible(text).replace('|', "\\|").replace('`', "'").replace(['<', '>'], "")
}

fn purpose(release: &ModelRelease, study: Option<&FederatedStudy>) -> String {
    let said = release.annotations().get(PURPOSE).or_else(|| study?.annotations().get(PURPOSE));
    match said {
        Some(text) => cell(text),
        None => format!("not stated (the annotation {PURPOSE} on the study or the release says it)"),
    }
}

fn answers(spec: &ModelReleaseSpec) -> String {
    let mut text = "\n## What it takes and answers\n\n".to_owned();
    let Some(output) = &spec.output else {
        text.push_str("The study has no `spec.output`; the trainer's config below is all that is known.\n");
        return text;
    };
    let names: Vec<_> = output.classes.iter().map(|class| cell(class.as_str())).collect();
    let _ = writeln!(text, "- **Answer**: {:?} of {}", output.kind, names.join(", "));
    if let Some([x, y, z]) = output.shape {
        let _ = writeln!(text, "- **Volume**: {x} × {y} × {z} voxels");
    }
    if let Some([x, y, z]) = output.spacing_mm() {
        let _ = writeln!(text, "- **Spacing**: {x} × {y} × {z} mm; scans of another spacing are refused");
    }
    let orientation = output.orientation.as_ref().map_or_else(|| "RAS".to_owned(), ToString::to_string);
    let _ = writeln!(text, "- **Orientation**: {}", cell(&orientation));
    text
}

fn data(spec: &ModelReleaseSpec, study: Option<&FederatedStudy>) -> String {
    let names: Vec<_> = spec.contributors.iter().map(ToString::to_string).collect();
    let mut text = format!(
        "\n## Data\n\n- **In this round's sum**: {} hospitals ({}). Those of earlier rounds are in the model that it started \
         from.\n- **Scans**: none left a hospital; the hub knows neither scans nor patients.\n",
        names.len(),
        names.join(", ")
    );
    let masked = study.map(|study| study.spec.aggregation.secure.protocol);
    let _ = writeln!(
        text,
        "- **Updates**: {}",
        match masked {
            Some(ProtocolKind::SecAgg) => "masked; the hub could read sums and no hospital's own",
            Some(ProtocolKind::None) => "not masked; the hub could read each hospital's",
            None => "the study is gone or was edited since; whether they were masked stands in its spec of that digest",
        }
    );
    text
}

fn figures(spec: &ModelReleaseSpec, study: Option<&FederatedStudy>) -> String {
    let mut text =
        format!("\n## Figures\n\nMean Dice over all cases that hospitals held back: **{}**.", cell(&spec.dice));
    if let Some(gate) = study.and_then(|study| study.spec.gate.as_ref()) {
        let _ = write!(text, " The gate asked for {} in all, and {} in each hospital.", gate.min, gate.per_site_min);
    }
    text.push_str("\n\n| hospital | vote on its own floor | cases | mean Dice by class |\n|---|---|---|---|\n");
    for SiteEvidence { site, vote, cases, dice } in &spec.evidence {
        let cases = cases.map_or_else(|| "not published".to_owned(), |cases| cases.to_string());
        let dice = if dice.is_empty() { "not published".to_owned() } else { cell(&dice.join(", ")) };
        let _ = writeln!(text, "| {site} | {vote:?} | {cases} | {dice} |");
    }
    text
}

fn limits(spec: &ModelReleaseSpec, study: Option<&FederatedStudy>) -> String {
    let mut text = "\n## Limits\n\n".to_owned();
    let mut say = |line: &str| {
        let _ = writeln!(text, "- {line}");
    };
    say(
        "This release permits no clinical use: stages are given by a ModelPromotion, its approvals and each hospital's policy.",
    );
    say(
        "The figures are of the hospitals that trained it, on scans that they held back. How it does elsewhere, on other \
         scanners or on subgroups, they do not say.",
    );
    let abstained = spec.evidence.iter().filter(|evidence| evidence.vote == Vote::Abstain).count();
    if abstained > 0 {
        say(&format!("{abstained} of {} hospitals had too few cases to vote.", spec.evidence.len()));
    }
    if study.is_none() {
        say("The study is gone or was edited since this round, so that its gate is not repeated here.");
    }
    say("No differential privacy: what the weights tell of single training scans is not bounded.");
    text
}

#[cfg(test)]
mod tests {
    use consilium_federation::Digest;
    use serde_json::json;

    use super::*;

    fn study() -> FederatedStudy {
        serde_yaml_ng::from_str(include_str!("../../../examples/hippocampus/study.yaml")).unwrap()
    }

    fn release(study: &FederatedStudy) -> ModelRelease {
        let digest = Digest::of(b"m");
        let spec = serde_json::from_value(json!({
            "study": "research/hippocampus", "studyUID": "u", "round": 5, "model": digest, "specDigest": study.spec.digest(),
            "baseModel": Digest::of(b"b"), "trainerImage": "r.example/t@sha256:0", "config": {"network": {"width": 8}},
            "output": {"kind": "Segmentation", "classes": ["anterior", "posterior"], "shape": [40, 56, 40],
                "spacing": ["1", "1", "1"]},
            "contributors": ["alder", "birch", "cedar"], "dice": "0.8312",
            "evidence": [{"site": "alder", "vote": "Pass", "cases": 12, "dice": ["0.8610", "0.8363"]},
                {"site": "birch", "vote": "Abstain"}],
            "attestation": {"keyID": "0123456789abcdef", "signature": ""},
        }));
        let mut release = ModelRelease::new("hippocampus-r5", spec.unwrap());
        release.metadata.namespace = Some("research".into());
        release
    }

    /// Somebody who was handed the file alone must find here what it is for, whom it was made from, how good it is and where
    /// that ends.
    #[test]
    fn a_card_says_what_the_release_attests() {
        let mut study = study();
        study.metadata.annotations = Some([(PURPOSE.to_owned(), "Volumetry | in <b>epilepsy".to_owned())].into());
        let text = card(&release(&study), Some(&study));
        for part in [
            "# hippocampus-r5",
            "**Purpose**: Volumetry \\| in bepilepsy",
            "round 5",
            "3 hospitals (alder, birch, cedar)",
            "masked; the hub",
            "**0.8312**",
            "asked for 0.80 in all, and 0.70",
            "| alder | Pass | 12 | 0.8610, 0.8363 |",
            "| birch | Abstain | not published | not published |",
            "Segmentation of anterior, posterior",
            "40 × 56 × 40",
            "1 × 1 × 1 mm",
            "RAS",
            "permits no clinical use",
            "1 of 2 hospitals had too few cases",
            "No differential privacy",
            "\"width\": 8",
        ] {
            assert!(text.contains(part), "{part:?} is not in\n{text}");
        }
    }

    /// A study that was edited after the round would put another gate, or other masks, under this model's name.
    #[test]
    fn an_edited_study_says_nothing_of_an_earlier_model() {
        let before = study();
        let release = release(&before);
        let mut after = before;
        after.spec.aggregation.clip_norm = "7".into();
        let text = card(&release, Some(&after));
        assert!(text.contains("was edited since") && !text.contains("The gate asked"), "{text}");
        assert!(text.contains("**Purpose**: not stated"), "{text}");
    }
}
