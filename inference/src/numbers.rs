//! The values of a tensor as JSON: numbers, flat or nested as the shape says. They are read before it is known what they
//! should be, since `data` may stand before `datatype` and `shape`; so what would be wrong for either is kept beside them.

use std::fmt;

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, SeqAccess, Visitor};

/// Types of tensors that are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Datatype {
    /// 32-bit floating point, little-endian.
    Fp32,
    /// A byte.
    Uint8,
}

impl Datatype {
    /// By the protocol's name.
    pub fn parse(name: &str) -> Result<Self, String> {
        match name {
            "FP32" => Ok(Self::Fp32),
            "UINT8" => Ok(Self::Uint8),
            other => Err(format!("datatype {other:?} is not supported: send FP32 or UINT8")),
        }
    }

    /// Bytes of a value.
    pub fn width(self) -> usize {
        match self {
            Self::Fp32 => 4,
            Self::Uint8 => 1,
        }
    }

    /// Values from their bytes, which are a multiple of the width.
    pub fn read(self, bytes: &[u8]) -> Vec<f32> {
        match self {
            Self::Uint8 => bytes.iter().map(|&byte| f32::from(byte)).collect(),
            Self::Fp32 => bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
        }
    }

    /// The same in another order: the value at each of these places, which are within the bytes.
    pub fn read_at(self, bytes: &[u8], places: impl Iterator<Item = usize>) -> Vec<f32> {
        let mut values = Vec::with_capacity(bytes.len() / self.width());
        match self {
            Self::Uint8 => values.extend(places.map(|at| f32::from(bytes[at]))),
            Self::Fp32 => values.extend(places.map(|at| {
                let b = &bytes[4 * at..4 * at + 4];
                f32::from_le_bytes([b[0], b[1], b[2], b[3]])
            })),
        }
        values
    }
}

/// A value and its place in row-major order.
type Found = Option<(usize, f64)>;

/// Numbers of an array, in row-major order.
#[derive(Debug, Default)]
pub struct Numbers {
    values: Vec<f32>,
    /// Length of the arrays at each depth, `data` itself first.
    lengths: Vec<Option<usize>>,
    /// In how many arrays the first number stands.
    depth: Option<usize>,
    /// Where the arrays are no tensor.
    ragged: Option<String>,
    not_a_byte: Found,
    not_a_float: Found,
}

impl Numbers {
    /// The values as a tensor of this type and shape, or why they are none.
    pub fn tensor(self, datatype: Datatype, shape: &[usize]) -> Result<Vec<f32>, String> {
        if let Some(ragged) = self.ragged {
            return Err(ragged);
        }
        let lengths: Vec<usize> = self.lengths.into_iter().flatten().collect();
        if lengths.len() > 1 && lengths != shape {
            return Err(format!(
                "data is nested as {lengths:?}, the shape is {shape:?}: nest it as the shape says, or send it flat"
            ));
        }
        let count: usize = shape.iter().product();
        if self.values.len() != count {
            return Err(format!("data has {} values, the shape {shape:?} needs {count}", self.values.len()));
        }
        let (wrong, rule) = match datatype {
            Datatype::Uint8 => (self.not_a_byte, "UINT8 takes whole numbers from 0 to 255"),
            Datatype::Fp32 => (self.not_a_float, "FP32 takes numbers up to 3.4e38"),
        };
        match wrong {
            Some((at, value)) => Err(format!("data value number {at} is {value}: {rule}")),
            None => Ok(self.values),
        }
    }

    fn push(&mut self, value: f64, depth: usize) {
        let at = self.values.len();
        if *self.depth.get_or_insert(depth) != depth {
            self.is_ragged(at);
        }
        if self.not_a_byte.is_none() && !(value.fract() == 0.0 && (0.0..=255.0).contains(&value)) {
            self.not_a_byte = Some((at, value));
        }
        if self.not_a_float.is_none() && !(value as f32).is_finite() {
            self.not_a_float = Some((at, value));
        }
        self.values.push(value as f32);
    }

    /// An array within so many others has ended after so many items.
    fn ended(&mut self, depth: usize, items: usize) {
        let beside_numbers = self.depth.is_some_and(|numbers| depth >= numbers);
        if self.lengths.len() <= depth {
            self.lengths.resize(depth + 1, None);
        }
        if *self.lengths[depth].get_or_insert(items) != items || beside_numbers {
            self.is_ragged(self.values.len());
        }
    }

    fn is_ragged(&mut self, at: usize) {
        self.ragged.get_or_insert_with(|| {
            format!("data is ragged at value number {at}: all arrays at one depth have the same length, and numbers stand at the last")
        });
    }
}

impl<'de> Deserialize<'de> for Numbers {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let mut all = Self::default();
        from.deserialize_seq(Item { all: &mut all, depth: 0 })?;
        Ok(all)
    }
}

/// What stands within so many arrays: a number or a further array; `data` itself is an array.
struct Item<'a> {
    all: &'a mut Numbers,
    depth: usize,
}

impl<'de> DeserializeSeed<'de> for Item<'_> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<(), D::Error> {
        from.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Item<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.depth == 0 {
            "an array of numbers in data"
        } else {
            "a number or an array of numbers in data"
        })
    }

    fn visit_f64<E>(self, number: f64) -> Result<(), E> {
        self.all.push(number, self.depth);
        Ok(())
    }

    fn visit_u64<E>(self, number: u64) -> Result<(), E> {
        self.all.push(number as f64, self.depth);
        Ok(())
    }

    fn visit_i64<E>(self, number: i64) -> Result<(), E> {
        self.all.push(number as f64, self.depth);
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        let Self { all, depth } = self;
        let mut count = 0;
        while items.next_element_seed(Item { all: &mut *all, depth: depth + 1 })?.is_some() {
            count += 1;
        }
        all.ended(depth, count);
        Ok(())
    }
}
