//! Folders as in the Medical Segmentation Decathlon: `imagesTr/*.nii.gz` with `labelsTr/*.nii.gz` of the same names, or
//! `imagesTs` for scans without labels (`labelsTs` for labels kept apart from them).
//!
//! Which volumes are of one person is told by `subjects.csv` or `cases.csv` ([`crate::table`]). Getting this wrong puts a
//! patient on both sides of a split and makes every figure too good.
//!
//! Nothing is left out silently: a file that looks like a scan is used or refused by name, and any other file in the
//! folders of scans is named in [`Folder::notices`].

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use crate::dataset::Dataset;
use crate::error::ScanError;
use crate::nifti_file::{check_pair, read_mask, read_volume, turn_onto};
pub use crate::table::{CaseTable, write_table};
use crate::volume::{Mask, Volume};

/// One scan of a folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Case {
    /// The file name without `.nii` or `.nii.gz` (and without nnU-Net's channel).
    pub id: String,
    /// The person.
    pub subject: String,
    /// Acquisition regime, when the table names one.
    pub regime: Option<String>,
    /// The image.
    pub image: PathBuf,
    /// The mask, when the folder has labels.
    pub mask: Option<PathBuf>,
}

/// A folder's scans, and what is in it besides.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Folder {
    /// The scans, ordered by name.
    pub cases: Vec<Case>,
    /// Files that are not read, in words: for the log.
    pub notices: Vec<String>,
    /// What its `dataset.json` says.
    pub dataset: Option<Dataset>,
}

impl Folder {
    /// Refuses labels of its `dataset.json` that a study of so many classes has no place for.
    pub fn check_classes(&self, classes: u8) -> Result<(), ScanError> {
        self.dataset.as_ref().map_or(Ok(()), |dataset| dataset.check_classes(classes))
    }
}

/// The labelled cases of a folder (`imagesTr` with `labelsTr`). Errors when an image has no mask or a mask no image.
pub fn labelled_cases(folder: &Path) -> Result<Folder, ScanError> {
    let (mut found, images) = cases_in(folder, "imagesTr")?;
    let labels = folder.join("labelsTr");
    let masks = if labels.is_dir() { scans_in(&labels)? } else { Scans::default() };
    let (mut files, mut missing) = (masks.files, Vec::new());
    for case in &mut found.cases {
        case.mask = files.remove(&case.id);
        if case.mask.is_none() {
            missing.push(ScanError::MissingMask {
                image: case.image.clone(),
                mask: labels.join(format!("{}.nii.gz", case.id)),
            });
        }
    }
    missing.extend(files.into_values().map(|mask| ScanError::MissingImage { mask, images: images.clone() }));
    found.notices.extend(masks.notice);
    ScanError::fold(missing).map_or(Ok(found), Err)
}

/// The scans of a folder to be segmented: `imagesTs` if it is there, else `imagesTr`. Masks are not looked at.
pub fn unlabelled_cases(folder: &Path) -> Result<Folder, ScanError> {
    let images = if folder.join("imagesTs").is_dir() { "imagesTs" } else { "imagesTr" };
    Ok(cases_in(folder, images)?.0)
}

/// Masks by case id, from a folder that holds them directly or in `labelsTs` or `labelsTr`.
pub fn masks_in(folder: &Path) -> Result<BTreeMap<String, PathBuf>, ScanError> {
    let inner = ["labelsTs", "labelsTr"].map(|name| folder.join(name)).into_iter().find(|path| path.is_dir());
    Ok(scans_in(inner.as_deref().unwrap_or(folder))?.files)
}

fn cases_in(folder: &Path, images: &str) -> Result<(Folder, PathBuf), ScanError> {
    let (table, dataset) = (CaseTable::of_folder(folder)?, Dataset::of_folder(folder)?);
    let image_folder = folder.join(images);
    if !image_folder.is_dir() {
        return Err(ScanError::BadFolder { folder: folder.to_owned(), reason: format!("there is no folder {images}") });
    }
    let scans = scans_in(&image_folder)?;
    if scans.files.is_empty() {
        let reason = match &scans.notice {
            Some(notice) => format!("there is no .nii or .nii.gz in it ({notice})"),
            None => "there is no .nii or .nii.gz in it".into(),
        };
        return Err(ScanError::BadFolder { folder: image_folder, reason });
    }
    let (mut cases, mut strangers) = (Vec::new(), Vec::new());
    for (name, image) in scans.files {
        let id = dataset.as_ref().map_or(Ok(name.clone()), |dataset| dataset.case_of_image(&image, &name));
        match id.and_then(|id| Ok((table.subject(&id)?, id))) {
            Ok((subject, id)) => cases.push(Case { subject, regime: table.regime(&id), mask: None, id, image }),
            Err(e) => strangers.push(e),
        }
    }
    if let (Some(dataset), "imagesTr", true) = (&dataset, images, strangers.is_empty()) {
        strangers.extend(dataset.check_listing(&image_folder, cases.iter().map(|case| &case.id)));
    }
    let notices = scans.notice.into_iter().chain(table.notice()).collect();
    ScanError::fold(strangers).map_or(Ok((Folder { cases, notices, dataset }, image_folder)), Err)
}

/// The scans in one folder by name without the ending, and what else is there.
#[derive(Default)]
struct Scans {
    files: BTreeMap<String, PathBuf>,
    notice: Option<String>,
}

fn scans_in(folder: &Path) -> Result<Scans, ScanError> {
    let (mut files, mut bad, mut others) = (BTreeMap::<String, PathBuf>::new(), Vec::new(), Vec::new());
    for entry in fs::read_dir(folder).map_err(|e| ScanError::unreadable(folder, &e))? {
        let path = entry.map_err(|e| ScanError::unreadable(folder, &e))?.path();
        let file_name = path.file_name().unwrap_or_default();
        let name = file_name.to_string_lossy().into_owned();
        match case_id(&name) {
            Some(_) if file_name.to_str().is_none() => bad.push(ScanError::BadName { folder: folder.to_owned(), name }),
            Some(id) => {
                if let Some(first) = files.insert(id.to_owned(), path.clone()) {
                    let (first, second) = if first < path { (first, path) } else { (path, first) };
                    bad.push(ScanError::TwoFiles { case: id.to_owned(), first, second });
                }
            }
            // Resource forks and views of a Mac's finder. What else is hidden may be half of a scan.
            None if name.starts_with("._") || name == ".DS_Store" => {}
            None => others.push(name),
        }
    }
    others.sort();
    ScanError::fold(bad).map_or(Ok(Scans { files, notice: notice_of(folder, &others) }), Err)
}

/// Names files that are no scans, the first of them each.
fn notice_of(folder: &Path, others: &[String]) -> Option<String> {
    const SHOWN: usize = 5;
    if others.is_empty() {
        return None;
    }
    let more = if others.len() > SHOWN { ", …" } else { "" };
    let names = others[..others.len().min(SHOWN)].join(", ");
    Some(format!(
        "{}: not read, since only .nii and .nii.gz are scans: {names}{more} ({})",
        folder.display(),
        others.len()
    ))
}

/// The case that a file is of by its name, when it is a scan or a mask.
pub(crate) fn case_id(name: &str) -> Option<&str> {
    // Archives made on a Mac carry resource forks named ._x.nii.gz, which are no scans.
    let name = Some(name).filter(|name| !name.starts_with('.'))?;
    [".nii.gz", ".nii"].into_iter().find_map(|ending| {
        let (stem, last) = name.split_at_checked(name.len().checked_sub(ending.len())?)?;
        (last.eq_ignore_ascii_case(ending) && !stem.is_empty()).then_some(stem)
    })
}

/// Reads a labelled case. The mask is brought to the image's order of axes, and must lie on it.
pub fn load(case: &Case, classes: u8) -> Result<(Volume, Mask), ScanError> {
    let image = read_volume(&case.image)?;
    let mask_file = case
        .mask
        .as_ref()
        .ok_or_else(|| ScanError::MissingMask { image: case.image.clone(), mask: PathBuf::from("labelsTr") })?;
    let mask = read_mask(mask_file, classes)?;
    let mask = turn_onto(&image.grid, &mask.grid).mask(mask);
    check_pair(&case.image, &image.grid, mask_file, &mask.grid)?;
    Ok((image, mask))
}
