//! One canonical byte form per message: what is signed, hashed, stored and sent are the same bytes.
//!
//! Integers are little-endian, byte strings and lists carry a `u32` length before them, fixed arrays stand as they
//! are, floats travel as their bits. A message begins with its tag, so bytes of one kind never parse as another.
//! Reading is strict: `from_bytes(b)` succeeds only if `to_bytes` of the result is `b`.
use crate::ids::Digest;
use sha2::{Digest as _, Sha256};

/// Upper bound of any length on the wire, so that a hostile length cannot make us allocate.
const MAX_LENGTH: usize = 1 << 24;

/// Why bytes are not a message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// The bytes end before the message does.
    #[error("{message}: truncated at byte {at}")]
    Truncated {
        /// Tag of the message.
        message: &'static str,
        /// Where.
        at: usize,
    },
    /// Bytes follow the message.
    #[error("{message}: {extra} bytes after the end")]
    Trailing {
        /// Tag of the message.
        message: &'static str,
        /// How many.
        extra: usize,
    },
    /// Another message's tag.
    #[error("expected a {message} message, got other bytes")]
    Tag {
        /// Tag of the message.
        message: &'static str,
    },
    /// A field holds what it must not hold.
    #[error("{message}: field {field} {rule}")]
    Field {
        /// Tag of the message.
        message: &'static str,
        /// The field.
        field: &'static str,
        /// The rule it breaks.
        rule: String,
    },
}

/// Writes the canonical form.
#[derive(Debug, Default)]
pub struct Writer(Vec<u8>);

impl Writer {
    /// An empty writer.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A byte.
    pub fn u8(&mut self, value: u8) -> &mut Self {
        self.0.push(value);
        self
    }

    /// Two bytes.
    pub fn u16(&mut self, value: u16) -> &mut Self {
        self.fixed(&value.to_le_bytes())
    }

    /// Four bytes.
    pub fn u32(&mut self, value: u32) -> &mut Self {
        self.fixed(&value.to_le_bytes())
    }

    /// Eight bytes.
    pub fn u64(&mut self, value: u64) -> &mut Self {
        self.fixed(&value.to_le_bytes())
    }

    /// A fixed array, without a length.
    pub fn fixed(&mut self, value: &[u8]) -> &mut Self {
        self.0.extend_from_slice(value);
        self
    }

    /// A byte string with its length.
    pub fn bytes(&mut self, value: &[u8]) -> &mut Self {
        self.count(value.len()).fixed(value)
    }

    /// A text with its length in bytes.
    pub fn string(&mut self, value: &str) -> &mut Self {
        self.bytes(value.as_bytes())
    }

    /// The number of items that follow.
    pub fn count(&mut self, items: usize) -> &mut Self {
        debug_assert!(items <= MAX_LENGTH);
        self.u32(items as u32)
    }

    /// The bytes written.
    #[must_use]
    pub fn finish(self) -> Vec<u8> {
        self.0
    }
}

/// Reads the canonical form of the message whose tag it carries for its errors.
#[derive(Debug)]
pub struct Reader<'a> {
    message: &'static str,
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    /// A reader for the inside of a `message`.
    #[must_use]
    pub fn new(message: &'static str, bytes: &'a [u8]) -> Self {
        Self { message, bytes, at: 0 }
    }

    /// `n` raw bytes.
    ///
    /// # Errors
    /// [`WireError::Truncated`].
    pub fn take(&mut self, n: usize) -> Result<&'a [u8], WireError> {
        let rest = &self.bytes[self.at..];
        if rest.len() < n {
            return Err(WireError::Truncated { message: self.message, at: self.at });
        }
        self.at += n;
        Ok(&rest[..n])
    }

    /// A fixed array.
    ///
    /// # Errors
    /// [`WireError::Truncated`].
    pub fn fixed<const N: usize>(&mut self) -> Result<[u8; N], WireError> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N)?);
        Ok(out)
    }

    /// A byte.
    ///
    /// # Errors
    /// [`WireError::Truncated`].
    pub fn u8(&mut self) -> Result<u8, WireError> {
        Ok(self.fixed::<1>()?[0])
    }

    /// Two bytes.
    ///
    /// # Errors
    /// [`WireError::Truncated`].
    pub fn u16(&mut self) -> Result<u16, WireError> {
        Ok(u16::from_le_bytes(self.fixed()?))
    }

    /// Four bytes.
    ///
    /// # Errors
    /// [`WireError::Truncated`].
    pub fn u32(&mut self) -> Result<u32, WireError> {
        Ok(u32::from_le_bytes(self.fixed()?))
    }

    /// Eight bytes.
    ///
    /// # Errors
    /// [`WireError::Truncated`].
    pub fn u64(&mut self) -> Result<u64, WireError> {
        Ok(u64::from_le_bytes(self.fixed()?))
    }

    /// A byte string with its length.
    ///
    /// # Errors
    /// [`WireError::Truncated`], [`WireError::Field`].
    pub fn bytes(&mut self, field: &'static str) -> Result<&'a [u8], WireError> {
        let n = self.count(field, 1)?;
        self.take(n)
    }

    /// A text with its length.
    ///
    /// # Errors
    /// [`WireError::Truncated`], [`WireError::Field`].
    pub fn string(&mut self, field: &'static str) -> Result<&'a str, WireError> {
        let bytes = self.bytes(field)?;
        std::str::from_utf8(bytes).map_err(|_| self.field(field, "is not UTF-8"))
    }

    /// A number of items of at least `item_bytes` each; refused when they cannot be there.
    ///
    /// # Errors
    /// [`WireError::Truncated`], [`WireError::Field`].
    pub fn count(&mut self, field: &'static str, item_bytes: usize) -> Result<usize, WireError> {
        let n = self.u32()? as usize;
        if n > MAX_LENGTH {
            return Err(self.field(field, format!("has length {n}, more than {MAX_LENGTH}")));
        }
        if n.saturating_mul(item_bytes) > self.bytes.len() - self.at {
            return Err(WireError::Truncated { message: self.message, at: self.at });
        }
        Ok(n)
    }

    /// The error for a field that breaks `rule`.
    #[must_use]
    pub fn field(&self, field: &'static str, rule: impl Into<String>) -> WireError {
        WireError::Field { message: self.message, field, rule: rule.into() }
    }

    /// Ends reading.
    ///
    /// # Errors
    /// [`WireError::Trailing`].
    pub fn finish(self) -> Result<(), WireError> {
        let extra = self.bytes.len() - self.at;
        if extra == 0 { Ok(()) } else { Err(WireError::Trailing { message: self.message, extra }) }
    }
}

/// Something with a canonical byte form.
pub trait Message: Sized {
    /// Names the kind; stands first in the bytes.
    const TAG: &'static str;

    /// Writes the fields.
    fn write(&self, w: &mut Writer);

    /// Reads the fields.
    ///
    /// # Errors
    /// [`WireError`].
    fn read(r: &mut Reader<'_>) -> Result<Self, WireError>;

    /// The canonical bytes.
    fn to_bytes(&self) -> Vec<u8> {
        let mut w = Writer::new();
        w.string(Self::TAG);
        self.write(&mut w);
        w.finish()
    }

    /// The message from its canonical bytes.
    ///
    /// # Errors
    /// [`WireError`], also for bytes that follow the message.
    fn from_bytes(bytes: &[u8]) -> Result<Self, WireError> {
        let mut r = Reader::new(Self::TAG, bytes);
        if r.bytes("tag").ok() != Some(Self::TAG.as_bytes()) {
            return Err(WireError::Tag { message: Self::TAG });
        }
        let message = Self::read(&mut r)?;
        r.finish()?;
        Ok(message)
    }

    /// SHA-256 of the canonical bytes.
    fn digest(&self) -> Digest {
        Digest(Sha256::digest(self.to_bytes()).into())
    }
}

/// Makes serde write a message as the hex of its canonical bytes, so that there is one encoding to get right.
macro_rules! serde_as_wire {
    ($($name:ty),+ $(,)?) => {$(
        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.serialize_str(&hex::encode($crate::wire::Message::to_bytes(self)))
            }
        }
        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                let text = <String as serde::Deserialize>::deserialize(d)?;
                let bytes = hex::decode(&text).map_err(serde::de::Error::custom)?;
                $crate::wire::Message::from_bytes(&bytes).map_err(serde::de::Error::custom)
            }
        }
    )+};
}
pub(crate) use serde_as_wire;

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq)]
    struct Probe(Vec<u8>, u16);
    impl Message for Probe {
        const TAG: &'static str = "probe";
        fn write(&self, w: &mut Writer) {
            w.bytes(&self.0).u16(self.1);
        }
        fn read(r: &mut Reader<'_>) -> Result<Self, WireError> {
            Ok(Self(r.bytes("data")?.to_vec(), r.u16()?))
        }
    }

    /// Signed bytes must have one reading: anything appended, cut or mislabelled is refused.
    #[test]
    fn only_canonical_bytes_parse() {
        let bytes = Probe(vec![1, 2, 3], 7).to_bytes();
        assert_eq!(Probe::from_bytes(&bytes).unwrap(), Probe(vec![1, 2, 3], 7));
        for cut in 0..bytes.len() {
            assert!(Probe::from_bytes(&bytes[..cut]).is_err());
        }
        let mut longer = bytes.clone();
        longer.push(0);
        assert_eq!(Probe::from_bytes(&longer), Err(WireError::Trailing { message: "probe", extra: 1 }));
        let mut other = bytes.clone();
        other[4] = b'q';
        assert_eq!(Probe::from_bytes(&other), Err(WireError::Tag { message: "probe" }));
    }

    /// A hostile length must not allocate gigabytes.
    #[test]
    fn absurd_lengths_are_refused() {
        let mut w = Writer::new();
        w.string("probe").u32(u32::MAX);
        assert!(matches!(Probe::from_bytes(&w.finish()), Err(WireError::Field { field: "data", .. })));
    }
}
