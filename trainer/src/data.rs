//! A folder's scans as the network sees them, checked and kept in memory; the raw ones are not kept.

use consilium_imaging::msd::{Case, Orientation, load};
use consilium_imaging::nifti_file::read_grid;
use consilium_imaging::preprocess::{covering_shape, pad_or_crop, z_scored};
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

/// The shape a config asks for, else the smallest that covers the scans; of these only the headers are read.
pub fn shape_for(config: &TrainerConfig, cases: &[Case]) -> Result<[usize; 3], ScanError> {
    match config.shape {
        Some(shape) => Ok(shape),
        None => {
            let grids = all(cases, |case| read_grid(&case.image))?;
            Ok(covering_shape(grids.iter().map(|grid| grid.shape), config.network().levels))
        }
    }
}

/// Reads and checks labelled cases one after the other, as if to use them.
pub fn check(cases: &[Case], classes: u8) -> Result<(), ScanError> {
    let mut orientation = Orientation::default();
    all(cases, |case| orientation.check(&case.image, &load(case, classes)?.0.grid))?;
    Ok(())
}

/// Does something with every case. All bad files are named at once, so that a hospital corrects its export once and not
/// file by file.
fn all<T>(cases: &[Case], mut act: impl FnMut(&Case) -> Result<T, ScanError>) -> Result<Vec<T>, ScanError> {
    let (mut good, mut bad) = (Vec::new(), Vec::new());
    for case in cases {
        match act(case) {
            Ok(done) => good.push(done),
            Err(e) => bad.push(e),
        }
    }
    ScanError::fold(bad).map_or(Ok(good), Err)
}

impl Examples {
    /// Reads, checks and prepares labelled cases: z-scored, then padded or cut to the shape. One raw scan is held at a
    /// time.
    pub fn read(cases: &[Case], config: &TrainerConfig) -> Result<Self, TrainerError> {
        let shape = shape_for(config, cases)?;
        let mut orientation = Orientation::default();
        let prepared = all(cases, |case| {
            let (volume, mask) = load(case, config.network().classes)?;
            orientation.check(&case.image, &volume.grid)?;
            Ok(example(&volume, &mask, shape))
        })?;
        Ok(Self { all: prepared.into_iter().collect::<Result<_, _>>()?, shape })
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
    let image = to_tensor(&z_scored(&volume.voxels, volume.grid.shape, shape), shape)?;
    let labels = pad_or_crop(&mask.labels, mask.grid.shape, shape, 0);
    Ok(Example { image, labels: to_label_tensor(&labels, shape)?.f_to_kind(Kind::Uint8)? })
}
