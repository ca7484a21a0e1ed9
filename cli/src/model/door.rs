//! The hub's door for models, as a client: plain HTTP to a forwarded port.

use std::io;
use std::path::Path;
use std::time::Duration;

use consilium_crds::ModelRelease;
use consilium_federation::Digest;
use http_body_util::{BodyExt as _, Full, Limited, StreamBody, combinators::UnsyncBoxBody};
use hyper::body::{Bytes, Frame, Incoming};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use kube::ResourceExt as _;
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;

/// Bytes of a file that are read at a time.
const PIECE: usize = 256 << 10;
/// The longest sentence that is shown of an answer.
const MAX_WORDS: usize = 4 << 10;
/// Whoever forwards the port answers within so long, or nobody does.
const PATIENCE: Duration = Duration::from_secs(30);

/// Why the door did not give.
#[derive(Debug, thiserror::Error)]
pub enum DoorError {
    /// Nobody there.
    #[error("the hub's door for models at {address} does not answer: {cause}")]
    Away {
        /// Where.
        address: String,
        /// Why.
        cause: String,
    },
    /// It said no.
    #[error("the hub refuses ({status}): {words}")]
    Refused {
        /// The answer's status.
        status: StatusCode,
        /// What it said.
        words: String,
    },
    /// Its answer is not one.
    #[error("the hub's answer cannot be read: {0}; are plugin and hub of about one version?")]
    Answer(String),
    /// The file that is pushed.
    #[error("{path}: {cause}; check the path")]
    File {
        /// Which.
        path: String,
        /// Why.
        cause: io::Error,
    },
}

/// The door and what opens it.
pub struct Door {
    /// Host and port.
    pub address: String,
    /// A token for the door.
    pub token: String,
}

/// An answer that is what was asked for.
pub struct Answer(Response<Incoming>);

impl Answer {
    /// Its bytes, as they come.
    pub fn into_body(self) -> Incoming {
        self.0.into_body()
    }

    /// All of it, if it is not longer than this.
    ///
    /// # Errors
    /// When it is, or ends early.
    pub async fn collect(self, most: usize) -> Result<Bytes, DoorError> {
        let all = Limited::new(self.into_body(), most).collect().await;
        Ok(all.map_err(|error| DoorError::Answer(error.to_string()))?.to_bytes())
    }
}

/// Where the model of a release is.
pub fn release_path(release: &ModelRelease) -> String {
    format!("/v1/{}/releases/{}", release.namespace().unwrap_or_default(), release.name_any())
}

type Body = UnsyncBoxBody<Bytes, io::Error>;

impl Door {
    /// Asks for something.
    ///
    /// # Errors
    /// See [`DoorError`].
    pub async fn get(&self, path: &str) -> Result<Answer, DoorError> {
        self.ask(Method::GET, path, 0, Full::default().map_err(|never| match never {}).boxed_unsync()).await
    }

    /// Brings a file for a namespace; the digest that it has there.
    ///
    /// # Errors
    /// See [`DoorError`].
    pub async fn push(&self, namespace: &str, path: &Path) -> Result<Digest, DoorError> {
        let failed = |cause| DoorError::File { path: path.display().to_string(), cause };
        let file = tokio::fs::File::open(path).await.map_err(failed)?;
        let size = file.metadata().await.map_err(failed)?.len();
        let answer = self.ask(Method::POST, &format!("/v1/{namespace}/models"), size, pieces(file)).await?;
        let bytes = answer.collect(MAX_WORDS).await?;
        #[derive(serde::Deserialize)]
        struct Taken {
            model: Digest,
        }
        let taken: Taken = serde_json::from_slice(&bytes).map_err(|error| DoorError::Answer(error.to_string()))?;
        Ok(taken.model)
    }

    async fn ask(&self, method: Method, path: &str, size: u64, body: Body) -> Result<Answer, DoorError> {
        let away = |cause: String| DoorError::Away { address: self.address.clone(), cause };
        let connected = tokio::time::timeout(PATIENCE, TcpStream::connect(&self.address)).await;
        let stream = connected.map_err(|late| away(late.to_string()))?.map_err(|error| away(error.to_string()))?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| away(error.to_string()))?;
        // It ends with the answer; what goes wrong in it, the answer says.
        tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", &self.address)
            .header("authorization", format!("Bearer {}", self.token))
            .header("content-length", size)
            .body(body)
            .map_err(|error| DoorError::Answer(error.to_string()))?;
        let response = sender.send_request(request).await.map_err(|error| away(error.to_string()))?;
        let status = response.status();
        if status == StatusCode::OK {
            return Ok(Answer(response));
        }
        let words = Answer(response).collect(MAX_WORDS).await.map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        Err(DoorError::Refused { status, words: words.unwrap_or_default() })
    }
}

/// A file as a body, read as it is sent.
fn pieces(file: tokio::fs::File) -> Body {
    let read = futures::stream::try_unfold(file, |mut file| async move {
        let mut piece = vec![0; PIECE];
        let read = file.read(&mut piece).await?;
        piece.truncate(read);
        Ok::<_, io::Error>((read > 0).then(|| (Frame::data(Bytes::from(piece)), file)))
    });
    StreamBody::new(read).boxed_unsync()
}
