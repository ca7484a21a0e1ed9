//! A model's file as it fills, chunk by chunk, each checked before it is written.

use std::fs::{self, File};
use std::io::{self, Read, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

use consilium_federation::Digest;
use consilium_federation::model::{CHUNK_BYTES, ModelError, ModelManifest, parse_safetensors_header};
use consilium_federation::safetensors::MAX_HEADER;

/// Why a file does not become a model.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The system.
    #[error("{}: {cause}; check the path, and that there is room", path.display())]
    Io {
        /// Which file.
        path: PathBuf,
        /// Why.
        cause: io::Error,
    },
    /// Something is there.
    #[error("{} is there already; name another file, or move it away", path.display())]
    There {
        /// Which file.
        path: PathBuf,
    },
    /// It is no model, or not this one.
    #[error("{}: {cause}", path.display())]
    Model {
        /// Which file.
        path: PathBuf,
        /// Why.
        cause: ModelError,
    },
}

fn io(path: &Path) -> impl Fn(io::Error) -> FileError + use<> {
    let path = path.to_owned();
    move |cause| FileError::Io { path: path.clone(), cause }
}

/// A file that is not whole yet: `FILE.part`, which a later try goes on with.
pub struct Draft<'a> {
    manifest: &'a ModelManifest,
    out: PathBuf,
    part: PathBuf,
    file: File,
    chunks: usize,
    /// The beginning of the next chunk.
    begun: Vec<u8>,
}

impl<'a> Draft<'a> {
    /// Begins, or goes on with what is there as far as it is this model.
    ///
    /// # Errors
    /// When the file is there already, or the system fails.
    pub fn open(out: &Path, manifest: &'a ModelManifest) -> Result<Self, FileError> {
        if out.exists() {
            return Err(FileError::There { path: out.to_owned() });
        }
        let mut name = out.as_os_str().to_owned();
        name.push(".part");
        let part = PathBuf::from(name);
        let failed = io(&part);
        let mut file =
            File::options().read(true).write(true).create(true).truncate(false).open(&part).map_err(&failed)?;
        let header = manifest.safetensors_header();
        let chunks = whole(&mut file, &header, manifest).map_err(&failed)?;
        let end = match chunks {
            None => {
                file.set_len(0).and_then(|()| file.rewind()).and_then(|()| file.write_all(&header)).map_err(&failed)?;
                header.len() as u64
            }
            Some(chunks) => header.len() as u64 + (0..chunks).map(|i| manifest.chunk_bytes(i) as u64).sum::<u64>(),
        };
        file.set_len(end).and_then(|()| file.seek(SeekFrom::Start(end))).map_err(&failed)?;
        Ok(Self { manifest, out: out.to_owned(), part, file, chunks: chunks.unwrap_or(0), begun: Vec::new() })
    }

    /// Whole chunks that are there.
    pub fn chunks(&self) -> usize {
        self.chunks
    }

    /// The next bytes of the payload.
    ///
    /// # Errors
    /// When a chunk is not what the model says, more comes than it has, or the system fails.
    pub fn take(&mut self, mut bytes: &[u8]) -> Result<(), FileError> {
        while !bytes.is_empty() {
            let wanted = self.manifest.chunk_bytes(self.chunks);
            let (now, later) = bytes.split_at(bytes.len().min(wanted - self.begun.len()));
            self.begun.extend_from_slice(now);
            if self.begun.len() == wanted {
                let right = self.manifest.verify_chunk(self.chunks, &self.begun);
                right.map_err(|cause| FileError::Model { path: self.part.clone(), cause })?;
                self.file.write_all(&self.begun).map_err(io(&self.part))?;
                self.begun.clear();
                self.chunks += 1;
            }
            bytes = later;
        }
        Ok(())
    }

    /// Gives the whole file its name.
    ///
    /// # Errors
    /// When the system fails.
    pub fn finish(self) -> Result<(), FileError> {
        self.file.sync_all().and_then(|()| fs::rename(&self.part, &self.out)).map_err(io(&self.out))
    }
}

/// How many chunks of this model the file holds from its beginning; `None` when it does not even begin like it.
fn whole(file: &mut File, header: &[u8], manifest: &ModelManifest) -> io::Result<Option<usize>> {
    let mut start = vec![0; header.len()];
    if !filled(file, &mut start)? || start != header {
        return Ok(None);
    }
    let mut chunk = vec![0; CHUNK_BYTES];
    for index in 0..manifest.chunks.len() {
        let chunk = &mut chunk[..manifest.chunk_bytes(index)];
        if !filled(file, chunk)? || manifest.verify_chunk(index, chunk).is_err() {
            return Ok(Some(index));
        }
    }
    Ok(Some(manifest.chunks.len()))
}

/// Whether there were enough bytes.
fn filled(file: &mut File, into: &mut [u8]) -> io::Result<bool> {
    match file.read_exact(into) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

/// The digest that a file's model has: what a release names, computed anew from the numbers in it.
///
/// # Errors
/// When it is no model as this plugin writes it, or the system fails.
pub fn digest(path: &Path) -> Result<Digest, FileError> {
    let failed = io(path);
    let bad = |cause| FileError::Model { path: path.to_owned(), cause };
    let mut file = File::open(path).map_err(&failed)?;
    let mut length = [0; 8];
    file.read_exact(&mut length).map_err(&failed)?;
    let header = u64::from_le_bytes(length).min(MAX_HEADER + 1);
    let mut start = length.to_vec();
    Read::by_ref(&mut file).take(header).read_to_end(&mut start).map_err(&failed)?;
    let (schema, _) = parse_safetensors_header(&start).map_err(bad)?;
    let mut left = schema.elements().map_err(bad)? * 4;
    let (mut chunk, mut chunks) = (vec![0; CHUNK_BYTES], Vec::new());
    while left > 0 {
        let next = &mut chunk[..usize::try_from(left).unwrap_or(CHUNK_BYTES).min(CHUNK_BYTES)];
        file.read_exact(next).map_err(&failed)?;
        chunks.push(Digest::of(next));
        left -= next.len() as u64;
    }
    if file.read(&mut [0]).map_err(&failed)? > 0 {
        return Err(bad(ModelError::NotSafetensors("more follows than its header says".into())));
    }
    Ok(ModelManifest::new(schema, chunks).map_err(bad)?.digest())
}
