//! Segmenting whole volumes of any shape, tile by tile.

use tch::{Device, Kind, TchError, Tensor, no_grad};

use super::config::Network;
use super::unet::UNet3d;
use super::{sizes, to_tensor};
use crate::input::Input;
use crate::preprocess::pad_or_crop;
use crate::tiles::{corners, gaussian};
use crate::volume::{Grid, Mask, Volume};

/// A network with what is needed to segment volumes with it.
#[derive(Debug)]
pub struct Segmenter {
    net: UNet3d,
    device: Device,
    tile: [usize; 3],
    batch: usize,
    classes: i64,
    input: Input,
    weights: Tensor,
}

/// A volume being put together from its tiles.
struct Canvas {
    padded: Grid,
    image: Tensor,
    /// Weighted sums of class shares, `[classes, z, y, x]`.
    sums: Tensor,
}

impl Segmenter {
    /// The network that a configuration names. `tile` (x, y, z) must be divisible by 2^levels; up to `batch` tiles go
    /// through it at once.
    pub fn new(
        net: UNet3d,
        network: &Network,
        device: Device,
        tile: [usize; 3],
        batch: usize,
    ) -> Result<Self, TchError> {
        let weights = to_tensor(&gaussian(tile), tile)?.f_to_device(device)?;
        let (classes, input) = (i64::from(network.unet().classes), network.input().clone());
        Ok(Self { net, device, tile, batch: batch.max(1), classes, input, weights })
    }

    /// Class of each voxel of one raw (not yet prepared) volume.
    pub fn segment(&self, volume: &Volume) -> Result<Mask, TchError> {
        // Safety of the index: one mask per volume.
        Ok(self.segment_all(&[volume])?.swap_remove(0))
    }

    /// Segments several volumes; their tiles share batches, so that small volumes fill the device together.
    pub fn segment_all(&self, volumes: &[&Volume]) -> Result<Vec<Mask>, TchError> {
        no_grad(|| {
            let mut canvases = volumes.iter().map(|volume| self.canvas(volume)).collect::<Result<Vec<_>, _>>()?;
            let work: Vec<(usize, [usize; 3])> = canvases
                .iter()
                .enumerate()
                .flat_map(|(at, canvas)| corners(canvas.padded.shape, self.tile).into_iter().map(move |c| (at, c)))
                .collect();
            for batch in work.chunks(self.batch) {
                self.run(&mut canvases, batch)?;
            }
            volumes.iter().zip(canvases).map(|(volume, canvas)| finish(volume, canvas)).collect()
        })
    }

    /// Voxels of the canvas for a volume of this shape: at least a tile's.
    pub fn canvas_voxels(&self, shape: [usize; 3]) -> usize {
        self.padded(shape).iter().product()
    }

    fn padded(&self, shape: [usize; 3]) -> [usize; 3] {
        [0, 1, 2].map(|axis| shape[axis].max(self.tile[axis]))
    }

    fn canvas(&self, volume: &Volume) -> Result<Canvas, TchError> {
        let shape = self.padded(volume.grid.shape);
        let padded = Grid::axis_aligned(shape, volume.grid.spacing);
        let image = to_tensor(&self.input.seen(volume, shape), shape)?.f_to_device(self.device)?;
        let sums = Tensor::f_zeros(sizes(self.classes, &padded), (Kind::Float, self.device))?;
        Ok(Canvas { padded, image, sums })
    }

    fn run(&self, canvases: &mut [Canvas], batch: &[(usize, [usize; 3])]) -> Result<(), TchError> {
        let tiles = batch
            .iter()
            .map(|&(at, corner)| self.cut(&canvases[at].image, 2, corner))
            .collect::<Result<Vec<_>, _>>()?;
        let scores = self.net.forward(&Tensor::f_cat(&tiles, 0)?)?;
        let shares = scores.f_softmax(1, Kind::Float)?.f_mul(&self.weights)?;
        for (index, &(at, corner)) in batch.iter().enumerate() {
            let mut place = self.cut(&canvases[at].sums, 1, corner)?;
            let _ = place.f_add_(&shares.f_select(0, index as i64)?)?;
        }
        Ok(())
    }

    /// The view of a tile; the z axis of `from` is axis number `z_axis`.
    fn cut(&self, from: &Tensor, z_axis: i64, [x, y, z]: [usize; 3]) -> Result<Tensor, TchError> {
        let [tx, ty, tz] = self.tile.map(|side| side as i64);
        from.f_narrow(z_axis, z as i64, tz)?.f_narrow(z_axis + 1, y as i64, ty)?.f_narrow(z_axis + 2, x as i64, tx)
    }
}

/// The class with the largest share at each voxel, slice by slice: torch's indices are of 64 bits, and for a whole volume
/// would take more memory than the volume.
fn finish(volume: &Volume, Canvas { padded, image, sums }: Canvas) -> Result<Mask, TchError> {
    drop(image);
    let [x, y, z] = padded.shape;
    let mut labels = vec![0_u8; padded.len()];
    for (at, slice) in labels.chunks_exact_mut(x * y).enumerate().take(z) {
        let classes = sums.f_select(1, at as i64)?.f_argmax(0, false)?.f_to_kind(Kind::Uint8)?;
        classes.f_to_device(Device::Cpu)?.f_contiguous()?.f_copy_data(slice, x * y)?;
    }
    drop(sums);
    let labels = pad_or_crop(&labels, padded.shape, volume.grid.shape, 0);
    Ok(Mask { grid: volume.grid.clone(), labels })
}
