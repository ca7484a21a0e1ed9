//! Every way in which a hospital's export can be broken gets its own message: the file, the value, the rule and the way
//! out. If one of these slipped through, a model would be trained on rubbish, or a steward would face a stack trace.

use std::fs;
use std::path::{Path, PathBuf};

use consilium_imaging::msd::{labelled_cases, load};
use consilium_imaging::nifti_file::{check_pair, read_mask, read_volume, write_mask, write_volume};
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
    assert_says(&check_pair(image, &grid, mask_file, &moved).unwrap_err(), mask_file, &["0.5000 mm", "i.nii.gz"]);
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
    let cases = labelled_cases(dir.path()).unwrap();
    assert_eq!((cases.len(), cases[0].subject.as_str()), (1, "a"));
    fs::write(dir.path().join("cases.csv"), "case,subject_guess,regime,mean\na,17,F,3.5\n").unwrap();
    let cases = labelled_cases(dir.path()).unwrap();
    assert_eq!((cases[0].subject.as_str(), cases[0].regime.as_deref()), ("17", Some("F")));
    assert_eq!(load(&cases[0], 3).unwrap(), (volume(), mask()));
    fs::write(dir.path().join("cases.csv"), "case,regime\na,F\n").unwrap();
    let error = labelled_cases(dir.path()).unwrap_err().to_string();
    assert!(error.contains("cases.csv") && error.contains("no column subject"), "{error}");
}
