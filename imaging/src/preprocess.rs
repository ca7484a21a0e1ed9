//! From a scan to what a network sees: z-scored intensities on a fixed shape.

/// Subtracts the mean and divides by the standard deviation over all voxels, in place.
///
/// A volume of one single value becomes zero everywhere.
pub fn z_score(voxels: &mut [f32]) {
    let scored = scoring(voxels);
    for voxel in voxels {
        *voxel = scored(*voxel);
    }
}

/// The z-scored voxels of shape `from`, centred in shape `to` as by [`pad_or_crop`], in one new buffer. Beyond the scan
/// stands 0, after the z-score the mean: the least surprising thing to see there.
pub fn z_scored(voxels: &[f32], from: [usize; 3], to: [usize; 3]) -> Vec<f32> {
    centred(voxels, from, to, 0.0, scoring(voxels))
}

fn scoring(voxels: &[f32]) -> impl Fn(f32) -> f32 + use<> {
    let n = voxels.len().max(1) as f64;
    let mean = voxels.iter().map(|&v| f64::from(v)).sum::<f64>() / n;
    let variance = voxels.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / n;
    let deviation = if variance > 0.0 { variance.sqrt() } else { 1.0 };
    move |voxel| ((f64::from(voxel) - mean) / deviation) as f32
}

/// The smallest shape that holds every given shape and can be halved `levels` times.
pub fn covering_shape(shapes: impl IntoIterator<Item = [usize; 3]>, levels: u32) -> [usize; 3] {
    let factor = 1_usize << levels;
    let mut largest = [1; 3];
    for shape in shapes {
        for axis in 0..3 {
            largest[axis] = largest[axis].max(shape[axis]);
        }
    }
    largest.map(|side| side.next_multiple_of(factor))
}

/// Where a centred box of shape `to` lies over one of shape `from`: per axis (first source index, first target index,
/// length) of the part they share.
fn overlap(from: [usize; 3], to: [usize; 3]) -> [(usize, usize, usize); 3] {
    [0, 1, 2].map(|axis| {
        let (f, t) = (from[axis], to[axis]);
        if f >= t { ((f - t) / 2, 0, t) } else { (0, (t - f) / 2, f) }
    })
}

/// Centres voxels of shape `from` in shape `to`: cut where larger, filled where smaller. x is the fastest axis of both.
pub fn pad_or_crop<T: Copy>(voxels: &[T], from: [usize; 3], to: [usize; 3], fill: T) -> Vec<T> {
    centred(voxels, from, to, fill, |voxel| voxel)
}

pub(crate) fn centred<T: Copy>(
    voxels: &[T],
    from: [usize; 3],
    to: [usize; 3],
    fill: T,
    change: impl Fn(T) -> T,
) -> Vec<T> {
    let mut out = vec![fill; to.iter().product()];
    let [(fx, tx, nx), (fy, ty, ny), (fz, tz, nz)] = overlap(from, to);
    for z in 0..nz {
        for y in 0..ny {
            let source = fx + from[0] * (fy + y + from[1] * (fz + z));
            let target = tx + to[0] * (ty + y + to[1] * (tz + z));
            for (out, voxel) in out[target..target + nx].iter_mut().zip(&voxels[source..source + nx]) {
                *out = change(*voxel);
            }
        }
    }
    out
}

/// Whether a shape can be halved `levels` times without a remainder on every axis.
pub fn divisible(shape: [usize; 3], levels: u32) -> bool {
    shape.iter().all(|side| *side > 0 && side % (1 << levels) == 0)
}

/// What a cut to `shape` takes of a mask, if it takes anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lost {
    /// Labelled voxels beyond the cut.
    pub lost: usize,
    /// Labelled voxels.
    pub all: usize,
    /// The smallest shape, not below `shape` and of sides that can be halved as often, that keeps them all.
    pub needed: [usize; 3],
}

/// Counts the labelled voxels of shape `from` that [`pad_or_crop`] to `shape` would take away; `levels` is how often
/// shapes must be halved.
pub fn labels_lost(labels: &[u8], from: [usize; 3], shape: [usize; 3], levels: u32) -> Option<Lost> {
    if (0..3).all(|axis| from[axis] <= shape[axis]) {
        return None;
    }
    let inside = |at: usize, axis: usize, to: usize| {
        let first = from[axis].saturating_sub(to) / 2;
        (first..first + to).contains(&at)
    };
    let (mut lost, mut all) = (0, 0);
    let mut span = [(usize::MAX, 0); 3];
    let [nx, ny, _] = from;
    for (offset, _) in labels.iter().enumerate().filter(|(_, label)| **label != 0) {
        let at = [offset % nx, (offset / nx) % ny, offset / (nx * ny)];
        all += 1;
        lost += usize::from(!(0..3).all(|axis| inside(at[axis], axis, shape[axis])));
        for axis in 0..3 {
            span[axis] = (span[axis].0.min(at[axis]), span[axis].1.max(at[axis]));
        }
    }
    let needed = [0, 1, 2].map(|axis| {
        let (low, high) = span[axis];
        let mut sides = (shape[axis]..).step_by(1 << levels);
        let holds = |side: &usize| *side >= from[axis] || (inside(low, axis, *side) && inside(high, axis, *side));
        sides.find(holds).unwrap_or(shape[axis])
    });
    (lost > 0).then_some(Lost { lost, all, needed })
}
