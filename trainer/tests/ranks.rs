//! One training by several processes. What breaks here breaks where a hospital has more than one card: it would train
//! another model than the others, or hold its machine until the deadline.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a helper that fails is a test that fails")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

use consilium_federation::task::{Failure, TaskMetrics};
use serde_json::json;
use tch::{Kind, Tensor};
use tempfile::TempDir;

fn trainer(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_consilium-trainer"));
    command.env("OMP_NUM_THREADS", "1").args(args);
    command
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Five phantoms to train on, and roots of tasks on one base model. Batches of four leave one scan for each epoch's last
/// step. The rate is a usual one: at ten times of it the last digit of a sum grows to a percent of the model in twenty
/// steps, however it came to differ.
struct Setup {
    dir: TempDir,
    epochs: u32,
}

impl Setup {
    fn new(epochs: u32) -> Self {
        let dir = TempDir::new().unwrap();
        let data = dir.path().join("data");
        let args = ["phantom", "--out", text(&data), "--names", "alder", "--cases", "6", "--shape", "16,16,16"];
        assert!(trainer(&args).output().unwrap().status.success());
        let setup = Self { dir, epochs };
        let init = setup.root("init", "Init");
        assert!(trainer(&["run", "--root", text(&init)]).output().unwrap().status.success());
        setup
    }

    fn root(&self, name: &str, kind: &str) -> PathBuf {
        let root = self.dir.path().join(name);
        fs::create_dir_all(&root).unwrap();
        let config = json!({ "network": { "kind": "UNet3D", "width": 2, "levels": 2, "classes": 3 }, "shape": [16, 16, 16],
            "epochsPerRound": self.epochs, "batchSize": 4, "learningRate": "0.001", "augmentation": { "kind": "Standard" } });
        let task = json!({ "study": "research/phantoms", "round": 1, "rounds": 1, "kind": kind, "config": config,
            "seed": 7, "dataSeed": 11 });
        fs::write(root.join("task.json"), task.to_string()).unwrap();
        root
    }

    fn training(&self, name: &str) -> PathBuf {
        let root = self.root(name, "Train");
        fs::copy(self.dir.path().join("init/out/model.safetensors"), root.join("model.safetensors")).unwrap();
        root
    }

    fn start(&self, root: &Path, ranks: &str) -> Child {
        let data = self.dir.path().join("data/alder/train");
        let args = ["run", "--root", text(root), "--data", text(&data), "--checkpoint-every", "2", "--ranks", ranks];
        trainer(&args).spawn().unwrap()
    }

    fn train(&self, name: &str, ranks: &str) -> PathBuf {
        let root = self.training(name);
        assert!(self.start(&root, ranks).wait().unwrap().success());
        root
    }
}

fn losses(root: &Path) -> Vec<f64> {
    let metrics: TaskMetrics = serde_json::from_slice(&fs::read(root.join("out/metrics.json")).unwrap()).unwrap();
    serde_json::from_value(metrics.metrics["epochLosses"].clone()).unwrap()
}

/// How far two models lie apart, as a share of their length.
fn apart(a: &Path, b: &Path) -> f64 {
    let flat = |root: &Path| {
        let mut base = Tensor::read_safetensors(root.join("model.safetensors")).unwrap();
        base.sort_by(|a, b| a.0.cmp(&b.0));
        let update = Tensor::read_safetensors(root.join("out/update.safetensors")).unwrap();
        let sum = |name: &str| update.iter().find(|(known, _)| known == name).map(|(_, t)| t.shallow_clone()).unwrap();
        let all: Vec<Tensor> = base.iter().map(|(name, tensor)| (tensor + sum(name)).reshape([-1])).collect();
        Tensor::cat(&all, 0)
    };
    let (a, b) = (flat(a), flat(b));
    let length = |t: &Tensor| (t * t).sum(Kind::Double).sqrt().double_value(&[]);
    length(&(&a - &b)) / length(&a)
}

/// `batchSize` is that of all ranks, and the loss that of the whole batch: otherwise a hospital with four cards trains
/// something else than one with a single card. Twenty steps, every second of them with fewer scans than ranks.
#[test]
fn two_and_four_ranks_train_what_one_does() {
    let setup = Setup::new(10);
    let one = setup.train("one", "1");
    for ranks in ["2", "4"] {
        let root = setup.train(ranks, ranks);
        assert_eq!(losses(&root).len(), 10);
        for (found, expected) in losses(&root).iter().zip(losses(&one)) {
            assert!((found - expected).abs() <= 1e-5 * expected.abs(), "{ranks} ranks: {found} and {expected}");
        }
        let apart = apart(&one, &root);
        assert!(apart <= 1e-5, "{ranks} ranks: {apart:e} apart");
    }
}

/// The ranks that a process started.
fn ranks_of(parent: &Child) -> Vec<u32> {
    let id = parent.id();
    let listed = fs::read_to_string(format!("/proc/{id}/task/{id}/children")).unwrap_or_default();
    listed.split_whitespace().filter_map(|id| id.parse().ok()).collect()
}

/// Waits for what is promised within ten seconds.
fn soon(what: &str, mut is: impl FnMut() -> bool) {
    let until = Instant::now() + Duration::from_secs(10);
    while !is() {
        assert!(Instant::now() < until, "{what}: not within ten seconds");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn ended(child: &mut Child) -> ExitStatus {
    let mut status = None;
    soon("the end", || {
        status = child.try_wait().unwrap();
        status.is_some()
    });
    status.unwrap()
}

fn kill(signal: &str, id: u32) {
    assert!(Command::new("kill").args([signal, &id.to_string()]).status().unwrap().success());
}

/// A card falls off the bus. The other ranks must not wait for it until the deadline, the end must be one that is tried
/// again, and the next try must go on to the very bits of a training that nothing happened to.
#[test]
fn a_rank_that_is_killed_ends_all_and_the_next_try_goes_on() {
    let setup = Setup::new(60);
    let whole = setup.train("whole", "2");
    let root = setup.training("hurt");
    let mut parent = setup.start(&root, "2");
    while !root.join("checkpoint/state.json").exists() {
        assert!(parent.try_wait().unwrap().is_none(), "ended before its first checkpoint");
        std::thread::sleep(Duration::from_millis(2));
    }
    let ranks = ranks_of(&parent);
    assert_eq!(ranks.len(), 2);
    kill("-KILL", ranks[1]);
    assert_eq!(ended(&mut parent).code(), Some(1), "an end that is tried again");
    soon("no rank is left", || ranks.iter().all(|id| !Path::new(&format!("/proc/{id}")).exists()));
    let failure: Failure = serde_json::from_slice(&fs::read(root.join("out/failure.json")).unwrap()).unwrap();
    assert!(failure.message.contains("rank"), "{}", failure.message);
    assert!(!root.join("out/MANIFEST").exists());
    assert!(setup.start(&root, "2").wait().unwrap().success());
    let bytes = |root: &Path| fs::read(root.join("out/update.safetensors")).unwrap();
    assert!(bytes(&whole) == bytes(&root), "the resumed update differs");
}

/// A node is drained, and the next one has a single card: the task goes on from the checkpoint with one rank.
#[test]
fn told_to_stop_all_ranks_do_and_one_can_go_on() {
    let setup = Setup::new(20);
    let whole = setup.train("whole", "1");
    let root = setup.training("drained");
    let mut parent = setup.start(&root, "2");
    while !root.join("checkpoint/state.json").exists() {
        assert!(parent.try_wait().unwrap().is_none(), "ended before its first checkpoint");
        std::thread::sleep(Duration::from_millis(2));
    }
    kill("-TERM", parent.id());
    assert_eq!(ended(&mut parent).code(), Some(143));
    assert!(setup.start(&root, "1").wait().unwrap().success());
    let metrics: TaskMetrics = serde_json::from_slice(&fs::read(root.join("out/metrics.json")).unwrap()).unwrap();
    assert!(metrics.metrics["resumedAt"].as_u64().unwrap() >= 2);
    let apart = apart(&whole, &root);
    assert!(apart <= 1e-5, "{apart:e} apart");
}
