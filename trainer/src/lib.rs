//! What runs on the training node: the trainer contract over the networks of `consilium-imaging`.
//!
//! Here belong the meaning of a study's trainer configuration, the training loop with its checkpoints, and the
//! subcommands of `consilium-trainer`. Here do not belong networks, metrics and file formats (`consilium-imaging`),
//! the contract's types (`consilium-federation`), or anything that talks to an agent: a trainer only reads and writes
//! files.

pub mod adam;
pub mod augment;
pub mod checkpoint;
pub mod cli;
pub mod commands;
pub mod config;
pub mod contract;
pub mod data;
pub mod engine;
pub mod error;
pub mod ranks;
pub mod schedule;
pub mod shards;

pub use error::TrainerError;
