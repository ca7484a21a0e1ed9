//! What a scan is: reading and writing it, checking it, preparing it for a network, and judging a segmentation of it.
//!
//! Here belong file formats (NIfTI, Medical Segmentation Decathlon folders), preprocessing, phantoms, networks with
//! their loss and sliding-window inference, and the metrics by which the platform scores a model. Here do not belong
//! rounds, tasks, files of the trainer contract, or anything that speaks to a network: those are `consilium-federation`,
//! `consilium-trainer` and `consilium-inference`.
//!
//! Without the feature `torch` only formats, phantoms and metrics are built; no libtorch is needed then.
//!
//! Axis order: a [`volume::Volume`] stores x fastest, as NIfTI does. A tensor of it has the shape `[z, y, x]` over the
//! same memory. Shapes in configurations and messages are always written x, y, z.

pub mod dataset;
pub mod error;
mod foreign;
pub mod frame;
pub mod input;
pub mod metrics;
pub mod msd;
pub mod nifti_file;
mod nifti_header;
pub mod phantom;
pub mod place;
pub mod preprocess;
pub mod random;
pub mod shift;
pub mod split;
pub mod table;
pub mod tiles;
#[cfg(feature = "torch")]
pub mod torch;
pub mod untrusted;
pub mod volume;

pub use error::ScanError;
pub use volume::{Grid, Mask, Volume};
