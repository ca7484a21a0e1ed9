//! The first model: the trainer's own `Init`, taken into the store.

use std::path::{Path, PathBuf};
use std::process::ExitStatus;

use consilium_federation::Digest;
use consilium_federation::task::{EXIT_INVALID, Failure as Reported};
use consilium_operator::controllers::init::decide::{Try, TryState};
use consilium_operator::init_port::{Intake, init_task};
use consilium_operator::store::BlobStore;
use tokio::fs::File;
use tokio::io::AsyncReadExt as _;
use tokio::process::Child;

use super::setup::Plan;
use super::{Failure, Result, files, process};

/// The Init task of a study.
pub(super) struct First {
    folder: PathBuf,
    /// What came of it, written down.
    pub(super) delivered: Option<Digest>,
    /// Its tries in this run.
    pub(super) tries: Vec<Try>,
    running: Option<Child>,
}

impl First {
    pub(super) fn open(plan: &Plan) -> Result<Self> {
        let folder = plan.out.join("init");
        let delivered = files::get(&folder.join("model.json"))?;
        Ok(Self { folder, delivered, tries: Vec::new(), running: None })
    }

    /// Starts a try.
    pub(super) fn start(&mut self, plan: &Plan, number: u32) -> Result<()> {
        let (root, data) = (self.folder.join("consilium"), self.folder.join("data"));
        files::remove(&root.join("out"))?;
        files::folder(&data)?;
        files::put(&root.join("task.json"), &init_task(&plan.key, &plan.study.spec))?;
        let rest = ["run", "--root", &root.to_string_lossy(), "--data", &data.to_string_lossy()].map(String::from);
        let words = [plan.trainer.clone(), rest.to_vec()].concat();
        let file = self.folder.join(format!("{number}.log"));
        let log = std::fs::File::create(&file).map_err(Failure::file(&file))?;
        let errors = log.try_clone().map_err(Failure::file(&file))?;
        let child = process::command(&words)?.stdout(log).stderr(errors).spawn();
        self.running = Some(child.map_err(Failure::file(Path::new(&words[0])))?);
        self.tries.push(Try { number, job: format!("init-{number}"), state: TryState::Active });
        Ok(())
    }

    /// Waits for what runs, for ever if nothing does. It may be given up and asked again.
    pub(super) async fn ended(&mut self) -> Result<ExitStatus> {
        let Some(child) = &mut self.running else { return std::future::pending().await };
        child.wait().await.map_err(Failure::file(&self.folder))
    }

    /// Takes the result of what ran.
    pub(super) async fn take(&mut self, store: &BlobStore, status: ExitStatus) -> Result<()> {
        self.running = None;
        let out = self.folder.join("consilium/out");
        let state = if status.success() {
            let model = store_model(store, &out.join("model.safetensors")).await?;
            files::put(&self.folder.join("model.json"), &model)?;
            self.delivered = Some(model);
            TryState::Succeeded
        } else {
            let said: Option<Reported> = files::get(&out.join("failure.json")).unwrap_or_default();
            let message = said.map_or_else(
                || format!("the trainer ended with {status}; see the logs in {}", self.folder.display()),
                |said| said.message,
            );
            TryState::Failed { invalid: status.code() == Some(EXIT_INVALID), message }
        };
        if let Some(last) = self.tries.last_mut() {
            last.state = state;
        }
        Ok(())
    }
}

async fn store_model(store: &BlobStore, path: &Path) -> Result<Digest> {
    let failed =
        |error: consilium_operator::init_port::IntakeError| Failure::Part(format!("{}: {error}", path.display()));
    let mut file = File::open(path).await.map_err(Failure::file(path))?;
    let size = file.metadata().await.map_err(Failure::file(path))?.len();
    let mut intake = Intake::begin(store, size).map_err(failed)?;
    let mut buffer = vec![0; 1 << 20];
    loop {
        let read = file.read(&mut buffer).await.map_err(Failure::file(path))?;
        if read == 0 {
            return intake.finish().await.map_err(failed);
        }
        intake.push(&buffer[..read]).await.map_err(failed)?;
    }
}
