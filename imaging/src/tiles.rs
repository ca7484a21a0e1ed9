//! How a volume larger than a network's input is cut into overlapping tiles and put together again (as nnU-Net does:
//! step of half a tile, Gaussian weights with σ = tile / 8).

/// Share of a tile by which neighbours are apart.
const STEP: f64 = 0.5;
/// σ of the weights as a share of the tile.
const SIGMA: f64 = 1.0 / 8.0;

/// First voxels of the tiles that cover an axis of length `side`, at most half a tile apart and evenly spread.
/// `side` must be at least `tile`.
fn starts(side: usize, tile: usize) -> Vec<usize> {
    let room = side.saturating_sub(tile);
    let step = ((tile as f64 * STEP) as usize).max(1);
    let count = room.div_ceil(step) + 1;
    if count == 1 {
        return vec![0];
    }
    (0..count).map(|i| (room as f64 * i as f64 / (count - 1) as f64).round() as usize).collect()
}

/// Corners (x, y, z) of all tiles over a volume; every voxel lies in at least one tile.
pub fn corners(shape: [usize; 3], tile: [usize; 3]) -> Vec<[usize; 3]> {
    let [xs, ys, zs] = [0, 1, 2].map(|axis| starts(shape[axis], tile[axis]));
    let mut all = Vec::with_capacity(xs.len() * ys.len() * zs.len());
    for &z in &zs {
        for &y in &ys {
            all.extend(xs.iter().map(|&x| [x, y, z]));
        }
    }
    all
}

/// Weight of each voxel of a tile, 1 at the centre; x is the fastest axis. No weight is 0: what underflows takes the
/// smallest weight that is not, so that a voxel seen only by a tile's corner still gets a class.
pub fn gaussian(tile: [usize; 3]) -> Vec<f32> {
    let axis = |length: usize| -> Vec<f64> {
        let (centre, sigma) = ((length as f64 - 1.0) / 2.0, (length as f64 * SIGMA).max(f64::MIN_POSITIVE));
        (0..length).map(|i| (-0.5 * ((i as f64 - centre) / sigma).powi(2)).exp()).collect()
    };
    let [wx, wy, wz] = tile.map(axis);
    let mut weights = Vec::with_capacity(tile.iter().product());
    for z in &wz {
        for y in &wy {
            weights.extend(wx.iter().map(|x| (x * y * z) as f32));
        }
    }
    let largest = weights.iter().copied().fold(f32::MIN_POSITIVE, f32::max);
    let smallest = weights.iter().copied().filter(|w| *w > 0.0).fold(f32::MAX, f32::min) / largest;
    for weight in &mut weights {
        *weight = (*weight / largest).max(smallest);
    }
    weights
}
