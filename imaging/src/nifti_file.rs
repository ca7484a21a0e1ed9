//! NIfTI-1 files in and out, with every rule of a usable scan checked at the door.
//!
//! The whole file is inflated to its end, so that gzip's own checksum is verified too; a file cut short or with flipped
//! bits is never trained on.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use flate2::read::MultiGzDecoder;
use ndarray::{Array3, ShapeBuilder};
use nifti::writer::WriterOptions;
use nifti::{InMemNiftiVolume, IntoNdArray, NiftiHeader, NiftiType};

use crate::error::ScanError;
use crate::volume::{Grid, Mask, Volume};

/// More voxels than this is no scan but a damaged header (a 1024³ CT is just below).
const MAX_VOXELS: usize = 1 << 30;
/// Image and mask may differ by this much, in mm, in each entry of the affine: rounding of the exporting tool.
const AFFINE_TOLERANCE_MM: f32 = 1e-2;
const HEADER_BYTES: usize = 348;

/// Reads an image. Errors: everything of [`ScanError`] that concerns one file.
pub fn read_volume(file: &Path) -> Result<Volume, ScanError> {
    let (grid, voxels) = read(file)?;
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
    let (grid, voxels) = read(file)?;
    let allowed = |v: f32| v >= 0.0 && v < f32::from(classes) && v.fract() == 0.0;
    if let Some(offset) = voxels.iter().position(|&v| !allowed(v)) {
        return Err(ScanError::LabelOutsideClasses {
            file: file.to_owned(),
            found: voxels[offset],
            at: grid.position(offset),
            classes,
        });
    }
    // Safety of the cast: checked above to be a whole number below 256.
    let labels = voxels.iter().map(|&v| v as u8).collect();
    Ok(Mask { grid, labels })
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

fn read(file: &Path) -> Result<(Grid, Vec<f32>), ScanError> {
    let bytes = inflate(file)?;
    let header = parse_header(file, &bytes)?;
    let grid = grid_of(file, &header)?;
    let datatype = data_type(file, &header)?;
    let start = header.vox_offset as usize;
    let expected = grid.len() * datatype.size_of();
    let found = bytes.len().saturating_sub(start);
    if found < expected {
        return Err(ScanError::Truncated {
            file: file.to_owned(),
            found: format!("{found} bytes of voxels"),
            expected: format!("{expected} (shape {:?}, {datatype:?})", grid.shape),
        });
    }
    let broken = |e: nifti::NiftiError| ScanError::NotNifti { file: file.to_owned(), reason: e.to_string() };
    let volume = InMemNiftiVolume::from_reader(&bytes[start..], &header).map_err(broken)?;
    let array = volume.into_ndarray::<f32>().map_err(broken)?;
    // The array is in Fortran order, as the file is: its raw memory is already x-fastest.
    let (voxels, _) = array.into_raw_vec_and_offset();
    Ok((grid, voxels))
}

/// The file's bytes, decompressed when they begin with gzip's magic number, and read to the end.
fn inflate(file: &Path) -> Result<Vec<u8>, ScanError> {
    let mut raw = Vec::new();
    File::open(file).and_then(|mut f| f.read_to_end(&mut raw)).map_err(|e| ScanError::unreadable(file, &e))?;
    if raw.is_empty() {
        return Err(ScanError::Truncated {
            file: file.to_owned(),
            found: "0 bytes".into(),
            expected: format!("at least a header of {HEADER_BYTES} bytes"),
        });
    }
    if !raw.starts_with(&[0x1f, 0x8b]) {
        return Ok(raw);
    }
    let limit = (MAX_VOXELS * 8) as u64;
    let mut bytes = Vec::new();
    match MultiGzDecoder::new(raw.as_slice()).take(limit).read_to_end(&mut bytes) {
        Ok(_) => Ok(bytes),
        Err(e) => Err(ScanError::Truncated {
            file: file.to_owned(),
            found: format!("{} bytes, then: {e}", bytes.len()),
            expected: "a whole gzip stream".into(),
        }),
    }
}

fn parse_header(file: &Path, bytes: &[u8]) -> Result<NiftiHeader, ScanError> {
    let not_nifti = |reason: String| ScanError::NotNifti { file: file.to_owned(), reason };
    if bytes.len() < HEADER_BYTES {
        return Err(ScanError::Truncated {
            file: file.to_owned(),
            found: format!("{} bytes", bytes.len()),
            expected: format!("at least a header of {HEADER_BYTES} bytes"),
        });
    }
    let header = NiftiHeader::from_reader(bytes).map_err(|e| not_nifti(e.to_string()))?;
    if &header.magic != b"n+1\0" {
        return Err(not_nifti("the magic number is not n+1".into()));
    }
    let offset = header.vox_offset;
    if !(offset.is_finite() && offset >= HEADER_BYTES as f32 && offset < 1e8) {
        return Err(ScanError::BadGeometry {
            file: file.to_owned(),
            field: "vox_offset",
            found: offset.to_string(),
            rule: "voxels begin after the header of 348 bytes",
        });
    }
    Ok(header)
}

fn data_type(file: &Path, header: &NiftiHeader) -> Result<NiftiType, ScanError> {
    use NiftiType::{Float32, Float64, Int8, Int16, Int32, Int64, Uint8, Uint16, Uint32, Uint64};
    let wrong = |found: String| ScanError::WrongDataType { file: file.to_owned(), found };
    match header.data_type() {
        Ok(t @ (Uint8 | Int8 | Uint16 | Int16 | Uint32 | Int32 | Uint64 | Int64 | Float32 | Float64)) => Ok(t),
        Ok(other) => Err(wrong(format!("{other:?}"))),
        Err(_) => Err(wrong(format!("code {}", header.datatype))),
    }
}

fn grid_of(file: &Path, header: &NiftiHeader) -> Result<Grid, ScanError> {
    let rank = usize::from(header.dim[0]);
    let all: Vec<usize> = header.dim[1..].iter().take(rank.min(7)).map(|&d| usize::from(d)).collect();
    // A fourth axis of length one is how some tools write a plain volume.
    let plain = all.len() >= 3 && all[3..].iter().all(|&d| d == 1) && all[..3].iter().all(|&d| d >= 1);
    if rank > 7 || !plain {
        return Err(ScanError::NotThreeDimensional { file: file.to_owned(), found: all });
    }
    let shape = [all[0], all[1], all[2]];
    if shape.iter().product::<usize>() > MAX_VOXELS {
        return Err(ScanError::BadGeometry {
            file: file.to_owned(),
            field: "dim",
            found: format!("{shape:?}"),
            rule: "a scan has at most 2^30 voxels",
        });
    }
    let spacing = [header.pixdim[1].abs(), header.pixdim[2].abs(), header.pixdim[3].abs()];
    if !spacing.iter().all(|s| s.is_finite() && *s > 0.0) {
        return Err(ScanError::BadGeometry {
            file: file.to_owned(),
            field: "pixdim",
            found: format!("{:?}", &header.pixdim[1..4]),
            rule: "the spacing in mm must be a finite number above 0",
        });
    }
    let affine = affine_of(header, spacing);
    if !affine.iter().flatten().all(|v| v.is_finite()) {
        return Err(ScanError::BadGeometry {
            file: file.to_owned(),
            field: "affine",
            found: format!("{affine:?}"),
            rule: "all entries must be finite",
        });
    }
    Ok(Grid { shape, spacing, affine })
}

/// The voxel-to-space matrix by the standard's precedence: sform, then qform, then the spacing alone (nifti1.h,
/// methods 3, 2 and 1).
fn affine_of(header: &NiftiHeader, spacing: [f32; 3]) -> [[f32; 4]; 3] {
    if header.sform_code > 0 {
        return [header.srow_x, header.srow_y, header.srow_z];
    }
    if header.qform_code <= 0 {
        return Grid::axis_aligned([0; 3], spacing).affine;
    }
    let (b, c, d) = (header.quatern_b, header.quatern_c, header.quatern_d);
    let a = (1.0 - (b * b + c * c + d * d)).max(0.0).sqrt();
    let rotation = [
        [a * a + b * b - c * c - d * d, 2.0 * (b * c - a * d), 2.0 * (b * d + a * c)],
        [2.0 * (b * c + a * d), a * a + c * c - b * b - d * d, 2.0 * (c * d - a * b)],
        [2.0 * (b * d - a * c), 2.0 * (c * d + a * b), a * a + d * d - b * b - c * c],
    ];
    let handedness = if header.pixdim[0] < 0.0 { -1.0 } else { 1.0 };
    let scale = [spacing[0], spacing[1], spacing[2] * handedness];
    let shift = [header.quatern_x, header.quatern_y, header.quatern_z];
    let mut affine = [[0.0; 4]; 3];
    for row in 0..3 {
        for column in 0..3 {
            affine[row][column] = rotation[row][column] * scale[column];
        }
        affine[row][3] = shift[row];
    }
    affine
}
