//! NIfTI-1 files in and out, with every rule of a usable scan checked at the door.
//!
//! A file is read as a stream: its header, then as many voxels as the header says, then its end, so that gzip's own
//! checksum is verified too. A file cut short, with flipped bits or with more in it is never trained on.
//!
//! What a file costs is bounded by its size and not by its header's word: a header that announces more than the file can
//! hold ([`INFLATION`] times its bytes where it is compressed) is refused before anything is set aside for its voxels.
//! Reading takes 4 bytes a voxel for an image and 1 for a mask, and 64 Ki voxels at a time beside them.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use flate2::bufread::MultiGzDecoder;
use ndarray::{Array3, ShapeBuilder};
use nifti::writer::WriterOptions;
use nifti::{Endianness, NiftiHeader, NiftiType};

use crate::error::ScanError;
use crate::foreign::kind_of;
use crate::nifti_header::{HEADER_BYTES, Head};
use crate::place::{Axes, Turn, corner_distance, corner_tolerance};
use crate::volume::{Grid, Mask, Volume};

/// Deflate makes of one byte at most so many: 258 bytes for two bits, less what its blocks take themselves.
const INFLATION: u64 = 1032;
/// Voxels that are decoded at once.
const CHUNK: usize = 1 << 16;

/// Reads where a scan's voxels lie, and nothing of the voxels.
pub fn read_grid(file: &Path) -> Result<Grid, ScanError> {
    Ok(Scan::at(file)?.fits()?.head.grid)
}

/// Reads an image. Errors: everything of [`ScanError`] that concerns one file.
pub fn read_volume(file: &Path) -> Result<Volume, ScanError> {
    let scan = Scan::at(file)?;
    let (grid, scaling) = (scan.head.grid.clone(), scan.head.scaling);
    let voxels = scan.voxels(|_, voxel| Ok(voxel))?;
    let bad = voxels.iter().filter(|v| !v.is_finite()).count();
    if bad > 0 {
        let first = voxels.iter().position(|v| !v.is_finite()).unwrap_or_default();
        return Err(ScanError::NotFinite { file: file.to_owned(), count: bad, at: grid.position(first), scaling });
    }
    let first = voxels[0];
    if voxels.iter().all(|&v| v == first) {
        return Err(ScanError::Empty { file: file.to_owned(), value: first, scaling });
    }
    Ok(Volume { grid, voxels })
}

/// Reads a mask whose labels must be whole numbers below `classes` (background included). A mask may be all background.
pub fn read_mask(file: &Path, classes: u8) -> Result<Mask, ScanError> {
    Scan::at(file)?.mask(classes)
}

/// Reads a mask of someone who is not trusted, from a handle on it; `file` is for messages. It may be stored in another
/// order of axes than `truth` and is brought to that. That it lies on `truth` is checked before a voxel is inflated, so
/// that it costs no more memory than the truth does.
pub fn read_prediction(
    file: &Path,
    opened: File,
    classes: u8,
    (truth_file, truth): (&Path, &Grid),
) -> Result<Mask, ScanError> {
    let scan = Scan::of(file, opened)?;
    let turn = turn_onto(truth, &scan.head.grid);
    check_pair(truth_file, truth, file, &turn.grid(&scan.head.grid))?;
    Ok(turn.mask(scan.mask(classes)?))
}

/// How a mask is turned to its image's order of axes; not at all where one of them does not say its own. Of all orders it
/// is the one in which the two lie on each other: near 45 degrees the names of their own axes hang on a rounding, and one
/// case would fall to two. Where none fits, the names are gone by, and [`check_pair`] says how far they are apart.
pub fn turn_onto(image: &Grid, mask: &Grid) -> Turn {
    let (Some(from), Some(to)) = (mask.axes(), image.axes()) else { return Turn::NONE };
    let lies = |turn: &Turn| {
        let turned = turn.grid(mask);
        turned.shape == image.shape && corner_distance(image, &turned) <= corner_tolerance(image)
    };
    let mut all =
        [Turn::NONE, Turn::between(from, to)].into_iter().chain(Axes::all().map(|to| Turn::between(from, to)));
    all.find(lies).unwrap_or_else(|| Turn::between(from, to))
}

/// Checks that a mask lies on its image: same shape, same place. Where neither file says where it lies, their spacings
/// must agree; where only one does, nobody can tell.
pub fn check_pair(image_file: &Path, image: &Grid, mask_file: &Path, mask: &Grid) -> Result<(), ScanError> {
    let (mask_name, image_name) = (mask_file.to_owned(), image_file.to_owned());
    if image.placed != mask.placed {
        let known = if image.placed { image } else { mask };
        return Err(ScanError::HalfPlaced {
            mask: mask_name,
            image: image_name,
            image_is: image.placed,
            axes: Axes::of(&known.affine),
        });
    }
    if image.shape != mask.shape {
        return Err(ScanError::ShapeMismatch {
            mask: mask_name,
            image: image_name,
            mask_shape: mask.shape,
            image_shape: image.shape,
        });
    }
    let (difference, allowed) = (corner_distance(image, mask), corner_tolerance(image));
    if difference > allowed {
        return Err(ScanError::AffineMismatch { mask: mask_name, image: image_name, difference, allowed });
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
        // What nobody knew of the scan must not be claimed of its mask.
        sform_code: i16::from(grid.placed),
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
    /// The most bytes that the file can hold, inflated.
    room: u64,
}

impl Scan {
    fn at(file: &Path) -> Result<Self, ScanError> {
        Self::of(file, File::open(file).map_err(|e| ScanError::unreadable(file, &e))?)
    }

    fn of(file: &Path, opened: File) -> Result<Self, ScanError> {
        let unreadable = |e| ScanError::unreadable(file, &e);
        let size = opened.metadata().map_err(unreadable)?.len();
        let (mut source, room) = inflated(opened, size).map_err(unreadable)?;
        let mut header = [0; HEADER_BYTES];
        if let Err(end) = fill(&mut source, &mut header) {
            if let (None, Some(kind)) = (&end.reason, kind_of(&header[..end.found])) {
                return Err(ScanError::NotNifti { file: file.to_owned(), reason: kind.to_owned() });
            }
            return Err(end.truncated(file, 0, format!("at least a header of {HEADER_BYTES} bytes")));
        }
        Ok(Self { file: file.to_owned(), source, head: Head::parse(file, &header)?, room })
    }

    /// Refuses what the file cannot hold, whatever its header says.
    fn fits(self) -> Result<Self, ScanError> {
        let needed = self.head.file_bytes();
        if needed <= self.room {
            return Ok(self);
        }
        let found = format!("room for {} bytes at most, header included", self.room);
        let expected = format!("{needed} (shape {:?}, {:?})", self.head.grid.shape, self.head.datatype);
        Err(ScanError::Truncated { file: self.file, found, expected })
    }

    fn mask(self, classes: u8) -> Result<Mask, ScanError> {
        let (file, grid, scaling) = (self.file.clone(), self.head.grid.clone(), self.head.scaling);
        let labels = self.voxels(|offset, voxel| {
            if voxel >= 0.0 && voxel < f32::from(classes) && voxel.fract() == 0.0 {
                // Safety of the cast: a whole number below 256.
                return Ok(voxel as u8);
            }
            let at = grid.position(offset);
            Err(ScanError::LabelOutsideClasses { file: file.clone(), found: voxel, at, scaling, classes })
        })?;
        Ok(Mask { grid, labels })
    }

    /// Every voxel, x fastest, as `take` makes it of its offset and value; then the file must end.
    fn voxels<T>(self, mut take: impl FnMut(usize, f32) -> Result<T, ScanError>) -> Result<Vec<T>, ScanError> {
        let mut scan = self.fits()?;
        let Head { grid, datatype, endianness, offset, scaling } = &scan.head;
        let (count, width) = (grid.len(), datatype.size_of());
        let expected = || format!("{} (shape {:?}, {datatype:?})", count * width, grid.shape);
        let decode = decoder(*datatype, *endianness);
        let mut buffer = vec![0; CHUNK * width];
        let mut between = offset - HEADER_BYTES;
        while between > 0 {
            let bytes = between.min(buffer.len());
            fill(&mut scan.source, &mut buffer[..bytes]).map_err(|end| end.truncated(&scan.file, 0, expected()))?;
            between -= bytes;
        }
        let mut taken = Vec::new();
        taken.try_reserve_exact(count).map_err(|e| ScanError::Unreadable {
            file: scan.file.clone(),
            reason: format!("{count} voxels do not fit into this machine's memory ({e})"),
        })?;
        while taken.len() < count {
            let bytes = &mut buffer[..CHUNK.min(count - taken.len()) * width];
            let before = taken.len() * width;
            fill(&mut scan.source, bytes).map_err(|end| end.truncated(&scan.file, before, expected()))?;
            for voxel in bytes.chunks_exact(width) {
                let value = decode(voxel);
                let value = scaling.map_or(value, |(slope, intercept)| value * slope + intercept);
                taken.push(take(taken.len(), value as f32)?);
            }
        }
        match fill(&mut scan.source, &mut [0]) {
            Err(End { found: 0, reason: None }) => Ok(taken),
            Err(end) => Err(end.truncated(&scan.file, count * width, expected())),
            Ok(()) => Err(ScanError::Truncated {
                file: scan.file.clone(),
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

/// The file's bytes, decompressed when they begin with gzip's magic number, and how many there can be of `size` bytes.
fn inflated(file: File, size: u64) -> io::Result<(Box<dyn Read>, u64)> {
    let mut raw = BufReader::with_capacity(CHUNK, file);
    let compressed = raw.fill_buf()?.starts_with(&[0x1f, 0x8b]);
    Ok(if compressed {
        (Box::new(MultiGzDecoder::new(raw)), size.saturating_mul(INFLATION))
    } else {
        (Box::new(raw), size)
    })
}

/// How the bytes of one voxel become a number.
fn decoder(datatype: NiftiType, endianness: Endianness) -> fn(&[u8]) -> f64 {
    macro_rules! of {
        ($number:ty) => {
            match endianness {
                // The default is never used: a voxel has exactly the bytes of its type.
                Endianness::Little => |bytes| <$number>::from_le_bytes(bytes.try_into().unwrap_or_default()) as f64,
                Endianness::Big => |bytes| <$number>::from_be_bytes(bytes.try_into().unwrap_or_default()) as f64,
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
