//! `clean`: removes what tasks that are gone have left on the work claim.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use super::files::safe;
use super::{CleanArgs, CourierError};

/// Removes the folders, which may be absent. One that cannot be removed does not keep the others.
pub(super) fn run(args: &CleanArgs) -> Result<(), CourierError> {
    let one = |name: &String| {
        let folder = safe(&args.claim, name)?;
        remove(&folder).map_err(|e| CourierError::file("removed", &folder, e))
    };
    let results: Vec<Result<(), CourierError>> = args.folders.iter().map(one).collect();
    results.into_iter().collect()
}

fn remove(folder: &Path) -> io::Result<()> {
    let first = match fs::remove_dir_all(folder) {
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => e,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        done => return done,
    };
    // The study's image ran as the same user and may have shut its folders.
    open_up(folder).and_then(|()| fs::remove_dir_all(folder)).or_else(|_| {
        // Where the claim itself cannot be written to, the empty folder stays: its name says nothing.
        let is_empty = fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_none());
        if is_empty { Ok(()) } else { Err(first) }
    })
}

/// Makes a folder and the folders in it readable and writable. Follows no link.
fn open_up(folder: &Path) -> io::Result<()> {
    fs::set_permissions(folder, fs::Permissions::from_mode(0o700))?;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            open_up(&entry.path())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Segmentations of patients must not stay behind because a study's image shut its folder, and a link that it made
    /// must not lead the clean-up to another task's files.
    #[test]
    fn what_a_task_left_goes_and_nothing_else() {
        let claim = tempfile::tempdir().unwrap();
        let predictions = claim.path().join("gone/out/predictions");
        fs::create_dir_all(&predictions).unwrap();
        fs::write(predictions.join("a.nii.gz"), b"mask").unwrap();
        fs::create_dir_all(claim.path().join("kept")).unwrap();
        fs::write(claim.path().join("kept/model"), b"model").unwrap();
        std::os::unix::fs::symlink(claim.path().join("kept"), claim.path().join("gone/link")).unwrap();
        fs::set_permissions(&predictions, fs::Permissions::from_mode(0o000)).unwrap();
        // The first cannot be removed; the others go all the same.
        let folders = ["../x", "gone", "gone-score"].map(String::from).to_vec();
        assert!(run(&CleanArgs { claim: claim.path().into(), folders }).is_err());
        assert!(!claim.path().join("gone").exists() && claim.path().join("kept/model").exists());
    }
}
