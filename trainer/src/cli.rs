//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

/// Trains and evaluates segmentation networks on files alone. Exit codes: 0 done, 42 bad configuration or data (do not
/// try again), 143 stopped by SIGTERM with a checkpoint written, anything else may go better next time.
#[derive(Debug, Parser)]
#[command(name = "consilium-trainer", version)]
pub struct Cli {
    /// What to do
    #[command(subcommand)]
    pub command: Command,
}

/// Voxels along x, y, z.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape(pub [usize; 3]);

fn shape(text: &str) -> Result<Shape, String> {
    let sides: Result<Vec<usize>, _> = text.split(',').map(|side| side.trim().parse::<usize>()).collect();
    let sides = sides.ok().and_then(|sides| <[usize; 3]>::try_from(sides).ok());
    sides.map(Shape).ok_or_else(|| "expected three whole numbers x,y,z such as 32,40,32".to_owned())
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make a study's first model: out/model.safetensors from task.json
    Init(Contract),
    /// Train one round: out/update.safetensors from task.json, model.safetensors and the data folder
    Train(TrainArgs),
    /// Segment the data folder's scans: out/predictions/*.nii.gz
    Evaluate(DataArgs),
    /// Do what task.json's `kind` says: Init, Train or Evaluate
    Run(TrainArgs),
    /// Score predictions against labels (the platform's evaluator): out/score.json
    Score(ScoreArgs),
    /// Train and score on one data folder, split by person, with no federation
    Fit(FitArgs),
    /// Train by a study's rounds over simulated hospitals in one process, without masks, and score in each of them
    Federate(FederateArgs),
    /// Print the `network.input` whose reference is the look of one data folder's scans
    Reference(ReferenceArgs),
    /// Write phantom hospitals: labelled volumes made from numbers
    Phantom(PhantomArgs),
    /// Cut a folder into simulated hospitals, by person
    Shard(ShardArgs),
    /// Time training steps on made-up volumes; one line of JSON
    BenchStep(BenchArgs),
}

/// Where the contract's files lie.
#[derive(Debug, Args)]
pub struct Contract {
    /// Folder of task.json, model.safetensors, out/ and checkpoint/
    #[arg(long, default_value = "/consilium")]
    pub root: PathBuf,
}

/// Contract and data.
#[derive(Debug, Args)]
pub struct DataArgs {
    /// The contract's files
    #[command(flatten)]
    pub contract: Contract,
    /// Folder with imagesTr and labelsTr (imagesTs for Evaluate); only read
    #[arg(long, default_value = "/data")]
    pub data: PathBuf,
    /// CPU threads [default: the cores that this process may use]
    #[arg(long)]
    pub threads: Option<u32>,
}

/// Training under the contract.
#[derive(Debug, Args)]
pub struct TrainArgs {
    /// Files and data
    #[command(flatten)]
    pub data: DataArgs,
    /// Steps between two checkpoints
    #[arg(long, default_value_t = 20)]
    pub checkpoint_every: u64,
    /// Processes that share each batch of a training; each keeps all scans in memory
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub ranks: u32,
}

/// Scoring.
#[derive(Debug, Args)]
pub struct ScoreArgs {
    /// The contract's files: reads task.json and out/predictions, writes out/score.json and out/MANIFEST
    #[arg(long, required_unless_present = "predictions", conflicts_with = "predictions")]
    pub root: Option<PathBuf>,
    /// With --root: folder whose task.json is read and whose out/ is written instead, where the study's image can write
    /// to --root
    #[arg(long, requires = "root")]
    pub results: Option<PathBuf>,
    /// Folder with the true masks, or with labelsTs or labelsTr (and a cases.csv) in it
    #[arg(long)]
    pub labels: PathBuf,
    /// With --root: wait for the trainer's MANIFEST first; end with an error when FAILED beside the score says that none
    /// will come
    #[arg(long, requires = "root")]
    pub wait: bool,
    /// Without --root: folder with the predicted masks
    #[arg(long, requires = "classes", requires = "out")]
    pub predictions: Option<PathBuf>,
    /// Without --root: number of classes, background included
    #[arg(long)]
    pub classes: Option<u8>,
    /// Without --root: where to write the score
    #[arg(long)]
    pub out: Option<PathBuf>,
    /// Also write the scores of each case, and their means by person
    #[arg(long)]
    pub details: Option<PathBuf>,
}

/// One data set, no federation.
#[derive(Debug, Args)]
pub struct FitArgs {
    /// Folder with imagesTr and labelsTr
    #[arg(long)]
    pub data: PathBuf,
    /// Folder for model.safetensors and fit.json
    #[arg(long)]
    pub out: PathBuf,
    /// The study's trainer config: a file of JSON, or the JSON itself [default: a U-Net of width 8 for 3 classes]
    #[arg(long)]
    pub config: Option<PathBuf>,
    /// Rounds' worth of training: epochs are this times epochsPerRound
    #[arg(long, default_value_t = 10)]
    pub rounds: u32,
    /// Seed of weights and data order
    #[arg(long, default_value_t = 7)]
    pub seed: u64,
    /// Every so many persons, one is held back to score the model on
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(2..))]
    pub hold_back: u32,
    /// CPU threads [default: the cores that this process may use]
    #[arg(long)]
    pub threads: Option<u32>,
}

/// Rounds without a federation.
#[derive(Debug, Args)]
pub struct FederateArgs {
    /// Folder that `shard` or `phantom` wrote
    #[arg(long)]
    pub data: PathBuf,
    /// Folder for model.safetensors and federate.json
    #[arg(long)]
    pub out: PathBuf,
    /// The study's trainer config: a file of JSON, or the JSON itself; it must have a shape
    #[arg(long)]
    pub config: Option<PathBuf>,
    /// Rounds
    #[arg(long, default_value_t = 8)]
    pub rounds: u32,
    /// Seed of weights and data order
    #[arg(long, default_value_t = 7)]
    pub seed: u64,
    /// CPU threads [default: the cores that this process may use]
    #[arg(long)]
    pub threads: Option<u32>,
}

/// A reference of scans.
#[derive(Debug, Args)]
pub struct ReferenceArgs {
    /// Folder with imagesTr and labelsTr
    #[arg(long)]
    pub data: PathBuf,
}

/// Phantom hospitals.
#[derive(Debug, Args)]
pub struct PhantomArgs {
    /// Folder for one folder per hospital, each with train, eval and labels
    #[arg(long)]
    pub out: PathBuf,
    /// Hospitals, each with a scanner of its own look
    #[arg(long, value_delimiter = ',', default_value = "alder,birch,cedar,damson")]
    pub names: Vec<String>,
    /// Scans of each hospital, one per person; every fifth is for evaluation
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(5..))]
    pub cases: u32,
    /// Voxels along x, y, z
    #[arg(long, value_parser = shape, default_value = "32,40,32")]
    pub shape: Shape,
    /// Equal seeds give equal files
    #[arg(long, default_value_t = 7)]
    pub seed: u64,
}

/// Simulated hospitals from one folder.
#[derive(Debug, Args)]
pub struct ShardArgs {
    /// Medical Segmentation Decathlon folder; a cases.csv with a column regime is heeded for four hospitals
    #[arg(long)]
    pub data: PathBuf,
    /// Folder for one folder per hospital, each with train, eval and labels
    #[arg(long)]
    pub out: PathBuf,
    /// Hospitals; four of them: for regime F (first half of its persons), F (second half), U and H
    #[arg(long, value_delimiter = ',', default_value = "alder,birch,cedar,damson")]
    pub names: Vec<String>,
    /// Every so many persons, one goes to evaluation
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(2..))]
    pub hold_back: u32,
    /// Copy the files instead of linking to them
    #[arg(long)]
    pub copy: bool,
    /// Change the third hospital's scans to thick slices with noise, and the fourth's to shaded, inverted ones
    #[arg(long)]
    pub shift: bool,
    /// Seed of the changes
    #[arg(long, default_value_t = 7)]
    pub seed: u64,
}

/// Timing.
#[derive(Debug, Args)]
pub struct BenchArgs {
    /// Steps to time, the first of them to warm up; 0 only writes --export
    #[arg(long, default_value_t = 20)]
    pub steps: u32,
    /// CPU threads
    #[arg(long, default_value_t = 2)]
    pub threads: u32,
    /// Volumes in a step
    #[arg(long, default_value_t = 2)]
    pub batch: usize,
    /// Channels at full resolution
    #[arg(long, default_value_t = 8)]
    pub width: u32,
    /// Voxels along x, y, z
    #[arg(long, value_parser = shape, default_value = "40,56,40")]
    pub shape: Shape,
    /// Seed of weights and volumes
    #[arg(long, default_value_t = 7)]
    pub seed: u64,
    /// File for the starting weights, volumes and labels, from which trainer/bench/eager.py takes them
    #[arg(long)]
    pub export: Option<PathBuf>,
}
