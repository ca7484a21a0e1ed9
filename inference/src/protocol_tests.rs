//! The protocol as a client sees it: a wrong message here is a radiologist's workstation that shows nothing.

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
        let question = parse(&body, None, MAX).unwrap();
        // [z, y, x] = [1, 2, 3] is three voxels along x.
        assert_eq!(question.volume.grid.shape, [3, 2, 1]);
        assert_eq!(question.volume.voxels, [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        assert_eq!((question.id.as_deref(), question.binary_answer), (Some("7"), false));
    }
}

#[test]
fn binary_tensors_there_and_back() {
    let grid = Grid::axis_aligned([3, 2, 1], [1.0; 3]);
    let volume = Volume { grid: grid.clone(), voxels: vec![0.5, -1.0, 2.0, 0.0, 7.0, 8.0] };
    let (body, length) = ask(&volume);
    let question = parse(&body, Some(length), MAX).unwrap();
    assert_eq!(question.volume, volume);
    assert!(question.binary_answer);
    let identity = Identity { name: "m".into(), version: "1".into(), digest: "sha256:0".into() };
    let mask = Mask { grid: grid.clone(), labels: vec![0, 1, 2, 0, 1, 2] };
    let answer = answer(&identity, None, true, &mask);
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
    let question = parse(&body, Some(length), MAX).unwrap();
    assert_eq!(question.volume.grid.shape, [2, 1, 2]);
    assert_eq!(question.volume.voxels, [0.0, 1.0, 254.0, 255.0]);
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
    ];
    for (body, part) in cases {
        let message = parse(&body, None, MAX).unwrap_err().to_string();
        assert!(message.contains(part), "{message:?} lacks {part:?}");
    }
    let mut short = request(json!({ "name": "volume", "datatype": "FP32", "shape": [1, 1, 2],
        "parameters": { "binary_data_size": 8 } }));
    let length = short.len();
    short.extend([0; 7]);
    assert!(parse(&short, Some(length), MAX).unwrap_err().to_string().contains("7 bytes"));
    assert!(parse(&short, Some(9999), MAX).unwrap_err().to_string().contains(HEADER_LENGTH));
    let long = vec![b' '; (MAX_HEAD + 1) as usize];
    assert!(parse(&long, Some(long.len()), MAX).unwrap_err().to_string().contains("at most 1048576"));
    let mut nan = request(json!({ "name": "volume", "datatype": "FP32", "shape": [1, 1, 1],
        "parameters": { "binary_data_size": 4 } }));
    let length = nan.len();
    nan.extend(f32::NAN.to_le_bytes());
    assert!(parse(&nan, Some(length), MAX).unwrap_err().to_string().contains("finite"));
}

/// A client without the binary extension reads the labels from the JSON.
#[test]
fn an_answer_as_json_lists_the_labels() {
    let mask = Mask { grid: Grid::axis_aligned([3, 1, 1], [1.0; 3]), labels: vec![0, 12, 255] };
    let identity = Identity { name: "m".into(), version: "1".into(), digest: "sha256:0".into() };
    let Answer { body, json_length } = answer(&identity, Some("7"), false, &mask);
    let found: Value = serde_json::from_slice(&body).unwrap();
    let output = json!({ "name": "labels", "datatype": "UINT8", "shape": [1, 1, 3], "data": [0, 12, 255] });
    assert_eq!(json_length, None);
    assert_eq!(
        found,
        json!({ "id": "7", "model_name": "m", "model_version": "1", "outputs": [output],
            "parameters": { "model_digest": "sha256:0" } })
    );
}
