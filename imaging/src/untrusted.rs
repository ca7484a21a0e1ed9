//! Masks in a folder that someone else may write to, also while it is read.
//!
//! A study's image writes its predictions beside the platform's evaluator. A link planted there in place of a mask, or in
//! place of the folder, would let the hospital's own labels be scored as predictions. So nothing here follows a link: the
//! folder is opened once, and every file by its name within that.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Dir, Mode, OFlags, openat};
use rustix::io::Errno;

use crate::error::ScanError;
use crate::msd::case_id;
use crate::nifti_file::read_prediction;
use crate::volume::{Grid, Mask};

/// A folder, opened without following a link.
#[derive(Debug)]
pub struct UntrustedFolder {
    path: PathBuf,
    handle: OwnedFd,
}

impl UntrustedFolder {
    /// Opens a folder; that its path leads there is the caller's word, that the last part of it is a folder and not a
    /// link to one is checked.
    pub fn open(path: &Path) -> Result<Self, ScanError> {
        let handle = openat(CWD, path, folder_flags(), Mode::empty()).map_err(|e| refused(path, e))?;
        Ok(Self { path: path.to_owned(), handle })
    }

    /// Opens a folder in this one.
    pub fn inner(&self, name: &str) -> Result<Self, ScanError> {
        let path = self.path.join(name);
        let handle = openat(&self.handle, name, folder_flags(), Mode::empty()).map_err(|e| refused(&path, e))?;
        Ok(Self { path, handle })
    }

    /// The path it was opened by, for messages.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Names of the masks' files by case; one file a case.
    pub fn masks(&self) -> Result<BTreeMap<String, String>, ScanError> {
        let unreadable = |e: Errno| ScanError::unreadable(&self.path, &e.into());
        let mut found = BTreeMap::<String, String>::new();
        for entry in Dir::read_from(&self.handle).map_err(unreadable)? {
            let entry = entry.map_err(unreadable)?;
            let lossy = entry.file_name().to_string_lossy();
            let Some(id) = case_id(&lossy) else { continue };
            let Ok(name) = entry.file_name().to_str() else {
                return Err(ScanError::BadName { folder: self.path.clone(), name: lossy.into_owned() });
            };
            if let Some(other) = found.insert(id.to_owned(), name.to_owned()) {
                let (first, second) = (self.path.join(other), self.path.join(name));
                return Err(ScanError::TwoFiles { case: id.to_owned(), first, second });
            }
        }
        Ok(found)
    }

    /// Reads the mask of this name, which must lie on `truth`.
    pub fn mask(&self, name: &str, classes: u8, truth: (&Path, &Grid)) -> Result<Mask, ScanError> {
        let path = self.path.join(name);
        // Without blocking: a pipe would hold the reader up for ever.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = File::from(openat(&self.handle, name, flags, Mode::empty()).map_err(|e| refused(&path, e))?);
        let kind = file.metadata().map_err(|e| ScanError::unreadable(&path, &e))?;
        if !kind.is_file() {
            return Err(ScanError::Unreadable { file: path, reason: NOT_A_FILE.into() });
        }
        read_prediction(&path, file, classes, truth)
    }
}

const NOT_A_FILE: &str = "a prediction must be a file of its own and neither a link nor a device";

fn folder_flags() -> OFlags {
    OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC
}

/// A link shows as a loop, or where a folder was asked for as no folder.
fn refused(path: &Path, error: Errno) -> ScanError {
    let reason = match error {
        Errno::LOOP => NOT_A_FILE.to_owned(),
        Errno::NOTDIR => "not a folder of its own, or a link to one".to_owned(),
        other => std::io::Error::from(other).to_string(),
    };
    ScanError::Unreadable { file: path.to_owned(), reason }
}
