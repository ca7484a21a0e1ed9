//! Simulated differences between scanners, applied to scans one has. Whatever is shown of data changed by this must say
//! that the hospitals are simulated.

use crate::phantom::shade;
use crate::random::{normal, stream, uniform};
use crate::volume::Volume;

/// A simulated scanner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shift {
    /// Slices three voxels thick along z (the grid stays), and noise of a fifth of the standard deviation.
    ThickSlices,
    /// Strong coil shading and inverted contrast, like T2 beside T1.
    InvertedBias,
}

/// The volume as the simulated scanner would have made it. The same seed and case give the same volume; masks keep
/// their place, so they stay valid.
pub fn apply(shift: Shift, volume: &Volume, seed: u64, case: u64) -> Volume {
    let mut rng = stream(seed, "shift", case);
    let mut out = volume.clone();
    match shift {
        Shift::ThickSlices => {
            thicken(&mut out, 3);
            let noise = 0.2 * deviation(&volume.voxels);
            for voxel in &mut out.voxels {
                *voxel += noise * normal(&mut rng);
            }
        }
        Shift::InvertedBias => {
            let top = volume.voxels.iter().copied().fold(f32::MIN, f32::max);
            let coefficients: [f32; 6] = std::array::from_fn(|_| 0.5 * uniform(&mut rng, -1.0, 1.0));
            for at in 0..out.voxels.len() {
                let [x, y, z] = out.grid.position(at);
                let place = [(x, 0), (y, 1), (z, 2)]
                    .map(|(i, axis)| 2.0 * i as f32 / (out.grid.shape[axis].max(2) - 1) as f32 - 1.0);
                out.voxels[at] = (top - out.voxels[at]) * shade(&coefficients, place);
            }
        }
    }
    out
}

/// Replaces each run of `slices` slices along z by their mean.
fn thicken(volume: &mut Volume, slices: usize) {
    let plane = volume.grid.shape[0] * volume.grid.shape[1];
    for run in volume.voxels.chunks_mut(plane * slices) {
        let count = run.len() / plane;
        for at in 0..plane {
            let mean = (0..count).map(|slice| run[at + slice * plane]).sum::<f32>() / count as f32;
            for slice in 0..count {
                run[at + slice * plane] = mean;
            }
        }
    }
}

fn deviation(voxels: &[f32]) -> f32 {
    let n = voxels.len().max(1) as f64;
    let mean = voxels.iter().map(|&v| f64::from(v)).sum::<f64>() / n;
    (voxels.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / n).sqrt() as f32
}
