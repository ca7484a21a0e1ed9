//! The network's convolutions, through oneDNN also where libtorch by itself would not take it.
//!
//! On a CPU libtorch gives a convolution to oneDNN if the batch has more than one image, or if batch × channels × z × y
//! are more than 20,480 (`ConvParams::use_mkldnn`, written for images: the last axis is not counted). One scan at a time
//! falls below that in most layers, and then goes through `slow_conv3d`, which lays the image out as a matrix of 27 times
//! its size: one layer of 8 channels took 69 ms instead of 5, a training step .71 s instead of .21 s a scan. So what
//! libtorch would do slowly is asked for in another form here. Larger batches, other kinds of number and GPUs get
//! libtorch's own call.

use tch::utils::has_mkldnn;
use tch::{Device, Kind, TchError, Tensor};

/// Above so many values, the last axis not counted, libtorch itself takes oneDNN for a single image.
const LIBTORCH_TAKES_ONEDNN: i64 = 20_480;

/// Whether libtorch's own call is the right one for this input.
fn libtorchs_own(x: &Tensor) -> bool {
    let size = x.size();
    x.device() != Device::Cpu
        || x.kind() != Kind::Float
        || !has_mkldnn()
        || size[0] != 1
        || size[..4].iter().product::<i64>() > LIBTORCH_TAKES_ONEDNN
}

/// Whether gradients will be asked for. The binding has no question for that; a view is recorded when the rest would be.
fn recorded(tensors: [&Tensor; 2]) -> Result<bool, TchError> {
    Ok(tensors[0].f_narrow(0, 0, 1)?.requires_grad() || tensors[1].f_narrow(0, 0, 1)?.requires_grad())
}

/// The channel as the last axis, and so in the order in which the values lie in memory.
pub(super) fn channel_last(x: &Tensor) -> Result<Tensor, TchError> {
    x.f_permute([0, 2, 3, 4, 1])
}

/// Back from [`channel_last`].
fn channel_second(x: &Tensor) -> Result<Tensor, TchError> {
    x.f_permute([0, 4, 1, 2, 3])
}

/// A convolution of 3×3×3 with a border of zeros and no bias.
pub(super) fn conv3d(x: &Tensor, weight: &Tensor) -> Result<Tensor, TchError> {
    if libtorchs_own(x) {
        return x.f_conv3d(weight, None::<&Tensor>, [1], [1], [1], 1);
    }
    let z = x.size()[2];
    if z % 2 == 0 && recorded([x, weight])? {
        return in_halves(x, weight);
    }
    // Its gradient would be libtorch's choice again, and slow. An odd number of slices is left to that: with sides that
    // can be halved it occurs at the network's bottom only, where there is little to do.
    x.f_mkldnn_convolution(weight, None::<&Tensor>, [1; 3], [1; 3], [1; 3], 1)
}

/// The same as a batch of two: the upper and the lower half of the slices, which are oneDNN's in both directions and lie
/// in memory as they are. What the cut takes away is added to the slice on each side of it: the other side's slice,
/// convolved with the kernel's first or last layer.
fn in_halves(x: &Tensor, weight: &Tensor) -> Result<Tensor, TchError> {
    let (_, channels, z, y, width) = x.size5()?;
    let (half, outputs) = (z / 2, weight.size()[0]);
    // Everything is cut out of this order, so that gradients come back in it too.
    let slices = channel_last(x)?;
    let halves = channel_second(&slices.f_reshape([2, half, y, width, channels])?)?;
    let mut out = halves.f_conv3d(weight, None::<&Tensor>, [1], [1], [1], 1)?;

    // Two groups: the slice above the cut with the first layer, for the slice below; the one below with the last.
    let sides = slices.f_narrow(1, half - 1, 2)?.f_permute([0, 2, 3, 1, 4])?;
    let sides = sides.f_reshape([1, y, width, 2 * channels])?.f_permute([0, 3, 1, 2])?;
    let layers = weight.f_slice(2, 0, 3, 2)?.f_permute([2, 0, 1, 3, 4])?.f_reshape([2 * outputs, channels, 3, 3])?;
    let across = sides.f_conv2d(&layers, None::<&Tensor>, [1], [1], [1], 2)?.f_reshape([2, outputs, y, width])?;
    let (part, slice) = (Tensor::f_from_slice(&[1_i64, 0])?, Tensor::f_from_slice(&[0, half - 1])?);
    // By index, not into a view: for a view's sake the whole gradient would be copied.
    let _ = out.f_index_put_(&[Some(&part), None, Some(&slice)], &across, true)?;
    channel_second(&channel_last(&out)?.f_reshape([1, z, y, width, outputs])?)
}

/// A convolution of 1×1×1 with a bias: for a single image one product of matrices.
pub(super) fn pointwise(x: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Tensor, TchError> {
    if libtorchs_own(x) {
        return x.f_conv3d(weight, Some(bias), [1], [0], [1], 1);
    }
    let (batch, channels, z, y, width) = x.size5()?;
    let outputs = weight.size()[0];
    let voxels = channel_last(x)?.f_reshape([-1, channels])?;
    let scores = voxels.f_linear(&weight.f_reshape([outputs, channels])?, Some(bias))?;
    channel_second(&scores.f_reshape([batch, z, y, width, outputs])?)
}

/// A transposed convolution of 2×2×2 in steps of 2, and the channels of `skip` after its own. For a single image it is one
/// product of matrices: each voxel gives eight, which find their places as both are put side by side.
pub(super) fn grown_beside(x: &Tensor, weight: &Tensor, bias: &Tensor, skip: &Tensor) -> Result<Tensor, TchError> {
    if libtorchs_own(x) {
        let grown = x.f_conv_transpose3d(weight, Some(bias), [2], [0], [0], 1, [1])?;
        return Tensor::f_cat(&[&grown, skip], 1);
    }
    let (batch, inputs, z, y, width) = x.size5()?;
    let (outputs, beside) = (weight.size()[1], skip.size()[1]);
    let matrix = weight.f_permute([2, 3, 4, 1, 0])?.f_reshape([8 * outputs, inputs])?;
    let voxels = channel_last(x)?.f_reshape([-1, inputs])?;
    let eight = voxels.f_linear(&matrix, Some(&bias.f_repeat([8])?))?;
    let eight = eight.f_reshape([batch, z, y, width, 2, 2, 2, outputs])?.f_permute([0, 1, 4, 2, 5, 3, 6, 7])?;
    let skip = channel_last(skip)?.f_reshape([batch, z, 2, y, 2, width, 2, beside])?;
    let both = Tensor::f_cat(&[eight, skip], 7)?;
    channel_second(&both.f_reshape([batch, 2 * z, 2 * y, 2 * width, outputs + beside])?)
}

#[cfg(test)]
#[path = "conv_tests.rs"]
mod tests;
