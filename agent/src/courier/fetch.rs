//! `fetch`: the files that the pod starts from.

use std::fs;
use std::path::Path;

use consilium_proto::v1::file_part::Part;
use consilium_proto::v1::{FetchRequest, FilePart};
use tonic::{Status, Streaming};

use super::deliver::leftover;
use super::files::{Incoming, remove, safe};
use super::{CourierError, Pace, Port, PortArgs, wait_or_give_up};

/// The file that says what is to be done.
const TASK: &str = "task.json";

/// Brings the task's files, trying until they are whole. A whole result that an earlier pod left is handed over instead
/// of being made again; anything else in `out/` goes, so that nothing old is taken for a result; `checkpoint/` stays.
///
/// Nothing is touched before the agent has answered: a pod of a try that was replaced is turned away, and what lies there
/// is the newer try's.
pub async fn run(args: &PortArgs, pace: &Pace) -> Result<(), CourierError> {
    let port = Port::new(args)?;
    let mut failures = 0;
    loop {
        match once(&port, args).await? {
            Ok(()) => break,
            Err(status) => wait_or_give_up("fetch", &status, &mut failures, pace).await?,
        }
    }
    if leftover(&port, args, pace).await? {
        return Err(CourierError::Delivered);
    }
    remove(&args.root.join("out"))?;
    remove(&args.results().join("out"))
}

/// One try: `Ok(Err)` is a failed call, which may pass.
async fn once(port: &Port, args: &PortArgs) -> Result<Result<(), Status>, CourierError> {
    let mut client = port.client.clone();
    let mut parts = match client.fetch(port.request(FetchRequest {})).await {
        Ok(reply) => reply.into_inner(),
        Err(status) => return Ok(Err(status)),
    };
    receive(&mut parts, args).await
}

async fn receive(parts: &mut Streaming<FilePart>, args: &PortArgs) -> Result<Result<(), Status>, CourierError> {
    let mut open: Option<(Incoming, bool)> = None;
    loop {
        let part = match parts.message().await {
            Ok(part) => part,
            Err(status) => return Ok(Err(status)),
        };
        match part.map(|p| p.part) {
            None => return close(open.take(), args).map(Ok),
            Some(Some(Part::Start(start))) => {
                close(open.take(), args)?;
                open = Some((Incoming::begin(safe(&args.root, &start.path)?, start.size)?, start.path == TASK));
            }
            Some(Some(Part::Data(data))) => match &mut open {
                Some((file, _)) => file.write(&data)?,
                None => return Err(CourierError::Protocol("data before a file's name".into())),
            },
            Some(None) => return Err(CourierError::Protocol("an empty part".into())),
        }
    }
}

fn close(file: Option<(Incoming, bool)>, args: &PortArgs) -> Result<(), CourierError> {
    match file {
        Some((file, true)) if file.is_complete() => file.finish(|part| take_up(args, part)),
        Some((file, false)) if file.is_complete() => file.finish(|_| Ok(())),
        Some(_) => Err(CourierError::Protocol("a file that ends too early".into())),
        None => Ok(()),
    }
}

/// Before a task is there, what was made for another one goes; the evaluator gets the task too.
fn take_up(args: &PortArgs, part: &Path) -> Result<(), CourierError> {
    let task = fs::read(part).map_err(|e| CourierError::file("read", part, e))?;
    let known = args.results().join(TASK);
    if fs::read(&known).is_ok_and(|before| before == task) {
        return Ok(());
    }
    remove(&args.results().join("out"))?;
    if args.results.is_none() {
        return Ok(());
    }
    let mut file = Incoming::begin(known, task.len() as u64)?;
    file.write(&task)?;
    file.finish(|_| Ok(()))
}
