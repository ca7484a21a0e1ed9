//! `cargo xtask images …`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::{Image, Variant, build, load_all, names};
use crate::{
    cargo::Profile,
    cluster,
    error::{Error, Result},
};

/// What to do with images.
#[derive(clap::Subcommand)]
pub enum Command {
    /// Build OCI layouts into the cache and print each image's reference.
    Build(Options),
    /// Build, and bring what is built into every cluster that runs.
    Load(Options),
}

/// Which images.
#[derive(Args)]
pub struct Options {
    /// Which libtorch the trainer and the inference server get.
    #[arg(long, value_enum, default_value = "cpu")]
    set: Set,
    /// The torch wheel for `--set cu126`, which is not on PyPI.
    #[arg(long)]
    torch_wheel: Option<PathBuf>,
    /// Only these images.
    #[arg(value_parser = clap::builder::PossibleValuesParser::new(names()))]
    only: Vec<String>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Set {
    /// No GPU.
    Cpu,
    /// CUDA 12.6: V100 (sm_70) to H100 (sm_90), the T4 among them.
    Cu126,
}

impl Options {
    fn variant(&self) -> Result<Variant> {
        match (self.set, &self.torch_wheel) {
            (Set::Cpu, _) => Ok(Variant::Cpu),
            (Set::Cu126, Some(wheel)) => Ok(Variant::Cu126 { wheel: wheel.clone() }),
            (Set::Cu126, None) => Err(Error::TorchWheelMissing),
        }
    }

    fn build(&self) -> Result<Vec<Image>> {
        build(&self.variant()?, Profile::Release, &self.only)
    }
}

/// Does what the command line says.
pub fn run(command: Command) -> Result<()> {
    let images = match &command {
        Command::Build(options) | Command::Load(options) => options.build()?,
    };
    if matches!(command, Command::Load(_)) {
        load_all(&cluster::running()?, &images)?;
    }
    images.iter().for_each(|image| println!("{}", image.reference()));
    Ok(())
}
