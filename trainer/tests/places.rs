//! Scans stored as hospitals store them, through the trainer's binary: one patient is one patient in any order of axes,
//! and what a folder's files do not say is refused with the file's name. What breaks here teaches a model mirrored organs.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a helper that fails is a test that fails")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use consilium_federation::task::{ClassScore, ScoreFile};
use consilium_imaging::nifti_file::{read_grid, read_mask, read_volume, write_mask, write_volume};
use consilium_imaging::place::{Axes, Turn};
use consilium_imaging::{Grid, Volume};
use serde_json::{Value, json};
use tempfile::TempDir;

const CONFIG: &str = r#"{"network": {"kind": "UNet3D", "width": 2, "levels": 2, "classes": 3}}"#;

fn trainer(args: &[&str]) -> Output {
    // One thread each: several tests run at once, and idle OpenMP threads spin.
    Command::new(env!("CARGO_BIN_EXE_consilium-trainer")).env("OMP_NUM_THREADS", "1").args(args).output().unwrap()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Six phantoms of one hospital: five to train on, one to evaluate.
struct Hospital(TempDir);

impl Hospital {
    fn new() -> Self {
        let dir = TempDir::new().unwrap();
        let args = ["phantom", "--out", text(dir.path()), "--names", "alder", "--cases", "6", "--shape", "18,14,11"];
        assert!(trainer(&args).status.success());
        Self(dir)
    }

    fn part(&self, part: &str) -> PathBuf {
        self.0.path().join("alder").join(part)
    }

    fn files(&self, part: &str) -> Vec<PathBuf> {
        let mut all: Vec<PathBuf> = fs::read_dir(self.part(part)).unwrap().map(|e| e.unwrap().path()).collect();
        all.sort();
        all
    }

    /// Stores every scan of a folder in another order of axes, with a true header.
    fn store_as(&self, part: &str, axes: Axes) {
        for file in self.files(part) {
            let turn = Turn::between(read_grid(&file).unwrap().axes().unwrap(), axes);
            if part.contains("labels") {
                write_mask(&file, &turn.mask(read_mask(&file, 3).unwrap())).unwrap();
            } else {
                write_volume(&file, &turn.volume(read_volume(&file).unwrap())).unwrap();
            }
        }
    }

    fn fit(&self, config: &str) -> (Output, PathBuf) {
        let out = self.0.path().join("fit");
        let data = self.part("train");
        let args = ["fit", "--data", text(&data), "--out", text(&out), "--config", config, "--rounds", "1"];
        (trainer(&[&args[..], &["--hold-back", "2", "--threads", "1"]].concat()), out)
    }

    /// A root with a task of a study with this `spec.output` (or none) and, unless it makes the first one, a model.
    fn root(&self, name: &str, kind: &str, output: &Value) -> PathBuf {
        let root = self.0.path().join(name);
        fs::create_dir_all(&root).unwrap();
        let mut config: Value = serde_json::from_str(CONFIG).unwrap();
        config["shape"] = json!([20, 16, 12]);
        let mut task = json!({ "study": "research/phantoms", "round": 1, "rounds": 2, "kind": kind, "config": config,
            "seed": 7, "dataSeed": 11 });
        if !output.is_null() {
            task["output"] = output.clone();
        }
        fs::write(root.join("task.json"), task.to_string()).unwrap();
        if kind != "Init" {
            let first = self.root(&format!("{name}-init"), "Init", output);
            assert!(trainer(&["run", "--root", text(&first)]).status.success());
            fs::copy(first.join("out/model.safetensors"), root.join("model.safetensors")).unwrap();
        }
        root
    }

    fn run(&self, name: &str, kind: &str, data: &str) -> (Output, PathBuf) {
        self.run_with(name, kind, data, &Value::Null)
    }

    fn run_with(&self, name: &str, kind: &str, data: &str, output: &Value) -> (Output, PathBuf) {
        let root = self.root(name, kind, output);
        let output = trainer(&["run", "--root", text(&root), "--data", text(&self.part(data)), "--threads", "1"]);
        (output, root)
    }
}

/// Two hospitals with the same patients, stored in different orders, must train the same model, bit by bit: each of them
/// only sees its own scans, so that nothing but the header can make them agree.
#[test]
fn an_update_does_not_depend_on_the_order_of_storage() {
    let hospital = Hospital::new();
    let mut updates = Vec::new();
    for axes in ["RAS", "LPI", "SRA"] {
        for part in ["train/imagesTr", "train/labelsTr"] {
            hospital.store_as(part, axes.parse().unwrap());
        }
        let (output, root) = hospital.run(axes, "Train", "train");
        assert!(output.status.success(), "{axes}: {}", said(&output));
        updates.push(fs::read(root.join("out/update.safetensors")).unwrap());
    }
    assert!(updates.iter().all(|update| *update == updates[0]));

    // A study that names another order is trained in that one, whatever is stored; one that names a spacing takes no
    // scan of another.
    let mut output = json!({ "kind": "Segmentation", "classes": ["head", "tail"], "orientation": "LPI" });
    let (ended, root) = hospital.run_with("named", "Train", "train", &output);
    assert!(ended.status.success(), "{}", said(&ended));
    let named = fs::read(root.join("out/update.safetensors")).unwrap();
    assert!(!updates.contains(&named));
    output["spacing"] = json!(["9", "9", "9"]);
    for (kind, data) in [("Train", "train"), ("Evaluate", "eval")] {
        let (ended, _) = hospital.run_with(&format!("spaced-{kind}"), kind, data, &output);
        assert_eq!(ended.status.code(), Some(42));
        assert!(said(&ended).contains("[9.0, 9.0, 9.0] mm is asked for"), "{}", said(&ended));
    }
}

/// Predictions lie on the scan as the hospital stores it, and the evaluator compares them where they lie: the score of a
/// model is the same in every order of storage, also where labels are stored in another one than scans.
#[test]
fn a_score_does_not_depend_on_the_order_of_storage() {
    let hospital = Hospital::new();
    let mut scores = Vec::new();
    for (images, labels) in [("RAS", "RAS"), ("LAS", "LAS"), ("PIR", "RAS"), ("RAS", "ILA")] {
        hospital.store_as("eval/imagesTs", images.parse().unwrap());
        hospital.store_as("labels/labelsTs", labels.parse().unwrap());
        let (output, root) = hospital.run(&format!("{images}-{labels}"), "Evaluate", "eval");
        assert!(output.status.success(), "{}", said(&output));
        let stored = read_grid(&hospital.files("eval/imagesTs")[0]).unwrap();
        let prediction = fs::read_dir(root.join("out/predictions")).unwrap().next().unwrap().unwrap().path();
        assert_eq!(read_grid(&prediction).unwrap(), stored, "a mask lies on its scan");
        let output = trainer(&["score", "--root", text(&root), "--labels", text(&hospital.part("labels"))]);
        assert!(output.status.success(), "{}", said(&output));
        scores.push(serde_json::from_slice::<ScoreFile>(&fs::read(root.join("out/score.json")).unwrap()).unwrap());
    }
    // Distances are sums in the order of the voxels: the last digits may differ.
    let numbers = |score: &ScoreFile| -> Vec<f64> {
        let class = |class: &ClassScore| [class.dice, class.hd95_mm.unwrap(), class.assd_mm.unwrap()];
        score.classes.iter().flat_map(class).collect()
    };
    for score in &scores[1..] {
        let same = numbers(score).iter().zip(numbers(&scores[0])).all(|(a, b)| (a - b).abs() < 1e-9);
        assert!(same && score.cases == 1, "{score:?}, not {:?}", scores[0]);
    }
}

/// One scan of another order among many is named and used; one that does not say its own is refused, and with it alone
/// the others are not blamed.
#[test]
fn fit_says_what_it_turned_and_refuses_what_it_cannot_turn() {
    let hospital = Hospital::new();
    let scans = hospital.files("train/imagesTr");
    let turn = Turn::between(Axes::RAS, "LAS".parse().unwrap());
    let first = read_volume(&scans[0]).unwrap();
    write_volume(&scans[0], &turn.volume(first.clone())).unwrap();
    let (output, out) = hospital.fit(CONFIG);
    assert!(output.status.success(), "{}", said(&output));
    let warning = said(&output);
    let name = |file: &Path| file.file_name().unwrap().to_str().unwrap().to_owned();
    assert!(warning.contains("stored as LAS, the others as RAS") && warning.contains(&name(&scans[0])), "{warning}");
    assert!(scans[1..].iter().all(|scan| !warning.contains(&name(scan))), "{warning}");
    let report: Value = serde_json::from_slice(&fs::read(out.join("fit.json")).unwrap()).unwrap();
    assert_eq!((&report["orientation"], &report["config"]["shape"]), (&json!("RAS"), &json!([20, 16, 12])));

    let mask = hospital.files("train/labelsTr")[0].clone();
    let unplaced = |file: &Path, grid: &Grid| {
        let grid = Grid { placed: false, ..Grid::axis_aligned(grid.shape, grid.spacing) };
        if file == mask {
            let labels = read_mask(file, 3).unwrap().labels;
            write_mask(file, &consilium_imaging::Mask { grid, labels }).unwrap();
        } else {
            write_volume(file, &Volume { grid, voxels: first.voxels.clone() }).unwrap();
        }
    };
    unplaced(&scans[0], &first.grid);
    unplaced(&mask, &first.grid);
    let (output, _) = hospital.fit(CONFIG);
    assert_eq!(output.status.code(), Some(42));
    let message = said(&output);
    assert!(message.contains(&format!("{}: orientation unknown", name(&scans[0]))), "{message}");
    assert!(!message.contains(&name(&scans[1])), "{message}");
}

/// Trained on masks that the cut had emptied, a network learns that there is nothing.
#[test]
fn a_shape_that_cuts_labels_off_is_refused_with_the_one_that_does_not() {
    let hospital = Hospital::new();
    let small = CONFIG.replace("}}", r#"}, "shape": [4, 8, 8]}"#);
    let (output, _) = hospital.fit(&small);
    assert_eq!(output.status.code(), Some(42));
    let message = said(&output);
    assert!(message.contains("labelled voxels are lost"), "{message}");
    let shape = message.split("set shape to ").nth(1).unwrap().split(", which").next().unwrap();
    let (output, _) = hospital.fit(&CONFIG.replace("}}", &format!(r#"}}, "shape": {shape}}}"#)));
    assert!(output.status.success(), "{shape}: {}", said(&output));
}

/// nnU-Net's split is taken, unless it has a person on both sides.
#[test]
fn fit_takes_the_split_of_the_folder() {
    let hospital = Hospital::new();
    let names: Vec<String> = hospital
        .files("train/labelsTr")
        .iter()
        .map(|file| file.file_name().unwrap().to_str().unwrap().trim_end_matches(".nii.gz").to_owned())
        .collect();
    let split = hospital.part("train").join("splits_final.json");
    fs::write(&split, json!([{ "train": names[..4], "val": names[4..] }]).to_string()).unwrap();
    let (output, out) = hospital.fit(CONFIG);
    assert!(output.status.success(), "{}", said(&output));
    let report: Value = serde_json::from_slice(&fs::read(out.join("fit.json")).unwrap()).unwrap();
    assert_eq!((&report["trainCases"], &report["cases"][0]["case"]), (&json!(4), &json!(names[4])));
    let table: String = names.iter().map(|name| format!("{name};1\n")).collect();
    fs::write(hospital.part("train/cases.csv"), format!("case;subject\n{table}")).unwrap();
    let (output, _) = hospital.fit(CONFIG);
    assert_eq!(output.status.code(), Some(42));
    assert!(said(&output).contains("person 1 in train and in val"), "{}", said(&output));
}
