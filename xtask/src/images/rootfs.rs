//! What a program needs beside itself: the shared libraries that the loader finds for it here, and the few files that
//! every image has.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::Command,
};

use super::oci::{Content, Entry};
use crate::{
    error::{Error, Result},
    process,
};

/// Where an image keeps libtorch, whatever folder it came from.
pub(super) const LIBTORCH: &str = "opt/libtorch/lib";

/// Shared libraries of a program, by where they come from.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Libraries {
    /// Of the system: name in the image to file, both the same.
    pub(super) system: BTreeMap<String, PathBuf>,
    /// From the libtorch folder.
    pub(super) libtorch: BTreeMap<String, PathBuf>,
}

impl Libraries {
    /// Asks the loader, with the libtorch folder in its path if there is one.
    pub(super) fn of(program: &Path, libtorch: Option<&Path>) -> Result<Self> {
        let mut ldd = Command::new("ldd");
        ldd.arg(program);
        if let Some(folder) = libtorch {
            ldd.env("LD_LIBRARY_PATH", folder.join("lib"));
        }
        let listing = process::output(&mut ldd)?;
        Self::parse(&listing, libtorch).map_err(|problem| Error::Malformed { path: program.to_owned(), problem })
    }

    /// Reads what ldd prints: `name => file (address)`, or `file (address)` for the loader itself.
    fn parse(listing: &str, libtorch: Option<&Path>) -> Result<Self, String> {
        let mut found = Self::default();
        for line in listing.lines().map(str::trim) {
            let (name, file) = match line.split_once(" => ") {
                Some((name, "not found")) => return Err(format!("its library {name} is not on this machine")),
                Some((name, file)) => (Some(name), file),
                None => (None, line),
            };
            let file = file.split(" (").next().unwrap_or(file);
            if !file.starts_with('/') {
                continue;
            }
            if libtorch.is_some_and(|folder| Path::new(file).starts_with(folder)) {
                // The loader looks for the name that the program was linked with.
                let name = name.unwrap_or(file).rsplit('/').next().unwrap_or(file);
                found.libtorch.insert(format!("{LIBTORCH}/{name}"), file.into());
            } else {
                found.system.insert(file.trim_start_matches('/').to_owned(), file.into());
            }
        }
        Ok(found)
    }
}

/// The files of every image: a user that is nobody, and a place for temporary files.
pub(super) fn skeleton() -> Vec<Entry> {
    let text = |path: &str, text: &str| Entry { path: path.into(), mode: 0o644, content: Content::Text(text.into()) };
    vec![
        text("etc/passwd", "root:x:0:0:root:/:/sbin/nologin\nconsilium:x:65532:65532:consilium:/tmp:/sbin/nologin\n"),
        text("etc/group", "root:x:0:\nconsilium:x:65532:\n"),
        text("etc/nsswitch.conf", "hosts: files dns\n"),
        Entry { path: "tmp".into(), mode: 0o1777, content: Content::Folder },
    ]
}

/// Entries for files, readable and executable by all.
pub(super) fn files(files: &BTreeMap<String, PathBuf>) -> Vec<Entry> {
    let entry = |(path, file): (&String, &PathBuf)| Entry {
        path: path.clone(),
        mode: 0o755,
        content: Content::File(file.clone()),
    };
    files.iter().map(entry).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LISTING: &str = "\
\tlinux-vdso.so.1 (0x00007ffd)
\tlibtorch_cpu.so => /cache/libtorch/lib/libtorch_cpu.so (0x00007f11)
\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f10)
\t/lib64/ld-linux-x86-64.so.2 (0x00007f12)
";

    /// A user's home folder in an image would make its digest differ from machine to machine.
    #[test]
    fn libtorch_gets_a_place_of_its_own_and_the_system_keeps_its() {
        let found = Libraries::parse(LISTING, Some(Path::new("/cache/libtorch"))).unwrap();
        assert_eq!(found.libtorch.keys().collect::<Vec<_>>(), ["opt/libtorch/lib/libtorch_cpu.so"]);
        let system: Vec<_> = found.system.keys().map(String::as_str).collect();
        assert_eq!(system, ["lib/x86_64-linux-gnu/libc.so.6", "lib64/ld-linux-x86-64.so.2"]);
    }

    /// Better here than as a crash loop in four hospitals.
    #[test]
    fn a_missing_library_is_named() {
        let error = Libraries::parse("\tlibcudart.so.13 => not found\n", None).unwrap_err();
        assert!(error.contains("libcudart.so.13"), "{error}");
    }
}
