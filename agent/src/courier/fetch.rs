//! `fetch`: the files that the pod starts from.

use std::path::Path;

use consilium_proto::v1::file_part::Part;
use consilium_proto::v1::{FetchRequest, FilePart};
use tonic::{Status, Streaming};

use super::files::{Incoming, empty, safe};
use super::{CourierError, Pace, Port, PortArgs, wait_or_give_up};

/// Brings the task's files, trying until they are whole. Clears `out/` of what an earlier try left, so that nothing
/// old is taken for a result; `checkpoint/` stays.
pub async fn run(args: &PortArgs, pace: &Pace) -> Result<(), CourierError> {
    let port = Port::new(args)?;
    empty(&args.root.join("out"))?;
    let mut failures = 0;
    loop {
        match once(&port, &args.root).await? {
            Ok(()) => return Ok(()),
            Err(status) => wait_or_give_up("fetch", &status, &mut failures, pace).await?,
        }
    }
}

/// One try: `Ok(Err)` is a failed call, which may pass.
async fn once(port: &Port, root: &Path) -> Result<Result<(), Status>, CourierError> {
    let mut client = port.client.clone();
    let mut parts = match client.fetch(port.request(FetchRequest {})).await {
        Ok(reply) => reply.into_inner(),
        Err(status) => return Ok(Err(status)),
    };
    receive(&mut parts, root).await
}

async fn receive(parts: &mut Streaming<FilePart>, root: &Path) -> Result<Result<(), Status>, CourierError> {
    let mut open: Option<Incoming> = None;
    loop {
        let part = match parts.message().await {
            Ok(part) => part,
            Err(status) => return Ok(Err(status)),
        };
        match part.map(|p| p.part) {
            None => return close(open.take()).map(Ok),
            Some(Some(Part::Start(start))) => {
                close(open.take())?;
                open = Some(Incoming::begin(safe(root, &start.path)?, start.size)?);
            }
            Some(Some(Part::Data(data))) => match &mut open {
                Some(file) => file.write(&data)?,
                None => return Err(CourierError::Protocol("data before a file's name".into())),
            },
            Some(None) => return Err(CourierError::Protocol("an empty part".into())),
        }
    }
}

fn close(file: Option<Incoming>) -> Result<(), CourierError> {
    match file {
        Some(file) if file.is_complete() => file.finish(),
        Some(_) => Err(CourierError::Protocol("a file that ends too early".into())),
        None => Ok(()),
    }
}
