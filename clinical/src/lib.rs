//! The pure rules of clinical use: what a plan demands before a model is trusted with more, what a hospital's cases
//! show, which hazards and drifts take trust away, and the one function that says which stage a model stands on.
//!
//! **Belongs here:** everything about clinical use that can be decided from values alone.
//! **Does not belong here:** Kubernetes objects (`crds`), wire messages (`proto`), DICOM (`dicom`, `clinic`), the case
//! store (`agent`), and anything that reads a clock, a file, a socket or a random source. Time comes in as an argument.
//!
//! The software ships no clinical threshold. Every number in a rule is written by the clinicians who sign the plan or
//! keep the hospital's policy; numbers in examples and tests are examples.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod approval;
pub mod cases;
pub mod drift;
pub mod evidence;
pub mod hazards;
pub mod pipeline;
pub mod plan;
pub mod rules;
pub mod standing;
pub mod stats;
pub mod suppress;
pub mod values;
pub mod verdict;

#[cfg(test)]
mod testing;
