//! A folder's scans as the network sees them, checked and kept in memory.

use std::path::Path;

use consilium_imaging::msd::{Case, labelled_cases, load};
use consilium_imaging::preprocess::{covering_shape, pad_or_crop, z_score};
use consilium_imaging::torch::{to_label_tensor, to_tensor};
use consilium_imaging::{Mask, ScanError, Volume};
use tch::{Device, Kind, TchError, Tensor};

use crate::config::{Axis, TrainerConfig};
use crate::error::TrainerError;

/// One scan, ready for a batch.
#[derive(Debug)]
struct Example {
    /// `[1, 1, z, y, x]`, float32.
    image: Tensor,
    /// `[1, z, y, x]`, uint8: an eighth of the memory of what the loss wants.
    labels: Tensor,
}

/// All scans of a task.
#[derive(Debug)]
pub struct Examples {
    all: Vec<Example>,
    shape: [usize; 3],
}

/// Reads and checks every labelled case of a folder. All bad files are named at once, so that a hospital corrects its
/// export once and not file by file.
pub fn read_folder(folder: &Path, classes: u8) -> Result<Vec<(Case, Volume, Mask)>, ScanError> {
    read_cases(labelled_cases(folder)?, classes)
}

/// Reads and checks some cases.
pub fn read_cases(cases: Vec<Case>, classes: u8) -> Result<Vec<(Case, Volume, Mask)>, ScanError> {
    let (mut scans, mut bad) = (Vec::new(), Vec::new());
    for case in cases {
        match load(&case, classes) {
            Ok((volume, mask)) => scans.push((case, volume, mask)),
            Err(e) => bad.push(e),
        }
    }
    ScanError::fold(bad).map_or(Ok(scans), Err)
}

/// The shape a config asks for, else the smallest that covers the scans.
pub fn shape_for(config: &TrainerConfig, shapes: impl IntoIterator<Item = [usize; 3]>) -> [usize; 3] {
    config.shape.unwrap_or_else(|| covering_shape(shapes, config.network().levels))
}

impl Examples {
    /// Prepares scans: z-scored, then padded or cut to the shape.
    pub fn prepare(scans: &[(Case, Volume, Mask)], config: &TrainerConfig) -> Result<Self, TrainerError> {
        let shape = shape_for(config, scans.iter().map(|(_, volume, _)| volume.grid.shape));
        let all =
            scans.iter().map(|(_, volume, mask)| example(volume, mask, shape)).collect::<Result<Vec<_>, TchError>>()?;
        Ok(Self { all, shape })
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.all.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// Their common shape x, y, z.
    pub fn shape(&self) -> [usize; 3] {
        self.shape
    }

    /// Images `[n, 1, z, y, x]` and labels `[n, z, y, x]` of the chosen examples, each mirrored along its axes.
    pub fn batch(&self, chosen: &[(usize, Vec<Axis>)], device: Device) -> Result<(Tensor, Tensor), TchError> {
        let (mut images, mut labels) = (Vec::new(), Vec::new());
        for (at, mirrored) in chosen {
            let axes: Vec<i64> = mirrored.iter().map(|axis| axis.from_end()).collect();
            images.push(self.all[*at].image.f_flip(&axes)?);
            labels.push(self.all[*at].labels.f_flip(&axes)?);
        }
        let labels = Tensor::f_cat(&labels, 0)?.f_to_device(device)?.f_to_kind(Kind::Int64)?;
        Ok((Tensor::f_cat(&images, 0)?.f_to_device(device)?, labels))
    }
}

fn example(volume: &Volume, mask: &Mask, shape: [usize; 3]) -> Result<Example, TchError> {
    let mut voxels = volume.voxels.clone();
    z_score(&mut voxels);
    // After the z-score 0 is the mean, the least surprising thing to see beyond the scan.
    let voxels = pad_or_crop(&voxels, volume.grid.shape, shape, 0.0);
    let labels = pad_or_crop(&mask.labels, mask.grid.shape, shape, 0);
    Ok(Example { image: to_tensor(&voxels, shape)?, labels: to_label_tensor(&labels, shape)?.f_to_kind(Kind::Uint8)? })
}
