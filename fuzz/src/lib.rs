//! Every parser of what comes from outside, as a function of bytes: files of hospitals and researchers, requests of
//! clients, messages of the other side, objects of people. None may fall over, and none may take for long what is short.
//!
//! `cargo xtask fuzz` runs them under libFuzzer, from the seeds in `corpus/`; the test `corpus` runs the seeds and a few
//! hundred changes of each in CI. Here belong targets and nothing that a program of the product uses.
#![forbid(unsafe_code)]

mod files;
mod messages;
mod objects;
mod requests;
#[path = "../../cli/src/yaml.rs"]
mod yaml;

/// A parser.
#[derive(Clone, Copy)]
pub struct Target {
    /// As `cargo xtask fuzz` calls it; also the folder of its seeds.
    pub name: &'static str,
    /// Reads the bytes; whether they were taken.
    pub run: fn(&[u8]) -> bool,
}

/// All of them.
pub const TARGETS: &[Target] = &[
    Target { name: "nifti", run: files::nifti },
    Target { name: "nifti_gz", run: files::nifti_gz },
    Target { name: "table", run: files::table },
    Target { name: "dataset_json", run: files::dataset },
    Target { name: "safetensors", run: files::safetensors },
    Target { name: "metrics_json", run: files::metrics },
    Target { name: "task_json", run: files::task },
    Target { name: "manifest", run: files::manifest },
    Target { name: "oip", run: requests::oip },
    Target { name: "encoding", run: requests::encoding },
    Target { name: "study_yaml", run: objects::study_yaml },
    Target { name: "object_json", run: objects::object_json },
    Target { name: "roster", run: messages::roster },
    Target { name: "secagg_wire", run: messages::secagg_wire },
    Target { name: "hub_wire", run: messages::hub_wire },
    Target { name: "ledger", run: messages::ledger },
];

/// The parser of this name.
pub fn target(name: &str) -> Option<Target> {
    TARGETS.iter().copied().find(|target| target.name == name)
}
