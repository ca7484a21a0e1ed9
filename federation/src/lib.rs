//! The pure rules of a federated study: identifiers, models by digest, the
//! contract with a trainer container, the round machine, quorum, the gate, the
//! clinical ladder and the approvals that move a model along it.
//!
//! **Belongs here:** everything that can be decided from values alone.
//! **Does not belong here:** Kubernetes objects (`crds`), wire messages
//! (`proto`), the aggregation protocol (`secagg`), and anything that reads a
//! clock, a file, a socket or a random source. Time comes in as an argument.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod approval;
pub mod assignment;
pub mod canonical;
pub mod clock;
pub mod digest;
pub mod gate;
pub mod ids;
pub mod ladder;
pub mod ledger;
pub mod model;
pub mod output;
pub mod quorum;
pub mod report;
pub mod results;
pub mod round;
pub mod safetensors;
pub mod stage_approval;
pub mod strategy;
pub mod task;

pub use digest::Digest;
pub use ids::{SiteName, StudyKey};
