//! The protocol as a client sees it: a wrong message here is a radiologist's workstation that shows nothing.

use proptest::prelude::*;

use super::*;

const MAX: &Bounds =
    &Bounds { tile: [8, 8, 8], tiles: 1, max_voxels: 1000, canvas_voxels: 2000, room: 1 << 20, max_json: 1 << 20 };

fn request(input: Value) -> Vec<u8> {
    json!({ "id": "7", "inputs": [input] }).to_string().into_bytes()
}

#[test]
fn json_numbers_flat_or_nested() {
    for data in [json!([1, 2, 3, 4, 5, 6]), json!([[[1, 2, 3], [4, 5, 6]]])] {
        let body = request(json!({ "name": "volume", "datatype": "FP32", "shape": [1, 2, 3], "data": data }));
        let question = parse(&body, None, MAX, Axes::RAS).unwrap();
        // [z, y, x] = [1, 2, 3] is three voxels along x.
        assert_eq!(question.volume.grid.shape, [3, 2, 1]);
        assert_eq!(question.volume.voxels, [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        assert_eq!((question.form.id.as_deref(), question.form.binary), (Some("7"), false));
    }
}

#[test]
fn binary_tensors_there_and_back() {
    let grid = Grid::axis_aligned([3, 2, 1], [1.0; 3]);
    let volume = Volume { grid: grid.clone(), voxels: vec![0.5, -1.0, 2.0, 0.0, 7.0, 8.0] };
    let (body, length) = ask(&volume);
    let question = parse(&body, Some(length), MAX, Axes::RAS).unwrap();
    assert_eq!(question.volume, volume);
    assert!(question.form.binary);
    let identity =
        Identity { name: "m".into(), version: "1".into(), digest: "sha256:0".into(), frame: Frame::default() };
    let mask = Mask { grid: grid.clone(), labels: vec![0, 1, 2, 0, 1, 2] };
    let answer = answer(&identity, &question.form, &mask.labels);
    assert_eq!(read_answer(&answer.body, answer.json_length, &grid).unwrap(), mask);
    let head: Value = serde_json::from_slice(&answer.body[..answer.json_length.unwrap()]).unwrap();
    assert_eq!(head["outputs"][0]["shape"], json!([1, 2, 3]));
    assert_eq!(head["outputs"][0]["parameters"]["binary_data_size"], 6);
}

#[test]
fn bytes_and_leading_axes() {
    let mut body = request(json!({ "name": "volume", "datatype": "UINT8", "shape": [1, 1, 2, 1, 2],
        "parameters": { "binary_data_size": 4 } }));
    let length = body.len();
    body.extend([0, 1, 254, 255]);
    let question = parse(&body, Some(length), MAX, Axes::RAS).unwrap();
    assert_eq!(question.volume.grid.shape, [2, 1, 2]);
    assert_eq!(question.volume.voxels, [0.0, 1.0, 254.0, 255.0]);
    // A client that has a batch and a channel axis puts the answer beside its scan: it must have them too.
    let identity =
        Identity { name: "m".into(), version: "1".into(), digest: "sha256:0".into(), frame: Frame::default() };
    let Answer { body, .. } = answer(&identity, &question.form, &[0; 4]);
    let found: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(found["outputs"][0]["shape"], json!([1, 1, 2, 1, 2]));
}

#[test]
fn bad_requests_say_what_is_wrong() {
    let input = |name: &str, datatype: &str, shape: Value, data: Value| {
        request(json!({ "name": name, "datatype": datatype, "shape": shape, "data": data }))
    };
    let cases = [
        (b"{".to_vec(), "not a v2 inference request"),
        (json!({ "inputs": [] }).to_string().into_bytes(), "exactly one"),
        (input("image", "FP32", json!([1, 1, 1]), json!([1])), "\"image\" is not known"),
        (input("volume", "FP64", json!([1, 1, 1]), json!([1])), "FP64"),
        (input("volume", "FP32", json!([1, 1]), json!([1])), "[z, y, x]"),
        (input("volume", "FP32", json!([2, 2, 1, 1]), json!([1])), "[z, y, x]"),
        (input("volume", "FP32", json!([1, 1, 0]), json!([])), "voxels"),
        (input("volume", "FP32", json!([99, 99, 99]), json!([])), "1000 voxels"),
        (input("volume", "FP32", json!([1, 1, 2]), json!([1])), "needs 2"),
        (input("volume", "FP32", json!([1, 1, 1]), json!(["x"])), "expected a number"),
        (input("volume", "FP32", json!([1, 1, 1]), json!([null])), "expected a number"),
        // One voxel thick, it would be padded to 8 on two axes: from 40 voxels to 2560.
        (input("volume", "FP32", json!([40, 1, 1]), json!(vec![0; 40])), "more than the 2000 voxels"),
        (input("volume", "FP32", json!([usize::MAX, 2, 1]), json!([0])), "1000 voxels"),
        (request(json!({ "name": "volume", "datatype": "FP32", "shape": [1, 1, 1] })), "neither"),
        (input("volume", "FP32", json!([1, 1, 1, 1, 1, 1]), json!([1])), "batch and a channel axis"),
        // Values that the datatype has not; what a cast would make of them is another scan.
        (input("volume", "UINT8", json!([1, 1, 3]), json!([1, 255, 300])), "value number 2 is 300: UINT8"),
        (input("volume", "UINT8", json!([1, 1, 2]), json!([-1, 300])), "value number 0 is -1: UINT8"),
        (input("volume", "UINT8", json!([1, 1, 1]), json!([1.5])), "value number 0 is 1.5: UINT8"),
        (input("volume", "FP32", json!([1, 1, 2]), json!([0, 1e39])), "value number 1 is 1"),
        (input("volume", "FP32", json!([1, 1, 1]), json!([true])), "expected a number"),
        (input("volume", "FP32", json!([1, 1, 1]), json!(7)), "expected an array"),
        // Nested otherwise than the shape says, the voxels lie elsewhere than the client thinks.
        (input("volume", "FP32", json!([1, 2, 3]), json!([[1, 2], [3, 4], [5, 6]])), "nested as [3, 2]"),
        (input("volume", "FP32", json!([1, 2, 2]), json!([[[1, 2], [3]]])), "ragged at value number 3"),
        (input("volume", "FP32", json!([1, 1, 2]), json!([1, [2]])), "ragged"),
        (input("volume", "FP32", json!([1, 1, 2]), json!([[1], 2])), "ragged at value number 1"),
        (
            request(json!({ "name": "volume", "datatype": "FP32", "shape": [1, 1, 1],
            "parameters": { "binary_data_size": 4 } })),
            HEADER_LENGTH,
        ),
        (
            request(json!({ "name": "volume", "datatype": "FP32", "shape": [1, 1, 1],
            "parameters": { "shared_memory_region": "r" } })),
            "shared_memory_region is not offered",
        ),
    ];
    for (body, part) in cases {
        let message = parse(&body, None, MAX, Axes::RAS).unwrap_err().to_string();
        assert!(message.contains(part), "{message:?} lacks {part:?}");
    }
    let mut short = request(json!({ "name": "volume", "datatype": "FP32", "shape": [1, 1, 2],
        "parameters": { "binary_data_size": 8 } }));
    let length = short.len();
    short.extend([0; 7]);
    assert!(parse(&short, Some(length), MAX, Axes::RAS).unwrap_err().to_string().contains("7 bytes"));
    assert!(parse(&short, Some(9999), MAX, Axes::RAS).unwrap_err().to_string().contains(HEADER_LENGTH));
    // The header forgotten, and one that is too long or too short.
    assert!(
        parse(&short, None, MAX, Axes::RAS)
            .unwrap_err()
            .to_string()
            .contains("7 bytes follow the JSON: the header Inference")
    );
    let message = parse(&short, Some(length + 2), MAX, Axes::RAS).unwrap_err().to_string();
    assert!(message.contains(&format!("the JSON has {length} bytes")), "{message}");
    let mut full = request(json!({ "name": "volume", "datatype": "UINT8", "shape": [1, 1, 1], "data": [1] }));
    let length = full.len();
    full.extend([7, 7]);
    assert!(
        parse(&full, Some(length), MAX, Axes::RAS)
            .unwrap_err()
            .to_string()
            .contains("2 bytes follow the JSON and belong to no")
    );
    let long = vec![b' '; (MAX_HEAD + 1) as usize];
    assert!(parse(&long, Some(long.len()), MAX, Axes::RAS).unwrap_err().to_string().contains("at most 1048576"));
    let mut nan = request(json!({ "name": "volume", "datatype": "FP32", "shape": [1, 1, 1],
        "parameters": { "binary_data_size": 4 } }));
    let length = nan.len();
    nan.extend(f32::NAN.to_le_bytes());
    assert!(parse(&nan, Some(length), MAX, Axes::RAS).unwrap_err().to_string().contains("finite"));
}

/// A client without the binary extension reads the labels from the JSON.
#[test]
fn an_answer_as_json_lists_the_labels() {
    let identity =
        Identity { name: "m".into(), version: "1".into(), digest: "sha256:0".into(), frame: Frame::default() };
    let form = Form { id: Some("7".into()), shape: vec![1, 1, 3], axes: "LPS".parse().unwrap(), binary: false };
    let Answer { body, json_length } = answer(&identity, &form, &[0, 12, 255]);
    let found: Value = serde_json::from_slice(&body).unwrap();
    let output = json!({ "name": "labels", "datatype": "UINT8", "shape": [1, 1, 3], "data": [0, 12, 255] });
    assert_eq!(json_length, None);
    assert_eq!(
        found,
        json!({ "id": "7", "model_name": "m", "model_version": "1", "outputs": [output],
            "parameters": { "model_digest": "sha256:0", "orientation": "LPS" } })
    );
}

/// Outputs as clients ask for them; an answer of another form than the one asked for would be read as labels all the same.
#[test]
fn the_outputs_asked_for_are_those_that_come() {
    let input = json!({ "name": "volume", "datatype": "UINT8", "shape": [1, 1, 1], "data": [3], "parameters": null });
    let ask = |outputs: Value, parameters: Value| {
        let body = json!({ "inputs": [input], "outputs": outputs, "parameters": parameters });
        parse(body.to_string().as_bytes(), None, MAX, Axes::RAS)
            .map(|question| question.form.binary)
            .map_err(|e| e.to_string())
    };
    let labels = |parameters: Value| json!([{ "name": "labels", "parameters": parameters }]);
    assert_eq!(ask(json!([]), json!({ "binary_data_output": true, "priority": 1, "sequence_id": "s" })), Ok(true));
    assert_eq!(ask(Value::Null, Value::Null), Ok(false));
    assert_eq!(ask(labels(json!({ "binary_data": false })), json!({ "binary_data_output": true })), Ok(false));
    assert_eq!(ask(labels(json!({ "binary_data": true, "other": [1] })), Value::Null), Ok(true));
    for (outputs, part) in [
        (json!([{ "name": "mask" }]), "\"mask\" is not known"),
        (json!([{ "name": "labels" }, { "name": "labels" }]), "name it once"),
        (labels(json!({ "classification": 2 })), "classification is not offered"),
        (labels(json!({ "shared_memory_region": "r" })), "shared_memory_region is not offered"),
    ] {
        let message = ask(outputs, Value::Null).unwrap_err();
        assert!(message.contains(part), "{message:?} lacks {part:?}");
    }
}

/// Numbers at the edges of the datatypes, and those that either would have to bend.
const NUMBERS: [&str; 14] =
    ["0", "-0", "1", "255", "255.0", "256", "300", "-1", "0.5", "1.5", "3.4e38", "3.5e38", "-1e39", "1e-50"];

/// Data of a shape, nested to a depth: flat, as the shape says, or otherwise.
fn nested(values: &[&str], shape: &[usize]) -> String {
    match shape {
        [] => values.first().copied().unwrap_or_default().to_owned(),
        [side, inner @ ..] => {
            let each = values.len() / (*side).max(1);
            let parts: Vec<String> = (0..*side).map(|i| nested(&values[i * each..][..each], inner)).collect();
            format!("[{}]", parts.join(","))
        }
    }
}

proptest! {
    /// Whatever a client sends of any datatype, values, shape and nesting: it is taken exactly if the protocol says what
    /// it means, and then means that.
    #[test]
    fn a_request_is_taken_as_it_stands_or_refused(
        datatype in prop::sample::select(vec!["FP32", "UINT8", "INT16", "BOOL", "BYTES"]),
        lead in prop::collection::vec(prop::sample::select(vec![1_usize, 1, 1, 2, 0]), 0..4),
        sides in prop::array::uniform3(0_usize..4),
        told in prop::option::weighted(0.2, prop::collection::vec(0_usize..4, 1..5)),
        flat in any::<bool>(),
        picks in prop::collection::vec(0..NUMBERS.len(), 64),
        bytes in prop::option::weighted(0.3, 0_usize..40),
    ) {
        let shape: Vec<usize> = lead.iter().chain(&sides).copied().collect();
        let told = told.unwrap_or_else(|| shape.clone());
        let count: usize = told.iter().product();
        let values: Vec<&str> = (0..count).map(|i| NUMBERS[picks[i % 64]]).collect();
        let data = if flat { format!("[{}]", values.join(",")) } else { nested(&values, &told) };
        let mut body = format!(
            r#"{{"inputs":[{{"name":"volume","data":{data},"datatype":"{datatype}","shape":{shape:?}}}]}}"#
        ).into_bytes();
        let length = body.len();
        body.extend(vec![7; bytes.unwrap_or_default()]);
        let found = parse(&body, bytes.map(|_| length), MAX, Axes::RAS);

        let numbers: Vec<f64> = values.iter().map(|text| text.parse().unwrap()).collect();
        let in_range = |v: &f64| match datatype {
            "UINT8" => v.fract() == 0.0 && (0.0..=255.0).contains(v),
            _ => (*v as f32).is_finite(),
        };
        let right = ["FP32", "UINT8"].contains(&datatype)
            && lead.len() <= 2 && lead.iter().all(|&side| side == 1) && sides.iter().all(|&side| side > 0)
            && count == shape.iter().product::<usize>() && (flat || told == shape || told.len() == 1)
            && numbers.iter().all(in_range) && bytes.unwrap_or_default() == 0;
        match found {
            Ok(question) => {
                prop_assert!(right, "taken: {}", String::from_utf8_lossy(&body));
                prop_assert_eq!(question.form.shape, shape);
                let voxels: Vec<f32> = numbers.iter().map(|&v| v as f32).collect();
                prop_assert_eq!(question.volume.voxels, voxels);
            }
            Err(e) => prop_assert!(!right, "{e}: {}", String::from_utf8_lossy(&body)),
        }
    }

    /// The same for bytes: exactly as many as shape and datatype need, or a message.
    #[test]
    fn bytes_are_as_many_as_the_shape_needs(
        wide in any::<bool>(),
        sides in prop::array::uniform3(1_usize..4),
        size in 0_usize..120,
        sent in 0_usize..120,
        exact in any::<bool>(),
    ) {
        let datatype = if wide { "FP32" } else { "UINT8" };
        let needed = sides.iter().product::<usize>() * if wide { 4 } else { 1 };
        let (size, sent) = if exact { (needed, needed) } else { (size, sent) };
        let mut body = request(json!({ "name": "volume", "datatype": datatype, "shape": sides,
            "parameters": { "binary_data_size": size } }));
        let length = body.len();
        body.extend(vec![0; sent]);
        let found = parse(&body, Some(length), MAX, Axes::RAS);
        prop_assert_eq!(found.is_ok(), size == needed && sent == needed, "{:?}", found);
    }

    /// Bytes of any kind get an answer, whatever the header says.
    #[test]
    fn nothing_makes_the_parser_fall_over(body in prop::collection::vec(any::<u8>(), 0..200), length in prop::option::of(0_usize..300)) {
        let _ = parse(&body, length, MAX, Axes::RAS);
    }
}

/// A scan that a client stores in another order shows the model a mirrored patient, unless it says so; then the model sees
/// what it learnt, and the client gets the labels where it has the voxels.
#[test]
fn a_scan_is_brought_to_the_models_order_by_what_the_client_says() {
    let body = |of_input: Value, of_request: Value, shape: Value| {
        let input = json!({ "name": "volume", "datatype": "UINT8", "shape": shape, "data": [1, 2, 3, 4, 5, 6],
            "parameters": of_input });
        json!({ "inputs": [input], "parameters": of_request }).to_string().into_bytes()
    };
    let said = |orientation: &str| json!({ "orientation": orientation });
    // x to the left, y to the back: three voxels along x, two along y.
    for body in [body(said("LPS"), Value::Null, json!([1, 2, 3])), body(json!({}), said("LPS"), json!([1, 2, 3]))] {
        let question = parse(&body, None, MAX, Axes::RAS).unwrap();
        assert_eq!((question.volume.grid.shape, &question.form.shape), ([3, 2, 1], &vec![1, 2, 3]));
        assert_eq!(question.volume.voxels, [6.0, 5.0, 4.0, 3.0, 2.0, 1.0]);
        assert_eq!(question.turn.back().voxels(vec![9, 0, 0, 0, 0, 7], [3, 2, 1]), [7, 0, 0, 0, 0, 9]);
    }
    // Axes swapped, as bytes: x upwards, z to the right.
    let mut bytes = request(json!({ "name": "volume", "datatype": "FP32", "shape": [1, 2, 3],
        "parameters": { "binary_data_size": 24, "orientation": "SAR" } }));
    let length = bytes.len();
    bytes.extend([1.0_f32, 2.0, 3.0, 4.0, 5.0, 6.0].iter().flat_map(|v| v.to_le_bytes()));
    let question = parse(&bytes, Some(length), MAX, Axes::RAS).unwrap();
    assert_eq!((question.volume.grid.shape, &question.form.shape), ([1, 2, 3], &vec![1, 2, 3]));
    assert_eq!(question.volume.voxels, [1.0, 4.0, 2.0, 5.0, 3.0, 6.0]);
    // A model that learnt on LPS is shown that: what lies so already is left, and RAS is turned.
    let lies = parse(&body(said("LPS"), Value::Null, json!([1, 2, 3])), None, MAX, "LPS".parse().unwrap()).unwrap();
    assert_eq!(lies.volume.voxels, [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    let turned = parse(&body(said("RAS"), Value::Null, json!([1, 2, 3])), None, MAX, "LPS".parse().unwrap()).unwrap();
    assert_eq!(turned.volume.voxels, [6.0, 5.0, 4.0, 3.0, 2.0, 1.0]);
    // The number of a bad voxel is the client's.
    bytes[length + 4..length + 8].copy_from_slice(&f32::NAN.to_le_bytes());
    assert!(parse(&bytes, Some(length), MAX, Axes::RAS).unwrap_err().to_string().contains("value number 1 is NaN"));

    let refused = |body: Vec<u8>| parse(&body, None, MAX, Axes::RAS).unwrap_err().to_string();
    let message = refused(body(said("LPX"), Value::Null, json!([1, 2, 3])));
    assert!(message.contains("parameters.orientation \"LPX\": three letters"), "{message}");
    let message = refused(body(said("LPS"), said("RAS"), json!([1, 2, 3])));
    assert!(message.contains("\"LPS\" of the input and \"RAS\" of the request"), "{message}");
}
