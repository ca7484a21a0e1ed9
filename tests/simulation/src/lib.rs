//! A study from its first to its last turn, on a clock that only moves when the schedule says so.
//!
//! **Belongs here:** what a hub and its hospitals stand on, made up: clock, links, disks, API servers, trainers; what happens
//! to them, drawn from a seed; and what must hold whatever happens.
//! **Does not belong here:** any rule of the product. Hub and hospitals are the product's own code.
#![forbid(unsafe_code)]

pub mod check;
mod clock;
mod cluster;
mod disk;
mod hospital;
mod hub;
pub mod mutant;
pub mod schedule;
pub mod shrink;
mod study;
mod wire;
mod world;

pub use world::{Told, run, run_with};
