//! What the project's own tasks are made of: building and running real clusters, images, and what is tested on them.
//!
//! `main.rs` reads the command line and calls one module per subcommand. Nothing here is part of the product.

pub mod apiserver;
pub mod cache;
pub mod cluster;
pub mod error;
pub mod generate;
pub mod images;
pub mod libtorch;
pub mod packages;
pub mod process;
pub mod tools;
pub mod verify;
