//! `bench-step`: seconds per training step on made-up volumes, to be laid beside `trainer/bench/eager.py`, which does
//! the same in PyTorch from the same file.

use std::time::Instant;

use consilium_imaging::input::Input;
use consilium_imaging::phantom::{PHANTOM_CLASSES, Profile, phantom};
use consilium_imaging::preprocess::{divisible, z_score};
use consilium_imaging::torch::{Network, named_parameters, to_label_tensor, to_tensor};
use serde_json::json;
use tch::{Device, TchError, Tensor};

use super::set_threads;
use crate::cli::BenchArgs;
use crate::config::{Precision, TrainerConfig};
use crate::engine::Engine;
use crate::error::TrainerError;

const LEVELS: u32 = 3;
/// Adam's rate in the comparison; constant, so that nothing but the step is compared.
const RATE: f64 = 1e-3;

pub(super) fn run(args: &BenchArgs) -> Result<(), TrainerError> {
    let shape = args.shape.0;
    if !divisible(shape, LEVELS) {
        return Err(TrainerError::Config(format!(
            "--shape {shape:?}: each side must be a multiple of {}",
            1 << LEVELS
        )));
    }
    set_threads(Some(args.threads));
    let network = Network::UNet3D { width: args.width, levels: LEVELS, classes: PHANTOM_CLASSES, input: Input::PLAIN };
    let config = TrainerConfig {
        network,
        shape: Some(shape),
        epochs_per_round: 1,
        batch_size: args.batch,
        learning_rate: RATE,
        precision: Precision::FP32,
        mirror: Vec::new(),
        augmentation: None,
        proximal: 0.0,
    };
    let mut engine = Engine::new(&config, args.seed, Device::Cpu)?;
    let (images, labels) = volumes(args, shape)?;
    if let Some(file) = &args.export {
        let mut tensors: Vec<(String, Tensor)> = named_parameters(engine.store())
            .into_iter()
            .map(|(name, tensor)| (format!("weights.{name}"), tensor.detach()))
            .collect();
        tensors.push(("images".into(), images.shallow_clone()));
        tensors.push(("labels".into(), labels.shallow_clone()));
        Tensor::write_safetensors(&tensors, file)?;
    }
    if args.steps == 0 {
        return Ok(());
    }
    let (mut seconds, mut losses) = (Vec::new(), Vec::new());
    for _ in 0..args.steps {
        let began = Instant::now();
        losses.push(engine.step(&images, &labels, RATE)?);
        seconds.push(began.elapsed().as_secs_f64());
    }
    println!(
        "{}",
        json!({ "implementation": "consilium-trainer", "threads": args.threads, "batch": args.batch, "shape": shape,
            "width": args.width, "secondsPerStep": median(&seconds), "stepSeconds": seconds, "losses": losses })
    );
    Ok(())
}

/// The median without the first step, in which libraries choose their kernels.
fn median(seconds: &[f64]) -> f64 {
    let mut warm: Vec<f64> = seconds.iter().skip(1).copied().collect();
    warm.sort_by(f64::total_cmp);
    warm.get(warm.len() / 2).copied().unwrap_or_else(|| seconds.first().copied().unwrap_or_default())
}

fn volumes(args: &BenchArgs, shape: [usize; 3]) -> Result<(Tensor, Tensor), TchError> {
    let (mut images, mut labels) = (Vec::new(), Vec::new());
    for person in 0..args.batch as u64 {
        let (mut volume, mask) = phantom(args.seed, person, shape, &Profile::of_hospital(0));
        z_score(&mut volume.voxels);
        images.push(to_tensor(&volume.voxels, shape)?);
        labels.push(to_label_tensor(&mask.labels, shape)?);
    }
    Ok((Tensor::f_cat(&images, 0)?, Tensor::f_cat(&labels, 0)?))
}
