//! What can be wrong with a scan. Each message names the file, the value, the rule and the way out, because the person
//! who reads it is a data steward in a hospital who has never seen this code.

use std::path::{Path, PathBuf};

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
    #[error("{}: not a NIfTI-1 file: {reason}; convert the scan to .nii or .nii.gz (one file, not a .hdr/.img pair)", file.display())]
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
        /// Sizes in x, y, z, … order.
        found: Vec<usize>,
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
    #[error("{}: {count} voxels are NaN or infinite (the first at x={} y={} z={}): every voxel must be finite; replace them by the background value", file.display(), at[0], at[1], at[2])]
    NotFinite {
        /// The file.
        file: PathBuf,
        /// How many.
        count: usize,
        /// Position of the first, x, y, z.
        at: [usize; 3],
    },
    /// An image all of whose voxels are equal.
    #[error("{}: empty: all voxels are {value}; a scan must show something; export it again or take the case out", file.display())]
    Empty {
        /// The file.
        file: PathBuf,
        /// The only value.
        value: f32,
    },
    /// A label that is no class of the study.
    #[error("{}: label {found} at x={} y={} z={}: labels must be whole numbers from 0 to {} (the study has {classes} classes, background included); map the labels to the study's classes", file.display(), at[0], at[1], at[2], classes - 1)]
    LabelOutsideClasses {
        /// The mask.
        file: PathBuf,
        /// The value.
        found: f32,
        /// Position of the first such voxel, x, y, z.
        at: [usize; 3],
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
    #[error("{}: affine differs from that of its image {} by {difference:.4} mm: at most {allowed} mm is allowed; resample the mask onto the image", mask.display(), image.display())]
    AffineMismatch {
        /// The mask.
        mask: PathBuf,
        /// Its image.
        image: PathBuf,
        /// Largest difference of an entry.
        difference: f32,
        /// The bound.
        allowed: f32,
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
    /// A row of `cases.csv` or `subjects.csv` cannot be used.
    #[error("{}: line {line}: {reason}; the header must name the columns case and subject (or subject_guess), optionally regime", file.display())]
    BadTable {
        /// The table.
        file: PathBuf,
        /// Line number from 1.
        line: usize,
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
    /// Scans of one folder whose axes point differently.
    #[error("{}: voxel axes point to {found}, those of {} to {expected}: a network sees the voxels as they are stored, so that all scans of a folder must lie alike; reorient the scans and masks to {expected}", file.display(), first.display())]
    MixedOrientation {
        /// The scan.
        file: PathBuf,
        /// Its axes, such as `RAS`.
        found: String,
        /// The folder's first scan.
        first: PathBuf,
        /// The axes of that.
        expected: String,
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
            Self::MixedOrientation { .. } => "MixedOrientation",
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
