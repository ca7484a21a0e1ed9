//! Files of the task's folder: where they may lie, and how they are written and checked.

use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Write};
use std::path::{Component, Path, PathBuf};

use consilium_federation::digest::Digest;
use consilium_federation::task::{OutFile, OutManifest};
use sha2::{Digest as _, Sha256};

use super::CourierError;

/// A path that the other side named, made safe: relative, and without `..`.
pub(super) fn safe(root: &Path, path: &str) -> Result<PathBuf, CourierError> {
    let relative = Path::new(path);
    let plain = relative.components().all(|c| matches!(c, Component::Normal(_)));
    if path.is_empty() || !plain {
        return Err(CourierError::Protocol(format!("a file called {path:?}")));
    }
    Ok(root.join(relative))
}

/// A file that appears under its name only when it is complete and on disk.
pub(super) struct Incoming {
    target: PathBuf,
    part: PathBuf,
    writer: BufWriter<File>,
    missing: u64,
}

impl Incoming {
    pub(super) fn begin(target: PathBuf, size: u64) -> Result<Self, CourierError> {
        let mut name = target.file_name().unwrap_or_default().to_owned();
        name.push(".part");
        let part = target.with_file_name(name);
        remove(&part)?;
        // Only ever a new file: a link that a trainer left under this name is not followed.
        let made = target.parent().map_or(Ok(()), fs::create_dir_all).and_then(|()| File::create_new(&part));
        let writer = BufWriter::new(made.map_err(|e| CourierError::file("written", &part, e))?);
        Ok(Self { target, part, writer, missing: size })
    }

    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<(), CourierError> {
        let left = self.missing.checked_sub(bytes.len() as u64);
        self.missing = left.ok_or_else(|| CourierError::Protocol(format!("too much of {}", self.target.display())))?;
        self.writer.write_all(bytes).map_err(|e| CourierError::file("written", &self.part, e))
    }

    /// Whether all announced bytes came.
    pub(super) fn is_complete(&self) -> bool {
        self.missing == 0
    }

    /// Puts the file under its name; `first` is done while it still lies beside it.
    pub(super) fn finish(self, first: impl FnOnce(&Path) -> Result<(), CourierError>) -> Result<(), CourierError> {
        let Self { target, part, writer, .. } = self;
        let fail = |e: io::Error| CourierError::file("written", &target, e);
        let file = writer.into_inner().map_err(|e| fail(e.into_error()))?;
        file.sync_all().map_err(fail)?;
        first(&part)?;
        fs::rename(&part, &target).map_err(fail)
    }
}

/// Removes a file, a link or a folder with all that is in it, which may be absent.
pub(super) fn remove(path: &Path) -> Result<(), CourierError> {
    let gone = fs::symlink_metadata(path)
        .and_then(|found| if found.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) });
    match gone {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(CourierError::file("removed", path, e)),
        _ => Ok(()),
    }
}

/// Removes everything in a folder, which may be absent.
pub(super) fn empty(folder: &Path) -> Result<(), CourierError> {
    let fail = |e| CourierError::file("emptied", folder, e);
    let entries = match fs::read_dir(folder) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries.map_err(fail)?,
    };
    for entry in entries {
        remove(&entry.map_err(fail)?.path())?;
    }
    Ok(())
}

/// `out/MANIFEST`, if it is there and lists all of these files.
pub(super) fn manifest(out: &Path, wanted: &[&str]) -> Option<OutManifest> {
    let bytes = fs::read(out.join("MANIFEST")).ok()?;
    let manifest: OutManifest = serde_json::from_slice(&bytes).ok()?;
    let complete = wanted.iter().all(|name| manifest.files.iter().any(|f| f.path == *name));
    complete.then_some(manifest)
}

/// Compares a result with its entry in the manifest.
pub(super) fn verify(out: &Path, entry: &OutFile) -> Result<(), CourierError> {
    let path = safe(out, &entry.path)?;
    let damaged = |why: String| CourierError::Damaged { file: format!("out/{}", entry.path), why };
    let mut file = File::open(&path).map_err(|e| damaged(e.to_string()))?;
    let (mut hasher, mut size, mut buffer) = (Sha256::new(), 0u64, vec![0; 1 << 20]);
    loop {
        let read = file.read(&mut buffer).map_err(|e| CourierError::file("read", &path, e))?;
        if read == 0 {
            break;
        }
        size += read as u64;
        hasher.update(&buffer[..read]);
    }
    let digest = Digest::from_bytes(hasher.finalize().into());
    if size != entry.size {
        return Err(damaged(format!("{size} bytes, expected {}", entry.size)));
    }
    if digest != entry.digest {
        return Err(damaged(format!("digest {digest}, expected {}", entry.digest)));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A hostile or broken server must not write outside the task's folder.
    #[test]
    fn paths_stay_inside() {
        let root = Path::new("/consilium");
        assert_eq!(safe(root, "out/a").unwrap(), Path::new("/consilium/out/a"));
        for bad in ["", "/etc/passwd", "../x", "a/../../x", "./../x"] {
            assert!(safe(root, bad).is_err(), "{bad}");
        }
    }

    /// A trainer must never see half a model under the model's name.
    #[test]
    fn a_file_appears_only_when_complete() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("model.safetensors");
        let mut file = Incoming::begin(target.clone(), 4).unwrap();
        file.write(b"ab").unwrap();
        assert!(!file.is_complete() && !target.exists());
        file.write(b"cd").unwrap();
        assert!(file.write(b"e").is_err());
        let before = |part: &Path| {
            assert!(part.exists() && !target.exists());
            Ok(())
        };
        file.finish(before).unwrap();
        assert_eq!(fs::read(&target).unwrap(), b"abcd");
    }

    /// A study's image can leave links in its folder; the courier sees more than it does and must not write through them.
    #[test]
    fn a_link_is_replaced_and_not_followed() {
        let folder = tempfile::tempdir().unwrap();
        let (victim, target) = (folder.path().join("score.json"), folder.path().join("model.safetensors"));
        fs::write(&victim, b"0.5").unwrap();
        std::os::unix::fs::symlink(&victim, folder.path().join("model.safetensors.part")).unwrap();
        let mut file = Incoming::begin(target.clone(), 3).unwrap();
        file.write(b"1.0").unwrap();
        file.finish(|_| Ok(())).unwrap();
        assert_eq!((fs::read(&victim).unwrap(), fs::read(&target).unwrap()), (b"0.5".to_vec(), b"1.0".to_vec()));
        std::os::unix::fs::symlink(folder.path(), folder.path().join("out")).unwrap();
        remove(&folder.path().join("out")).unwrap();
        assert!(victim.exists());
    }

    #[test]
    fn a_changed_result_is_noticed_and_the_manifest_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path();
        assert!(manifest(out, &["score.json"]).is_none());
        fs::write(out.join("score.json"), b"{}").unwrap();
        let entry = OutFile { path: "score.json".into(), size: 2, digest: Digest::of(b"{}") };
        let whole = OutManifest { files: vec![entry.clone()] };
        fs::write(out.join("MANIFEST"), serde_json::to_vec(&whole).unwrap()).unwrap();
        assert_eq!(manifest(out, &["score.json"]), Some(whole));
        assert!(manifest(out, &["score.json", "metrics.json"]).is_none());
        verify(out, &entry).unwrap();
        fs::write(out.join("score.json"), b"[]").unwrap();
        assert!(matches!(verify(out, &entry), Err(CourierError::Damaged { .. })));
    }
}
