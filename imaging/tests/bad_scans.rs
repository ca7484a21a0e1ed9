//! Every way in which a hospital's export can be broken gets its own message: the file, the value, the rule and the way
//! out. If one of these slipped through, a model would be trained on rubbish, or a steward would face a stack trace.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a helper that fails is a test that fails")]

use std::fs;
use std::path::{Path, PathBuf};

use consilium_imaging::msd::{labelled_cases, load};
use consilium_imaging::nifti_file::{check_pair, read_mask, read_volume, write_mask, write_volume};
use consilium_imaging::untrusted::UntrustedFolder;
use consilium_imaging::{Grid, Mask, ScanError, Volume};
use tempfile::TempDir;

const SHAPE: [usize; 3] = [5, 4, 3];

fn volume() -> Volume {
    let mut grid = Grid::axis_aligned(SHAPE, [1.0, 1.5, 2.0]);
    grid.affine[0][3] = -12.5;
    let voxels = (0..grid.len()).map(|i| i as f32 * 0.25 - 3.0).collect();
    Volume { grid, voxels }
}

fn mask() -> Mask {
    let grid = volume().grid;
    let labels = (0..grid.len()).map(|i| (i % 3) as u8).collect();
    Mask { grid, labels }
}

fn written(dir: &TempDir, name: &str) -> PathBuf {
    let file = dir.path().join(name);
    write_volume(&file, &volume()).unwrap();
    file
}

/// An uncompressed file with some bytes of its header replaced.
fn patched(dir: &TempDir, at: usize, bytes: &[u8]) -> PathBuf {
    let file = written(dir, "patched.nii");
    let mut content = fs::read(&file).unwrap();
    content[at..at + bytes.len()].copy_from_slice(bytes);
    fs::write(&file, content).unwrap();
    file
}

fn assert_says(error: &ScanError, file: &Path, parts: &[&str]) {
    let message = error.to_string();
    let name = file.file_name().unwrap().to_str().unwrap();
    assert!(message.contains(name), "{message:?} does not name {name}");
    for part in parts {
        assert!(message.contains(part), "{message:?} lacks {part:?}");
    }
}

#[test]
fn what_is_written_is_read_back() {
    let dir = TempDir::new().unwrap();
    for name in ["a.nii", "a.nii.gz"] {
        assert_eq!(read_volume(&written(&dir, name)).unwrap(), volume());
    }
    let file = dir.path().join("m.nii.gz");
    write_mask(&file, &mask()).unwrap();
    assert_eq!(read_mask(&file, 3).unwrap(), mask());
}

#[test]
fn truncated_files() {
    let dir = TempDir::new().unwrap();
    for name in ["cut.nii", "cut.nii.gz"] {
        let file = written(&dir, name);
        let content = fs::read(&file).unwrap();
        for keep in [0, 20, content.len() / 2, content.len() - 3] {
            fs::write(&file, &content[..keep]).unwrap();
            let error = read_volume(&file).unwrap_err();
            assert_eq!(error.reason(), "Truncated", "{name} cut to {keep} of {}: {error}", content.len());
            assert_says(&error, &file, &["expected", "again"]);
        }
    }
}

/// gzip's checksum stands at the very end: only a reader that goes there notices a flipped bit.
#[test]
fn a_flipped_bit_in_the_compressed_stream() {
    let dir = TempDir::new().unwrap();
    let file = written(&dir, "flip.nii.gz");
    let mut content = fs::read(&file).unwrap();
    let checksum = content.len() - 6;
    content[checksum] ^= 1;
    fs::write(&file, content).unwrap();
    assert_eq!(read_volume(&file).unwrap_err().reason(), "Truncated");
}

#[test]
fn not_nifti_at_all() {
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("report.nii.gz");
    fs::write(&file, "Dear colleague, ".repeat(40)).unwrap();
    assert_says(&read_volume(&file).unwrap_err(), &file, &["not a NIfTI-1 file", "convert"]);
    let absent = dir.path().join("absent.nii.gz");
    assert_says(&read_volume(&absent).unwrap_err(), &absent, &["cannot be read"]);
}

#[test]
fn wrong_data_types() {
    let dir = TempDir::new().unwrap();
    // Offset 70: datatype; 32 is complex, 128 is RGB, 9999 nothing.
    for (code, name) in [(32_i16, "Complex64"), (128, "Rgb24"), (9999, "9999")] {
        let file = patched(&dir, 70, &code.to_le_bytes());
        assert_says(&read_volume(&file).unwrap_err(), &file, &[name, "not supported", "float32"]);
    }
}

/// Offset 72: bitpix. A reader that sizes its buffer by it and its numbers by the data type ends in a panic, without a
/// word for the steward and without a verdict for the agent, which then tries again.
#[test]
fn bits_that_are_not_those_of_the_data_type() {
    let dir = TempDir::new().unwrap();
    for bits in [0_i16, 8, 16, 64, -32] {
        let file = patched(&dir, 72, &bits.to_le_bytes());
        let error = read_volume(&file).unwrap_err();
        assert_says(&error, &file, &["bitpix", &bits.to_string(), "Float32", "correct the header"]);
    }
}

/// A megabyte of zeros is a kilobyte of gzip: what the header does not announce is not read, or a small file could fill
/// a node's memory.
#[test]
fn more_than_the_header_says_is_refused() {
    let dir = TempDir::new().unwrap();
    for name in ["long.nii", "long.nii.gz"] {
        let file = written(&dir, name);
        let mut content = fs::read(&file).unwrap();
        if name.ends_with(".gz") {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
            std::io::Write::write_all(&mut encoder, &vec![0; 1 << 20]).unwrap();
            content.extend(encoder.finish().unwrap());
        } else {
            content.push(0);
        }
        fs::write(&file, content).unwrap();
        assert_says(&read_volume(&file).unwrap_err(), &file, &["more bytes", "expected 240", "[5, 4, 3]"]);
    }
}

/// Every integer and real type is read by its own size and byte order, with the header's scaling: a factor left out
/// would be trained on as if it were contrast.
#[test]
fn every_data_type_and_byte_order() {
    let numbers = [0_u8, 1, 7, 100];
    let encode = |code: i16, value: u8, big: bool| -> Vec<u8> {
        let little = match code {
            2 => vec![value],
            256 => (value as i8).to_le_bytes().to_vec(),
            512 | 4 => u16::from(value).to_le_bytes().to_vec(),
            768 | 8 => u32::from(value).to_le_bytes().to_vec(),
            1280 | 1024 => u64::from(value).to_le_bytes().to_vec(),
            16 => f32::from(value).to_le_bytes().to_vec(),
            _ => f64::from(value).to_le_bytes().to_vec(),
        };
        if big { little.into_iter().rev().collect() } else { little }
    };
    let dir = TempDir::new().unwrap();
    for code in [2_i16, 256, 512, 4, 768, 8, 1280, 1024, 16, 64] {
        for big in [false, true] {
            let bytes16 = |value: i16| if big { value.to_be_bytes() } else { value.to_le_bytes() };
            let bytes32 = |value: f32| if big { value.to_be_bytes() } else { value.to_le_bytes() };
            let mut content = vec![0_u8; 352];
            content[..4].copy_from_slice(&if big { 348_i32.to_be_bytes() } else { 348_i32.to_le_bytes() });
            for (at, side) in [(40, 3), (42, 2), (44, 2), (46, 1)] {
                content[at..at + 2].copy_from_slice(&bytes16(side));
            }
            content[70..72].copy_from_slice(&bytes16(code));
            content[72..74].copy_from_slice(&bytes16(encode(code, 0, big).len() as i16 * 8));
            for at in [80, 84, 88] {
                content[at..at + 4].copy_from_slice(&bytes32(1.0));
            }
            // Offset 108: vox_offset, then slope and intercept.
            for (at, value) in [(108, 352.0), (112, 0.5), (116, -3.0)] {
                content[at..at + 4].copy_from_slice(&bytes32(value));
            }
            content[344..348].copy_from_slice(b"n+1\0");
            content.extend(numbers.iter().flat_map(|&value| encode(code, value, big)));
            let file = dir.path().join("typed.nii");
            fs::write(&file, content).unwrap();
            assert_eq!(read_volume(&file).unwrap().voxels, [-3.0, -2.5, 0.5, 47.0], "type {code}, big-endian {big}");
        }
    }
}

/// In micrometres, or with a spacing that the affine contradicts, a distance in mm is off by any factor, and the surface
/// distances of that hospital mean nothing.
#[test]
fn spacings_that_are_not_in_mm_or_contradict_the_affine() {
    let dir = TempDir::new().unwrap();
    // Offset 123: units; 3 is µm, 1 m, 10 mm and seconds.
    for unit in [1_u8, 3, 11] {
        assert_says(&read_volume(&patched(&dir, 123, &[unit])).unwrap_err(), Path::new("patched.nii"), &["mm (2)"]);
    }
    for unit in [0, 2, 10] {
        read_volume(&patched(&dir, 123, &[unit])).unwrap();
    }
    // Offset 84: pixdim[2], 1.5 in the affine.
    let file = patched(&dir, 84, &3.0_f32.to_le_bytes());
    assert_says(&read_volume(&file).unwrap_err(), &file, &["pixdim", "3.0", "1.5", "same spacing"]);
    // The last digits of an exporting tool.
    read_volume(&patched(&dir, 84, &1.501_f32.to_le_bytes())).unwrap();
}

/// The study's image writes predictions where it likes: a link to the hospital's labels in place of one would be a
/// perfect score, and a header that admits to gigabytes would end the evaluator.
#[test]
fn predictions_are_files_of_their_own() {
    use std::os::unix::fs::symlink;
    let dir = TempDir::new().unwrap();
    let (truth, folder) = (dir.path().join("truth.nii.gz"), dir.path().join("predictions"));
    fs::create_dir(&folder).unwrap();
    write_mask(&truth, &mask()).unwrap();
    fs::copy(&truth, folder.join("a.nii.gz")).unwrap();
    symlink(&truth, folder.join("b.nii.gz")).unwrap();
    fs::create_dir(folder.join("c.nii.gz")).unwrap();
    let grid = mask().grid;
    let open = UntrustedFolder::open(&folder).unwrap();
    assert_eq!(open.masks().unwrap().into_keys().collect::<Vec<_>>(), ["a", "b", "c"]);
    assert_eq!(open.mask("a.nii.gz", 3, (&truth, &grid)).unwrap(), mask());
    for name in ["b.nii.gz", "c.nii.gz"] {
        let error = open.mask(name, 3, (&truth, &grid)).unwrap_err();
        assert_says(&error, &folder.join(name), &["neither a link nor"]);
    }
    symlink(&folder, dir.path().join("linked")).unwrap();
    let error = UntrustedFolder::open(&dir.path().join("linked")).unwrap_err();
    assert_says(&error, Path::new("linked"), &["link"]);
    let outer = UntrustedFolder::open(dir.path()).unwrap();
    assert_says(&outer.inner("linked").unwrap_err(), Path::new("linked"), &["link"]);

    // 1024 × 1024 × 1024 voxels in a file of one kilobyte: refused by the header, before a voxel is set aside.
    let file = folder.join("a.nii");
    fs::write(&file, fs::read(patched(&dir, 42, &[0, 4, 0, 4, 0, 4])).unwrap()).unwrap();
    let error = open.mask("a.nii", 3, (&truth, &grid)).unwrap_err();
    assert_eq!(error.reason(), "ShapeMismatch", "{error}");
    // Two files of one case: which of them is scored would be chance.
    assert_eq!(open.masks().unwrap_err().reason(), "TwoFiles");
}

#[test]
fn shapes_and_spacings_that_cannot_be() {
    let dir = TempDir::new().unwrap();
    // Offset 40: dim[0], the number of axes. Offset 42: dim[1]. Offset 80: pixdim[1].
    for (at, bytes) in [(40, 2_i16.to_le_bytes()), (42, 0_i16.to_le_bytes())] {
        let error = read_volume(&patched(&dir, at, &bytes)).unwrap_err();
        assert_eq!(error.reason(), "NotThreeDimensional", "{error}");
    }
    for spacing in [0.0_f32, f32::NAN] {
        let file = patched(&dir, 80, &spacing.to_le_bytes());
        assert_says(&read_volume(&file).unwrap_err(), &file, &["pixdim", "above 0"]);
    }
}

#[test]
fn a_fourth_axis_of_length_one_is_a_plain_volume() {
    let dir = TempDir::new().unwrap();
    let file = patched(&dir, 40, &4_i16.to_le_bytes());
    let mut content = fs::read(&file).unwrap();
    content[48..50].copy_from_slice(&1_i16.to_le_bytes());
    fs::write(&file, &content).unwrap();
    assert_eq!(read_volume(&file).unwrap().grid.shape, SHAPE);
    content[48..50].copy_from_slice(&7_i16.to_le_bytes());
    fs::write(&file, &content).unwrap();
    assert_says(&read_volume(&file).unwrap_err(), &file, &["[5, 4, 3, 7]", "three"]);
}

#[test]
fn nan_and_infinity() {
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("nan.nii.gz");
    let mut bad = volume();
    bad.voxels[7] = f32::NAN;
    bad.voxels[30] = f32::INFINITY;
    write_volume(&file, &bad).unwrap();
    // Offset 7 in a 5×4×3 volume is x=2, y=1, z=0.
    assert_says(&read_volume(&file).unwrap_err(), &file, &["2 voxels", "x=2 y=1 z=0", "finite"]);
}

#[test]
fn an_empty_image() {
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("empty.nii.gz");
    let mut bad = volume();
    bad.voxels.fill(0.0);
    write_volume(&file, &bad).unwrap();
    assert_says(&read_volume(&file).unwrap_err(), &file, &["empty", "all voxels are 0"]);
}

#[test]
fn labels_outside_the_classes() {
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("m.nii.gz");
    write_mask(&file, &mask()).unwrap();
    assert_says(&read_mask(&file, 2).unwrap_err(), &file, &["label 2", "0 to 1", "2 classes"]);
    // Half a label, as left behind by resampling with interpolation.
    let mut blurred = volume();
    blurred.voxels.fill(0.5);
    let file = dir.path().join("blurred.nii.gz");
    write_volume(&file, &blurred).unwrap();
    assert_says(&read_mask(&file, 3).unwrap_err(), &file, &["label 0.5", "whole numbers"]);
}

#[test]
fn masks_that_do_not_lie_on_their_image() {
    let (image, mask_file) = (Path::new("i.nii.gz"), Path::new("m.nii.gz"));
    let grid = volume().grid;
    check_pair(image, &grid, mask_file, &grid).unwrap();
    let other = Grid::axis_aligned([5, 4, 2], [1.0, 1.5, 2.0]);
    assert_says(&check_pair(image, &grid, mask_file, &other).unwrap_err(), mask_file, &["[5, 4, 2]", "[5, 4, 3]"]);
    let mut moved = grid.clone();
    moved.affine[1][3] += 0.5;
    assert_says(
        &check_pair(image, &grid, mask_file, &moved).unwrap_err(),
        mask_file,
        &["0.500 mm", "i.nii.gz", "0.100 mm"],
    );
}

#[test]
fn folders_without_what_is_needed() {
    let dir = TempDir::new().unwrap();
    let error = labelled_cases(dir.path()).unwrap_err();
    assert!(error.to_string().contains("no folder imagesTr"), "{error}");
    fs::create_dir_all(dir.path().join("imagesTr")).unwrap();
    fs::create_dir_all(dir.path().join("labelsTr")).unwrap();
    let error = labelled_cases(dir.path()).unwrap_err();
    assert!(error.to_string().contains("no .nii or .nii.gz"), "{error}");
    for name in ["a", "b"] {
        write_volume(&dir.path().join(format!("imagesTr/{name}.nii.gz")), &volume()).unwrap();
    }
    write_mask(&dir.path().join("labelsTr/a.nii.gz"), &mask()).unwrap();
    let error = labelled_cases(dir.path()).unwrap_err();
    assert_eq!(error.reason(), "MissingMask");
    assert!(error.to_string().contains("b.nii.gz"), "{error}");
}

#[test]
fn a_good_folder_and_its_table() {
    let dir = TempDir::new().unwrap();
    for folder in ["imagesTr", "labelsTr"] {
        fs::create_dir_all(dir.path().join(folder)).unwrap();
    }
    write_volume(&dir.path().join("imagesTr/a.nii.gz"), &volume()).unwrap();
    write_mask(&dir.path().join("labelsTr/a.nii.gz"), &mask()).unwrap();
    fs::write(dir.path().join("imagesTr/._a.nii.gz"), "a Mac's resource fork").unwrap();
    let cases = labelled_cases(dir.path()).unwrap().cases;
    assert_eq!((cases.len(), cases[0].subject.as_str()), (1, "a"));
    fs::write(dir.path().join("cases.csv"), "case,subject_guess,regime,mean\na,17,F,3.5\n").unwrap();
    let cases = labelled_cases(dir.path()).unwrap().cases;
    assert_eq!((cases[0].subject.as_str(), cases[0].regime.as_deref()), ("17", Some("F")));
    assert_eq!(load(&cases[0], 3).unwrap(), (volume(), mask()));
    // A scan that the table forgot would count as one more person, and its owner could be on both sides of a split.
    write_volume(&dir.path().join("imagesTr/b.nii.gz"), &volume()).unwrap();
    write_mask(&dir.path().join("labelsTr/b.nii.gz"), &mask()).unwrap();
    let error = labelled_cases(dir.path()).unwrap_err();
    assert_eq!(error.reason(), "BadTable");
    assert_says(&error, Path::new("cases.csv"), &["no row for case b", "add the row"]);
    fs::write(dir.path().join("cases.csv"), "case,regime\na,F\n").unwrap();
    let error = labelled_cases(dir.path()).unwrap_err().to_string();
    assert!(error.contains("cases.csv") && error.contains("no column subject"), "{error}");
}
