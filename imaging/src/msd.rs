//! Medical Segmentation Decathlon folders: `imagesTr/*.nii.gz` with `labelsTr/*.nii.gz` of the same names, or `imagesTs`
//! for scans without labels (`labelsTs` for labels kept apart from them).
//!
//! Which volumes are of one person is told by `subjects.csv` or `cases.csv` (columns `case` and `subject` or
//! `subject_guess`, optionally `regime`); a table must name every scan of its folder. Without either, each case counts as
//! a person of its own. Getting this wrong puts a patient on both sides of a split and makes every figure too good.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use crate::error::ScanError;
use crate::nifti_file::{check_pair, read_mask, read_volume};
use crate::volume::{Grid, Mask, Volume};

/// One scan of a folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Case {
    /// The file name without `.nii` or `.nii.gz`.
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

/// Case → (subject, regime), as a folder's table tells.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CaseTable {
    /// `None`: the folder has no table.
    file: Option<PathBuf>,
    rows: BTreeMap<String, (String, Option<String>)>,
}

impl CaseTable {
    /// Reads `subjects.csv`, else `cases.csv`, else gives a table that knows no persons.
    pub fn of_folder(folder: &Path) -> Result<Self, ScanError> {
        for name in ["subjects.csv", "cases.csv"] {
            let file = folder.join(name);
            if file.exists() {
                let text = fs::read_to_string(&file).map_err(|e| ScanError::unreadable(&file, &e))?;
                return Self::parse(&file, &text);
            }
        }
        Ok(Self::default())
    }

    /// Reads a table; `file` is for messages. Fields hold no commas or quotes.
    pub fn parse(file: &Path, text: &str) -> Result<Self, ScanError> {
        let bad = |line: usize, reason: String| ScanError::BadTable { file: file.to_owned(), line, reason };
        let mut lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
        let (_, header) = lines.next().ok_or_else(|| bad(1, "the table is empty".into()))?;
        let columns: Vec<&str> = header.split(',').map(str::trim).collect();
        let find = |name: &str| columns.iter().position(|column| *column == name);
        let case_at = find("case").ok_or_else(|| bad(1, "no column case".into()))?;
        let subject_at =
            find("subject").or_else(|| find("subject_guess")).ok_or_else(|| bad(1, "no column subject".into()))?;
        let regime_at = find("regime");
        let mut rows = BTreeMap::new();
        for (index, line) in lines {
            let fields: Vec<&str> = line.split(',').map(str::trim).collect();
            if fields.len() != columns.len() {
                return Err(bad(index + 1, format!("{} fields, the header has {}", fields.len(), columns.len())));
            }
            let (case, subject) = (fields[case_at], fields[subject_at]);
            if case.is_empty() || subject.is_empty() {
                return Err(bad(index + 1, "case and subject must not be empty".into()));
            }
            let regime = regime_at.map(|at| fields[at].to_owned()).filter(|regime| !regime.is_empty());
            if rows.insert(case.to_owned(), (subject.to_owned(), regime)).is_some() {
                return Err(bad(index + 1, format!("case {case} stands there twice")));
            }
        }
        Ok(Self { file: Some(file.to_owned()), rows })
    }

    /// Whether there is a table, so that scans of one person are known as such.
    pub fn knows_persons(&self) -> bool {
        self.file.is_some()
    }

    /// The person a case is of: by the table, which must have it, or the case itself where there is no table.
    pub fn subject(&self, case: &str) -> Result<String, ScanError> {
        match (self.rows.get(case), &self.file) {
            (Some((subject, _)), _) => Ok(subject.clone()),
            (None, None) => Ok(case.to_owned()),
            (None, Some(file)) => Err(ScanError::NotInTable { file: file.clone(), case: case.to_owned() }),
        }
    }

    /// The regime of a case, if known.
    pub fn regime(&self, case: &str) -> Option<String> {
        self.rows.get(case).and_then(|(_, regime)| regime.clone())
    }
}

/// Writes the table of some cases, so that a part of a folder keeps knowing who is who.
pub fn write_table(file: &Path, cases: &[Case]) -> Result<(), ScanError> {
    let mut text = String::from("case,subject,regime\n");
    for case in cases {
        text += &format!("{},{},{}\n", case.id, case.subject, case.regime.as_deref().unwrap_or(""));
    }
    fs::write(file, text).map_err(|e| ScanError::unwritable(file, e))
}

/// The labelled cases of a folder (`imagesTr` with `labelsTr`), ordered by name. Errors when one has no mask.
pub fn labelled_cases(folder: &Path) -> Result<Vec<Case>, ScanError> {
    let cases = cases_in(folder, "imagesTr", Some("labelsTr"))?;
    let missing = cases
        .iter()
        .filter_map(|case| case.mask.as_ref().map(|mask| (case, mask)))
        .filter(|(_, mask)| !mask.exists())
        .map(|(case, mask)| ScanError::MissingMask { image: case.image.clone(), mask: mask.clone() })
        .collect();
    ScanError::fold(missing).map_or(Ok(cases), Err)
}

/// The scans of a folder to be segmented: `imagesTs` if it is there, else `imagesTr`. Masks are not looked at.
pub fn unlabelled_cases(folder: &Path) -> Result<Vec<Case>, ScanError> {
    let images = if folder.join("imagesTs").is_dir() { "imagesTs" } else { "imagesTr" };
    cases_in(folder, images, None)
}

/// Masks by case id, from a folder that holds them directly or in `labelsTs` or `labelsTr`.
pub fn masks_in(folder: &Path) -> Result<BTreeMap<String, PathBuf>, ScanError> {
    let inner = ["labelsTs", "labelsTr"].map(|name| folder.join(name)).into_iter().find(|path| path.is_dir());
    scans_in(inner.as_deref().unwrap_or(folder))
}

fn cases_in(folder: &Path, images: &str, labels: Option<&str>) -> Result<Vec<Case>, ScanError> {
    let table = CaseTable::of_folder(folder)?;
    let image_folder = folder.join(images);
    if !image_folder.is_dir() {
        return Err(ScanError::BadFolder { folder: folder.to_owned(), reason: format!("there is no folder {images}") });
    }
    let scans = scans_in(&image_folder)?;
    if scans.is_empty() {
        return Err(ScanError::BadFolder { folder: image_folder, reason: "there is no .nii or .nii.gz in it".into() });
    }
    let (mut cases, mut strangers) = (Vec::new(), Vec::new());
    for (id, image) in scans {
        match table.subject(&id) {
            Ok(subject) => cases.push(Case {
                subject,
                regime: table.regime(&id),
                mask: labels.map(|labels| folder.join(labels).join(image.file_name().unwrap_or_default())),
                id,
                image,
            }),
            Err(e) => strangers.push(e),
        }
    }
    ScanError::fold(strangers).map_or(Ok(cases), Err)
}

fn scans_in(folder: &Path) -> Result<BTreeMap<String, PathBuf>, ScanError> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(folder).map_err(|e| ScanError::unreadable(folder, &e))? {
        let path = entry.map_err(|e| ScanError::unreadable(folder, &e))?.path();
        if let Some(id) = path.file_name().and_then(|name| name.to_str()).and_then(case_id) {
            found.insert(id.to_owned(), path.clone());
        }
    }
    Ok(found)
}

/// The case that a file is of by its name, when it is a scan or a mask.
pub(crate) fn case_id(name: &str) -> Option<&str> {
    // Archives made on a Mac carry resource forks named ._x.nii.gz, which are no scans.
    let name = Some(name).filter(|name| !name.starts_with('.'))?;
    name.strip_suffix(".nii.gz").or_else(|| name.strip_suffix(".nii"))
}

/// Watches that all scans of a folder lie alike: nothing here reorients, so that a network sees voxels as they are
/// stored.
#[derive(Debug, Default)]
pub struct Orientation(Option<(PathBuf, String)>);

impl Orientation {
    /// Compares a scan with the first one.
    pub fn check(&mut self, file: &Path, grid: &Grid) -> Result<(), ScanError> {
        let found = grid.axes();
        let (first, expected) = self.0.get_or_insert_with(|| (file.to_owned(), found.clone()));
        if found == *expected {
            return Ok(());
        }
        let (first, expected) = (first.clone(), expected.clone());
        Err(ScanError::MixedOrientation { file: file.to_owned(), found, first, expected })
    }
}

/// Reads a labelled case and checks that its mask lies on its image.
pub fn load(case: &Case, classes: u8) -> Result<(Volume, Mask), ScanError> {
    let image = read_volume(&case.image)?;
    let mask_file = case
        .mask
        .as_ref()
        .ok_or_else(|| ScanError::MissingMask { image: case.image.clone(), mask: PathBuf::from("labelsTr") })?;
    let mask = read_mask(mask_file, classes)?;
    check_pair(&case.image, &image.grid, mask_file, &mask.grid)?;
    Ok((image, mask))
}
