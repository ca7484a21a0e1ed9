//! Labelled volumes made from numbers alone, so that tests and a first demo need no patient's scan.
//!
//! A phantom shows a curved, tapering body in two parts (class 1 in front, class 2 behind) among tissue, fluid and
//! look-alikes. Persons differ in size, bend and place; hospitals in contrast, coil bias, noise and voxel spacing.
//! Equal seeds give equal bytes. It is a toy: a model trained on it knows nothing about brains.

use rand::rngs::ChaCha8Rng;

use crate::random::{normal, stream, uniform};
use crate::volume::{Grid, Mask, Volume};

/// Background, front part, back part.
pub const PHANTOM_CLASSES: u8 = 3;

/// How scans of one hospital look.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Profile {
    /// Mean intensity of tissue, in the scanner's arbitrary units.
    pub scale: f32,
    /// Difference between the body and the tissue around it, as a share of the tissue's intensity.
    pub contrast: f32,
    /// Strength of the smooth coil shading (0: none; 0.5: corners differ by about a factor of 1.6).
    pub bias: f32,
    /// Standard deviation of the noise as a share of the tissue's intensity.
    pub noise: f32,
    /// Voxel spacing x, y, z in mm.
    pub spacing: [f32; 3],
}

impl Profile {
    /// The look of hospital number `index`; after four they repeat with other persons.
    pub fn of_hospital(index: usize) -> Self {
        const LOOKS: [Profile; 4] = [
            Profile { scale: 600.0, contrast: 0.45, bias: 0.15, noise: 0.05, spacing: [1.0, 1.0, 1.0] },
            Profile { scale: 90.0, contrast: 0.35, bias: 0.30, noise: 0.07, spacing: [1.0, 1.0, 1.1] },
            Profile { scale: 14000.0, contrast: 0.55, bias: 0.10, noise: 0.09, spacing: [0.95, 0.95, 1.0] },
            Profile { scale: 300.0, contrast: 0.40, bias: 0.40, noise: 0.06, spacing: [1.05, 1.0, 1.0] },
        ];
        LOOKS[index % LOOKS.len()]
    }
}

/// A body along y: centre line bent by a parabola in x and z, radius thick in front and thin behind.
struct Body {
    centre: [f32; 3],
    half_length: f32,
    radius: f32,
    bend: [f32; 2],
    tilt: [f32; 2],
    /// Where the front part ends, from -1 (front tip) to 1 (back tip).
    boundary: f32,
}

impl Body {
    fn random(rng: &mut ChaCha8Rng, extent: [f32; 3]) -> Self {
        let size = uniform(rng, 0.8, 1.15);
        Self {
            centre: [0, 1, 2].map(|axis| extent[axis] * uniform(rng, 0.42, 0.58)),
            half_length: 0.34 * size * extent[1],
            radius: 0.17 * size * extent[0].min(extent[2]),
            bend: [uniform(rng, -0.12, 0.12) * extent[0], uniform(rng, 0.02, 0.14) * extent[2]],
            tilt: [uniform(rng, -0.08, 0.08) * extent[0], uniform(rng, -0.08, 0.08) * extent[2]],
            boundary: uniform(rng, -0.25, 0.05),
        }
    }

    /// (place along the body from -1 to 1, distance from the centre line as a share of the radius there), in mm space.
    fn locate(&self, [x, y, z]: [f32; 3]) -> Option<(f32, f32)> {
        let along = (y - self.centre[1]) / self.half_length;
        if !(-1.0..=1.0).contains(&along) {
            return None;
        }
        let line_x = self.centre[0] + self.bend[0] * along * along + self.tilt[0] * along;
        let line_z = self.centre[2] + self.bend[1] * (along * along - 0.3) + self.tilt[1] * along;
        let taper = (1.0 - along.powi(4)).max(0.0).sqrt() * (1.0 - 0.3 * along);
        let radius = self.radius * taper;
        if radius <= 0.0 {
            return None;
        }
        let off = ((x - line_x).powi(2) + (1.25 * (z - line_z)).powi(2)).sqrt();
        Some((along, off / radius))
    }
}

/// A round thing that is no part of any class but has a similar or a dark intensity.
struct Blob {
    centre: [f32; 3],
    radius: f32,
    level: f32,
}

/// One phantom of shape x, y, z: person `subject` scanned in a hospital with the given look.
pub fn phantom(seed: u64, subject: u64, shape: [usize; 3], look: &Profile) -> (Volume, Mask) {
    let mut rng = stream(seed, "phantom", subject);
    let grid = Grid::axis_aligned(shape, look.spacing);
    let extent = [0, 1, 2].map(|axis| shape[axis] as f32 * look.spacing[axis]);
    let body = Body::random(&mut rng, extent);
    let blobs = blobs(&mut rng, extent, look.contrast);
    let shading: [f32; 6] = std::array::from_fn(|_| look.bias * uniform(&mut rng, -1.0, 1.0));
    let texture: [[f32; 4]; 4] = std::array::from_fn(|_| {
        [
            uniform(&mut rng, 0.1, 0.35),
            uniform(&mut rng, 0.1, 0.35),
            uniform(&mut rng, 0.1, 0.35),
            uniform(&mut rng, 0.0, 6.3),
        ]
    });
    let gain = look.scale * uniform(&mut rng, 0.85, 1.15);
    let mut voxels = Vec::with_capacity(grid.len());
    let mut labels = Vec::with_capacity(grid.len());
    for at in 0..grid.len() {
        let voxel = grid.position(at);
        let place = [0, 1, 2].map(|axis| voxel[axis] as f32 * look.spacing[axis]);
        let (label, level) = tissue(&body, &blobs, look.contrast, place);
        let waves: f32 = texture
            .iter()
            .map(|[fx, fy, fz, phase]| 0.03 * (fx * place[0] + fy * place[1] + fz * place[2] + phase).sin())
            .sum();
        let shade = shade(&shading, [0, 1, 2].map(|axis| 2.0 * place[axis] / extent[axis] - 1.0));
        let clean = (level + waves) * shade;
        // Rician: the magnitude of a complex signal with equal noise on both parts, as in magnitude MR images.
        let (re, im) = (clean + look.noise * normal(&mut rng), look.noise * normal(&mut rng));
        voxels.push(gain * re.hypot(im));
        labels.push(label);
    }
    (Volume { grid: grid.clone(), voxels }, Mask { grid, labels })
}

fn blobs(rng: &mut ChaCha8Rng, extent: [f32; 3], contrast: f32) -> Vec<Blob> {
    (0..6)
        .map(|i| Blob {
            centre: [0, 1, 2].map(|axis| extent[axis] * uniform(rng, 0.0, 1.0)),
            radius: extent[0] * uniform(rng, 0.06, 0.14),
            // Two look-alikes as bright as the body, four dark pools of fluid.
            level: if i < 2 { 1.0 + contrast } else { uniform(rng, 0.25, 0.5) },
        })
        .collect()
}

/// Label and noiseless intensity (tissue = 1) at a place in mm. Edges are blurred over about a tenth of the radius.
fn tissue(body: &Body, blobs: &[Blob], contrast: f32, place: [f32; 3]) -> (u8, f32) {
    let mut level = 1.0;
    for blob in blobs {
        let distance = (0..3).map(|i| (place[i] - blob.centre[i]).powi(2)).sum::<f32>().sqrt();
        if distance < blob.radius {
            level = blob.level;
        }
    }
    let Some((along, off)) = body.locate(place) else { return (0, level) };
    let share = ((1.1 - off) / 0.2).clamp(0.0, 1.0);
    // The front part is a little brighter, as a second cue beside its place.
    let inner = 1.0 + contrast * if along < body.boundary { 1.1 } else { 0.95 };
    let level = level * (1.0 - share) + inner * share;
    let label = if off > 1.0 {
        0
    } else if along < body.boundary {
        1
    } else {
        2
    };
    (label, level)
}

/// A smooth positive factor over the cube [-1, 1]³: the exponential of a polynomial of second degree.
pub(crate) fn shade(coefficients: &[f32; 6], [x, y, z]: [f32; 3]) -> f32 {
    let [a, b, c, d, e, f] = coefficients;
    (a * x + b * y + c * z + 0.5 * (d * x * y + e * y * z + f * x * z)).exp()
}
