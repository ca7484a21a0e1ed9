//! What a NIfTI-1 header says of a scan, with every contradiction in it refused.

use std::path::Path;

use nifti::{Endianness, NiftiHeader, NiftiType};

use crate::error::ScanError;
use crate::foreign::kind_of;
use crate::place::{Axes, spanned};
use crate::volume::Grid;

/// Bytes of a NIfTI-1 header.
pub(crate) const HEADER_BYTES: usize = 348;
/// More voxels than this is no scan but a damaged header (a 1024³ CT is just below).
const MAX_VOXELS: usize = 1 << 30;
/// Spacing and affine may differ by this share: rounding of the exporting tool.
const SPACING_TOLERANCE: f32 = 1e-2;
/// Axes whose directions span less than this (1 at right angles) lie in one plane.
const LEAST_SPANNED: f64 = 1e-2;

/// What is needed to read the voxels.
pub(crate) struct Head {
    pub(crate) grid: Grid,
    pub(crate) datatype: NiftiType,
    pub(crate) endianness: Endianness,
    /// Where voxels begin.
    pub(crate) offset: usize,
    /// A value is its number times this plus the intercept; `None` where the header asks for no scaling.
    pub(crate) scaling: Option<(f64, f64)>,
}

impl Head {
    /// Parses the bytes of a header; `file` is for messages.
    pub(crate) fn parse(file: &Path, bytes: &[u8; HEADER_BYTES]) -> Result<Self, ScanError> {
        let not_nifti = |reason: String| ScanError::NotNifti { file: file.to_owned(), reason };
        if let Some(kind) = kind_of(bytes) {
            return Err(not_nifti(kind.to_owned()));
        }
        let little = bytes.starts_with(&(HEADER_BYTES as i32).to_le_bytes());
        if !little && !bytes.starts_with(&(HEADER_BYTES as i32).to_be_bytes()) {
            return Err(not_nifti("it does not begin with a header of 348 bytes".into()));
        }
        let header = NiftiHeader::from_reader(bytes.as_slice()).map_err(|e| not_nifti(e.to_string()))?;
        // The crate tells the byte order by dim[0] alone.
        if little != matches!(header.endianness, Endianness::Little) {
            let axes = [bytes[40], bytes[41]];
            let axes = if little { i16::from_le_bytes(axes) } else { i16::from_be_bytes(axes) };
            return Err(bad(file, "dim[0]", &axes, "the number of axes must be from 1 to 7"));
        }
        if &header.magic != b"n+1\0" {
            return Err(not_nifti("the magic number is not n+1".into()));
        }
        let offset = header.vox_offset;
        if !(offset.is_finite() && offset >= HEADER_BYTES as f32 && offset < 1e8) {
            return Err(bad(file, "vox_offset", &offset, "voxels begin after the header of 348 bytes"));
        }
        Ok(Self {
            grid: grid_of(file, &header)?,
            datatype: data_type(file, &header)?,
            endianness: header.endianness,
            offset: offset as usize,
            scaling: scaling_of(&header),
        })
    }

    /// Bytes of the whole file, inflated.
    pub(crate) fn file_bytes(&self) -> u64 {
        // Bounded by MAX_VOXELS and the offset's own bound.
        (self.offset + self.grid.len() * self.datatype.size_of()) as u64
    }
}

/// As NIfTI's C library has it (`FIXED_FLOAT` in nifti1_io.c): what is not finite counts as 0, and a slope of 0 says that
/// there is no scaling.
fn scaling_of(header: &NiftiHeader) -> Option<(f64, f64)> {
    let fixed = |value: f32| if value.is_finite() { f64::from(value) } else { 0.0 };
    let (slope, intercept) = (fixed(header.scl_slope), fixed(header.scl_inter));
    (slope != 0.0 && (slope, intercept) != (1.0, 0.0)).then_some((slope, intercept))
}

fn bad(file: &Path, field: &'static str, found: &impl std::fmt::Debug, rule: &'static str) -> ScanError {
    ScanError::BadGeometry { file: file.to_owned(), field, found: format!("{found:?}"), rule }
}

fn data_type(file: &Path, header: &NiftiHeader) -> Result<NiftiType, ScanError> {
    use NiftiType::{Float32, Float64, Int8, Int16, Int32, Int64, Uint8, Uint16, Uint32, Uint64};
    let wrong = |found: String| ScanError::WrongDataType { file: file.to_owned(), found };
    match header.data_type() {
        Ok(t @ (Uint8 | Int8 | Uint16 | Int16 | Uint32 | Int32 | Uint64 | Int64 | Float32 | Float64)) => {
            if usize::try_from(header.bitpix).ok() == Some(t.size_of() * 8) {
                return Ok(t);
            }
            let found = format!("{} beside the data type {t:?}", header.bitpix);
            let rule = "it must be the number of bits of the data type";
            Err(ScanError::BadGeometry { file: file.to_owned(), field: "bitpix", found, rule })
        }
        Ok(other) => Err(wrong(format!("{other:?}"))),
        Err(_) => Err(wrong(format!("code {}", header.datatype))),
    }
}

fn shape_of(file: &Path, header: &NiftiHeader) -> Result<[usize; 3], ScanError> {
    let rank = usize::from(header.dim[0]).min(7);
    // Sides are signed in the file, whatever the crate reads them as.
    let all: Vec<i64> = header.dim[1..=rank].iter().map(|&side| i64::from(side.cast_signed())).collect();
    // A fourth axis of length one is how some tools write a plain volume.
    let plain = all.len() >= 3 && all[3..].iter().all(|&d| d == 1) && all[..3].iter().all(|&d| d >= 1);
    if !plain {
        return Err(ScanError::NotThreeDimensional { file: file.to_owned(), found: all });
    }
    // All three are at least 1 and at most 2^15.
    let shape = [all[0] as usize, all[1] as usize, all[2] as usize];
    if shape.iter().product::<usize>() > MAX_VOXELS {
        return Err(bad(file, "dim", &shape, "a scan has at most 2^30 voxels"));
    }
    Ok(shape)
}

fn grid_of(file: &Path, header: &NiftiHeader) -> Result<Grid, ScanError> {
    let shape = shape_of(file, header)?;
    // The lowest three bits are the unit of space: 0 unknown, taken as mm, and 2 mm; 1 is m, 3 µm.
    let unit = header.xyzt_units & 0b111;
    if unit != 0 && unit != 2 {
        return Err(bad(file, "xyzt_units", &unit, "the unit of space must be mm (2) or unknown (0, taken as mm)"));
    }
    let spacing = [header.pixdim[1].abs(), header.pixdim[2].abs(), header.pixdim[3].abs()];
    if !spacing.iter().all(|s| s.is_finite() && *s > 0.0) {
        return Err(bad(file, "pixdim", &&header.pixdim[1..4], "the spacing in mm must be a finite number above 0"));
    }
    let (affine, field) = affine_of(header, spacing);
    if !affine.iter().flatten().all(|v| v.is_finite()) {
        return Err(bad(file, field, &affine, "all entries of the affine must be finite"));
    }
    // Distances are measured by the one and shown by the other.
    let steps = [0, 1, 2].map(|column| affine.iter().map(|row| row[column] * row[column]).sum::<f32>().sqrt());
    let zero = steps.iter().position(|step| *step == 0.0);
    if zero.is_some() || spanned(&affine) < LEAST_SPANNED {
        let linear = affine.map(|row| [row[0], row[1], row[2]]);
        let rule = "a singular affine: its three axes must point in three directions, or the scan lies in a plane";
        return Err(bad(file, field, &linear, rule));
    }
    if (0..3).any(|axis| (steps[axis] - spacing[axis]).abs() > SPACING_TOLERANCE * spacing[axis]) {
        let found = format!("{spacing:?} where the affine ({field}) steps by {steps:?} mm");
        let rule = "pixdim and affine must tell the same spacing";
        return Err(ScanError::BadGeometry { file: file.to_owned(), field: "pixdim", found, rule });
    }
    if header.sform_code > 0 && header.qform_code > 0 {
        let (says, other) = (Axes::of(&affine), Axes::of(&qform(header, spacing)));
        if says != other {
            // Which of the two a tool goes by is its own choice, and the next one would see the patient mirrored.
            let found = format!("{says} by the sform and {other} by the qform");
            let rule = "both must tell one order of axes; find out which is right, and set the other one's code to 0";
            let field = "sform_code and qform_code";
            return Err(ScanError::BadGeometry { file: file.to_owned(), field, found, rule });
        }
    }
    Ok(Grid { shape, spacing, affine, placed: header.sform_code > 0 || header.qform_code > 0 })
}

/// The voxel-to-space matrix by the standard's precedence: sform, then qform, then the spacing alone (nifti1.h,
/// methods 3, 2 and 1); also the fields that it comes from.
fn affine_of(header: &NiftiHeader, spacing: [f32; 3]) -> ([[f32; 4]; 3], &'static str) {
    if header.sform_code > 0 {
        return ([header.srow_x, header.srow_y, header.srow_z], "srow_x, srow_y, srow_z (sform)");
    }
    if header.qform_code <= 0 {
        return (Grid::axis_aligned([0; 3], spacing).affine, "pixdim");
    }
    (qform(header, spacing), "quatern_b, quatern_c, quatern_d and qoffset (qform)")
}

/// The voxel-to-space matrix of the qform.
fn qform(header: &NiftiHeader, spacing: [f32; 3]) -> [[f32; 4]; 3] {
    let (a, b, c, d) = quaternion(header);
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

/// The quaternion, of length 1 also where rounding made its three stored parts longer than that (as nifti1_io.c does).
fn quaternion(header: &NiftiHeader) -> (f32, f32, f32, f32) {
    let (b, c, d) = (header.quatern_b, header.quatern_c, header.quatern_d);
    let rest = 1.0 - (b * b + c * c + d * d);
    if rest >= 1e-7 {
        return (rest.sqrt(), b, c, d);
    }
    let length = (b * b + c * c + d * d).sqrt();
    (0.0, b / length, c / length, d / length)
}
