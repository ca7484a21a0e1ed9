//! Everything that changes an answer, under one digest: what was approved and what evidence is of.

use consilium_federation::Digest;
use consilium_federation::output::OutputSpec;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::plan::{Change, Finding, Scope};
use crate::values::Name;

/// A model together with all that stands between a scan and its answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Pipeline {
    /// Digest of the model.
    pub model: Digest,
    /// What it answers, if its study says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output: Option<OutputSpec>,
    /// When an answer is a finding.
    pub finding: Finding,
    /// Which scans it is asked about.
    pub scope: Scope,
    /// Digest of the image of the worker between PACS and model.
    pub worker_image: Digest,
    /// Digest of the image of the inference server.
    pub inference_image: Digest,
    /// The arithmetic, for example `FP32`.
    pub precision: Name,
    /// The class of devices, for example `cpu` or `Tesla-T4`.
    pub device_class: Name,
}

impl Pipeline {
    /// SHA-256 over a context line and canonical JSON.
    pub fn digest(&self) -> Digest {
        let json = consilium_federation::digest::canonical_json(self);
        Digest::of_parts([&b"consilium/pipeline/v1\n"[..], &json])
    }

    /// Does the evidence of `earlier` count for this one? Only where they differ in nothing but what the plan lets pass
    /// (`preserving`); the caller also sees that the equivalence gate has passed.
    pub fn keeps_evidence_of(&self, earlier: &Self, preserving: &[Change]) -> bool {
        let mut same = earlier.clone();
        for change in preserving {
            match change {
                Change::WorkerImage => same.worker_image = self.worker_image,
                Change::InferenceImage => same.inference_image = self.inference_image,
                Change::Precision => same.precision = self.precision.clone(),
                Change::DeviceClass => same.device_class = self.device_class.clone(),
            }
        }
        same == *self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::example;

    fn pipeline() -> Pipeline {
        let plan = example();
        Pipeline {
            model: Digest::of(b"model"),
            output: None,
            finding: plan.finding,
            scope: plan.scope,
            worker_image: Digest::of(b"worker"),
            inference_image: Digest::of(b"inference"),
            precision: "FP32".parse().unwrap(),
            device_class: "cpu".parse().unwrap(),
        }
    }

    /// Golden: evidence and approvals of today are over this digest.
    #[test]
    fn the_digest_of_a_pipeline_is_for_ever_and_covers_every_part() {
        let golden = pipeline();
        assert_eq!(
            golden.digest().to_string(),
            "sha256:7b2bfa9c1f485cf6a5f91f7a734054f62374c50df39f1113b7017c04d2c24357"
        );
        let changed: [fn(&mut Pipeline); 7] = [
            |p| p.model = Digest::of(b"x"),
            |p| p.finding.min_volume_ml = None,
            |p| p.scope.max_age = None,
            |p| p.worker_image = Digest::of(b"x"),
            |p| p.inference_image = Digest::of(b"x"),
            |p| p.precision = "FP16".parse().unwrap(),
            |p| p.device_class = "Tesla-T4".parse().unwrap(),
        ];
        for change in changed {
            let mut other = pipeline();
            change(&mut other);
            assert_ne!(other.digest(), golden.digest());
        }
    }

    /// A new model must not inherit what the old one showed, whatever a plan says.
    #[test]
    fn evidence_passes_only_over_changes_that_the_plan_names() {
        let (old, every) =
            (pipeline(), [Change::WorkerImage, Change::InferenceImage, Change::Precision, Change::DeviceClass]);
        let mut new = pipeline();
        new.worker_image = Digest::of(b"newer");
        assert!(new.keeps_evidence_of(&old, &[Change::WorkerImage]));
        assert!(!new.keeps_evidence_of(&old, &[Change::Precision]));
        assert!(!new.keeps_evidence_of(&old, &[]));
        new.model = Digest::of(b"another model");
        assert!(!new.keeps_evidence_of(&old, &every));
    }
}
