//! Networks on libtorch: a 3D U-Net, its loss, and segmentation of whole volumes by a sliding window.
//!
//! Tensors are `[batch, channel, z, y, x]`. Every call that can fail returns [`tch::TchError`] instead of panicking, so
//! that running out of a GPU's memory is an error the caller can tell apart.

mod config;
mod conv;
mod loss;
mod memory;
mod threads;
mod unet;
mod weights;
mod window;

pub use config::Network;
pub use loss::{LossParts, dice_cross_entropy};
pub use memory::{canvas_bytes, tile_bytes};
pub use threads::wait_without_spinning;
pub use unet::{UNet3d, UNet3dConfig};
pub use weights::{WeightsError, load_weights, named_parameters, save_weights};
pub use window::Segmenter;

use tch::{TchError, Tensor};

use crate::volume::Grid;

/// Voxels of shape x, y, z (x fastest) as a tensor `[1, 1, z, y, x]`.
pub fn to_tensor(voxels: &[f32], shape: [usize; 3]) -> Result<Tensor, TchError> {
    let [x, y, z] = shape.map(|side| side as i64);
    Tensor::f_from_slice(voxels)?.f_view([1, 1, z, y, x])
}

/// Labels of shape x, y, z as a tensor `[1, z, y, x]` of 64-bit integers.
pub fn to_label_tensor(labels: &[u8], shape: [usize; 3]) -> Result<Tensor, TchError> {
    let [x, y, z] = shape.map(|side| side as i64);
    Tensor::f_from_slice(labels)?.f_view([1, z, y, x])?.f_to_kind(tch::Kind::Int64)
}

/// A tensor of the grid's shape, `[channels, z, y, x]`.
fn sizes(channels: i64, grid: &Grid) -> [i64; 4] {
    let [x, y, z] = grid.shape.map(|side| side as i64);
    [channels, z, y, x]
}
