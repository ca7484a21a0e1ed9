//! NIfTI-1 files in and out, with every rule of a usable scan checked at the door.
//!
//! A file is read as a stream: its header, then as many voxels as the header says, then its end, so that gzip's own
//! checksum is verified too. A file cut short, with flipped bits or with more in it is never trained on, and a small
//! compressed file cannot fill the memory with anything that its header does not admit to.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use flate2::bufread::MultiGzDecoder;
use ndarray::{Array3, ShapeBuilder};
use nifti::writer::WriterOptions;
use nifti::{Endianness, NiftiHeader, NiftiType};

use crate::error::ScanError;
use crate::nifti_header::{HEADER_BYTES, Head};
use crate::volume::{Grid, Mask, Volume};

/// Image and mask may differ by this much, in mm, in each entry of the affine: rounding of the exporting tool.
const AFFINE_TOLERANCE_MM: f32 = 1e-2;
/// Voxels that are decoded at once.
const CHUNK: usize = 1 << 16;

/// Reads where a scan's voxels lie, and nothing of the voxels.
pub fn read_grid(file: &Path) -> Result<Grid, ScanError> {
    Ok(Scan::at(file)?.head.grid)
}

/// Reads an image. Errors: everything of [`ScanError`] that concerns one file.
pub fn read_volume(file: &Path) -> Result<Volume, ScanError> {
    let scan = Scan::at(file)?;
    let grid = scan.head.grid.clone();
    let voxels = scan.voxels(|_, voxel| Ok(voxel))?;
    let bad = voxels.iter().filter(|v| !v.is_finite()).count();
    if bad > 0 {
        let first = voxels.iter().position(|v| !v.is_finite()).unwrap_or_default();
        return Err(ScanError::NotFinite { file: file.to_owned(), count: bad, at: grid.position(first) });
    }
    let first = voxels[0];
    if voxels.iter().all(|&v| v == first) {
        return Err(ScanError::Empty { file: file.to_owned(), value: first });
    }
    Ok(Volume { grid, voxels })
}

/// Reads a mask whose labels must be whole numbers below `classes` (background included). A mask may be all background.
pub fn read_mask(file: &Path, classes: u8) -> Result<Mask, ScanError> {
    Scan::at(file)?.mask(classes)
}

/// Reads a mask of someone who is not trusted, from a handle on it; `file` is for messages. That it lies on `truth` is
/// checked before a voxel is inflated, so that it costs no more memory than the truth does.
pub fn read_prediction(
    file: &Path,
    opened: File,
    classes: u8,
    (truth_file, truth): (&Path, &Grid),
) -> Result<Mask, ScanError> {
    let scan = Scan::of(file, opened)?;
    check_pair(truth_file, truth, file, &scan.head.grid)?;
    scan.mask(classes)
}

/// Checks that a mask lies on its image: same shape, same place.
pub fn check_pair(image_file: &Path, image: &Grid, mask_file: &Path, mask: &Grid) -> Result<(), ScanError> {
    if image.shape != mask.shape {
        return Err(ScanError::ShapeMismatch {
            mask: mask_file.to_owned(),
            image: image_file.to_owned(),
            mask_shape: mask.shape,
            image_shape: image.shape,
        });
    }
    let entries = |grid: &Grid| grid.affine.iter().flatten().copied().collect::<Vec<f32>>();
    let difference = entries(image).iter().zip(entries(mask)).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    if difference > AFFINE_TOLERANCE_MM {
        return Err(ScanError::AffineMismatch {
            mask: mask_file.to_owned(),
            image: image_file.to_owned(),
            difference,
            allowed: AFFINE_TOLERANCE_MM,
        });
    }
    Ok(())
}

/// Writes an image as float32, compressed when the name ends in `.gz`. Equal volumes give equal bytes.
pub fn write_volume(file: &Path, volume: &Volume) -> Result<(), ScanError> {
    let [nx, ny, nz] = volume.grid.shape;
    let array = Array3::from_shape_vec((nx, ny, nz).f(), volume.voxels.clone());
    let array = array.map_err(|e| ScanError::unwritable(file, e))?;
    let header = header_of(&volume.grid);
    WriterOptions::new(file).reference_header(&header).write_nifti(&array).map_err(|e| ScanError::unwritable(file, e))
}

/// Writes a mask as uint8, compressed when the name ends in `.gz`. Equal masks give equal bytes.
pub fn write_mask(file: &Path, mask: &Mask) -> Result<(), ScanError> {
    let [nx, ny, nz] = mask.grid.shape;
    let array = Array3::from_shape_vec((nx, ny, nz).f(), mask.labels.clone());
    let array = array.map_err(|e| ScanError::unwritable(file, e))?;
    let header = header_of(&mask.grid);
    WriterOptions::new(file).reference_header(&header).write_nifti(&array).map_err(|e| ScanError::unwritable(file, e))
}

fn header_of(grid: &Grid) -> NiftiHeader {
    let [sx, sy, sz] = grid.spacing;
    NiftiHeader {
        pixdim: [1.0, sx, sy, sz, 0.0, 0.0, 0.0, 0.0],
        // 2 = millimetres.
        xyzt_units: 2,
        qform_code: 0,
        sform_code: 1,
        srow_x: grid.affine[0],
        srow_y: grid.affine[1],
        srow_z: grid.affine[2],
        ..NiftiHeader::default()
    }
}

/// A file whose header is read and whose voxels are not.
struct Scan {
    file: PathBuf,
    source: Box<dyn Read>,
    head: Head,
}

impl Scan {
    fn at(file: &Path) -> Result<Self, ScanError> {
        Self::of(file, File::open(file).map_err(|e| ScanError::unreadable(file, &e))?)
    }

    fn of(file: &Path, opened: File) -> Result<Self, ScanError> {
        let mut source = inflated(opened).map_err(|e| ScanError::unreadable(file, &e))?;
        let mut header = [0; HEADER_BYTES];
        let expected = || format!("at least a header of {HEADER_BYTES} bytes");
        fill(&mut source, &mut header).map_err(|end| end.truncated(file, 0, expected()))?;
        Ok(Self { file: file.to_owned(), source, head: Head::parse(file, &header)? })
    }

    fn mask(self, classes: u8) -> Result<Mask, ScanError> {
        let (file, grid) = (self.file.clone(), self.head.grid.clone());
        let labels = self.voxels(|offset, voxel| {
            if voxel >= 0.0 && voxel < f32::from(classes) && voxel.fract() == 0.0 {
                // Safety of the cast: a whole number below 256.
                return Ok(voxel as u8);
            }
            Err(ScanError::LabelOutsideClasses { file: file.clone(), found: voxel, at: grid.position(offset), classes })
        })?;
        Ok(Mask { grid, labels })
    }

    /// Every voxel, x fastest, as `take` makes it of its offset and value; then the file must end.
    fn voxels<T>(mut self, mut take: impl FnMut(usize, f32) -> Result<T, ScanError>) -> Result<Vec<T>, ScanError> {
        let Head { grid, datatype, endianness, offset, slope, intercept } = &self.head;
        let (count, width) = (grid.len(), datatype.size_of());
        let expected = || format!("{} (shape {:?}, {datatype:?})", count * width, grid.shape);
        let decode = decoder(*datatype, *endianness);
        let mut buffer = vec![0; CHUNK * width];
        let mut between = offset - HEADER_BYTES;
        while between > 0 {
            let bytes = between.min(buffer.len());
            fill(&mut self.source, &mut buffer[..bytes]).map_err(|end| end.truncated(&self.file, 0, expected()))?;
            between -= bytes;
        }
        let mut taken = Vec::with_capacity(count);
        while taken.len() < count {
            let bytes = &mut buffer[..CHUNK.min(count - taken.len()) * width];
            let before = taken.len() * width;
            fill(&mut self.source, bytes).map_err(|end| end.truncated(&self.file, before, expected()))?;
            for voxel in bytes.chunks_exact(width) {
                let value = decode(voxel);
                // A slope of 0 says that there is no scaling (nifti1.h).
                let value = if *slope == 0.0 { value } else { value * slope + intercept };
                taken.push(take(taken.len(), value)?);
            }
        }
        match fill(&mut self.source, &mut [0]) {
            Err(End { found: 0, reason: None }) => Ok(taken),
            Err(end) => Err(end.truncated(&self.file, count * width, expected())),
            Ok(()) => Err(ScanError::Truncated {
                file: self.file,
                found: "more bytes of voxels".into(),
                expected: expected(),
            }),
        }
    }
}

/// Where a stream ended too early, and why if it did not just end.
struct End {
    found: usize,
    reason: Option<io::Error>,
}

impl End {
    fn truncated(self, file: &Path, before: usize, expected: String) -> ScanError {
        let found = format!("{} bytes", before + self.found);
        let found = self.reason.map_or_else(|| found.clone(), |reason| format!("{found}, then: {reason}"));
        ScanError::Truncated { file: file.to_owned(), found, expected }
    }
}

fn fill(source: &mut dyn Read, bytes: &mut [u8]) -> Result<(), End> {
    let mut found = 0;
    while found < bytes.len() {
        match source.read(&mut bytes[found..]) {
            Ok(0) => return Err(End { found, reason: None }),
            Ok(read) => found += read,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(End { found, reason: Some(e) }),
        }
    }
    Ok(())
}

/// The file's bytes, decompressed when they begin with gzip's magic number.
fn inflated(file: File) -> io::Result<Box<dyn Read>> {
    let mut raw = BufReader::with_capacity(CHUNK, file);
    let compressed = raw.fill_buf()?.starts_with(&[0x1f, 0x8b]);
    Ok(if compressed { Box::new(MultiGzDecoder::new(raw)) } else { Box::new(raw) })
}

/// How the bytes of one voxel become a number.
fn decoder(datatype: NiftiType, endianness: Endianness) -> fn(&[u8]) -> f32 {
    macro_rules! of {
        ($number:ty) => {
            match endianness {
                // The default is never used: a voxel has exactly the bytes of its type.
                Endianness::Little => |bytes| <$number>::from_le_bytes(bytes.try_into().unwrap_or_default()) as f32,
                Endianness::Big => |bytes| <$number>::from_be_bytes(bytes.try_into().unwrap_or_default()) as f32,
            }
        };
    }
    match datatype {
        NiftiType::Uint8 => of!(u8),
        NiftiType::Int8 => of!(i8),
        NiftiType::Uint16 => of!(u16),
        NiftiType::Int16 => of!(i16),
        NiftiType::Uint32 => of!(u32),
        NiftiType::Int32 => of!(i32),
        NiftiType::Uint64 => of!(u64),
        NiftiType::Int64 => of!(i64),
        NiftiType::Float64 => of!(f64),
        // The header's check lets no other type through.
        _ => of!(f32),
    }
}
