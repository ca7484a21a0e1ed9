use std::io::Cursor;

use consilium_secagg::sum::from_bytes;
use consilium_secagg::weight::WEIGHT_ONE;
use proptest::prelude::*;

use super::*;

fn tensor(name: &str, shape: &[u64]) -> Tensor {
    Tensor { name: name.into(), shape: shape.to_vec() }
}

/// A file that holds the tensors in the given order.
fn file(tensors: &[(Tensor, Vec<f32>)]) -> Cursor<Vec<u8>> {
    let mut header = serde_json::Map::new();
    let (mut at, mut payload) = (0usize, Vec::new());
    for (tensor, values) in tensors {
        let end = at + values.len() * 4;
        let entry = serde_json::json!({"dtype": "F32", "shape": tensor.shape, "data_offsets": [at, end]});
        header.insert(tensor.name.clone(), entry);
        payload.extend(values.iter().flat_map(|v| v.to_le_bytes()));
        at = end;
    }
    let json = serde_json::Value::Object(header).to_string();
    let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
    bytes.extend(json.into_bytes());
    bytes.extend(payload);
    Cursor::new(bytes)
}

fn run(file: &mut Cursor<Vec<u8>>, spec: &EncodeSpec<'_>) -> Result<(Encoded, Vec<Vec<u32>>), EncodeError> {
    let mut chunks = Vec::new();
    let encoded = encode(file, spec, |bytes| {
        chunks.push(from_bytes(bytes));
        Ok(())
    })?;
    Ok((encoded, chunks))
}

/// What the hub decodes must be the update itself: n = 1, C = 5, so M = 2^31 - 1 and S = M / 5.
#[test]
fn known_values_by_hand() {
    let schema = TensorSchema(vec![tensor("a", &[2]), tensor("b", &[1])]);
    let spec = EncodeSpec { schema: &schema, roster_size: 1, clip: 5.0, weight: Weight::EQUAL };
    let (encoded, chunks) =
        run(&mut file(&[(schema.0[0].clone(), vec![3.0, -4.0]), (schema.0[1].clone(), vec![0.0])]), &spec).unwrap();
    assert_eq!(encoded, Encoded { norm: 5.0, clipped: false });
    assert_eq!(chunks.len(), 2, "a head and one body chunk");
    assert_eq!((chunks[0].len(), chunks[0][0]), (16, WEIGHT_ONE));
    // 3/5 · 2147483647 = 1288490188.2 and 4/5 · 2147483647 = 1717986917.6, to nearest.
    assert_eq!(chunks[1], [1_288_490_188, (-1_717_986_918i32) as u32, 0]);
}

/// A container that writes its tensors by another order must not have them summed into the wrong places.
#[test]
fn the_order_in_the_file_does_not_matter() {
    let schema = TensorSchema(vec![tensor("b", &[1]), tensor("a", &[2])]);
    let spec = EncodeSpec { schema: &schema, roster_size: 2, clip: 10.0, weight: Weight::EQUAL };
    let (a, b) = ((tensor("a", &[2]), vec![1.0, 2.0]), (tensor("b", &[1]), vec![3.0]));
    let one = run(&mut file(&[a.clone(), b.clone()]), &spec).unwrap();
    let other = run(&mut file(&[b, a]), &spec).unwrap();
    assert_eq!(one, other);
}

/// An update longer than the bound would otherwise outvote the other hospitals.
#[test]
fn a_long_update_is_shortened_to_the_bound() {
    let schema = TensorSchema(vec![tensor("a", &[2])]);
    let spec = EncodeSpec { schema: &schema, roster_size: 1, clip: 5.0, weight: Weight::EQUAL };
    let (encoded, chunks) = run(&mut file(&[(tensor("a", &[2]), vec![6.0, 8.0])]), &spec).unwrap();
    assert_eq!(encoded, Encoded { norm: 10.0, clipped: true });
    assert_eq!(chunks[1], [1_288_490_188, 1_717_986_918]);
}

/// One hospital's NaN would spoil everybody's model; the message must lead to the tensor.
#[test]
fn what_is_not_finite_is_named() {
    let schema = TensorSchema(vec![tensor("down.weight", &[2]), tensor("up.bias", &[2])]);
    let spec = EncodeSpec { schema: &schema, roster_size: 4, clip: 1.0, weight: Weight::EQUAL };
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut file = file(&[(schema.0[0].clone(), vec![0.0, 1.0]), (schema.0[1].clone(), vec![1.0, bad])]);
        let error = run(&mut file, &spec).unwrap_err();
        assert!(error.is_rejection());
        let text = error.to_string();
        assert!(text.contains("\"up.bias\"") && text.contains("element 1"), "{text}");
    }
}

#[test]
fn a_file_with_other_tensors_or_bytes_is_refused_by_name() {
    let schema = TensorSchema(vec![tensor("a", &[2]), tensor("b", &[1])]);
    let spec = EncodeSpec { schema: &schema, roster_size: 4, clip: 1.0, weight: Weight::EQUAL };
    let good = (tensor("a", &[2]), vec![0.0, 0.0]);
    let b = (tensor("b", &[1]), vec![0.0]);
    let cases = [
        (file(std::slice::from_ref(&good)), "\"b\" is missing"),
        (file(&[(tensor("a", &[1, 2]), vec![0.0, 0.0]), b.clone()]), "expected [2]"),
        (file(&[good.clone(), b.clone(), (tensor("c", &[1]), vec![0.0])]), "\"c\" is not in the model"),
    ];
    for (mut file, expected) in cases {
        let text = run(&mut file, &spec).unwrap_err().to_string();
        assert!(text.contains(expected), "{text}");
    }
    let mut cut = file(&[good, b]);
    cut.get_mut().pop();
    assert!(run(&mut cut, &spec).unwrap_err().to_string().contains("bytes"));
    for junk in [vec![], vec![1; 7], vec![255; 64]] {
        let error = run(&mut Cursor::new(junk), &spec).unwrap_err();
        assert!(matches!(error, EncodeError::File(_)), "{error}");
    }
}

/// Chunk borders inside a tensor must not lose or repeat a value.
#[test]
fn tensors_may_cross_chunks() {
    let first = CHUNK_ELEMENTS - 1;
    let schema = TensorSchema(vec![tensor("a", &[first as u64]), tensor("b", &[3])]);
    let spec = EncodeSpec { schema: &schema, roster_size: 1, clip: 100.0, weight: Weight::EQUAL };
    let mut file = file(&[(schema.0[0].clone(), vec![0.0; first]), (schema.0[1].clone(), vec![1.0, 2.0, 3.0])]);
    let (_, chunks) = run(&mut file, &spec).unwrap();
    let ring = RingParams::new(1, 100.0).unwrap();
    let mut decoded = vec![0.0; 3];
    let tail = [&chunks[1][first..], &chunks[2][..]].concat();
    ring.decode_sum(&tail, &mut decoded).unwrap();
    for (got, expected) in decoded.iter().zip([1.0, 2.0, 3.0]) {
        assert!((got - expected).abs() <= ring.sum_error_bound(1), "{got}");
    }
    assert_eq!((chunks[1].len(), chunks[2].len()), (CHUNK_ELEMENTS, 2));
}

#[test]
fn examples_weigh_in_buckets_and_none_is_refused() {
    assert_eq!(weight_of_examples(52, 10).unwrap(), weight_of_examples(48, 10).unwrap());
    assert_eq!(weight_of_examples(EXAMPLES_CAP * 2, 1).unwrap(), Weight::EQUAL);
    let error = weight_of_examples(0, 1).unwrap_err();
    assert!(error.is_rejection() && error.to_string().contains("metrics.json"), "{error}");
}

proptest! {
    /// The bound is what the other hospitals rely on: whatever comes in, what is sent is no longer than C, and points
    /// the same way.
    #[test]
    fn what_is_sent_is_within_the_bound(
        values in prop::collection::vec(-1e6f32..1e6, 1..200),
        clip in 0.01f64..100.0,
        roster in 1u32..50,
        examples in 1u64..100_000,
    ) {
        let schema = TensorSchema(vec![tensor("a", &[values.len() as u64])]);
        let weight = weight_of_examples(examples, 1).unwrap();
        let spec = EncodeSpec { schema: &schema, roster_size: roster, clip, weight };
        let (encoded, chunks) = run(&mut file(&[(schema.0[0].clone(), values.clone())]), &spec).unwrap();
        let ring = RingParams::new(roster as usize, clip).unwrap();
        let mut sent = vec![0.0; values.len()];
        ring.decode_sum(&chunks[1], &mut sent).unwrap();
        let bound = ring.sum_error_bound(1);
        let length = sent.iter().map(|v| v * v).sum::<f64>().sqrt();
        let slack = bound * (values.len() as f64).sqrt() + clip * 1e-6;
        prop_assert!(length <= clip * weight.as_f64() + slack, "{length} > {clip}");
        let factor = if encoded.clipped { clip / encoded.norm } else { 1.0 };
        for (got, value) in sent.iter().zip(&values) {
            let expected = f64::from(*value) * factor * weight.as_f64();
            prop_assert!((got - expected).abs() <= bound + expected.abs() * 1e-6, "{got} {expected}");
        }
    }
}

/// What a PyTorch user's trainer writes: half precision, a learned scalar, an empty buffer, and a counter of integers that
/// is no parameter. Summed as it was meant, or refused by the tensor's name.
#[test]
fn updates_of_other_types_are_widened_and_counters_stay() {
    let schema = TensorSchema(vec![tensor("empty", &[0]), tensor("half", &[2]), tensor("scale", &[])]);
    let spec = EncodeSpec { schema: &schema, roster_size: 1, clip: 5.0, weight: Weight::EQUAL };
    let written = |entries: serde_json::Value, payload: &[u8]| {
        let json = entries.to_string().into_bytes();
        Cursor::new([&(json.len() as u64).to_le_bytes()[..], &json, payload].concat())
    };
    let mut other = written(
        serde_json::json!({
            "bn.num_batches_tracked": {"dtype": "I64", "shape": [], "data_offsets": [0, 8]},
            "empty": {"dtype": "F32", "shape": [0], "data_offsets": [8, 8]},
            "half": {"dtype": "BF16", "shape": [2], "data_offsets": [8, 12]},
            "scale": {"dtype": "F64", "shape": [], "data_offsets": [12, 20]},
        }),
        &[&[7; 8][..], &[0x40, 0x40, 0x80, 0xc0], &0.0_f64.to_le_bytes()].concat(),
    );
    let plain = file(&[
        (schema.0[0].clone(), vec![]),
        (schema.0[1].clone(), vec![3.0, -4.0]),
        (schema.0[2].clone(), vec![0.0]),
    ]);
    assert_eq!(run(&mut other, &spec).unwrap(), run(&mut plain.clone(), &spec).unwrap());

    let mut counter = written(
        serde_json::json!({
            "empty": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]},
            "half": {"dtype": "I32", "shape": [2], "data_offsets": [0, 8]},
            "scale": {"dtype": "F32", "shape": [], "data_offsets": [8, 12]},
        }),
        &[0; 12],
    );
    let message = run(&mut counter, &spec).unwrap_err().to_string();
    assert!(message.contains("\"half\" is of type I32"), "{message}");
}
