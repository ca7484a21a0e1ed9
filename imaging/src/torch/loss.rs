//! Cross-entropy plus soft Dice.

use tch::{Device, Kind, Reduction, TchError, Tensor};

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

/// What some scans of a batch add to [`dice_cross_entropy`] of the whole batch, where several processes have a part each.
///
/// Cross-entropy is a mean and comes apart by itself; the Dice is a quotient of sums over the batch. With the sums known,
/// the gradient of 2I/S is that of aI − bS with the constants a = 2/S and b = 2I/S², and that comes apart too.
#[derive(Debug)]
pub struct LossParts {
    /// The scans' mean, times their share of the batch.
    cross_entropy: Tensor,
    /// By foreground class: what scores and truth have in common.
    common: Tensor,
    /// By foreground class: what both have.
    size: Tensor,
}

impl LossParts {
    /// Of scores and labels as [`dice_cross_entropy`] has them; `share` is how much of the batch these scans are.
    pub fn of(scores: &Tensor, labels: &Tensor, share: f64) -> Result<Self, TchError> {
        let scores = scores.f_to_kind(Kind::Float)?;
        let mean = scores.f_cross_entropy_loss(labels, None::<&Tensor>, Reduction::Mean, -100, 0.0)?;
        let shares = scores.f_softmax(1, Kind::Float)?;
        let (mut common, mut size) = (Vec::new(), Vec::new());
        for class in 1..scores.size()[1] {
            let share = shares.f_select(1, class)?;
            let truth = labels.f_eq(class)?.f_to_kind(Kind::Float)?;
            common.push(share.f_mul(&truth)?.f_sum(Kind::Float)?);
            size.push(share.f_sum(Kind::Float)?.f_add(&truth.f_sum(Kind::Float)?)?);
        }
        let cross_entropy = mean.f_mul_scalar(share)?;
        Ok(Self { cross_entropy, common: Tensor::f_stack(&common, 0)?, size: Tensor::f_stack(&size, 0)? })
    }

    /// What is to be summed over all parts.
    pub fn sums(&self) -> Result<Tensor, TchError> {
        let all = [self.cross_entropy.f_reshape([1])?, self.common.shallow_clone(), self.size.shallow_clone()];
        Tensor::f_cat(&all, 0)?.f_detach()
    }

    /// The same of no scans at all.
    pub fn nothing(classes: u8, device: Device) -> Result<Tensor, TchError> {
        Tensor::f_zeros([2 * i64::from(classes) - 1], (Kind::Float, device))
    }

    /// Of the sums: the quotients' numerators and denominators.
    fn quotients(sums: &Tensor) -> Result<(Tensor, Tensor), TchError> {
        let classes = (sums.size()[0] - 1) / 2;
        let above = sums.f_narrow(0, 1, classes)?.f_mul_scalar(2.0)?.f_add_scalar(SMOOTH)?;
        Ok((above, sums.f_narrow(0, 1 + classes, classes)?.f_add_scalar(SMOOTH)?))
    }

    /// The loss of the whole batch by the sums of all its parts.
    pub fn loss(sums: &Tensor) -> Result<Tensor, TchError> {
        let (above, below) = Self::quotients(sums)?;
        sums.f_get(0)?.f_sub(&above.f_div(&below)?.f_mean(Kind::Float)?)?.f_add_scalar(1.0)
    }

    /// A number whose gradient is this part's of the whole loss: added over all parts they are the whole gradient.
    pub fn pull(&self, sums: &Tensor) -> Result<Tensor, TchError> {
        let (above, below) = Self::quotients(sums)?;
        let toward = self.common.f_mul_scalar(2.0)?.f_div(&below)?;
        let away = self.size.f_mul(&above.f_div(&below.f_square()?)?)?;
        self.cross_entropy.f_sub(&toward.f_sub(&away)?.f_mean(Kind::Float)?)
    }
}
