//! libtorch for the CPU, made from the PyPI wheel of torch without its 2.5 GB of CUDA libraries.
//!
//! The wheel's `libtorch_cpu.so` is linked against `libcudart` and `libcupti`, which come as two small wheels of their
//! own; nothing calls them on a machine without a GPU. `libtorch.so` is a linker script: what links `-ltorch` gets
//! `libtorch_cpu.so`, and no CUDA library is ever asked for.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{
    cache::{self, Stamp},
    error::{Error, IoContext, Result},
    packages, process,
};

/// The release that tch 0.26 is written for.
pub const TORCH_VERSION: &str = "2.13.0";

/// Distribution on PyPI, version, and the files taken from its wheel into `lib/`.
const WHEELS: &[(&str, &str, &[&str])] = &[
    ("torch", TORCH_VERSION, &["torch/lib/libtorch_cpu.so", "torch/lib/libc10.so", "torch/lib/libgomp.so.1"]),
    ("nvidia-cuda-runtime", "13.5.37", &["nvidia/cu13/lib/libcudart.so.13"]),
    ("nvidia-cuda-cupti", "13.5.25", &["nvidia/cu13/lib/libcupti.so.13"]),
];

const LINKER_SCRIPT: &str = "INPUT(-ltorch_cpu)\n";

/// The folder to give as `LIBTORCH` (with `lib/` and `include/`), made if need be. Set
/// `LIBTORCH_BYPASS_VERSION_CHECK=1` beside it, and `LD_LIBRARY_PATH` to its `lib/` to run what was linked with it.
pub fn ensure() -> Result<PathBuf> {
    let root = cache::root()?;
    let target = root.join("libtorch");
    let stamp = Stamp::new(&root, "libtorch", fingerprint());
    if stamp.is_current() && target.is_dir() {
        return Ok(target);
    }
    let _lock = cache::Lock::wait(&root.join("libtorch.lock"))?;
    if stamp.is_current() && target.is_dir() {
        return Ok(target);
    }
    packages::ensure_pip()?;
    let work = root.join("libtorch.new");
    remove_folder(&work)?;
    let lib = cache::folder(work.join("lib"))?;
    for (name, version, files) in WHEELS {
        unzip(&download(name, version)?, files, Paths::Dropped, &lib)?;
    }
    unzip(&download("torch", TORCH_VERSION)?, &["torch/include/*"], Paths::Kept, &work)?;
    fs::rename(work.join("torch/include"), work.join("include")).at("move", work.join("include"))?;
    remove_folder(&work.join("torch"))?;
    let script = lib.join("libtorch.so");
    fs::write(&script, LINKER_SCRIPT).at("write", &script)?;
    replace_folder(&work, &target)?;
    stamp.write()?;
    Ok(target)
}

/// As [`ensure`], with CUDA: from a torch wheel that the caller has, and the NVIDIA wheels that it asks for.
pub fn ensure_cuda(wheel: &Path) -> Result<PathBuf> {
    let meta = fs::metadata(wheel).map_err(|_| Error::TorchWheel { path: wheel.to_owned() })?;
    let root = cache::root()?;
    let name = "libtorch-cuda";
    let target = root.join(name);
    let made_from = format!("{} {} {:?}", wheel.display(), meta.len(), meta.modified().ok());
    let stamp = Stamp::new(&root, name, cache::fingerprint([made_from.as_bytes()]));
    let _lock = cache::Lock::wait(&root.join("libtorch.lock"))?;
    if stamp.is_current() && target.is_dir() {
        return Ok(target);
    }
    packages::ensure_pip()?;
    let metadata = process::output(Command::new("unzip").arg("-p").arg(wheel).arg("*.dist-info/METADATA"))?;
    let work = root.join("libtorch-cuda.new");
    remove_folder(&work)?;
    let lib = cache::folder(work.join("lib"))?;
    for (name, version) in nvidia_requirements(&metadata) {
        unzip(&download(&name, &version)?, &["nvidia/*/lib/*.so*"], Paths::Dropped, &lib)?;
    }
    unzip(wheel, &["torch/lib/*.so*"], Paths::Dropped, &lib)?;
    unzip(wheel, &["torch/include/*"], Paths::Kept, &work)?;
    fs::rename(work.join("torch/include"), work.join("include")).at("move", work.join("include"))?;
    remove_folder(&work.join("torch"))?;
    // It needs a Python that is not there.
    fs::remove_file(lib.join("libtorch_python.so")).ok();
    replace_folder(&work, &target)?;
    stamp.write()?;
    Ok(target)
}

/// NVIDIA's distributions that a wheel requires at one version (`Requires-Dist: nvidia-x==1.2; marker`).
fn nvidia_requirements(metadata: &str) -> Vec<(String, String)> {
    let requirements = metadata.lines().filter_map(|line| line.strip_prefix("Requires-Dist: "));
    let pinned = requirements.filter_map(|requirement| requirement.split(';').next()?.trim().split_once("=="));
    pinned
        .filter(|(name, _)| name.starts_with("nvidia-"))
        .map(|(name, version)| (name.split('[').next().unwrap_or(name).to_owned(), version.to_owned()))
        .collect()
}

/// The environment under which cargo builds and runs what links libtorch.
pub fn environment(libtorch: &Path) -> [(&'static str, std::ffi::OsString); 3] {
    [
        ("LIBTORCH", libtorch.into()),
        ("LIBTORCH_BYPASS_VERSION_CHECK", "1".into()),
        ("LD_LIBRARY_PATH", libtorch.join("lib").into()),
    ]
}

/// What the folder is made from.
fn fingerprint() -> String {
    let parts =
        WHEELS.iter().flat_map(|(name, version, files)| [*name, *version].into_iter().chain(files.iter().copied()));
    cache::fingerprint(parts.chain([LINKER_SCRIPT]).map(str::as_bytes))
}

/// The wheel of a release in the downloads folder, fetched by pip if it is not there. The interpreter that runs pip may be
/// any; the wheel is always the one for CPython 3.11 on x86-64, so that everybody links the same file.
pub fn download(name: &str, version: &str) -> Result<PathBuf> {
    let downloads = cache::sub("downloads")?;
    if let Some(wheel) = find_wheel(&downloads, name, version)? {
        return Ok(wheel);
    }
    eprintln!("downloading {name} {version}");
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]);
    pip.args(["--implementation", "cp", "--python-version", "3.11", "--abi", "cp311", "--abi", "none"]);
    for platform in ["manylinux_2_28", "manylinux_2_25", "manylinux_2_17", "manylinux2014"] {
        pip.arg("--platform").arg(format!("{platform}_x86_64"));
    }
    // pip copies to where it is told piece by piece; only a whole wheel gets its place.
    let draft = downloads.join(format!("{name}.new"));
    remove_folder(&draft)?;
    pip.arg("--dest").arg(&draft).arg(format!("{name}=={version}"));
    let log = cache::sub("logs")?.join(format!("download-{name}.log"));
    process::logged(&format!("downloading {name} {version}"), &mut pip, &log)?;
    if let Some(wheel) = find_wheel(&draft, name, version)? {
        fs::rename(&wheel, downloads.join(wheel.file_name().unwrap_or_default())).at("move", &wheel)?;
    }
    remove_folder(&draft)?;
    find_wheel(&downloads, name, version)?.ok_or_else(|| Error::Malformed {
        path: downloads,
        problem: format!("pip left no wheel of {name} {version}; see {}", log.display()),
    })
}

fn find_wheel(folder: &Path, name: &str, version: &str) -> Result<Option<PathBuf>> {
    let prefix = format!("{}-{version}-", name.replace('-', "_"));
    for entry in fs::read_dir(folder).at("list", folder)? {
        let entry = entry.at("list", folder)?;
        let file = entry.file_name().to_string_lossy().into_owned();
        if file.starts_with(&prefix) && file.ends_with(".whl") {
            return Ok(Some(entry.path()));
        }
    }
    Ok(None)
}

/// What becomes of the members' folders when a wheel is unpacked.
enum Paths {
    Kept,
    Dropped,
}

/// Takes the members that match `patterns` from a wheel.
fn unzip(wheel: &Path, patterns: &[&str], paths: Paths, folder: &Path) -> Result<()> {
    let mut unzip = Command::new("unzip");
    unzip.args(["-q", "-o"]);
    if matches!(paths, Paths::Dropped) {
        unzip.arg("-j");
    }
    process::output(unzip.arg(wheel).args(patterns).arg("-d").arg(folder)).map(drop)
}

/// Puts `new` in the place of `old`, which whoever uses it misses for no longer than two renames take.
fn replace_folder(new: &Path, old: &Path) -> Result<()> {
    let aside = new.with_extension("old");
    remove_folder(&aside)?;
    if old.exists() {
        fs::rename(old, &aside).at("move", old)?;
    }
    fs::rename(new, old).at("move", old)?;
    remove_folder(&aside)
}

fn remove_folder(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error).at("remove", path),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A CUDA library that is left out shows only on a machine with a GPU.
    #[test]
    fn a_wheels_cuda_libraries_are_found() {
        let metadata = "Name: torch\nRequires-Dist: filelock\n\
            Requires-Dist: nvidia-cublas-cu12==12.6.4.1; platform_system == \"Linux\"\n\
            Requires-Dist: triton==3.7.0; platform_system == \"Linux\"\n";
        let expected = [("nvidia-cublas-cu12".to_owned(), "12.6.4.1".to_owned())];
        assert_eq!(nvidia_requirements(metadata), expected);
    }

    /// The wheel is two gigabytes from a place of its own: the message must say where.
    #[test]
    fn a_missing_cuda_wheel_says_where_it_comes_from() {
        let error = ensure_cuda(Path::new("/nowhere/torch.whl")).unwrap_err().to_string();
        assert!(error.contains("/nowhere/torch.whl") && error.contains("download.pytorch.org"), "{error}");
    }

    /// A wheel already downloaded is half a gigabyte not downloaded again; a different release must not pass for it.
    #[test]
    fn a_wheel_is_found_by_its_exact_release() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("nvidia_cuda_runtime-13.5.37-py3-none-any.whl"), "").unwrap();
        let found = |version| find_wheel(dir.path(), "nvidia-cuda-runtime", version).unwrap();
        assert!(found("13.5.37").is_some());
        assert!(found("13.5.3").is_none());
        assert!(find_wheel(dir.path(), "torch", "2.13.0").unwrap().is_none());
    }

    /// tch links `-ltorch`, `-ltorch_cpu` and `-lc10`, and compiles against the headers.
    #[test]
    #[ignore = "downloads 540 MB when they are not there"]
    fn the_folder_has_what_tch_asks_for() {
        let folder = ensure().unwrap();
        for file in
            ["lib/libtorch.so", "lib/libtorch_cpu.so", "lib/libc10.so", "lib/libcupti.so.13", "include/torch/csrc"]
        {
            assert!(folder.join(file).exists(), "{file}");
        }
        let before = fs::metadata(folder.join("lib/libtorch.so")).unwrap().modified().unwrap();
        ensure().unwrap();
        let after = fs::metadata(folder.join("lib/libtorch.so")).unwrap().modified().unwrap();
        assert_eq!(before, after, "a second call makes nothing anew");
    }
}
