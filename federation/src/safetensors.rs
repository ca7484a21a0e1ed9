//! The header of a `safetensors` file, and which of its tensors are a model's parameters.
//!
//! A model is exchanged as `f32`. Trainers of others write more than that, and what becomes of it is a rule:
//! - `F32` stays; `F16` and `BF16` are widened, `F64` is rounded to it;
//! - tensors of rank 0 (a learned temperature) and of no elements are tensors like others;
//! - integers and booleans (`num_batches_tracked` of a BatchNorm) are no parameters: a mean of counters means nothing. They
//!   stay with the hospital that counted, and are left out of the model and of what is summed;
//! - anything else is refused by its name.

use serde::Deserialize;
use serde_json::Value;

use crate::model::{ModelError, Tensor, TensorSchema};

/// Longest header that is read.
pub const MAX_HEADER: u64 = 16 << 20;

/// How a tensor's numbers stand in the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Format {
    /// As they are exchanged.
    F32,
    /// Half precision, widened.
    F16,
    /// Half precision, widened.
    BF16,
    /// Double precision, rounded.
    F64,
    /// Integers or booleans of this type, which are no parameters.
    Local(String),
}

impl Format {
    /// By the name in the file, with bytes per element.
    fn of(dtype: &str) -> Option<(Self, u64)> {
        Some(match dtype {
            "F32" => (Self::F32, 4),
            "F16" => (Self::F16, 2),
            "BF16" => (Self::BF16, 2),
            "F64" => (Self::F64, 8),
            "BOOL" | "U8" | "I8" => (Self::Local(dtype.to_owned()), 1),
            "I16" | "U16" => (Self::Local(dtype.to_owned()), 2),
            "I32" | "U32" => (Self::Local(dtype.to_owned()), 4),
            "I64" | "U64" => (Self::Local(dtype.to_owned()), 8),
            _ => return None,
        })
    }

    /// Bytes of one parameter; `None` for what is no parameter.
    pub fn width(&self) -> Option<usize> {
        match self {
            Self::F32 => Some(4),
            Self::F16 | Self::BF16 => Some(2),
            Self::F64 => Some(8),
            Self::Local(_) => None,
        }
    }

    /// The parameters in some bytes; what is left over at the end is not looked at.
    pub fn parameters(&self, bytes: &[u8], mut take: impl FnMut(f32)) {
        match self {
            Self::F32 => bytes.as_chunks::<4>().0.iter().for_each(|b| take(f32::from_le_bytes(*b))),
            Self::F16 => bytes.as_chunks::<2>().0.iter().for_each(|b| take(half(u16::from_le_bytes(*b)))),
            Self::BF16 => {
                let wide = |b: &[u8; 2]| f32::from_bits(u32::from(u16::from_le_bytes(*b)) << 16);
                bytes.as_chunks::<2>().0.iter().for_each(|b| take(wide(b)));
            }
            // Beyond f32 it becomes infinite, which is refused like any number that is not finite.
            Self::F64 => bytes.as_chunks::<8>().0.iter().for_each(|b| take(f64::from_le_bytes(*b) as f32)),
            Self::Local(_) => {}
        }
    }
}

/// An IEEE half as a float, exactly.
fn half(bits: u16) -> f32 {
    let (negative, exponent, fraction) = (bits & 0x8000 != 0, (bits >> 10) & 0x1f, bits & 0x3ff);
    let size = match exponent {
        // Subnormal: multiples of 2^-24.
        0 => f32::from(fraction) * f32::from_bits(0x3380_0000),
        0x1f if fraction == 0 => f32::INFINITY,
        0x1f => f32::NAN,
        _ => f32::from_bits((u32::from(exponent) + 112) << 23 | u32::from(fraction) << 13),
    };
    if negative { -size } else { size }
}

/// One tensor of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Name and shape.
    pub tensor: Tensor,
    /// How its numbers are written.
    pub format: Format,
    /// Where its bytes begin, counted from the end of the header.
    pub from: u64,
    /// Where they end.
    pub to: u64,
}

/// What a header says: every tensor in the order of its bytes, without holes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// The tensors.
    pub tensors: Vec<Stored>,
    /// Bytes before the first tensor's.
    pub begin: usize,
}

impl Header {
    /// Parses the beginning of a file, which must hold the whole header.
    ///
    /// # Errors
    /// When it is no `safetensors` file, or a tensor is of a type that no model holds.
    pub fn parse(start: &[u8]) -> Result<Self, ModelError> {
        #[derive(Deserialize)]
        struct Entry {
            dtype: String,
            shape: Vec<u64>,
            data_offsets: (u64, u64),
        }
        let bad = |why: String| ModelError::NotSafetensors(why);
        let length = start.first_chunk::<8>().map(|b| u64::from_le_bytes(*b));
        let length = length.ok_or_else(|| bad("it is shorter than 8 bytes".into()))?;
        if length > MAX_HEADER {
            return Err(bad(format!("its header would have {length} bytes, and at most 16 MiB are read")));
        }
        let begin = 8 + length as usize;
        let json = start.get(8..begin).ok_or_else(|| bad("its header is cut off".into()))?;
        let tree: std::collections::BTreeMap<String, Value> =
            serde_json::from_slice(json).map_err(|e| bad(format!("its header is not JSON: {e}")))?;
        let mut tensors = Vec::new();
        for (name, value) in tree.into_iter().filter(|(name, _)| name != "__metadata__") {
            let entry: Entry = serde_json::from_value(value).map_err(|e| bad(format!("tensor {name:?}: {e}")))?;
            let Some((format, width)) = Format::of(&entry.dtype) else {
                return Err(ModelError::TensorType { tensor: name, dtype: entry.dtype.chars().take(20).collect() });
            };
            let tensor = Tensor { name, shape: entry.shape };
            let (from, to) = entry.data_offsets;
            let size = tensor.elements().and_then(|n| n.checked_mul(width));
            if size.and_then(|size| from.checked_add(size)) != Some(to) {
                return Err(bad(format!(
                    "tensor {:?} of type {} and shape {:?} stands from byte {from} to {to}, which is not its size",
                    tensor.name, entry.dtype, tensor.shape
                )));
            }
            tensors.push(Stored { tensor, format, from, to });
        }
        tensors.sort_by_key(|stored| (stored.from, stored.to));
        let mut at = 0;
        for stored in &tensors {
            if stored.from != at {
                return Err(bad(format!("tensor {:?} does not follow the one before it", stored.tensor.name)));
            }
            at = stored.to;
        }
        Ok(Self { tensors, begin })
    }

    /// The model's tensors: those that are no integers, in their order.
    ///
    /// # Errors
    /// When there is none, or they are too large.
    pub fn schema(&self) -> Result<TensorSchema, ModelError> {
        let parameters = self.tensors.iter().filter(|stored| stored.format.width().is_some());
        let schema = TensorSchema(parameters.map(|stored| stored.tensor.clone()).collect());
        schema.elements()?;
        Ok(schema)
    }

    /// Names of the tensors that stay where they are.
    pub fn local(&self) -> Vec<&str> {
        let local = self.tensors.iter().filter(|stored| stored.format.width().is_none());
        local.map(|stored| stored.tensor.name.as_str()).collect()
    }

    /// Bytes of all tensors.
    pub fn payload(&self) -> u64 {
        self.tensors.last().map_or(0, |stored| stored.to)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(tensors: &[(&str, &str, &[u64], u64)]) -> Vec<u8> {
        let mut entries = serde_json::Map::new();
        let mut at = 0;
        for (name, dtype, shape, bytes) in tensors {
            let entry = serde_json::json!({"dtype": dtype, "shape": shape, "data_offsets": [at, at + bytes]});
            entries.insert((*name).into(), entry);
            at += bytes;
        }
        let json = Value::Object(entries).to_string().into_bytes();
        [&(json.len() as u64).to_le_bytes()[..], &json].concat()
    }

    /// What PyTorch saves of a network with BatchNorm, half precision and a learned scalar.
    #[test]
    fn what_a_pytorch_user_saves_has_a_place() {
        let header = Header::parse(&file(&[
            ("bn.num_batches_tracked", "I64", &[], 8),
            ("bn.weight", "BF16", &[3], 6),
            ("empty", "F32", &[0, 4], 0),
            ("mask", "BOOL", &[5], 5),
            ("scale", "F32", &[], 4),
            ("w", "F16", &[2, 2], 8),
            ("wide", "F64", &[1], 8),
        ]))
        .unwrap();
        let names = |tensors: &[Tensor]| tensors.iter().map(|t| t.name.clone()).collect::<Vec<_>>();
        let schema = header.schema().unwrap();
        assert_eq!(names(&schema.0), ["bn.weight", "empty", "scale", "w", "wide"]);
        assert_eq!(schema.elements().unwrap(), 3 + 1 + 4 + 1);
        assert_eq!(header.local(), ["bn.num_batches_tracked", "mask"]);
        assert_eq!(header.payload(), 39);
    }

    /// One who reads "the manifest cannot be read, ask for it again" asks again for ever.
    #[test]
    fn what_no_model_holds_is_named() {
        let cases: [(Vec<u8>, &[&str]); 8] = [
            (file(&[("q", "F8_E4M3", &[4], 4)]), &["\"q\"", "F8_E4M3", "F32", "BF16", ".float()"]),
            (file(&[("z", "C64", &[1], 8)]), &["\"z\"", "C64"]),
            (file(&[("n", "I64", &[3], 24)]), &["holds no parameters"]),
            (file(&[("w", "F32", &[3], 8)]), &["\"w\"", "[3]", "byte 0 to 8", "not its size"]),
            (file(&[("w", "F32", &[u64::MAX, 9], 8)]), &["\"w\"", "not its size"]),
            (vec![1, 2], &["not a safetensors file", "shorter than 8 bytes"]),
            ((1u64 << 40).to_le_bytes().to_vec(), &["16 MiB"]),
            ([&4u64.to_le_bytes()[..], b"{]}]"].concat(), &["not JSON"]),
        ];
        for (bytes, parts) in cases {
            let message = match Header::parse(&bytes).and_then(|header| header.schema()) {
                Err(e) => e.to_string(),
                Ok(schema) => panic!("read as {schema:?}"),
            };
            assert!(parts.iter().all(|part| message.contains(part)), "{message:?} lacks one of {parts:?}");
            assert!(!message.contains("manifest"), "{message}");
        }
    }

    /// Every half is a float, and none may change on the way: a wrong exponent would double a weight.
    #[test]
    fn halves_are_widened_exactly() {
        let read = |format: Format, bytes: &[u8]| {
            let mut found = Vec::new();
            format.parameters(bytes, |v| found.push(v));
            found
        };
        // 1, -2, 2^-24 (the smallest), 65504 (the largest), 0.333…, 6.1e-5 (the smallest normal one).
        let halves: [u16; 6] = [0x3c00, 0xc000, 0x0001, 0x7bff, 0x3555, 0x0400];
        let bytes: Vec<u8> = halves.iter().flat_map(|h| h.to_le_bytes()).collect();
        let expected = [1.0, -2.0, 2.0_f32.powi(-24), 65504.0, 0.333_251_95, 2.0_f32.powi(-14)];
        assert_eq!(read(Format::F16, &bytes), expected);
        let odd = read(Format::F16, &[0x00, 0x7c, 0x00, 0xfc, 0x01, 0x7e, 0x00, 0x80]);
        assert!(odd[0] == f32::INFINITY && odd[1] == f32::NEG_INFINITY && odd[2].is_nan());
        assert!(odd[3] == 0.0 && odd[3].is_sign_negative());
        assert_eq!(read(Format::BF16, &[0x80, 0x3f, 0x49, 0xc0]), [1.0, -3.140_625]);
        assert_eq!(read(Format::F64, &1.5_f64.to_le_bytes()), [1.5]);
        assert_eq!(read(Format::F32, &[0, 0, 128, 63, 9]), [1.0]);
        assert!(read(Format::Local("I64".into()), &[0; 8]).is_empty());
    }
}
