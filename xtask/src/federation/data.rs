//! Scans for simulated hospitals: shards of a real data set, or phantoms.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::Value;

use crate::{
    cache,
    error::{Error, IoContext, Result},
    libtorch, process,
};

/// Where the scans come from.
#[derive(Clone, Debug)]
pub enum Source {
    /// A Medical Segmentation Decathlon folder, cut by acquisition regime, or by person where none is known.
    Decathlon {
        /// The folder.
        folder: PathBuf,
        /// Simulate scanners that differ between hospitals.
        shift: bool,
    },
    /// Made-up volumes.
    Phantoms {
        /// Cases in each hospital.
        cases: u32,
    },
}

impl Source {
    /// For titles and files of figures. These are never real hospitals, and every output says so.
    pub fn describe(&self) -> String {
        match self {
            Self::Decathlon { folder, shift } => {
                let shifted = if *shift { ", with simulated differences between scanners" } else { "" };
                let by = if folder.join("cases.csv").exists() { "acquisition regime" } else { "person" };
                format!("simulated hospitals: shards of {} by {by}{shifted}", folder.display())
            }
            Self::Phantoms { cases } => format!("simulated hospitals: {cases} phantoms each"),
        }
    }

    /// The shape that whole volumes are brought to, for the trainer's config.
    pub fn shape(&self) -> [u32; 3] {
        match self {
            Self::Decathlon { .. } => [40, 56, 40],
            Self::Phantoms { .. } => [32, 40, 32],
        }
    }
}

/// The folder of one hospital, with `train`, `eval` and `labels` in it.
pub fn hospital(root: &Path, name: &str) -> PathBuf {
    root.join(name)
}

/// One evaluation case of a hospital: its scan and its mask.
pub fn case(root: &Path, name: &str) -> Result<(PathBuf, PathBuf)> {
    let folder = hospital(root, name);
    let images = folder.join("eval/imagesTs");
    let mut files: Vec<PathBuf> =
        fs::read_dir(&images).at("list", &images)?.filter_map(|entry| entry.ok().map(|e| e.path())).collect();
    files.sort();
    let image = files
        .into_iter()
        .find(|file| file.to_string_lossy().ends_with(".nii.gz"))
        .ok_or_else(|| Error::Malformed { path: images, problem: "it holds no .nii.gz file".into() })?;
    let label = folder.join("labels/labelsTs").join(image.file_name().unwrap_or_default());
    Ok((image, label))
}

/// Makes (anew) the hospitals' folders under the cache, and returns their parent.
pub fn make(source: &Source, names: &[String]) -> Result<PathBuf> {
    let root = cache::sub("data")?.join(match source {
        Source::Decathlon { .. } => "shards",
        Source::Phantoms { .. } => "phantoms",
    });
    if root.exists() {
        fs::remove_dir_all(&root).at("remove", &root)?;
    }
    let mut command = trainer()?;
    match source {
        Source::Decathlon { folder, shift } => {
            command.arg("shard").arg("--data").arg(folder).arg("--copy");
            if *shift {
                command.arg("--shift");
            }
        }
        Source::Phantoms { cases } => {
            command.args(["phantom", "--cases", &cases.to_string(), "--shape", "32,40,32"]);
        }
    }
    command.arg("--out").arg(&root).args(["--names", &names.join(",")]);
    process::output(&mut command)?;
    Ok(root)
}

/// What the network is to see, by the look of one hospital's scans: `network.input` of the trainer's config.
pub fn reference(root: &Path, name: &str) -> Result<Value> {
    let printed = process::output(trainer()?.arg("reference").arg("--data").arg(hospital(root, name).join("train")))?;
    serde_json::from_str(&printed)
        .map_err(|e| Error::Malformed { path: hospital(root, name), problem: format!("its reference: {e}") })
}

/// `consilium-trainer` of this working tree, with libtorch on its path. Built by `images::build`.
pub fn trainer() -> Result<Command> {
    program("consilium-trainer")
}

/// `consilium-inference` of this working tree.
pub fn inference() -> Result<Command> {
    program("consilium-inference")
}

fn program(name: &str) -> Result<Command> {
    let mut command = Command::new(cache::sub("images/programs")?.join(name));
    command.envs(libtorch::environment(&libtorch::ensure()?));
    Ok(command)
}
