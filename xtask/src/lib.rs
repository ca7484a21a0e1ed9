//! What the project's own tasks are made of: building and running real clusters, images, and what is tested on them.
//!
//! `main.rs` reads the command line and calls one module per subcommand. Nothing here is part of the product.

pub mod api;
pub mod apiserver;
pub mod bench;
pub mod cache;
pub mod cargo;
pub mod charts;
pub mod cluster;
pub mod conditions;
pub mod dashboards;
pub mod demo;
pub mod error;
pub mod federation;
pub mod fuzz;
pub mod generate;
pub mod images;
pub mod interrupt;
pub mod libtorch;
mod licences;
pub mod local;
pub mod metrics;
pub mod packages;
pub mod plugin;
pub mod process;
pub mod prometheus;
pub mod simulate;
pub mod test;
pub mod tools;
pub mod values;
pub mod verify;
