//! Objects on their way to a hospital: verified first, then sent piece by piece, so that two hundred hospitals that fetch a
//! model at once cost the hub a few pieces each and not the model.

use std::time::Duration;

use bytes::{BufMut as _, Bytes, BytesMut};
use consilium_proto::v1;
use futures::stream;
use http_body::Frame;
use http_body_util::StreamBody;
use prost::Message as _;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::http::{HeaderMap, HeaderValue, Response};

use super::door::Visitor;
use super::scales::Weight;
use crate::store::Object;

/// Bytes that are read and handed on at a time.
const PIECE: usize = 64 << 10;
/// What a download holds at most: a piece, what the connection buffers of it, and an object that is made for it.
pub(super) const HELD: usize = 512 << 10;

/// What gRPC puts in front of a message: not compressed, and its length.
const PREFIX: usize = 5;

/// The digest that a `GetObject` call asks for, from its whole body.
pub(super) fn asked(body: &[u8]) -> Result<String, Status> {
    let bad = || Status::invalid_argument("the call holds no GetObjectRequest");
    let message = message(body).ok_or_else(bad)?;
    Ok(v1::GetObjectRequest::decode(message).map_err(|_| bad())?.digest)
}

/// The only message of a unary call that came whole and not compressed.
pub(super) fn message(body: &[u8]) -> Option<&[u8]> {
    let (prefix, message) = body.split_at_checked(PREFIX)?;
    let length = u32::from_be_bytes(prefix[1..].try_into().ok()?);
    (prefix[0] == 0 && message.len() == length as usize).then_some(message)
}

/// What stands in front of the object's bytes in the answer: gRPC's prefix, and the field's key and length.
fn head(length: usize) -> Bytes {
    let mut field = BytesMut::new();
    // A field that is empty is left out.
    if length > 0 {
        prost::encoding::encode_key(1, prost::encoding::WireType::LengthDelimited, &mut field);
        prost::encoding::encode_varint(length as u64, &mut field);
    }
    let mut head = BytesMut::new();
    head.put_u8(0);
    // Safety: objects have at most a few megabytes.
    head.put_u32((field.len() + length) as u32);
    head.extend_from_slice(&field);
    head.freeze()
}

/// The answer that hands an object out. It holds `weight` until the hospital has all of it; a hospital that does not read
/// loses its connection after `limit`, for nothing else frees what the connection holds of it.
pub(super) fn answer(object: Object, weight: Weight, visitor: Option<Visitor>, limit: Duration) -> Response<Body> {
    let late = tokio::spawn(async move {
        tokio::time::sleep(limit).await;
        if let Some(visitor) = visitor {
            tracing::info!("a download took too long; its connection is closed");
            visitor.cut();
        }
    });
    let held = Held { late, weight };
    let length = object.length();
    let start = Sending { part: Part::Head, object, left: length, held };
    let frames = stream::unfold(Some(start), |sending| async { next(sending?).await });
    let mut response = Response::new(Body::new(StreamBody::new(frames)));
    response.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
    response
}

struct Held {
    late: tokio::task::JoinHandle<()>,
    #[allow(dead_code, reason = "held for its Drop")]
    weight: Weight,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.late.abort();
    }
}

enum Part {
    Head,
    Bytes,
    Trailers,
}

struct Sending {
    object: Object,
    left: usize,
    part: Part,
    #[allow(dead_code, reason = "held for its Drop")]
    held: Held,
}

type Sent = Option<(Result<Frame<Bytes>, Status>, Option<Sending>)>;

async fn next(mut sending: Sending) -> Sent {
    match sending.part {
        Part::Head => {
            sending.part = if sending.left == 0 { Part::Trailers } else { Part::Bytes };
            let head = head(sending.left);
            Some((Ok(Frame::data(head)), Some(sending)))
        }
        Part::Bytes => {
            let wanted = sending.left.min(PIECE);
            let read = tokio::task::spawn_blocking(move || {
                let piece = sending.object.read(wanted);
                (piece, sending)
            });
            let Ok((piece, mut sending)) = read.await else { return None };
            match piece {
                Ok(piece) => {
                    sending.left -= piece.len();
                    if sending.left == 0 {
                        sending.part = Part::Trailers;
                    }
                    Some((Ok(Frame::data(piece)), Some(sending)))
                }
                Err(error) => {
                    tracing::error!(%error, "an object could not be read to its end");
                    Some((Err(Status::unavailable("the hub's store failed; try again later")), None))
                }
            }
        }
        Part::Trailers => {
            let mut trailers = HeaderMap::new();
            trailers.insert(Status::GRPC_STATUS, HeaderValue::from_static("0"));
            Some((Ok(Frame::trailers(trailers)), None))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The answer is written by hand, so it must be what the generated code would have written.
    #[test]
    fn the_head_and_the_bytes_are_a_reply() {
        for length in [0usize, 1, 127, 128, 70_000] {
            let content = Bytes::from(vec![7; length]);
            let encoded = v1::GetObjectReply { content: content.clone() }.encode_to_vec();
            let sent = [&head(length)[..], &content[..]].concat();
            assert_eq!(message(&sent).unwrap(), encoded, "{length}");
        }
    }

    #[test]
    fn only_a_whole_message_is_read() {
        let digest = "sha256:00".to_owned();
        let message = v1::GetObjectRequest { digest: digest.clone() }.encode_to_vec();
        let mut body = vec![0, 0, 0, 0, message.len() as u8];
        body.extend(&message);
        assert_eq!(asked(&body).unwrap(), digest);
        for broken in [&body[..body.len() - 1], &[], &[1, 0, 0, 0, 0], &[0, 0, 0, 0, 1, 0xff]] {
            assert_eq!(asked(broken).unwrap_err().code(), tonic::Code::InvalidArgument);
        }
    }
}
