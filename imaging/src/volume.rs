//! A scan in memory: intensities or labels on a regular grid.

use crate::place::Axes;

/// Where voxels lie: shape, spacing and place in the scanner's space.
#[derive(Debug, Clone, PartialEq)]
pub struct Grid {
    /// Voxels along x, y, z.
    pub shape: [usize; 3],
    /// Distance of neighbouring voxel centres along x, y, z, in mm.
    pub spacing: [f32; 3],
    /// Rows x, y, z of the voxel-to-space matrix, in mm (NIfTI's `srow_*`).
    pub affine: [[f32; 4]; 3],
    /// Whether the file says where the axes point in the patient. Without a `qform_code` or `sform_code` the affine is
    /// made of the spacing alone and says nothing of left and right.
    pub placed: bool,
}

impl Grid {
    /// A grid at the origin with axes along the scanner's: `RAS`.
    pub fn axis_aligned(shape: [usize; 3], spacing: [f32; 3]) -> Self {
        let mut affine = [[0.0; 4]; 3];
        for axis in 0..3 {
            affine[axis][axis] = spacing[axis];
        }
        Self { shape, spacing, affine, placed: true }
    }

    /// Number of voxels.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether there is no voxel.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Offset of voxel (x, y, z); x is the fastest axis.
    pub fn offset(&self, [x, y, z]: [usize; 3]) -> usize {
        x + self.shape[0] * (y + self.shape[1] * z)
    }

    /// Where the voxel axes point in the patient; `None` where the file does not say.
    pub fn axes(&self) -> Option<Axes> {
        self.placed.then(|| Axes::of(&self.affine))
    }

    /// Voxel (x, y, z) at an offset.
    pub fn position(&self, offset: usize) -> [usize; 3] {
        let [nx, ny, _] = self.shape;
        [offset % nx, (offset / nx) % ny, offset / (nx * ny)]
    }
}

/// An image: one real intensity per voxel, x fastest.
#[derive(Debug, Clone, PartialEq)]
pub struct Volume {
    /// Where the voxels lie.
    pub grid: Grid,
    /// Intensities; exactly `grid.len()` of them, all finite when read by this crate.
    pub voxels: Vec<f32>,
}

/// A segmentation: one class per voxel, x fastest; 0 is background.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mask {
    /// Where the voxels lie.
    pub grid: Grid,
    /// Classes; exactly `grid.len()` of them.
    pub labels: Vec<u8>,
}

impl Eq for Grid {}

impl Mask {
    /// Voxels of one class.
    pub fn count(&self, class: u8) -> usize {
        self.labels.iter().filter(|&&label| label == class).count()
    }
}
