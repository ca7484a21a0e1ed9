//! The links: a hospital's calls go to the world, which decides what becomes of each.

use consilium_agent::link::{Calls, Connection, Dial, DialError, Identity, IdentityError, Watched};
use consilium_proto::v1::{
    BeginUploadReply, BeginUploadRequest, GetObjectReply, GetObjectRequest, PutChunkReply, PutChunkRequest,
    PutMessageReply, PutMessageRequest, ReportReply, ReportRequest, WatchRequest,
};
use tokio::sync::{mpsc, oneshot};
use tonic::Status;

/// One call.
#[derive(Clone, Debug)]
pub enum Call {
    Report(ReportRequest),
    Object(GetObjectRequest),
    Begin(BeginUploadRequest),
    Chunk(PutChunkRequest),
    Message(PutMessageRequest),
}

/// Its answer.
#[derive(Debug)]
pub enum Answer {
    Report(ReportReply),
    Object(GetObjectReply),
    Begin(BeginUploadReply),
    Chunk(PutChunkReply),
    Message(PutMessageReply),
}

/// A call on its way.
pub struct Packet {
    pub site: usize,
    pub call: Call,
    pub reply: oneshot::Sender<Result<Answer, Status>>,
}

/// A hospital's end of its link.
pub struct Wire {
    pub site: usize,
    pub out: mpsc::UnboundedSender<Packet>,
}

impl Wire {
    async fn ask(&self, call: Call) -> Result<Answer, Status> {
        let (reply, answer) = oneshot::channel();
        let sent = self.out.send(Packet { site: self.site, call, reply });
        sent.map_err(|_| Status::unavailable("the world has ended"))?;
        // One whose agent was killed ends like its connection.
        answer.await.unwrap_or_else(|_| Err(Status::unavailable("the agent was killed")))
    }
}

fn other() -> Status {
    Status::internal("the simulator answered another call")
}

#[tonic::async_trait]
impl Calls for Wire {
    async fn watch(&self, _: WatchRequest) -> Result<Watched, Status> {
        Err(Status::unimplemented("assignments come by themselves here"))
    }

    async fn report(&self, request: ReportRequest) -> Result<ReportReply, Status> {
        let Answer::Report(reply) = self.ask(Call::Report(request)).await? else { return Err(other()) };
        Ok(reply)
    }

    async fn get_object(&self, request: GetObjectRequest) -> Result<GetObjectReply, Status> {
        let Answer::Object(reply) = self.ask(Call::Object(request)).await? else { return Err(other()) };
        Ok(reply)
    }

    async fn begin_upload(&self, request: BeginUploadRequest) -> Result<BeginUploadReply, Status> {
        let Answer::Begin(reply) = self.ask(Call::Begin(request)).await? else { return Err(other()) };
        Ok(reply)
    }

    async fn put_chunk(&self, request: PutChunkRequest) -> Result<PutChunkReply, Status> {
        let Answer::Chunk(reply) = self.ask(Call::Chunk(request)).await? else { return Err(other()) };
        Ok(reply)
    }

    async fn put_message(&self, request: PutMessageRequest) -> Result<PutMessageReply, Status> {
        let Answer::Message(reply) = self.ask(Call::Message(request)).await? else { return Err(other()) };
        Ok(reply)
    }
}

/// Nobody dials here: the world connects.
pub struct NoDial;

fn nobody() -> DialError {
    DialError::Unreachable { target: "the hub".into(), detail: "nobody dials in a simulation".into() }
}

#[tonic::async_trait]
impl Dial for NoDial {
    fn identity(&self) -> Result<Identity, IdentityError> {
        Err(IdentityError::Certificate("there is none in a simulation".into()))
    }

    async fn dial(&self, _: &Identity) -> Result<Connection, DialError> {
        Err(nobody())
    }

    fn explain(&self, _: &Status) -> DialError {
        nobody()
    }
}
