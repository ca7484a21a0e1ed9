//! Figures of the hub's sum, one JSON object per line:
//! `{"bench","case","metric","value","unit","against","ratio","budget","met"}`.
//!
//! `cargo run --release -p consilium-operator --example bench_aggregate -- [kernel|pipeline|memory|all] [--long] [--dir DIR]`
//!
//! `--long` adds 8 hospitals of 100M parameters (4 GB on disk); `--dir` says where the stores are made (default: the
//! system's folder for temporary files).
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a bench that cannot run stops with what it met")]

mod hub;
mod kernel;
mod memory;
mod pipeline;
mod report;
mod uploads;

use std::path::PathBuf;

fn main() {
    let mut which = "all".to_owned();
    let (mut long, mut dir) = (false, std::env::temp_dir());
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--long" => long = true,
            "--dir" => dir = PathBuf::from(arguments.next().expect("--dir needs a folder")),
            // What the memory bench starts as a process of its own.
            "hub" => return hub::run(&PathBuf::from(arguments.next().expect("hub needs a folder"))),
            name => name.clone_into(&mut which),
        }
    }
    let all = which == "all";
    assert!(
        all || ["kernel", "pipeline", "memory"].contains(&which.as_str()),
        "{which}: kernel, pipeline, memory or all"
    );
    if all || which == "kernel" {
        kernel::run();
    }
    if all || which == "pipeline" {
        pipeline::run(&dir);
    }
    if all || which == "memory" {
        memory::run(&dir, long);
    }
}
