//! What comes from a pod, taken as hostile: only the expected files, no more bytes than the schema allows, no waiting
//! for ever.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use consilium_federation::model::ModelManifest;
use consilium_federation::task::TaskKind;
use consilium_proto::v1::FilePart;
use consilium_proto::v1::file_part::Part;
use tokio::fs::File;
use tokio::io::AsyncWriteExt as _;
use tokio::time::timeout;
use tokio_stream::{Stream, StreamExt as _};
use tonic::Status;

/// Longest silence within a delivery.
const SILENCE: Duration = Duration::from_secs(60);
/// Room for a `safetensors` header written by another library than ours.
const HEADER_BYTES: u64 = 16 << 20;
/// Room for tensors of an update that are no parameters.
const LOCAL_BYTES: u64 = 64 << 20;
/// Most bytes of `metrics.json`.
const METRICS_BYTES: u64 = 16 << 20;
/// Most bytes of `score.json`.
const SCORE_BYTES: u64 = 64 << 10;

/// A file that a result consists of, and how large it may be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Expected {
    pub(super) path: &'static str,
    pub(super) limit: u64,
}

/// The files of a result.
pub(super) fn expected(kind: TaskKind, model: &ModelManifest) -> Vec<Expected> {
    match kind {
        TaskKind::Evaluate => vec![Expected { path: "score.json", limit: SCORE_BYTES }],
        TaskKind::Train | TaskKind::Init => vec![
            // In double precision at most; a counter or an index table stays here, but lies in the file.
            Expected { path: "update.safetensors", limit: HEADER_BYTES + LOCAL_BYTES + model.elements() * 8 },
            Expected { path: "metrics.json", limit: METRICS_BYTES },
        ],
    }
}

/// Removes what earlier deliveries left.
pub(super) fn sweep(inbox: &Path) -> std::io::Result<()> {
    match fs::remove_dir_all(inbox) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

/// A folder for one delivery; removed when it is dropped.
pub(super) struct Inbox(PathBuf);

impl Inbox {
    /// An empty folder.
    pub(super) fn new(path: PathBuf) -> Result<Self, Status> {
        sweep(&path).and_then(|()| fs::create_dir_all(&path)).map_err(|e| storage(&e))?;
        Ok(Self(path))
    }

    pub(super) fn file(&self, path: &str) -> PathBuf {
        self.0.join(path)
    }
}

impl Drop for Inbox {
    fn drop(&mut self) {
        // What cannot be removed now is swept at the next start.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Takes a whole delivery into the inbox.
///
/// # Errors
/// `InvalidArgument` for anything but the expected files, whole and within their limits; `Unavailable` when the stream
/// broke off or this side's disk failed: the courier sends again.
pub(super) async fn receive<S>(mut parts: S, expected: &[Expected], inbox: &Inbox) -> Result<(), Status>
where
    S: Stream<Item = Result<FilePart, Status>> + Unpin,
{
    let mut missing = expected.to_vec();
    let mut open: Option<Open> = None;
    loop {
        let part = timeout(SILENCE, parts.next())
            .await
            .map_err(|_| Status::unavailable("nothing came for a minute; deliver again"))?;
        match part {
            Some(Err(status)) => {
                return Err(Status::unavailable(format!("the delivery broke off: {}", status.message())));
            }
            Some(Ok(FilePart { part: Some(Part::Start(start)) })) => {
                close(open.take()).await?;
                let at = missing.iter().position(|e| e.path == start.path);
                let entry = at.map(|at| missing.swap_remove(at)).ok_or_else(|| unexpected(&start.path, expected))?;
                open = Some(Open::new(inbox, &entry, start.size).await?);
            }
            Some(Ok(FilePart { part: Some(Part::Data(data)) })) => {
                let file = open.as_mut().ok_or_else(|| Status::invalid_argument("data came before a file's name"))?;
                file.write(&data).await?;
            }
            Some(Ok(FilePart { part: None })) => return Err(Status::invalid_argument("an empty part")),
            None => {
                close(open.take()).await?;
                break;
            }
        }
    }
    match missing.first() {
        Some(entry) => Err(Status::invalid_argument(format!("{} was not delivered", entry.path))),
        None => Ok(()),
    }
}

fn unexpected(path: &str, expected: &[Expected]) -> Status {
    let path: String = path.chars().take(100).collect();
    let names: Vec<_> = expected.iter().map(|e| e.path).collect();
    Status::invalid_argument(format!(
        "{path:?} is not expected here; this task delivers {} once each",
        names.join(", ")
    ))
}

/// A file that is being received.
struct Open {
    path: &'static str,
    file: File,
    missing: u64,
}

impl Open {
    async fn new(inbox: &Inbox, entry: &Expected, size: u64) -> Result<Self, Status> {
        if size > entry.limit {
            let (path, limit) = (entry.path, entry.limit);
            return Err(Status::invalid_argument(format!(
                "{path} has {size} bytes; at most {limit} can belong to this model"
            )));
        }
        let file = File::create(inbox.file(entry.path)).await.map_err(|e| storage(&e))?;
        Ok(Self { path: entry.path, file, missing: size })
    }

    async fn write(&mut self, data: &[u8]) -> Result<(), Status> {
        let left = self.missing.checked_sub(data.len() as u64);
        self.missing =
            left.ok_or_else(|| Status::invalid_argument(format!("{} is longer than announced", self.path)))?;
        self.file.write_all(data).await.map_err(|e| storage(&e))
    }
}

async fn close(open: Option<Open>) -> Result<(), Status> {
    let Some(mut open) = open else { return Ok(()) };
    if open.missing > 0 {
        return Err(Status::invalid_argument(format!("{} ends {} bytes early", open.path, open.missing)));
    }
    open.file.flush().await.map_err(|e| storage(&e))
}

/// This side's disk is at fault.
pub(super) fn storage(error: &std::io::Error) -> Status {
    Status::unavailable(format!("the agent's volume: {error}; deliver again"))
}
