//! OCI image layouts (image-spec v1.1), such that the same inputs give the same digests on any machine: fixed times,
//! fixed owners, sorted entries, no compression.

use std::{
    fs::{self, File},
    io::{self, BufWriter, Read, Write},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::{
    cache,
    error::{IoContext, Result},
};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// What stands at a path of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Content {
    Folder,
    Text(String),
    /// A file of this machine; symbolic links are followed.
    File(PathBuf),
}

/// One entry of a layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    /// Path in the image, without the leading `/`.
    pub(super) path: String,
    pub(super) mode: u32,
    pub(super) content: Content,
}

/// A blob in the pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Blob {
    /// Hexadecimal SHA-256, without `sha256:`.
    digest: String,
    size: u64,
}

/// How a container of an image is run.
pub(super) struct RunConfig<'a> {
    pub(super) entrypoint: Vec<String>,
    pub(super) environment: Vec<String>,
    /// Put on the manifest.
    pub(super) annotations: Vec<(&'a str, String)>,
}

/// The folder that holds all layouts, and the blobs that they share as hard links.
pub(super) struct Store {
    root: PathBuf,
}

impl Store {
    pub(super) fn new(root: PathBuf) -> Result<Self> {
        for folder in ["blobs", "layers"] {
            cache::folder(root.join(folder))?;
        }
        Ok(Self { root })
    }

    /// The layout folder of an image.
    pub(super) fn layout(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    fn pool(&self, digest: &str) -> PathBuf {
        self.root.join("blobs").join(digest)
    }

    /// Makes a layer of the entries and the folders above them. What was made of the same files before is not read again.
    pub(super) fn layer(&self, entries: &[Entry]) -> Result<Blob> {
        let entries = complete(entries);
        let memo = self.root.join("layers").join(fingerprint(&entries)?);
        if let Ok(digest) = fs::read_to_string(&memo)
            && let Ok(meta) = fs::metadata(self.pool(&digest))
        {
            return Ok(Blob { digest, size: meta.len() });
        }
        let temporary = self.root.join(format!("layer.{}.tmp", std::process::id()));
        let file = File::create(&temporary).at("write", &temporary)?;
        let mut hashing = Hashing { inner: BufWriter::with_capacity(1 << 20, file), hash: Sha256::new(), size: 0 };
        write_tar(&entries, &mut hashing)?;
        hashing.flush().at("write", &temporary)?;
        let blob = Blob { digest: hex::encode(hashing.hash.finalize()), size: hashing.size };
        fs::rename(&temporary, self.pool(&blob.digest)).at("write", self.pool(&blob.digest))?;
        cache::write_atomically(&memo, blob.digest.as_bytes())?;
        Ok(blob)
    }

    fn blob(&self, content: &[u8]) -> Result<Blob> {
        let blob = Blob { digest: hex::encode(Sha256::digest(content)), size: content.len() as u64 };
        cache::write_atomically(&self.pool(&blob.digest), content)?;
        Ok(blob)
    }

    /// Writes the image `name` of these layers, under the reference that `reference` makes of its manifest's digest.
    /// Returns the digest with `sha256:`.
    pub(super) fn image(
        &self,
        name: &str,
        layers: &[Blob],
        run: &RunConfig<'_>,
        reference: impl Fn(&str) -> String,
    ) -> Result<String> {
        let config = self.blob(&to_bytes(&config(layers, run)))?;
        let manifest = self.blob(&to_bytes(&manifest(&config, layers, run)))?;
        let digest = format!("sha256:{}", manifest.digest);
        let layout = self.layout(name);
        let fresh = self.root.join(format!("{name}.{}.tmp", std::process::id()));
        remove(&fresh)?;
        let blobs = cache::folder(fresh.join("blobs/sha256"))?;
        for blob in layers.iter().chain([&config, &manifest]) {
            let link = blobs.join(&blob.digest);
            if !link.exists() {
                fs::hard_link(self.pool(&blob.digest), &link).at("link", &link)?;
            }
        }
        fs::write(fresh.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).at("write", &fresh)?;
        fs::write(fresh.join("index.json"), to_bytes(&index(&manifest, &reference(&digest)))).at("write", &fresh)?;
        remove(&layout)?;
        fs::rename(&fresh, &layout).at("write", &layout)?;
        Ok(digest)
    }

    /// Removes blobs that no layout links to any more.
    pub(super) fn prune(&self) -> Result<()> {
        let pool = self.root.join("blobs");
        for entry in fs::read_dir(&pool).at("list", &pool)? {
            let path = entry.at("list", &pool)?.path();
            if path.metadata().at("read", &path)?.nlink() == 1 {
                fs::remove_file(&path).at("remove", &path)?;
            }
        }
        Ok(())
    }
}

/// Streams a layout as a tar, leaving out the blobs whose digest (`sha256:…`) `present` names.
pub(super) fn stream(layout: &Path, present: impl Fn(&str) -> bool, out: impl Write) -> Result<()> {
    let mut tar = tar::Builder::new(out);
    let mut files = vec![PathBuf::from("oci-layout"), PathBuf::from("index.json")];
    let blobs = layout.join("blobs/sha256");
    for entry in fs::read_dir(&blobs).at("list", &blobs)? {
        let name = entry.at("list", &blobs)?.file_name().to_string_lossy().into_owned();
        if !present(&format!("sha256:{name}")) {
            files.push(Path::new("blobs/sha256").join(name));
        }
    }
    for file in files {
        let path = layout.join(&file);
        tar.append_path_with_name(&path, &file).at("stream", &path)?;
    }
    tar.into_inner().and_then(|mut out| out.flush()).at("stream", layout)
}

fn to_bytes(value: &Value) -> Vec<u8> {
    value.to_string().into_bytes()
}

fn config(layers: &[Blob], run: &RunConfig<'_>) -> Value {
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    json!({
        "architecture": architecture,
        "os": "linux",
        "config": {"User": "65532:65532", "Env": run.environment, "Entrypoint": run.entrypoint, "WorkingDir": "/"},
        "rootfs": {"type": "layers", "diff_ids": layers.iter().map(|layer| format!("sha256:{}", layer.digest)).collect::<Vec<_>>()},
    })
}

fn manifest(config: &Blob, layers: &[Blob], run: &RunConfig<'_>) -> Value {
    let annotations: serde_json::Map<String, Value> =
        run.annotations.iter().map(|(key, value)| ((*key).to_owned(), json!(value))).collect();
    json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": descriptor(CONFIG, config),
        "layers": layers.iter().map(|layer| descriptor(LAYER, layer)).collect::<Vec<_>>(),
        "annotations": annotations,
    })
}

fn index(manifest: &Blob, reference: &str) -> Value {
    let mut entry = descriptor(MANIFEST, manifest);
    entry["annotations"] = json!({"io.containerd.image.name": reference});
    json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [entry]})
}

fn descriptor(media_type: &str, blob: &Blob) -> Value {
    json!({"mediaType": media_type, "digest": format!("sha256:{}", blob.digest), "size": blob.size})
}

/// The entries with every folder above them, sorted, each path once.
fn complete(entries: &[Entry]) -> Vec<Entry> {
    let mut all: std::collections::BTreeMap<String, Entry> = std::collections::BTreeMap::new();
    for entry in entries {
        let parents = entry.path.match_indices('/').map(|(at, _)| entry.path[..at].to_owned());
        for path in parents {
            all.entry(path.clone()).or_insert(Entry { path, mode: 0o755, content: Content::Folder });
        }
        all.insert(entry.path.clone(), entry.clone());
    }
    all.into_values().collect()
}

/// Tells layers apart by what their files are on this machine: place, size and time of change.
fn fingerprint(entries: &[Entry]) -> Result<String> {
    let mut parts = Vec::new();
    for entry in entries {
        parts.push(format!("{} {:o} {:?}", entry.path, entry.mode, entry.content).into_bytes());
        if let Content::File(path) = &entry.content {
            let meta = fs::metadata(path).at("read", path)?;
            parts.push(format!("{} {} {}", meta.len(), meta.mtime(), meta.mtime_nsec()).into_bytes());
        }
    }
    Ok(cache::fingerprint(parts.iter().map(Vec::as_slice)))
}

fn write_tar(entries: &[Entry], out: &mut impl Write) -> Result<()> {
    let mut tar = tar::Builder::new(out);
    for entry in entries {
        let mut header = tar::Header::new_gnu();
        header.set_mode(entry.mode);
        header.set_mtime(0);
        header.set_uid(0);
        header.set_gid(0);
        let (kind, size, reader): (_, u64, Box<dyn Read>) = match &entry.content {
            Content::Folder => (tar::EntryType::Directory, 0, Box::new(io::empty())),
            Content::Text(text) => (tar::EntryType::Regular, text.len() as u64, Box::new(text.as_bytes())),
            Content::File(path) => {
                let file = File::open(path).at("read", path)?;
                let size = file.metadata().at("read", path)?.len();
                // A file that grows meanwhile must not spoil the archive behind it.
                (tar::EntryType::Regular, size, Box::new(file.take(size)))
            }
        };
        header.set_entry_type(kind);
        header.set_size(size);
        let path = if kind == tar::EntryType::Directory { format!("{}/", entry.path) } else { entry.path.clone() };
        tar.append_data(&mut header, path, reader).at("pack", &entry.path)?;
    }
    tar.finish().at("pack", "layer")
}

fn remove(folder: &Path) -> Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error).at("remove", folder),
        _ => Ok(()),
    }
}

struct Hashing<W> {
    inner: W,
    hash: Sha256,
    size: u64,
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(buffer)?;
        self.hash.update(&buffer[..written]);
        self.size += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
#[path = "oci_tests.rs"]
mod tests;
