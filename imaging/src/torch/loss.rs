//! Cross-entropy plus soft Dice.

use tch::{Kind, Reduction, TchError, Tensor};

const SMOOTH: f64 = 1e-5;

/// Mean cross-entropy over voxels plus one minus the mean over foreground classes of the soft Dice taken over the whole
/// batch (Drozdzal et al. 2016; nnU-Net's "batch dice").
///
/// `scores`: `[batch, classes, z, y, x]` before softmax; `labels`: `[batch, z, y, x]`, 64-bit integers.
pub fn dice_cross_entropy(scores: &Tensor, labels: &Tensor) -> Result<Tensor, TchError> {
    // Sums over 10^5 voxels lose their last digits in half precision.
    let scores = scores.f_to_kind(Kind::Float)?;
    let cross_entropy = scores.f_cross_entropy_loss(labels, None::<&Tensor>, Reduction::Mean, -100, 0.0)?;
    let shares = scores.f_softmax(1, Kind::Float)?;
    let classes = scores.size()[1];
    let mut dice_sum = Tensor::f_zeros([], (Kind::Float, scores.device()))?;
    for class in 1..classes {
        let share = shares.f_select(1, class)?;
        let truth = labels.f_eq(class)?.f_to_kind(Kind::Float)?;
        let both = share.f_mul(&truth)?.f_sum(Kind::Float)?;
        let size = share.f_sum(Kind::Float)?.f_add(&truth.f_sum(Kind::Float)?)?;
        let dice = both.f_mul_scalar(2.0)?.f_add_scalar(SMOOTH)?.f_div(&size.f_add_scalar(SMOOTH)?)?;
        dice_sum = dice_sum.f_add(&dice)?;
    }
    let mean = dice_sum.f_div_scalar((classes - 1) as f64)?;
    cross_entropy.f_sub(&mean)?.f_add_scalar(1.0)
}
