//! What can be wrong with a scan. Each message names the file, the value, the rule and the way out, because the person
//! who reads it is a data steward in a hospital who has never seen this code.

use std::path::{Path, PathBuf};

use crate::place::Axes;

/// A scan, a mask or a data folder that cannot be used. All of these are permanent: trying again does not help.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ScanError {
    /// The file cannot be opened or read.
    #[error("{}: cannot be read: {reason}; check that the file exists and that this process may read it", file.display())]
    Unreadable {
        /// The file.
        file: PathBuf,
        /// The operating system's reason.
        reason: String,
    },
    /// The file ends early or its compressed stream is damaged.
    #[error("{}: truncated or damaged: {found}, expected {expected}; export or copy the file again", file.display())]
    Truncated {
        /// The file.
        file: PathBuf,
        /// What was found.
        found: String,
        /// What had to be there.
        expected: String,
    },
    /// Not a NIfTI-1 single file at all.
    #[error("{}: not a NIfTI-1 file: {reason}; convert the scan to NIfTI-1 in one file, .nii or .nii.gz", file.display())]
    NotNifti {
        /// The file.
        file: PathBuf,
        /// What gave it away.
        reason: String,
    },
    /// A voxel type with no single real value.
    #[error("{}: data type {found} is not supported: voxels must be integers or real numbers of 8 to 64 bits; convert the file to int16 or float32", file.display())]
    WrongDataType {
        /// The file.
        file: PathBuf,
        /// The type's name or code.
        found: String,
    },
    /// Wrong number of dimensions.
    #[error("{}: shape {found:?} is not three-dimensional: a scan has exactly three axes longer than nothing; split time series or channels into one file each", file.display())]
    NotThreeDimensional {
        /// The file.
        file: PathBuf,
        /// Sizes in x, y, z, … order, as they stand there.
        found: Vec<i64>,
    },
    /// A header field that cannot be, or that contradicts another.
    #[error("{}: {field} is {found}: {rule}; correct the header", file.display())]
    BadGeometry {
        /// The file.
        file: PathBuf,
        /// The header field.
        field: &'static str,
        /// Its value.
        found: String,
        /// What it has to be.
        rule: &'static str,
    },
    /// NaN or infinite voxels.
    #[error("{}: {count} voxels are NaN, infinite or beyond 3.4e38 (the first at x={} y={} z={}){}: every voxel must be finite; replace them by the background value", file.display(), at[0], at[1], at[2], by(scaling))]
    NotFinite {
        /// The file.
        file: PathBuf,
        /// How many.
        count: usize,
        /// Position of the first, x, y, z.
        at: [usize; 3],
        /// The header's slope and intercept, where it has them.
        scaling: Option<(f64, f64)>,
    },
    /// An image all of whose voxels are equal.
    #[error("{}: empty: all voxels are {value}{}; a scan must show something; export it again or take the case out", file.display(), by(scaling))]
    Empty {
        /// The file.
        file: PathBuf,
        /// The only value.
        value: f32,
        /// The header's slope and intercept, where it has them.
        scaling: Option<(f64, f64)>,
    },
    /// A label that is no class of the study.
    #[error("{}: label {found} at x={} y={} z={}{}: labels must be whole numbers from 0 to {} (the study has {classes} classes, background included); map the labels to the study's classes", file.display(), at[0], at[1], at[2], by(scaling), classes - 1)]
    LabelOutsideClasses {
        /// The mask.
        file: PathBuf,
        /// The value.
        found: f32,
        /// Position of the first such voxel, x, y, z.
        at: [usize; 3],
        /// The header's slope and intercept, where it has them: a mask needs none.
        scaling: Option<(f64, f64)>,
        /// Number of classes, background included.
        classes: u8,
    },
    /// Image and mask differ in shape.
    #[error("{}: shape {mask_shape:?} differs from {image_shape:?} of its image {}: a mask has one voxel per voxel of its image; resample the mask onto the image", mask.display(), image.display())]
    ShapeMismatch {
        /// The mask.
        mask: PathBuf,
        /// Its image.
        image: PathBuf,
        /// x, y, z.
        mask_shape: [usize; 3],
        /// x, y, z.
        image_shape: [usize; 3],
    },
    /// Image and mask lie in different places.
    #[error("{}: lies elsewhere than its image {}: the corners of the two, by their affines, are up to {difference:.3} mm apart, at most {allowed:.3} mm is allowed; if they do lie elsewhere, resample the mask onto the image, if only the headers differ, copy the image's into the mask", mask.display(), image.display())]
    AffineMismatch {
        /// The mask.
        mask: PathBuf,
        /// Its image.
        image: PathBuf,
        /// Largest distance of a corner, in mm.
        difference: f64,
        /// The bound.
        allowed: f64,
    },
    /// Only one of an image and its mask says where it lies.
    #[error("{}: {} (its axes go {axes}) and {} {} does not (qform_code and sform_code are 0): whether the two lie on each other cannot be told from the headers, and a program that assumes an orientation for one of them can mirror it; find out how the scan lies, and write the same sform into both", mask.display(), if *image_is { "its image says where it lies" } else { "says where it lies" }, if *image_is { "this mask of" } else { "its image" }, image.display())]
    HalfPlaced {
        /// The mask.
        mask: PathBuf,
        /// Its image.
        image: PathBuf,
        /// It is the image that says it.
        image_is: bool,
        /// What the one says.
        axes: Axes,
    },
    /// A scan that does not say how it lies, where that matters.
    #[error("{}: orientation unknown (qform_code and sform_code are 0): the header does not say where left and right are, and the scan has to be brought to {axes}; find out how it lies, and write its sform into the file", file.display())]
    UnknownOrientation {
        /// The scan.
        file: PathBuf,
        /// What it has to be brought to.
        axes: Axes,
    },
    /// Voxels of another size than asked for.
    #[error("{}: voxels of {found:?} mm (along {axes}), where {wanted:?} mm is asked for, to {percent} %: nothing is resampled here; resample scan and mask", file.display())]
    WrongSpacing {
        /// The scan.
        file: PathBuf,
        /// Its spacing in the order asked for.
        found: [f32; 3],
        /// That order.
        axes: Axes,
        /// What is asked for.
        wanted: [f32; 3],
        /// The tolerance.
        percent: u8,
    },
    /// Cutting a scan to the study's shape takes labels away.
    #[error("{}: cut to shape {shape:?}, {lost} of its {all} labelled voxels are lost: a case must keep all its labels; set shape to {needed:?}, which keeps them, or crop the scans around the structure yourself", mask.display())]
    LabelsCutOff {
        /// The mask.
        mask: PathBuf,
        /// The shape of the study.
        shape: [usize; 3],
        /// Labelled voxels beyond it.
        lost: usize,
        /// Labelled voxels.
        all: usize,
        /// The shape that would do.
        needed: [usize; 3],
    },
    /// An image without its mask.
    #[error("{}: no mask {} for it: every training image needs one of the same name; add it or take the image out", image.display(), mask.display())]
    MissingMask {
        /// The image.
        image: PathBuf,
        /// Where the mask was looked for.
        mask: PathBuf,
    },
    /// The folder is not a Medical Segmentation Decathlon folder, or has no cases.
    #[error("{}: {reason}; a data folder has imagesTr/*.nii.gz and labelsTr/*.nii.gz of the same names (imagesTs for scans without labels)", folder.display())]
    BadFolder {
        /// The folder.
        folder: PathBuf,
        /// What is missing.
        reason: String,
    },
    /// A mask without its image.
    #[error("{}: there is no image of the same name in {}: every mask needs one; add it or take the mask out", mask.display(), images.display())]
    MissingImage {
        /// The mask.
        mask: PathBuf,
        /// Where the image was looked for.
        images: PathBuf,
    },
    /// Two files of one case.
    #[error("{} and {}: two files of case {case}: which one counts cannot be told; take one of them out", first.display(), second.display())]
    TwoFiles {
        /// The case.
        case: String,
        /// One.
        first: PathBuf,
        /// The other.
        second: PathBuf,
    },
    /// A file whose name is no text.
    #[error("{}: the name {name:?} is not UTF-8 (what is no text stands as �), so that it can stand in no table and no report; rename the file", folder.display())]
    BadName {
        /// Where.
        folder: PathBuf,
        /// The name, as far as it is text.
        name: String,
    },
    /// `dataset.json` or `splits_final.json` says something that is not read, or that the folder contradicts.
    #[error("{}: {reason}", file.display())]
    BadDataset {
        /// The file.
        file: PathBuf,
        /// What is wrong and the way out.
        reason: String,
    },
    /// A row of `cases.csv` or `subjects.csv` cannot be used.
    #[error("{}: line {line}: {reason}; the header must name the columns case and subject (or subject_guess), optionally regime; fields are separated by commas, semicolons or tabs", file.display())]
    BadTable {
        /// The table.
        file: PathBuf,
        /// Line number from 1.
        line: u64,
        /// What is wrong.
        reason: String,
    },
    /// A scan of whose person the folder's table says nothing.
    #[error("{}: no row for case {case}: where a table says which scans are of one person, it must name every scan, or a person could be on both sides of a split; add the row, or take the table away if every scan is of another person", file.display())]
    NotInTable {
        /// The table.
        file: PathBuf,
        /// The case.
        case: String,
    },
    /// A result could not be written.
    #[error("{}: cannot be written: {reason}; check free space and permissions of the folder", file.display())]
    Unwritable {
        /// The file.
        file: PathBuf,
        /// The reason.
        reason: String,
    },
    /// Several files of one folder are unusable.
    #[error("{count} files cannot be used: {}{}", first.join(" | "), if *count > first.len() { " | …" } else { "" })]
    Several {
        /// How many.
        count: usize,
        /// The messages of the first of them.
        first: Vec<String>,
    },
}

impl ScanError {
    /// The stable name of the error's kind, for metrics, conditions and `failure.json`.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Unreadable { .. } => "Unreadable",
            Self::Truncated { .. } => "Truncated",
            Self::NotNifti { .. } => "NotNifti",
            Self::WrongDataType { .. } => "WrongDataType",
            Self::NotThreeDimensional { .. } => "NotThreeDimensional",
            Self::BadGeometry { .. } => "BadGeometry",
            Self::NotFinite { .. } => "NotFinite",
            Self::Empty { .. } => "Empty",
            Self::LabelOutsideClasses { .. } => "LabelOutsideClasses",
            Self::ShapeMismatch { .. } => "ShapeMismatch",
            Self::AffineMismatch { .. } => "AffineMismatch",
            Self::MissingMask { .. } => "MissingMask",
            Self::BadFolder { .. } => "BadFolder",
            Self::BadTable { .. } | Self::NotInTable { .. } => "BadTable",
            Self::HalfPlaced { .. } | Self::UnknownOrientation { .. } => "UnknownOrientation",
            Self::WrongSpacing { .. } => "WrongSpacing",
            Self::LabelsCutOff { .. } => "LabelsCutOff",
            Self::MissingImage { .. } => "MissingImage",
            Self::TwoFiles { .. } => "TwoFiles",
            Self::BadName { .. } => "BadName",
            Self::BadDataset { .. } => "BadDataset",
            Self::Unwritable { .. } => "Unwritable",
            Self::Several { .. } => "SeveralFiles",
        }
    }

    /// Folds the errors of many files into one; a single one stays itself.
    ///
    /// Returns `None` when there is none.
    pub fn fold(mut errors: Vec<ScanError>) -> Option<ScanError> {
        const SHOWN: usize = 5;
        match errors.len() {
            0 | 1 => errors.pop(),
            count => Some(Self::Several { count, first: errors.iter().take(SHOWN).map(ToString::to_string).collect() }),
        }
    }

    pub(crate) fn unreadable(file: &Path, source: &std::io::Error) -> Self {
        Self::Unreadable { file: file.to_owned(), reason: source.to_string() }
    }

    pub(crate) fn unwritable(file: &Path, reason: impl ToString) -> Self {
        Self::Unwritable { file: file.to_owned(), reason: reason.to_string() }
    }
}

/// The scaling that may be what made a voxel infinite.
fn by(scaling: &Option<(f64, f64)>) -> String {
    scaling.map_or(String::new(), |(slope, intercept)| format!(", with scl_slope {slope} and scl_inter {intercept}"))
}
