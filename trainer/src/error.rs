//! Why the trainer gave up, and with which exit code.

use std::path::Path;

use consilium_federation::task::{EXIT_INVALID, Failure};
use consilium_imaging::ScanError;
use consilium_imaging::torch::WeightsError;
use tch::TchError;

use crate::ranks::RankError;

/// Exit code after SIGTERM, as a shell would give it: 128 + 15. A checkpoint was written.
pub const EXIT_TERMINATED: i32 = 143;
/// Exit code of anything that may go better next time.
pub const EXIT_TRANSIENT: i32 = 1;

/// A failure of a task.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrainerError {
    /// The configuration cannot work.
    #[error("{0}")]
    Config(String),
    /// A scan, mask or folder cannot be used.
    #[error(transparent)]
    Data(#[from] ScanError),
    /// Predictions that cannot be scored.
    #[error("{0}")]
    Predictions(String),
    /// The model file does not fit.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// Training left the numbers.
    #[error(
        "the loss became {loss} at step {step} with learningRate {learning_rate}: training diverged; lower learningRate"
    )]
    Diverged {
        /// The loss.
        loss: f64,
        /// From 0.
        step: u64,
        /// The configured rate.
        learning_rate: f64,
    },
    /// A file of the contract cannot be read or written.
    #[error("{0}")]
    Files(String),
    /// libtorch refused.
    #[error("libtorch: {0}")]
    Torch(#[from] TchError),
    /// Ranks of this training do not work together.
    #[error(transparent)]
    Ranks(#[from] RankError),
    /// A rank ended before its work was done.
    #[error("rank {rank} of this training {how}; its own words are in the log, and all other ranks were ended")]
    Rank {
        /// Which.
        rank: usize,
        /// Its exit code; none when a signal ended it.
        code: Option<i32>,
        /// In words.
        how: String,
    },
    /// Asked to stop.
    #[error("stopped at step {step} by SIGTERM; the checkpoint is written and the task resumes from it")]
    Terminated {
        /// Steps done.
        step: u64,
    },
}

impl TrainerError {
    /// A contract file that could not be read or written.
    pub fn file(doing: &str, file: &Path, source: impl std::fmt::Display) -> Self {
        Self::Files(format!("{}: cannot be {doing}: {source}", file.display()))
    }

    fn out_of_memory(&self) -> bool {
        let text = match self {
            Self::Torch(e) | Self::Weights(WeightsError::Torch(e)) => e.to_string(),
            _ => return false,
        };
        // The wordings of the CUDA and of the CPU allocator.
        text.contains("out of memory") || text.contains("can't allocate memory")
    }

    /// What goes into `out/failure.json`.
    pub fn failure(&self) -> Failure {
        let reason = match self {
            Self::Config(_) | Self::Diverged { .. } => "InvalidConfig",
            // Files that can be read but not used; those that cannot be reached may come back.
            Self::Data(_) => "InvalidData",
            Self::Predictions(_) => "InvalidPredictions",
            Self::Weights(WeightsError::Torch(_)) | Self::Torch(_) if self.out_of_memory() => "OutOfMemory",
            Self::Weights(WeightsError::WrongNetwork { .. } | WeightsError::NotFinite { .. }) => "InvalidModel",
            Self::Terminated { .. } => "Terminated",
            _ => "Internal",
        };
        let detail = if let Self::Data(e) = self { format!(" ({})", e.reason()) } else { String::new() };
        Failure { reason: reason.into(), message: format!("{self}{detail}") }
    }

    /// The process's exit code.
    pub fn exit_code(&self) -> i32 {
        match self {
            Self::Terminated { .. } => EXIT_TERMINATED,
            Self::Rank { code: Some(code @ (EXIT_INVALID | EXIT_TERMINATED)), .. } => *code,
            // A full disk is no fault of the data.
            Self::Data(ScanError::Unwritable { .. }) => EXIT_TRANSIENT,
            Self::Config(_) | Self::Data(_) | Self::Diverged { .. } | Self::Predictions(_) => EXIT_INVALID,
            Self::Weights(WeightsError::WrongNetwork { .. } | WeightsError::NotFinite { .. }) => EXIT_INVALID,
            _ => EXIT_TRANSIENT,
        }
    }
}
