//! `init`: a study's first model.

use consilium_federation::task::{TaskFile, TaskKind, TaskMetrics};
use consilium_imaging::torch::{named_parameters, save_weights};
use serde_json::json;
use tch::Device;

use super::{expect_kind, log};
use crate::config::TrainerConfig;
use crate::contract::{Root, write_json};
use crate::engine::Engine;
use crate::error::TrainerError;

/// Writes `out/model.safetensors`: random weights by the study's seed. Made on the CPU, so that the same seed gives the
/// same model on a node with and without a GPU.
pub(super) fn run(root: &Root, task: &TaskFile) -> Result<(), TrainerError> {
    expect_kind(task, TaskKind::Init)?;
    let config = TrainerConfig::of_task(task)?;
    let engine = Engine::new(&config, task.seed, Device::Cpu)?;
    let parameters = named_parameters(engine.store());
    save_weights(&parameters, &root.result("model.safetensors"))?;
    let count: usize = parameters.iter().map(|(_, tensor)| tensor.numel()).sum();
    let metrics = TaskMetrics { examples: 0, metrics: json!({ "parameters": count }) };
    write_json(&root.result("metrics.json"), &metrics)?;
    log("initialised", json!({ "study": task.study, "seed": task.seed, "parameters": count }));
    root.finish(vec!["model.safetensors".into(), "metrics.json".into()])
}
