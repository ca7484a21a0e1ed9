//! `dataset.json` of the Medical Segmentation Decathlon and of nnU-Net v2, and nnU-Net's `splits_final.json`: read as far as
//! they say something about the scans, and refused by name where they ask for what is not done here.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::error::ScanError;
use crate::msd::case_id;
use crate::table::{file_named, read_bounded};

/// Bytes of the longest such file that is read.
const MAX_BYTES: u64 = 16 << 20;
/// What nnU-Net v2 puts behind a case's name in the name of its image: the channel.
const CHANNEL: &str = "_0000";

/// What a `dataset.json` says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dataset {
    file: PathBuf,
    /// Names of labels by their number.
    labels: BTreeMap<u64, String>,
    /// Image files carry the channel's number after the case's name (nnU-Net v2).
    by_channel: bool,
    /// The cases that it lists, where it does.
    listed: Option<BTreeSet<String>>,
}

impl Dataset {
    /// Reads a folder's `dataset.json`, if there is one.
    pub fn of_folder(folder: &Path) -> Result<Option<Self>, ScanError> {
        let Some(file) = file_named(folder, "dataset.json")? else { return Ok(None) };
        Self::parse(&file, &read_bounded(&file, MAX_BYTES)?).map(Some)
    }

    /// Parses its bytes; `file` is for messages.
    pub fn parse(file: &Path, bytes: &[u8]) -> Result<Self, ScanError> {
        let bad = |reason: String| ScanError::BadDataset { file: file.to_owned(), reason };
        let Value::Object(fields) = json(file, bytes)? else {
            return Err(bad("not a JSON object; see the Decathlon's or nnU-Net v2's dataset.json".into()));
        };
        let nnunet = fields.contains_key("channel_names") || fields.contains_key("file_ending");
        if !nnunet && !fields.contains_key("modality") {
            return Err(bad(
                "neither modality (Medical Segmentation Decathlon) nor channel_names (nnU-Net v2) stands there, so that it \
                 is not known what it says of the scans; write one of them, or take the file away"
                    .into(),
            ));
        }
        one_channel(&fields, if nnunet { "channel_names" } else { "modality" }).map_err(bad)?;
        file_ending(&fields).map_err(bad)?;
        if fields.contains_key("dataset") {
            return Err(bad(
                "dataset lists files by their paths, which is not read; put the scans into imagesTr and labelsTr, \
                            and take the field out"
                    .into(),
            ));
        }
        Ok(Self {
            file: file.to_owned(),
            labels: labels(&fields).map_err(bad)?,
            by_channel: nnunet,
            listed: if nnunet { None } else { listed(&fields).map_err(bad)? },
        })
    }

    /// Names of labels by their number, 0 the background.
    pub fn labels(&self) -> &BTreeMap<u64, String> {
        &self.labels
    }

    /// Refuses labels that a study of so many classes (background included) has no place for.
    pub fn check_classes(&self, classes: u8) -> Result<(), ScanError> {
        let Some((label, name)) = self.labels.iter().find(|(label, _)| **label >= u64::from(classes)) else {
            return Ok(());
        };
        let reason = format!(
            "label {label} ({name}): the study has {classes} classes, 0 to {} with the background; map the labels to the \
             study's classes, in the masks and here",
            classes - 1
        );
        Err(ScanError::BadDataset { file: self.file.clone(), reason })
    }

    /// The case that an image is of, by its name without the ending.
    pub(crate) fn case_of_image(&self, image: &Path, name: &str) -> Result<String, ScanError> {
        if !self.by_channel {
            return Ok(name.to_owned());
        }
        match name.strip_suffix(CHANNEL) {
            Some(case) if !case.is_empty() => Ok(case.to_owned()),
            _ => Err(ScanError::BadDataset {
                file: self.file.clone(),
                reason: format!(
                    "it is nnU-Net's, where images are called CASE{CHANNEL}.nii.gz after their one channel, and {} is not; \
                     rename it, or take it out",
                    image.display()
                ),
            }),
        }
    }

    /// Everything that stands in the list and not in the folder, or the other way round.
    pub(crate) fn check_listing<'a>(&self, images: &Path, cases: impl Iterator<Item = &'a String>) -> Vec<ScanError> {
        let Some(listed) = &self.listed else { return Vec::new() };
        let there: BTreeSet<&String> = cases.collect();
        let bad = |reason: String| ScanError::BadDataset { file: self.file.clone(), reason };
        let folder = images.display();
        let lacking = listed.iter().filter(|case| !there.contains(case)).map(|case| {
            bad(format!(
                "training lists case {case}, which is not in {folder}; add its scan, or take it out of the list"
            ))
        });
        let unlisted = there.iter().filter(|case| !listed.contains(**case)).map(|case| {
            bad(format!("training does not list case {case}, which is in {folder}; add it to the list, or take it out"))
        });
        lacking.chain(unlisted).collect()
    }
}

/// Cases to train on and to hold back: the first fold of a `splits_final.json`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Split {
    /// Where it stands.
    pub file: PathBuf,
    /// To train on.
    pub train: BTreeSet<String>,
    /// To judge by.
    pub held_back: BTreeSet<String>,
}

impl Split {
    /// Reads a folder's `splits_final.json`, if there is one.
    pub fn of_folder(folder: &Path) -> Result<Option<Self>, ScanError> {
        let Some(file) = file_named(folder, "splits_final.json")? else { return Ok(None) };
        let reason = "not a list of folds such as [{\"train\": [\"case\", …], \"val\": [\"case\", …]}, …]".to_owned();
        let value = json(&file, &read_bounded(&file, MAX_BYTES)?)?;
        let names = |name: &str| -> Option<BTreeSet<String>> {
            let cases = value.get(0)?.get(name)?.as_array()?;
            cases.iter().map(|case| case.as_str().map(|case| case_id(case).unwrap_or(case).to_owned())).collect()
        };
        match (names("train"), names("val")) {
            (Some(train), Some(held_back)) => Ok(Some(Self { file, train, held_back })),
            _ => Err(ScanError::BadDataset { file, reason }),
        }
    }
}

fn json(file: &Path, bytes: &[u8]) -> Result<Value, ScanError> {
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    serde_json::from_slice(bytes)
        .map_err(|e| ScanError::BadDataset { file: file.to_owned(), reason: format!("not JSON: {e}; write it again") })
}

fn one_channel(fields: &Map<String, Value>, name: &str) -> Result<(), String> {
    let Some(channels) = fields.get(name) else { return Ok(()) };
    let names: Vec<String> = match channels {
        Value::Object(channels) => channels.values().map(text).collect(),
        Value::Array(channels) => channels.iter().map(text).collect(),
        other => vec![text(other)],
    };
    match names.len() {
        0 | 1 => Ok(()),
        many => Err(format!(
            "{name} names {many} channels ({}): scans of one channel are read; keep one of them, and write one file a case",
            names.join(", ")
        )),
    }
}

fn file_ending(fields: &Map<String, Value>) -> Result<(), String> {
    match fields.get("file_ending") {
        None => Ok(()),
        Some(Value::String(ending)) if [".nii", ".nii.gz"].contains(&ending.to_lowercase().as_str()) => Ok(()),
        Some(other) => Err(format!("file_ending is {}: .nii and .nii.gz are read; convert the scans", text(other))),
    }
}

/// The Decathlon has names by number (`"1": "Anterior"`), nnU-Net v2 numbers by name (`"Anterior": 1`).
fn labels(fields: &Map<String, Value>) -> Result<BTreeMap<u64, String>, String> {
    let Some(Value::Object(entries)) = fields.get("labels") else {
        return Err("labels is missing, or no object of names and numbers; write which label is which".into());
    };
    let mut labels = BTreeMap::new();
    for (key, value) in entries {
        if key.eq_ignore_ascii_case("ignore") || value.as_str().is_some_and(|name| name.eq_ignore_ascii_case("ignore"))
        {
            return Err("labels has an ignore label: every voxel is trained on here; give those voxels a class".into());
        }
        if value.is_array() {
            return Err(format!(
                "label {key} is a region of several labels {}: regions are not read; give each voxel one class",
                text(value)
            ));
        }
        let number = |text: &str| text.trim().parse::<u64>().ok();
        let (label, name) = match (number(key), value) {
            (Some(label), Value::String(name)) => (Some(label), name.clone()),
            (_, Value::Number(label)) => (label.as_u64(), key.clone()),
            (None, Value::String(label)) => (number(label), key.clone()),
            _ => (None, key.clone()),
        };
        let label = label.ok_or_else(|| format!("label {key}: {}: a label is a whole number from 0", text(value)))?;
        if let Some(other) = labels.insert(label, name.clone()) {
            return Err(format!("label {label} has two names, {other} and {name}; give each its own number"));
        }
    }
    match labels.get(&0) {
        Some(_) => Ok(labels),
        None => Err("labels does not name label 0, the background; name it".into()),
    }
}

/// The cases of the Decathlon's `training`.
fn listed(fields: &Map<String, Value>) -> Result<Option<BTreeSet<String>>, String> {
    let entries = match fields.get("training") {
        None => return Ok(None),
        Some(Value::Array(entries)) => entries,
        Some(other) => return Err(format!("training is {}: it must be a list of images with labels", text(other))),
    };
    let case = |value: &Value| -> Option<String> {
        let path = value.as_str()?;
        case_id(path.rsplit(['/', '\\']).next()?).map(str::to_owned)
    };
    let mut cases = BTreeSet::new();
    for entry in entries {
        let image = case(entry.get("image").unwrap_or(entry));
        let Some(image) = image else {
            return Err(format!("training has an entry {} that names no .nii or .nii.gz image", text(entry)));
        };
        let label = entry.get("label").map(|label| case(label).unwrap_or_else(|| text(label)));
        if let Some(label) = label.filter(|label| *label != image) {
            return Err(format!(
                "training pairs image {image} with label {label}: an image and its mask have the same name here; rename one"
            ));
        }
        cases.insert(image);
    }
    Ok(Some(cases))
}

/// A value as it stands there, cut where it is long.
fn text(value: &Value) -> String {
    let whole = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    match whole.char_indices().nth(80) {
        Some((at, _)) => format!("{}…", &whole[..at]),
        None => whole,
    }
}
