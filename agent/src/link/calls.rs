//! The port to the hub: its calls on one connection, and how a connection is made. What follows the hub, reports to it and
//! takes steps knows no transport; here is the one that there is, gRPC.

use std::sync::Arc;
use std::time::Duration;

use consilium_proto::v1::hub_client::HubClient;
use consilium_proto::v1::{
    Assignment, BeginUploadReply, BeginUploadRequest, GetObjectReply, GetObjectRequest, PutChunkReply, PutChunkRequest,
    PutMessageReply, PutMessageRequest, ReportReply, ReportRequest, WatchRequest,
};
use consilium_proto::{INSTANCE, MAX_MESSAGE_BYTES};
use futures::stream::BoxStream;
use tonic::metadata::MetadataValue;
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;
use tonic::{Request, Status};

use super::{DialError, Identity, IdentityError};
use crate::edge::instance;

/// A call that takes longer has lost its connection.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);

/// A chunk that takes longer has lost its connection. On a slow line, or while the hub takes others' chunks, one takes a while.
const CHUNK_TIMEOUT: Duration = Duration::from_secs(120);

/// Assignments as they come.
pub type Watched = BoxStream<'static, Result<Assignment, Status>>;

/// What the hub answers on one connection. A call that has no answer within its time ends with an error of the transport.
#[tonic::async_trait]
pub trait Calls: Send + Sync {
    /// Follows the desired state.
    async fn watch(&self, request: WatchRequest) -> Result<Watched, Status>;
    /// Says what is the case here.
    async fn report(&self, request: ReportRequest) -> Result<ReportReply, Status>;
    /// Fetches an object.
    async fn get_object(&self, request: GetObjectRequest) -> Result<GetObjectReply, Status>;
    /// Begins or resumes an upload.
    async fn begin_upload(&self, request: BeginUploadRequest) -> Result<BeginUploadReply, Status>;
    /// Sends a chunk.
    async fn put_chunk(&self, request: PutChunkRequest) -> Result<PutChunkReply, Status>;
    /// Sends a message of the masking protocol.
    async fn put_message(&self, request: PutMessageRequest) -> Result<PutMessageReply, Status>;
}

/// A connection; a clone is the same one.
pub type Connection = Arc<dyn Calls>;

/// How connections are made.
#[tonic::async_trait]
pub trait Dial: Send + Sync {
    /// Who this hospital is, read anew.
    fn identity(&self) -> Result<Identity, IdentityError>;
    /// Opens a connection.
    async fn dial(&self, identity: &Identity) -> Result<Connection, DialError>;
    /// What a call that failed means for the people here.
    fn explain(&self, status: &Status) -> DialError;
}

/// Puts this process's name on each call.
#[derive(Clone, Copy)]
struct Named;

impl Interceptor for Named {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        request.metadata_mut().insert(INSTANCE, MetadataValue::from_static(instance()));
        Ok(request)
    }
}

/// The hub by gRPC.
pub(super) struct Grpc(HubClient<InterceptedService<Channel, Named>>);

impl Grpc {
    pub(super) fn new(channel: Channel) -> Self {
        let client = HubClient::with_interceptor(channel, Named);
        Self(client.max_decoding_message_size(MAX_MESSAGE_BYTES).max_encoding_message_size(MAX_MESSAGE_BYTES))
    }
}

fn within<T>(time: Duration, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(time);
    request
}

#[tonic::async_trait]
impl Calls for Grpc {
    async fn watch(&self, request: WatchRequest) -> Result<Watched, Status> {
        let stream = self.0.clone().watch(request).await?.into_inner();
        Ok(Box::pin(stream))
    }

    async fn report(&self, request: ReportRequest) -> Result<ReportReply, Status> {
        Ok(self.0.clone().report(within(CALL_TIMEOUT, request)).await?.into_inner())
    }

    async fn get_object(&self, request: GetObjectRequest) -> Result<GetObjectReply, Status> {
        Ok(self.0.clone().get_object(within(CALL_TIMEOUT, request)).await?.into_inner())
    }

    async fn begin_upload(&self, request: BeginUploadRequest) -> Result<BeginUploadReply, Status> {
        Ok(self.0.clone().begin_upload(within(CALL_TIMEOUT, request)).await?.into_inner())
    }

    async fn put_chunk(&self, request: PutChunkRequest) -> Result<PutChunkReply, Status> {
        Ok(self.0.clone().put_chunk(within(CHUNK_TIMEOUT, request)).await?.into_inner())
    }

    async fn put_message(&self, request: PutMessageRequest) -> Result<PutMessageReply, Status> {
        Ok(self.0.clone().put_message(within(CALL_TIMEOUT, request)).await?.into_inner())
    }
}
