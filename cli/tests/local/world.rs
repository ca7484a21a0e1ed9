//! A folder with a study, hospitals without scans and a trainer that can be held; and what is seen from outside.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::trainer;

const SITES: [&str; 3] = ["alder", "birch", "cedar"];
/// Longest that anything here may take, on a machine that builds something else meanwhile.
const PATIENCE: Duration = Duration::from_secs(180);

pub struct World(tempfile::TempDir);

/// The command, running; killed when this goes.
pub struct Run(Child);

impl Run {
    /// As kill -9 does.
    pub fn kill(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl World {
    pub fn new() -> Self {
        Self::of(&json!({"kind": "FedAvg"}))
    }

    /// With this rule at the hub.
    pub fn of(strategy: &Value) -> Self {
        let world = Self(tempfile::tempdir().unwrap());
        for folder in SITES.map(|site| format!("scans/{site}/train")).iter().map(String::as_str).chain(["hold", "runs"])
        {
            fs::create_dir_all(world.path(folder)).unwrap();
        }
        let study = json!({
            "apiVersion": "consilium.health/v1alpha1", "kind": "FederatedStudy",
            "metadata": {"name": "halves", "namespace": "research"},
            "spec": {
                "sites": SITES.map(|site| json!({"name": site})),
                "trainer": {"image": format!("registry.example/any@sha256:{}", "1".repeat(64)), "gpus": 0},
                "initialModel": {"seed": 7},
                "aggregation": {"strategy": strategy, "secure": {"minContributors": 3, "colluders": 0}, "clipNorm": "30"},
                "rounds": {"max": 2, "quorum": 3, "deadline": "1h", "stepLimit": "30m", "historyLimit": 5,
                    "straggler": {"grace": "10m", "maxMissed": 2}},
            }
        });
        fs::write(world.path("study.yaml"), serde_yaml_ng::to_string(&study).unwrap()).unwrap();
        world
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub fn out(&self) -> PathBuf {
        self.path("out")
    }

    fn command(&self) -> Command {
        let trainer = self.trainer();
        let mut command = Command::new(env!("CARGO_BIN_EXE_consilium"));
        command.arg("local").arg(self.path("study.yaml")).arg("--shards").arg(self.path("scans"));
        command.arg("--out").arg(self.out()).args(["--trainer", &trainer, "--json"]).env_remove(trainer::MARK);
        command
    }

    /// Runs it to its end; what it told.
    pub fn run(&self) -> Vec<Value> {
        let run = self.command().stderr(Stdio::inherit()).output().unwrap();
        let text = String::from_utf8(run.stdout).unwrap();
        assert!(run.status.success(), "{}\n{text}", run.status);
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// Runs it with one argument replaced, and expects a refusal; what it said.
    pub fn refused(&self, words: &[&str]) -> String {
        let study = self.path("study.yaml");
        let (scans, others) = (self.path("scans"), self.path("others"));
        fs::create_dir_all(&others).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_consilium"));
        command.arg("local").arg(study).arg("--out").arg(self.out()).arg("--json").env_remove(trainer::MARK);
        let shards = if words.contains(&"--shards") { others } else { scans };
        let other = words.iter().skip_while(|word| **word != "--trainer").nth(1);
        command
            .arg("--shards")
            .arg(shards)
            .arg("--trainer")
            .arg(other.map_or_else(|| self.trainer(), |t| (*t).to_owned()));
        let run = command.output().unwrap();
        assert!(!run.status.success());
        String::from_utf8(run.stderr).unwrap()
    }

    fn trainer(&self) -> String {
        format!("env {}={} {}", trainer::MARK, self.0.path().display(), std::env::current_exe().unwrap().display())
    }

    pub fn start(&self) -> Run {
        Run(self.command().stdout(Stdio::null()).spawn().unwrap())
    }

    /// Has these hospitals' trainers wait, and those of all others go on.
    pub fn hold(&self, sites: &[&str]) {
        for site in SITES {
            let file = self.path("hold").join(site);
            if sites.contains(&site) {
                fs::write(file, "").unwrap();
            } else if file.exists() {
                fs::remove_file(file).unwrap();
            }
        }
    }

    /// How often each hospital's trainer was started to train.
    pub fn trainings(&self) -> BTreeMap<String, u64> {
        let runs = fs::read_dir(self.path("runs")).unwrap().map(|entry| entry.unwrap());
        runs.map(|site| {
            let count = fs::read_dir(site.path()).unwrap().count() as u64;
            (site.file_name().to_string_lossy().into_owned(), count)
        })
        .collect()
    }

    /// The round's file, empty where there is none.
    pub fn round(&self, number: u32) -> String {
        fs::read_to_string(self.out().join(format!("rounds/{number:05}.json"))).unwrap_or_default()
    }

    /// Whether a hospital's update of the first round is on its volume.
    pub fn is_ready(&self, site: &str) -> bool {
        let task = self.out().join(format!("hospitals/{site}/tasks/halves-r1-train.json"));
        fs::read_to_string(task).is_ok_and(|text| text.contains("\"Ready\""))
    }

    /// All processes of this world, with their words.
    pub fn processes(&self) -> Vec<(i32, Vec<String>)> {
        let place = self.0.path().to_string_lossy().into_owned();
        let processes = fs::read_dir("/proc").unwrap().filter_map(|entry| {
            let entry = entry.ok()?;
            let pid = entry.file_name().to_string_lossy().parse().ok()?;
            let line = fs::read_to_string(entry.path().join("cmdline")).ok()?;
            line.contains(&place).then(|| (pid, line.split('\0').map(str::to_owned).collect()))
        });
        processes.collect()
    }

    /// The processes of a hospital.
    pub fn hospitals(&self, site: &str) -> Vec<i32> {
        let folder = self.out().join("hospitals").join(site).to_string_lossy().into_owned();
        let is_it = |words: &[String]| words.get(1..3) == Some(&["local-hospital".to_owned(), folder.clone()][..]);
        self.processes().into_iter().filter(|(_, words)| is_it(words)).map(|(pid, _)| pid).collect()
    }

    pub fn hospital(&self, site: &str) -> i32 {
        self.hospitals(site)[0]
    }

    pub fn kill(&self, pid: i32) {
        let killed = Command::new("kill").args(["-9", &pid.to_string()]).status().unwrap();
        assert!(killed.success());
    }

    pub fn until(&self, what: &str, is: impl Fn(&Self) -> bool) {
        let begun = Instant::now();
        while !is(self) {
            assert!(begun.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}; see {}", self.out().display());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The parameters of the model that the study came to.
    pub fn model(&self) -> Vec<f32> {
        let file = fs::read(self.out().join("model.safetensors")).unwrap();
        let header = u64::from_le_bytes(*file.first_chunk().unwrap()) as usize;
        file[8 + header..].chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
    }
}
