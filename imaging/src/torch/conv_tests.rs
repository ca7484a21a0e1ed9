//! One scan at a time must give what a batch gives, forwards and backwards: a hospital with a single scan would train
//! another model otherwise, and a radiologist get another mask. And it must not go through libtorch's slow convolution.

use tch::no_grad;

use super::*;

fn random(size: &[i64], kind: Kind) -> Tensor {
    Tensor::randn(size, (Kind::Float, Device::Cpu)).to_kind(kind)
}

/// The layout in which the network keeps everything.
fn laid_out(x: &Tensor) -> Tensor {
    let (n, c, z, y, width) = x.size5().unwrap();
    let strides = [c * z * y * width, 1, y * width * c, width * c, c];
    channel_last(x).unwrap().contiguous().permute([0, 4, 1, 2, 3]).as_strided([n, c, z, y, width], strides, None)
}

fn is_laid_out(x: &Tensor) -> bool {
    channel_last(x).unwrap().is_contiguous()
}

fn apart(found: &Tensor, truth: &Tensor) -> f64 {
    let found = found.to_kind(Kind::Double);
    f64::try_from((found - truth).norm() / truth.norm()).unwrap()
}

/// Result and gradients of `ours` in single precision beside those of `theirs` in double: furthest relative distance.
fn furthest(
    inputs: &[Tensor],
    ours: &dyn Fn(&[Tensor]) -> Result<Tensor, TchError>,
    theirs: &dyn Fn(&[Tensor]) -> Tensor,
) -> f64 {
    let leaves = |kind| -> Vec<Tensor> {
        let leaf = |x: &Tensor| {
            let x = x.to_kind(kind);
            if x.dim() == 5 && kind == Kind::Float { laid_out(&x) } else { x }.detach().set_requires_grad(true)
        };
        inputs.iter().map(leaf).collect()
    };
    let (single, double) = (leaves(Kind::Float), leaves(Kind::Double));
    let (found, truth) = (ours(&single).unwrap(), theirs(&double));
    assert!(is_laid_out(&found), "{:?}", found.stride());
    let weights = random(&found.size(), Kind::Double);
    (&found * weights.to_kind(Kind::Float)).sum(Kind::Float).backward();
    (&truth * &weights).sum(Kind::Double).backward();
    let gradients = single.iter().zip(&double).map(|(a, b)| apart(&a.grad(), &b.grad()));
    let without = no_grad(|| ours(&single).unwrap());
    gradients.chain([apart(&found, &truth), apart(&without, &truth)]).fold(0.0, f64::max)
}

/// Even and odd numbers of slices, two of them, one channel, and the size from which on libtorch takes oneDNN itself.
const SHAPES: [[i64; 5]; 6] =
    [[1, 8, 10, 14, 6], [1, 1, 8, 6, 10], [1, 3, 2, 4, 4], [1, 16, 5, 7, 5], [1, 8, 40, 66, 2], [2, 4, 6, 4, 4]];

#[test]
fn a_single_image_is_convolved_like_a_batch() {
    tch::manual_seed(3);
    for shape in SHAPES {
        for outputs in [1, 8, 12] {
            let inputs = [random(&shape, Kind::Float), random(&[outputs, shape[1], 3, 3, 3], Kind::Float)];
            let theirs = |t: &[Tensor]| t[0].conv3d(&t[1], None::<&Tensor>, [1], [1], [1], 1);
            let found = furthest(&inputs, &|t| conv3d(&t[0], &t[1]), &theirs);
            assert!(found < 1e-5, "{shape:?} {outputs}: {found}");
        }
    }
}

#[test]
fn a_single_image_grows_and_is_scored_like_a_batch() {
    tch::manual_seed(4);
    for shape in SHAPES {
        let [batch, channels, z, y, width] = shape;
        let x = || random(&shape, Kind::Float);
        let inputs = [x(), random(&[3, channels, 1, 1, 1], Kind::Float), random(&[3], Kind::Float)];
        let theirs = |t: &[Tensor]| t[0].conv3d(&t[1], Some(&t[2]), [1], [0], [1], 1);
        let found = furthest(&inputs, &|t| pointwise(&t[0], &t[1], &t[2]), &theirs);
        assert!(found < 1e-5, "{shape:?}: {found}");

        let skip = random(&[batch, 5, 2 * z, 2 * y, 2 * width], Kind::Float);
        let inputs = [x(), random(&[channels, 4, 2, 2, 2], Kind::Float), random(&[4], Kind::Float), skip];
        let theirs = |t: &[Tensor]| {
            let grown = t[0].conv_transpose3d(&t[1], Some(&t[2]), [2], [0], [0], 1, [1]);
            Tensor::cat(&[&grown, &t[3]], 1)
        };
        let found = furthest(&inputs, &|t| grown_beside(&t[0], &t[1], &t[2], &t[3]), &theirs);
        assert!(found < 1e-5, "{shape:?}: {found}");
    }
}

/// libtorch's slow convolution gives its result in another layout than oneDNN: seen from outside, that tells which ran.
/// Were a later libtorch to take another number than 20,480, this would say so.
#[test]
fn what_libtorch_would_do_slowly_is_known() {
    let weight = random(&[8, 8, 3, 3, 3], Kind::Float);
    for (z, slow) in [(40, true), (64, true), (66, false)] {
        let x = laid_out(&random(&[1, 8, z, 40, 3], Kind::Float));
        let own = no_grad(|| x.conv3d(&weight, None::<&Tensor>, [1], [1], [1], 1));
        assert_eq!((is_laid_out(&own), libtorchs_own(&x)), (!slow, !slow), "{z}");
        assert!(no_grad(|| is_laid_out(&conv3d(&x, &weight).unwrap())), "{z}");
    }
}
