//! The one folder that everything built or downloaded goes to: `$XDG_CACHE_HOME/consilium`, else `~/.cache/consilium`.
//!
//! What is in it can be deleted at any time; the next run makes it again. A thing is *stamped* by the digest of what it
//! was made from, so that a second run knows in a moment that there is nothing to do.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicU64, Ordering},
};

use sha2::{Digest, Sha256};

use crate::{
    error::{Error, IoContext, Result},
    process,
};

/// The cache folder; made if it is not there.
pub fn root() -> Result<PathBuf> {
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache"));
    let base = std::env::var_os("XDG_CACHE_HOME").filter(|dir| !dir.is_empty()).map(PathBuf::from).or_else(home);
    let base = base.ok_or(Error::MissingTool { what: "a cache folder", way_out: "set XDG_CACHE_HOME or HOME" })?;
    // The kernel knows what is mounted in it by its real path, and `down` looks for that.
    let root = folder(base.join("consilium"))?;
    root.canonicalize().at("follow", root)
}

/// A folder in the cache, made if it is not there.
pub fn sub(name: &str) -> Result<PathBuf> {
    folder(root()?.join(name))
}

/// `path`, made with its parents if it is not there.
pub fn folder(path: PathBuf) -> Result<PathBuf> {
    fs::create_dir_all(&path).at("make folder", &path)?;
    Ok(path)
}

/// Lower-case hexadecimal SHA-256 of the parts, each ended by a zero byte so that no two lists look alike.
pub fn fingerprint<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update(part);
        hash.update([0]);
    }
    hex::encode(hash.finalize())
}

/// A file beside a made thing that holds the fingerprint of what it was made from.
pub struct Stamp {
    file: PathBuf,
    fingerprint: String,
}

impl Stamp {
    /// The stamp `NAME.stamp` in `folder`.
    pub fn new(folder: &Path, name: &str, fingerprint: String) -> Self {
        Self { file: folder.join(format!("{name}.stamp")), fingerprint }
    }

    /// Whether the thing was made from exactly these inputs.
    pub fn is_current(&self) -> bool {
        fs::read_to_string(&self.file).is_ok_and(|found| found.trim() == self.fingerprint)
    }

    /// To be called once the thing is complete.
    pub fn write(&self) -> Result<()> {
        write_atomically(&self.file, self.fingerprint.as_bytes())
    }
}

/// Writes a file such that a reader, or a kill, sees the old content or the new and nothing in between. Several may write the
/// same file at once, as clusters do that start side by side.
pub fn write_atomically(path: &Path, content: &[u8]) -> Result<()> {
    static WRITERS: AtomicU64 = AtomicU64::new(0);
    let writer = WRITERS.fetch_add(1, Ordering::Relaxed);
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.{writer}.tmp", std::process::id()));
    let temporary = path.with_file_name(name);
    fs::write(&temporary, content).at("write", &temporary)?;
    fs::rename(&temporary, path).at("write", path)
}

/// Holds a lock file until dropped, so that two runs do not build or tear down the same thing. The kernel lets go of it
/// when the holder dies, however it dies.
pub struct Lock {
    _file: File,
}

impl Lock {
    /// Waits for the lock.
    pub fn wait(path: &Path) -> Result<Self> {
        let file = File::create(path).at("open lock", path)?;
        file.lock().at("lock", path)?;
        Ok(Self { _file: file })
    }

    /// Takes the lock, or says who is in the way.
    pub fn take(path: &Path) -> Result<Self> {
        let file = File::create(path).at("open lock", path)?;
        match file.try_lock() {
            Ok(()) => Ok(Self { _file: file }),
            Err(fs::TryLockError::WouldBlock) => Err(Error::Busy { lock: path.to_owned() }),
            Err(fs::TryLockError::Error(source)) => Err(source).at("lock", path),
        }
    }
}

/// A Python with these PyPI packages, in a virtual environment of its own.
pub fn python(name: &str, packages: &[&str]) -> Result<PathBuf> {
    let folder = sub("python")?;
    let environment = folder.join(name);
    let python = environment.join("bin/python");
    let stamp = Stamp::new(&folder, name, fingerprint(packages.iter().map(|package| package.as_bytes())));
    if !stamp.is_current() || !python.exists() {
        crate::packages::ensure_venv()?;
        process::output(Command::new("python3").args(["-m", "venv"]).arg(&environment))?;
        process::output(Command::new(&python).args(["-m", "pip", "install", "--quiet"]).args(packages))?;
        stamp.write()?;
    }
    Ok(python)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Were parts only joined, moving a byte from one input to the next would go unnoticed and leave a stale build.
    #[test]
    fn fingerprint_tells_where_a_part_ends() {
        assert_ne!(fingerprint([b"ab".as_slice(), b"c"]), fingerprint([b"a".as_slice(), b"bc"]));
    }

    /// Clusters start side by side and write what they share; with one draft for all, one took it from under another.
    #[test]
    fn many_may_write_one_file_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("shared");
        std::thread::scope(|scope| {
            let write = || (0..200).try_for_each(|_| write_atomically(&file, b"the same"));
            let writers: Vec<_> = (0..5).map(|_| scope.spawn(write)).collect();
            writers.into_iter().for_each(|writer| writer.join().unwrap().unwrap());
        });
        assert_eq!(fs::read(&file).unwrap(), b"the same");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "no draft is left");
    }

    /// A changed version must lead to a new build, an unchanged one must not.
    #[test]
    fn stamp_is_current_for_its_inputs_only() {
        let dir = tempfile::tempdir().unwrap();
        let stamp = Stamp::new(dir.path(), "tool", fingerprint([b"v1".as_slice()]));
        assert!(!stamp.is_current());
        stamp.write().unwrap();
        assert!(stamp.is_current());
        assert!(!Stamp::new(dir.path(), "tool", fingerprint([b"v2".as_slice()])).is_current());
    }
}
