//! Bodies that a client has compressed.

use std::io::{ErrorKind, Read};

use axum::http::{HeaderMap, header};
use flate2::read::{MultiGzDecoder, ZlibDecoder};

/// Bytes that are inflated between two looks at what is allowed.
pub const STEP: usize = 1 << 16;

/// How a body is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    /// Not at all.
    Identity,
    /// gzip.
    Gzip,
    /// zlib, which HTTP calls deflate.
    Deflate,
}

/// A body that is not inflated.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EncodingError {
    /// Another encoding.
    #[error("Content-Encoding {0:?} is not taken here: send gzip, deflate, or the bytes as they are")]
    Unsupported(String),
    /// Bytes that are not what the header says.
    #[error("the body is no {0} as its Content-Encoding says: {1}")]
    Broken(&'static str, String),
    /// Longer than may be.
    #[error("inflated, the body is longer than the {0} bytes that are taken of this kind here")]
    TooLong(u64),
    /// No room for it now.
    #[error("the requests under way use the memory that this one needs; try again in a few seconds")]
    NoRoom,
}

impl Encoding {
    /// By the header.
    pub fn of(headers: &HeaderMap) -> Result<Self, EncodingError> {
        let mut values = headers.get_all(header::CONTENT_ENCODING).iter();
        let (first, more) = (values.next(), values.next());
        let text = first.map_or("identity", |value| value.to_str().unwrap_or("?")).trim().to_ascii_lowercase();
        match text.as_str() {
            _ if more.is_some() => Err(EncodingError::Unsupported("several".into())),
            "" | "identity" => Ok(Self::Identity),
            "gzip" | "x-gzip" => Ok(Self::Gzip),
            "deflate" => Ok(Self::Deflate),
            _ => Err(EncodingError::Unsupported(text)),
        }
    }

    /// The bytes that were compressed, `most` at most. Before there is more of them, `room` is asked for as many bytes as
    /// there may then be: a kilobyte may hold a megabyte.
    pub fn inflate(self, body: &[u8], most: u64, room: &mut dyn FnMut(u64) -> bool) -> Result<Vec<u8>, EncodingError> {
        match self {
            Self::Identity => Ok(body.to_vec()),
            Self::Gzip => inflate("gzip", &mut MultiGzDecoder::new(body), most, room),
            Self::Deflate => {
                let mut from = ZlibDecoder::new(body);
                let all = inflate("deflate", &mut from, most, room)?;
                match body.len() as u64 - from.total_in() {
                    0 => Ok(all),
                    more => Err(EncodingError::Broken("deflate", format!("{more} bytes stand after its end"))),
                }
            }
        }
    }
}

fn inflate(
    name: &'static str,
    from: &mut dyn Read,
    most: u64,
    room: &mut dyn FnMut(u64) -> bool,
) -> Result<Vec<u8>, EncodingError> {
    let mut all = Vec::new();
    loop {
        if !room((all.len() + STEP) as u64) {
            return Err(EncodingError::NoRoom);
        }
        let before = all.len();
        match Read::take(&mut *from, STEP as u64).read_to_end(&mut all) {
            Ok(_) if all.len() as u64 > most => return Err(EncodingError::TooLong(most)),
            Ok(_) if all.len() == before => return Ok(all),
            Ok(_) => {}
            Err(e) if e.kind() == ErrorKind::UnexpectedEof => {
                return Err(EncodingError::Broken(name, "it ends too early".into()));
            }
            Err(e) => return Err(EncodingError::Broken(name, e.to_string())),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use axum::http::HeaderValue;
    use flate2::Compression;
    use flate2::write::{GzEncoder, ZlibEncoder};

    use super::*;

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn deflate(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = ZlibEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn of(value: &[u8]) -> Result<Encoding, EncodingError> {
        let value = HeaderValue::from_bytes(value).unwrap();
        Encoding::of(&HeaderMap::from_iter([(header::CONTENT_ENCODING, value)]))
    }

    /// A client whose encoding is not known must be told which are, instead of that its JSON is none.
    #[test]
    fn encodings_are_known_by_name() {
        assert_eq!(Encoding::of(&HeaderMap::new()), Ok(Encoding::Identity));
        assert_eq!((of(b"GZIP"), of(b" deflate ")), (Ok(Encoding::Gzip), Ok(Encoding::Deflate)));
        for other in [&b"br"[..], b"gzip, gzip", b"\xff"] {
            assert!(of(other).unwrap_err().to_string().contains("send gzip, deflate"));
        }
    }

    #[test]
    fn bodies_come_out_as_they_went_in() {
        let bytes: Vec<u8> = (0..3 * STEP + 7).map(|i| (i % 251) as u8).collect();
        let most = bytes.len() as u64;
        let inflate = |how: Encoding, body: &[u8]| how.inflate(body, most, &mut |_| true);
        assert_eq!(inflate(Encoding::Gzip, &gzip(&bytes)).unwrap(), bytes);
        assert_eq!(inflate(Encoding::Deflate, &deflate(&bytes)).unwrap(), bytes);
        let short = &gzip(&bytes)[..1000];
        assert!(inflate(Encoding::Gzip, short).unwrap_err().to_string().contains("too early"));
        let more = [deflate(&bytes), b"more".to_vec()].concat();
        assert!(inflate(Encoding::Deflate, &more).unwrap_err().to_string().contains("4 bytes stand after its end"));
        assert!(inflate(Encoding::Deflate, &gzip(b"x")).unwrap_err().to_string().contains("is no deflate"));
    }

    /// A megabyte of zeros makes a kilobyte: were that inflated without asking, one request would end the pod for all.
    #[test]
    fn no_more_is_inflated_than_is_allowed() {
        let bomb = gzip(&vec![0; 64 * STEP]);
        let mut asked = 0;
        let mut room = |bytes| {
            asked = bytes;
            true
        };
        let most = 2 * STEP as u64;
        assert_eq!(Encoding::Gzip.inflate(&bomb, most, &mut room), Err(EncodingError::TooLong(most)));
        assert!(asked <= most + STEP as u64, "{asked}");
        let mut little = |bytes| bytes <= most;
        assert_eq!(Encoding::Gzip.inflate(&bomb, u64::MAX, &mut little), Err(EncodingError::NoRoom));
    }
}
