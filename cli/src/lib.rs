//! What the programs of this package share, and `local`, which is a program of its own too.
#![forbid(unsafe_code)]

pub mod error;
pub mod local;
pub mod objects;
pub mod yaml;
