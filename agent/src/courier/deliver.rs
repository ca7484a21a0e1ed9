//! `deliver`: waits for the trainer's result and hands it over. Ends only when the agent has it on its own disk.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use consilium_federation::task::{OutFile, OutManifest, TaskFile, TaskKind};
use consilium_proto::FILE_PART_BYTES;
use consilium_proto::v1::file_part::Part;
use consilium_proto::v1::{FilePart, FileStart, TrainerStateRequest};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;

use super::files::{manifest, remove, safe, verify};
use super::{CourierError, Pace, Port, PortArgs, wait_or_give_up};

/// The files of a result that leave the pod; predictions never do.
fn wanted(kind: TaskKind) -> &'static [&'static str] {
    match kind {
        TaskKind::Init => &["model.safetensors"],
        TaskKind::Train => &["update.safetensors", "metrics.json"],
        TaskKind::Evaluate => &["score.json"],
    }
}

/// Waits, delivers, cleans up. `FAILED` in the result's `out/` tells the evaluator when none will come.
pub async fn run(args: &PortArgs, pace: &Pace) -> Result<(), CourierError> {
    let port = Port::new(args)?;
    let out = args.results().join("out");
    // Nothing was ever fetched, so nothing was made.
    let Some(kind) = task_kind(args)? else { return Err(CourierError::NoResult) };
    let wanted = wanted(kind);
    let Some(manifest) = wait_for_result(&port, args, wanted, pace).await? else {
        let failed = out.join("FAILED");
        remove(&failed)?;
        fs::create_dir_all(&out)
            .and_then(|()| File::create_new(&failed).map(drop))
            .map_err(|e| CourierError::file("written", &failed, e))?;
        return Err(CourierError::NoResult);
    };
    let files = verified(&out, wanted, manifest)?;
    send(&port, &out, &files, pace).await?;
    args.clear()
}

/// Hands over a whole result that an earlier pod of the task left; false when there is none.
pub(super) async fn leftover(port: &Port, args: &PortArgs, pace: &Pace) -> Result<bool, CourierError> {
    let out = args.results().join("out");
    let Some(kind) = task_kind(args)? else { return Ok(false) };
    let Some(found) = manifest(&out, wanted(kind)) else { return Ok(false) };
    match verified(&out, wanted(kind), found) {
        Err(CourierError::Damaged { .. }) => Ok(false),
        Err(other) => Err(other),
        Ok(files) => {
            send(port, &out, &files, pace).await?;
            args.clear().map(|()| true)
        }
    }
}

/// The entries of the files that leave the pod, each as its manifest says. Without the manifest of a damaged result the
/// agent has it made again, from the checkpoint.
fn verified(out: &Path, wanted: &[&str], manifest: OutManifest) -> Result<Vec<OutFile>, CourierError> {
    let files: Vec<OutFile> = manifest.files.into_iter().filter(|f| wanted.contains(&f.path.as_str())).collect();
    if let Err(damaged) = files.iter().try_for_each(|entry| verify(out, entry)) {
        remove(&out.join("MANIFEST"))?;
        return Err(damaged);
    }
    Ok(files)
}

/// What the task does; `None` when it was never fetched, or is a deployment.
fn task_kind(args: &PortArgs) -> Result<Option<TaskKind>, CourierError> {
    let file = args.results().join("task.json");
    let bytes = match fs::read(&file) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        read => read.map_err(|e| CourierError::file("read", &file, e))?,
    };
    let task = TaskFile::parse(&bytes).map_err(|e| CourierError::Setup(format!("{}: {e}", file.display())))?;
    Ok(Some(task.kind))
}

/// Looks for the manifest, telling the agent how far the trainer is; `None` when the trainer ended without one.
///
/// The manifest is looked for after each answer: a trainer that had ended by then had written it before.
async fn wait_for_result(
    port: &Port,
    args: &PortArgs,
    wanted: &[&str],
    pace: &Pace,
) -> Result<Option<OutManifest>, CourierError> {
    let (out, told) = (args.results().join("out"), args.root.join("out/progress.json"));
    let (mut failures, mut told_at) = (0, None::<Instant>);
    loop {
        if let Some(manifest) = manifest(&out, wanted) {
            return Ok(Some(manifest));
        }
        // A look at the folder costs a system call, the agent's word a request.
        if told_at.is_some_and(|at| at.elapsed() < pace.poll) {
            tokio::time::sleep(pace.look).await;
            continue;
        }
        let progress = Bytes::from(fs::read(&told).unwrap_or_default());
        let mut client = port.client.clone();
        match client.trainer_state(port.request(TrainerStateRequest { progress })).await {
            Ok(reply) if reply.get_ref().failed => return Ok(manifest(&out, wanted)),
            Ok(_) => {
                (failures, told_at) = (0, Some(Instant::now()));
            }
            Err(status) => wait_or_give_up("trainer state", &status, &mut failures, pace).await?,
        }
    }
}

async fn send(port: &Port, out: &Path, files: &[OutFile], pace: &Pace) -> Result<(), CourierError> {
    let mut failures = 0;
    loop {
        let (sender, receiver) = mpsc::channel(4);
        let (folder, list) = (out.to_owned(), files.to_vec());
        let reading = tokio::task::spawn_blocking(move || read_all(&folder, &list, &sender));
        let mut client = port.client.clone();
        let reply = client.deliver(port.request(ReceiverStream::new(receiver))).await;
        // The reader ends by itself: with its last file, or when nobody takes its parts any more.
        let read = reading.await;
        match reply {
            Ok(_) => return Ok(()),
            Err(status) => {
                if let Ok(Err(error)) = read {
                    return Err(error);
                }
                wait_or_give_up("deliver", &status, &mut failures, pace).await?;
            }
        }
    }
}

/// Reads the files into the channel; ends early without an error when the other end is gone.
fn read_all(out: &Path, files: &[OutFile], sender: &mpsc::Sender<FilePart>) -> Result<(), CourierError> {
    for entry in files {
        let path = safe(out, &entry.path)?;
        let start = FileStart { path: entry.path.clone(), size: entry.size };
        if !put(sender, Part::Start(start)) || !read_one(&path, sender)? {
            return Ok(());
        }
    }
    Ok(())
}

fn read_one(path: &PathBuf, sender: &mpsc::Sender<FilePart>) -> Result<bool, CourierError> {
    let fail = |e| CourierError::file("read", path, e);
    let mut file = File::open(path).map_err(fail)?;
    loop {
        let mut buffer = Vec::with_capacity(FILE_PART_BYTES);
        file.by_ref().take(FILE_PART_BYTES as u64).read_to_end(&mut buffer).map_err(fail)?;
        if buffer.is_empty() {
            return Ok(true);
        }
        if !put(sender, Part::Data(buffer.into())) {
            return Ok(false);
        }
    }
}

fn put(sender: &mpsc::Sender<FilePart>, part: Part) -> bool {
    sender.blocking_send(FilePart { part: Some(part) }).is_ok()
}
