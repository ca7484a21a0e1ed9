//! `phantom` and `shard`: folders of simulated hospitals.
//!
//! Each hospital's folder has `train` (imagesTr, labelsTr), `eval` (imagesTs: scans without labels, what the study's
//! image sees) and `labels` (labelsTs: what only the platform's evaluator sees), each with a `cases.csv`.

use std::fs;
use std::path::{Path, PathBuf};

use consilium_imaging::msd::{Case, labelled_cases, write_table};
use consilium_imaging::nifti_file::{read_volume, write_mask, write_volume};
use consilium_imaging::phantom::{Profile, phantom as make_phantom};
use consilium_imaging::shift::{Shift, apply};
use consilium_imaging::split::hold_back;
use serde_json::json;

use super::{warn, warn_without_table};
use crate::cli::{PhantomArgs, ShardArgs};
use crate::contract::write_json;
use crate::error::TrainerError;
use crate::shards::by_regime;

const NOTE: &str = "simulated hospitals";

/// Folders of one hospital: (images, masks) of the training part and of the evaluation part.
struct Folders {
    hospital: PathBuf,
}

impl Folders {
    fn make(out: &Path, name: &str) -> Result<Self, TrainerError> {
        let folders = Self { hospital: out.join(name) };
        for inner in ["train/imagesTr", "train/labelsTr", "eval/imagesTs", "labels/labelsTs"] {
            let folder = folders.hospital.join(inner);
            fs::create_dir_all(&folder).map_err(|e| TrainerError::file("made", &folder, e))?;
        }
        Ok(folders)
    }

    fn image(&self, case: &str, held_back: bool) -> PathBuf {
        self.hospital.join(if held_back { "eval/imagesTs" } else { "train/imagesTr" }).join(format!("{case}.nii.gz"))
    }

    fn mask(&self, case: &str, held_back: bool) -> PathBuf {
        self.hospital.join(if held_back { "labels/labelsTs" } else { "train/labelsTr" }).join(format!("{case}.nii.gz"))
    }

    fn tables(&self, train: &[Case], held_back: &[Case]) -> Result<(), TrainerError> {
        write_table(&self.hospital.join("train/cases.csv"), train)?;
        write_table(&self.hospital.join("eval/cases.csv"), held_back)?;
        Ok(write_table(&self.hospital.join("labels/cases.csv"), held_back)?)
    }
}

pub(super) fn phantom(args: &PhantomArgs) -> Result<(), TrainerError> {
    let shape = args.shape.0;
    if shape.iter().any(|side| !(8..=512).contains(side)) {
        return Err(TrainerError::Config(format!("--shape {shape:?}: each side must be from 8 to 512")));
    }
    let mut listing = Vec::new();
    for (index, name) in args.names.iter().enumerate() {
        let folders = Folders::make(&args.out, name)?;
        let look = Profile::of_hospital(index);
        let cases: Vec<Case> = (1..=args.cases).map(|number| phantom_case(name, number)).collect();
        let (train, held_back) = hold_back(&cases, 5, None);
        for (part, is_held_back) in [(&train, false), (&held_back, true)] {
            for case in part {
                let person = index as u64 * 1_000_000 + case.subject.parse::<u64>().unwrap_or_default();
                let (volume, mask) = make_phantom(args.seed, person, shape, &look);
                write_volume(&folders.image(&case.id, is_held_back), &volume)?;
                write_mask(&folders.mask(&case.id, is_held_back), &mask)?;
            }
        }
        folders.tables(&train, &held_back)?;
        listing.push(json!({ "name": name, "regime": "phantom", "train": train.len(), "eval": held_back.len() }));
    }
    list(&args.out, listing)
}

fn phantom_case(hospital: &str, number: u32) -> Case {
    Case {
        id: format!("{hospital}_{number:03}"),
        subject: number.to_string(),
        regime: Some("phantom".into()),
        image: PathBuf::new(),
        mask: None,
    }
}

pub(super) fn shard(args: &ShardArgs) -> Result<(), TrainerError> {
    warn_without_table(&args.data)?;
    let folder = labelled_cases(&args.data)?;
    warn(&folder.notices);
    let shards = by_regime(&folder.cases, &args.names, args.hold_back as usize)?;
    let mut listing = Vec::new();
    for (index, shard) in shards.iter().enumerate() {
        let folders = Folders::make(&args.out, &shard.name)?;
        let shift = match (args.shift, index) {
            (true, 2) => Some(Shift::ThickSlices),
            (true, 3) => Some(Shift::InvertedBias),
            _ => None,
        };
        for (part, held_back) in [(&shard.train, false), (&shard.held_back, true)] {
            for (number, case) in part.iter().enumerate() {
                let target = folders.image(&case.id, held_back);
                match shift {
                    Some(shift) => {
                        let salt = number as u64 * 2 + u64::from(held_back);
                        remove(&target)?;
                        write_volume(&target, &apply(shift, &read_volume(&case.image)?, args.seed, salt))?;
                    }
                    None => place(&case.image, &target, args.copy)?,
                }
                if let Some(mask) = &case.mask {
                    place(mask, &folders.mask(&case.id, held_back), args.copy)?;
                }
            }
        }
        folders.tables(&shard.train, &shard.held_back)?;
        listing.push(json!({ "name": shard.name, "regime": shard.regime, "train": shard.train.len(),
            "eval": shard.held_back.len(), "shift": shift.map(|shift| format!("{shift:?}")) }));
    }
    list(&args.out, listing)
}

/// Writes `hospitals.json` and says what was made.
fn list(out: &Path, hospitals: Vec<serde_json::Value>) -> Result<(), TrainerError> {
    let listing = json!({ "note": NOTE, "hospitals": hospitals });
    println!("{listing}");
    write_json(&out.join("hospitals.json"), &listing)
}

fn remove(file: &Path) -> Result<(), TrainerError> {
    match fs::remove_file(file) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(TrainerError::file("replaced", file, e)),
        _ => Ok(()),
    }
}

/// Puts a file at its place: a link, or a copy for folders that travel. An uncompressed file keeps its content under
/// the compressed name, which readers tell by its first bytes.
fn place(from: &Path, to: &Path, copy: bool) -> Result<(), TrainerError> {
    remove(to)?;
    let done = if copy {
        fs::copy(from, to).map(|_| ())
    } else {
        fs::canonicalize(from).and_then(|from| std::os::unix::fs::symlink(from, to))
    };
    done.map_err(|e| TrainerError::file("written", to, e))
}
