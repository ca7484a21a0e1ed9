//! What the programs of this package share, and `local`, which is a program of its own too.
#![forbid(unsafe_code)]

pub mod error;
pub mod local;
pub mod model;
pub mod objects;
pub mod text;
pub mod yaml;
