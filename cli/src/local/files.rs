//! Files that are there whole or not at all, whatever is killed when.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{Failure, Result};

/// Writes a value so that a reader, now or after a crash, finds the old one or the new.
pub(super) fn put<T: Serialize>(path: &Path, value: &T) -> Result<()> {
    let mut text = serde_json::to_vec_pretty(value).map_err(|e| Failure::file(path)(e.into()))?;
    text.push(b'\n');
    put_bytes(path, &text)
}

/// As [`put`], for bytes.
pub(super) fn put_bytes(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".part");
    let part = path.with_file_name(name);
    let folder = path.parent().unwrap_or(Path::new("."));
    // Keys, scans and models are nobody else's, from the first byte on.
    let mut private = File::options();
    private.write(true).create(true).truncate(true).mode(0o600);
    let written = fs::create_dir_all(folder).and_then(|()| private.open(&part)).and_then(|mut file| {
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&part, path)?;
        File::open(folder)?.sync_all()
    });
    written.map_err(Failure::file(path))
}

/// Reads a value; `None` when there is none.
pub(super) fn get<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    let bytes = match fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        read => read.map_err(Failure::file(path))?,
    };
    serde_json::from_slice(&bytes).map(Some).map_err(|e| Failure::file(path)(e.into()))
}

/// All values in a folder, by name of their file; files of other kinds are left out.
pub(super) fn all<T: DeserializeOwned>(folder: &Path) -> Result<Vec<T>> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        read => read.map_err(Failure::file(folder))?,
    };
    let mut paths = Vec::new();
    for entry in entries {
        let path = entry.map_err(Failure::file(folder))?.path();
        if path.extension().is_some_and(|ending| ending == "json") {
            paths.push(path);
        }
    }
    paths.sort();
    // One that went in between is not there.
    Ok(paths.iter().map(|path| get(path)).collect::<Result<Vec<_>>>()?.into_iter().flatten().collect())
}

/// Makes a folder.
pub(super) fn folder(path: &Path) -> Result<()> {
    fs::create_dir_all(path).map_err(Failure::file(path))
}

/// Lets nobody but its owner into a folder.
pub(super) fn for_owner_alone(path: &Path) -> Result<()> {
    fs::set_permissions(path, fs::Permissions::from_mode(0o700)).map_err(Failure::file(path))
}

/// Removes a file or a folder, which may be absent.
pub(super) fn remove(path: &Path) -> Result<()> {
    let gone = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    match gone {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Failure::file(path)(error)),
        _ => Ok(()),
    }
}
