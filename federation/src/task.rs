//! The contract with a trainer container: files under `/consilium` and exit codes.
//!
//! Any container that keeps to it can be a trainer. See DESIGN, "The trainer contract".
//!
//! ```text
//! task.json               TaskFile                 written by fetch
//! model.safetensors       the base model           written by fetch (not for Init)
//! out/update.safetensors  new minus base           Train; for Init the model itself is out/model.safetensors
//! out/metrics.json        TaskMetrics
//! out/predictions/        Evaluate
//! out/score.json          ScoreFile                written by the platform's evaluator, not by the study's image
//! out/progress.json       Progress, replaced atomically
//! out/failure.json        Failure, before an exit with a code other than 0
//! out/MANIFEST            OutManifest, written last
//! checkpoint/             survives a restart of the pod
//! ```
//!
//! **Versions.** A study pins its trainer's image for months, while hub and hospitals are updated under it. So
//! `task.json` says by which version of the contract it is written, and that version holds for the answer too: a trainer
//! writes nothing into `out/` that the version of its task does not have. Whoever reads a file ignores fields that it
//! does not know. A version is added only when an image that ignores the new fields would do something wrong; then the
//! older image refuses the task by its number, in words.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::output::OutputSpec;

/// The version of the contract that this code writes, and the highest that it reads.
pub const CONTRACT: u32 = 1;

/// Exit code of a trainer that must not be tried again: bad config or bad data.
pub const EXIT_INVALID: i32 = 42;

/// Most foreground classes of a score: what a round's status, a release and the wire have room for.
pub const MAX_CLASSES: usize = 8;

/// What a task does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
pub enum TaskKind {
    /// Make the first model; runs at the hub, without data.
    Init,
    /// Train from the base model.
    Train,
    /// Predict on the hospital's evaluation scans; scored by the platform.
    Evaluate,
}

impl TaskKind {
    /// The name as it stands in the API.
    pub const fn as_str(self) -> &'static str {
        match self {
            TaskKind::Init => "Init",
            TaskKind::Train => "Train",
            TaskKind::Evaluate => "Evaluate",
        }
    }
}

/// `task.json`: what the trainer is asked to do.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TaskFile {
    /// Version of the contract; a file without it is of the first.
    #[serde(default = "first")]
    pub contract: u32,
    /// `namespace/name` of the study, for messages.
    pub study: String,
    /// Round number, from 1; 0 for Init.
    pub round: u32,
    /// Rounds that the study plans, for schedules over the whole study.
    pub rounds: u32,
    /// What to do.
    pub kind: TaskKind,
    /// The study's `spec.trainer.config`, untouched; its meaning is the trainer's.
    pub config: serde_json::Value,
    /// Seed of the study: initial weights and everything that must agree between hospitals.
    pub seed: u64,
    /// Seed of this hospital and round for the data order: salted with a secret of the
    /// hospital, so that two rounds on one base are not comparable from outside.
    pub data_seed: u64,
    /// Digest of the base model, for Train and Evaluate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<Digest>,
    /// The study's `spec.output`, if it has one: what predictions are, whatever the config says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output: Option<OutputSpec>,
}

const fn first() -> u32 {
    1
}

impl TaskFile {
    /// The lowest version of the contract that says all of it: an image that a study pinned for months is refused no task
    /// that asks nothing new of it. Whoever adds a field that a trainer must not pass over raises the number here, where
    /// that field is used, and [`CONTRACT`].
    pub fn contract(&self) -> u32 {
        first()
    }

    /// As it is written, with the contract that it needs.
    pub fn written(mut self) -> Self {
        self.contract = self.contract();
        self
    }
}

/// A `task.json` that a trainer cannot work from.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TaskError {
    /// It is of a later version of the contract.
    #[error(
        "task.json is of contract {found}, and this image knows contract {CONTRACT} and none later: use a newer image of the trainer in the study"
    )]
    Later {
        /// Its version.
        found: u64,
    },
    /// It does not parse.
    #[error(
        "task.json: {0}; the agent and the trainer image must agree on the contract, and this image knows contract {CONTRACT}"
    )]
    Invalid(String),
}

impl TaskFile {
    /// Reads `task.json`. The version comes first: what a later one looks like is not for this code to say.
    ///
    /// # Errors
    /// See [`TaskError`].
    pub fn parse(bytes: &[u8]) -> Result<Self, TaskError> {
        #[derive(Deserialize)]
        struct Version {
            #[serde(default)]
            contract: Option<u64>,
        }
        let invalid = |e: serde_json::Error| TaskError::Invalid(e.to_string());
        let found = serde_json::from_slice::<Version>(bytes).map_err(invalid)?.contract.unwrap_or(1);
        if found > u64::from(CONTRACT) {
            return Err(TaskError::Later { found });
        }
        serde_json::from_slice(bytes).map_err(invalid)
    }
}

/// `out/metrics.json` of a Train task.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TaskMetrics {
    /// Number of training examples; the hospital rounds it before it is used as a weight.
    pub examples: u64,
    /// Anything the trainer likes to tell its own hospital: loss by epoch and so on. Never leaves the hospital.
    #[serde(default)]
    pub metrics: serde_json::Value,
}

/// `out/progress.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Progress {
    /// Steps done.
    pub step: u64,
    /// Steps in all.
    pub of: u64,
    /// Seconds left, by the trainer's own estimate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eta_seconds: Option<u64>,
}

/// `out/failure.json`: why the trainer gave up, in words for the hospital.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Failure {
    /// CamelCase, as a condition's reason: `InvalidData`, `InvalidConfig`, `OutOfMemory`, `Internal`.
    pub reason: String,
    /// What a person can act on; names the file, the value and the rule.
    pub message: String,
}

/// `out/score.json`: the platform evaluator's result for one hospital.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ScoreFile {
    /// Evaluation cases that were scored.
    pub cases: u32,
    /// One entry for each foreground class that at least one case has in its truth or its prediction, in label order. A
    /// class that no case has says nothing about the model and is left out.
    pub classes: Vec<ClassScore>,
}

/// Means over the cases of one hospital for one class.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClassScore {
    /// Label value in the mask, from 1.
    pub label: u32,
    /// Mean Dice, 0 to 1.
    pub dice: f64,
    /// Mean 95th percentile Hausdorff distance, mm, over the cases where both surfaces exist.
    pub hd95_mm: Option<f64>,
    /// Mean average symmetric surface distance, mm, likewise.
    pub assd_mm: Option<f64>,
}

impl ScoreFile {
    /// Mean Dice over the foreground classes that were there: the number that gates use. `None` without cases or classes.
    pub fn mean_dice(&self) -> Option<f64> {
        let n = self.classes.len();
        (self.cases > 0 && n > 0).then(|| self.classes.iter().map(|c| c.dice).sum::<f64>() / n as f64)
    }

    /// Refuses what cannot be: labels out of order or beyond [`MAX_CLASSES`], numbers that are not finite or outside
    /// 0..=1, negative distances.
    pub fn check(&self) -> Result<(), String> {
        let mut before = 0;
        for class in &self.classes {
            if class.label <= before || class.label as usize > MAX_CLASSES {
                return Err(format!(
                    "score.json: label {} after {before}: labels must go up, from 1 to {MAX_CLASSES} at most",
                    class.label
                ));
            }
            before = class.label;
            if !(0.0..=1.0).contains(&class.dice) {
                return Err(format!(
                    "score.json: dice of label {} is {}, which is not between 0 and 1",
                    class.label, class.dice
                ));
            }
            let far = [class.hd95_mm, class.assd_mm].into_iter().flatten().find(|d| !d.is_finite() || *d < 0.0);
            if let Some(distance) = far {
                return Err(format!("score.json: a distance of label {} is {distance} mm", class.label));
            }
        }
        Ok(())
    }
}

/// `out/MANIFEST`: what the trainer wrote, written last; without it nothing is delivered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutManifest {
    /// Files under `out/`, by path relative to it.
    pub files: Vec<OutFile>,
}

/// One file of the result.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutFile {
    /// Relative path, with `/`.
    pub path: String,
    /// Bytes.
    pub size: u64,
    /// SHA-256 of the content.
    pub digest: Digest,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::round::published_decimals;

    fn score(labels: &[(u32, f64)]) -> ScoreFile {
        let class = |&(label, dice)| ClassScore { label, dice, hd95_mm: None, assd_mm: None };
        ScoreFile { cases: 10, classes: labels.iter().map(class).collect() }
    }

    /// A trainer's image is pinned for months: the agent's next version adds a field, and no round may end by it. What it
    /// must not pass over comes with a higher number, and then the researcher reads what to do.
    #[test]
    fn a_task_of_a_later_agent_is_worked_on_or_refused_in_words() {
        let mut task = serde_json::json!({"study": "research/hippocampus", "round": 1, "rounds": 5, "kind": "Train",
            "config": {}, "seed": 7, "dataSeed": 8});
        let parse = |task: &serde_json::Value| TaskFile::parse(task.to_string().as_bytes());
        // As agents wrote it before there was a number.
        assert_eq!(parse(&task).unwrap().contract, 1);
        task["contract"] = 1.into();
        task["privacy"] = serde_json::json!({"clip": "1"});
        let read = parse(&task).unwrap();
        assert_eq!((read.contract, read.data_seed, read.output), (1, 8, None));
        task["kind"] = "Distil".into();
        let words = parse(&task).unwrap_err().to_string();
        assert!(words.contains("Distil") && words.contains("contract 1"), "{words}");
        task["contract"] = 2.into();
        let words = parse(&task).unwrap_err().to_string();
        assert!(words.contains("contract 2") && words.contains("newer image"), "{words}");
        assert!(!words.contains("Distil"), "{words}");
    }

    /// What an image wrote for a later contract's sake into a file of this one is passed over, not the end of the round.
    #[test]
    fn fields_of_later_results_are_passed_over() {
        let digest = Digest::of(b"x");
        let manifest =
            serde_json::json!({"files": [{"path": "a", "size": 1, "digest": digest, "kind": "x"}], "tool": "y"});
        assert_eq!(serde_json::from_value::<OutManifest>(manifest).unwrap().files.len(), 1);
        let score = serde_json::json!({"cases": 1, "classes": [{"label": 1, "dice": 0.5, "hd95Mm": null, "assdMm": null, "nsd": 1}], "seconds": 2});
        assert_eq!(serde_json::from_value::<ScoreFile>(score).unwrap().mean_dice(), Some(0.5));
    }

    /// A hospital none of whose patients has one of the study's structures must not close the gate for all.
    #[test]
    fn a_structure_that_nobody_has_counts_nowhere() {
        assert_eq!(score(&[(2, 0.875)]).mean_dice(), Some(0.875));
        assert_eq!(score(&[]).mean_dice(), None);
        // In a status its place stays its label's, or the other structure's figure would be read as its own.
        assert_eq!(published_decimals(&score(&[(2, 0.875)])), ["-", "0.8750"]);
        // It passes for a fraction, and as text for none: no release could be cut with it.
        assert_eq!(published_decimals(&score(&[(1, -0.0)])), ["0.0000"]);
    }

    /// A hospital's numbers become a list in the hub's status: a label of four billion would make one as long.
    #[test]
    fn scores_that_cannot_be_are_refused() {
        assert_eq!(score(&[(1, 0.0), (3, 1.0), (8, 0.5)]).check(), Ok(()));
        for labels in [&[(0, 0.5)][..], &[(9, 0.5)], &[(u32::MAX, 0.5)], &[(2, 0.5), (1, 0.5)], &[(1, 0.5), (1, 0.5)]] {
            assert!(score(labels).check().unwrap_err().contains("labels must go up"), "{labels:?}");
        }
        for dice in [f64::NAN, -0.1, 1.1] {
            assert!(score(&[(1, dice)]).check().unwrap_err().contains("between 0 and 1"), "{dice}");
        }
    }
}
