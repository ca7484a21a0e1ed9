//! Distances between the surfaces of two masks.

use super::distance::squared_distances;
use crate::volume::{Grid, Mask};

/// Distances of two surfaces in mm.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SurfaceDistances {
    /// The larger of the two directed 95th percentiles (as MONAI and DeepMind's surface-distance take it).
    pub hd95_mm: f64,
    /// Mean over all surface voxels of both masks of the distance to the other surface.
    pub assd_mm: f64,
}

/// Distances of one class between two masks of the same shape, centre to centre of surface voxels, with the spacing of
/// `truth`. A surface voxel has a neighbour across one of its six faces that is not of the class, or lies at the edge of
/// the volume. `None` when either mask is empty: see the rules of [`crate::metrics`].
pub fn surface_distances(prediction: &Mask, truth: &Mask, class: u8) -> Option<SurfaceDistances> {
    let grid = &truth.grid;
    let (a, b) = (surface(grid, &prediction.labels, class), surface(grid, &truth.labels, class));
    if a.is_empty() || b.is_empty() {
        return None;
    }
    let (mut there, mut back) = (directed(grid, &a, &b), directed(grid, &b, &a));
    let total: f64 = there.iter().chain(&back).sum();
    let assd_mm = total / (there.len() + back.len()) as f64;
    Some(SurfaceDistances { hd95_mm: percentile(&mut there, 0.95).max(percentile(&mut back, 0.95)), assd_mm })
}

/// Offsets of the surface voxels of one class, ascending.
fn surface(grid: &Grid, labels: &[u8], class: u8) -> Vec<usize> {
    let [nx, ny, nz] = grid.shape;
    let is_surface = |at: usize| {
        let [x, y, z] = grid.position(at);
        let edge = x == 0 || y == 0 || z == 0 || x + 1 == nx || y + 1 == ny || z + 1 == nz;
        edge || [1, nx, nx * ny].into_iter().any(|stride| labels[at - stride] != class || labels[at + stride] != class)
    };
    (0..labels.len()).filter(|&at| labels[at] == class && is_surface(at)).collect()
}

/// Distance in mm of each voxel of `from` to the nearest of `to`.
fn directed(grid: &Grid, from: &[usize], to: &[usize]) -> Vec<f64> {
    let mut target = vec![false; grid.len()];
    for &at in to {
        target[at] = true;
    }
    let field = squared_distances(grid, |at| target[at]);
    from.iter().map(|&at| field[at].sqrt()).collect()
}

/// The value below which a share of the values lies, between neighbours by straight line (numpy's default).
/// Sorts the values; 0 when there are none.
pub fn percentile(values: &mut [f64], share: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let Some(last) = values.len().checked_sub(1) else { return 0.0 };
    let place = share.clamp(0.0, 1.0) * last as f64;
    let (low, high) = (place.floor() as usize, place.ceil() as usize);
    values[low] + (values[high] - values[low]) * (place - low as f64)
}
