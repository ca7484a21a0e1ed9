//! Requests to a served model.

use consilium_imaging::frame::Frame;
use consilium_imaging::place::Axes;
use consilium_inference::encoding::Encoding;
use consilium_inference::memory::Bounds;
use consilium_inference::protocol::Identity;
use consilium_inference::protocol::{answer, parse, read_answer};

const BOUNDS: Bounds =
    Bounds { tile: [8, 8, 8], tiles: 1, max_voxels: 1000, canvas_voxels: 2000, room: 1 << 20, max_json: 1 << 20 };

/// The first two bytes are the length of the JSON, and all ones stand for a request without the header.
pub(crate) fn oip(data: &[u8]) -> bool {
    let Some((head, body)) = data.split_at_checked(2) else { return false };
    let length = u16::from_le_bytes([head[0], head[1]]);
    let length = (length != u16::MAX).then_some(usize::from(length));
    let _ = read_answer(body, length, &consilium_imaging::Grid::axis_aligned([2, 2, 2], [1.0; 3]));
    match parse(body, length, &BOUNDS, Axes::RAS) {
        Ok(question) => {
            // What was taken is answered in the shape that it came in, and every voxel is one.
            let voxels = question.volume.voxels.len();
            assert_eq!(question.form.shape.iter().product::<usize>(), voxels);
            assert!(voxels <= BOUNDS.max_voxels && question.volume.voxels.iter().all(|voxel| voxel.is_finite()));
            let identity =
                Identity { name: "m".into(), version: "1".into(), digest: "d".into(), frame: Frame::default() };
            answer(&identity, &question.form, &vec![0; voxels]);
            true
        }
        Err(refusal) => {
            assert!(!refusal.0.is_empty());
            false
        }
    }
}

/// A compressed body: the first byte says how; never more comes out than was allowed.
pub(crate) fn encoding(data: &[u8]) -> bool {
    const MOST: u64 = 1 << 16;
    let Some((first, body)) = data.split_first() else { return false };
    let way = [Encoding::Identity, Encoding::Gzip, Encoding::Deflate][usize::from(first % 3)];
    match way.inflate(body, MOST, &mut |_| true) {
        Ok(out) => {
            assert!(out.len() as u64 <= MOST || out.len() == body.len());
            true
        }
        Err(_) => false,
    }
}
