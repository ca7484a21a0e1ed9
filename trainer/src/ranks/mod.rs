//! One training by several processes on one node, each with a part of every batch.
//!
//! `batchSize` is that of all ranks together, the order of the data does not know how many there are, and the gradient
//! is exactly that of one process, batch Dice included: hospitals with different machines train the same thing. Ranks are
//! told who they are by torchrun's variables, and meet on the loopback interface.

pub mod launch;
mod socket;

pub use socket::Sockets;

use tch::{Device, Kind, Tensor, no_grad};

/// Ranks that do not work together.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RankError {
    /// One of torchrun's variables is missing or senseless.
    #[error("{name} is {value:?}: it must be {rule}; ranks are started by `consilium-trainer run --ranks N`")]
    Variable {
        /// Which.
        name: &'static str,
        /// What it holds.
        value: String,
        /// What it should hold.
        rule: &'static str,
    },
    /// Another rank is gone, or does not answer.
    #[error("rank {rank} lost rank {other}: {reason}; the task is tried again from its checkpoint")]
    Lost {
        /// Who noticed.
        rank: usize,
        /// Who is gone.
        other: usize,
        /// How it showed.
        reason: String,
    },
    /// Two ranks are not at the same point.
    #[error(
        "rank {rank} and rank {other} are out of step ({reason}); all ranks must run the same image on the same files"
    )]
    OutOfStep {
        /// Who noticed.
        rank: usize,
        /// The other one.
        other: usize,
        /// What differs.
        reason: String,
    },
}

/// What ranks need of each other. Another transport is another file.
pub trait Ranks {
    /// Which one this is, from 0.
    fn rank(&self) -> usize;
    /// How many there are.
    fn count(&self) -> usize;
    /// Replaces the values by their sums over all ranks: the same bits in each.
    fn sum(&mut self, values: &mut [f32]) -> Result<(), RankError>;
}

/// A process by itself.
#[derive(Debug, Clone, Copy)]
pub struct Alone;

impl Ranks for Alone {
    fn rank(&self) -> usize {
        0
    }

    fn count(&self) -> usize {
        1
    }

    fn sum(&mut self, _: &mut [f32]) -> Result<(), RankError> {
        Ok(())
    }
}

/// The ranks that this process is one of, by its environment.
pub fn of_environment() -> Result<Box<dyn Ranks>, RankError> {
    Ok(match Sockets::of_environment()? {
        Some(ranks) => Box::new(ranks),
        None => Box::new(Alone),
    })
}

/// The ranks' sum of tensors, in place: one flat buffer, one message.
pub fn sum_tensors(ranks: &mut dyn Ranks, tensors: &mut [Tensor]) -> Result<(), crate::TrainerError> {
    let flat: Vec<Tensor> = tensors.iter().map(|tensor| tensor.f_reshape([-1])).collect::<Result<_, _>>()?;
    let flat = Tensor::f_cat(&flat, 0)?.f_to_device(Device::Cpu)?.f_to_kind(Kind::Float)?;
    let mut values = Vec::<f32>::try_from(&flat)?;
    ranks.sum(&mut values)?;
    let all = Tensor::f_from_slice(&values)?;
    let mut first = 0;
    for tensor in tensors {
        let length = tensor.numel() as i64;
        let part = all.f_narrow(0, first, length)?.f_view_as(tensor)?;
        no_grad(|| tensor.f_copy_(&part))?;
        first += length;
    }
    Ok(())
}
