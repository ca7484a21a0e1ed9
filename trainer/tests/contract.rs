//! The trainer contract end to end on phantoms, in the library and through the binary. What breaks here breaks for every
//! hospital: a task that does not resume trains twice, one that retries bad data never ends.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a helper that fails is a test that fails")]

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use consilium_federation::digest::Digest;
use consilium_federation::task::{Failure, OutManifest, Progress, ScoreFile, TaskMetrics};
use serde_json::{Value, json};
use tch::Tensor;
use tempfile::TempDir;

const SHAPE: &str = "16,16,16";

fn trainer(args: &[&str]) -> Output {
    // One thread each: several tests run at once, and idle OpenMP threads spin.
    Command::new(env!("CARGO_BIN_EXE_consilium-trainer")).env("OMP_NUM_THREADS", "1").args(args).output().unwrap()
}

fn ok(args: &[&str]) -> Output {
    let output = trainer(args);
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    output
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn read<T: serde::de::DeserializeOwned>(file: PathBuf) -> T {
    serde_json::from_slice(&fs::read(&file).unwrap_or_else(|e| panic!("{}: {e}", file.display()))).unwrap()
}

/// A root with a task of the small network; five phantoms for training and one for evaluation in `hospital`.
struct Setup {
    dir: TempDir,
}

impl Setup {
    fn new() -> Self {
        let dir = TempDir::new().unwrap();
        let data = dir.path().join("data");
        ok(&["phantom", "--out", text(&data), "--names", "alder", "--cases", "6", "--shape", SHAPE, "--seed", "3"]);
        Self { dir }
    }

    fn hospital(&self, part: &str) -> PathBuf {
        self.dir.path().join("data/alder").join(part)
    }

    fn root(&self, name: &str, kind: &str, config: &Value) -> PathBuf {
        let root = self.dir.path().join(name);
        fs::create_dir_all(&root).unwrap();
        let task = json!({ "study": "research/phantoms", "round": 1, "rounds": 2, "kind": kind, "config": config,
            "seed": 7, "dataSeed": 11 });
        fs::write(root.join("task.json"), task.to_string()).unwrap();
        root
    }

    /// A root for `kind` with the model that `init` makes.
    fn root_with_model(&self, name: &str, kind: &str) -> PathBuf {
        self.root_with(name, kind, &config())
    }

    fn root_with(&self, name: &str, kind: &str, config: &Value) -> PathBuf {
        let first = self.root(&format!("{name}-init"), "Init", config);
        ok(&["run", "--root", text(&first)]);
        let root = self.root(name, kind, config);
        fs::copy(first.join("out/model.safetensors"), root.join("model.safetensors")).unwrap();
        root
    }
}

fn config() -> Value {
    json!({ "network": { "kind": "UNet3D", "width": 2, "levels": 2, "classes": 3 }, "shape": [16, 16, 16],
        "epochsPerRound": 2, "batchSize": 2, "learningRate": "0.01" })
}

fn run(root: &Path, data: &Path) -> Output {
    trainer(&["run", "--root", text(root), "--data", text(data), "--threads", "1", "--checkpoint-every", "2"])
}

fn update(root: &Path) -> Vec<(String, Tensor)> {
    Tensor::read_safetensors(root.join("out/update.safetensors")).unwrap()
}

#[test]
fn a_round_leaves_what_deliver_needs() {
    let setup = Setup::new();
    let root = setup.root_with_model("train", "Train");
    let output = run(&root, &setup.hospital("train"));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    // 5 scans in batches of 2 make 3 steps an epoch, 2 epochs.
    let progress: Progress = read(root.join("out/progress.json"));
    assert_eq!((progress.step, progress.of), (6, 6));
    let metrics: TaskMetrics = read(root.join("out/metrics.json"));
    assert_eq!(metrics.examples, 5);
    let manifest: OutManifest = read(root.join("out/MANIFEST"));
    let names: Vec<&str> = manifest.files.iter().map(|file| file.path.as_str()).collect();
    assert_eq!(names, ["metrics.json", "update.safetensors"]);
    for file in &manifest.files {
        let content = fs::read(root.join("out").join(&file.path)).unwrap();
        assert_eq!((file.size, file.digest), (content.len() as u64, Digest::of(&content)));
    }
    assert!(update(&root).iter().any(|(_, tensor)| tensor.abs().max().double_value(&[]) > 0.0));
}

/// A hospital's node is drained in the middle of a round. The resumed task must give the same bits, else nobody can
/// tell a resumed update from a forged one, and the steps before the checkpoint must not be trained again.
#[test]
fn a_stopped_round_resumes_to_the_same_bits() {
    let setup = Setup::new();
    let mut config = config();
    // What is drawn at random must be drawn again alike.
    config["augmentation"] = json!({ "kind": "Appearance" });
    config["proximal"] = json!("0.1");
    config["network"]["input"] = json!({ "scaling": "Local" });
    let whole = setup.root_with("whole", "Train", &config);
    assert!(run(&whole, &setup.hospital("train")).status.success());

    let stopped = setup.root_with("stopped", "Train", &config);
    stop_after_step(&stopped, &setup.hospital("train"), 3);
    assert!(!stopped.join("out/MANIFEST").exists());
    assert!(run(&stopped, &setup.hospital("train")).status.success());
    let metrics: TaskMetrics = read(stopped.join("out/metrics.json"));
    assert_eq!(metrics.metrics["resumedAt"], 3);
    let whole_metrics: TaskMetrics = read(whole.join("out/metrics.json"));
    assert_eq!(metrics.metrics["epochLosses"], whole_metrics.metrics["epochLosses"]);
    let bytes = |root: &Path| fs::read(root.join("out/update.safetensors")).unwrap();
    assert!(bytes(&whole) == bytes(&stopped), "the resumed update differs");
}

/// Runs the task in the library and stops it as SIGTERM would, after a number of steps.
fn stop_after_step(root: &Path, data: &Path, steps: u64) {
    use std::sync::atomic::{AtomicBool, Ordering};

    use consilium_imaging::frame::Frame;
    use consilium_imaging::msd::labelled_cases;
    use consilium_imaging::torch::load_weights;
    use consilium_trainer::TrainerError;
    use consilium_trainer::config::TrainerConfig;
    use consilium_trainer::contract::Root;
    use consilium_trainer::data::Examples;
    use consilium_trainer::engine::{Checkpoints, Engine, Job};

    let files = Root::new(root);
    let (task, digest) = files.task().unwrap();
    let config = TrainerConfig::parse(&task.config).unwrap();
    let examples = Examples::read(&labelled_cases(data).unwrap().cases, &config, &Frame::default()).unwrap();
    tch::set_num_threads(1);
    let mut engine = Engine::new(&config, task.seed, tch::Device::Cpu).unwrap();
    load_weights(engine.store(), &files.model()).unwrap();
    let checkpoints = Checkpoints { folder: files.checkpoint(), every: 2, task: digest };
    let job = Job {
        examples: &examples,
        config: &config,
        data_seed: task.data_seed,
        round: 1,
        rounds: 2,
        checkpoints: Some(checkpoints),
    };
    let stop = AtomicBool::new(false);
    let mut tell = |progress: &Progress, _| {
        stop.store(progress.step == steps, Ordering::Relaxed);
        Ok(())
    };
    let error = engine.run(&job, &stop, &mut tell, &mut consilium_trainer::ranks::Alone).unwrap_err();
    assert!(matches!(error, TrainerError::Terminated { step } if step == steps), "{error}");
    assert_eq!(error.exit_code(), 143);
}

/// A checkpoint that belongs to another task (another round, another base) must not leak into this one.
#[test]
fn another_tasks_checkpoint_is_not_resumed() {
    let setup = Setup::new();
    let root = setup.root_with_model("other", "Train");
    stop_after_step(&root, &setup.hospital("train"), 3);
    let mut task: Value = read(root.join("task.json"));
    task["round"] = json!(2);
    fs::write(root.join("task.json"), task.to_string()).unwrap();
    assert!(run(&root, &setup.hospital("train")).status.success());
    let metrics: TaskMetrics = read(root.join("out/metrics.json"));
    assert_eq!(metrics.metrics["resumedAt"], 0);
}

#[test]
fn evaluation_writes_a_mask_per_scan_and_the_platform_scores_them() {
    let setup = Setup::new();
    let root = setup.root_with_model("evaluate", "Evaluate");
    let output = run(&root, &setup.hospital("eval"));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let labels = setup.hospital("labels");
    ok(&["score", "--root", text(&root), "--labels", text(&labels)]);
    let score: ScoreFile = read(root.join("out/score.json"));
    score.check().unwrap();
    assert_eq!((score.cases, score.classes.len()), (1, 2));
    let manifest: OutManifest = read(root.join("out/MANIFEST"));
    assert!(manifest.files.iter().any(|file| file.path == "score.json"));

    // Beside a trainer that gave up, the evaluator must end and not wait for ever.
    let failed = setup.root("failed", "Evaluate", &config());
    fs::create_dir_all(failed.join("out")).unwrap();
    fs::write(failed.join("out/FAILED"), "").unwrap();
    let output = trainer(&["score", "--root", text(&failed), "--labels", text(&labels), "--wait"]);
    assert_eq!(output.status.code(), Some(1));

    // A perfect prediction is scored 1, so the score speaks of the prediction and not of something else. A fourth class
    // that nobody has changes nothing: scored 0, it alone could close the gate.
    let (out, perfect) = (setup.dir.path().join("perfect.json"), labels.join("labelsTs"));
    for classes in ["3", "4"] {
        let folders = ["--predictions", text(&perfect), "--labels", text(&labels), "--out", text(&out)];
        ok(&[&["score", "--classes", classes][..], &folders].concat());
        let score: ScoreFile = read(out.clone());
        assert_eq!(score.classes.iter().map(|class| class.label).collect::<Vec<_>>(), [1, 2], "of {classes} classes");
        assert_eq!(score.mean_dice(), Some(1.0));
    }

    // A model that keeps silent on a case must not do better by it.
    let folder = root.join("out/predictions");
    for entry in fs::read_dir(&folder).unwrap() {
        fs::remove_file(entry.unwrap().path()).unwrap();
    }
    let output = trainer(&["score", "--root", text(&root), "--labels", text(&labels)]);
    assert_eq!(output.status.code(), Some(42));
    let failure: Failure = read(root.join("out/failure.json"));
    assert_eq!(failure.reason, "InvalidPredictions");
}

/// The study's image shares a folder with the platform's evaluator, which sees the labels. A link to them must not be
/// scored in place of a prediction.
#[test]
fn a_link_to_the_labels_is_no_prediction() {
    let setup = Setup::new();
    let root = setup.root("links", "Evaluate", &config());
    let labels = setup.hospital("labels");
    let refused = || {
        let output = trainer(&["score", "--root", text(&root), "--labels", text(&labels)]);
        assert_eq!(output.status.code(), Some(42), "{}", String::from_utf8_lossy(&output.stderr));
        let failure: Failure = read(root.join("out/failure.json"));
        assert!(failure.reason == "InvalidPredictions" && failure.message.contains("link"), "{failure:?}");
        assert!(!root.join("out/score.json").exists());
    };
    let (predictions, truths) = (root.join("out/predictions"), labels.join("labelsTs"));
    fs::create_dir_all(root.join("out")).unwrap();
    symlink(&truths, &predictions).unwrap();
    refused();
    fs::remove_file(&predictions).unwrap();
    fs::create_dir(&predictions).unwrap();
    for truth in fs::read_dir(&truths).unwrap() {
        let truth = truth.unwrap();
        symlink(truth.path(), predictions.join(truth.file_name())).unwrap();
    }
    refused();
}

/// A study's image must not choose the number of classes, write the score or its MANIFEST, or say that it failed: all of
/// that is taken from a folder that it cannot write to.
#[test]
fn the_evaluator_trusts_nothing_but_predictions_of_the_study() {
    let setup = Setup::new();
    let root = setup.root_with_model("evaluate", "Evaluate");
    assert!(run(&root, &setup.hospital("eval")).status.success());
    let own = setup.root("own", "Evaluate", &config());
    // As a hostile image would leave it.
    fs::write(root.join("task.json"), b"{}").unwrap();
    fs::write(root.join("out/FAILED"), b"").unwrap();
    fs::write(root.join("out/score.json"), b"forged").unwrap();
    let manifest = fs::read(root.join("out/MANIFEST")).unwrap();
    let (labels, details) = (setup.hospital("labels"), setup.dir.path().join("details.json"));
    let args = ["score", "--root", text(&root), "--results", text(&own), "--labels", text(&labels), "--wait"];
    ok(&[&args[..], &["--details", text(&details)]].concat());
    assert_eq!(read::<ScoreFile>(own.join("out/score.json")).classes.len(), 2);
    let files = read::<OutManifest>(own.join("out/MANIFEST")).files;
    assert_eq!(files.iter().map(|file| file.path.as_str()).collect::<Vec<_>>(), ["score.json"]);
    assert_eq!(read::<Value>(details)["cases"].as_array().unwrap().len(), 1);
    // Nothing of the study's is written to: the pod mounts it read-only.
    assert_eq!(fs::read(root.join("out/MANIFEST")).unwrap(), manifest);
    assert_eq!(fs::read(root.join("out/score.json")).unwrap(), b"forged");
}

#[test]
fn broken_data_exits_42_and_names_the_file() {
    let setup = Setup::new();
    let root = setup.root_with_model("broken", "Train");
    let victim = setup.hospital("train/imagesTr/alder_002.nii.gz");
    let content = fs::read(&victim).unwrap();
    fs::write(&victim, &content[..content.len() / 2]).unwrap();
    let output = run(&root, &setup.hospital("train"));
    assert_eq!(output.status.code(), Some(42));
    let failure: Failure = read(root.join("out/failure.json"));
    assert_eq!(failure.reason, "InvalidData");
    for part in ["alder_002.nii.gz", "truncated", "again"] {
        assert!(failure.message.contains(part), "{} lacks {part}", failure.message);
    }
    assert!(String::from_utf8_lossy(&output.stderr).contains("alder_002.nii.gz"));
    assert!(!root.join("out/MANIFEST").exists());
}

#[test]
fn bad_configs_models_and_kinds_exit_42() {
    let setup = Setup::new();
    let data = setup.hospital("train");
    let mut wrong = config();
    wrong["batchSize"] = json!(0);
    let root = setup.root("config", "Train", &wrong);
    assert_eq!(run(&root, &data).status.code(), Some(42));
    assert!(read::<Failure>(root.join("out/failure.json")).message.contains("batchSize"));

    // Each hospital would train on a shape of its own, and the model be served with yet another.
    for kind in ["Init", "Train", "Evaluate"] {
        let mut shapeless = config();
        shapeless.as_object_mut().unwrap().remove("shape");
        let root = setup.root(&format!("shapeless-{kind}"), kind, &shapeless);
        assert_eq!(run(&root, &data).status.code(), Some(42));
        let failure: Failure = read(root.join("out/failure.json"));
        assert!(failure.reason == "InvalidConfig" && failure.message.contains("config.shape"), "{failure:?}");
    }

    let root = setup.root_with_model("model", "Train");
    let mut wider = config();
    wider["network"]["width"] = json!(4);
    let task = fs::read_to_string(root.join("task.json")).unwrap();
    let mut task: Value = serde_json::from_str(&task).unwrap();
    task["config"] = wider;
    fs::write(root.join("task.json"), task.to_string()).unwrap();
    assert_eq!(run(&root, &data).status.code(), Some(42));
    assert_eq!(read::<Failure>(root.join("out/failure.json")).reason, "InvalidModel");

    let root = setup.root_with_model("kind", "Evaluate");
    let output = trainer(&["train", "--root", text(&root), "--data", text(&data)]);
    assert_eq!(output.status.code(), Some(42));
}

/// Without its files a task may come back: the volume was not mounted yet.
#[test]
fn a_missing_task_file_is_transient() {
    let dir = TempDir::new().unwrap();
    assert_eq!(run(dir.path(), dir.path()).status.code(), Some(1));
}

#[test]
fn the_same_seed_makes_the_same_model() {
    let setup = Setup::new();
    let model = |name: &str| fs::read(setup.root_with_model(name, "Train").join("model.safetensors")).unwrap();
    assert!(model("a") == model("b"));
}

#[test]
fn fit_learns_and_reports() {
    let setup = Setup::new();
    let out = setup.dir.path().join("fit");
    let file = setup.dir.path().join("config.json");
    // Without a shape, which fit chooses and tells, for a study must say it.
    let mut shapeless = config();
    shapeless.as_object_mut().unwrap().remove("shape");
    fs::write(&file, shapeless.to_string()).unwrap();
    let data = setup.hospital("train");
    let arguments = ["fit", "--data", text(&data), "--out", text(&out), "--config", text(&file), "--rounds", "3"];
    let fit = || trainer(&[&arguments[..], &["--threads", "2"]].concat());
    // A table that forgot someone, and no table: what a split by person cannot know must be said.
    let table = data.join("cases.csv");
    let mut rows: Vec<String> = fs::read_to_string(&table).unwrap().lines().map(String::from).collect();
    rows.pop();
    fs::write(&table, rows.join("\n")).unwrap();
    let refused = fit();
    assert_eq!(refused.status.code(), Some(42));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("cases.csv: no row for case alder_"));
    fs::remove_file(&table).unwrap();
    let output = fit();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(String::from_utf8_lossy(&output.stderr).contains("warning"), "nothing was said");
    let report: Value = read(out.join("fit.json"));
    let losses: Vec<f64> = serde_json::from_value(report["epochLosses"].clone()).unwrap();
    assert_eq!(losses.len(), 6);
    assert!(losses[5] < losses[0], "{losses:?}");
    assert_eq!(report["summary"]["cases"], 1);
    assert_eq!(report["config"]["shape"], json!([16, 16, 16]));
    assert!(out.join("model.safetensors").exists());
}

/// A researcher takes the look of one hospital's scans into the config, and sees in one command what it brings in the
/// others. Who copies it must be told when it is cut.
#[test]
fn a_reference_goes_into_a_config_that_is_tried_over_hospitals() {
    let setup = Setup::new();
    let (data, out) = (setup.dir.path().join("hospitals"), setup.dir.path().join("out"));
    ok(&["phantom", "--out", text(&data), "--names", "alder,birch", "--cases", "5", "--shape", SHAPE]);
    let printed = ok(&["reference", "--data", text(&data.join("alder/train"))]).stdout;
    let mut config = config();
    config["network"]["input"] = serde_json::from_slice(&printed).unwrap();
    let federate = |config: &Value| {
        let config = config.to_string();
        trainer(&["federate", "--data", text(&data), "--out", text(&out), "--config", &config, "--rounds", "2"])
    };
    let output = federate(&config);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report: Value = read(out.join("federate.json"));
    assert_eq!((report["hospitals"][1]["name"].as_str(), report["all"]["subjects"].as_u64()), (Some("birch"), Some(2)));
    assert_eq!(report["config"]["network"]["input"], config["network"]["input"]);
    assert!(out.join("model.safetensors").exists());

    config["network"]["input"]["reference"] = json!([-1500, -200, 30]);
    let output = federate(&config);
    assert_eq!(output.status.code(), Some(42));
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(message.contains("input.reference has 3 quantiles"), "{message}");
}
